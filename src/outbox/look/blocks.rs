//! The blocks of one generation: what each is, whether it is what it says, and which segments they name.

use bytes::Bytes;

use super::super::block::{Decoder, Head};
use super::super::entry::{Control, Entry, FIRST, Framed, Kind, LAST, SPLIT_BEGIN, Segment};
use super::super::generation::{Generation, StoreError};
use super::super::reading;
use super::super::wire::Cursor;

/// What is wrong with a part of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Sequences it concerns, inclusive, where known.
    pub(super) range: Option<(u64, u64)>,
    pub(super) what: String,
}

/// What a check found.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) blocks: u64,
    pub(super) entries: u64,
    pub(super) readings: u64,
    pub(super) flaws: Vec<Flaw>,
}

/// More than this is not listed one by one.
const FLAWS_MAX: usize = 100;

/// Segments that a generation names. What cannot be read is told by whoever reads the readings.
pub(super) fn segments_in(generation: &Generation) -> Vec<Segment> {
    let mut found: Vec<Segment> = Vec::new();
    let mut decoder = Decoder::default();
    let mut at = generation.id().first_index;
    while let Ok(Some((key, block))) = generation.block_from(at) {
        at = key + 1;
        let Ok((_, raw)) = decoder.decode(&block) else { continue };
        collect_segments(&raw, &mut found);
    }
    found
}

/// Adds the segments in a block that are not known yet.
pub(super) fn collect_segments(raw: &Bytes, found: &mut Vec<Segment>) {
    let mut offset = 0;
    while let Some(framed) = Framed::at(raw, offset) {
        offset = framed.next;
        if framed.kind != Kind::Segment {
            continue;
        }
        if let Some(Entry::Control(Control::Segment(segment))) = framed.decode(raw) {
            if !found.contains(&segment) {
                found.push(segment);
            }
        }
    }
}

/// Checks every block below `limit`: checksum, place, contents, no holes between them, whole arrivals.
pub(super) fn check(generation: &Generation, limit: u64) -> Result<Checked, StoreError> {
    let mut checker = Checker {
        checked: Checked::default(),
        index: generation.id().first_index,
        sequence: None,
        broken: None,
        arrival_open: false,
        parts: Vec::new(),
        limit,
    };
    let mut decoder = Decoder::default();
    let mut at = generation.id().first_index;
    while let Some((key, bytes)) = generation.block_from(at)? {
        if key >= limit {
            break;
        }
        at = key.saturating_add(1);
        match decoder.decode(&bytes) {
            Ok((head, _)) if head.first_index != key => {
                checker.broken(format!("block {key} stands under another key: it says {}", head.first_index));
            }
            Ok((head, raw)) => {
                checker.block(head, &raw);
                at = at.max(head.end_index());
            }
            Err(error) => checker.broken(format!("block {key}: {error}")),
        }
    }
    checker.end();
    Ok(checker.checked)
}

struct Checker {
    checked: Checked,
    /// What comes next.
    index: u64,
    sequence: Option<u64>,
    /// Something was wrong before here, and what.
    broken: Option<String>,
    arrival_open: bool,
    parts: Vec<u8>,
    limit: u64,
}

impl Checker {
    fn broken(&mut self, what: String) {
        self.broken.get_or_insert(what);
        self.arrival_open = false;
        self.parts.clear();
    }

    fn flaw(&mut self, range: Option<(u64, u64)>, what: String) {
        if self.checked.flaws.len() < FLAWS_MAX {
            self.checked.flaws.push(Flaw { range, what });
        }
    }

    fn block(&mut self, head: Head, raw: &Bytes) {
        let expected = self.sequence.unwrap_or(head.first_sequence);
        if head.first_index != self.index || head.first_sequence != expected || self.broken.is_some() {
            let missing = format!("entries {} to {} are missing", self.index, head.first_index.saturating_sub(1));
            let what = self.broken.take().unwrap_or(missing);
            let range = (expected < head.first_sequence).then(|| (expected, head.first_sequence - 1));
            self.flaw(range, what);
            self.arrival_open = false;
            self.parts.clear();
            // An arrival that began in what is missing goes on here.
            self.arrival_open |= Framed::at(raw, 0).is_some_and(|framed| framed.marks & FIRST == 0);
        }
        self.checked.blocks += 1;
        (self.index, self.sequence) = (head.first_index, Some(head.first_sequence));
        let mut offset = 0;
        let mut entries = 0;
        while offset < raw.len() {
            let Some(framed) = Framed::at(raw, offset) else { break };
            self.entry(framed, raw);
            offset = framed.next;
            entries += 1;
        }
        let sequence = self.sequence.unwrap_or(head.first_sequence);
        if offset != raw.len() || entries != head.entries || sequence != head.end_sequence() {
            let range =
                (head.first_sequence < head.end_sequence()).then(|| (head.first_sequence, head.end_sequence() - 1));
            let what = format!("block {} does not hold the {} entries it says", head.first_index, head.entries);
            self.flaw(range, what);
        }
        (self.index, self.sequence) = (head.end_index(), Some(head.end_sequence()));
    }

    fn entry(&mut self, framed: Framed, raw: &Bytes) {
        let (index, sequence) = (self.index, self.sequence.unwrap_or(0));
        self.index += 1;
        self.sequence = Some(sequence + u64::from(framed.counts()));
        // What follows the last whole arrival does not exist.
        if index >= self.limit {
            return;
        }
        self.checked.entries += 1;
        let range = framed.counts().then_some((sequence, sequence));
        let first = framed.marks & FIRST != 0;
        if first == self.arrival_open {
            let what = if first { "begins before the one before it ended" } else { "has no beginning" };
            self.flaw(range, format!("the arrival at entry {index} {what}"));
        }
        self.arrival_open = framed.marks & LAST == 0;
        let good = match framed.decode(raw) {
            Some(Entry::Part(part)) => {
                if framed.marks & SPLIT_BEGIN != 0 {
                    self.parts.clear();
                }
                self.parts.extend_from_slice(&part);
                !framed.counts() || {
                    let whole = Bytes::from(std::mem::take(&mut self.parts));
                    reading::get(Cursor::whole(&whole)).is_some()
                }
            }
            Some(_) => true,
            None => false,
        };
        self.checked.readings += u64::from(framed.counts());
        if !good {
            self.flaw(range, format!("entry {index} ({:?}) cannot be read", framed.kind));
        }
    }

    fn end(&mut self) {
        if let Some(what) = self.broken.take() {
            self.flaw(self.sequence.map(|from| (from, from)), format!("{what}, and what follows"));
        }
        if self.arrival_open && self.index <= self.limit && self.limit != u64::MAX {
            self.flaw(None, "the last arrival has no end".to_owned());
        }
        if self.checked.blocks == 0 {
            self.flaw(None, "no readable block".to_owned());
        }
    }
}
