//! Recovers what can be read from generations that are damaged: one that was set aside, several, or a whole state
//! directory. Works on copies; tries, in this order:
//!
//! 1. the database as it is;
//! 2. the database without its `snap.*` files: the log is the truth, the snapshot but a short cut;
//! 3. the bytes of the file: each block has a checksum of its own and can be recognised wherever it stands (`raw.rs`).
//!
//! What it tells was proven by the checksum of its block, so there is no garbage among it. Readings that were never
//! acknowledged may be among it, if they stand in the file.

mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::super::block::{Decoder, Head};
use super::super::directory::GenerationId;
use super::super::entry::{Control, Entry, Framed, SPLIT_BEGIN, Segment};
use super::super::generation::{Generation, StoreError};
use super::super::note::Notes;
use super::super::reading::{self, ReadingEntry};
use super::super::state::{self, Loaded};
use super::super::wire::Cursor;
use super::bench::Bench;
use super::blocks::collect_segments;
use super::files::running;
use super::line::{GapLine, Line, reading_line};
use super::{LookError, Out};
use crate::record::{Incarnation, Sequence, Stored};

/// Reason of a gap of which nothing else is known.
pub const NOT_RECOVERED: &str = "not_recovered";

/// What was recovered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Salvaged {
    /// Readings recovered.
    pub readings: u64,
    /// Per generation, in their order.
    pub generations: Vec<SalvagedGeneration>,
    /// Sequences between the first and the last recovered that were not, and why if that is known.
    pub missing: Vec<GapLine>,
}

/// What was recovered from one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SalvagedGeneration {
    /// Its directory.
    pub path: String,
    /// Why its database does not open as it is, if so.
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

/// A directory that holds a `db`, and the name it had.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    id: GenerationId,
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
    for state_dir in [Some(path), path.parent(), path.parent().and_then(Path::parent)].into_iter().flatten() {
        if matches!(running(state_dir), Ok(Some(_))) && !is_set_aside(path) {
            return Err(LookError::InUse(state_dir.display().to_string()));
        }
    }
    let places = places(path)?;
    if places.is_empty() {
        return Err(LookError::Nothing(path.display().to_string()));
    }
    let name = temporary.map_or_else(std::env::temp_dir, Path::to_owned);
    let bench = Bench::new(temporary).map_err(LookError::io("make a private directory in", &name))?;
    let agent = agent_of(path);
    let mut teller = Teller { out, agent, salvaged: Salvaged::default(), last: None, known: Known::default() };
    for (at, place) in places.iter().enumerate() {
        progress(at as u64, places.len() as u64);
        let later = places[at + 1..].iter().find(|later| later.id.number > place.id.number);
        let limit = later.map(|later| later.id.first_index).filter(|first| *first > place.id.first_index);
        let (blocks, told) = blocks_of(&bench, place)?;
        teller.generation(blocks, told, limit.unwrap_or(u64::MAX))?;
    }
    Ok(teller.salvaged)
}

/// What was set aside is not in use, even while a daemon runs.
fn is_set_aside(path: &Path) -> bool {
    let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    full.components().any(|part| part.as_os_str() == "damaged")
}

/// Generations at `path`, oldest first: it may be one, hold some, or be a state directory.
fn places(path: &Path) -> Result<Vec<Place>, LookError> {
    let mut found = Vec::new();
    if path.join("db").is_file() {
        found.push(place(path.to_owned()));
    }
    for directory in [path.to_owned(), path.join("outbox"), path.join("damaged"), path.join("outbox/damaged")] {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(_) if directory != path => continue,
            Err(error) => return Err(LookError::io("read", path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(LookError::io("read", &directory))?;
            let is_generation = parse(&entry.file_name().to_string_lossy()).is_some();
            if is_generation && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(place(entry.path()));
            }
        }
    }
    found.sort_by(|one, other| (one.id, &one.path).cmp(&(other.id, &other.path)));
    Ok(found)
}

fn place(path: PathBuf) -> Place {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let id = name.as_deref().and_then(parse).unwrap_or(GenerationId { number: 0, first_index: 0 });
    Place { path, id }
}

/// The name of a generation, also with the number that setting aside adds to a name that is taken.
fn parse(name: &str) -> Option<GenerationId> {
    let name = name.strip_prefix("dead-").unwrap_or(name);
    let plain =
        name.split_once('.').map_or(name, |(plain, rest)| if rest.parse::<u32>().is_ok() { plain } else { name });
    GenerationId::parse(plain)
}

/// The agent, if its `state` is near.
fn agent_of(path: &Path) -> Option<String> {
    let near = [path.join("outbox/state"), path.join("state"), path.join("../state"), path.join("../../state")];
    near.iter().find_map(|path| match state::read(path) {
        Ok(Loaded::State(state)) => Some(state.agent),
        _ => None,
    })
}

/// All blocks of a generation that can be proven, by index, without overlap.
fn blocks_of(bench: &Bench, place: &Place) -> Result<(BTreeMap<u64, Block>, SalvagedGeneration), LookError> {
    let mut told = SalvagedGeneration { path: place.path.display().to_string(), ..SalvagedGeneration::default() };
    let mut blocks = BTreeMap::new();
    match through_database(bench, place, |_| true, &mut blocks)? {
        Ok(()) => {}
        Err(fault) => told.fault = Some(fault),
    }
    told.from_database = blocks.len() as u64;
    if told.fault.is_some() {
        // Whatever it says, what it gave is proven block by block.
        let _ = through_database(bench, place, |name| !name.starts_with("snap."), &mut blocks)?;
        told.from_log = blocks.len() as u64 - told.from_database;
    }
    let before = blocks.len();
    for block in raw::blocks_in(&place.path)? {
        insert(&mut blocks, block);
    }
    told.from_bytes = (blocks.len() - before) as u64;
    Ok((blocks, told))
}

/// Opens a copy and reads every block; the inner error is what is wrong with it.
fn through_database(
    bench: &Bench,
    place: &Place,
    wanted: impl Fn(&str) -> bool,
    blocks: &mut BTreeMap<u64, Block>,
) -> Result<Result<(), String>, LookError> {
    let copied = bench.copy(&place.path, place.id, wanted);
    if let Err(error) = copied {
        return match error.kind() {
            std::io::ErrorKind::InvalidData => Ok(Err(error.to_string())),
            _ => Err(LookError::io("copy", &place.path)(error)),
        };
    }
    match bench.open(place.id) {
        Ok(generation) => Ok(read_all(&generation, blocks)),
        Err(StoreError::Full(text)) => Err(LookError::Store(format!(
            "there is no room in {}: name another place with --temp-dir ({text})",
            bench.path().display()
        ))),
        Err(error) => Ok(Err(error.to_string())),
    }
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
    /// Last sequence told.
    last: Option<u64>,
    known: Known,
}

impl Teller<'_, '_> {
    fn tell(&mut self, line: &str) -> Result<(), LookError> {
        (self.out)(line).map_err(LookError::Output)
    }

    fn generation(
        &mut self,
        blocks: BTreeMap<u64, Block>,
        mut told: SalvagedGeneration,
        limit: u64,
    ) -> Result<(), LookError> {
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
