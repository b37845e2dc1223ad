//! Random damage to random files of every kind: no panic, no crash loop, nothing given twice, no silent loss. Every
//! sequence is accounted for. `TEST_SEED=n` repeats a run, `TEST_ROUND=n` one round of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

use super::directory::GenerationId;
use super::testing::{Dice, copy_tree, reading_of, seed};
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::{Item, Stored};

const MAX: ByteSize = ByteSize::mib(16);
/// Most damages at once.
const DAMAGES_MAX: u64 = 3;
/// A round that takes longer hangs.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// An undamaged outbox and what is in it.
struct Fixture {
    dir: tempfile::TempDir,
    /// By sequence; through `committed` they are delivered.
    stored: BTreeMap<u64, Stored>,
    committed: u64,
    end: u64,
    /// Sequences of each generation, from and to inclusive; of the newest `newest`.
    ranges: BTreeMap<GenerationId, (u64, u64)>,
    life: Incarnation,
}

/// Several generations of two sources, written by two processes: split readings, redelivery tables, released packets,
/// a delivered part; beside them everything else that can lie in the directory.
fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open_with(dir.path(), options(MAX));
        fill(&mut rig, 0, 1500);
        trim(&rig.outbox, 1200);
        wait_until("the first generation is gone", || rig.outbox.shared.view().generations[0].first_sequence > 1);
        rig.close();
        let mut rig = Rig::open_with(dir.path(), options(MAX));
        fill(&mut rig, 1500, 2900);
        let committed = rig.outbox.positions().committed.0;
        let end = rig.outbox.positions().durable.0;
        let held = rig.outbox.shared.view().generations[0].first_sequence - 1;
        let stored = read_all(&mut rig.outbox.reader(), held).into_iter().map(|item| match item {
            Item::Reading(stored) => (stored.sequence.0, stored),
            Item::Hole(hole) => panic!("{hole:?}"),
        });
        let stored: BTreeMap<_, _> = stored.collect();
        assert_eq!(stored.len() as u64, end - held);
        let ranges: BTreeMap<_, _> = {
            let view = rig.outbox.shared.view();
            let range = |listed: &view::Listed| (listed.first_sequence, listed.end_sequence().min(end + 1) - 1);
            view.generations.iter().map(|listed| (listed.id, range(listed))).collect()
        };
        assert!(ranges.len() >= 4, "{ranges:?}");
        let life = rig.outbox.identity().incarnation;
        rig.close();
        let outbox = dir.path().join("outbox");
        let newest = *ranges.last_key_value().unwrap().0;
        copy_tree(&outbox.join(newest.to_string()), &outbox.join("damaged/g00000000000000000001-00000001"));
        copy_tree(&outbox.join(newest.to_string()), &outbox.join("dead-g00000000000000000001-00000001"));
        fs::write(outbox.join("hints"), [7; 300]).unwrap();
        fs::write(outbox.join("a note of the owner.txt"), "do not delete\n").unwrap();
        fs::write(outbox.join(newest.to_string()).join("snap.00000000000FFFFF.generating"), [1; 90]).unwrap();
        Fixture { dir, stored, committed, end, ranges, life }
    })
}

fn fill(rig: &mut Rig, from: u64, count: u64) {
    let (other, mut answers) = rig.outbox.appender(&"other".into());
    for n in from..from + count {
        let size = if n % 150 == 0 { 30_000 } else { 300 + n as usize % 1200 };
        let packet = Packet { id: n as u16 + 1, qos: Qos::AtLeastOnce, dup: false, hash: n, dedup: true };
        if n % 5 == 0 {
            let held = rig.outbox.held().try_acquire(1).unwrap();
            let readings = vec![reading_of(n, size, n % 4 == 0)];
            other.submit(vec![Arrival { readings, packet: Some(packet), receipt: Receipt(n), held }]);
            answers.blocking_recv().unwrap();
        } else {
            rig.submit(vec![reading_of(n, size, n % 4 == 0)], Some(packet));
            rig.outcomes(1);
        }
        if n % 100 == 0 {
            rig.appender.control(Control::Released((n as u16 - n as u16 % 100..n as u16).collect()));
        }
    }
    rig.outbox.sync_position().unwrap();
}

/// Every file and directory below the outbox, by kind.
fn victims(outbox: &Path) -> BTreeMap<&'static str, Vec<PathBuf>> {
    let mut found: BTreeMap<&'static str, Vec<PathBuf>> = BTreeMap::new();
    let mut directories = vec![outbox.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            found.entry(kind_of(outbox, &path)).or_default().push(path.clone());
            if path.is_dir() {
                directories.push(path);
            }
        }
    }
    found.values_mut().for_each(|paths| paths.sort());
    found
}

fn kind_of(outbox: &Path, path: &Path) -> &'static str {
    let inside = path.strip_prefix(outbox).unwrap().to_str().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    match name {
        _ if inside.starts_with("damaged") => "damaged",
        _ if inside.starts_with("dead-") => "dead",
        "pos" => "pos",
        "state" => "state",
        "reserve" => "reserve",
        "db" => "db",
        "conf" => "conf",
        "blobs" => "blobs",
        _ if name.starts_with("snap.") => "snap",
        _ if name.ends_with(".ok") => "marker",
        _ if name.ends_with(".end") => "summary",
        _ if GenerationId::parse(name).is_some() => "generation",
        _ => "other",
    }
}

