//! Holds what was issued and what became an obligation, and compares it with what a `read_committed` consumer got.
//!
//! - MQTT at QoS 1 and 2: a message that the MQTT broker acknowledged to its publisher is an obligation.
//! - A serial line cannot be acknowledged: what the daemon reported as accepted is an obligation (`meter.rs`).
//! - Always: no reading twice, none changed, order per device, and every sequence of the agent is accounted for exactly once
//!   by a record, a gap record or a dead letter, up to the position in the ledger.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::kafka::{Record, read_all};
use super::payload::{identify, payload};

/// Shared by all that issue readings in one test.
#[derive(Debug, Default)]
pub struct Oracle(Mutex<BTreeMap<String, Device>>);

#[derive(Debug, Default, Clone)]
struct Device {
    obliged: Vec<bool>,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Topics {
    pub data: Vec<String>,
    pub dead_letters: String,
    pub ledger: String,
}

impl Oracle {
    fn device<T>(&self, device: &str, change: impl FnOnce(&mut Device) -> T) -> T {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(devices.entry(device.to_owned()).or_default())
    }

    /// The next reading of a device: its number and payload.
    pub fn issue(&self, device: &str, bytes: usize) -> (u64, Vec<u8>) {
        let number = self.device(device, |d| {
            d.obliged.push(false);
            d.obliged.len() as u64 - 1
        });
        (number, payload(device, number, bytes))
    }

    /// From now on this reading must arrive.
    pub fn oblige(&self, device: &str, number: u64) {
        self.device(device, |d| d.obliged[number as usize] = true);
    }

    pub fn issued(&self) -> u64 {
        let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        devices.values().map(|device| device.obliged.len() as u64).sum()
    }

    pub fn obliged(&self) -> u64 {
        let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        devices.values().map(|device| device.obliged.iter().filter(|obliged| **obliged).count() as u64).sum()
    }

