//! Sources as the writer knows them. When the writer ends, in order or by a fault of its own, each learns it at once: its
//! receiver of answers ends.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::mpsc::UnboundedSender;

use crate::outbox::Answer;
use crate::record::SourceId;

/// One source.
#[derive(Debug)]
pub(in crate::outbox) struct Source {
    pub(in crate::outbox) id: SourceId,
    /// None: the writer has ended.
    answers: Mutex<Option<UnboundedSender<Answer>>>,
}

impl Source {
    pub(in crate::outbox) fn new(id: SourceId, answers: UnboundedSender<Answer>) -> Self {
        Self { id, answers: Mutex::new(Some(answers)) }
    }

    fn answers(&self) -> MutexGuard<'_, Option<UnboundedSender<Answer>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an answer over; `false`: nobody waits for it.
    pub(super) fn answer(&self, answer: Answer) -> bool {
        self.answers().as_ref().is_some_and(|answers| answers.send(answer).is_ok())
    }
}

/// All that were ever made and are still in use.
#[derive(Debug, Default)]
pub(in crate::outbox) struct Sources(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ended: bool,
    sources: Vec<Weak<Source>>,
}

impl Sources {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::outbox) fn add(&self, source: &Arc<Source>) {
        let mut known = self.known();
        known.sources.retain(|source| source.strong_count() > 0);
        known.sources.push(Arc::downgrade(source));
        if known.ended {
            source.answers().take();
        }
    }

    /// The writer has ended: there will be no more answers.
    pub(super) fn end(&self) {
        let mut known = self.known();
        known.ended = true;
        for source in known.sources.drain(..).filter_map(|source| source.upgrade()) {
            source.answers().take();
        }
    }
}
