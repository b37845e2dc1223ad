//! The generations of a running outbox, for one reader.

use std::sync::Arc;

use super::super::directory::GenerationId;
use super::super::entry::Segment;
use super::super::generation::{Generation, StoreError};
use super::super::view::{Listed, Mark, Shared, View};
use super::ahead::Ahead;
use super::place::Sight;
use super::walk::{Shelf, Taken};

/// Finds generations in the catalogue and marks the one that is read, so that the writer leaves it alone.
#[derive(Debug)]
pub(in crate::outbox) struct Live {
    shared: Arc<Shared>,
    mark: Mark,
    /// Whether the reserve may be given up for it. Not for somebody who only looks.
    takes_reserve: bool,
    /// Whether it goes through all generations in turn: then each is opened ahead.
    opens_ahead: bool,
    ahead: Option<Ahead>,
}

impl Live {
    pub(in crate::outbox) fn new(shared: Arc<Shared>) -> Self {
        Self { mark: Mark::new(shared.clone()), shared, takes_reserve: true, opens_ahead: false, ahead: None }
    }

    /// For somebody who only looks.
    pub(in crate::outbox) fn looking(shared: Arc<Shared>) -> Self {
        Self { takes_reserve: false, ..Self::new(shared) }
    }

    /// For the drain.
    pub(super) fn draining(shared: Arc<Shared>) -> Self {
        Self { opens_ahead: true, ..Self::new(shared) }
    }

    /// Whether the generation it reads ends before `next`.
    pub(super) fn is_done_before(&self, next: u64) -> bool {
        let view = self.shared.view();
        let on = self.mark.on(&view);
        view.generations.iter().any(|listed| on == Some(listed.id.number) && listed.end_sequence() <= next)
    }

    /// Marks a generation by its name; `None`: it is gone, or about to go.
    pub(in crate::outbox) fn hold(&mut self, id: GenerationId) -> Option<Listed> {
        let mut view = self.shared.view();
        let listed = view.generations.iter().find(|listed| listed.id == id).cloned()?;
        if view.claimed == Some(id.number) {
            return None;
        }
        self.mark.put(&mut view, Some(id.number));
        Some(listed)
    }

    /// The handle of a generation that somebody has open. Who still holds one that was closed under him keeps nobody from
    /// opening it anew. [`StoreError::Closed`]: the generation is not in the catalogue any more.
    fn live(&self, id: GenerationId) -> Result<Option<Arc<Generation>>, StoreError> {
        let view = self.shared.view();
        let listed = view.generations.iter().find(|listed| listed.id == id).ok_or(StoreError::Closed)?;
        Ok(listed.live.upgrade().filter(|generation| generation.is_open()))
    }

    fn open_now(&self, listed: &Listed) -> Result<Arc<Generation>, StoreError> {
        if let Some(generation) = listed.live.upgrade().filter(|generation| generation.is_open()) {
            return Ok(generation);
        }
        let _one_at_a_time = self.shared.opening();
        // Somebody may have opened it while we waited, or the writer has moved it away.
        if let Some(generation) = self.live(listed.id)? {
            return Ok(generation);
        }
        let opened = Generation::open_closed(&self.shared.directory, listed.id);
        let bytes = self.shared.directory.generation_bytes(listed.id);
        let mut view = self.shared.view();
        if let Err(StoreError::Full(_)) = &opened {
            // Opening takes up to a segment: the writer gives the reserve up for it, and the next try finds the room.
            view.reserve_wanted |= self.takes_reserve;
        }
        let generation = Arc::new(opened?);
        if let Some(known) = view.generations.iter_mut().find(|known| known.id == listed.id) {
            known.live = Arc::downgrade(&generation);
            known.disk_bytes = bytes;
        }
        Ok(generation)
    }

    pub(in crate::outbox) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Sight {
    /// As the view has it now.
    pub(in crate::outbox) fn of(view: &View) -> Self {
        Self {
            durable_index: view.durable_index,
            durable_sequence: view.durable_sequence,
            notes: view.notes.clone(),
            purges: view.purges.clone(),
            segments: view.segments.clone(),
        }
    }
}

impl Shelf for Live {
    fn sight(&self) -> Sight {
        Sight::of(&self.shared.view())
    }

    fn take(&mut self, sequence: u64) -> Taken {
        let mut view = self.shared.view();
        let listed = view.generations.iter().rev().find(|listed| listed.holds(sequence)).cloned();
        if listed.as_ref().is_some_and(|listed| view.claimed == Some(listed.id.number)) {
            return Taken::Wait;
        }
        // From here on the writer leaves it alone.
        self.mark.put(&mut view, listed.as_ref().map(|listed| listed.id.number));
        let is_roomy = view.is_roomy;
        drop(view);
        // An open database takes room that is wanted now.
        self.ahead = self.ahead.take().filter(|_| is_roomy);
        listed.map_or(Taken::Nothing, |listed| Taken::Generation(Box::new(listed)))
    }

    /// A database is open only once in a process: the handle is shared by all readers and the writer.
    fn open(&mut self, listed: &Listed) -> Result<Arc<Generation>, StoreError> {
        let ahead = self.ahead.take().and_then(|ahead| ahead.take(listed.id));
        let generation = ahead.map_or_else(|| self.open_now(listed), Ok)?;
        if self.opens_ahead {
            self.ahead = Ahead::of(&self.shared, listed.id);
        }
        Ok(generation)
    }

    /// The drain reads what is not delivered: those segments are all in memory.
    fn segments(&mut self, _: &Generation) -> Vec<Segment> {
        Vec::new()
    }

    fn first_after(&self, sequence: u64) -> Option<u64> {
        let view = self.shared.view();
        view.generations.iter().map(|listed| listed.first_sequence).find(|first| *first > sequence)
    }

    fn leave(&mut self) {
        self.mark.lift();
    }

    fn is_closed(&self) -> bool {
        self.shared.view().closed
    }
}