/// Half of the damage goes to databases: that is where most bytes are.
fn hurt(outbox: &Path, dice: &mut Dice) -> (PathBuf, String) {
    let all = victims(outbox);
    let kinds: Vec<_> = all.keys().copied().collect();
    let kind = if dice.roll(2) == 0 && all.contains_key("db") { "db" } else { dice.pick(&kinds) };
    let path = dice.pick(&all[kind]).clone();
    if path.is_dir() {
        fs::remove_dir_all(&path).unwrap();
        return (path, "removed with all in it".to_owned());
    }
    let len = fs::metadata(&path).unwrap().len();
    let at = dice.roll(len.max(1));
    let file = File::options().write(true).read(true).open(&path).unwrap();
    let how = match dice.roll(8) {
        0 | 1 => {
            let mut byte = [0];
            file.read_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << dice.roll(8))], at).unwrap();
            format!("a bit at {at} of {len} flipped")
        }
        2 => {
            file.write_all_at(&[dice.roll(256) as u8; 512], at).unwrap();
            format!("512 bytes at {at} of {len} overwritten")
        }
        3 => {
            let noise: Vec<u8> = (0..512).map(|_| dice.roll(256) as u8).collect();
            file.write_all_at(&noise, at).unwrap();
            format!("512 bytes at {at} of {len} overwritten with noise")
        }
        4 => {
            file.set_len(at).unwrap();
            format!("truncated to {at} of {len}")
        }
        5 => {
            file.write_all_at(&[0; 4096], at / 4096 * 4096).unwrap();
            format!("page at {} of {len} zeroed", at / 4096 * 4096)
        }
        6 => {
            file.write_all_at(&vec![dice.roll(256) as u8; len as usize], 0).unwrap();
            format!("all {len} bytes overwritten")
        }
        _ => {
            fs::remove_file(&path).unwrap();
            "removed".to_owned()
        }
    };
    (path, how)
}

/// What an opening shows.
struct Seen {
    items: Vec<Item>,
    committed: u64,
    damaged: u64,
    dropped: u64,
    /// `pos` said how far the log reached.
    end_known: bool,
}

fn look(dir: &Path, options: OpenOptions) -> (Rig, Seen) {
    let position = slots::read(&dir.join("outbox/pos")).ok().flatten();
    let position = position.as_deref().and_then(position::Position::decode);
    let end_known = position.is_some_and(|position| position.next_sequence > fixture().end);
    let rig = Rig::open_with(dir, options);
    let committed = rig.outbox.positions().committed.0;
    let items = read_all(&mut rig.outbox.reader(), committed);
    let last = items.last().map_or(committed, |item| item.last().0);
    assert_eq!(last, rig.outbox.positions().durable.0, "everything is accounted for");
    let metrics = &rig.outbox.shared.metrics;
    let (damaged, dropped) = (metrics.damaged.get(), metrics.dropped("damage").get());
    (rig, Seen { items, committed, damaged, dropped, end_known })
}

/// Sequences that this damage may cost: those of the generations that were hurt.
fn may_be_lost(fixture: &Fixture, outbox: &Path, hurts: &[PathBuf], sequence: u64) -> bool {
    hurts.iter().any(|path| {
        let inside = path.strip_prefix(outbox).unwrap();
        let top = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let range = GenerationId::parse(top).and_then(|id| fixture.ranges.get(&id));
        range.is_some_and(|(from, to)| (*from..=*to).contains(&sequence))
    })
}

/// Every sequence of the fixture is there as it was stored, or in a hole that is told, counted and to be expected.
fn check(fixture: &Fixture, outbox: &Path, hurts: &[PathBuf], seen: &Seen) {
    assert!(seen.committed <= fixture.committed, "nothing is taken for delivered");
    let mut told = 0;
    let hurt = |sequence, hole: &crate::record::Hole| {
        assert!(may_be_lost(fixture, outbox, hurts, sequence), "{sequence} of {hole:?} was not hurt");
    };
    for item in &seen.items {
        match item {
            Item::Reading(stored) => {
                let known = fixture.stored.get(&stored.sequence.0);
                assert!(known == Some(stored), "garbage under sequence {}", stored.sequence);
            }
            Item::Hole(hole) if &*hole.reason == "new_incarnation" => {
                // Where `pos` is lost too, nothing says how far the lost end reached: this hole covers all it can have been.
                assert!(hole.from.0 > fixture.end || !seen.end_known, "{hole:?} takes numbers that were given");
                (hole.from.0..=fixture.end).for_each(|sequence| hurt(sequence, hole));
                assert_eq!(hole.previous, Some(fixture.life));
            }
            Item::Hole(hole) => {
                assert_eq!(&*hole.reason, "damage");
                assert!(hole.to.0 <= fixture.end, "{hole:?} tells of more than there was");
                told += hole.to.0 - hole.from.0 + 1;
                assert!(logged(hole.from.0, hole.to.0), "{hole:?} is not in the log");
                (hole.from.0.max(fixture.committed + 1)..=hole.to.0).for_each(|sequence| hurt(sequence, hole));
            }
        }
    }
    let end = seen.items.last().map_or(seen.committed, |item| item.last().0);
    assert!(end >= fixture.end, "{end}: readings through {} were acknowledged", fixture.end);
    assert_eq!(seen.dropped, told, "every lost reading is counted");
}

