//! The cap on disk and what happens at it.

use std::time::Duration;

use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::WhenFull;
use crate::record::{Item, Kind};

const MAX: ByteSize = ByteSize::mib(8);

fn with_policy(when_full: WhenFull) -> OpenOptions {
    let mut options = options(MAX);
    options.config.when_full = when_full;
    options.config.held_bytes_max = ByteSize::mib(64);
    options
}

/// Incompressible readings of 8 KB.
fn bulk(count: u64) -> Vec<Reading> {
    (1..=count).map(|n| testing::reading_of(n, 8000, true)).collect()
}

fn disk_bytes(dir: &Path) -> u64 {
    directory::disk_bytes(&dir.join("outbox"))
}

#[test]
fn block_takes_no_more_until_readings_are_delivered_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::Block));
    let wanted = bulk(1500);
    for reading in &wanted {
        rig.submit(vec![reading.clone()], None);
    }
    wait_until("full", || rig.outbox.status().state == "full");
    // Control entries of a source without waiting readings go on.
    let (other, _answers) = rig.outbox.appender(&"other".into());
    let before = rig.outbox.shared.view().durable_index;
    other.control(Control::SessionCleared);
    wait_until("control entries have headroom", || rig.outbox.shared.view().durable_index > before);
    let stored = rig.outbox.positions().durable.0;
    assert!(stored < 1500);
    assert!(disk_bytes(dir.path()) <= MAX.0, "{}", disk_bytes(dir.path()));
    let mut reader = rig.outbox.reader();
    let mut after = 0;
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        rig.outbox.wait_durable(Sequence(after), Instant::now() + Duration::from_secs(20));
        for item in read_all(&mut reader, after) {
            after = item.last().0;
            got.extend(readings(&[item]));
        }
        trim(&rig.outbox, after);
        assert!(disk_bytes(dir.path()) <= MAX.0);
    }
    assert!(got == wanted);
    assert_eq!(rig.outcomes(1500).len(), 1500);
    drop(reader);
    rig.close();
}

#[test]
fn drop_oldest_tells_what_it_dropped_and_leaves_alone_what_is_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropOldest));
    let wanted = bulk(2000);
    rig.append_all(&wanted[..100]);
    rig.outbox.protect(Sequence(1), Sequence(100));
    rig.append_all(&wanted[100..]);
    assert!(disk_bytes(dir.path()) <= MAX.0, "{}", disk_bytes(dir.path()));
    let items = read_all(&mut rig.outbox.reader(), 0);
    check_dropped(&items, &wanted);
    let stored = readings(&items);
    assert!(stored.len() < 1500 && stored[..100] == wanted[..100], "what was protected is there");
    let Some(Item::Hole(hole)) = items.iter().find(|item| matches!(item, Item::Hole(_))) else { panic!() };
    let count = hole.to.0 - hole.from.0 + 1;
    assert_eq!(hole.sources, [("plant".into(), count)]);
    assert!(hole.bytes > count * 8000);
    assert_eq!(rig.outbox.status().dropped, 2000 - stored.len() as u64);
    rig.close();

    let rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropOldest));
    assert_eq!(read_all(&mut rig.outbox.reader(), 0).iter().map(Item::first).collect::<Vec<_>>(), {
        items.iter().map(Item::first).collect::<Vec<_>>()
    });
    check_dropped(&read_all(&mut rig.outbox.reader(), 0), &wanted);
    rig.close();
}

fn check_dropped(items: &[Item], wanted: &[Reading]) {
    assert_eq!(items.last().unwrap().last().0, wanted.len() as u64);
    for item in items {
        match item {
            Item::Reading(stored) => assert!(stored.reading == wanted[stored.sequence.0 as usize - 1]),
            Item::Hole(hole) => assert_eq!(&*hole.reason, "drop_oldest"),
        }
    }
}

