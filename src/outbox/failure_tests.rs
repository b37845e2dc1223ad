//! Syncs and writes that fail: nothing of them is answered, and all of it comes again, in order, in the next generation.

use std::fs;

use tokio::sync::mpsc::error::TryRecvError;

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::Kind;

/// At once: the writer may look just now, and would take half of it for another fault.
pub(super) fn fail_next(dir: &Path, what: &str, how: &str) {
    let new = dir.join(what);
    fs::write(&new, how).unwrap();
    fs::rename(new, dir.join("outbox").join(what)).unwrap();
}

#[test]
fn what_a_failed_sync_leaves_is_written_again_in_order_and_stands_there_once() {
    for (what, how) in [("fault-sync", "no"), ("fault-sync", "full"), ("fault-insert", "no"), ("fault-insert", "full")]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        let wanted = many(1, 400, 300);
        let mut reader = rig.outbox.reader();
        for part in wanted.chunks(100) {
            assert!(readings(&read_all(&mut reader, 0)).len() < 400);
            fail_next(dir.path(), what, how);
            rig.append_all(part);
        }
        // The one that failed is never written again; one that held no reading yet is gone.
        assert!((4..=5).contains(&generations(dir.path())), "{what} {how}: {}", generations(dir.path()));
        assert_eq!(rig.outbox.shared.metrics.failed.get(), 4);
        let items = read_all(&mut reader, 0);
        assert!(readings(&items) == wanted && holes(&items).is_empty(), "{what} {how}");
        drop(reader);
        rig.close();
        let rig = Rig::open(dir.path());
        let items = read_all(&mut rig.outbox.reader(), 0);
        assert!(readings(&items) == wanted && holes(&items).is_empty(), "{what} {how}: after reopening");
        rig.close();
    }
}

#[test]
fn an_append_that_is_taken_back_leaves_the_redelivery_table_and_its_duplicate_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let packet = |id, dup, hash| Packet { id, qos: Qos::ExactlyOnce, dup, hash, dedup: true };
    rig.append(reading_of(1, 10, false), Some(packet(1, false, 10)));
    fail_next(dir.path(), "fault-sync", "no");
    let held = || rig.outbox.held().try_acquire(1).unwrap();
    let arrival = |receipt, packet| Arrival {
        readings: vec![reading_of(receipt, 10, false)],
        packet: Some(packet),
        receipt: Receipt(receipt),
        held: held(),
    };
    rig.appender.submit(vec![
        arrival(2, packet(2, false, 20)),
        arrival(3, packet(2, true, 20)),
        arrival(4, packet(1, true, 10)),
        arrival(5, packet(1, false, 11)),
        arrival(6, packet(1, true, 11)),
    ]);
    rig.appender.control(Control::Released(vec![2]));
    use Outcome::{Appended, Duplicate};
    let want = [(2, Appended), (3, Duplicate), (4, Duplicate), (5, Appended), (6, Duplicate)];
    assert_eq!(rig.outcomes(5), want.map(|(receipt, outcome)| (Receipt(receipt), outcome)));
    assert_eq!(rig.append(reading_of(7, 10, false), Some(packet(2, true, 20))), Appended, "released after it");
    let values: Vec<_> = [1, 2, 5, 7].map(|n| reading_of(n, 10, false)).into();
    assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == values);
    rig.close();
}

#[test]
fn a_full_disk_costs_the_reserve_first_and_nothing_that_was_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    let reserve = dir.path().join("outbox").join("reserve");
    let held = directory::disk_bytes(&reserve);
    assert!(held >= 1 << 20);
    fail_next(dir.path(), "fault-sync", "full");
    rig.append_all(&many(1, 10, 100));
    // There is room in truth: the reserve comes back.
    rig.append_all(&many(11, 10, 100));
    assert_eq!(directory::disk_bytes(&reserve), held);
    assert_eq!(readings(&read_all(&mut rig.outbox.reader(), 0)), many(1, 20, 100));
    assert_eq!(rig.outbox.status().state, "ok");
    // But not again and again: what refused a write that soon (a quota, which nobody can see) would do so again.
    fail_next(dir.path(), "fault-sync", "full");
    rig.append_all(&many(21, 10, 100));
    for from in [31, 41] {
        rig.append_all(&many(from, 10, 100));
        assert!(!reserve.exists(), "it is not written and given up with every reading");
    }
    rig.close();
}

