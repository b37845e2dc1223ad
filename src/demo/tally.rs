//! The reckoning: what the devices issued against what a `read_committed` consumer holds. Plain code, no clock, no I/O.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::book::{Entry, Pages};
use crate::record::Kind;
use crate::simulate::payload::Identity;

/// One record as the consumer saw it. Records of one partition come in the order of their offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Where it is, for messages: topic, partition, offset.
    pub place: (String, i32, i64),
    /// Whether it came from the dead-letter topic.
    pub dead_letter: bool,
    /// The header `fp`, if it has a proper one.
    pub fp: Option<Fp>,
    /// Key of the record.
    pub key: Vec<u8>,
    /// Value of the record.
    pub value: Vec<u8>,
}

impl Record {
    fn at(&self) -> String {
        let (topic, partition, offset) = &self.place;
        format!("{topic}[{partition}] offset {offset}")
    }
}

/// The header `fp` (see docs/consumers.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fp {
    /// The life of the outbox.
    pub incarnation: [u8; 16],
    /// Number in it.
    pub sequence: u64,
    /// Raw, reading or gap.
    pub kind: Kind,
}

impl Fp {
    /// 16 bytes incarnation, 8 sequence, 8 segment, 1 kind, 1 flags. Later versions may append.
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        let header: &[u8; 34] = header.first_chunk()?;
        let incarnation = header[..16].try_into().ok()?;
        let sequence = u64::from_be_bytes(header[16..24].try_into().ok()?);
        Some(Self { incarnation, sequence, kind: Kind::from_number(header[32])? })
    }
}

/// How it went. All numbers are readings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Came into being.
    pub issued: u64,
    /// Owed: acknowledged by the broker, or taken from the line.
    pub acknowledged: u64,
    /// Different readings that the consumer holds.
    pub delivered: u64,
    /// Owed and not delivered unchanged.
    pub lost: u64,
    /// Copies beyond the first.
    pub duplicated: u64,
    /// After a later one of the same device.
    pub reordered: u64,
    /// Copies of readings that the device itself published twice: not the daemon's doing.
    pub published_twice: u64,
    /// Written by the meter while no one read, or under way at a SIGKILL, and so taken by no one.
    pub unheard: u64,
    /// Of MQTT and of the meter, the first three again: issued, owed, delivered.
    pub parts: [(u64, u64, u64); 2],
    /// Sequence numbers that neither a record nor a gap record accounts for, and ones used twice.
    pub sequence_faults: u64,
    /// Gap records.
    pub gaps: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Records that no device issued in this form.
    pub strange: u64,
    /// The first few faults in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        let faults =
            [self.lost, self.duplicated, self.reordered, self.sequence_faults, self.strange, self.dead_letters];
        faults == [0; 6]
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < 10 {
            self.examples.push(text());
        }
    }
}

impl fmt::Display for Verdict {
    /// The line for scripts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issued, acknowledged, delivered, lost, duplicated, reordered, .. } = self;
        write!(f, "result: issued={issued} acknowledged={acknowledged} delivered={delivered} ")?;
        write!(f, "lost={lost} duplicated={duplicated} reordered={reordered}")
    }
}

/// What was seen of one device: per counter, how often.
#[derive(Default)]
struct Seen {
    copies: HashMap<u64, u32>,
    highest: u64,
}

/// Compares.
pub(super) fn tally(pages: &Pages, records: &[Record]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut accounts = Accounts::default();
    let mut meter_gaps = 0;
    for record in records {
        accounts.enter(record, &mut verdict);
        if record.fp.is_some_and(|fp| fp.kind == Kind::Gap) {
            verdict.gaps += 1;
            meter_gaps += u64::from(record.key == pages.meter.device.as_bytes());
        } else {
            verdict.dead_letters += u64::from(record.dead_letter);
            reading(pages, record, &mut seen, &mut verdict);
        }
    }
    accounts.close(&mut verdict);
    let nothing = Seen::default();
    for (device, entries) in &pages.mqtt {
        let seen = seen.get(device).unwrap_or(&nothing);
        settle(device, entries, seen, |_, entry| entry.acknowledged, 0, &mut verdict);
    }
    let meter = &pages.meter;
    let seen = seen.get(&meter.device).unwrap_or(&nothing);
    settle(&meter.device, &meter.entries, seen, |counter, _| meter.owed(counter, meter_gaps), 1, &mut verdict);
    let unheard =
        |(counter, _): &(u64, &Entry)| !seen.copies.contains_key(counter) && !meter.owed(*counter, meter_gaps);
    verdict.unheard = (1..).zip(&meter.entries).filter(unheard).count() as u64;
    verdict
}

