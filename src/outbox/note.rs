//! Notes: what was removed from the log, or never came to be, and why. A note is durable before anything is removed and
//! is repeated in every snapshot until the drain has passed its range. A note wins: sequences it names are not read.

use bytestring::ByteString;

use crate::record::{Hole, Incarnation, Nonce, ReceiptTime, Sequence, SourceId};

use super::entry::{ENTRY_HEAD_BYTES, own, put_time};
use super::wire::{Cursor, put_text};

/// Most sources a note counts one by one; it must fit one block. The rest is in none of the counts.
const NOTE_SOURCES_MAX: usize = 64;
/// Longest source name a note keeps.
const NOTE_SOURCE_BYTES_MAX: usize = 64;

/// A range of sequences that will not be delivered. Bounds are inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) incarnation: Incarnation,
    pub(super) segment: Nonce,
    pub(super) boot_id: ByteString,
    pub(super) noted: ReceiptTime,
    pub(super) reason: ByteString,
    /// Record bytes removed, 0 if unknown.
    pub(super) bytes: u64,
    /// Readings per source, where known.
    pub(super) sources: Vec<(SourceId, u64)>,
    /// For `new_incarnation`: the one before.
    pub(super) previous: Option<Incarnation>,
}

impl Note {
    pub(super) fn covers(&self, sequence: u64) -> bool {
        self.from <= sequence && sequence <= self.to
    }

    /// What the drain gets, from `from` on.
    pub(super) fn hole(&self, from: u64) -> Hole {
        // Of a part nobody knows how much it held; the part before it told all.
        let whole = from <= self.from;
        Hole {
            from: Sequence(from.max(self.from)),
            to: Sequence(self.to),
            ranges: Vec::new(),
            incarnation: self.incarnation,
            segment: self.segment,
            boot_id: self.boot_id.clone(),
            noted: self.noted,
            reason: self.reason.clone(),
            bytes: if whole { self.bytes } else { 0 },
            sources: if whole { self.sources.clone() } else { Vec::new() },
            previous: self.previous,
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.from.to_le_bytes());
        out.extend_from_slice(&self.to.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0);
        out.extend_from_slice(&self.segment.0);
        put_text(out, &self.boot_id);
        put_time(out, self.noted);
        put_text(out, &self.reason);
        out.extend_from_slice(&self.bytes.to_le_bytes());
        match self.previous {
            Some(previous) => {
                out.push(1);
                out.extend_from_slice(&previous.0);
            }
            None => out.push(0),
        }
        let named = self.sources.iter().filter(|(source, _)| source.as_str().len() <= NOTE_SOURCE_BYTES_MAX);
        for (source, count) in named.take(NOTE_SOURCES_MAX) {
            put_text(out, source.as_str());
            out.extend_from_slice(&count.to_le_bytes());
        }
    }

    /// Bytes it takes in every snapshot.
    pub(super) fn encoded_bytes(&self) -> u64 {
        let mut out = Vec::new();
        self.put(&mut out);
        (ENTRY_HEAD_BYTES + out.len()) as u64
    }

    pub(super) fn get(cursor: &mut Cursor<'_>) -> Option<Self> {
        let mut note = Self {
            from: cursor.number()?,
            to: cursor.number()?,
            incarnation: Incarnation(cursor.array()?),
            segment: Nonce(cursor.array()?),
            boot_id: own(&cursor.text()?),
            noted: ReceiptTime { wall_ns: cursor.i64()?, mono_ns: cursor.u64()? },
            reason: own(&cursor.text()?),
            bytes: cursor.number()?,
            sources: Vec::new(),
            previous: None,
        };
        if cursor.u8()? != 0 {
            note.previous = Some(Incarnation(cursor.array()?));
        }
        while !cursor.is_empty() {
            note.sources.push((SourceId(own(&cursor.text()?)), cursor.number()?));
        }
        (note.from <= note.to).then_some(note)
    }
}

/// All open notes, in order, without overlap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Notes(Vec<Note>);

impl Notes {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Note> {
        self.0.iter()
    }

    pub(super) fn covering(&self, sequence: u64) -> Option<&Note> {
        let at = self.0.partition_point(|note| note.to < sequence);
        self.0.get(at).filter(|note| note.covers(sequence))
    }

    /// Adds a note. What others name already stays theirs; neighbours with one reason and life merge.
    pub(super) fn add(&mut self, note: Note) {
        self.add_beyond(0, note);
    }

