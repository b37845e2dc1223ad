//! Reading the log for the drain: never above what is durable, with every sequence accounted for.
//!
//! What cannot be read becomes a note first (through the writer, durable), then a hole. A note wins over what may still
//! stand in a generation. `walk.rs` finds what stands at a sequence, `place.rs` reads in one generation, `live.rs` is
//! the catalogue of a running outbox, `ahead.rs` opens what comes next.

mod ahead;
pub(super) mod live;
pub(super) mod place;
pub(super) mod walk;

use std::sync::Arc;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::time::{Duration, Instant};

use crate::record::{Hole, Incarnation, Item, Sequence};

use super::recovery::note;
use super::view::Shared;
use super::writer::Command;
use super::{Batch, Budget, ReadError};

use live::Live;
use place::{Found, Sight};
use walk::{Trouble, Walk};

/// How long the writer may take to make a note durable.
const NOTE_WAIT: Duration = Duration::from_secs(150);
/// Readings of one purged source that make one hole, at most, so that a batch stays within what a transaction may span.
const PURGED_RUN_MAX: u64 = 1000;

/// The drain's view of the log. Owned by the delivery thread.
#[derive(Debug)]
pub struct Reader {
    walk: Walk<Live>,
    commands: Sender<Command>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, commands: Sender<Command>) -> Self {
        Self { walk: Walk::new(Live::draining(shared)), commands }
    }

    /// Items after `after` (exclusive), as many as fit the budget; empty if there are none. Damaged ranges come as holes
    /// (they are noted first). Removed ranges come as holes.
    pub fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError> {
        let mut next = after.0 + 1;
        let mut sight = self.look_at(next)?;
        self.walk.look_up();
        let mut batch = Batch { items: Vec::with_capacity(likely_items(&sight, next, budget)), bytes: 0 };
        while next <= sight.durable_sequence && batch.items.len() < budget.records_max {
            // A run of purged readings is one item, however many databases it takes to read it.
            if next - after.0 > super::IN_DOUBT_MAX && !batch.items.is_empty() {
                break;
            }
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
                    let (kind, source) = (stored.reading.kind, &stored.source);
                    if let Some(purge) = sight.purges.naming(next, source, kind) {
                        if !fits_life(&batch, stored.incarnation) {
                            self.walk.keep(stored);
                            break;
                        }
                        push_purged(&mut batch.items, purge.hole(&stored));
                        next += 1;
                        continue;
                    }
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
                Found::Missing(..) if self.walk.sight().notes.covering(next).is_some() => {
                    sight = self.walk.sight();
                }
                Found::Missing(to, why) => {
                    self.note_missing(next, to.min(sight.durable_sequence), &why, &sight)?;
                    sight = self.walk.sight();
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

    /// What is being purged, here or further on, is waited for: then it is a hole. Else a batch that begins before the
    /// purge would run into it by what it saw before.
    fn look_at(&self, next: u64) -> Result<Sight, ReadError> {
        let deadline = Instant::now() + NOTE_WAIT;
        let shared = self.walk.shelf.shared();
        loop {
            let view = shared.wait(deadline, |view| !view.is_purging_from(next));
            if !view.is_purging_from(next) {
                // Under the same lock: a purge that begins from now on sees what delivery has protected.
                return Ok(Sight::of(&view));
            }
            if view.closed || Instant::now() >= deadline {
                return Err(ReadError::Store("a purge does not end".to_owned()));
            }
        }
    }

    /// What stands at `next`. A generation that is damaged is set aside by the writer.
    fn find(&mut self, next: u64, sight: &Sight) -> Result<Found, ReadError> {
        loop {
            match self.walk.find(next, sight) {
                Ok(found) => return Ok(found),
                Err(Trouble::Busy(text) | Trouble::Store(text) | Trouble::Later(text)) => {
                    return Err(ReadError::Store(text));
                }
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
        log::warn!("the outbox does not hold {from} to {to} ({why})");
        let segment = sight.segments.last().ok_or_else(|| ReadError::Store("the log has no segment".to_owned()))?;
        let life = sight.segment_of(from).map_or(segment.incarnation, |segment| segment.incarnation);
        let note = note((from, to), life, "damage", segment);
        let over = self.ask(|done| Command::Note(note, done))?;
        if over {
            Ok(())
        } else {
            Err(ReadError::Store(format!("{from} to {to} are missing, which cannot be noted now")))
        }
    }

    /// Asks the writer and waits until it is durable.
    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, ReadError> {
        let (done, answer) = mpsc::sync_channel(1);
        let closed = || ReadError::Store("the outbox is closed".to_owned());
        self.commands.send(command(done)).map_err(|_| closed())?;
        answer.recv_timeout(NOTE_WAIT).map_err(|_| ReadError::Store("the outbox cannot be written".to_owned()))
    }
}

/// How many items a batch will have, so that they are not moved while it grows.
fn likely_items(sight: &Sight, next: u64, budget: Budget) -> usize {
    const RECORD_BYTES_MIN: usize = 400;
    let there = usize::try_from((sight.durable_sequence + 1).saturating_sub(next)).unwrap_or(usize::MAX);
    there.min(budget.records_max).min(budget.bytes_max / RECORD_BYTES_MIN + 1)
}

/// A hole of one reading; it makes one with its neighbour.
fn push_purged(items: &mut Vec<Item>, hole: Hole) {
    if let Some(Item::Hole(last)) = items.last_mut() {
        let one = last.reason == hole.reason && last.sources.len() == 1 && last.sources[0].0 == hole.sources[0].0;
        if one && last.to.next() == hole.from && hole.to.0 - last.from.0 < PURGED_RUN_MAX {
            last.to = hole.to;
            last.bytes += hole.bytes;
            last.sources[0].1 += 1;
            return;
        }
    }
    items.push(Item::Hole(hole));
}

fn fits_life(batch: &Batch, incarnation: Incarnation) -> bool {
    batch.items.last().is_none_or(|last| last.incarnation() == incarnation)
}
