//! What is to be written, in order, and since when it waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::outbox::{Arrival, Control};
use crate::record::{Reading, SourceId};

use super::super::entry::{Refusal, Why};
use super::super::note::Note;
use super::super::purge::Purge;
use super::source::Source;

/// Something to be written.
#[derive(Debug)]
pub(super) enum Work {
    Arrival(Arc<Source>, Arrival),
    Control(Arc<Source>, Control),
    /// A gap record for readings refused.
    Told(SourceId, Box<Reading>, Refusal),
    Note(Box<Note>),
    Purge(Box<Purge>),
    /// A reading that is sent again.
    Copy(SourceId, Box<Reading>),
}

impl Work {
    fn source(&self) -> Option<&Source> {
        match self {
            Self::Arrival(source, _) | Self::Control(source, _) => Some(source),
            _ => None,
        }
    }

    /// Record bytes, if it is an arrival.
    pub(super) fn arrival_bytes(&self) -> u64 {
        match self {
            Self::Arrival(_, arrival) => arrival.record_bytes(),
            _ => 0,
        }
    }

    /// Whether it may wait for company: packet identifiers that are done.
    fn can_wait(&self) -> bool {
        matches!(self, Self::Control(_, Control::Released(_)))
    }
}

/// The works that wait. Those of one source stay in order.
#[derive(Debug, Default)]
pub(super) struct Queue {
    works: VecDeque<Work>,
    /// Of sources that may not come in now, in order.
    parked: HashMap<SourceId, VecDeque<Work>>,
    waiting_since: Option<Instant>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.works.len()
    }

    /// With what is parked.
    pub(super) fn all_len(&self) -> usize {
        self.works.len() + self.parked.values().map(VecDeque::len).sum::<usize>()
    }

    /// Since when something waits.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.waiting_since
    }

    /// What waits now waits since now.
    pub(super) fn restart_waiting(&mut self) {
        self.waiting_since = (!self.works.is_empty()).then(Instant::now);
    }

    pub(super) fn push(&mut self, work: Work) {
        if let Some(parked) = work.source().and_then(|source| self.parked.get_mut(&source.id)) {
            return parked.push_back(work);
        }
        self.works.push_back(work);
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    /// Puts a work aside that was the first; what its source sends from now on waits behind it.
    pub(super) fn park(&mut self, work: Work) {
        let Some(id) = work.source().map(|source| source.id.clone()) else { return self.push_front(work) };
        let is_of = |other: &Work| other.source().is_some_and(|source| source.id == id);
        let parked = self.parked.entry(id.clone()).or_default();
        parked.push_back(work);
        // All of them at once, so that the next look does not pass them one by one.
        let (own, others): (VecDeque<Work>, VecDeque<Work>) =
            std::mem::take(&mut self.works).into_iter().partition(is_of);
        parked.extend(own);
        self.works = others;
        if self.works.is_empty() {
            self.waiting_since = None;
        }
    }

    /// Brings back what was parked for a source.
    pub(super) fn unpark(&mut self, source: &SourceId) {
        for work in self.parked.remove(source).into_iter().flatten().rev() {
            self.push_front(work);
        }
    }

    /// Brings back all that was parked.
    pub(super) fn unpark_all(&mut self) {
        let sources: Vec<SourceId> = self.parked.keys().cloned().collect();
        sources.iter().for_each(|source| self.unpark(source));
    }

    /// Before everything else.
    pub(super) fn push_front(&mut self, work: Work) {
        self.works.push_front(work);
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn pop(&mut self) -> Option<Work> {
        let work = self.works.pop_front();
        if self.works.is_empty() {
            self.waiting_since = None;
        }
        work
    }

    /// Record bytes of the arrival that is next among the arrivals, 0 if none waits.
    pub(super) fn first_arrival_bytes(&self) -> u64 {
        let first = self.works.iter().find_map(|work| match work {
            Work::Arrival(_, arrival) => Some(arrival.record_bytes()),
            _ => None,
        });
        first.unwrap_or(0)
    }

    /// The first work that needs no room: a note, or a control entry of a source none of whose arrivals waits before it.
    pub(super) fn pop_needing_no_room(&mut self) -> Option<Work> {
        // By name: a reload gives a source another handle, and its packet identifiers stay in order all the same.
        let mut waiting: Vec<SourceId> = Vec::new();
        let may_go = |work: &Work| match work {
            Work::Note(..) | Work::Purge(_) => true,
            Work::Told(..) | Work::Copy(..) => false,
            Work::Arrival(source, _) => {
                if !waiting.contains(&source.id) {
                    waiting.push(source.id.clone());
                }
                false
            }
            Work::Control(source, _) => !waiting.contains(&source.id),
        };
        let at = self.works.iter().position(may_go)?;
        self.works.remove(at)
    }

    /// Whether everything may wait for company.
    pub(super) fn is_patient(&self) -> bool {
        self.works.iter().all(Work::can_wait)
    }

    /// Whether a gap record about refusals of this source waits.
    pub(super) fn tells_of(&self, source: &SourceId, why: Why) -> bool {
        self.works.iter().any(|work| matches!(work, Work::Told(known, _, told) if known == source && told.why == why))
    }

    /// Takes out what the writer itself has queued and could not write: whoever asked for it is told that it is not done.
    pub(super) fn withdraw_own(&mut self) {
        self.works.retain(|work| !matches!(work, Work::Note(_) | Work::Purge(_) | Work::Copy(..)));
    }
}
