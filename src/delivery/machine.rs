//! The states of the drain: which step comes after which, how long to wait, how much to send. Pure: no clock, no I/O.
//!
//! ```text
//! Offline -> Initialising -> Recovering -> Idle <-> Committing
//!                ^                          |           |
//!                +------- Recycling <-------+-----------+        Halted: for this process' life
//! ```
//!
//! Rules (measured on Apache Kafka 3.9, 4.1, 4.2 with librdkafka 2.12.1):
//!
//! - Any failure after `begin` that is not "call the same function again" replaces the client. Nothing is aborted: making
//!   the next client the live one ends the old transaction one way or the other, and the ledger tells which.
//! - A commit for which `EndTxn` was sent more than once replaces the client too: a late copy may otherwise commit half
//!   of the next transaction, because the epoch stays the same.
//! - A transaction that failed by time is halved, down to one record; one record alone raises the time-outs. Failures in a
//!   row cut deeper, for each costs a recovery over the same slow link. A good one that was quick grows the batch by a
//!   quarter; one that came near its time-out does not, or the size would swing.
//! - Transactions are spaced by a multiple of their overhead, so that a cluster in overload is not driven deeper.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::delivery::poison::{Bisect, Span};
use crate::delivery::sink::{Condemned, RecycleReason, SinkError};
use crate::record::Sequence;

/// Broker default of `transaction.max.timeout.ms`.
const TRANSACTION_TIMEOUT_MAX: Duration = Duration::from_secs(900);
/// Least time between two begins.
const BEGIN_GAP_MIN: Duration = Duration::from_millis(50);
/// Most time between two begins.
const BEGIN_GAP_MAX: Duration = Duration::from_secs(2);
/// The gap between begins is this many times the overhead of the last transaction.
const BEGIN_GAP_FACTOR: u32 = 4;
/// A wrong configuration or a missing permission is tried again after this.
const CONFIGURATION_PAUSE: Duration = Duration::from_secs(60);
/// What blocks the begin of a transaction is looked at again after this.
const BLOCKED_PAUSE: Duration = Duration::from_secs(3);
/// Pause after a call that asked to be repeated, so that one which returns at once does not spin.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The first return after a loss comes at random within this time.
const FIRST_RETURN_SPREAD: Duration = Duration::from_secs(2);
/// Good transactions at full size after which raised time-outs go back to their floors.
const GOOD_BEFORE_LOWERING: u32 = 20;
/// Only a transaction that took less than this part of the message time-out lets the batch grow.
const QUICK_FRACTION: u32 = 3;
/// Halvings after one failure at most, however many came in a row.
const HALVINGS_MAX: u32 = 4;
/// Smallest `batch.size` of the producer.
const REQUEST_BYTES_MIN: usize = 16 << 10;

/// How much, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Items a waiting batch goes at.
    pub(crate) records: usize,
    /// Bytes it goes at.
    pub(crate) bytes: usize,
    /// Bytes of one produce request (`batch.size`).
    pub(crate) request_bytes: usize,
    /// `transaction.timeout.ms`
    pub(crate) transaction_timeout: Duration,
    /// `message.timeout.ms`, below the above.
    pub(crate) message_timeout: Duration,
}

/// What the driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Begin, or: the wait is over and there is nothing to say.
    Tick,
    /// The client is the live one.
    Connected,
    /// Position and identity are clear.
    Recovered,
    /// The identity check says: do not deliver.
    Held(String),
    /// A batch waits and may go.
    Ready,
    /// Everything, the ledger record last, is handed over.
    Sent(Span, usize),
    /// The commit returned success.
    Committed {
        /// Last sequence in it.
        upto: Sequence,
        /// See `Receipt`.
        overhead: Duration,
        /// See `Receipt`.
        end_txn_sent: u64,
    },
    /// A step failed. What was in the transaction, if one was begun, and its bytes.
    Failed(SinkError, Option<(Span, usize)>),
    /// The client is closed.
    Closed,
}

