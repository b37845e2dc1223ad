//! What librdkafka tells beside delivery reports: logs, errors, statistics. Logs go to the target `fieldpost::kafka`,
//! limited in rate: an outage of days must not fill the journal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::client::Events;
use super::code::Code;
use crate::metrics::DeliveryMetrics;

/// Lines that may be shown per window at info and above.
const LINES_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);

/// One client's events.
pub(super) struct ClientEvents {
    metrics: DeliveryMetrics,
    rate: Mutex<(Instant, u32)>,
    suppressed: AtomicU64,
    /// What the client said last about its connections: the calls that fail only know that time is over.
    last_error: Mutex<Option<String>>,
}

/// The part of the statistics that is looked at.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: std::collections::BTreeMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    #[serde(default)]
    rtt: Window,
    #[serde(default)]
    req_timeouts: u64,
}

#[derive(Deserialize, Default)]
struct Window {
    /// Microseconds.
    #[serde(default)]
    avg: i64,
    #[serde(default)]
    cnt: i64,
}

impl ClientEvents {
    pub(super) fn new(metrics: DeliveryMetrics) -> Self {
        Self {
            metrics,
            rate: Mutex::new((Instant::now(), 0)),
            suppressed: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// The text of the last error, if there was one.
    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one more line may be shown; a new window tells how many were not.
    fn may_show(&self) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        if rate.0.elapsed() >= WINDOW {
            *rate = (Instant::now(), 0);
            let suppressed = self.suppressed.swap(0, Ordering::Relaxed);
            if suppressed > 0 {
                log::info!(target: "fieldpost::kafka", "{suppressed} more lines of the Kafka client were not shown");
            }
        }
        rate.1 += 1;
        if rate.1 > LINES_MAX {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
        }
        rate.1 <= LINES_MAX
    }
}

impl Events for ClientEvents {
    fn log(&self, level: i32, facility: &str, text: &str) {
        // syslog levels; what heals by itself, or is told by the call that fails, is for debugging only.
        let transient =
            matches!(facility, "FAIL" | "REQTMOUT" | "ERROR" | "GETPID" | "TXNERR" | "CONFWARN" | "TERMINATE");
        if level > 5 || transient {
            log::debug!(target: "fieldpost::kafka", "{facility}: {text}");
        } else if self.may_show() {
            let level = if level <= 3 { log::Level::Warn } else { log::Level::Info };
            log::log!(target: "fieldpost::kafka", level, "{facility}: {text}");
        }
    }

    fn error(&self, code: Code, text: &str) {
        self.metrics.kafka_errors.inc();
        if code != Code::ALL_BROKERS_DOWN {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
        }
        if code == Code::ALL_BROKERS_DOWN || !self.may_show() {
            log::debug!(target: "fieldpost::kafka", "{code}: {text}");
        } else {
            log::info!(target: "fieldpost::kafka", "{code}: {text}");
        }
    }

    fn statistics(&self, json: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(json) else { return };
        let mut timeouts = 0;
        for (name, broker) in statistics.brokers {
            timeouts += broker.req_timeouts;
            if broker.rtt.cnt > 0 && !name.starts_with("GroupCoordinator") {
                self.metrics.observe_latency(&name, broker.rtt.avg as f64 / 1e6);
            }
        }
        self.metrics.kafka_request_timeouts.set(i64::try_from(timeouts).unwrap_or(i64::MAX));
    }

    fn abandoned(&self) {
        self.metrics.abandoned_clients.inc();
        log::error!(
            target: "fieldpost::kafka",
            "a Kafka client did not end in time and was left behind; delivery goes on with a new one. Restart Fieldpost at \
             the next occasion if this happens again"
        );
    }
}
