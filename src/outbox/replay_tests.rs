//! What is delivered and kept: how long, how much, and sent again on request.

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::{Flags, Kind};

const MAX: ByteSize = ByteSize::mib(32);

fn keeping(retain: ByteSize) -> OpenOptions {
    let mut options = options(MAX);
    options.config.retain = retain;
    options.config.held_bytes_max = ByteSize::mib(64);
    options
}

fn bulk(from: u64, count: u64) -> Vec<Reading> {
    (from..from + count).map(|n| reading_of(n, 6000, true)).collect()
}

fn select(from: u64, to: u64) -> Selection {
    Selection { from: Some(from), to: Some(to), ..Selection::default() }
}

fn try_replay(outbox: &Outbox, selection: &Selection, dry_run: bool) -> Result<Replayed, ChangeError> {
    let change = Change { selection: selection.clone(), dry_run };
    run(change, |change| outbox.replay(change), |_: &Replayed| ())
}

fn replay(outbox: &Outbox, selection: &Selection) -> Replayed {
    try_replay(outbox, selection, false).unwrap()
}

fn deliver_all(outbox: &Outbox) -> u64 {
    let durable = outbox.positions().durable.0;
    trim(outbox, durable);
    outbox.sync_position().unwrap();
    durable
}

fn ce_id(outbox: &Outbox, sequence: u64) -> String {
    format!("{AGENT}/{}/{sequence}", outbox.identity().incarnation.epoch())
}

/// Bytes of closed generations.
fn kept_bytes(outbox: &Outbox) -> u64 {
    let view = outbox.shared.view();
    view.generations.iter().filter(|listed| listed.closed.is_some()).map(|listed| listed.disk_bytes).sum()
}

#[test]
fn a_kept_range_is_copied_to_the_tail_and_names_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    let wanted = bulk(1, 1000);
    rig.append_all(&wanted);
    rig.append_all(&[Reading { kind: Kind::Gap, ..reading_of(1001, 100, false) }]);
    rig.append_all(&bulk(1002, 50));
    assert_eq!(replay(&rig.outbox, &Selection::default()).readings, 0, "what waits is not sent twice");
    let delivered = deliver_all(&rig.outbox);
    rig.append_all(&bulk(5000, 10));

    let would = try_replay(&rig.outbox, &select(101, 1010), true).unwrap();
    assert_eq!((would.readings, would.gaps, would.missing), (909, 1, 0));
    assert_eq!(rig.outbox.positions().durable.0, delivered + 10, "nothing is copied by asking");
    let done = replay(&rig.outbox, &select(101, 1010));
    assert_eq!((done.readings, done.gaps, done.missing, &done.stopped), (909, 1, 0, &None));
    assert_eq!((done.from, done.reached), (101, 1010));
    assert_eq!((done.first_copy, done.last_copy), (Some(delivered + 11), Some(delivered + 10 + 909)));
    assert_eq!((done.bytes, &done.sources), (would.bytes, &would.sources));

    let check = |rig: &Rig| {
        let items = read_all(&mut rig.outbox.reader(), delivered + 10);
        let copies = readings(&items);
        assert_eq!(copies.len(), 909);
        let originals = (101..=1000).map(|n| (n, wanted[n as usize - 1].clone()));
        let originals = originals.chain((1002..=1010).map(|n| (n, reading_of(n, 6000, true))));
        for (copy, (sequence, original)) in copies.iter().zip(originals) {
            let replay_of = ce_id(&rig.outbox, sequence).into();
            let flags = original.flags.with(Flags::REPLAY);
            assert!(*copy == Reading { replay_of, flags, ..original }, "{sequence}");
        }
    };
    check(&rig);
    rig.close();
    let rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    check(&rig);

    // A copy of a copy names the first origin, whatever life it is sent in.
    deliver_all(&rig.outbox);
    let (first, last) = (done.first_copy.unwrap(), done.last_copy.unwrap());
    let again = replay(&rig.outbox, &select(first, first + 9));
    assert_eq!(again.readings, 10);
    let copies = readings(&read_all(&mut rig.outbox.reader(), last));
    let origins: Vec<_> = copies.iter().map(|copy| copy.replay_of.to_string()).collect();
    assert_eq!(origins, (101..=110).map(|n| ce_id(&rig.outbox, n)).collect::<Vec<_>>());
    rig.close();
}

