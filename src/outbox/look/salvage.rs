//! Recovers what can be read from generations that are damaged: one that was set aside, several, or a whole state
//! directory. Works on copies; tries, in this order:
//!
//! 1. the database as it is;
//! 2. the database without its `snap.*` files: the log is the truth, the snapshot but a short cut;
//! 3. the bytes of the file: each block has a checksum of its own and can be recognised wherever it stands (`raw.rs`).
//!
//! What it tells was proven by the checksum of its block, so there is no garbage among it. Readings that were never
//! acknowledged may be among it, if they stand in the file.

mod place;
mod raw;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::block::{Decoder, Head};
use super::super::entry::{Control, Entry, Framed, SPLIT_BEGIN, Segment};
use super::super::generation::{Generation, StoreError};
use super::super::note::Notes;
use super::super::reading::{self, ReadingEntry};
use super::super::wire::Cursor;
use super::bench::{self, Bench};
use super::blocks::collect_segments;
use super::line::{GapLine, Line, reading_line};
use super::rescue::Failed;
use super::{LookError, Out};
use crate::record::{Incarnation, Sequence, Stored};
use place::{Bounds, Guard, Place};

/// Reason of a gap of which nothing else is known.
pub const NOT_RECOVERED: &str = "not_recovered";

/// What was recovered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Salvaged {
    /// Readings recovered.
    pub readings: u64,
    /// Per generation, in their order.
    pub generations: Vec<SalvagedGeneration>,
    /// Sequences that were not recovered, and why if that is known: between the first and the last that were, and before and
    /// after them where it is known what stood there.
    pub missing: Vec<GapLine>,
}

/// What was recovered from one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SalvagedGeneration {
    /// Its directory.
    pub path: String,
    /// What is wrong with it, if something is.
    pub fault: Option<String>,
    /// Blocks read through the database.
    pub from_database: u64,
    /// Blocks read through the database without its snapshot.
    pub from_log: u64,
    /// Blocks found by their bytes.
    pub from_bytes: u64,
    /// Readings recovered.
    pub readings: u64,
    /// First sequence recovered.
    pub first: Option<u64>,
    /// Last sequence recovered.
    pub last: Option<u64>,
}

impl Salvaged {
    /// Whether nothing is wrong with any generation and no sequence is missing without a known reason.
    pub fn is_whole(&self) -> bool {
        self.generations.iter().all(|generation| generation.fault.is_none())
            && self.missing.iter().all(|gap| gap.reason != NOT_RECOVERED)
    }
}

impl SalvagedGeneration {
    fn fault(&mut self, more: String) {
        match &mut self.fault {
            Some(fault) if fault.contains(&more) => {}
            Some(fault) => *fault = format!("{fault}; {more}"),
            None => self.fault = Some(more),
        }
    }
}

/// A block that is proven.
struct Block {
    head: Head,
    raw: Bytes,
}

/// Recovers what can be read below `path`. Lines: readings and [`Line::Gap`], in order of sequence.
/// `progress` is told the generations done, and how many there are.
pub fn salvage(
    path: &Path,
    temporary: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64),
    out: &mut Out<'_>,
) -> Result<Salvaged, LookError> {
    let guard = Guard::of(path);
    guard.check()?;
    let places = place::places(path)?;
    if places.is_empty() {
        return Err(LookError::Nothing(path.display().to_string()));
    }
    let name = temporary.map_or_else(std::env::temp_dir, Path::to_owned);
    let bench = Bench::new(temporary).map_err(LookError::io("make a private directory in", &name))?;
    let agent = place::agent_of(path);
    let mut teller = Teller::new(out, agent);
    for (at, place) in places.iter().enumerate() {
        progress(at as u64, places.len() as u64);
        let later = places[at + 1..].iter().find(|later| later.id.number > place.id.number);
        let limit = later.map(|later| later.id.first_index).filter(|first| *first > place.id.first_index);
        let (blocks, told) = blocks_of(&bench, place)?;
        // What was copied while a daemon began to write is no evidence of anything.
        guard.check()?;
        let last = at + 1 == places.len();
        teller.generation(blocks, told, limit.unwrap_or(u64::MAX), place.bounds(last))?;
    }
    teller.finish()
}

