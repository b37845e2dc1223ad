//! What the owner changes: purges by range, source and age, beside a drain, across failures and reopening.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::{Flags, Item, Kind};

const MAX: ByteSize = ByteSize::mib(64);

/// An outbox with two sources.
struct Two {
    rig: Rig,
    noise: Appender,
    noise_answers: mpsc::UnboundedReceiver<Answer>,
}

impl Two {
    fn open(dir: &Path, options: OpenOptions) -> Self {
        let rig = Rig::open_with(dir, options);
        let (noise, noise_answers) = rig.outbox.appender(&"noise".into());
        Self { rig, noise, noise_answers }
    }

    fn append_noise(&mut self, reading: Reading) {
        let held = self.rig.outbox.held().try_acquire(1).unwrap();
        self.noise.submit(vec![Arrival { readings: vec![reading], packet: None, receipt: Receipt(1), held }]);
        self.noise_answers.blocking_recv().unwrap();
    }

    /// `plant` and `noise` in turn, one arrival each; `noise` has the even sequences.
    fn append_in_turn(&mut self, pairs: u64, bytes: usize) {
        for n in 0..pairs {
            self.rig.submit(vec![reading_of(2 * n + 1, bytes, true)], None);
            let held = self.rig.outbox.held().try_acquire(1).unwrap();
            let readings = vec![reading_of(2 * n + 2, bytes, true)];
            self.noise.submit(vec![Arrival { readings, packet: None, receipt: Receipt(1), held }]);
        }
        self.rig.outcomes(pairs as usize);
        let mut noise = 0;
        while noise < pairs {
            noise += self.noise_answers.blocking_recv().unwrap().done.len() as u64;
        }
    }
}

fn room() -> OpenOptions {
    let mut options = options(MAX);
    options.config.held_bytes_max = ByteSize::mib(64);
    options
}

fn select(from: u64, to: u64) -> Selection {
    Selection { from: Some(from), to: Some(to), ..Selection::default() }
}

fn of(source: &str) -> Selection {
    Selection { source: Some(source.to_owned()), ..Selection::default() }
}

fn change(selection: &Selection, dry_run: bool) -> Change {
    Change { selection: selection.clone(), dry_run }
}

fn try_purge(outbox: &Outbox, selection: &Selection, dry_run: bool) -> Result<Purged, ChangeError> {
    run(change(selection, dry_run), |change| outbox.purge(change), |_: &Purged| ())
}

fn purge(outbox: &Outbox, selection: &Selection) -> Purged {
    try_purge(outbox, selection, false).unwrap()
}

fn sequences_of_readings(items: &[Item]) -> Vec<u64> {
    let of = |item: &Item| matches!(item, Item::Reading(_)).then(|| item.first().0);
    items.iter().filter_map(of).collect()
}

#[test]
fn a_range_is_given_up_and_its_generations_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), room());
    rig.append_all(&many(1, 2500, 8000));
    let before = generations(dir.path());
    assert!(before > 4, "{before}");

    let would = try_purge(&rig.outbox, &select(101, 2000), true).unwrap();
    assert!(would.dry_run);
    assert_eq!(read_all(&mut rig.outbox.reader(), 0).len(), 2500, "nothing is changed by asking");
    let done = purge(&rig.outbox, &select(101, 2000));
    assert_eq!((done.readings, done.from, done.to, &done.left[..]), (1900, 101, 2000, &[][..]));
    assert_eq!(done.sources, [("plant".to_owned(), 1900)].into());
    assert!(done.bytes > 1900 * 8000 && done.generations > 0 && done.freed_bytes > 0, "{done:?}");
    // Opening a database to read it takes room of its own for as long as it is open.
    let freed_bytes = would.freed_bytes;
    assert_eq!(Purged { dry_run: true, freed_bytes, ..done.clone() }, would, "it did what it had said");
    assert!(generations(dir.path()) < before);
    assert_eq!(rig.outbox.shared.metrics.dropped("purge").get(), 1900);
    assert_eq!(rig.outbox.status().dropped, 1900);

    let check = |rig: &Rig| {
        let items = read_all(&mut rig.outbox.reader(), 0);
        assert_eq!(holes(&items), [(101, 2000, "purge".to_owned())]);
        let Item::Hole(hole) = &items[100] else { panic!("{:?}", items[100]) };
        assert_eq!((hole.bytes, &hole.sources[..]), (done.bytes, &[("plant".into(), 1900)][..]));
        let wanted: Vec<_> = many(1, 100, 8000).into_iter().chain(many(2001, 500, 8000)).collect();
        assert!(readings(&items) == wanted);
    };
    check(&rig);
    assert_eq!(purge(&rig.outbox, &select(1, 2100)).readings, 200, "what is given up is given up once");
    rig.close();
    let rig = Rig::open_with(dir.path(), room());
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(holes(&items), [(1, 2100, "purge".to_owned())]);
    rig.close();
}

