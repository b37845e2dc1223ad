//! What the drain tells the outside: the part of `/status`, and the log line of each failure.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::delivery::sink::SinkError;
use crate::status::DeliveryStatus;

/// Shared between the loop and whoever asks.
#[derive(Debug)]
pub(crate) struct Report {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: DeliveryStatus,
    /// One alarm per kind; what is cured takes its own away.
    alarms: BTreeMap<&'static str, String>,
    last_logged: String,
    /// That the cluster is waited for was said since the last commit.
    told_waiting: bool,
}

fn now() -> String {
    clock::rfc3339(clock::now().wall_ns)
}

impl Report {
    /// With the promise that is in force.
    pub(crate) fn new(guarantee: &str) -> Self {
        let status = DeliveryStatus {
            phase: "offline".to_owned(),
            since: now(),
            guarantee: guarantee.to_owned(),
            ..DeliveryStatus::default()
        };
        Self {
            inner: Mutex::new(Inner {
                status,
                alarms: BTreeMap::new(),
                last_logged: String::new(),
                told_waiting: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it stands.
    pub(crate) fn status(&self) -> DeliveryStatus {
        let inner = self.lock();
        DeliveryStatus { alarms: inner.alarms.values().cloned().collect(), ..inner.status.clone() }
    }

    /// The state of the machine.
    pub(crate) fn phase(&self, phase: &str) {
        let mut inner = self.lock();
        if inner.status.phase != phase {
            inner.status.phase = phase.to_owned();
            inner.status.since = now();
        }
    }

    /// A transaction of so many records is committed.
    pub(crate) fn committed(&self, records: u64) {
        let mut inner = self.lock();
        inner.status.transactions += 1;
        inner.status.records += records;
        inner.status.last_commit_at = Some(now());
        inner.last_logged.clear();
        inner.told_waiting = false;
    }

    /// Raises or takes away the alarm of a kind.
    pub(crate) fn set_alarm(&self, kind: &'static str, alarm: Option<String>) {
        let mut inner = self.lock();
        match alarm {
            Some(alarm) => {
                inner.alarms.insert(kind, alarm);
            }
            None => {
                inner.alarms.remove(kind);
            }
        }
    }

    /// Shows a failure, and logs it unless it is the one that was logged last.
    pub(crate) fn failed(&self, error: &SinkError, phase: &str) {
        let text = error.to_string();
        match error {
            SinkError::Blocked(_) => self.set_alarm("blocked", Some(text.clone())),
            SinkError::Configuration(_) => self.set_alarm("configuration", Some(text.clone())),
            SinkError::Fatal(_) => self.set_alarm("held", Some(text.clone())),
            SinkError::Retry(_) | SinkError::Recycle { .. } | SinkError::Poison { .. } => {}
        }
        let mut inner = self.lock();
        inner.status.last_error = Some(format!("{} {text}", now()));
        let first_time = inner.last_logged != text;
        inner.last_logged.clone_from(&text);
        let tell_waiting = matches!(error, SinkError::Retry(_)) && phase == "initialising" && !inner.told_waiting;
        inner.told_waiting |= tell_waiting;
        drop(inner);
        match error {
            SinkError::Retry(_) if tell_waiting => {
                log::info!("waiting for the Kafka cluster ({text}); readings are kept in the outbox");
            }
            _ if !first_time => log::debug!("{phase}: {text}"),
            SinkError::Retry(_) => log::debug!("{phase}: {text}"),
            SinkError::Recycle { .. } => {
                log::warn!("a transaction or connection failed ({text}); a new client asks the ledger what came of it");
            }
            SinkError::Poison { .. } => log::warn!("the cluster refuses a record for good ({text}); looking for it"),
            SinkError::Blocked(_) => log::warn!("delivery waits: {text}"),
            SinkError::Configuration(_) => log::error!("delivery cannot go on, it tries again every minute: {text}"),
            SinkError::Fatal(_) => log::error!("delivery is held: {text}"),
        }
    }
}
