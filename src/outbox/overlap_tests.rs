//! What goes on beside something else: packing beside a sync, opening the next generation beside reading.

use super::failure_tests::fail_next;
use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;

/// Readings that do not compress: a group of them takes several syncs.
fn large(from: u64, count: u64) -> Vec<Reading> {
    (from..from + count).map(|n| reading_of(n, 1000, true)).collect()
}

fn submit_all(rig: &mut Rig, readings: &[Reading]) {
    let held = rig.outbox.held();
    let first = rig.next_receipt;
    rig.next_receipt += readings.len() as u64;
    let arrival = |(n, reading): (usize, &Reading)| Arrival {
        readings: vec![reading.clone()],
        packet: None,
        receipt: Receipt(first + n as u64),
        held: held.try_acquire(1).unwrap(),
    };
    rig.appender.submit(readings.iter().enumerate().map(arrival).collect());
}

#[test]
fn a_large_group_is_answered_part_by_part_in_order_while_the_rest_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    fail_next(dir.path(), "fault-sync", "always 30ms");
    let wanted = large(1, 1000);
    submit_all(&mut rig, &wanted);
    let mut answers = 0;
    let mut next = 1;
    while next <= 1000 {
        let answer = rig.answers.blocking_recv().unwrap();
        answers += 1;
        for (receipt, outcome) in answer.done {
            assert_eq!((receipt, outcome), (Receipt(next), Outcome::Appended));
            next += 1;
        }
    }
    let syncs = rig.outbox.shared.metrics.syncs.get();
    assert!(answers > 3 && syncs > 3, "{answers} answers, {syncs} syncs");
    assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == wanted);
    rig.close();
}

#[test]
fn a_sync_that_fails_while_the_next_part_is_packed_costs_nothing() {
    for how in ["no", "full"] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(dir.path());
        let wanted = large(1, 3000);
        for (round, part) in wanted.chunks(600).enumerate() {
            fail_next(dir.path(), "fault-sync", how);
            submit_all(&mut rig, part);
            let done = rig.outcomes(part.len());
            let receipts = done.iter().map(|(receipt, _)| receipt.0);
            assert!(receipts.eq(round as u64 * 600 + 1..=round as u64 * 600 + 600), "{how}: in order, each once");
            assert_eq!(rig.outbox.shared.metrics.failed.get(), round as u64 + 1, "{how}");
        }
        let items = read_all(&mut rig.outbox.reader(), 0);
        assert!(readings(&items) == wanted && holes(&items).is_empty(), "{how}");
        rig.close();
        let rig = Rig::open(dir.path());
        assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == wanted, "{how}: after reopening");
        rig.close();
    }
}

#[test]
fn the_next_generation_is_opened_ahead_and_may_go_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    let wanted = large(1, 6000);
    wanted.chunks(500).for_each(|part| rig.append_all(part));
    assert!(generations(dir.path()) >= 4);
    let mut reader = rig.outbox.reader();
    let batch = reader.batch_after(Sequence(0), SOME).unwrap();
    let second = rig.outbox.shared.view().generations[1].clone();
    let is_open = || {
        let view = rig.outbox.shared.view();
        view.generations.iter().any(|listed| listed.id == second.id && listed.live.strong_count() > 0)
    };
    wait_until("the second generation is opened ahead", is_open);
    // It is delivered by somebody else's count, and removed; the first one is still being read.
    trim(&rig.outbox, second.end_sequence() - 1);
    let path = dir.path().join("outbox").join(second.id.to_string());
    wait_until("the second generation is removed", || !path.exists());
    let last = batch.items.last().unwrap().last().0;
    assert!(last < second.first_sequence);
    let rest = readings(&read_all(&mut reader, second.end_sequence() - 1));
    assert!(rest == wanted[second.end_sequence() as usize - 1..]);
    assert!(!path.exists(), "nobody makes it anew");
    drop(reader);
    rig.close();
    let rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    assert!(!path.exists());
    rig.close();
}