#[test]
fn one_source_is_given_up_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(600, 4000);
    two.rig.append_all(&many(1201, 100, 100));
    // What a source says of its own losses stays.
    two.append_noise(Reading { kind: Kind::Gap, ..reading_of(1301, 100, false) });

    let would = try_purge(&two.rig.outbox, &of("noise"), true).unwrap();
    let done = purge(&two.rig.outbox, &of("noise"));
    assert_eq!(Purged { dry_run: true, ..done.clone() }, would);
    assert_eq!((done.readings, done.sources), (600, [("noise".to_owned(), 600)].into()));
    let check = |rig: &Rig| {
        let items = read_all(&mut rig.outbox.reader(), 0);
        let wanted: Vec<u64> = (0..600).map(|n| 2 * n + 1).chain(1201..=1301).collect();
        assert_eq!(sequences_of_readings(&items), wanted);
        let purged: Vec<u64> = holes(&items).iter().flat_map(|(from, to, _)| *from..=*to).collect();
        assert_eq!(purged, (1..=600).map(|n| 2 * n).collect::<Vec<_>>());
        let bytes = items.iter().map(|item| if let Item::Hole(hole) = item { hole.bytes } else { 0 });
        assert_eq!(bytes.sum::<u64>(), done.bytes);
        items
    };
    let items = check(&two.rig);
    assert!(items.iter().all(|item| !matches!(item, Item::Hole(hole) if hole.reason != "purge")));
    assert_eq!(two.rig.outbox.shared.view().purges.len(), 1, "one entry, however many generations and steps");
    assert_eq!(purge(&two.rig.outbox, &of("noise")).readings, 0);
    // What comes later was not meant.
    two.append_noise(reading_of(1302, 100, false));
    two.rig.close();
    let mut rig = Rig::open_with(dir.path(), room());
    let items = read_all(&mut rig.outbox.reader(), 1301);
    assert_eq!(sequences_of_readings(&items), [1302]);
    // The snapshot of a new generation repeats it.
    rig.append_all(&many(1303, 1500, 8000));
    rig.close();
    let rig = Rig::open_with(dir.path(), room());
    assert_eq!(sequences_of_readings(&read_all(&mut rig.outbox.reader(), 0)).len(), 701 + 1 + 1500);
    // It is forgotten when the last generation it reaches into is gone.
    trim(&rig.outbox, 2802);
    wait_until("the purge is forgotten", || {
        rig.outbox.sync_position().unwrap();
        rig.outbox.shared.view().purges.len() == 0
    });
    rig.close();
}

#[test]
fn generations_of_one_source_alone_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(100, 4000);
    for n in 0..1600 {
        two.append_noise(reading_of(n, 8000, true));
    }
    two.append_in_turn(100, 4000);
    let done = purge(&two.rig.outbox, &of("noise"));
    assert_eq!(done.readings, 1800);
    assert!(done.generations > 0, "{done:?}");
    assert_eq!(sequences_of_readings(&read_all(&mut two.rig.outbox.reader(), 0)).len(), 200);
    two.rig.close();
}

