//! What is written and not yet durable, and how to take it back.

use std::collections::VecDeque;

use crate::outbox::Outcome;
use crate::record::SourceId;

use super::super::entry::Why;
use super::super::memory::{Memory, Undo};
use super::queue::Work;

/// In place of an index, while the entry that counts a refusal is not written.
pub(super) const UNSETTLED: u64 = u64::MAX;

/// Something written and not yet durable.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) work: Work,
    /// Index of its commit mark; [`UNSETTLED`] while its refusal is not written.
    pub(super) through: u64,
    /// Sequence after it.
    pub(super) sequence_after: u64,
    pub(super) outcome: Outcome,
}

/// All that is under way, in order of writing.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flying: VecDeque<Flight>,
    undo: Vec<(u64, Undo)>,
    /// Sources with refusals that are not yet in the log.
    unsettled: Vec<(SourceId, Why)>,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.flying.is_empty()
    }

    pub(super) fn push(&mut self, flight: Flight) {
        self.flying.push_back(flight);
    }

    /// How to take back what the entry at `index` did.
    pub(super) fn push_undo(&mut self, index: u64, undo: Undo) {
        self.undo.push((index, undo));
    }

    /// A refusal of this source, to be settled with the group.
    pub(super) fn push_refusal(&mut self, key: &(SourceId, Why), undo: Undo) {
        self.undo.push((UNSETTLED, undo));
        if !self.unsettled.contains(key) {
            self.unsettled.push(key.clone());
        }
    }

    /// Sources whose refusals must be written now.
    pub(super) fn take_unsettled(&mut self) -> Vec<(SourceId, Why)> {
        std::mem::take(&mut self.unsettled)
    }

    /// The refusals stand in the log through this index. Their undo belongs to the entries that count them.
    pub(super) fn settle(&mut self, through: u64) {
        for flight in self.flying.iter_mut().filter(|flight| flight.through == UNSETTLED) {
            flight.through = through;
        }
        self.undo.iter_mut().filter(|(index, _)| *index == UNSETTLED).for_each(|(index, _)| *index = through);
    }

    /// Index and sequence-after of the whole arrivals below `end`, if there is one.
    pub(super) fn whole_below(&self, end: u64) -> Option<(u64, u64)> {
        let whole = self.flying.iter().take_while(|flight| flight.through < end);
        // A redelivery at the end of the group names an entry before it.
        whole.fold(None, |reached, flight| {
            let through = reached.map_or(flight.through, |(through, _)| flight.through.max(through));
            Some((through, flight.sequence_after))
        })
    }

    /// Through here nothing is taken back any more.
    pub(super) fn forget_undo_through(&mut self, through: u64) {
        self.undo.retain(|(index, _)| *index > through);
    }

    /// The next one that is durable.
    pub(super) fn pop_through(&mut self, through: u64) -> Option<Flight> {
        if self.flying.front()?.through <= through { self.flying.pop_front() } else { None }
    }

    /// Undoes everything; the works come back, the last written first.
    pub(super) fn take_back(&mut self, memory: &mut Memory) -> impl Iterator<Item = Work> + use<'_> {
        while let Some((_, undo)) = self.undo.pop() {
            memory.undo(undo);
        }
        self.unsettled.clear();
        self.flying.drain(..).rev().map(|flight| flight.work)
    }
}
