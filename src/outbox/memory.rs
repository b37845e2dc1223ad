//! What the log says besides readings, held in memory: redelivery tables, open notes, segments, refusal counts. Rebuilt
//! from the newest complete snapshot and what follows it; every change is first an entry of the log.

use std::collections::HashMap;

use bytestring::ByteString;

use crate::outbox::Packet;
use crate::record::{Nonce, SourceId};

use super::entry::{Control, Refusal, Segment, TABLE_MARKS_MAX, Why, own};
use super::note::Notes;
use super::purge::Purges;
use super::reading::PacketMark;
use super::redelivery::{Known, Table};

/// Most segments; see [`Memory::add_segment`].
const SEGMENTS_MAX: usize = 256;
const SEGMENTS_OLDEST: usize = 128;
const SEGMENTS_NEWEST: usize = 64;

/// Owned by the writer; filled by recovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) tables: HashMap<SourceId, Table>,
    pub(super) notes: Notes,
    pub(super) purges: Purges,
    /// Oldest first.
    pub(super) segments: Vec<Segment>,
    /// By source and reason.
    pub(super) refusals: HashMap<(SourceId, Why), Refusal>,
    /// Whether a snapshot was read from its begin to its end.
    pub(super) complete: bool,
    /// The snapshot that is being read: it counts when its end is read.
    snapshot: Option<Box<Memory>>,
}

/// How to take a change back whose entry did not become durable.
#[derive(Debug)]
pub(super) enum Undo {
    Packet(SourceId, u16, Option<Known>),
    Cleared(SourceId, Table),
    Refused((SourceId, Why), Option<Refusal>),
}

impl Memory {
    /// Index of the arrival that `packet` repeats.
    pub(super) fn duplicate_of(&self, source: &SourceId, packet: &Packet) -> Option<u64> {
        self.tables.get(source)?.duplicate_of(packet)
    }

    /// Enters a packet whose arrival has its commit mark at `index`.
    pub(super) fn enter(&mut self, source: &SourceId, mark: PacketMark, index: u64) -> Undo {
        if !self.tables.contains_key(source) {
            self.tables.insert(SourceId(own(&source.0)), Table::default());
        }
        let table = self.tables.get_mut(source).expect("just made");
        Undo::Packet(source.clone(), mark.id, table.insert(mark, index))
    }

    /// Removes packets that are done.
    pub(super) fn release(&mut self, source: &SourceId, ids: &[u16], mut undo: impl FnMut(Undo)) {
        let Some(table) = self.tables.get_mut(source) else { return };
        for id in ids {
            if let Some(known) = table.remove(*id) {
                undo(Undo::Packet(source.clone(), *id, Some(known)));
            }
        }
    }

    /// Forgets the session of a source.
    pub(super) fn clear_session(&mut self, source: &SourceId) -> Option<Undo> {
        self.tables.remove(source).map(|table| Undo::Cleared(source.clone(), table))
    }

    /// Sets the refusal counts of a source.
    pub(super) fn set_refusal(&mut self, source: &SourceId, refusal: Refusal) -> Undo {
        let why = refusal.why;
        let before = self.refusals.insert((SourceId(own(&source.0)), why), refusal);
        Undo::Refused((source.clone(), why), before)
    }