#[test]
fn what_an_open_transaction_may_hold_stays_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(1000, 8000);
    two.rig.outbox.protect(Sequence(301), Sequence(400));
    for selection in [of("noise"), Selection::default()] {
        let done = purge(&two.rig.outbox, &selection);
        let [left] = &done.left[..] else { panic!("{:?}", done.left) };
        assert_eq!((left.from, left.to), (301, 400));
        assert!(left.why.contains("transaction"), "{}", left.why);
        let items = read_all(&mut two.rig.outbox.reader(), 0);
        let there: BTreeSet<u64> = sequences_of_readings(&items).into_iter().collect();
        assert!((301..=400).all(|sequence| there.contains(&sequence)), "nothing in doubt is purged");
    }
    assert_eq!(sequences_of_readings(&read_all(&mut two.rig.outbox.reader(), 0)).len(), 100);
    // A start after a crash does not know what is in doubt.
    two.rig
        .outbox
        .change_identity(IdentityChange::SessionBegins { ledger: Nonce([1; 8]), own: Nonce([2; 8]) })
        .unwrap();
    two.rig.close();
    let by_files = Look::at_files(dir.path(), None).unwrap().purge(&Selection::default()).unwrap();
    let rig = Rig::open_with(dir.path(), room());
    let done = purge(&rig.outbox, &Selection::default());
    assert_eq!((done.readings, sequences(&done.left) >= 100), (0, true), "{:?}", done.left);
    assert_eq!(Purged { dry_run: false, ..by_files }, done, "its files know no more");
    rig.outbox.protect(Sequence(1), Sequence(0));
    assert_eq!(purge(&rig.outbox, &Selection::default()).readings, 100);
    rig.close();
}

/// Names of closed generations, oldest first.
fn closed(outbox: &Outbox) -> Vec<directory::GenerationId> {
    let view = outbox.shared.view();
    view.generations.iter().filter(|listed| listed.closed.is_some()).map(|listed| listed.id).collect()
}

fn sequences(left: &[Left]) -> u64 {
    left.iter().map(Left::sequences).sum()
}

#[test]
fn what_cannot_be_read_is_never_passed_over_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(1500, 4000);
    two.rig.close();
    // A database without its `conf` does not open.
    let two = Two::open(dir.path(), room());
    let id = closed(&two.rig.outbox)[1];
    let conf = dir.path().join("outbox").join(id.to_string()).join("conf");
    let hidden = dir.path().join("conf");
    std::fs::rename(&conf, &hidden).unwrap();
    let held = {
        let view = two.rig.outbox.shared.view();
        let listed = view.generations.iter().find(|listed| listed.id == id).unwrap();
        (listed.first_sequence, listed.end_sequence() - 1)
    };

    // Whose they are nobody knows: what was not looked at stays, and that is told.
    for dry_run in [true, false] {
        let done = try_purge(&two.rig.outbox, &of("noise"), dry_run).unwrap();
        let [left] = &done.left[..] else { panic!("{:?}", done.left) };
        assert_eq!((left.from, left.to, left.cause), (held.0, held.1, Cause::Unreadable));
        assert!(left.why.contains(&id.to_string()) && left.why.contains("conf"), "{}", left.why);
        let of_noise = (held.0..=held.1).filter(|sequence| sequence % 2 == 0).count() as u64;
        assert_eq!((done.readings, done.unread.len()), (1500 - of_noise, 0));
    }
    std::fs::rename(&hidden, &conf).unwrap();
    let items = read_all(&mut two.rig.outbox.reader(), 0);
    let there = sequences_of_readings(&items);
    let wanted = |n: &u64| n % 2 == 1 || (held.0..=held.1).contains(n);
    assert_eq!(there, (1..=3000).filter(wanted).collect::<Vec<_>>(), "what stayed is there, and no more");

    // Their number follows from their sequences: a range goes, and that nobody looked at it is told.
    std::fs::rename(&conf, &hidden).unwrap();
    let done = purge(&two.rig.outbox, &select(held.0 + 1, held.1));
    let [unread] = &done.unread[..] else { panic!("{:?}", done.unread) };
    assert_eq!((unread.from, unread.to, &done.left[..]), (held.0 + 1, held.1, &[][..]));
    assert_eq!((done.readings, done.bytes), (held.1 - held.0, 0));
    std::fs::rename(&hidden, &conf).unwrap();
    let items = read_all(&mut two.rig.outbox.reader(), held.0 - 1);
    let Item::Hole(hole) = &items[1] else { panic!("{:?}", items[1]) };
    assert_eq!((hole.from.0, hole.to.0, hole.bytes, hole.sources.len()), (held.0 + 1, held.1, 0, 0));
    two.rig.close();
}