#[test]
fn a_generation_that_cannot_be_removed_counts_and_is_removed_as_soon_as_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    rig.append_all(&many(1, 4000, 1000));
    let outbox = dir.path().join("outbox");
    let first = rig.outbox.shared.view().generations[0].id;
    // What it would be renamed to is taken.
    let obstacle = outbox.join(format!("dead-{first}"));
    fs::create_dir(&obstacle).unwrap();
    fs::write(obstacle.join("x"), "x").unwrap();
    trim(&rig.outbox, 4000);
    wait_until("all others leave the disk", || generations(dir.path()) == 2);
    assert!(outbox.join(first.to_string()).exists());
    let counts = |rig: &Rig| rig.outbox.status().bytes + (64 << 10) >= directory::disk_bytes(dir.path());
    // What is written is measured before.
    for n in 0.. {
        rig.append_all(&many(4001 + n, 1, 100));
        if counts(&rig) {
            break;
        }
        assert!(n < 500, "{:?} of {}", rig.outbox.status(), directory::disk_bytes(dir.path()));
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::remove_dir_all(obstacle).unwrap();
    for n in 0.. {
        rig.append_all(&many(5000 + n, 1, 100));
        if !outbox.join(first.to_string()).exists() {
            break;
        }
        assert!(n < 1000, "it is never removed");
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.close();
}

#[test]
fn a_full_disk_gets_delivered_generations_back_even_while_no_new_one_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    rig.append_all(&many(1, 4000, 1000));
    let before = generations(dir.path());
    assert!(before > 3, "{before}");
    fail_next(dir.path(), "fault-insert", "always full");
    let receipt = rig.submit(many(4001, 1, 100), None);
    wait_until("full", || rig.outbox.status().state.starts_with("full: the file system refused"));
    trim(&rig.outbox, 4000);
    // The newest one holds the newest snapshot. (A try to make another may stand beside it for a moment.)
    wait_until("delivered ones leave the disk", || rig.outbox.shared.view().generations.len() == 1);
    fs::remove_file(dir.path().join("outbox/fault-insert")).unwrap();
    assert_eq!(rig.outcomes(1), [(receipt, Outcome::Appended)]);
    rig.close();
    let rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    assert_eq!(readings(&read_all(&mut rig.outbox.reader(), 4000)), many(4001, 1, 100));
    rig.close();
}

#[test]
fn damage_that_cannot_be_noted_now_is_told_to_the_reader_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    rig.append_all(&many(1, 4000, 1000));
    let first = rig.outbox.shared.view().generations[0].clone();
    for entry in fs::read_dir(rig.outbox.shared.directory.generation(first.id)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(&path, vec![0x5a; fs::metadata(&path).unwrap().len() as usize]).unwrap();
        }
    }
    fail_next(dir.path(), "fault-insert", "always full");
    let mut reader = rig.outbox.reader();
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().spawn(move || {
        send.send(reader.batch_after(Sequence(0), SOME).map(|batch| holes(&batch.items))).unwrap();
        reader
    });
    let result = receive.recv_timeout(Duration::from_secs(30)).expect("batch_after returns");
    let error = result.expect_err("nothing can be noted").to_string();
    assert!(error.contains("is damaged"), "told at the first try, not after a hundred: {error}");
    fs::remove_file(dir.path().join("outbox/fault-insert")).unwrap();
    let mut reader = thread.unwrap().join().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let items = loop {
        match reader.batch_after(Sequence(0), SOME) {
            Ok(batch) => break batch.items,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let told = holes(&items);
    assert_eq!((told[0].0, told[0].1, &*told[0].2), (1, first.end_sequence() - 1, "damage"));
    rig.close();
}

#[test]
fn when_the_writer_dies_everybody_learns_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    rig.append_all(&many(1, 10, 100));
    let (other, mut answers) = rig.outbox.appender(&"other".into());
    fail_next(dir.path(), "fault-insert", "panic");
    rig.submit(many(11, 1, 100), None);
    let ended = |answers: &mut mpsc::UnboundedReceiver<Answer>, who: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !matches!(answers.try_recv(), Err(TryRecvError::Disconnected)) {
            assert!(Instant::now() < deadline, "{who}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    ended(&mut rig.answers, "who waits for an answer");
    ended(&mut answers, "who waits for none");
    ended(&mut rig.outbox.appender(&"third".into()).1, "who comes later");
    wait_until("the state says so", || rig.outbox.status().state.starts_with("failing"));
    rig.submit(many(12, 1, 100), None);
    other.control(Control::SessionCleared);
    assert!(rig.outbox.sync_position().is_err());
    let far = Instant::now() + Duration::from_secs(600);
    rig.outbox.wait_durable(Sequence(10), far);
    assert!(Instant::now() < far, "who waits for readings");
    rig.close();
}

#[test]
fn a_gap_record_that_could_not_be_written_is_written_though_nothing_else_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = options(ByteSize::mib(8));
    settings.config.when_full = config::outbox::WhenFull::DropNewest;
    let mut rig = Rig::open_with(dir.path(), settings);
    let mut refused = 0;
    while refused == 0 {
        assert!(rig.next_receipt < 1000, "it is never full");
        rig.submit((0..20).map(|n| reading_of(n, 8000, true)).collect(), None);
        refused = rig.outcomes(1).iter().filter(|(_, outcome)| *outcome == Outcome::Refused).count();
    }
    // The next thing written is the gap record, once there is room for it.
    fail_next(dir.path(), "fault-sync", "no");
    let durable = rig.outbox.positions().durable.0;
    trim(&rig.outbox, durable);
    wait_until("it has failed", || rig.outbox.shared.metrics.failed.get() > 0);
    let mut reader = rig.outbox.reader();
    wait_until("the gap record is there", || rig.outbox.positions().durable.0 > durable);
    let told = readings(&read_all(&mut reader, durable));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].kind, Kind::Gap);
    rig.close();
}
