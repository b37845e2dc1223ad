//! Which generations are being read, and by whom. A generation with a mark is neither dropped nor unlinked.
//!
//! The drain keeps its mark for as long as it stands in a generation. Whoever only looks keeps it while one batch is read
//! and no longer, so that somebody who stops taking what he asked for holds no space (docs/decisions/0231).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Shared, View};

/// All marks: owner, number of the generation.
#[derive(Debug, Default)]
pub(in crate::outbox) struct Marks {
    owners: u64,
    held: BTreeMap<u64, u64>,
}

impl Marks {
    /// Whether anybody reads this generation.
    pub(in crate::outbox) fn holds(&self, number: u64) -> bool {
        self.held.values().any(|held| *held == number)
    }
}

/// One reader's mark: on one generation at a time, gone when it is dropped.
#[derive(Debug)]
pub(in crate::outbox) struct Mark {
    shared: Arc<Shared>,
    owner: u64,
}

impl Mark {
    pub(in crate::outbox) fn new(shared: Arc<Shared>) -> Self {
        let owner = {
            let mut view = shared.view();
            view.marks.owners += 1;
            view.marks.owners
        };
        Self { shared, owner }
    }

    /// Moves the mark to a generation, or takes it away. The view must be that of this reader's outbox.
    pub(in crate::outbox) fn put(&self, view: &mut View, number: Option<u64>) {
        match number {
            Some(number) => view.marks.held.insert(self.owner, number),
            None => view.marks.held.remove(&self.owner),
        };
    }

    /// Takes the mark away.
    pub(in crate::outbox) fn lift(&self) {
        self.put(&mut self.shared.view(), None);
    }

    /// Number of the generation it is on.
    pub(in crate::outbox) fn on(&self, view: &View) -> Option<u64> {
        view.marks.held.get(&self.owner).copied()
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.lift();
    }
}