#[test]
fn what_is_missing_within_a_generation_is_told_by_a_purge() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(1500, 4000);
    let id = closed(&two.rig.outbox)[1];
    two.rig.close();
    let db = dir.path().join("outbox").join(id.to_string()).join("db");
    let mut bytes = std::fs::read(&db).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4000].fill(0);
    std::fs::write(&db, bytes).unwrap();
    let two = Two::open(dir.path(), room());
    let done = purge(&two.rig.outbox, &of("noise"));
    let missing = sequences(&done.left);
    assert!(missing > 0 && done.left.iter().all(|left| left.cause == Cause::Unreadable), "{:?}", done.left);
    assert!(done.readings + missing.div_ceil(2) >= 1500, "{} and {missing}", done.readings);
    // The drain finds more than the store shows: it was not purged unseen.
    let items = read_all(&mut two.rig.outbox.reader(), 0);
    let purged = items.iter().filter_map(|item| match item {
        Item::Hole(hole) if hole.reason == "purge" => Some(hole.to.0 - hole.from.0 + 1),
        _ => None,
    });
    assert_eq!(purged.sum::<u64>(), done.readings);
    two.rig.close();
}

#[test]
fn delivered_generations_that_are_kept_are_not_read_for_a_purge() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = room();
    options.config.retain = ByteSize::mib(40);
    let mut two = Two::open(dir.path(), options);
    two.append_in_turn(1500, 8000);
    let (kept, durable) = (closed(&two.rig.outbox).len(), two.rig.outbox.positions().durable.0);
    assert!(kept > 4, "{kept}");
    trim(&two.rig.outbox, durable);
    // What delivery holds lies beyond what it has delivered, also when it says so a little late.
    two.rig.outbox.protect(Sequence(1), Sequence(durable + 60));
    let step = two.rig.outbox.purge(&change(&of("noise"), false)).unwrap();
    assert_eq!(
        (step.report.readings, &step.report.left[..], step.next),
        (0, &[][..], None),
        "they are not even opened"
    );
    assert_eq!(closed(&two.rig.outbox).len(), kept, "they hold others besides");
    let done = purge(&two.rig.outbox, &Selection::default());
    assert_eq!((done.readings, done.generations as usize, &done.left[..]), (0, kept, &[][..]));
    two.rig.close();
}

#[test]
fn an_age_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), room());
    let now = crate::clock::now();
    let aged = |count: u64, mono_ns: u64| {
        let received = ReceiptTime { wall_ns: now.wall_ns, mono_ns };
        (1..=count).map(|n| Reading { received, ..reading_of(n, 8000, true) }).collect::<Vec<_>>()
    };
    // Old and young in one generation each, so that each has to be read.
    for _ in 0..3 {
        rig.append_all(&aged(400, now.mono_ns / 8));
        rig.append_all(&aged(150, now.mono_ns));
    }
    let ids = closed(&rig.outbox);
    let end_of = |at: usize| rig.outbox.shared.view().generations[at].end_sequence() - 1;
    let path = |at: usize| dir.path().join("outbox").join(ids[at].to_string()).join("conf");
    let older = Selection { older_than_ms: Some(now.mono_ns / 2_000_000), ..Selection::default() };
    let last = ids.len() - 1;
    let hide = |at: usize| std::fs::rename(path(at), dir.path().join(format!("conf{at}"))).unwrap();
    let good = try_purge(&rig.outbox, &older, true).unwrap();
    assert!(good.left.is_empty(), "{:?}", good.left);
    // What follows it is old, so it is.
    hide(0);
    let done = try_purge(&rig.outbox, &older, true).unwrap();
    assert_eq!((done.to, done.left.len()), (good.to, 0), "{:?}", done.left);
    // Nothing tells how old the rest is.
    (1..=last).for_each(hide);
    let done = try_purge(&rig.outbox, &older, true).unwrap();
    let [left] = &done.left[..] else { panic!("{:?}", done.left) };
    assert_eq!((done.readings, left.from, left.cause), (0, 1, Cause::Unreadable));
    assert!(left.to >= end_of(last.min(3)) && left.why.contains("how old"), "{left:?}");
    rig.close();
}