    /// Reads all topics and compares.
    pub fn tally(&self, bootstrap: &str, agent_id: &str, topics: &Topics) -> Tally {
        let mut tally = Tally::default();
        let mut seen: BTreeMap<String, Vec<bool>> = BTreeMap::new();
        let devices = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut accounts = Accounts::default();
        let mut origins: BTreeMap<String, String> = BTreeMap::new();
        for topic in &topics.data {
            let mut last: BTreeMap<(String, i32), u64> = BTreeMap::new();
            for record in read_all(bootstrap, topic) {
                if accounts.enter(&record, agent_id, &mut tally) == Some(KIND_GAP) {
                    continue;
                }
                let Some((device, number)) = identify(&record.value) else {
                    tally.foreign.push(record);
                    continue;
                };
                if let Some(origin) = record.header("fp_replay_of") {
                    if record.headers["fp"][33] & FLAG_REPLAY == 0 {
                        tally.fault(format!("a copy of {origin} without the flag"));
                    }
                    tally.replays.push(Replay { origin, reading: format!("{device}/{number}") });
                    continue;
                }
                origins.insert(record.header("ce_id").unwrap_or_default(), format!("{device}/{number}"));
                match devices.get(&device).filter(|d| number < d.obliged.len() as u64) {
                    None => tally.fault(format!("{device}/{number} was never issued")),
                    Some(_) if record.key != device.as_bytes() => {
                        tally
                            .fault(format!("{device}/{number} has the key {:?}", String::from_utf8_lossy(&record.key)));
                    }
                    Some(_) => {}
                }
                tally.note(&device, number, &mut seen);
                if let Some(before) = last.insert((device.clone(), record.partition), number) {
                    if before > number {
                        tally.reordered.push(format!("{device}: {number} after {before} at offset {}", record.offset));
                    }
                }
            }
            let mut partitions: BTreeMap<&str, usize> = BTreeMap::new();
            last.keys().for_each(|(device, _)| *partitions.entry(device).or_default() += 1);
            let split = partitions.into_iter().filter(|(_, count)| *count > 1);
            tally
                .reordered
                .extend(split.map(|(device, count)| format!("{device} is in {count} partitions of {topic}")));
        }
        for record in read_all(bootstrap, &topics.dead_letters) {
            if accounts.enter(&record, agent_id, &mut tally) != Some(KIND_GAP) {
                if let Some((device, number)) = identify(&record.value) {
                    tally.note(&device, number, &mut seen);
                }
                tally.dead_letters.push(record);
            }
        }
        for replay in std::mem::take(&mut tally.replays) {
            match origins.get(&replay.origin) {
                Some(reading) if *reading == replay.reading => {}
                found => tally.fault(format!("{replay:?} is a copy of {found:?}")),
            }
            tally.replays.push(replay);
        }
        let ledger = read_all(bootstrap, &topics.ledger).into_iter().rfind(|record| record.key == agent_id.as_bytes());
        accounts.close(ledger.as_ref(), &mut tally);
        for (name, device) in &devices {
            device.compare(name, seen.get(name).map_or(&[], Vec::as_slice), &mut tally);
        }
        tally
    }
}

impl Device {
    fn compare(&self, name: &str, seen: &[bool], tally: &mut Tally) {
        let was_seen = |number: u64| seen.get(number as usize).copied().unwrap_or(false);
        tally.issued += self.obliged.len() as u64;
        for (number, obliged) in self.obliged.iter().enumerate() {
            tally.obliged += u64::from(*obliged);
            if *obliged && !was_seen(number as u64) {
                tally.lost.push(format!("{name}/{number}"));
            }
        }
    }
}

const KIND_GAP: u8 = 2;
const FLAG_REPLAY: u8 = 8;

/// A reading that was sent again on request. No duplicate, for it has a `ce_id` of its own and says what it repeats.
#[derive(Debug, Clone)]
pub struct Replay {
    /// `ce_id` of the original.
    pub origin: String,
    /// Device and number.
    pub reading: String,
}

/// A gap record: what it names, if it names a range, and why.
#[derive(Debug, Clone)]
pub struct Gap {
    /// The sequences it names, inclusive; none for a loss outside the sequence.
    pub ranges: Vec<(u64, u64)>,
    /// How many readings a gap outside the sequence stands for.
    pub count: u64,
    pub reason: String,
}

/// Sequences by incarnation, each as an inclusive range.
#[derive(Debug, Default)]
struct Accounts(BTreeMap<Vec<u8>, Vec<(u64, u64)>>);

impl Accounts {
    /// Enters a record by its `fp` header and gives its kind.
    fn enter(&mut self, record: &Record, agent_id: &str, tally: &mut Tally) -> Option<u8> {
        let place = format!("{}[{}]@{}", record.topic, record.partition, record.offset);
        let Some(fp) = record.headers.get("fp").filter(|fp| fp.len() == 34) else {
            tally.fault(format!("{place} has no proper fp header"));
            return None;
        };
        let (incarnation, sequence) = (&fp[..16], u64::from_be_bytes(fp[16..24].try_into().unwrap()));
        let ce_id = format!("{agent_id}/{}/{sequence}", data_encoding::HEXLOWER.encode(&incarnation[..8]));
        if record.headers.contains_key("ce_id") && record.header("ce_id").as_deref() != Some(&ce_id) {
            tally.fault(format!("{place}: ce_id {:?} is not {ce_id}", record.header("ce_id")));
        }
        let mut ranges = vec![(sequence, sequence)];
        if fp[32] == KIND_GAP {
            let gap = Gap::read(record, &place, tally);
            if let Some((_, last)) = gap.ranges.last() {
                if *last != sequence {
                    tally.fault(format!("{place}: a gap up to {last} with the sequence {sequence}"));
                }
                ranges.clone_from(&gap.ranges);
            }
            tally.gaps.push(gap);
        }
        self.0.entry(incarnation.to_vec()).or_default().extend(ranges);
        Some(fp[32])
    }