/// All blocks of a generation that can be proven, by index, without overlap.
fn blocks_of(bench: &Bench, place: &Place) -> Result<(BTreeMap<u64, Block>, SalvagedGeneration), LookError> {
    let mut told = SalvagedGeneration { path: place.path.display().to_string(), ..SalvagedGeneration::default() };
    let mut blocks = BTreeMap::new();
    if let Err(fault) = through_database(bench, place, |_| true, &mut blocks)? {
        told.fault(fault);
    }
    told.from_database = blocks.len() as u64;
    if told.fault.is_some() {
        // Whatever it says, what it gave is proven block by block.
        let _ = through_database(bench, place, |name| !name.starts_with("snap."), &mut blocks)?;
        told.from_log = blocks.len() as u64 - told.from_database;
    }
    let before = blocks.len();
    let (found, faults) = raw::blocks_in(&place.path).map_err(LookError::Output)?;
    for block in found {
        insert(&mut blocks, block);
    }
    faults.into_iter().for_each(|fault| told.fault(fault));
    told.from_bytes = (blocks.len() - before) as u64;
    if told.from_bytes > 0 {
        // The store drops the rest of its log silently where it finds damage.
        told.fault(format!("the database does not show {} blocks that stand in its file", told.from_bytes));
    }
    if blocks.is_empty() {
        told.fault("no block came back".to_owned());
    }
    Ok((blocks, told))
}

/// Opens a copy and reads every block; the inner error is what is wrong with it. The outer one is of this machine, not of
/// what is recovered.
fn through_database(
    bench: &Bench,
    place: &Place,
    wanted: impl Fn(&str) -> bool,
    blocks: &mut BTreeMap<u64, Block>,
) -> Result<Result<(), String>, LookError> {
    let no_room = |text: String| {
        LookError::Store(format!(
            "there is no room in {}: name another place with --temp-dir ({text})",
            bench.path().display()
        ))
    };
    let unread = match bench.copy(&place.path, place.id, wanted) {
        Ok(unread) => bench::tell(&unread),
        // Damaged, not allowed, or gone meanwhile: the next generation may be better.
        Err(Failed::From(error)) => return Ok(Err(format!("cannot be copied: {error}"))),
        Err(Failed::To(error)) => {
            return Err(match StoreError::of_io(error) {
                StoreError::Full(text) => no_room(text),
                error => LookError::Store(format!("cannot write to {}: {error}", bench.path().display())),
            });
        }
    };
    let read = match bench.open(place.id) {
        Ok(generation) => read_all(&generation, blocks),
        Err(StoreError::Full(text)) => return Err(no_room(text)),
        Err(error) => Err(error.to_string()),
    };
    Ok(match (unread, read) {
        (None, read) => read,
        (Some(unread), Ok(())) => Err(unread),
        (Some(unread), Err(fault)) => Err(format!("{unread}; {fault}")),
    })
}

fn read_all(generation: &Generation, blocks: &mut BTreeMap<u64, Block>) -> Result<(), String> {
    let mut decoder = Decoder::default();
    let mut fault = Ok(());
    let (mut at, mut expected) = (0, None);
    loop {
        let (key, bytes) = match generation.block_from(at) {
            Ok(Some(found)) => found,
            Ok(None) => return if expected.is_none() { Err("it is empty".to_owned()) } else { fault },
            Err(error) => return Err(error.to_string()),
        };
        at = key.saturating_add(1);
        match decoder.decode(&bytes) {
            Ok((head, raw)) => {
                if expected.is_some_and(|index| index != head.first_index) {
                    fault = Err("entries are missing".to_owned());
                }
                expected = Some(head.end_index());
                insert(blocks, Block { head, raw });
            }
            Err(error) => fault = Err(format!("block {key}: {error}")),
        }
    }
}

/// Adds a block unless one that is there already, of a better origin, holds some of its entries.
fn insert(blocks: &mut BTreeMap<u64, Block>, block: Block) {
    let (first, end) = (block.head.first_index, block.head.end_index());
    let before = blocks.range(..=first).next_back().is_some_and(|(_, before)| before.head.end_index() > first);
    let after = blocks.range(first..end).next().is_some();
    if !before && !after {
        blocks.insert(first, block);
    }
}

/// What the log says about whose sequences are whose, over all generations.
#[derive(Default)]
struct Known {
    segments: Vec<Segment>,
    notes: Notes,
}

struct Teller<'a, 'b> {
    out: &'a mut Out<'b>,
    agent: Option<String>,
    salvaged: Salvaged,
    /// Last sequence told, or known to be none of what is recovered.
    last: Option<u64>,
    /// After the last sequence that stood in a generation.
    end: u64,
    known: Known,
}

impl<'a, 'b> Teller<'a, 'b> {
    fn new(out: &'a mut Out<'b>, agent: Option<String>) -> Self {
        Self { out, agent, salvaged: Salvaged::default(), last: None, end: 0, known: Known::default() }
    }

