//! From sequence to sequence over all generations: finds the one that holds a sequence, opens it, reads on in it. What is
//! missing or damaged is told to whoever reads; nothing is changed or noted here.

use std::sync::Arc;
use std::time::Duration;

use crate::record::Stored;

use super::super::block::Decoder;
use super::super::directory::GenerationId;
use super::super::entry::Segment;
use super::super::generation::{Generation, StoreError, unless_busy};
use super::super::view::Listed;
use super::place::{Found, Place, Sight};

/// A generation that a policy is about to drop is waited for: a moment, and a note says so.
const CLAIMED_TRIES: u32 = 100;
const CLAIMED_WAIT: Duration = Duration::from_millis(20);

/// Where generations are found: a running outbox, or files.
pub(in crate::outbox) trait Shelf {
    /// Where the log stands.
    fn sight(&self) -> Sight;
    /// The generation that holds this sequence. Until [`Self::leave`] or the next call it stays where it is.
    fn take(&mut self, sequence: u64) -> Taken;
    /// The handle of a generation that was taken.
    fn open(&mut self, listed: &Listed) -> Result<Arc<Generation>, StoreError>;
    /// Segments that are to be taken from the generation itself.
    fn segments(&mut self, generation: &Generation) -> Vec<Segment>;
    /// First sequence of the next generation after this sequence.
    fn first_after(&self, sequence: u64) -> Option<u64>;
    /// Nothing is being read.
    fn leave(&mut self);
    /// Nothing will be read any more.
    fn is_closed(&self) -> bool;
}

/// What [`Shelf::take`] found.
#[derive(Debug)]
pub(in crate::outbox) enum Taken {
    Generation(Box<Listed>),
    /// It is about to be dropped: a moment, and a note says so.
    Wait,
    Nothing,
}

/// Why it does not go on.
#[derive(Debug)]
pub(in crate::outbox) enum Trouble {
    /// A generation cannot be read, also not after it was opened once more.
    Damaged(GenerationId, String),
    /// A later program wrote it.
    Later(String),
    /// Somebody holds it: another try may do.
    Busy(String),
    /// The file system says no, or the outbox is closed: another try may do.
    Store(String),
}

/// Reads on. Owned by one thread.
#[derive(Debug)]
pub(in crate::outbox) struct Walk<S> {
    pub(in crate::outbox) shelf: S,
    decoder: Decoder,
    cursor: Option<Place>,
    /// Read, but above the budget of its batch: it begins the next one.
    kept: Option<Stored>,
    /// The generation that failed last: one reopening is granted.
    failed: Option<GenerationId>,
}

impl<S: Shelf> Walk<S> {
    pub(in crate::outbox) fn new(shelf: S) -> Self {
        Self { shelf, decoder: Decoder::default(), cursor: None, kept: None, failed: None }
    }

    /// Gives a reading back: the next [`Self::find`] begins with it.
    pub(in crate::outbox) fn keep(&mut self, stored: Stored) {
        self.kept = Some(stored);
    }

    /// Lets the generation go that is being read, but keeps its place in it.
    pub(in crate::outbox) fn pause(&mut self) {
        self.shelf.leave();
    }

    /// Lets go of the generation that is open.
    pub(in crate::outbox) fn rest(&mut self) {
        self.cursor = None;
        self.shelf.leave();
    }

    /// What stands at `next`, in whatever generation it is; never [`Found::End`].
    pub(in crate::outbox) fn find(&mut self, next: u64, sight: &Sight) -> Result<Found, Trouble> {
        if let Some(kept) = self.kept.take().filter(|kept| kept.sequence.0 == next) {
            return Ok(Found::Reading(Box::new(kept)));
        }
        loop {
            let Some(listed) = self.go_to(next)? else {
                let to = self.shelf.first_after(next).map_or(sight.durable_sequence, |first| first - 1);
                return Ok(Found::Missing(to, "no generation holds it".to_owned()));
            };
            let place = self.cursor.as_mut().expect("go_to opened it");
            let end_index = listed.closed.as_ref().map_or(u64::MAX, |summary| summary.end_index);
            let end_index = end_index.min(sight.durable_index + 1);
            match place.find(next, end_index, sight, &mut self.decoder) {
                Ok(Found::End) => {
                    let to = listed.end_sequence().saturating_sub(1).min(sight.durable_sequence);
                    return Ok(Found::Missing(to, format!("{} ends too early", listed.id)));
                }
                Ok(found) => {
                    self.failed = None;
                    return Ok(found);
                }
                Err(error) => self.store_failed(listed.id, error)?,
            }
        }
    }

    /// Opens the generation that holds `next`, unless it is open; its entry in the catalogue.
    fn go_to(&mut self, next: u64) -> Result<Option<Listed>, Trouble> {
        for _ in 0..CLAIMED_TRIES {
            let listed = match self.shelf.take(next) {
                Taken::Generation(listed) => *listed,
                Taken::Wait => {
                    std::thread::sleep(CLAIMED_WAIT);
                    continue;
                }
                Taken::Nothing => {
                    self.cursor = None;
                    return Ok(None);
                }
            };
            if let Some(place) = &mut self.cursor {
                if place.generation.id() == listed.id {
                    if place.sequence > next {
                        place.rewind();
                    }
                    return Ok(Some(listed));
                }
            }
            self.cursor = None;
            match unless_busy(|| self.shelf.open(&listed)) {
                Ok(generation) => {
                    let segments = self.shelf.segments(&generation);
                    self.cursor = Some(Place::start(generation, segments));
                    return Ok(Some(listed));
                }
                Err(error) => self.store_failed(listed.id, error)?,
            }
        }
        Err(Trouble::Busy("a generation stays claimed".to_owned()))
    }

    /// Whether it is worth another look; a generation is opened once more before it counts as damaged.
    fn store_failed(&mut self, id: GenerationId, error: StoreError) -> Result<(), Trouble> {
        self.cursor = None;
        match error {
            StoreError::Closed if self.shelf.is_closed() => Err(Trouble::Store("the outbox is closed".to_owned())),
            // Closed under us: it may be on its way out of the catalogue.
            StoreError::Closed => {
                std::thread::sleep(CLAIMED_WAIT);
                Ok(())
            }
            StoreError::Busy(_) => Err(Trouble::Busy(format!("{id} stays in use"))),
            StoreError::Full(_) | StoreError::Io(_) => Err(Trouble::Store(format!("{id}: {error}"))),
            StoreError::Later(_) => Err(Trouble::Later(format!("{id}: {error}"))),
            StoreError::Damaged(_) | StoreError::OtherSegment if self.failed != Some(id) => {
                log::warn!("{id} cannot be read ({error}): it is opened once more");
                self.failed = Some(id);
                Ok(())
            }
            StoreError::Damaged(why) => {
                self.failed = None;
                Err(Trouble::Damaged(id, why))
            }
            StoreError::OtherSegment => Err(Trouble::Store(format!("{id}: {error}"))),
        }
    }
}
