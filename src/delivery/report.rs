//! What the drain tells the outside: the part of `/status`, and the log line of each failure.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
    away: Option<Away>,
}

/// The cluster does not answer.
#[derive(Debug)]
struct Away {
    since: Instant,
    since_text: String,
    /// When it was told last, and the pause until it is told again; not yet told if `None`.
    told: Option<(Instant, Duration)>,
}

/// A commit on a slow link, a topic that is being made, a predecessor's transaction that is being ended: all ask to be
/// repeated for this long before the cluster counts as away.
const PATIENCE: Duration = Duration::from_secs(20);
/// An outage is told again after this, then after twice that, ...
const TELL_AGAIN_FIRST: Duration = Duration::from_secs(60);
/// ... at least so often.
const TELL_AGAIN_MAX: Duration = Duration::from_secs(3600);

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
        Self { inner: Mutex::new(Inner { status, alarms: BTreeMap::new(), last_logged: String::new(), away: None }) }
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
    }

    /// The cluster has answered what it was asked; so many readings wait.
    pub(crate) fn answered(&self, waiting: u64) {
        let mut inner = self.lock();
        inner.alarms.remove("unreachable");
        let Some(away) = inner.away.take().filter(|away| away.told.is_some()) else { return };
        drop(inner);
        log::info!("Kafka is back after {}; {waiting} readings wait for it", in_words(away.since.elapsed()));
    }

    /// The cluster did not answer. What is to be said about that, if anything.
    fn not_answered(&self, text: &str, phase: &str, at: Instant) -> Option<String> {
        let mut inner = self.lock();
        let away = inner.away.get_or_insert_with(|| Away { since: at, since_text: now(), told: None });
        let lasted = at.saturating_duration_since(away.since);
        let is_lost = phase == "initialising" && !text.contains("CONCURRENT_TRANSACTIONS");
        if !is_lost && lasted < PATIENCE {
            return None;
        }
        let alarm = format!("unreachable: Kafka does not answer since {}: {text}", away.since_text);
        let tell = match &mut away.told {
            None => {
                away.told = Some((at, TELL_AGAIN_FIRST));
                Some(format!(
                    "Kafka does not answer ({text}); readings are kept in the outbox, it is tried all the time"
                ))
            }
            Some((last, pause)) if at.saturating_duration_since(*last) >= *pause => {
                (*last, *pause) = (at, (*pause * 2).min(TELL_AGAIN_MAX));
                Some(format!(
                    "Kafka does not answer for {} ({text}); readings are kept in the outbox",
                    in_words(lasted)
                ))
            }
            Some(_) => None,
        };
        inner.alarms.insert("unreachable", alarm);
        tell
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
        drop(inner);
        match error {
            SinkError::Retry(_) => match self.not_answered(&text, phase, Instant::now()) {
                Some(line) => log::warn!("{line}"),
                None => log::debug!("{phase}: {text}"),
            },
            _ if !first_time => log::debug!("{phase}: {text}"),
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

/// `3 h 12 min`, `4 min 3 s`, `12 s`.
fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_at_once_then_seldom_and_its_alarm_ends_with_it() {
        let (report, start) = (Report::new("exactly once"), Instant::now());
        let day = (0..86_400).step_by(2).map(|second| start + Duration::from_secs(second));
        let told: Vec<String> = day.filter_map(|at| report.not_answered("refused", "initialising", at)).collect();
        assert!(told[0].starts_with("Kafka does not answer (refused)"), "{told:?}");
        assert!(told[1].starts_with("Kafka does not answer for 1 min"), "{told:?}");
        assert!((24..=32).contains(&told.len()), "{}", told.len());
        let alarms = report.status().alarms;
        assert!(alarms.len() == 1 && alarms[0].starts_with("unreachable: Kafka does not answer since "), "{alarms:?}");
        report.answered(5);
        assert!(report.status().alarms.is_empty());
        assert!(report.not_answered("refused", "initialising", start).is_some(), "a new outage is told at once");
    }

    #[test]
    fn a_commit_that_takes_some_slices_is_no_outage() {
        let (report, start) = (Report::new("exactly once"), Instant::now());
        assert_eq!(report.not_answered("slice", "committing", start), None);
        assert_eq!(report.not_answered("slice", "committing", start + Duration::from_secs(10)), None);
        assert!(report.status().alarms.is_empty());
        assert!(report.not_answered("slice", "committing", start + Duration::from_secs(20)).is_some());
    }
}
