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
    /// Where the cursor stands, as the shelf told it last. Asked again for each reading it would cost a third of reading.
    taken: Option<Box<Listed>>,
    /// Read, but above the budget of its batch: it begins the next one.
    kept: Option<Stored>,
    /// The generation that failed last: one reopening is granted.
    failed: Option<GenerationId>,
}

impl<S: Shelf> Walk<S> {
    pub(in crate::outbox) fn new(shelf: S) -> Self {
        Self { shelf, decoder: Decoder::default(), cursor: None, taken: None, kept: None, failed: None }
    }

    /// Gives a reading back: the next [`Self::find`] begins with it.
    pub(in crate::outbox) fn keep(&mut self, stored: Stored) {
        self.kept = Some(stored);
    }

    /// The log as it is now. The generation at hand was taken by an earlier sight: it is asked for anew.
    pub(in crate::outbox) fn sight(&mut self) -> Sight {
        self.look_up();
        self.shelf.sight()
    }

    /// Asks the shelf anew where things stand. Due with each sight that does not come from [`Self::sight`].
    pub(in crate::outbox) fn look_up(&mut self) {
        self.taken = None;
    }

    /// Lets the generation go that is being read, but keeps its place in it.
    pub(in crate::outbox) fn pause(&mut self) {
        self.taken = None;
        self.shelf.leave();
    }

    /// Lets go of the generation that is open.
    pub(in crate::outbox) fn rest(&mut self) {
        (self.cursor, self.taken) = (None, None);
        self.shelf.leave();
    }

    /// What stands at `next`, in whatever generation it is; never [`Found::End`].
    pub(in crate::outbox) fn find(&mut self, next: u64, sight: &Sight) -> Result<Found, Trouble> {
        if let Some(kept) = self.kept.take().filter(|kept| kept.sequence.0 == next) {
            return Ok(Found::Reading(kept));
        }
        loop {
            if !self.go_to(next)? {
                let to = self.shelf.first_after(next).map_or(sight.durable_sequence, |first| first - 1);
                return Ok(Found::Missing(to, "no generation holds it".to_owned()));
            }
            let (place, listed) = self.cursor.as_mut().zip(self.taken.as_ref()).expect("go_to went there");
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
                Err(error) => {
                    let id = listed.id;
                    self.store_failed(id, error)?;
                }
            }
        }
    }

    /// Takes the generation that holds `next` and opens it, unless it is at hand; `false`: none does.
    fn go_to(&mut self, next: u64) -> Result<bool, Trouble> {
        for _ in 0..CLAIMED_TRIES {
            let at_hand = self.taken.as_ref().is_some_and(|listed| listed.holds(next));
            if !at_hand {
                match self.shelf.take(next) {
                    Taken::Generation(listed) => self.taken = Some(listed),
                    Taken::Wait => {
                        std::thread::sleep(CLAIMED_WAIT);
                        continue;
                    }
                    Taken::Nothing => {
                        (self.cursor, self.taken) = (None, None);
                        return Ok(false);
                    }
                }
            }
            let listed = self.taken.as_ref().expect("just taken");
            if let Some(place) = self.cursor.as_mut().filter(|place| place.generation.id() == listed.id) {
                if place.sequence > next {
                    place.rewind();
                }
                return Ok(true);
            }
            self.cursor = None;
            match unless_busy(|| self.shelf.open(listed)) {
                Ok(generation) => {
                    let segments = self.shelf.segments(&generation);
                    self.cursor = Some(Place::start(generation, segments));
                    return Ok(true);
                }
                Err(error) => {
                    let id = listed.id;
                    self.store_failed(id, error)?;
                }
            }
        }
        Err(Trouble::Busy("a generation stays claimed".to_owned()))
    }

    /// Whether it is worth another look; a generation is opened once more before it counts as damaged.
    fn store_failed(&mut self, id: GenerationId, error: StoreError) -> Result<(), Trouble> {
        (self.cursor, self.taken) = (None, None);
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
