//! Reads the log for a human, in batches: what stands there, what is missing and why. Asks the writer for nothing.

use crate::record::Stored;

use super::super::reader::place::Found;
use super::super::reader::walk::{Shelf, Taken, Trouble, Walk};
use super::line::GapLine;
use super::live::Shelves;
use super::{Files, LookError};

/// A generation stays where it is while a batch of this size is read, and no longer.
const BATCH_BYTES: usize = 256 * 1024;
const BATCH_RECORDS: usize = 5_000;

/// What stands at a sequence.
#[derive(Debug)]
pub(super) enum Seen {
    Reading(Box<Stored>),
    Gap(GapLine),
}

/// Walks over an outbox.
#[derive(Debug)]
pub(super) struct Looker {
    pub(super) walk: Walk<Shelves>,
    /// To ask the writer for its counts, beside a daemon.
    pub(super) outbox: Option<super::super::Outbox>,
}

impl Looker {
    pub(super) fn live(outbox: &super::super::Outbox) -> Self {
        let live = super::super::reader::live::Live::looking(outbox.shared.clone());
        Self { walk: Walk::new(Shelves::Live(live)), outbox: Some(outbox.clone()) }
    }

    pub(super) fn files(files: Files) -> Self {
        Self { walk: Walk::new(Shelves::Files(Box::new(files))), outbox: None }
    }

    pub(super) fn shelves(&self) -> &Shelves {
        &self.walk.shelf
    }

    /// What stands from `next` on, through `end` at most; moves `next`. Empty at the end only. Nothing is held when this
    /// returns.
    pub(super) fn batch(&mut self, next: &mut u64, end: u64) -> Result<Vec<Seen>, LookError> {
        let mut seen = Vec::new();
        let read = self.fill(next, end, &mut seen);
        self.walk.pause();
        read.map(|()| seen)
    }

    fn fill(&mut self, next: &mut u64, end: u64, seen: &mut Vec<Seen>) -> Result<(), LookError> {
        let mut bytes = 0;
        if self.walk.shelf.is_closed() {
            return Err(LookError::Busy("the daemon is stopping".to_owned()));
        }
        let mut sight = self.walk.sight();
        while *next <= end.min(sight.durable_sequence) && bytes < BATCH_BYTES && seen.len() < BATCH_RECORDS {
            if let Some(note) = sight.notes.covering(*next) {
                let to = note.to.min(end);
                seen.push(Seen::Gap(GapLine::of_note(note, *next, to)));
                *next = to + 1;
                continue;
            }
            let (to, why) = match self.walk.find(*next, &sight) {
                Ok(Found::Reading(stored)) => {
                    bytes += stored.reading.record_bytes();
                    let reading = &stored.reading;
                    seen.push(match sight.purges.naming(*next, &stored.source, reading.kind) {
                        Some(purge) => Seen::Gap(GapLine::of_hole(&purge.hole(&stored))),
                        None => Seen::Reading(Box::new(stored)),
                    });
                    *next += 1;
                    continue;
                }
                Ok(Found::Missing(to, why)) => (to, why),
                Ok(Found::End) => unreachable!("find() goes on to the next generation"),
                Err(Trouble::Damaged(id, why)) => (self.end_of(*next), format!("{id}: {why}")),
                Err(Trouble::Busy(text)) => return Err(LookError::Busy(text)),
                Err(Trouble::Store(text)) => return Err(LookError::Store(text)),
                Err(Trouble::Later(text)) => return Err(LookError::Foreign(text)),
            };
            // It may have been delivered or dropped while we looked.
            sight = self.walk.sight();
            if sight.notes.covering(*next).is_some() {
                continue;
            }
            let noted = sight.notes.iter().map(|note| note.from).find(|from| *from > *next);
            let to = to.min(end).min(noted.map_or(u64::MAX, |from| from - 1)).max(*next);
            let committed = self.walk.shelf.committed();
            // Gone as a whole, and delivered: nothing is wrong with that.
            let delivered = matches!(self.walk.shelf.take(*next), Taken::Nothing) && *next <= committed;
            let to = if delivered { to.min(committed) } else { to };
            seen.push(Seen::Gap(if delivered {
                GapLine::plain(*next, to, "delivered")
            } else {
                GapLine { detail: Some(why), ..GapLine::plain(*next, to, "damage") }
            }));
            *next = to + 1;
        }
        Ok(())
    }

    /// Last sequence of the generation that holds this one.
    fn end_of(&mut self, sequence: u64) -> u64 {
        match self.walk.shelf.take(sequence) {
            Taken::Generation(listed) => listed.end_sequence().saturating_sub(1),
            _ => sequence,
        }
    }
}
