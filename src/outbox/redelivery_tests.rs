//! Redeliveries, across reopening and rotation.

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;

fn packet(id: u16, dup: bool, hash: u64) -> Option<Packet> {
    Some(Packet { id, qos: Qos::AtLeastOnce, dup, hash, dedup: true })
}

fn stored(rig: &Rig) -> usize {
    readings(&read_all(&mut rig.outbox.reader(), 0)).len()
}

#[test]
fn a_redelivery_is_skipped_now_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let reading = || reading_of(1, 100, false);
    assert_eq!(rig.append(reading(), packet(1, false, 10)), Outcome::Appended);
    assert_eq!(rig.append(reading(), packet(1, true, 10)), Outcome::Duplicate);
    assert_eq!(rig.append(reading(), packet(1, true, 11)), Outcome::Appended, "another payload");
    assert_eq!(rig.append(reading(), packet(1, false, 11)), Outcome::Appended, "DUP = 0 begins anew");
    // A large one: its mark stands in an entry of its own.
    assert_eq!(rig.append(reading_of(2, 50_000, true), packet(2, false, 20)), Outcome::Appended);
    // One without readings (a retained message that is dropped, say).
    rig.submit(Vec::new(), packet(3, false, 30));
    assert_eq!(rig.outcomes(1)[0].1, Outcome::Appended);
    rig.close();

    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.append(reading(), packet(1, true, 11)), Outcome::Duplicate);
    assert_eq!(rig.append(reading(), packet(2, true, 20)), Outcome::Duplicate);
    assert_eq!(rig.append(reading(), packet(3, true, 30)), Outcome::Duplicate);
    assert_eq!(rig.append(reading(), packet(4, true, 40)), Outcome::Appended, "never seen");
    assert_eq!(stored(&rig), 5);
    rig.close();
}

#[test]
fn a_redelivery_in_the_same_group_is_answered_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    for _ in 0..20 {
        let id = rig.next_receipt as u16;
        let held = || rig.outbox.held().try_acquire(1).unwrap();
        let arrival = |dup, receipt| Arrival {
            readings: vec![reading_of(1, 100, false)],
            packet: packet(id, dup, 5),
            receipt: Receipt(receipt),
            held: held(),
        };
        rig.appender.submit(vec![arrival(false, 1), arrival(true, 2), arrival(true, 3)]);
        let want = [(1, Outcome::Appended), (2, Outcome::Duplicate), (3, Outcome::Duplicate)];
        assert_eq!(rig.outcomes(3), want.map(|(receipt, outcome)| (Receipt(receipt), outcome)));
        rig.next_receipt += 1;
    }
    assert_eq!(stored(&rig), 20);
    rig.close();
}

#[test]
fn released_packets_and_cleared_sessions_are_forgotten_after_reopening_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let reading = || reading_of(1, 100, false);
    for id in 1..=3 {
        assert_eq!(rig.append(reading(), packet(id, false, 10)), Outcome::Appended);
    }
    rig.appender.control(Control::Released(vec![1, 7]));
    assert_eq!(rig.append(reading(), packet(1, true, 10)), Outcome::Appended);
    rig.appender.control(Control::Released(vec![1]));
    rig.close();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.append(reading(), packet(1, true, 10)), Outcome::Appended);
    assert_eq!(rig.append(reading(), packet(2, true, 10)), Outcome::Duplicate);
    rig.appender.control(Control::SessionCleared);
    assert_eq!(rig.append(reading(), packet(2, true, 10)), Outcome::Appended);
    rig.appender.control(Control::SessionCleared);
    rig.close();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.append(reading(), packet(3, true, 10)), Outcome::Appended);
    rig.close();
}

#[test]
fn the_table_outlives_the_generation_its_packets_stand_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(8)));
    for id in 1..=3000 {
        rig.submit(vec![reading_of(u64::from(id), 50, false)], packet(id, false, u64::from(id)));
    }
    rig.outcomes(3000);
    rig.append_all(&many(1, 3000, 1000));
    trim(&rig.outbox, 6000);
    wait_until("trimmed", || generations(dir.path()) == 1);
    rig.close();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(8)));
    for id in 1..=3000 {
        rig.submit(vec![reading_of(1, 50, false)], packet(id, true, u64::from(id)));
    }
    assert!(rig.outcomes(3000).iter().all(|(_, outcome)| *outcome == Outcome::Duplicate));
    rig.close();
}

#[test]
fn sources_have_tables_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    assert_eq!(rig.append(reading_of(1, 10, false), packet(1, false, 10)), Outcome::Appended);
    let (other, mut answers) = rig.outbox.appender(&"other".into());
    let held = rig.outbox.held().try_acquire(1).unwrap();
    let arrival =
        Arrival { readings: vec![reading_of(1, 10, false)], packet: packet(1, true, 10), receipt: Receipt(9), held };
    other.submit(vec![arrival]);
    assert_eq!(answers.blocking_recv().unwrap().done, [(Receipt(9), Outcome::Appended)]);
    rig.close();
}