fn round(seed: u64) {
    let fixture = fixture();
    let mut dice = Dice(seed);
    let dir = tempfile::tempdir().unwrap();
    let outbox = dir.path().join("outbox");
    copy_tree(&fixture.dir.path().join("outbox"), &outbox);
    let mut hurts = Vec::new();
    for _ in 0..1 + dice.roll(DAMAGES_MAX) {
        let (path, how) = hurt(&outbox, &mut dice);
        println!("  {}: {how}", path.strip_prefix(&outbox).unwrap().display());
        hurts.push(path);
    }
    let (mut rig, seen) = look(dir.path(), options(MAX));
    check(fixture, &outbox, &hurts, &seen);
    // New readings find their place, under numbers that were never given.
    let before = rig.outbox.positions().durable.0;
    assert!(before >= fixture.end, "{before} was given before");
    let fresh: Vec<_> = (0..20).map(|n| reading_of(1 << 20 | n, 900, true)).collect();
    rig.append_all(&fresh);
    let mut items = seen.items;
    let more = read_all(&mut rig.outbox.reader(), before);
    assert!(readings(&more) == fresh && holes(&more).is_empty());
    items.extend(more);
    assert_eq!(rig.outbox.status().state, "ok");
    rig.close();
    // Nothing more is lost by another start, and nothing told is forgotten.
    let (rig, again) = look(dir.path(), options(MAX));
    assert_eq!((again.damaged, again.dropped), (0, 0), "a second opening finds nothing new");
    assert_eq!(joined(&again.items), joined(&items), "the second opening reads the same");
    rig.close();
}

/// Readings, and holes with neighbours of one reason in one: notes of neighbours merge when they are read back.
fn joined(items: &[Item]) -> Vec<(u64, u64, String)> {
    let mut joined: Vec<(u64, u64, String)> = Vec::new();
    for item in items {
        let what = match item {
            Item::Reading(stored) => format!("{stored:?}"),
            Item::Hole(hole) => hole.reason.to_string(),
        };
        match joined.last_mut() {
            Some(last) if last.2 == what => last.1 = item.last().0,
            _ => joined.push((item.first().0, item.last().0, what)),
        }
    }
    joined
}

/// What the outbox logged as an error or warning; tests that run beside this one may add to it.
struct Log(Mutex<Vec<String>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn && metadata.target().contains("outbox")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Whether errors name every sequence of this range.
fn logged(from: u64, to: u64) -> bool {
    let told = |line: &String| {
        let mut words = line.strip_prefix("readings ")?.split(' ');
        let (from, _to, to) = (words.next()?.parse::<u64>().ok()?, words.next()?, words.next()?.parse::<u64>().ok()?);
        Some((from, to))
    };
    let ranges: Vec<_> = LOG.0.lock().unwrap().iter().filter_map(told).collect();
    let mut next = from;
    while let Some((_, to)) = ranges.iter().find(|(from, end)| *from <= next && next <= *end) {
        next = to + 1;
    }
    next > to
}

/// Runs rounds, each in a thread of its own, so that one that hangs is seen.
fn rounds(salt: u64, count: u64) {
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    fixture();
    let count = std::env::var("TEST_ROUNDS").map_or(count, |text| text.parse().unwrap());
    let only: Option<u64> = std::env::var("TEST_ROUND").ok().map(|text| text.parse().unwrap());
    let seed = seed().wrapping_add(salt << 32);
    for number in 0..count {
        if only.is_some_and(|only| only != number) {
            continue;
        }
        println!("round {number} of salt {salt}");
        let (done, wait) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().spawn(move || {
            round(seed.wrapping_mul(31).wrapping_add(number));
            done.send(()).unwrap();
        });
        let ended = wait.recv_timeout(ROUND_WITHIN);
        assert!(!matches!(ended, Err(mpsc::RecvTimeoutError::Timeout)), "round {number} hangs");
        assert!(thread.unwrap().join().is_ok(), "round {number} of salt {salt} with TEST_SEED={seed}");
    }
}

/// Of each test; `make damage` runs more.
const ROUNDS: u64 = 25;

#[test]
fn random_damage_is_told_and_costs_only_what_was_hurt_1() {
    rounds(1, ROUNDS);
}

#[test]
fn random_damage_is_told_and_costs_only_what_was_hurt_2() {
    rounds(2, ROUNDS);
}

#[test]
fn random_damage_is_told_and_costs_only_what_was_hurt_3() {
    rounds(3, ROUNDS);
}

#[test]
fn random_damage_is_told_and_costs_only_what_was_hurt_4() {
    rounds(4, ROUNDS);
}