#[test]
fn what_nobody_waits_for_any_more_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), room());
    rig.append_all(&(1..=20).map(|n| reading_of(n, 100, true)).collect::<Vec<_>>());
    let gone = std::sync::Weak::new();
    let all = change(&Selection::default(), false);
    assert_eq!(rig.outbox.purge_for(&gone, &all).unwrap_err(), ChangeError::Unwanted);
    assert_eq!(rig.outbox.replay_for(&gone, &all).unwrap_err(), ChangeError::Unwanted);
    assert_eq!(purge(&rig.outbox, &Selection::default()).readings, 20, "nothing was given up before");
    rig.close();
}

#[test]
fn age_counts_from_the_receipt_and_what_came_before_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), room());
    let now = crate::clock::now();
    let hour_ns = 3_600_000_000_000u64;
    assert!(now.mono_ns > 100_000_000, "the machine has just started");
    // Half the time since the machine started: old by the boot clock, however the wall clock stood.
    let age_ns = now.mono_ns / 2;
    let aged = |mono_ns: u64| ReceiptTime { wall_ns: now.wall_ns + hour_ns as i64, mono_ns };
    let of_age = |count: u64, received: ReceiptTime| {
        (1..=count).map(|n| Reading { received, ..reading_of(n, 8000, true) }).collect::<Vec<_>>()
    };
    rig.append_all(&of_age(500, aged(now.mono_ns / 8)));
    rig.append_all(&of_age(3, aged(now.mono_ns)));
    rig.append_all(&of_age(20, aged(now.mono_ns / 8)));
    rig.append_all(&of_age(200, aged(now.mono_ns)));
    // Copies stand where they were copied.
    let copy = Reading { flags: Flags::REPLAY, received: aged(now.mono_ns / 8), ..reading_of(9, 10, true) };
    rig.append_all(&[copy]);
    let older = Selection { older_than_ms: Some(age_ns / 1_000_000), ..Selection::default() };
    let done = purge(&rig.outbox, &older);
    assert_eq!((done.readings, done.to), (523, 523));
    assert_eq!(sequences_of_readings(&read_all(&mut rig.outbox.reader(), 0)), (524..=724).collect::<Vec<_>>());
    let nobody = Selection { older_than_ms: Some(now.mono_ns / 1_000_000 * 2), ..Selection::default() };
    assert_eq!(purge(&rig.outbox, &nobody).readings, 0);
    rig.close();
}

#[test]
fn a_purge_that_cannot_be_written_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(50, 1000);
    for selection in [of("noise"), Selection::default()] {
        std::fs::write(dir.path().join("outbox/fault-sync"), "no").unwrap();
        let error = try_purge(&two.rig.outbox, &selection, false).unwrap_err();
        assert!(matches!(&error, ChangeError::Refused(why) if why.contains("cannot be written")), "{error}");
        assert_eq!(holes(&read_all(&mut two.rig.outbox.reader(), 0)), []);
        two.rig.append(reading_of(1, 10, false), None);
    }
    assert_eq!(holes(&read_all(&mut two.rig.outbox.reader(), 0)), []);
    assert_eq!(purge(&two.rig.outbox, &of("noise")).readings, 50);
    two.rig.close();
}

