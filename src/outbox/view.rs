//! What the writer shares: where the log stands, which generations there are, what is noted. The writer is the only one
//! that changes it, but for the marks of readers and of delivery (`marks`, `protected`, `committed`).

mod marks;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use crate::metrics::OutboxMetrics;
use crate::outbox::{HeldBytes, Positions};
use crate::progress::Progress;
use crate::record::{ReceiptTime, Sequence, SourceId};

use super::directory::{Directory, GenerationId};
use super::entry::{Segment, Why};
use super::generation::Generation;
use super::limits::Terms;
use super::note::Notes;
use super::purge::Purges;
use super::state::StateFile;
use super::summary::Summary;
use super::wear::{self, Counts, Wear};
use super::writer::{Command, Sources};

pub(super) use marks::{Mark, Marks};

/// A generation in the catalogue.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) id: GenerationId,
    pub(super) first_sequence: u64,
    /// For a closed one: what it holds.
    pub(super) closed: Option<Arc<Summary>>,
    /// The handle in use, if there is one: a database is open once.
    pub(super) live: Weak<Generation>,
    /// Bytes on disk, taken when it was closed.
    pub(super) disk_bytes: u64,
}

impl Listed {
    /// Sequence after its last one; the newest one has no end.
    pub(super) fn end_sequence(&self) -> u64 {
        self.closed.as_ref().map_or(u64::MAX, |summary| summary.end_sequence)
    }

    /// Whether every reading in it is of this source, and none tells of its losses.
    pub(super) fn holds_only(&self, source: &SourceId) -> bool {
        let only = |summary: &Summary| {
            summary.gaps == 0 && summary.sources.len() == 1 && summary.sources.contains_key(source.as_str())
        };
        self.closed.as_ref().is_some_and(|summary| only(summary))
    }

    pub(super) fn holds(&self, sequence: u64) -> bool {
        self.first_sequence <= sequence && sequence < self.end_sequence()
    }
}

/// What a source has stored and Kafka has not, as of the last counting.
#[derive(Debug, Clone, Default)]
pub(super) struct Queued {
    pub(super) records: u64,
    /// On disk.
    pub(super) bytes: u64,
    /// Why it may not come in, if so.
    pub(super) outside: Option<Why>,
}

/// Where the log stands. Positions are inclusive.
#[derive(Debug)]
pub(super) struct View {
    pub(super) committed: u64,
    pub(super) durable_sequence: u64,
    pub(super) durable_index: u64,
    /// Oldest first.
    pub(super) generations: VecDeque<Listed>,
    pub(super) notes: Arc<Notes>,
    pub(super) purges: Arc<Purges>,
    pub(super) segments: Arc<[Segment]>,
    /// Generations that are being read.
    pub(super) marks: Marks,
    /// Number of the generation that a policy is about to drop: its notes are not durable yet, nobody may begin to read.
    pub(super) claimed: Option<u64>,
    /// Sequences that are being purged, inclusive: whoever wants to read them waits until that is durable.
    pub(super) purging: Option<(u64, u64)>,
    /// Sequences a transaction with open outcome may hold, inclusive.
    pub(super) protected: Option<(u64, u64)>,
    /// What each source has stored and Kafka has not.
    pub(super) queued: HashMap<SourceId, Queued>,
    /// A reader cannot open a generation because the disk is full.
    pub(super) reserve_wanted: bool,
    /// There is room for more than the next group: a generation may be opened before its turn.
    pub(super) is_roomy: bool,
    /// Bytes on disk.
    pub(super) bytes: u64,
    /// `ok`, `full`, `failing: ...`.
    pub(super) state: String,
    /// Readings refused or dropped by policy.
    pub(super) dropped: u64,
    /// Generations set aside.
    pub(super) damaged: u64,
    /// Receipt times by sequence, thinned: for the age of the oldest reading.
    pub(super) ages: Ages,
    /// Counters of the last minutes: for what goes to the medium per day.
    pub(super) wear: Wear,
    wakes: u64,
    pub(super) closed: bool,
}

/// Shared by all handles.
#[derive(Debug)]
pub(super) struct Shared {
    view: Mutex<View>,
    changed: Condvar,
    pub(super) state: Mutex<StateFile>,
    pub(super) directory: Directory,
    pub(super) metrics: OutboxMetrics,
    pub(super) progress: Progress,
    pub(super) held: HeldBytes,
    /// Held while a reader opens a database: what one opening clears away another may be just writing. And while the
    /// writer puts another one in its place, or moves it away: nobody then opens what is on its way out.
    opening: Mutex<()>,
    terms: Mutex<BTreeMap<SourceId, Terms>>,
    pub(super) sources: Sources,
    /// A wake-up for the writer is in its channel.
    nudged: AtomicBool,
}

impl View {
    pub(super) fn new(committed: u64, durable_sequence: u64, durable_index: u64) -> Self {
        Self {
            committed,
            durable_sequence,
            durable_index,
            generations: VecDeque::new(),
            notes: Arc::default(),
            purges: Arc::default(),
            segments: Arc::from([]),
            marks: Marks::default(),
            claimed: None,
            purging: None,
            protected: None,
            queued: HashMap::new(),
            reserve_wanted: false,
            is_roomy: false,
            bytes: 0,
            state: "ok".to_owned(),
            dropped: 0,
            damaged: 0,
            ages: Ages::default(),
            wear: Wear::default(),
            wakes: 0,
            closed: false,
        }
    }