/// What the driver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// One slice of connecting.
    Connect,
    /// Read the ledger, check the identity, read the tails if in doubt.
    Recover,
    /// Wait for a batch; it may begin at this time.
    Collect(Instant),
    /// Send a batch.
    Transact,
    /// One slice of committing.
    Commit,
    /// Drop the client.
    Close,
    /// Wait until then, or until asked to stop.
    WaitUntil(Instant),
    /// Nothing more will be done.
    Rest,
}

/// Where the drain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Not begun.
    Offline,
    /// Making a client the live one.
    Initialising,
    /// Reading ledger and tails.
    Recovering,
    /// Waiting for readings.
    Idle,
    /// A transaction is open, sending or committing.
    Committing {
        /// When it began.
        since: Instant,
    },
    /// Waiting before the next client.
    Recycling {
        /// Until when.
        until: Instant,
    },
    /// Not delivering for the rest of this process' life.
    Halted {
        /// Why, and what to do.
        reason: String,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    floors: Limits,
    limits: Limits,
    backoff: Backoff,
    bisect: Bisect,
    next_begin: Option<Instant>,
    began: Option<Instant>,
    span: Option<(Span, usize)>,
    good: u32,
    time_failures: u32,
    /// The cluster takes no longer time-out than this.
    transaction_timeout_max: Duration,
    unclean: bool,
    recycled: Option<RecycleReason>,
}