    /// The same, but nothing merges into a note that begins at or below `told`: the drain has told it, and would tell its
    /// counts again.
    pub(super) fn add_beyond(&mut self, told: u64, note: Note) {
        for (from, to) in self.uncovered(note.from, note.to) {
            let at = self.0.partition_point(|other| other.to < from);
            self.0.insert(at, Note { from, to, ..note.clone() });
            self.merge_at(at + 1, told);
            self.merge_at(at, told);
        }
    }

    /// The parts of a range that no note names yet, inclusive.
    pub(super) fn uncovered(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut open = Vec::new();
        let mut at = from;
        for note in self.0.iter().filter(|note| note.to >= from && note.from <= to) {
            if at < note.from {
                open.push((at, note.from - 1));
            }
            at = note.to + 1;
        }
        if at <= to {
            open.push((at, to));
        }
        open
    }

    /// Merges the note at `at` into the one before it, if they tell the same.
    fn merge_at(&mut self, at: usize, told: u64) {
        if at == 0 || at >= self.0.len() {
            return;
        }
        let (left, right) = (&self.0[at - 1], &self.0[at]);
        let same = left.to + 1 == right.from
            && left.from > told
            && left.reason == right.reason
            && left.incarnation == right.incarnation
            && left.previous == right.previous;
        if !same {
            return;
        }
        let right = self.0.remove(at);
        let left = &mut self.0[at - 1];
        left.to = right.to;
        left.bytes += right.bytes;
        (left.segment, left.boot_id, left.noted) = (right.segment, right.boot_id, right.noted);
        for (source, count) in right.sources {
            match left.sources.iter_mut().find(|(known, _)| *known == source) {
                Some((_, total)) => *total += count,
                None => left.sources.push((source, count)),
            }
        }
    }

    /// Forgets what the drain has passed for certain.
    pub(super) fn forget_through(&mut self, sequence: u64) {
        self.0.retain(|note| note.to > sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(from: u64, to: u64, reason: &'static str) -> Note {
        Note {
            from,
            to,
            incarnation: Incarnation([1; 16]),
            segment: Nonce([2; 8]),
            boot_id: "boot".into(),
            noted: ReceiptTime::default(),
            reason: reason.into(),
            bytes: 10,
            sources: vec![("a".into(), to - from + 1)],
            previous: None,
        }
    }

    fn ranges(notes: &Notes) -> Vec<(u64, u64, String)> {
        notes.iter().map(|n| (n.from, n.to, n.reason.to_string())).collect()
    }

    #[test]
    fn neighbours_with_one_reason_merge_and_their_counts_add_up() {
        let mut notes = Notes::default();
        notes.add(note(1, 10, "drop_oldest"));
        notes.add(note(21, 30, "drop_oldest"));
        notes.add(note(11, 20, "drop_oldest"));
        assert_eq!(ranges(&notes), [(1, 30, "drop_oldest".to_owned())]);
        assert_eq!(notes.covering(30).expect("covered").sources, [("a".into(), 30)]);
        notes.add(note(31, 40, "damage"));
        assert_eq!(ranges(&notes).len(), 2);
        assert!(notes.covering(41).is_none());
    }

    #[test]
    fn what_was_told_is_not_counted_again() {
        let mut notes = Notes::default();
        notes.add_beyond(0, note(1, 10, "purge"));
        notes.add_beyond(0, note(11, 20, "purge"));
        // The drain has told the first twenty, and pos is not synced yet.
        notes.add_beyond(20, note(21, 30, "purge"));
        notes.add_beyond(20, note(31, 40, "purge"));
        let want = [(1, 20, "purge"), (21, 40, "purge")];
        assert_eq!(ranges(&notes), want.map(|(a, b, r)| (a, b, r.to_owned())));
        let hole = notes.covering(21).expect("covered").hole(21);
        assert_eq!((hole.bytes, hole.sources), (20, vec![("a".into(), 20)]));
        // Merged all the same, as after a restart: what the rest held is not known.
        let rest = notes.covering(21).expect("covered").hole(25);
        assert_eq!((rest.bytes, rest.sources), (0, vec![]));
    }

    #[test]
    fn the_first_note_of_a_sequence_stays() {
        let mut notes = Notes::default();
        notes.add(note(5, 6, "damage"));
        notes.add(note(1, 10, "drop_oldest"));
        let want = [(1, 4, "drop_oldest"), (5, 6, "damage"), (7, 10, "drop_oldest")];
        assert_eq!(ranges(&notes), want.map(|(a, b, r)| (a, b, r.to_owned())));
        notes.forget_through(6);
        assert_eq!(ranges(&notes), [(7, 10, "drop_oldest".to_owned())]);
    }
}