#[test]
fn drop_newest_counts_what_it_refuses_and_tells_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropNewest));
    let wanted = bulk(2000);
    for reading in &wanted {
        rig.submit(vec![reading.clone()], None);
    }
    let outcomes = rig.outcomes(2000);
    let appended = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Appended).count();
    let refused = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Refused).count();
    assert!(appended + refused == 2000 && refused > 500, "{appended} {refused}");
    assert!(disk_bytes(dir.path()) <= MAX.0);
    // The count is in the log: it survives.
    rig.close();
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropNewest));
    let mut reader = rig.outbox.reader();
    let got = readings(&read_all(&mut reader, 0));
    assert!(got == wanted[..appended], "{} {appended}", got.len());
    assert_eq!(read_all(&mut reader, appended as u64), []);
    trim(&rig.outbox, appended as u64);
    // Told although nothing new arrives: the source may never send again.
    wait_until("the gap is told", || rig.outbox.positions().durable.0 == appended as u64 + 1);
    assert_eq!(rig.outbox.status().state, "ok");
    rig.append(testing::reading_of(1, 10, false), None);
    let items = read_all(&mut reader, appended as u64);
    let got = readings(&items);
    assert_eq!(got.len(), 2);
    assert_eq!(got[0].kind, Kind::Gap);
    assert_eq!((&*got[0].topic, &*got[0].device), ("telemetry", "plant"));
    let value: serde_json::Value = serde_json::from_slice(&got[0].value).unwrap();
    assert_eq!((&value["reason"], &value["count"]), (&"drop_newest".into(), &refused.into()));
    drop(reader);
    rig.close();
    // Told once.
    let rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropNewest));
    assert_eq!(read_all(&mut rig.outbox.reader(), appended as u64 + 2), []);
    rig.close();
}

#[test]
fn weeks_of_refusing_cost_two_generations() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::Block));
    for _ in 0..120 {
        for _ in 0..20 {
            rig.appender.control(Control::Released((0..2000).collect()));
        }
        rig.append(testing::reading_of(1, 10, false), None);
        trim(&rig.outbox, rig.outbox.positions().durable.0);
    }
    wait_until("control entries alone hold no space", || generations(dir.path()) <= 2);
    rig.close();
}

#[test]
fn delivered_generations_are_kept_as_far_as_retain_says_and_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = with_policy(WhenFull::Block);
    settings.config.max_bytes = ByteSize::mib(32);
    settings.config.retain = ByteSize::mib(8);
    let mut rig = Rig::open_with(dir.path(), settings);
    let retained = |rig: &Rig| -> u64 {
        let view = rig.outbox.shared.view();
        let closed = view.generations.iter().filter(|listed| listed.closed.is_some());
        closed.map(|listed| listed.disk_bytes).sum()
    };
    for _ in 0..6 {
        rig.append_all(&bulk(300));
        trim(&rig.outbox, rig.outbox.positions().durable.0);
    }
    wait_until("what is above `retain` goes", || retained(&rig) <= 8 << 20);
    assert!(retained(&rig) > 0, "what is below it stays");
    // 32 MiB are not enough for these beside what is retained: nothing is held back all the same.
    rig.append_all(&bulk(900));
    assert!(disk_bytes(dir.path()) <= 32 << 20);
    rig.close();
}

#[test]
fn readings_older_than_max_age_are_dropped_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = with_policy(WhenFull::Block);
    settings.config.max_bytes = ByteSize::mib(32);
    let now = crate::clock::now();
    settings.config.max_age = config::Limit::At(config::Span(Duration::from_nanos(now.mono_ns / 2)));
    let mut rig = Rig::open_with(dir.path(), settings);
    // Received when the machine started, by the boot clock.
    let old = bulk(400);
    let fresh: Vec<_> = bulk(400).into_iter().map(|reading| Reading { received: now, ..reading }).collect();
    // What a transaction with open outcome may hold is left alone, however old it is.
    rig.outbox.protect(Sequence(1), Sequence(400));
    rig.append_all(&old);
    rig.append_all(&fresh);
    assert!(generations(dir.path()) > 2);
    trim(&rig.outbox, 1);
    let (probe, mut answers) = rig.outbox.appender(&"probe".into());
    let held = rig.outbox.held().try_acquire(1).unwrap();
    probe.submit(vec![Arrival { readings: Vec::new(), packet: None, receipt: Receipt(1), held }]);
    answers.blocking_recv().unwrap();
    rig.outbox.sync_position().unwrap();
    assert_eq!(rig.outbox.status().dropped, 0, "nothing in doubt is dropped");
    // The first try to note it fails: that note is withdrawn, the next try counts as if there had been none.
    std::fs::write(dir.path().join("outbox/fault-sync"), "no").unwrap();
    rig.outbox.protect(Sequence(1), Sequence(0));
    wait_until("the old ones go", || {
        // Wakes the writer.
        rig.outbox.sync_position().unwrap();
        rig.outbox.status().dropped > 0
    });
    let items = read_all(&mut rig.outbox.reader(), 1);
    let Some(Item::Hole(hole)) = items.first() else { panic!("{:?}", items.first()) };
    assert_eq!((hole.from.0, &*hole.reason), (2, "max_age"));
    let left = readings(&items);
    assert!(left[left.len() - 400..] == fresh, "no fresh one is dropped");
    assert_eq!(hole.to.0 as usize + left.len(), 800, "the first is delivered");
    assert_eq!(rig.outbox.status().dropped, hole.to.0 - hole.from.0 + 1);
    assert_eq!(rig.outbox.shared.metrics.failed.get(), 1);
    rig.close();
}