    /// Every sequence once, none missing, and the ledger is at the end of the incarnation it names.
    fn close(mut self, ledger: Option<&Record>, tally: &mut Tally) {
        for (incarnation, ranges) in &mut self.0 {
            let name = data_encoding::HEXLOWER.encode(&incarnation[..8]);
            ranges.sort_unstable();
            if ranges[0].0 > 1 {
                tally.fault(format!("incarnation {name} begins with sequence {}", ranges[0].0));
            }
            for pair in ranges.windows(2) {
                if pair[1].0 <= pair[0].1 {
                    tally.duplicated.push(format!("{name}: sequence {} and {:?}", pair[1].0, pair[0]));
                } else if pair[1].0 != pair[0].1 + 1 {
                    tally.fault(format!("{name}: nothing accounts for {}..={}", pair[0].1 + 1, pair[1].0 - 1));
                }
            }
        }
        let Some(ledger) = ledger else {
            if !self.0.is_empty() {
                tally.fault("there are records and no ledger record".to_owned());
            }
            return;
        };
        let value: serde_json::Value = serde_json::from_slice(&ledger.value).unwrap_or_default();
        let (upto, incarnation) = (value["upto"].as_u64(), value["incarnation"].as_str().unwrap_or_default());
        let bytes = data_encoding::HEXLOWER.decode(incarnation.as_bytes()).unwrap_or_default();
        let end = self.0.get(&bytes).and_then(|ranges| ranges.last()).map(|range| range.1);
        if end.is_some() && upto != end {
            tally.fault(format!("the ledger says {upto:?}, the records end with {end:?}: {value}"));
        }
    }
}

impl Gap {
    fn read(record: &Record, place: &str, tally: &mut Tally) -> Self {
        let value: serde_json::Value = serde_json::from_slice(&record.value).unwrap_or_default();
        let reason = value["reason"].as_str().unwrap_or_default().to_owned();
        if reason.is_empty() {
            tally.fault(format!("{place}: a gap record without a reason"));
        }
        let count = value["count"].as_u64().unwrap_or(0);
        let whole: Vec<_> = value["from"].as_u64().zip(value["to"].as_u64()).into_iter().collect();
        let parts: Vec<(u64, u64)> = match value.get("ranges") {
            Some(parts) => serde_json::from_value(parts.clone()).unwrap_or_default(),
            None => whole.clone(),
        };
        let ends: Vec<_> = parts.first().zip(parts.last()).map(|(first, last)| (first.0, last.1)).into_iter().collect();
        if ends != whole {
            tally.fault(format!("{place}: a gap whose ranges are not what it spans: {value}"));
        }
        Self { ranges: parts, count, reason }
    }
}

/// The outcome. `Display` prints the figures and the first faults of each kind.
#[derive(Debug, Default)]
pub struct Tally {
    pub issued: u64,
    pub obliged: u64,
    pub delivered: u64,
    pub lost: Vec<String>,
    pub duplicated: Vec<String>,
    pub reordered: Vec<String>,
    /// Anything else that is wrong.
    pub faults: Vec<String>,
    pub gaps: Vec<Gap>,
    pub replays: Vec<Replay>,
    pub dead_letters: Vec<Record>,
    /// Records of the data topics that are no readings of ours: changed bytes, unless the test sent garbage.
    pub foreign: Vec<Record>,
}

impl Tally {
    fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    fn note(&mut self, device: &str, number: u64, seen: &mut BTreeMap<String, Vec<bool>>) {
        let numbers = seen.entry(device.to_owned()).or_default();
        if numbers.len() <= number as usize {
            numbers.resize(number as usize + 1, false);
        }
        if std::mem::replace(&mut numbers[number as usize], true) {
            self.duplicated.push(format!("{device}/{number}"));
        } else {
            self.delivered += 1;
        }
    }

    /// Nothing twice, nothing out of order, every sequence accounted for. What was lost is another question.
    pub fn assert_sound(&self) {
        let sound = self.duplicated.is_empty() && self.reordered.is_empty() && self.faults.is_empty();
        assert!(sound, "{self}");
    }

    /// Sound, nothing lost, nothing strange.
    pub fn assert_clean(&self) {
        self.assert_sound();
        assert!(self.lost.is_empty() && self.foreign.is_empty() && self.dead_letters.is_empty(), "{self}");
    }

    /// How many sequences the gap records of this reason name.
    pub fn gap_readings(&self, reason: &str) -> u64 {
        let ranges = self.gaps.iter().filter(|gap| gap.reason == reason).flat_map(|gap| &gap.ranges);
        ranges.map(|(from, to)| to - from + 1).sum()
    }

    /// How many readings the gap records of this reason count that were refused before they got a sequence.
    pub fn gap_count(&self, reason: &str) -> u64 {
        self.gaps.iter().filter(|gap| gap.reason == reason && gap.ranges.is_empty()).map(|gap| gap.count).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issued, obliged, delivered, .. } = self;
        let (lost, duplicated, reordered) = (self.lost.len(), self.duplicated.len(), self.reordered.len());
        write!(f, "issued={issued} obliged={obliged} delivered={delivered} lost={lost} duplicated={duplicated}")?;
        write!(f, " reordered={reordered} gaps={} dead_letters={}", self.gaps.len(), self.dead_letters.len())?;
        writeln!(f, " foreign={} faults={}", self.foreign.len(), self.faults.len())?;
        let kinds = [("lost", &self.lost), ("duplicated", &self.duplicated), ("reordered", &self.reordered)];
        for (kind, list) in kinds.into_iter().chain([("fault", &self.faults)]) {
            list.iter().take(10).try_for_each(|item| writeln!(f, "  {kind}: {item}"))?;
        }
        self.gaps.iter().take(10).try_for_each(|gap| writeln!(f, "  gap: {gap:?}"))?;
        self.foreign.iter().chain(&self.dead_letters).take(5).try_for_each(|record| {
            let value = String::from_utf8_lossy(&record.value[..record.value.len().min(100)]).into_owned();
            let (error, text) = (record.header("fp_error"), record.header("fp_error_text"));
            writeln!(f, "  record: {}@{} {value:?} {error:?} {text:?}", record.topic, record.offset)
        })
    }
}