    /// The segment of a sequence, if it is still known.
    pub(super) fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        self.segments.iter().rev().find(|segment| segment.first_sequence <= sequence)
    }

    /// Takes a change back. Changes are taken back newest first.
    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Packet(source, id, before) => self.tables.entry(source).or_default().restore(id, before),
            Undo::Cleared(source, table) => {
                self.tables.insert(source, table);
            }
            Undo::Refused(key, before) => {
                match before {
                    Some(refusal) => self.refusals.insert(key, refusal),
                    None => self.refusals.remove(&key),
                };
            }
        }
    }

    /// Replays an entry at opening. Entries of an arrival without its commit mark must not come here.
    pub(super) fn replay(&mut self, control: Control, index: u64) {
        match control {
            Control::SnapshotBegin => self.snapshot = Some(Box::default()),
            Control::SnapshotEnd => {
                if let Some(snapshot) = self.snapshot.take() {
                    *self = Self { complete: true, ..*snapshot };
                }
            }
            control => match &mut self.snapshot {
                Some(snapshot) => snapshot.apply(control, index),
                None => self.apply(control, index),
            },
        }
    }

    fn apply(&mut self, control: Control, index: u64) {
        match control {
            Control::Mark(source, mark) => {
                self.enter(&source, mark, index);
            }
            Control::Released(source, ids) => self.release(&source, &ids, |_| {}),
            Control::SessionCleared(source) => {
                self.clear_session(&source);
            }
            Control::Segment(segment) => self.add_segment(segment),
            Control::Refused(source, refusal) => {
                self.set_refusal(&source, refusal);
            }
            Control::Note(note) => self.notes.add(note),
            Control::Purged(purge) => self.purges.add(purge),
            Control::Table(source, marks) => marks.into_iter().for_each(|mark| {
                self.enter(&source, mark, index);
            }),
            Control::SnapshotBegin | Control::SnapshotEnd => {}
        }
    }

    /// Entries are missing here: a snapshot under way is not complete. What was read of it adds to what older
    /// generations say, which is the same if they are whole.
    pub(super) fn broken(&mut self) {
        let Some(part) = self.snapshot.take() else { return };
        for (source, table) in part.tables {
            self.tables.entry(source).or_default().extend(table);
        }
        part.notes.iter().for_each(|note| self.notes.add(note.clone()));
        part.purges.iter().for_each(|purge| self.purges.add(purge.clone()));
        part.segments.into_iter().for_each(|segment| self.add_segment(segment));
        self.refusals.extend(part.refusals);
    }

    /// Adds a segment, once.
    pub(super) fn add_segment(&mut self, segment: Segment) {
        let merged = segment.nonce == Nonce::default();
        if merged || self.segments.iter().all(|known| known.nonce != segment.nonce) {
            // A start that appended no reading leaves nothing to say.
            self.segments.retain(|known| known.first_sequence != segment.first_sequence);
            self.segments.push(segment);
            self.bound_segments();
        }
    }

    /// A daemon that starts over and over while nothing is delivered adds a segment at each start. Beyond a bound, those
    /// in the middle become one: its nonce is unknown (zero), so nothing is concluded from it. The oldest stay, for the
    /// ledger may name them, and the newest, for they are in use. Segments of different incarnations never merge; a new
    /// incarnation takes damage.
    fn bound_segments(&mut self) {
        if self.segments.len() <= SEGMENTS_MAX {
            return;
        }
        let middle = SEGMENTS_OLDEST..self.segments.len() - SEGMENTS_NEWEST;
        let mut pairs = self.segments[middle].windows(2);
        let Some(at) = pairs.position(|pair| pair[0].incarnation == pair[1].incarnation) else { return };
        let gone = self.segments.remove(SEGMENTS_OLDEST + at + 1);
        let merged = &mut self.segments[SEGMENTS_OLDEST + at];
        merged.nonce = Nonce::default();
        if merged.boot_id != gone.boot_id {
            merged.boot_id = ByteString::new();
        }
    }

    /// What no undelivered sequence and no kept generation needs may go. `committed` must be durable in `pos`;
    /// `kept_from` is the first sequence of the oldest generation: a replay must not bring back what was given up in it.
    pub(super) fn forget_through(&mut self, committed: u64, kept_from: u64) {
        let over = committed.min(kept_from.saturating_sub(1));
        self.notes.forget_through(over);
        self.purges.forget_through(over);
        let over = self.segments.windows(2).take_while(|pair| pair[1].first_sequence <= committed + 1).count();
        self.segments.drain(..over);
    }

    /// Everything, as the entries of a snapshot.
    pub(super) fn snapshot(&self) -> Vec<Control> {
        let mut entries = vec![Control::SnapshotBegin];
        entries.extend(self.segments.iter().cloned().map(Control::Segment));
        entries.extend(self.notes.iter().cloned().map(Control::Note));
        entries.extend(self.purges.iter().cloned().map(Control::Purged));
        entries.extend(
            self.refusals.iter().map(|((source, _), refusal)| Control::Refused(source.clone(), refusal.clone())),
        );
        for (source, table) in self.tables.iter().filter(|(_, table)| !table.is_empty()) {
            let marks = table.marks();
            entries.extend(marks.chunks(TABLE_MARKS_MAX).map(|part| Control::Table(source.clone(), part.to_vec())));
        }
        entries.push(Control::SnapshotEnd);
        entries
    }

    /// Readings refused or named by open notes of the policies.
    pub(super) fn refused_total(&self) -> u64 {
        self.refusals.values().map(|refusal| refusal.total).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Incarnation;

    /// Segment of start `n`, which appended one reading.
    fn segment(n: u64, incarnation: u8) -> Segment {
        let nonce = Nonce((n + 1).to_be_bytes());
        let incarnation = Incarnation([incarnation; 16]);
        let number = u64::from(incarnation.0[0]);
        Segment {
            first_index: 2 * n + 1,
            first_sequence: n + 1,
            incarnation_number: number,
            incarnation,
            nonce,
            boot_id: "boot".into(),
        }
    }

    #[test]
    fn ten_thousand_starts_that_deliver_nothing_keep_the_snapshot_small() {
        let mut memory = Memory::default();
        let life = |n: u64| if n < 6000 { 1 } else { 2 };
        for n in 0..10_000 {
            memory.add_segment(segment(n, life(n)));
            if n % 500 == 0 {
                // What is read back from a snapshot is the same.
                let mut again = Memory::default();
                memory.snapshot().into_iter().for_each(|control| again.replay(control, 1));
                assert_eq!(again.segments, memory.segments);
            }
        }
        assert!(memory.segments.len() <= SEGMENTS_MAX, "{}", memory.segments.len());
        assert!(memory.segments.windows(2).all(|pair| pair[0].first_sequence < pair[1].first_sequence));
        let of = |sequence: u64| {
            let at = memory.segments.partition_point(|segment| segment.first_sequence <= sequence);
            memory.segments[at - 1].clone()
        };
        for n in 0..10_000 {
            let found = of(n + 1);
            assert_eq!(found.incarnation, segment(n, life(n)).incarnation, "start {n}");
            let known = found.nonce == segment(n, 1).nonce;
            assert!(known || found.nonce == Nonce::default(), "start {n} has the nonce of another");
            assert!(known || (SEGMENTS_OLDEST as u64..10_000 - SEGMENTS_NEWEST as u64).contains(&n), "start {n}");
        }
    }

    #[test]
    fn starts_that_append_nothing_leave_no_segment() {
        let mut memory = Memory::default();
        for n in 0..10_000 {
            memory.add_segment(Segment { first_sequence: 7, ..segment(n, 1) });
        }
        assert_eq!(memory.segments.len(), 1);
        assert_eq!(memory.segments[0].nonce, segment(9_999, 1).nonce);
    }
}