impl Machine {
    /// With the configured limits, which are also the ones to return to.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            state: State::Offline,
            floors: limits.clone(),
            limits,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(30)),
            bisect: Bisect::default(),
            next_begin: None,
            began: None,
            span: None,
            good: 0,
            time_failures: 0,
            transaction_timeout_max: TRANSACTION_TIMEOUT_MAX,
            unclean: false,
            recycled: None,
        }
    }

    /// Where the drain stands.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// The word for it in `/status`.
    pub(crate) fn phase(&self) -> &'static str {
        match self.state {
            State::Offline => "offline",
            State::Initialising => "initialising",
            State::Recovering => "recovering",
            State::Idle => "idle",
            State::Committing { .. } => "committing",
            State::Recycling { .. } => "recycling",
            State::Halted { .. } => "halted",
        }
    }

    /// Limits of the next transaction and the next client.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = self.limits.clone();
        if let Some(records) = self.bisect.records_max() {
            limits.records = limits.records.min(records);
        }
        limits.request_bytes = limits.request_bytes.min(limits.bytes).max(REQUEST_BYTES_MIN);
        limits
    }

    /// Whether a transaction may stream past the limits: only while nothing has shrunk.
    pub(crate) fn may_stream(&self) -> bool {
        self.limits.bytes >= self.floors.bytes && self.bisect.records_max().is_none()
    }

    /// Records that are to be sent as dead letters.
    pub(crate) fn condemned(&self) -> &[Condemned] {
        self.bisect.condemned()
    }

    /// A transaction of this process ended without a known outcome, and recovery has not settled it yet.
    pub(crate) fn unclean(&self) -> bool {
        self.unclean
    }

    /// The reason of the recycling that was just decided; taken once.
    pub(crate) fn take_recycled(&mut self) -> Option<RecycleReason> {
        self.recycled.take()
    }

    /// The next step.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Action {
        if matches!(self.state, State::Halted { .. }) {
            return Action::Rest;
        }
        match event {
            Event::Tick => self.go_on(now),
            Event::Connected => {
                self.state = State::Recovering;
                Action::Recover
            }
            Event::Recovered => {
                self.unclean = false;
                self.state = State::Idle;
                self.collect(now)
            }
            Event::Held(reason) => self.halt(reason),
            Event::Ready => {
                self.state = State::Committing { since: now };
                self.began = Some(now);
                Action::Transact
            }
            Event::Sent(span, bytes) => {
                self.span = Some((span, bytes));
                Action::Commit
            }
            Event::Committed { upto, overhead, end_txn_sent } => self.committed(upto, overhead, end_txn_sent, now),
            Event::Failed(error, sent) => self.failed(error, sent, now),
            Event::Closed => match self.state {
                State::Recycling { until } => Action::WaitUntil(until),
                _ => self.go_on(now),
            },
        }
    }

    fn go_on(&mut self, now: Instant) -> Action {
        match self.state {
            State::Offline | State::Recycling { .. } => {
                self.state = State::Initialising;
                Action::Connect
            }
            State::Initialising => Action::Connect,
            State::Recovering => Action::Recover,
            State::Idle => self.collect(now),
            State::Committing { .. } => Action::Commit,
            State::Halted { .. } => Action::Rest,
        }
    }

    fn collect(&self, now: Instant) -> Action {
        Action::Collect(self.next_begin.map_or(now, |at| at.max(now)))
    }

    fn halt(&mut self, reason: String) -> Action {
        self.state = State::Halted { reason };
        Action::Close
    }

    fn committed(&mut self, upto: Sequence, overhead: Duration, end_txn_sent: u64, now: Instant) -> Action {
        self.backoff.reset();
        self.bisect.delivered(upto);
        let took = self.began.map_or(Duration::ZERO, |began| now - began);
        self.time_failures = 0;
        self.grow(took);
        let gap = (overhead * BEGIN_GAP_FACTOR).clamp(BEGIN_GAP_MIN, BEGIN_GAP_MAX);
        self.next_begin = self.began.take().map(|began| began + gap);
        self.span = None;
        if end_txn_sent > 1 {
            return self.recycle(RecycleReason::Hygiene, now, now);
        }
        self.state = State::Idle;
        self.collect(now)
    }

    fn grow(&mut self, took: Duration) {
        self.good = self.good.saturating_add(1);
        if self.limits.bytes < self.floors.bytes {
            if took > self.limits.message_timeout / QUICK_FRACTION {
                return;
            }
            self.limits.bytes = (self.limits.bytes + self.limits.bytes / 4 + 1).min(self.floors.bytes);
            self.good = 0;
        } else if self.good >= GOOD_BEFORE_LOWERING {
            // Takes effect with the next client.
            self.limits.transaction_timeout = self.floors.transaction_timeout;
            self.limits.message_timeout = self.floors.message_timeout;
        }
    }

    fn failed(&mut self, error: SinkError, sent: Option<(Span, usize)>, now: Instant) -> Action {
        // What was sent without its ledger record can be neither repeated nor committed.
        let error = match error {
            SinkError::Retry(text) | SinkError::Blocked(text) if sent.is_some() => {
                SinkError::Recycle { reason: RecycleReason::Error, text }
            }
            other => other,
        };
        let sent = sent.or(self.span.take());
        match error {
            // Only a commit is repeated inside a transaction; before one, the whole step is.
            SinkError::Retry(_) => match self.state {
                State::Committing { since } if sent.is_some() && now - since > self.commit_patience() => {
                    self.unclean = true;
                    let until = now + self.recycle_delay(RecycleReason::Error);
                    self.recycle(RecycleReason::Error, until, now)
                }
                State::Committing { .. } if sent.is_some() => {
                    self.span = sent;
                    Action::Commit
                }
                State::Committing { .. } => {
                    self.state = State::Idle;
                    Action::WaitUntil(now + RETRY_PAUSE)
                }
                _ => Action::WaitUntil(now + RETRY_PAUSE),
            },
            SinkError::Blocked(_) => {
                if let State::Committing { .. } = self.state {
                    self.state = State::Idle;
                }
                Action::WaitUntil(now + BLOCKED_PAUSE)
            }
            SinkError::Recycle { reason, .. } => {
                let reason = self.refine(reason, now);
                self.unclean |= sent.is_some();
                if reason == RecycleReason::Time {
                    self.shrink(sent);
                }
                let until = now + self.recycle_delay(reason);
                self.recycle(reason, until, now)
            }
            SinkError::Poison { code, text, too_large } => {
                self.unclean |= sent.is_some();
                if let Some((span, _)) = sent {
                    self.bisect.refused(span, &code, &text);
                }
                if too_large {
                    self.limits.request_bytes = (self.limits.request_bytes / 4).max(REQUEST_BYTES_MIN);
                }
                // The cluster is well: no back-off while halving, or the search would take long. A record alone is tried
                // a few times at most, unless whatever is tried is refused.
                let alone = sent.is_none_or(|(span, _)| span.records <= 1);
                let until = if alone { now + self.backoff.next_delay() } else { now };
                self.recycle(RecycleReason::Poison, until, now)
            }
            SinkError::Configuration(_) => {
                self.unclean |= sent.is_some();
                // A broker whose maximum lies below the raised time-out refuses the client: one step down, and no higher
                // again.
                let raised = self.limits.transaction_timeout > self.floors.transaction_timeout;
                if raised && self.state == State::Initialising {
                    self.transaction_timeout_max =
                        (self.limits.transaction_timeout / 2).max(self.floors.transaction_timeout);
                    self.bound_timeouts();
                }
                self.recycle(RecycleReason::Error, now + CONFIGURATION_PAUSE, now)
            }
            SinkError::Fatal(reason) => {
                self.unclean |= sent.is_some();
                self.halt(reason)
            }
        }
    }

    /// The coordinator has ended a transaction of this age one way or the other: a commit that still only asks to be
    /// called again hangs in the client, and the ledger knows the outcome.
    fn commit_patience(&self) -> Duration {
        self.limits.transaction_timeout + self.limits.message_timeout
    }

    /// Fenced after most of the transaction time-out: it was the coordinator's clock, not another instance.
    fn refine(&self, reason: RecycleReason, now: Instant) -> RecycleReason {
        match (reason, self.began) {
            (RecycleReason::Fenced, Some(began)) if now - began >= self.limits.transaction_timeout.mul_f64(0.8) => {
                RecycleReason::Time
            }
            _ => reason,
        }
    }

    fn recycle_delay(&mut self, reason: RecycleReason) -> Duration {
        // A whole fleet loses its cluster at once: spread the first return.
        let first_after_loss = self.backoff.attempts() == 0 && reason == RecycleReason::Time;
        let delay = self.backoff.next_delay();
        if first_after_loss { delay + FIRST_RETURN_SPREAD.mul_f64(random_fraction()) } else { delay }
    }

    fn recycle(&mut self, reason: RecycleReason, until: Instant, now: Instant) -> Action {
        self.began = None;
        self.span = None;
        self.good = 0;
        self.recycled = Some(reason);
        self.state = State::Recycling { until: until.max(now) };
        Action::Close
    }

    fn shrink(&mut self, sent: Option<(Span, usize)>) {
        let Some((span, bytes)) = sent else { return };
        if span.records > 1 {
            self.time_failures = self.time_failures.saturating_add(1);
            self.limits.bytes = (bytes.min(self.limits.bytes) >> self.time_failures.min(HALVINGS_MAX)).max(1);
            return;
        }
        self.limits.message_timeout *= 2;
        self.limits.transaction_timeout =
            (self.limits.message_timeout.mul_f64(1.5)).max(self.limits.transaction_timeout);
        self.bound_timeouts();
    }

    /// Both time-outs within what the cluster takes; the message's stays below the transaction's.
    fn bound_timeouts(&mut self) {
        let longest_message = self.transaction_timeout_max.mul_f64(2.0 / 3.0).max(self.floors.message_timeout);
        self.limits.message_timeout = self.limits.message_timeout.min(longest_message);
        self.limits.transaction_timeout = self.limits.transaction_timeout.min(self.transaction_timeout_max);
    }
}

fn random_fraction() -> f64 {
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
