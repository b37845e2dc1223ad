//! What is lost or removed: ranges that were set aside are noted, ranges that are noted are removed.

use crate::outbox::OpenError;

use super::super::entry::Segment;
use super::super::memory::Memory;
use super::super::note::Note;
use super::super::state::{Life, StateFile};
use super::life::Ends;
use super::{Closed, Continued, Recovery, io_error, note};

/// Notes readings that are gone, and says and counts what no note named before.
pub(super) fn lose(memory: &mut Memory, note: Note, what: &str, lost: &mut u64) {
    for (from, to) in memory.notes.uncovered(note.from, note.to) {
        log::error!("readings {from} to {to} {what} and are lost; a gap record will say so");
        *lost += to - from + 1;
    }
    memory.notes.add(note);
}

impl Recovery {
    /// Notes what the generations set aside held, between their neighbours.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn note_set_aside(
        &self,
        memory: &mut Memory,
        closed: &[Closed],
        current: Option<&Continued>,
        committed: u64,
        segment: &Segment,
        ends: &Ends,
        state: &StateFile,
        lost: &mut u64,
    ) {
        for id in &self.set_aside {
            let before = closed.iter().filter(|closed| closed.id < *id).map(|closed| closed.summary.end_sequence).max();
            let after =
                closed.iter().filter(|closed| closed.id > *id).map(|closed| closed.summary.first_sequence).min();
            let after = after.or(current.map(|current| current.summary.first_sequence)).unwrap_or(ends.found_sequence);
            let from = before.unwrap_or(0).max(committed + 1);
            for (from, to) in memory.notes.uncovered(from, after.saturating_sub(1)) {
                let life = state.state.lives.iter().rev().find(|life| life.first_sequence <= from);
                let incarnation = life.and_then(Life::incarnation).unwrap_or(segment.incarnation);
                lose(memory, note((from, to), incarnation, "damage", segment), &format!("were in {id}"), lost);
            }
        }
    }

    /// A note wins: generations it names whole are removed before anything reads. What was noted as damaged is moved away,
    /// for somebody may want to look at it.
    pub(super) fn finish_removals(&mut self, memory: &mut Memory, closed: &mut Vec<Closed>) -> Result<(), OpenError> {
        let mut failed = None;
        let (directory, set_aside) = (&self.directory, &mut self.set_aside);
        closed.retain(|closed| {
            let (first, end) = (closed.summary.first_sequence, closed.summary.end_sequence);
            let whole = first < end && memory.notes.uncovered(first, end - 1).is_empty();
            if !whole || failed.is_some() {
                return true;
            }
            if memory.notes.covering(first).is_some_and(|note| &*note.reason == "damage") {
                set_aside.push(closed.id);
                return false;
            }
            log::info!("removing {}: a note says that it was dropped", closed.id);
            failed = directory.remove(closed.id).err().map(|error| (closed.id, error));
            false
        });
        match failed {
            Some((id, error)) => Err(io_error("remove", &self.directory.generation(id))(error)),
            None => Ok(()),
        }
    }
}
