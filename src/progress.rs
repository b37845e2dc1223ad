//! Each loop of the daemon says what it is doing and that it still turns; health and the watchdog read it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Handle of one loop. Cheap to clone; all clones speak of the same loop.
#[derive(Debug, Clone)]
pub struct Progress {
    name: Arc<str>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    phase: &'static str,
    phase_since: Instant,
    last_beat: Instant,
    stall_after: Duration,
}

/// What a loop last said.
#[derive(Debug, Clone)]
pub struct ProgressView {
    /// Name of the loop, for example `outbox-writer`.
    pub name: Arc<str>,
    /// What it is doing.
    pub phase: &'static str,
    /// For how long it has been in this phase.
    pub phase_age: Duration,
    /// Time since it last turned.
    pub beat_age: Duration,
    /// Whether it has been silent longer than this phase may take.
    pub stalled: bool,
}

impl Progress {
    /// A loop that counts as stalled when it neither beats nor changes phase for `stall_after`.
    pub fn new(name: &str, stall_after: Duration) -> Self {
        let now = Instant::now();
        let inner = Inner { phase: "starting", phase_since: now, last_beat: now, stall_after };
        Self { name: name.into(), inner: Arc::new(Mutex::new(inner)) }
    }

    /// The loop turns.
    pub fn beat(&self) {
        self.lock().last_beat = Instant::now();
    }

    /// The loop enters a phase that may take `stall_after` without a beat (an fsync on an SD card: 120 s).
    pub fn phase(&self, phase: &'static str, stall_after: Duration) {
        let now = Instant::now();
        let mut inner = self.lock();
        if inner.phase != phase {
            inner.phase = phase;
            inner.phase_since = now;
        }
        inner.last_beat = now;
        inner.stall_after = stall_after;
    }

    /// What the loop last said.
    pub fn view(&self) -> ProgressView {
        let inner = self.lock();
        let beat_age = inner.last_beat.elapsed();
        ProgressView {
            name: self.name.clone(),
            phase: inner.phase,
            phase_age: inner.phase_since.elapsed(),
            beat_age,
            stalled: beat_age > inner.stall_after,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
