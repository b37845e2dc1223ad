//! Reading the log for the drain: block by block, never above what is durable, with every sequence accounted for.
//!
//! What cannot be read becomes a note first (through the writer, durable), then a hole. A note wins over what may still
//! stand in a generation.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::time::Duration;

use bytes::Bytes;

use crate::record::{Incarnation, Item, Sequence, Stored};

use super::block::Decoder;
use super::directory::GenerationId;
use super::entry::{Entry, Framed, Kind, SPLIT_BEGIN, Segment};
use super::generation::{Generation, StoreError};
use super::note::Notes;
use super::reading::{self, ReadingEntry};
use super::recovery::note;
use super::view::{Listed, Shared};
use super::wire::Cursor;
use super::writer::Command;
use super::{Batch, Budget, ReadError};

/// How long the writer may take to make a note durable.
const NOTE_WAIT: Duration = Duration::from_secs(150);
/// A database that is just being closed is waited for.
const BUSY_TRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// The drain's view of the log. Owned by the delivery thread.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    decoder: Decoder,
    cursor: Option<Place>,
    /// Read, but above the budget of its batch: it begins the next one.
    kept: Option<Stored>,
    /// The generation that failed last: one reopening is granted.
    failed: Option<GenerationId>,
}

/// A place in a generation.
#[derive(Debug)]
struct Place {
    generation: Arc<Generation>,
    /// Index of the next block to fetch.
    next_block: u64,
    block: Option<Block>,
    /// Sequence of the next counting entry.
    sequence: u64,
    /// Bytes of a split reading so far.
    parts: Vec<u8>,
    parts_whole: bool,
}

/// A block, partly read.
#[derive(Debug)]
struct Block {
    raw: Bytes,
    at: usize,
    index: u64,
    end_index: u64,
}

/// What stands at a sequence.
enum Found {
    Reading(Box<Stored>),
    /// Nothing up to here, inclusive; why.
    Missing(u64, String),
    /// The generation ends before it.
    End,
}

/// The view, as one batch sees it.
struct Sight {
    durable_index: u64,
    durable_sequence: u64,
    notes: Arc<Notes>,
    segments: Arc<[Segment]>,
}