/// Handles of closed generations that somebody has open.
fn open_ones(outbox: &Outbox) -> Vec<Arc<generation::Generation>> {
    let view = outbox.shared.view();
    let closed = view.generations.iter().filter(|listed| listed.closed.is_some());
    closed.filter_map(|listed| listed.live.upgrade()).filter(|generation| generation.is_open()).collect()
}

#[test]
fn a_replay_opens_each_generation_once_and_leaves_none_open() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    rig.append_all(&bulk(1, 1500));
    let delivered = deliver_all(&rig.outbox);
    assert_eq!(open_ones(&rig.outbox).len(), 0);
    let closed = rig.outbox.shared.view().generations.iter().filter(|listed| listed.closed.is_some()).count();
    let mut selection = select(1, delivered);
    let mut opened: Vec<(directory::GenerationId, std::sync::Weak<generation::Generation>)> = Vec::new();
    let (mut steps, mut copied) = (0, 0);
    loop {
        let step = rig.outbox.replay(&Change { selection: selection.clone(), dry_run: false }).unwrap();
        (steps, copied) = (steps + 1, copied + step.report.readings);
        let open = open_ones(&rig.outbox);
        let Some(next) = step.next else {
            assert_eq!(open.len(), 0, "it is at its end");
            break;
        };
        assert!(open.len() <= 1, "one at a time");
        for one in &open {
            let (id, one) = (one.id(), Arc::downgrade(one));
            if !opened.iter().any(|(_, known)| known.ptr_eq(&one)) {
                assert!(opened.iter().all(|(known, _)| *known != id), "{id} was opened twice");
                opened.push((id, one));
            }
        }
        selection.from = Some(next);
    }
    assert_eq!(copied, 1500);
    // The newest one of the beginning may be closed by now, and then stays open for its last steps.
    assert!(closed > 2 && steps > 30 && opened.len() >= closed, "{steps} steps opened {} of {closed}", opened.len());

    // Somebody went away in the middle: nothing stays open for him.
    let step = rig.outbox.replay(&Change { selection: select(1, 1000), dry_run: true }).unwrap();
    assert!(step.next.is_some());
    wait_until("what nobody asks for any more is closed", || {
        rig.outbox.sync_position().unwrap();
        open_ones(&rig.outbox).is_empty()
    });
    // What is removed between two steps is closed, and its space is free.
    let first = rig.outbox.replay(&Change { selection: select(1, 1000), dry_run: true }).unwrap();
    let next = first.next.unwrap();
    let [open] = &open_ones(&rig.outbox)[..] else { panic!("one is open") };
    let path = dir.path().join("outbox").join(open.id().to_string());
    assert!(path.exists());
    let purge = Change { selection: select(1, 1400), dry_run: false };
    assert!(run(purge, |change| rig.outbox.purge(change), |_: &Purged| ()).unwrap().generations > 1);
    assert!(!path.exists() && !open.is_open());
    let rest = rig.outbox.replay(&Change { selection: select(next, 1000), dry_run: true }).unwrap();
    assert_eq!((rest.report.readings, rest.next), (0, None), "{:?}", rest.report);
    rig.close();
}