    /// Whether a policy may drop this generation: it is closed, holds not the newest snapshot, nobody reads it, and no
    /// open transaction may hold of it.
    fn may_drop(&self, listed: &Listed) -> bool {
        let newest = self.generations.back().is_some_and(|newest| newest.id == listed.id);
        let (first, end) = (listed.first_sequence, listed.end_sequence());
        let protected = self.protected.is_some_and(|(from, to)| first <= to && from < end);
        listed.closed.is_some() && !newest && !protected && !self.marks.holds(listed.id.number)
    }

    /// The oldest generation that a policy may drop and that `fits`, claimed: until it is dropped or the claim is taken
    /// back nobody begins to read it.
    pub(super) fn claim(&mut self, fits: impl Fn(&Listed) -> bool) -> Option<Listed> {
        let found = self.generations.iter().find(|listed| fits(listed) && self.may_drop(listed)).cloned();
        self.claimed = found.as_ref().map(|listed| listed.id.number);
        found
    }

    /// Takes a generation out of the catalogue, unless it is not there or somebody reads it.
    pub(super) fn take_out(&mut self, id: GenerationId) -> Option<Listed> {
        let at = self.generations.iter().position(|listed| listed.id == id)?;
        if self.marks.holds(id.number) { None } else { self.generations.remove(at) }
    }

    /// Whether a purge is under way in what stands at this sequence or after it.
    pub(super) fn is_purging_from(&self, sequence: u64) -> bool {
        self.purging.is_some_and(|(_, to)| sequence <= to)
    }

    pub(super) fn positions(&self) -> Positions {
        Positions { committed: Sequence(self.committed), durable: Sequence(self.durable_sequence) }
    }
}

impl Shared {
    pub(super) fn new(
        view: View,
        state: StateFile,
        directory: Directory,
        metrics: OutboxMetrics,
        progress: Progress,
        held: HeldBytes,
    ) -> Self {
        Self {
            view: Mutex::new(view),
            changed: Condvar::new(),
            state: Mutex::new(state),
            directory,
            metrics,
            progress,
            held,
            opening: Mutex::new(()),
            terms: Mutex::default(),
            sources: Sources::default(),
            nudged: AtomicBool::new(false),
        }
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One reader opens at a time. Taken before the view, never while that is held.
    pub(super) fn opening(&self) -> MutexGuard<'_, ()> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each source may have.
    pub(super) fn terms(&self) -> MutexGuard<'_, BTreeMap<SourceId, Terms>> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, StateFile> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counters of wear as of now.
    pub(super) fn wear_counts(&self) -> Counts {
        let process_bytes = wear::process_bytes();
        let (syncs, payload_bytes) = (self.metrics.syncs.get(), self.metrics.payload_bytes.get());
        Counts { process_bytes, syncs, payload_bytes }
    }

    /// Changes the view and tells whoever waits.
    pub(super) fn publish<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        let result = change(&mut self.view());
        self.changed.notify_all();
        result
    }

    /// Ends all waits.
    pub(super) fn wake(&self) {
        self.publish(|view| view.wakes += 1);
    }

    /// Waits until `done` says so, a wake, or the deadline.
    pub(super) fn wait(&self, deadline: Instant, done: impl Fn(&View) -> bool) -> MutexGuard<'_, View> {
        let mut view = self.view();
        let wakes = view.wakes;
        while !done(&view) && view.wakes == wakes && !view.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            view = self.changed.wait_timeout(view, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        view
    }

    /// Has the writer look at the view, once.
    pub(super) fn nudge(&self, commands: &Sender<Command>) {
        if !self.nudged.swap(true, Ordering::AcqRel) && commands.send(Command::Nudge).is_err() {
            log::debug!("the outbox is closed: nothing to trim");
        }
    }

    pub(super) fn nudge_taken(&self) {
        self.nudged.store(false, Ordering::Release);
    }
}

/// Most steps kept; then every second one goes.
const AGE_STEPS_MAX: usize = 512;
/// Steps are at least this far apart.
const AGE_STEP_NS: u64 = 500_000_000;

/// When readings came, in steps of half a second and more.
#[derive(Debug, Default)]
pub(super) struct Ages(VecDeque<(u64, ReceiptTime)>);

impl Ages {
    /// The reading with this sequence came at `time`.
    pub(super) fn push(&mut self, sequence: u64, time: ReceiptTime) {
        let close = self
            .0
            .back()
            .is_some_and(|(_, last)| time.mono_ns >= last.mono_ns && time.mono_ns - last.mono_ns < AGE_STEP_NS);
        if close {
            return;
        }
        self.0.push_back((sequence, time));
        if self.0.len() > AGE_STEPS_MAX {
            let mut at = 0;
            self.0.retain(|_| {
                at += 1;
                at % 2 == 1
            });
        }
    }

    /// Age in seconds of the first reading after `committed`, as well as it is known.
    pub(super) fn oldest_seconds(&mut self, committed: u64, now: ReceiptTime) -> f64 {
        while self.0.len() > 1 && self.0[1].0 <= committed + 1 {
            self.0.pop_front();
        }
        let Some((_, then)) = self.0.front() else { return 0.0 };
        // Stamps of an earlier boot stand ahead of the boot clock more often than not; then the wall clock must do.
        let nanoseconds = if then.mono_ns != 0 && then.mono_ns <= now.mono_ns {
            (now.mono_ns - then.mono_ns) as f64
        } else {
            (now.wall_ns.saturating_sub(then.wall_ns)).max(0) as f64
        };
        nanoseconds / 1e9
    }
}