#[test]
fn purges_of_sources_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    two.append_in_turn(600, 50);
    let one = |n: u64| Selection { from: Some(4 * n + 1), to: Some(4 * n + 2), ..of("noise") };
    for n in 0..256 {
        assert_eq!(purge(&two.rig.outbox, &one(n)).readings, 1);
    }
    let error = try_purge(&two.rig.outbox, &one(256), false).unwrap_err();
    assert!(matches!(&error, ChangeError::Refused(why) if why.contains("256")), "{error}");
    assert_eq!(holes(&read_all(&mut two.rig.outbox.reader(), 0)).len(), 256);
    // A range of all sources needs none.
    assert_eq!(purge(&two.rig.outbox, &Selection::default()).readings, 1200 - 256);
    two.rig.close();
}

#[test]
fn beside_a_drain_every_reading_is_delivered_or_purged_and_counted_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let mut two = Two::open(dir.path(), room());
    let outbox = two.rig.outbox.clone();
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    let drain = std::thread::Builder::new().spawn(move || {
        let mut reader = outbox.reader();
        let (mut position, mut delivered, mut purged) = (0, 0, 0);
        loop {
            outbox.protect(Sequence(position + 1), Sequence(position + 60));
            let budget = Budget { records_max: 60, bytes_max: 1 << 20 };
            let batch = reader.batch_after(Sequence(position), budget).unwrap();
            let held = position + 60;
            // A wide hole may pass the bound when it is alone.
            let fitting = batch.items.iter().take_while(|item| item.last().0 <= held).count().max(1);
            for item in batch.items.iter().take(fitting) {
                assert_eq!(item.first().0, position + 1);
                position = item.last().0;
                match item {
                    Item::Reading(_) => delivered += 1,
                    Item::Hole(hole) => purged += hole.to.0 - hole.from.0 + 1,
                }
            }
            std::thread::sleep(Duration::from_millis(10));
            trim(&outbox, position);
            outbox.protect(Sequence(1), Sequence(0));
            if batch.items.is_empty() {
                if told.load(Ordering::Acquire) && position == outbox.positions().durable.0 {
                    return (delivered, purged);
                }
                outbox.wait_durable(Sequence(position), Instant::now() + Duration::from_millis(20));
            }
        }
    });
    let drain = drain.unwrap();
    let mut reported = 0;
    for round in 0..40 {
        two.append_in_turn(100, 3000);
        let selection = if round % 3 == 0 { Selection::default() } else { of("noise") };
        reported += purge(&two.rig.outbox, &selection).readings;
    }
    ended.store(true, Ordering::Release);
    let (delivered, purged) = drain.join().unwrap();
    assert_eq!(delivered + purged, 8000);
    assert_eq!(purged, reported, "what was told as purged is what the drain saw as purged");
    assert!(delivered > 0 && purged > 0, "{delivered} {purged}");
    two.rig.close();
}

#[test]
fn open_notes_are_bounded_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open_with(dir.path(), options(ByteSize::mib(8)));
    // A note counts up to 64 sources by name.
    let mut sources: Vec<_> = (0..64).map(|n| rig.outbox.appender(&format!("{n:060}").as_str().into())).collect();
    let ranges = 100;
    for n in 0..ranges {
        for (appender, _) in &sources {
            let held = rig.outbox.held().try_acquire(1).unwrap();
            let readings = vec![reading_of(n, 10, false)];
            appender.submit(vec![Arrival { readings, packet: None, receipt: Receipt(n), held }]);
        }
        sources.iter_mut().for_each(|(_, answers)| drop(answers.blocking_recv().unwrap()));
    }
    let max = Sizes::of(8 << 20).notes_bytes_max();
    let held = || rig.outbox.shared.view().notes.iter().map(note::Note::encoded_bytes).sum::<u64>();
    let refused = (0..ranges).find_map(|n| {
        // All but the last reading of it, so that it is no neighbour of the next.
        let result = try_purge(&rig.outbox, &select(64 * n + 1, 64 * n + 63), false);
        assert!(held() <= max, "{} of {max} bytes after {n} purges", held());
        result.err().map(|error| (n, error))
    });
    let (count, error) = refused.expect("it is refused some time");
    assert!(matches!(&error, ChangeError::Refused(why) if why.contains("gap records")), "{error}");
    assert!(count < 70 && held() > max * 9 / 10, "{count}, {} of {max} bytes", held());
    rig.close();
}