#[test]
fn the_last_readings_expire_although_nothing_comes_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = with_policy(WhenFull::Block);
    settings.config.max_age = config::Limit::At(config::Span(Duration::from_millis(400)));
    let mut rig = Rig::open_with(dir.path(), settings);
    rig.outbox.protect(Sequence(1), Sequence(0));
    rig.append_all(&bulk(3));
    wait_until("they go", || rig.outbox.status().dropped == 3);
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(holes(&items), [(1, 3, "max_age".to_owned())]);
    rig.close();
}

#[test]
fn what_comes_after_an_unclean_start_is_not_taken_for_what_may_have_been_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropOldest));
    rig.append_all(&bulk(5));
    let began = IdentityChange::SessionBegins { ledger: Nonce([0; 8]), own: Nonce([1; 8]) };
    rig.outbox.change_identity(began).unwrap();
    rig.close();
    // Delivery says nothing: Kafka is away. The first five are in doubt, all that comes is the policy's.
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropOldest));
    for reading in bulk(3000) {
        rig.submit(vec![reading], None);
    }
    rig.outcomes(3000);
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(readings(&items)[..5], bulk(5), "in doubt");
    assert!(holes(&items).iter().all(|(from, ..)| *from > 5) && !holes(&items).is_empty(), "{:?}", holes(&items));
    rig.close();
}

/// Watches the bytes below a directory until told to end; the most there ever were.
fn watch(dir: &Path) -> (Arc<std::sync::atomic::AtomicBool>, std::thread::JoinHandle<u64>) {
    let end = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (dir, until) = (dir.to_owned(), end.clone());
    let watch = move || {
        let mut most = 0;
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            most = most.max(directory::disk_bytes(&dir));
            std::thread::sleep(Duration::from_millis(1));
        }
        most
    };
    (end, std::thread::Builder::new().spawn(watch).unwrap())
}

#[test]
fn refusing_one_by_one_does_not_pass_the_cap() {
    let dir = tempfile::tempdir().unwrap();
    let (end, most) = watch(dir.path());
    let mut rig = Rig::open_with(dir.path(), with_policy(WhenFull::DropNewest));
    for reading in bulk(1200) {
        rig.submit(vec![reading], None);
    }
    let refused = |outcomes: &[(Receipt, Outcome)]| {
        outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Refused).count() as u64
    };
    let mut count = refused(&rig.outcomes(1200));
    wait_until("full", || rig.outbox.status().state == "full");
    for n in 0..5000 {
        // A group, a sync and a count of their own.
        rig.submit(vec![testing::reading_of(n, 100, false)], None);
        count += refused(&rig.outcomes(1));
    }
    assert!(count >= 5000, "{count}");
    wait_until("all of them are counted", || rig.outbox.status().dropped == count);
    rig.close();
    end.store(true, std::sync::atomic::Ordering::Relaxed);
    let most = most.join().unwrap();
    assert!(most <= MAX.0, "{most} bytes");
}

