//! Random calls against a plain model, with reopening. `TEST_SEED=n` repeats a run.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::testing::{Dice, reading_of};
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::{Compression, WhenFull};
use crate::record::Item;

/// What should be in the log.
#[derive(Default)]
struct Model {
    /// Reading with sequence n + 1.
    readings: Vec<Reading>,
    table: HashMap<u16, u64>,
    committed: u64,
}

impl Model {
    fn append(&mut self, rig: &mut Rig, dice: &mut Dice) {
        let mut wanted = Vec::new();
        for _ in 0..1 + dice.roll(60) {
            let size = if dice.roll(20) == 0 { 30_000 } else { 1200 };
            let arrival: Vec<_> = (0..dice.roll(4))
                .map(|n| reading_of(dice.roll(1 << 40) + n, dice.roll(size) as usize, dice.roll(2) == 0))
                .collect();
            let packet = (dice.roll(3) > 0).then(|| Packet {
                id: 1 + dice.roll(50) as u16,
                qos: Qos::ExactlyOnce,
                dup: dice.roll(2) == 0,
                hash: dice.roll(3),
                dedup: dice.roll(8) > 0,
            });
            let known = packet.is_some_and(|p| p.dup && p.dedup && self.table.get(&p.id) == Some(&p.hash));
            let outcome = if known { Outcome::Duplicate } else { Outcome::Appended };
            wanted.push((rig.submit(arrival.clone(), packet), outcome));
            if !known {
                self.readings.extend(arrival);
                if let Some(packet) = packet {
                    self.table.insert(packet.id, packet.hash);
                }
            }
        }
        assert_eq!(rig.outcomes(wanted.len()), wanted);
    }

    fn control(&mut self, rig: &Rig, dice: &mut Dice) {
        if dice.roll(5) == 0 {
            self.table.clear();
            rig.appender.control(Control::SessionCleared);
        } else {
            let ids: Vec<_> = (0..dice.roll(10)).map(|_| 1 + dice.roll(50) as u16).collect();
            ids.iter().for_each(|id| {
                self.table.remove(id);
            });
            rig.appender.control(Control::Released(ids));
        }
    }

    /// Every sequence after `after` is there, as itself or (if the policy drops) in a hole.
    fn check(&self, reader: &mut Reader, after: u64, may_drop: bool) {
        let items = read_all(reader, after);
        let end = items.last().map_or(after, |item| item.last().0);
        assert_eq!(end, self.readings.len() as u64);
        for item in items {
            match item {
                Item::Reading(stored) => {
                    assert!(stored.reading == self.readings[stored.sequence.0 as usize - 1], "{}", stored.sequence);
                }
                Item::Hole(hole) => assert!(may_drop && &*hole.reason == "drop_oldest", "{hole:?}"),
            }
        }
    }
}

fn run(seed: u64, until: Instant) -> u64 {
    println!("TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let dir = tempfile::tempdir().unwrap();
    let may_drop = dice.roll(2) == 0;
    let mut settings = options(ByteSize::mib(if may_drop { 8 } else { 512 }));
    settings.config.when_full = if may_drop { WhenFull::DropOldest } else { WhenFull::Block };
    settings.config.compression = [Compression::Zstd, Compression::Lz4, Compression::None][dice.roll(3) as usize];
    let mut model = Model::default();
    let mut rig = Rig::open_with(dir.path(), settings.clone());
    let mut reader = rig.outbox.reader();
    let mut steps = 0;
    while Instant::now() < until && steps < 150 {
        steps += 1;
        match dice.roll(20) {
            0..12 => model.append(&mut rig, &mut dice),
            12..14 => model.control(&rig, &mut dice),
            14..16 => {
                let from = model.committed + dice.roll(model.readings.len() as u64 - model.committed + 1);
                model.check(&mut reader, from, may_drop);
            }
            16..18 => {
                model.committed += dice.roll(model.readings.len() as u64 - model.committed + 1);
                trim(&rig.outbox, model.committed);
            }
            _ => {
                drop(reader);
                rig.close();
                rig = Rig::open_with(dir.path(), settings.clone());
                reader = rig.outbox.reader();
                assert_eq!(rig.outbox.positions().committed.0, model.committed);
                assert_eq!(rig.outbox.positions().durable.0, model.readings.len() as u64);
            }
        }
    }
    model.check(&mut reader, model.committed, may_drop);
    drop(reader);
    rig.close();
    steps
}

#[test]
fn random_calls_agree_with_a_plain_model() {
    let until = Instant::now() + Duration::from_secs(8);
    if let Ok(seed) = std::env::var("TEST_SEED") {
        run(seed.parse().unwrap(), until);
        return;
    }
    let mut steps = 0;
    while Instant::now() < until && steps < 2000 {
        steps += run(u64::from(getrandom::u32().unwrap()), until);
    }
    assert!(steps > 0);
}
