//! Reading the log for the drain: never above what is durable, with every sequence accounted for.
//!
//! What cannot be read becomes a note first (through the writer, durable), then a hole. A note wins over what may still
//! stand in a generation. `walk.rs` finds what stands at a sequence, `place.rs` reads in one generation, `live.rs` is
//! the catalogue of a running outbox.

mod live;
mod place;
mod walk;

use std::sync::Arc;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::time::Duration;

use crate::record::{Incarnation, Item, Sequence};

use super::recovery::note;
use super::view::Shared;
use super::writer::Command;
use super::{Batch, Budget, ReadError};

use live::Live;
use place::{Found, Sight};
use walk::{Shelf, Trouble, Walk};

/// How long the writer may take to make a note durable.
const NOTE_WAIT: Duration = Duration::from_secs(150);

/// The drain's view of the log. Owned by the delivery thread.
#[derive(Debug)]
pub struct Reader {
    walk: Walk<Live>,
    commands: Sender<Command>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, commands: Sender<Command>) -> Self {
        Self { walk: Walk::new(Live::new(shared)), commands }
    }

    /// Items after `after` (exclusive), as many as fit the budget; empty if there are none. Damaged ranges come as holes
    /// (they are noted first). Removed ranges come as holes.
    pub fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        let mut next = after.0 + 1;
        let mut sight = self.walk.shelf.sight();
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
                        self.walk.keep(stored);
                        break;
                    }
                    batch.bytes += bytes;
                    batch.items.push(Item::Reading(stored));
                    next += 1;
                }
                // What was found goes first; the next call comes back here.
                Found::Missing(..) | Found::End if !batch.items.is_empty() => break,
                // Dropped by a policy since we looked: that is told already.
                Found::Missing(..) if self.walk.shelf.sight().notes.covering(next).is_some() => {
                    sight = self.walk.shelf.sight();
                }
                Found::Missing(to, why) => {
                    self.note_missing(next, to.min(sight.durable_sequence), &why, &sight)?;
                    sight = self.walk.shelf.sight();
                }
                Found::End => unreachable!("find() goes on to the next generation"),
            }
        }
        // Nothing to read: a generation that ends before `next` is left to the writer.
        if batch.items.is_empty() && self.walk.shelf.is_done_before(next) {
            self.walk.rest();
        }
        Ok(batch)
    }

    /// What stands at `next`. A generation that is damaged is set aside by the writer.
    fn find(&mut self, next: u64, sight: &Sight) -> Result<Found, ReadError> {
        loop {
            match self.walk.find(next, sight) {
                Ok(found) => return Ok(found),
                Err(Trouble::Store(text)) => return Err(ReadError::Store(text)),
                Err(Trouble::Damaged(id, why)) => {
                    self.walk.rest();
                    let gone = self.ask(|done| Command::SetAside(id, why, done))?;
                    if !gone {
                        return Err(ReadError::Store(format!("{id} is damaged and cannot be noted now")));
                    }
                }
            }
        }
    }

    fn note_missing(&mut self, from: u64, to: u64, why: &str, sight: &Sight) -> Result<(), ReadError> {
        log::error!("readings {from} to {to} are missing in the outbox ({why}); a gap record will say so");
        let segment = sight.segments.last().ok_or_else(|| ReadError::Store("the log has no segment".to_owned()))?;
        let life = sight.segment_of(from).map_or(segment.incarnation, |segment| segment.incarnation);
        let note = note((from, to), life, "damage", segment);
        self.walk.shelf.shared().metrics.dropped("damage").inc_by(to - from + 1);
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

fn fits_life(batch: &Batch, incarnation: Incarnation) -> bool {
    batch.items.last().is_none_or(|last| last.incarnation() == incarnation)
}
