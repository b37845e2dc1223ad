//! Purged sources: the owner gave up the readings of one source in a range of sequences, whose neighbours are wanted.
//!
//! A note names a contiguous range; a source's readings stand among others', and a note for each would overrun the
//! snapshots. So one entry says "of this source, from here to there", and whoever reads the log makes a hole of each
//! reading it meets. Durable before anything is told as purged, repeated in every snapshot as long as a generation that
//! it reaches into is kept.

use bytestring::ByteString;

use crate::record::{Hole, Kind, Nonce, ReceiptTime, SourceId, Stored};

use super::entry::{own, put_time};
use super::wire::{Cursor, put_text};

/// The reason in gap records, logs and metrics.
pub(super) const REASON: &str = "purge";

/// Entries kept at once; each costs some hundred bytes in every snapshot.
pub(super) const PURGES_MAX: usize = 256;

/// The readings of one source in a range of sequences, inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Purge {
    pub(super) source: SourceId,
    pub(super) from: u64,
    pub(super) to: u64,
    /// Who gave them up, and when.
    pub(super) segment: Nonce,
    pub(super) boot_id: ByteString,
    pub(super) noted: ReceiptTime,
}

impl Purge {
    /// Whether it names this reading. What a source says of its own losses stays: purging it would hide them.
    pub(super) fn names(&self, sequence: u64, source: &SourceId, kind: Kind) -> bool {
        self.from <= sequence && sequence <= self.to && self.source == *source && kind != Kind::Gap
    }

    /// What the drain gets instead of a reading.
    pub(super) fn hole(&self, stored: &Stored) -> Hole {
        Hole {
            from: stored.sequence,
            to: stored.sequence,
            ranges: Vec::new(),
            incarnation: stored.incarnation,
            segment: self.segment,
            boot_id: self.boot_id.clone(),
            noted: self.noted,
            reason: ByteString::from_static(REASON),
            bytes: stored.reading.record_bytes() as u64,
            sources: vec![(self.source.clone(), 1)],
            previous: None,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        out.extend_from_slice(&self.segment.0);
        put_text(out, &self.boot_id);
        put_time(out, self.noted);
        put_text(out, self.source.as_str());
    }

    pub(super) fn get(cursor: &mut Cursor<'_>) -> Option<Self> {
        let (from, to) = (cursor.u64()?, cursor.u64()?);
        let segment = Nonce(cursor.array()?);
        let boot_id = own(&cursor.text()?);
        let noted = ReceiptTime { wall_ns: cursor.i64()?, mono_ns: cursor.u64()? };
        let source = SourceId(own(&cursor.text()?));
        (from <= to).then_some(Self { source, from, to, segment, boot_id, noted })
    }

    /// Whether both name one range of one source, or two that touch.
    fn touches(&self, other: &Self) -> bool {
        let reach = |a: &Self, b: &Self| a.from <= b.to.saturating_add(1);
        self.source == other.source && reach(self, other) && reach(other, self)
    }
}

/// All that are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Purges(Vec<Purge>);

impl Purges {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Purge> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one; those of the same source that touch it become one with it.
    pub(super) fn add(&mut self, mut purge: Purge) {
        self.0.retain(|known| {
            let one = known.touches(&purge);
            if one {
                purge.from = purge.from.min(known.from);
                purge.to = purge.to.max(known.to);
            }
            !one
        });
        self.0.push(purge);
    }

    /// The one that names this reading.
    pub(super) fn naming(&self, sequence: u64, source: &SourceId, kind: Kind) -> Option<&Purge> {
        self.0.iter().find(|purge| purge.names(sequence, source, kind))
    }

    /// Whether any reaches into this range.
    pub(super) fn touch(&self, from: u64, to: u64) -> bool {
        self.0.iter().any(|purge| purge.from <= to && from <= purge.to)
    }

    /// Forgets those that no kept generation reaches any more.
    pub(super) fn forget_through(&mut self, sequence: u64) {
        self.0.retain(|purge| purge.to > sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(source: &str, from: u64, to: u64) -> Purge {
        let (segment, noted) = (Nonce([1; 8]), ReceiptTime { wall_ns: 5, mono_ns: 6 });
        Purge { source: source.into(), from, to, segment, boot_id: "boot".into(), noted }
    }

    #[test]
    fn ranges_of_one_source_that_touch_become_one() {
        let mut purges = Purges::default();
        for (source, from, to) in [("a", 1, 10), ("b", 5, 30), ("a", 21, 30), ("a", 11, 20), ("a", 40, 50)] {
            purges.add(purge(source, from, to));
        }
        let mut all: Vec<_> =
            purges.iter().map(|purge| (purge.source.as_str().to_owned(), purge.from, purge.to)).collect();
        all.sort();
        assert_eq!(all, [("a", 1, 30), ("a", 40, 50), ("b", 5, 30)].map(|(s, f, t)| (s.to_owned(), f, t)));
        purges.forget_through(39);
        assert_eq!(purges.len(), 1);
    }

    #[test]
    fn it_names_readings_of_its_source_only_and_no_gap_record() {
        let mut purges = Purges::default();
        purges.add(purge("a", 5, 10));
        let named = |sequence, source: &str, kind| purges.naming(sequence, &source.into(), kind).is_some();
        assert!(named(5, "a", Kind::Raw) && named(10, "a", Kind::Reading));
        assert!(!named(4, "a", Kind::Raw) && !named(11, "a", Kind::Raw) && !named(7, "b", Kind::Raw));
        assert!(!named(7, "a", Kind::Gap));
        assert!(purges.touch(1, 5) && purges.touch(10, 12) && !purges.touch(1, 4) && !purges.touch(11, 12));
    }

    #[test]
    fn it_comes_back_from_its_bytes() {
        let mut bytes = Vec::new();
        purge("plant", 3, 9).put(&mut bytes);
        let whole = bytes::Bytes::from(bytes);
        assert_eq!(Purge::get(&mut Cursor::whole(&whole)), Some(purge("plant", 3, 9)));
        for cut in 0..whole.len() - 5 {
            let short = whole.slice(..cut);
            assert_eq!(Purge::get(&mut Cursor::whole(&short)), None, "{cut}");
        }
    }
}
