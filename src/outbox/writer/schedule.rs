//! When the loop must turn, and what is due then.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::config;
use crate::config::outbox::Sync;

use super::{BEAT_EVERY, ROOM_EVERY, Writer};

/// `pos` is synced at most this often.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// Control entries wait this long for company.
const CONTROL_WAIT: Duration = Duration::from_secs(1);
/// Metrics are brought up to date at most this often.
const METRICS_EVERY: Duration = Duration::from_millis(500);
/// The same failure is told at most this often.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// So many works wait for no more company: another sync is dear no longer, and a broker may send no more than this (half
/// of the default `receive_maximum`) before the first is acknowledged.
const COMPANY_WORKS: usize = 500;
/// So much of `held_bytes_max` waits for no more company.
const COMPANY_HELD_DIVISOR: usize = 16;
/// Pauses between tries after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// When things were last done, and when what failed is tried again.
#[derive(Debug)]
pub(super) struct Timers {
    pub(super) retry: Backoff,
    pub(super) retry_at: Option<Instant>,
    pub(super) position_at: Instant,
    pub(super) metrics_at: Instant,
    /// The failure told last, and when.
    told: Option<(String, Instant)>,
}

impl Timers {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { retry: Backoff::new(RETRY.0, RETRY.1), retry_at: None, position_at: now, metrics_at: now, told: None }
    }

    /// Whether a failure is still waited out.
    pub(super) fn is_waiting_out(&self) -> bool {
        self.retry_at.is_some_and(|at| at > Instant::now())
    }

    /// Whether a failure is news: another one than before, or long ago.
    pub(super) fn may_tell(&mut self, text: &str) -> bool {
        let known = self.told.as_ref().is_some_and(|(known, at)| known == text && at.elapsed() < TELL_EVERY);
        if !known {
            self.told = Some((text.to_owned(), Instant::now()));
        }
        !known
    }

    pub(super) fn metrics_are_due(&self) -> bool {
        self.metrics_at.elapsed() >= METRICS_EVERY
    }

    pub(super) fn position_is_due(&self) -> bool {
        self.position_at.elapsed() >= POSITION_EVERY
    }
}

/// How long a sync waits for company: what of serial lines and QoS 0 may be lost with the process or the power.
pub(in crate::outbox) fn gather(config: &config::Outbox) -> Duration {
    match config.sync {
        Sync::Batch => config.gather.0,
        Sync::Interval(span) => config.gather.0.max(span.0),
    }
}

impl Writer {
    /// When the loop must turn again without being asked.
    pub(super) fn next_due(&self) -> Instant {
        let now = Instant::now();
        let mut due = now + BEAT_EVERY;
        if !self.queue.is_empty() {
            due = due.min(self.commit_due());
        }
        if let Some(at) = self.door_due() {
            due = due.min(at);
        }
        if self.position_is_behind() {
            due = due.min(self.timers.position_at + POSITION_EVERY);
        }
        due
    }

    /// When what waits is to be written.
    fn commit_due(&self) -> Instant {
        let since = self.queue.waiting_since().unwrap_or_else(Instant::now);
        if let Some(at) = self.timers.retry_at {
            return at;
        }
        if self.takes_nothing() {
            // Only what needs no room, and whatever room there is by then.
            return self.room.looked_at + ROOM_EVERY;
        }
        if self.closing {
            return since;
        }
        if self.queue.is_patient() {
            return since + CONTROL_WAIT;
        }
        if self.has_company() {
            return since;
        }
        since + gather(&self.config)
    }

    /// Whether so much waits that it is written at once, whatever the window.
    fn has_company(&self) -> bool {
        let (held, max) = self.shared.held.inside_and_max();
        self.queue.len() >= COMPANY_WORKS || held > max / COMPANY_HELD_DIVISOR
    }

    pub(super) fn is_due(&self) -> bool {
        !self.queue.is_empty() && Instant::now() >= self.commit_due()
    }
}