#[test]
fn no_cap_is_passed_at_any_moment_under_any_policy() {
    for (mib, when_full, value_bytes) in [
        (8, WhenFull::Block, 8000),
        (8, WhenFull::DropOldest, 8000),
        (8, WhenFull::DropNewest, 1000),
        (8, WhenFull::DropOldest, 900_000),
        (20, WhenFull::Block, 8000),
        (64, WhenFull::DropOldest, 8000),
    ] {
        let what = format!("{mib} MiB, {when_full:?}, readings of {value_bytes} bytes");
        let dir = tempfile::tempdir().unwrap();
        // What lies beside the generations counts as well.
        std::fs::create_dir_all(dir.path().join("outbox/damaged/g1-1")).unwrap();
        std::fs::write(dir.path().join("outbox/damaged/g1-1/db"), vec![7; 300_000]).unwrap();
        std::fs::create_dir_all(dir.path().join("outbox/dead")).unwrap();
        std::fs::write(dir.path().join("outbox/dead/one"), vec![7; 400_000]).unwrap();
        let mut settings = with_policy(when_full);
        settings.config.max_bytes = ByteSize::mib(mib);
        settings.config.held_bytes_max = ByteSize::mib(512);
        let (end, most) = watch(dir.path());
        let mut rig = Rig::open_with(dir.path(), settings.clone());
        let count = mib * 1_300_000 / value_bytes;
        let readings: Vec<_> = (1..=count).map(|n| testing::reading_of(n, value_bytes as usize, true)).collect();
        for reading in &readings {
            rig.submit(vec![reading.clone()], None);
        }
        let mut reader = rig.outbox.reader();
        // The watching thread may sleep through the moment it was nearest.
        let near;
        if when_full == WhenFull::Block {
            wait_until("full", || rig.outbox.status().state == "full");
            near = directory::disk_bytes(dir.path());
            // A restart at the brim, too.
            drop(reader);
            rig.close();
            rig = Rig::open_with(dir.path(), settings);
            rig.submit(vec![readings[0].clone()], None);
            reader = rig.outbox.reader();
            let mut after = 0;
            for _ in 0..20 {
                let batch = reader.batch_after(Sequence(after), SOME).unwrap();
                after = batch.items.last().unwrap().last().0;
                trim(&rig.outbox, after);
            }
        } else {
            rig.outcomes(readings.len());
            near = directory::disk_bytes(dir.path());
            assert!(!read_all(&mut reader, 0).is_empty());
            wait_until("it was full", || rig.outbox.status().dropped > 0);
        }
        drop(reader);
        rig.close();
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        let most = most.join().unwrap();
        assert!(most <= mib << 20, "{what}: {most} bytes");
        let most = most.max(near);
        // An eighth to a quarter stays free of readings: for the reserve, and for segments that opening fills up.
        assert!(most >= (mib << 20) * 7 / 10, "{what}: {most} bytes, the cap was not even near");
    }
}

/// What a group may write is asked for each arrival, not only for those that waited when it began.
#[test]
fn a_large_reading_behind_a_small_one_does_not_pass_the_cap() {
    const LARGE_BYTES: usize = 1_900_000;
    let mut most = 0;
    // Where the small ones leave off decides how much is left for the large one.
    for small in [40, 200, 400, 600] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = with_policy(WhenFull::Block);
        settings.config.max_bytes = MAX;
        settings.config.held_bytes_max = ByteSize::mib(512);
        let rig = Rig::open_with(dir.path(), settings);
        let held = rig.outbox.held();
        let mut number = 0;
        while rig.outbox.status().state != "full" {
            let arrival = |number: u64, bytes: usize| Arrival {
                readings: vec![testing::reading_of(number, bytes, true)],
                packet: None,
                receipt: Receipt(number),
                held: held.try_acquire(1).unwrap(),
            };
            let mut group: Vec<_> = (0..small).map(|n| arrival(number + n, 1000)).collect();
            group.push(arrival(number + small, LARGE_BYTES));
            number += small + 1;
            assert!(number < 50_000, "it is never full");
            rig.appender.submit(group);
            std::thread::sleep(Duration::from_millis(50));
            most = most.max(directory::disk_bytes(dir.path()));
        }
        most = most.max(directory::disk_bytes(dir.path()));
        rig.close();
    }
    assert!(most <= MAX.0, "{most} bytes of {}", MAX.0);
}