#[test]
fn a_replay_goes_by_source_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    let at = |n: u64, flags: u8| {
        let received = ReceiptTime { wall_ns: n as i64 * 1000, mono_ns: n };
        Reading { received, flags: Flags(flags), ..reading_of(n, 50, false) }
    };
    rig.append_all(&(1..=100).map(|n| at(n, if n == 50 { Flags::UNSYNCHRONISED.0 } else { 0 })).collect::<Vec<_>>());
    let (other, mut answers) = rig.outbox.appender(&"other".into());
    let held = rig.outbox.held().try_acquire(1).unwrap();
    other.submit(vec![Arrival { readings: vec![at(101, 0)], packet: None, receipt: Receipt(1), held }]);
    answers.blocking_recv().unwrap();
    deliver_all(&rig.outbox);
    let of_other = Selection { source: Some("other".to_owned()), ..Selection::default() };
    assert_eq!(replay(&rig.outbox, &of_other).sources, [("other".to_owned(), 1)].into());
    let timed = Selection { since_ns: Some(40_000), until_ns: Some(61_000), ..Selection::default() };
    let done = replay(&rig.outbox, &timed);
    assert_eq!((done.readings, done.untimed), (20, 1));
    let copies = readings(&read_all(&mut rig.outbox.reader(), 101));
    let sources: Vec<_> = copies.iter().map(|copy| copy.received.wall_ns / 1000).collect();
    assert_eq!(sources, [101].into_iter().chain(40..50).chain(51..=60).collect::<Vec<i64>>());
    rig.close();
}

#[test]
fn what_was_given_up_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    rig.append_all(&bulk(1, 800));
    let change = |selection: &Selection| Change { selection: selection.clone(), dry_run: false };
    run(change(&select(11, 20)), |change| rig.outbox.purge(change), |_: &Purged| ()).unwrap();
    let of_plant = Selection { source: Some("plant".to_owned()), ..select(31, 40) };
    let (other, mut answers) = rig.outbox.appender(&"other".into());
    let held = rig.outbox.held().try_acquire(1).unwrap();
    other.submit(vec![Arrival { readings: bulk(801, 1), packet: None, receipt: Receipt(1), held }]);
    answers.blocking_recv().unwrap();
    run(change(&of_plant), |change| rig.outbox.purge(change), |_: &Purged| ()).unwrap();
    deliver_all(&rig.outbox);
    rig.close();
    // The files alone tell the same as the outbox that opens them.
    let settings = keeping(ByteSize::mib(20));
    let by_files = Look::at_files(dir.path(), None).unwrap().replay(&select(1, 700), &settings.config).unwrap();
    assert_eq!((by_files.readings, by_files.missing, by_files.dry_run), (680, 20, true));
    let rig = Rig::open_with(dir.path(), settings);
    let would = try_replay(&rig.outbox, &select(1, 700), true).unwrap();
    // A database that is opened is filled up to a whole segment: the newest one, and the one that is read.
    assert!(by_files.room_bytes.abs_diff(would.room_bytes) < 2 << 20, "{by_files:?} {would:?}");
    assert_eq!(Replayed { room_bytes: would.room_bytes, disk_bytes: would.disk_bytes, ..by_files }, would);
    rig.close();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    let done = replay(&rig.outbox, &select(1, 100));
    assert_eq!((done.readings, done.missing), (80, 20));
    // Also after the snapshot that named it is gone.
    rig.append_all(&bulk(1000, 900));
    deliver_all(&rig.outbox);
    let done = replay(&rig.outbox, &select(1, 100));
    assert_eq!((done.readings, done.missing), (80, 20));
    rig.close();
}

