//! Random calls against a plain model, with failing syncs and reopening. `TEST_SEED=n` repeats a run.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use super::testing::{Dice, reading_of, seed};
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::{Compression, WhenFull};
use crate::record::{Item, Kind};

const SOURCES: [&str; 3] = ["plant", "other", "third"];
const STEPS: u64 = 120;

/// What makes room, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Block,
    DropOldest,
    DropNewest,
    MaxAge,
}

/// An open outbox with all its sources.
struct Bench {
    outbox: Outbox,
    reader: Reader,
    ways: Vec<(Appender, UnboundedReceiver<Answer>)>,
}

impl Bench {
    fn open(dir: &Path, settings: &OpenOptions) -> Self {
        let outbox = Outbox::open(dir, settings.clone()).unwrap();
        let ways = SOURCES.iter().map(|name| outbox.appender(&(*name).into())).collect();
        let reader = outbox.reader();
        Self { outbox, reader, ways }
    }

    fn close(self) {
        drop(self.reader);
        self.outbox.close(Duration::from_secs(30));
    }

    fn outcomes(&mut self, source: usize, count: usize) -> Vec<(Receipt, Outcome)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut done = Vec::new();
        while done.len() < count {
            match self.ways[source].1.try_recv() {
                Ok(answer) => {
                    assert!(answer.durable.through().0 <= self.outbox.shared.view().durable_index);
                    done.extend(answer.done);
                }
                Err(_) => {
                    assert!(Instant::now() < deadline, "{} of {count}: {:?}", done.len(), self.outbox.status());
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
        assert_eq!(done.len(), count);
        done
    }
}

/// What should be in the log.
struct Model {
    policy: Policy,
    /// Readings that follow the committed position, in order; gap records of the outbox's own are not among them.
    waiting: VecDeque<(SourceId, Reading)>,
    /// Redelivery tables, by source and packet identifier.
    tables: HashMap<(usize, u16), u64>,
    committed: u64,
    receipts: u64,
    refused: u64,
    /// Refused readings that gap records have told, by those below the committed position.
    told: u64,
    /// Readings received before this, by the boot clock, are older than `max_age`.
    old_before_ns: u64,
}

impl Model {
    fn append(&mut self, bench: &mut Bench, dice: &mut Dice) {
        let source = dice.roll(SOURCES.len() as u64) as usize;
        let mut sent = Vec::new();
        for _ in 0..1 + dice.roll(60) {
            let size = if dice.roll(15) == 0 { 30_000 } else { 1200 };
            let readings: Vec<_> = (0..dice.roll(4)).map(|n| self.reading(dice, n, size)).collect();
            let packet = (dice.roll(3) > 0).then(|| Packet {
                id: 1 + dice.roll(50) as u16,
                qos: Qos::ExactlyOnce,
                dup: dice.roll(2) == 0,
                hash: dice.roll(3),
                dedup: dice.roll(8) > 0,
            });
            self.receipts += 1;
            let receipt = Receipt(self.receipts);
            let held = bench.outbox.held().try_acquire(1).unwrap();
            bench.ways[source].0.submit(vec![Arrival { readings: readings.clone(), packet, receipt, held }]);
            sent.push((receipt, readings, packet));
        }
        let outcomes = bench.outcomes(source, sent.len());
        for ((receipt, readings, packet), (answered, outcome)) in sent.into_iter().zip(outcomes) {
            assert_eq!(receipt, answered, "answers come in order");
            let known = packet.filter(|p| p.dup && p.dedup && self.tables.get(&(source, p.id)) == Some(&p.hash));
            if known.is_some() {
                assert_eq!(outcome, Outcome::Duplicate, "{packet:?}");
                continue;
            }
            if outcome == Outcome::Refused {
                assert!(self.policy == Policy::DropNewest && !readings.is_empty());
                self.refused += readings.len() as u64;
                continue;
            }
            assert_eq!(outcome, Outcome::Appended, "{packet:?}");
            self.waiting.extend(readings.into_iter().map(|reading| (SOURCES[source].into(), reading)));
            if let Some(packet) = packet {
                self.tables.insert((source, packet.id), packet.hash);
            }
        }
    }

    fn reading(&self, dice: &mut Dice, n: u64, size: u64) -> Reading {
        let mut reading = reading_of(dice.roll(1 << 30) + n, dice.roll(size) as usize, dice.roll(2) == 0);
        if self.policy != Policy::MaxAge || dice.roll(600) == 0 {
            reading.received = crate::clock::now();
        }
        reading
    }

    fn control(&mut self, bench: &Bench, dice: &mut Dice) {
        let source = dice.roll(SOURCES.len() as u64) as usize;
        if dice.roll(5) == 0 {
            self.tables.retain(|(of, _), _| *of != source);
            bench.ways[source].0.control(Control::SessionCleared);
        } else {
            let ids: Vec<_> = (0..dice.roll(10)).map(|_| 1 + dice.roll(50) as u16).collect();
            ids.iter().for_each(|id| {
                self.tables.remove(&(source, *id));
            });
            bench.ways[source].0.control(Control::Released(ids));
        }
    }

    /// Every sequence after the committed one is there, as itself or (if a policy drops) in a hole; then everything
    /// through one of them is trimmed.
    fn read_and_trim(&mut self, bench: &mut Bench, trimmed: u64) {
        let items = read_all(&mut bench.reader, self.committed);
        let mut expected = self.waiting.iter();
        for item in &items {
            match item {
                Item::Reading(stored) if self.is_told(stored) => {}
                Item::Reading(stored) => {
                    let (source, reading) = expected.next().expect("no more than was appended");
                    assert!(stored.reading == *reading, "sequence {} holds another reading", stored.sequence);
                    assert_eq!(stored.source, *source);
                }
                Item::Hole(hole) => {
                    let reason = if self.policy == Policy::MaxAge { "max_age" } else { "drop_oldest" };
                    assert!(self.policy != Policy::Block && &*hole.reason == reason, "{hole:?}");
                    for _ in hole.from.0..=hole.to.0 {
                        let (_, reading) = expected.next().expect("no more than was appended");
                        let old = reading.received.mono_ns < self.old_before_ns;
                        assert!(self.policy == Policy::DropOldest || old, "a young one was dropped for its age");
                    }
                }
            }
        }
        assert_eq!(expected.count(), 0, "everything is there");
        let upto = items.iter().take_while(|item| item.last().0 <= self.committed + trimmed);
        let (mut gone, mut last) = (0, self.committed);
        for item in upto {
            last = item.last().0;
            match item {
                Item::Reading(stored) if self.is_told(stored) => self.told += count_of(&stored.reading),
                _ => gone += item.last().0 - item.first().0 + 1,
            }
        }
        self.waiting.drain(..gone as usize);
        if last > self.committed {
            self.committed = last;
            trim(&bench.outbox, last);
        }
    }

    /// A gap record that the outbox wrote for what it refused.
    fn is_told(&self, stored: &crate::record::Stored) -> bool {
        self.policy == Policy::DropNewest && stored.reading.kind == Kind::Gap
    }
}

fn count_of(gap: &Reading) -> u64 {
    serde_json::from_slice::<serde_json::Value>(&gap.value).unwrap()["count"].as_u64().unwrap()
}

fn settings(dice: &mut Dice, policy: Policy) -> OpenOptions {
    let mut settings =
        options(ByteSize::mib(if matches!(policy, Policy::DropOldest | Policy::DropNewest) { 8 } else { 64 }));
    let config = &mut settings.config;
    config.when_full = match policy {
        Policy::DropOldest => WhenFull::DropOldest,
        Policy::DropNewest => WhenFull::DropNewest,
        Policy::Block | Policy::MaxAge => WhenFull::Block,
    };
    if policy == Policy::MaxAge {
        let half = Duration::from_nanos(crate::clock::now().mono_ns / 2);
        config.max_age = config::Limit::At(config::Span(half));
    }
    config.compression = *dice.pick(&[Compression::Zstd, Compression::Lz4, Compression::None]);
    config.retain = *dice.pick(&[ByteSize(0), ByteSize::mib(1), ByteSize::mib(3)]);
    settings
}

fn run(seed: u64, until: Instant) -> u64 {
    let mut dice = Dice(seed);
    let dir = tempfile::tempdir().unwrap();
    let policy = *dice.pick(&[Policy::Block, Policy::DropOldest, Policy::DropNewest, Policy::MaxAge]);
    let settings = settings(&mut dice, policy);
    let mut model = Model {
        policy,
        waiting: VecDeque::new(),
        tables: HashMap::new(),
        committed: 0,
        receipts: 0,
        refused: 0,
        told: 0,
        old_before_ns: crate::clock::now().mono_ns / 2,
    };
    let mut bench = Bench::open(dir.path(), &settings);
    let mut steps = 0;
    while Instant::now() < until && steps < STEPS {
        steps += 1;
        match dice.roll(20) {
            0..11 => model.append(&mut bench, &mut dice),
            11..13 => model.control(&bench, &mut dice),
            13..15 => model.read_and_trim(&mut bench, 0),
            15..17 => {
                let through = dice.roll(model.waiting.len() as u64 + 1);
                model.read_and_trim(&mut bench, through);
            }
            17 => {
                // Fails once, somewhere in what comes next.
                let (name, how) = *dice.pick(&[("fault-sync", "no"), ("fault-insert", "no"), ("fault-sync", "full")]);
                fs::write(dir.path().join("outbox").join(name), how).unwrap();
            }
            _ => {
                // A control entry that cannot be written at the end is given up: nobody was told that it is durable.
                for name in ["fault-sync", "fault-insert"] {
                    let _ = fs::remove_file(dir.path().join("outbox").join(name));
                }
                bench.close();
                bench = Bench::open(dir.path(), &settings);
                assert_eq!(bench.outbox.positions().committed.0, model.committed);
            }
        }
    }
    model.read_and_trim(&mut bench, u64::MAX / 2);
    wait_until("everything refused is told", || {
        let items = read_all(&mut bench.outbox.reader(), model.committed);
        let told: u64 = readings(&items).iter().map(count_of).sum();
        model.told + told == model.refused
    });
    bench.close();
    steps
}

#[test]
fn random_calls_agree_with_a_plain_model() {
    let until = Instant::now() + Duration::from_secs(12);
    let mut dice = Dice(seed());
    let mut steps = 0;
    while Instant::now() < until && steps < 3000 {
        let seed = dice.roll(1 << 31);
        println!("run {seed}");
        steps += run(seed, until);
    }
    println!("{steps} steps");
    assert!(steps > 0);
}