impl Sight {
    fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        let at = self.segments.partition_point(|segment| segment.first_sequence <= sequence);
        self.segments.get(at.saturating_sub(1))
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, commands: Sender<Command>) -> Self {
        Self { shared, commands, decoder: Decoder::default(), cursor: None, kept: None, failed: None }
    }

    /// Items after `after` (exclusive), as many as fit the budget; empty if there are none. Damaged ranges come as holes
    /// (they are noted first). Removed ranges come as holes.
    pub fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        let mut next = after.0 + 1;
        let mut sight = self.look();
        while next <= sight.durable_sequence && batch.items.len() < budget.records_max {
            if let Some(note) = sight.notes.covering(next) {
                if !fits_life(&batch, note.incarnation) {
                    break;
                }
                batch.items.push(Item::Hole(note.hole(next)));
                next = note.to + 1;
                continue;
            }
            match self.find(next, &sight)? {
                Found::Reading(stored) => {
                    let stored = *stored;
                    let bytes = stored.reading.record_bytes();
                    let over = !batch.items.is_empty() && batch.bytes.saturating_add(bytes) > budget.bytes_max;
                    if over || !fits_life(&batch, stored.incarnation) {
                        self.kept = Some(stored);
                        break;
                    }
                    batch.bytes += bytes;
                    batch.items.push(Item::Reading(stored));
                    next += 1;
                }
                // What was found goes first; the next call comes back here.
                Found::Missing(..) | Found::End if !batch.items.is_empty() => break,
                // Dropped by a policy since we looked: that is told already.
                Found::Missing(..) if self.look().notes.covering(next).is_some() => sight = self.look(),
                Found::Missing(to, why) => {
                    self.note_missing(next, to.min(sight.durable_sequence), &why, &sight)?;
                    sight = self.look();
                }
                Found::End => unreachable!("find() goes on to the next generation"),
            }
        }
        if batch.items.is_empty() {
            self.let_go(next);
        }
        Ok(batch)
    }

    /// Nothing to read: a generation that ends before `next` is left to the writer.
    fn let_go(&mut self, next: u64) {
        let mut view = self.shared.view();
        let done = |listed: &&Listed| view.reader_at == Some(listed.id.number) && listed.end_sequence() <= next;
        if view.generations.iter().any(|listed| done(&listed)) {
            view.reader_at = None;
            drop(view);
            self.cursor = None;
        }
    }

    fn look(&self) -> Sight {
        let view = self.shared.view();
        Sight {
            durable_index: view.durable_index,
            durable_sequence: view.durable_sequence,
            notes: view.notes.clone(),
            segments: view.segments.clone(),
        }
    }

    /// What stands at `next`, in whatever generation it is.
    fn find(&mut self, next: u64, sight: &Sight) -> Result<Found, ReadError> {
        if let Some(kept) = self.kept.take().filter(|kept| kept.sequence.0 == next) {
            return Ok(Found::Reading(Box::new(kept)));
        }
        loop {
            let Some(listed) = self.go_to(next)? else {
                return Ok(self.beyond(next, sight));
            };
            let place = self.cursor.as_mut().expect("go_to opened it");
            let end_index = listed.closed.as_ref().map_or(u64::MAX, |summary| summary.end_index);
            let end_index = end_index.min(sight.durable_index + 1);
            match place.find(next, end_index, sight, &mut self.decoder) {
                Ok(Found::End) => {
                    let to = listed.end_sequence().saturating_sub(1).min(sight.durable_sequence);
                    return Ok(Found::Missing(to, format!("{} ends too early", listed.id)));
                }
                Ok(found) => {
                    self.failed = None;
                    return Ok(found);
                }
                Err(error) => self.store_failed(listed.id, error)?,
            }
        }
    }

    /// No generation holds `next`: how far does that reach?
    fn beyond(&self, next: u64, sight: &Sight) -> Found {
        let view = self.shared.view();
        let later = view.generations.iter().map(|listed| listed.first_sequence).find(|first| *first > next);
        let to = later.map_or(sight.durable_sequence, |first| first - 1);
        Found::Missing(to, "no generation holds it".to_owned())
    }

    /// Opens the generation that holds `next`, unless it is open; its entry in the catalogue.
    fn go_to(&mut self, next: u64) -> Result<Option<Listed>, ReadError> {
        for _ in 0..BUSY_TRIES {
            let (listed, live) = {
                let mut view = self.shared.view();
                let listed = view.generations.iter().rev().find(|listed| listed.holds(next)).cloned();
                if listed.as_ref().is_some_and(|listed| view.claimed == Some(listed.id.number)) {
                    drop(view);
                    std::thread::sleep(BUSY_WAIT);
                    continue;
                }
                // From here on the writer leaves it alone.
                view.reader_at = listed.as_ref().map(|listed| listed.id.number);
                let live = listed.as_ref().and_then(|listed| listed.live.upgrade());
                (listed, live)
            };
            let Some(listed) = listed else {
                self.cursor = None;
                return Ok(None);
            };
            if let Some(place) = &mut self.cursor {
                if place.generation.id() == listed.id {
                    if place.sequence > next {
                        place.rewind();
                    }
                    return Ok(Some(listed));
                }
            }
            self.cursor = None;
            let generation = match live {
                Some(generation) => generation,
                None => {
                    match Generation::open(&self.shared.directory, listed.id, super::generation::SEGMENT_BYTES[0]) {
                        Ok(generation) => self.register(listed.id, generation),
                        Err(StoreError::Busy(_)) => {
                            std::thread::sleep(BUSY_WAIT);
                            continue;
                        }
                        Err(error) => {
                            self.store_failed(listed.id, error)?;
                            continue;
                        }
                    }
                }
            };
            self.cursor = Some(Place::start(generation));
            return Ok(Some(listed));
        }
        Err(ReadError::Store("a generation stays in use".to_owned()))
    }

    /// Makes the handle known, for a database is open once.
    fn register(&self, id: GenerationId, generation: Generation) -> Arc<Generation> {
        let generation = Arc::new(generation);
        let mut view = self.shared.view();
        if let Some(listed) = view.generations.iter_mut().find(|listed| listed.id == id) {
            listed.live = Arc::downgrade(&generation);
        }
        generation
    }

    /// Reopens once; then has the writer set the generation aside.
    fn store_failed(&mut self, id: GenerationId, error: StoreError) -> Result<(), ReadError> {
        self.cursor = None;
        match error {
            StoreError::Closed if self.shared.view().closed => Err(ReadError::Store("the outbox is closed".to_owned())),
            StoreError::Closed | StoreError::Busy(_) => Ok(()),
            StoreError::Full(_) | StoreError::Io(_) => Err(ReadError::Store(format!("{id}: {error}"))),
            StoreError::Damaged(_) | StoreError::OtherSegment if self.failed != Some(id) => {
                log::warn!("{id} cannot be read ({error}): it is opened once more");
                self.failed = Some(id);
                Ok(())
            }
            StoreError::Damaged(why) => {
                self.failed = None;
                self.shared.view().reader_at = None;
                let gone = self.ask(|done| Command::SetAside(id, why, done))?;
                if gone { Ok(()) } else { Err(ReadError::Store(format!("{id} is damaged and cannot be noted now"))) }
            }
            StoreError::OtherSegment => Err(ReadError::Store(format!("{id}: {error}"))),
        }
    }

    fn note_missing(&mut self, from: u64, to: u64, why: &str, sight: &Sight) -> Result<(), ReadError> {
        log::error!("readings {from} to {to} are missing in the outbox ({why}); a gap record will say so");
        let segment = sight.segments.last().ok_or_else(|| ReadError::Store("the log has no segment".to_owned()))?;
        let life = sight.segment_of(from).map_or(segment.incarnation, |segment| segment.incarnation);
        let note = note((from, to), life, "damage", segment);
        self.shared.metrics.dropped("damage").inc_by(to - from + 1);
        self.ask(|done| Command::Note(note, done))
    }

    /// Asks the writer and waits until it is durable.
    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, ReadError> {
        let (done, answer) = mpsc::sync_channel(1);
        let closed = || ReadError::Store("the outbox is closed".to_owned());
        self.commands.send(command(done)).map_err(|_| closed())?;
        answer.recv_timeout(NOTE_WAIT).map_err(|_| ReadError::Store("the outbox cannot be written".to_owned()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.view().reader_at = None;
    }
}

fn fits_life(batch: &Batch, incarnation: Incarnation) -> bool {
    batch.items.last().is_none_or(|last| last.incarnation() == incarnation)
}

fn store(entry: ReadingEntry, sequence: u64, sight: &Sight) -> Found {
    let Some(segment) = sight.segment_of(sequence) else {
        return Found::Missing(sequence, "no segment says whose sequence it is".to_owned());
    };
    Found::Reading(Box::new(Stored {
        sequence: Sequence(sequence),
        incarnation: segment.incarnation,
        segment: segment.nonce,
        boot_id: segment.boot_id.clone(),
        source: entry.source,
        reading: entry.reading,
    }))
}

impl Place {
    fn start(generation: Arc<Generation>) -> Self {
        let next_block = generation.id().first_index;
        Self { generation, next_block, block: None, sequence: 0, parts: Vec::new(), parts_whole: false }
    }

    /// Back to the start of the generation, to find an earlier sequence.
    fn rewind(&mut self) {
        *self = Self::start(self.generation.clone());
    }

    /// What stands at `next`, below `end_index`. `sequence <= next` on entry.
    fn find(&mut self, next: u64, end_index: u64, sight: &Sight, decoder: &mut Decoder) -> Result<Found, StoreError> {
        loop {
            if self.block.is_none() && !self.fetch(next, end_index, decoder)? {
                return Ok(Found::End);
            }
            if self.sequence > next {
                return Ok(Found::Missing(self.sequence - 1, "blocks are missing".to_owned()));
            }
            if let Some(found) = self.in_block(next, end_index, sight) {
                return Ok(found);
            }
        }
    }

    /// Fetches the next block that can hold `next`; `false`: the generation ends.
    fn fetch(&mut self, next: u64, end_index: u64, decoder: &mut Decoder) -> Result<bool, StoreError> {
        while let Some((key, bytes)) = self.generation.block_from(self.next_block)? {
            if key >= end_index {
                return Ok(false);
            }
            // Blocks that end below `next` need no unpacking; the one that ends just there may begin a split reading.
            let head = match super::block::check(&bytes) {
                Ok(head) if head.first_index == key => head,
                Ok(_) => {
                    log::error!("block {key} of {} stands under another key", self.generation.id());
                    self.next_block = key + 1;
                    continue;
                }
                Err(error) => {
                    log::error!("block {key} of {}: {error}", self.generation.id());
                    self.next_block = key + 1;
                    self.parts_whole = false;
                    continue;
                }
            };
            if head.first_index != self.next_block {
                self.parts_whole = false;
            }
            self.next_block = head.end_index().max(key + 1);
            if head.end_sequence() < next {
                continue;
            }
            let raw = match decoder.decode(&bytes) {
                Ok((_, raw)) => raw,
                Err(error) => {
                    log::error!("block {key} of {}: {error}", self.generation.id());
                    self.parts_whole = false;
                    continue;
                }
            };
            self.sequence = head.first_sequence;
            self.block = Some(Block { raw, at: 0, index: key, end_index: head.end_index() });
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads on in the block at hand; `None`: it is used up.
    fn in_block(&mut self, next: u64, end_index: u64, sight: &Sight) -> Option<Found> {
        loop {
            let block = self.block.as_mut()?;
            if block.index >= end_index {
                return Some(Found::End);
            }
            let framed = if block.index < block.end_index { Framed::at(&block.raw, block.at) } else { None };
            let Some(framed) = framed else {
                self.block = None;
                return None;
            };
            let raw = block.raw.clone();
            (block.at, block.index) = (framed.next, block.index + 1);
            let sequence = self.sequence;
            self.sequence += u64::from(framed.counts());
            if let Some(found) = self.entry(framed, &raw, sequence, next, sight) {
                return Some(found);
            }
        }
    }

    /// One entry that has, or would have, this sequence.
    fn entry(&mut self, framed: Framed, raw: &Bytes, sequence: u64, next: u64, sight: &Sight) -> Option<Found> {
        if !matches!(framed.kind, Kind::Reading | Kind::Part) || sequence < next {
            self.parts.clear();
            self.parts_whole = false;
            return None;
        }
        let missing = |why: &str| Some(Found::Missing(sequence, why.to_owned()));
        if sequence > next {
            return Some(Found::Missing(sequence - 1, "entries are missing".to_owned()));
        }
        match framed.decode(raw) {
            Some(Entry::Reading(entry)) => Some(store(entry, next, sight)),
            Some(Entry::Part(part)) => {
                if framed.marks & SPLIT_BEGIN != 0 {
                    self.parts.clear();
                    self.parts_whole = true;
                }
                self.parts.extend_from_slice(&part);
                if !framed.counts() {
                    return None;
                }
                let whole = Bytes::from(std::mem::take(&mut self.parts));
                if !std::mem::take(&mut self.parts_whole) {
                    return missing("a part of a split record is missing");
                }
                match reading::get(Cursor::whole(&whole)) {
                    Some(entry) => Some(store(entry, next, sight)),
                    None => missing("a split record cannot be read"),
                }
            }
            _ => missing("an entry cannot be read"),
        }
    }
}