#[test]
fn a_replay_that_does_not_fit_stops_and_says_where_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    rig.append_all(&bulk(1, 2500));
    let delivered = deliver_all(&rig.outbox);
    rig.append_all(&bulk(5000, 1200));
    let kept = kept_bytes(&rig.outbox);
    let would = try_replay(&rig.outbox, &select(1, delivered), true).unwrap();
    assert!(would.disk_bytes > would.room_bytes, "{would:?}");
    let waiting = rig.outbox.positions().durable.0;
    let done = replay(&rig.outbox, &select(1, delivered));
    assert!(directory::disk_bytes(&dir.path().join("outbox")) <= MAX.0, "the cap holds for copies too");
    assert!(done.stopped.as_ref().is_some_and(|why| why.contains("room")), "{done:?}");
    assert!(
        done.reached < delivered && kept_bytes(&rig.outbox) >= kept,
        "what is kept is not given up for copies of it"
    );
    assert_eq!(done.readings, done.reached + 1 - done.from);
    assert_eq!(rig.outbox.positions().durable.0, waiting + done.readings);
    // What is delivered makes room.
    trim(&rig.outbox, waiting);
    let mut reader = rig.outbox.reader();
    let mut total = done.clone();
    for _ in 0..20 {
        deliver_all(&rig.outbox);
        let more = replay(&rig.outbox, &select(total.reached + 1, delivered));
        total.add(more);
        if total.stopped.is_none() {
            break;
        }
    }
    assert_eq!((total.stopped.clone(), total.reached), (None, delivered), "{total:?}");
    assert_eq!(read_all(&mut reader, rig.outbox.positions().committed.0).len() as u64, {
        rig.outbox.positions().durable.0 - rig.outbox.positions().committed.0
    });
    drop(reader);
    rig.close();
}

#[test]
fn a_replay_that_cannot_be_written_says_how_far_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), keeping(ByteSize::mib(20)));
    rig.append_all(&bulk(1, 100));
    let delivered = deliver_all(&rig.outbox);
    std::fs::write(dir.path().join("outbox/fault-sync"), "no").unwrap();
    let done = replay(&rig.outbox, &select(1, 100));
    assert!(done.stopped.as_ref().is_some_and(|why| why.contains("cannot be written")), "{done:?}");
    assert_eq!((done.readings, done.reached, done.first_copy), (0, 0, None));
    // What could not be written is not written later.
    rig.append_all(&bulk(200, 1));
    assert_eq!(rig.outbox.positions().durable.0, delivered + 1);
    let done = replay(&rig.outbox, &select(done.reached + 1, 100));
    assert_eq!((done.readings, done.stopped), (100, None));
    assert_eq!(read_all(&mut rig.outbox.reader(), delivered).len(), 101);
    rig.close();
}

#[test]
fn what_is_kept_stays_within_its_bound_across_restarts_and_is_never_delivered_again() {
    let dir = tempfile::tempdir().unwrap();
    let settings = || keeping(ByteSize::mib(8));
    for round in 0..4 {
        let mut rig = Rig::open_with(dir.path(), settings());
        let before = rig.outbox.positions();
        assert_eq!(before.committed, before.durable);
        assert_eq!(read_all(&mut rig.outbox.reader(), before.committed.0), [], "nothing delivered comes again");
        if round > 1 {
            let kept = try_replay(&rig.outbox, &Selection::default(), true).unwrap();
            assert!(kept.readings > 400 && kept.reached == before.committed.0, "{kept:?}");
            assert!(kept_bytes(&rig.outbox) <= 8 << 20);
        }
        rig.append_all(&bulk(1, 700));
        deliver_all(&rig.outbox);
        wait_until("what is above the bound goes", || {
            rig.outbox.sync_position().unwrap();
            kept_bytes(&rig.outbox) <= 8 << 20
        });
        let found = rig.outbox.look().inspect().unwrap();
        assert!(found.generations.iter().any(|generation| generation.last_sequence.is_some()), "{found:?}");
        assert!(directory::disk_bytes(&dir.path().join("outbox")) <= MAX.0);
        rig.close();
    }
    // A lower bound takes effect, and none keeps none.
    let rig = Rig::open_with(dir.path(), keeping(ByteSize(0)));
    rig.outbox.sync_position().unwrap();
    wait_until("nothing is kept", || kept_bytes(&rig.outbox) == 0);
    rig.close();
}