/// Takes one record that is no gap record.
fn reading(pages: &Pages, record: &Record, seen: &mut BTreeMap<String, Seen>, verdict: &mut Verdict) {
    let issued = Identity::of(&record.value).filter(|identity| {
        let entries = if identity.device == pages.meter.device {
            Some(&pages.meter.entries)
        } else {
            pages.mqtt.get(&identity.device)
        };
        let index = identity.counter.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        let entry = entries.zip(index).and_then(|(entries, index)| entries.get(index));
        entry.is_some_and(|entry| entry.fingerprint == identity.fingerprint) && record.key == identity.device.as_bytes()
    });
    let Some(Identity { device, counter, .. }) = issued else {
        verdict.strange += 1;
        verdict.example(|| {
            let value = String::from_utf8_lossy(&record.value[..record.value.len().min(120)]).into_owned();
            format!("no device issued this: {} {value}", record.at())
        });
        return;
    };
    let of_device = seen.entry(device.clone()).or_default();
    let copies = of_device.copies.entry(counter).or_default();
    *copies += 1;
    if *copies > 1 {
        let resent = pages.mqtt.get(&device).is_some_and(|entries| entries[counter as usize - 1].resent);
        if resent && *copies == 2 {
            verdict.published_twice += 1;
        } else {
            verdict.duplicated += 1;
            verdict.example(|| format!("delivered twice: {device} {counter} at {}", record.at()));
        }
    } else if counter < of_device.highest {
        verdict.reordered += 1;
        verdict.example(|| format!("out of order: {device} {counter} after {} at {}", of_device.highest, record.at()));
    } else {
        of_device.highest = counter;
    }
}

/// Closes the account of one device.
fn settle(
    device: &str,
    entries: &[Entry],
    seen: &Seen,
    owed: impl Fn(u64, &Entry) -> bool,
    part: usize,
    verdict: &mut Verdict,
) {
    let mut sums = (entries.len() as u64, 0, seen.copies.len() as u64);
    for (counter, entry) in (1..).zip(entries) {
        if owed(counter, entry) {
            sums.1 += 1;
            if !seen.copies.contains_key(&counter) {
                verdict.lost += 1;
                verdict.example(|| format!("lost: {device} {counter}"));
            }
        }
    }
    let total = &mut verdict.parts[part];
    *total = (total.0 + sums.0, total.1 + sums.1, total.2 + sums.2);
    verdict.issued += sums.0;
    verdict.acknowledged += sums.1;
    verdict.delivered += sums.2;
}

/// The ranges that a gap record names: `ranges` if it has them, else all of `from` through `to`.
fn named_by_gap(record: &Record) -> Option<Vec<(u64, u64)>> {
    let value: serde_json::Value = serde_json::from_slice(&record.value).ok()?;
    match value.get("ranges") {
        Some(ranges) => serde_json::from_value(ranges.clone()).ok(),
        None => Some(vec![(value["from"].as_u64()?, value["to"].as_u64()?)]),
    }
}

/// The numbers that the daemon gave, by the life of its outbox.
#[derive(Default)]
struct Accounts(BTreeMap<[u8; 16], Vec<(u64, u64)>>);

impl Accounts {
    fn enter(&mut self, record: &Record, verdict: &mut Verdict) {
        let Some(fp) = record.fp else {
            verdict.sequence_faults += 1;
            verdict.example(|| format!("no proper fp header: {}", record.at()));
            return;
        };
        let ranges = self.0.entry(fp.incarnation).or_default();
        match named_by_gap(record).filter(|_| fp.kind == Kind::Gap) {
            Some(named) => ranges.extend(named),
            None => ranges.push((fp.sequence, fp.sequence)),
        }
    }

    /// Every number from the first on is there once.
    fn close(self, verdict: &mut Verdict) {
        for mut ranges in self.0.into_values() {
            ranges.sort_unstable();
            let begin = (ranges[0].0 > 1).then_some((0, 0));
            let chain: Vec<_> = begin.into_iter().chain(ranges).collect();
            for pair in chain.windows(2) {
                if pair[1].0 != pair[0].1 + 1 {
                    verdict.sequence_faults += 1;
                    verdict.example(|| format!("sequence {} follows {}", pair[1].0, pair[0].1));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
