//! A place in one generation: reads on from sequence to sequence, block by block, and says what is missing. Decides
//! nothing: what becomes of a hole is up to whoever reads.

use std::sync::Arc;

use bytes::Bytes;

use crate::record::{Sequence, Stored};

use super::super::block::{self, BlockError, Decoder};
use super::super::entry::{Entry, Framed, Kind, SPLIT_BEGIN, Segment, unknown_kind};
use super::super::generation::{Generation, StoreError};
use super::super::note::Notes;
use super::super::purge::Purges;
use super::super::reading::{self, ReadingEntry};
use super::super::wire::Cursor;

/// A place in a generation.
#[derive(Debug)]
pub(in crate::outbox) struct Place {
    pub(super) generation: Arc<Generation>,
    /// Index of the next block to fetch.
    next_block: u64,
    block: Option<Block>,
    /// Sequence of the next counting entry.
    pub(super) sequence: u64,
    /// Segments that this generation itself names: those of delivered readings are forgotten elsewhere.
    segments: Vec<Segment>,
    parts: Parts,
}

/// A split reading, as far as it was read.
#[derive(Debug, Default)]
struct Parts {
    bytes: Vec<u8>,
    /// From its first part on, without a gap.
    whole: bool,
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
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every one is a reading")]
pub(in crate::outbox) enum Found {
    Reading(Stored),
    /// Nothing up to here, inclusive; why.
    Missing(u64, String),
    /// The generation ends before it.
    End,
}

/// The log, as one batch sees it.
#[derive(Debug)]
pub(in crate::outbox) struct Sight {
    pub(in crate::outbox) durable_index: u64,
    pub(in crate::outbox) durable_sequence: u64,
    pub(in crate::outbox) notes: Arc<Notes>,
    pub(in crate::outbox) purges: Arc<Purges>,
    pub(in crate::outbox) segments: Arc<[Segment]>,
}

impl Sight {
    pub(in crate::outbox) fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        let at = self.segments.partition_point(|segment| segment.first_sequence <= sequence);
        self.segments.get(at.saturating_sub(1))
    }
}

fn store(entry: ReadingEntry, sequence: u64, sight: &Sight, own: &[Segment]) -> Found {
    let own = own.iter().rev().find(|segment| segment.first_sequence <= sequence);
    let newest = |segment: &&Segment| (segment.first_sequence <= sequence, segment.first_index);
    let segment = own.into_iter().chain(sight.segment_of(sequence)).max_by_key(newest);
    let Some(segment) = segment else {
        return Found::Missing(sequence, "no segment says whose sequence it is".to_owned());
    };
    Found::Reading(Stored {
        sequence: Sequence(sequence),
        incarnation: segment.incarnation,
        segment: segment.nonce,
        boot_id: segment.boot_id.clone(),
        source: entry.source,
        reading: entry.reading,
    })
}

impl Place {
    pub(in crate::outbox) fn start(generation: Arc<Generation>, segments: Vec<Segment>) -> Self {
        let next_block = generation.id().first_index;
        Self { generation, next_block, block: None, sequence: 0, segments, parts: Parts::default() }
    }

    /// Back to the start of the generation, to find an earlier sequence.
    pub(super) fn rewind(&mut self) {
        *self = Self::start(self.generation.clone(), std::mem::take(&mut self.segments));
    }

    /// What stands at `next`, below `end_index`. `sequence <= next` on entry.
    pub(in crate::outbox) fn find(
        &mut self,
        next: u64,
        end_index: u64,
        sight: &Sight,
        decoder: &mut Decoder,
    ) -> Result<Found, StoreError> {
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
            let head = match block::check(&bytes) {
                Ok(head) if head.first_index == key => head,
                Ok(_) => {
                    log::error!("block {key} of {} stands under another key", self.generation.id());
                    self.next_block = key + 1;
                    continue;
                }
                Err(error @ BlockError::Unknown(_)) => return Err(StoreError::Later(format!("{error} ({key})"))),
                Err(error) => {
                    log::error!("block {key} of {}: {error}", self.generation.id());
                    self.next_block = key + 1;
                    self.parts.whole = false;
                    continue;
                }
            };
            if head.first_index != self.next_block {
                self.parts.whole = false;
            }
            self.next_block = head.end_index().max(key + 1);
            if head.end_sequence() < next {
                continue;
            }
            let raw = match decoder.unpack(&bytes) {
                Ok(raw) => raw,
                Err(error) => {
                    log::error!("block {key} of {}: {error}", self.generation.id());
                    self.parts.whole = false;
                    continue;
                }
            };
            if let Some(kind) = unknown_kind(&raw) {
                return Err(StoreError::Later(format!("block {key} holds an entry of kind {kind}")));
            }
            self.sequence = head.first_sequence;
            self.block = Some(Block { raw, at: 0, index: key, end_index: head.end_index() });
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads on in the block at hand; `None`: it is used up.
    fn in_block(&mut self, next: u64, end_index: u64, sight: &Sight) -> Option<Found> {
        let block = self.block.as_mut()?;
        while block.index < block.end_index {
            if block.index >= end_index {
                return Some(Found::End);
            }
            let Some(framed) = Framed::at(&block.raw, block.at) else { break };
            (block.at, block.index) = (framed.next, block.index + 1);
            let sequence = self.sequence;
            self.sequence += u64::from(framed.counts());
            if let Some(found) = self.parts.entry(framed, &block.raw, sequence, next, (sight, &self.segments)) {
                return Some(found);
            }
        }
        self.block = None;
        None
    }
}

impl Parts {
    /// What one entry that has, or would have, this sequence comes to; `None`: nothing that was asked for, or not yet.
    fn entry(
        &mut self,
        framed: Framed,
        raw: &Bytes,
        sequence: u64,
        next: u64,
        (sight, own): (&Sight, &[Segment]),
    ) -> Option<Found> {
        if !matches!(framed.kind, Kind::Reading | Kind::Part) || sequence < next {
            self.bytes.clear();
            self.whole = false;
            return None;
        }
        let missing = |why: &str| Some(Found::Missing(sequence, why.to_owned()));
        if sequence > next {
            return Some(Found::Missing(sequence - 1, "entries are missing".to_owned()));
        }
        match framed.decode(raw) {
            Some(Entry::Reading(entry)) => Some(store(entry, next, sight, own)),
            Some(Entry::Part(part)) => {
                if framed.marks & SPLIT_BEGIN != 0 {
                    self.bytes.clear();
                    self.whole = true;
                }
                self.bytes.extend_from_slice(&part);
                if !framed.counts() {
                    return None;
                }
                let whole = Bytes::from(std::mem::take(&mut self.bytes));
                if !std::mem::take(&mut self.whole) {
                    return missing("a part of a split record is missing");
                }
                match reading::get(Cursor::whole(&whole)) {
                    Some(entry) => Some(store(entry, next, sight, own)),
                    None => missing("a split record cannot be read"),
                }
            }
            _ => missing("an entry cannot be read"),
        }
    }
}
