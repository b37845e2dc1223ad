//! The generations of a running outbox, for somebody who looks: as the drain sees them, and those that are kept besides.

use std::sync::Arc;

use super::super::directory::GenerationId;
use super::super::entry::Segment;
use super::super::generation::{Generation, StoreError, unless_busy};
use super::super::reader::live::Live;
use super::super::reader::place::Sight;
use super::super::reader::walk::{Shelf, Taken};
use super::super::view::Listed;
use super::blocks::segments_in;
use super::files::Files;

/// Where somebody who looks finds generations.
#[derive(Debug)]
pub(super) enum Shelves {
    Live(Live),
    Files(Box<Files>),
}

impl Shelves {
    /// All generations, oldest first.
    pub(super) fn all(&self) -> Vec<Listed> {
        match self {
            Self::Live(live) => live.shared().view().generations.iter().cloned().collect(),
            Self::Files(files) => files.listed.clone(),
        }
    }

    /// A generation by its name, held until [`Shelf::leave`]; `None`: it is gone.
    pub(super) fn hold(&mut self, id: GenerationId) -> Option<Result<Arc<Generation>, StoreError>> {
        match self {
            Self::Live(live) => {
                let listed = live.hold(id)?;
                Some(unless_busy(|| live.open(&listed)))
            }
            Self::Files(files) => Some(files.copy_of(id)),
        }
    }

    pub(super) fn committed(&self) -> u64 {
        match self {
            Self::Live(live) => live.shared().view().committed,
            Self::Files(files) => files.committed(),
        }
    }

    /// The agent it belongs to, if that is known.
    pub(super) fn agent(&self) -> Option<String> {
        match self {
            Self::Live(live) => Some(live.shared().state().state.agent.clone()),
            Self::Files(files) => files.state.as_ref().map(|state| state.agent.clone()),
        }
    }
}

impl Shelf for Shelves {
    fn sight(&self) -> Sight {
        match self {
            Self::Live(live) => live.sight(),
            Self::Files(files) => files.sight(),
        }
    }

    fn take(&mut self, sequence: u64) -> Taken {
        match self {
            Self::Live(live) => live.take(sequence),
            Self::Files(files) => files.take(sequence),
        }
    }

    fn open(&mut self, listed: &Listed) -> Result<Arc<Generation>, StoreError> {
        match self {
            Self::Live(live) => live.open(listed),
            Self::Files(files) => files.open(listed),
        }
    }

    /// Of delivered readings only the generation itself knows whose they are.
    fn segments(&mut self, generation: &Generation) -> Vec<Segment> {
        segments_in(generation)
    }

    fn first_after(&self, sequence: u64) -> Option<u64> {
        match self {
            Self::Live(live) => live.first_after(sequence),
            Self::Files(files) => files.first_after(sequence),
        }
    }

    fn leave(&mut self) {
        match self {
            Self::Live(live) => live.leave(),
            Self::Files(files) => files.leave(),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Live(live) => live.is_closed(),
            Self::Files(files) => files.is_closed(),
        }
    }
}
