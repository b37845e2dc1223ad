//! Reads one generation from end to end: what it holds, where its whole arrivals end, and what it says besides
//! readings. Used at opening.

use crate::record::{Reading, SourceId};

use super::block::{BlockError, Decoder};
use super::entry::{Control, Entry, FIRST, Framed, LAST, SPLIT_BEGIN, unknown_kind};
use super::generation::{Generation, StoreError};
use super::memory::Memory;
use super::reading;
use super::summary::Summary;
use super::wire::Cursor;

/// What was found.
#[derive(Debug)]
pub(super) struct Scan {
    /// Contents; ends are those of the last whole arrival.
    pub(super) summary: Summary,
    /// Raw bytes of all blocks.
    pub(super) raw_bytes: u64,
    /// Why the blocks are not all there, if they are not.
    pub(super) damage: Option<String>,
    /// Entries follow that belong to no whole arrival.
    pub(super) torn: bool,
}

/// Entries of the arrival under way.
#[derive(Default)]
struct Arrival {
    readings: Vec<(SourceId, Reading)>,
    controls: Vec<Control>,
    parts: Vec<u8>,
}

struct Scanner<'a> {
    memory: &'a mut Memory,
    scan: Scan,
    arrival: Arrival,
    index: u64,
    sequence: u64,
}

/// Scans entries below `limit` and replays them into `memory`.
pub(super) fn scan(generation: &Generation, limit: Option<u64>, memory: &mut Memory) -> Result<Scan, StoreError> {
    let first_index = generation.id().first_index;
    let limit = limit.unwrap_or(u64::MAX);
    let summary = Summary::starting_at(first_index, 0);
    let scan = Scan { summary, raw_bytes: 0, damage: None, torn: false };
    let mut scanner = Scanner { memory, scan, arrival: Arrival::default(), index: first_index, sequence: 0 };
    let mut decoder = Decoder::default();
    let mut seen = false;
    while let Some((key, block)) = generation.block_from(scanner.index)? {
        if key >= limit {
            break;
        }
        match decoder.decode(&block) {
            Ok((head, raw)) if head.first_index == key => {
                if !seen {
                    scanner.scan.summary.first_sequence = head.first_sequence;
                    scanner.scan.summary.end_sequence = head.first_sequence;
                    scanner.sequence = head.first_sequence;
                    seen = true;
                }
                if key != scanner.index || head.first_sequence != scanner.sequence {
                    scanner.broken(format!("entries {} to {key} are missing", scanner.index));
                    (scanner.index, scanner.sequence) = (key, head.first_sequence);
                }
                if let Some(kind) = unknown_kind(&raw) {
                    return Err(StoreError::Later(format!("block {key} holds an entry of kind {kind}")));
                }
                scanner.scan.raw_bytes += raw.len() as u64;
                scanner.block(&raw, limit);
                if scanner.index != head.end_index().min(limit) || key >= head.end_index() {
                    scanner.broken(format!("block {key} does not hold what it says"));
                    scanner.index = head.end_index().max(key + 1);
                    scanner.sequence = head.end_sequence();
                }
            }
            Ok(_) => {
                scanner.broken(format!("block {key} stands under another key"));
                scanner.index = key + 1;
            }
            Err(error @ BlockError::Unknown(_)) => return Err(StoreError::Later(format!("{error} ({key})"))),
            Err(error) => {
                scanner.broken(format!("{error} ({key})"));
                scanner.index = key + 1;
            }
        }
    }
    if !seen {
        // Nothing says at which sequence it begins or ends.
        return Err(StoreError::Damaged("no readable block".to_owned()));
    }
    // A snapshot does not cross generations.
    scanner.memory.broken();
    scanner.scan.torn = scanner.index != scanner.scan.summary.end_index;
    Ok(scanner.scan)
}

impl Scanner<'_> {
    fn broken(&mut self, why: String) {
        self.arrival = Arrival::default();
        self.memory.broken();
        self.scan.damage.get_or_insert(why);
    }

    fn block(&mut self, raw: &bytes::Bytes, limit: u64) {
        let mut at = 0;
        while self.index < limit {
            let Some(framed) = Framed::at(raw, at) else { return };
            let Some(entry) = framed.decode(raw) else { return };
            self.entry(framed, entry);
            self.index += 1;
            self.sequence += u64::from(framed.counts());
            at = framed.next;
            if framed.marks & LAST != 0 {
                self.commit();
            }
        }
    }

    fn entry(&mut self, framed: Framed, entry: Entry) {
        if framed.marks & FIRST != 0 {
            self.arrival = Arrival::default();
        }
        match entry {
            Entry::Reading(entry) => self.reading(entry),
            Entry::Control(control) => self.arrival.controls.push(control),
            Entry::Part(part) => {
                if framed.marks & SPLIT_BEGIN != 0 {
                    self.arrival.parts.clear();
                }
                self.arrival.parts.extend_from_slice(&part);
                if framed.counts() {
                    let whole = std::mem::take(&mut self.arrival.parts).into();
                    if let Some(entry) = reading::get(Cursor::whole(&whole)) {
                        self.reading(entry);
                    }
                }
            }
        }
    }

    fn reading(&mut self, entry: reading::ReadingEntry) {
        if let Some(packet) = entry.packet {
            self.arrival.controls.push(Control::Mark(entry.source.clone(), packet));
        }
        self.arrival.readings.push((entry.source, entry.reading));
    }

    /// The commit mark was read: the arrival exists.
    fn commit(&mut self) {
        let arrival = std::mem::take(&mut self.arrival);
        for (source, reading) in &arrival.readings {
            self.scan.summary.count(source, reading);
        }
        for control in arrival.controls {
            self.memory.replay(control, self.index - 1);
        }
        self.scan.summary.end_index = self.index;
        self.scan.summary.end_sequence = self.sequence;
    }
}