    /// What stood after the last reading that came back is missing too.
    fn finish(mut self) -> Result<Salvaged, LookError> {
        let next = self.last.map_or(self.end, |last| last + 1);
        if next < self.end {
            self.missing(next, self.end - 1)?;
        }
        Ok(self.salvaged)
    }

    fn tell(&mut self, line: &str) -> Result<(), LookError> {
        (self.out)(line).map_err(LookError::Output)
    }

    fn generation(
        &mut self,
        blocks: BTreeMap<u64, Block>,
        mut told: SalvagedGeneration,
        limit: u64,
        bounds: Bounds,
    ) -> Result<(), LookError> {
        if let (None, Some(first)) = (self.last, bounds.first) {
            self.last = Some(first.saturating_sub(1));
        }
        self.end = self.end.max(bounds.end.unwrap_or(0));
        for block in blocks.values() {
            collect_segments(&block.raw, &mut self.known.segments);
            self.known.collect_notes(&block.raw);
        }
        let mut parts = Vec::new();
        let mut index = 0;
        for block in blocks.into_values() {
            if block.head.first_index != index {
                parts.clear();
            }
            index = block.head.first_index;
            let (mut offset, mut sequence) = (0, block.head.first_sequence);
            while let Some(framed) = Framed::at(&block.raw, offset).filter(|_| index < limit) {
                offset = framed.next;
                index += 1;
                if let Some(entry) = entry_of(framed, &block.raw, &mut parts) {
                    self.reading(entry, sequence, &mut told)?;
                }
                sequence += u64::from(framed.counts());
            }
        }
        self.salvaged.generations.push(told);
        Ok(())
    }

    fn reading(&mut self, entry: ReadingEntry, sequence: u64, told: &mut SalvagedGeneration) -> Result<(), LookError> {
        if self.last.is_some_and(|last| sequence <= last) {
            return Ok(());
        }
        if let Some(last) = self.last {
            self.missing(last + 1, sequence - 1)?;
        }
        self.last = Some(sequence);
        told.first.get_or_insert(sequence);
        told.last = Some(sequence);
        told.readings += 1;
        self.salvaged.readings += 1;
        let segment = self.known.segment_of(sequence);
        let agent = self.agent.as_deref().filter(|_| segment.is_some());
        let stored = Stored {
            sequence: Sequence(sequence),
            incarnation: segment.map_or(Incarnation([0; 16]), |segment| segment.incarnation),
            segment: segment.map_or_else(Default::default, |segment| segment.nonce),
            boot_id: segment.map_or_else(Default::default, |segment| segment.boot_id.clone()),
            source: entry.source,
            reading: entry.reading,
        };
        let line = reading_line(&stored, agent, false);
        self.tell(&line)
    }

    /// Tells what is not there: by its notes where there are any.
    fn missing(&mut self, from: u64, to: u64) -> Result<(), LookError> {
        let mut next = from;
        while next <= to {
            let gap = match self.known.notes.covering(next) {
                Some(note) => GapLine::of_note(note, next, note.to.min(to)),
                None => {
                    let later = self.known.notes.iter().map(|note| note.from).find(|first| *first > next);
                    GapLine::plain(next, later.map_or(to, |first| to.min(first - 1)), NOT_RECOVERED)
                }
            };
            next = gap.to + 1;
            self.tell(&Line::Gap(gap.clone()).to_json())?;
            self.salvaged.missing.push(gap);
        }
        Ok(())
    }
}

impl Known {
    fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        let begun = self.segments.iter().filter(|segment| segment.first_sequence <= sequence);
        begun.max_by_key(|segment| segment.first_index)
    }

    fn collect_notes(&mut self, raw: &Bytes) {
        let mut offset = 0;
        while let Some(framed) = Framed::at(raw, offset) {
            offset = framed.next;
            if let Some(Entry::Control(Control::Note(note))) = framed.decode(raw) {
                self.notes.add(note);
            }
        }
    }
}

/// The reading that ends with this entry, if one does.
fn entry_of(framed: Framed, raw: &Bytes, parts: &mut Vec<Bytes>) -> Option<ReadingEntry> {
    match framed.decode(raw)? {
        Entry::Reading(entry) => Some(entry),
        Entry::Control(_) => None,
        Entry::Part(part) => {
            if framed.marks & SPLIT_BEGIN != 0 {
                parts.clear();
            } else if parts.is_empty() {
                // Its beginning is lost.
                return None;
            }
            parts.push(part);
            if !framed.counts() {
                return None;
            }
            let whole = Bytes::from(std::mem::take(parts).concat());
            reading::get(Cursor::whole(&whole))
        }
    }
}
