//! Opens the generation that comes next while the drain still reads the one before. Opening takes sled as long as reading
//! ten thousand readings: it wipes the rest of the last segment, and syncs.
//!
//! Only where there is room: an open database takes up to a segment more than a closed one. The generation is marked
//! while it is being opened and no longer; if it is removed after that, its handle is closed like any other.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use super::super::directory::GenerationId;
use super::super::generation::Generation;
use super::super::view::Shared;
use super::live::Live;
use super::walk::Shelf as _;

/// A generation that is being opened, or is open and waits to be read. Waits for its thread when it is dropped.
#[derive(Debug)]
pub(super) struct Ahead {
    id: GenerationId,
    thread: Option<JoinHandle<Option<Arc<Generation>>>>,
}

impl Ahead {
    /// Begins to open the closed generation after `id`, if there is one, it is not open, and there is room.
    pub(super) fn of(shared: &Arc<Shared>, id: GenerationId) -> Option<Self> {
        let next = {
            let view = shared.view();
            let next = view.generations.iter().find(|listed| listed.id > id)?;
            let is_wanted = view.is_roomy && next.closed.is_some() && next.live.strong_count() == 0;
            is_wanted.then_some(next.id)?
        };
        let shared = shared.clone();
        let work = move || {
            let mut live = Live::looking(shared);
            let listed = live.hold(next)?;
            // If it cannot be opened the drain finds that out itself, and tells it.
            live.open(&listed).ok()
        };
        let thread = Builder::new().name("outbox-ahead".to_owned()).spawn(work);
        let thread = thread.map_err(|error| log::debug!("no thread to open {next} ahead ({error})")).ok()?;
        Some(Self { id: next, thread: Some(thread) })
    }

    /// The handle, if this is the generation and it could be opened.
    pub(super) fn take(mut self, id: GenerationId) -> Option<Arc<Generation>> {
        let generation = self.thread.take()?.join().ok()??;
        (self.id == id && generation.is_open()).then_some(generation)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                log::error!("opening {} ahead failed by a fault of its own", self.id);
            }
        }
    }
}
