//! The drain: outbox to Kafka, exactly once.
//!
//! ```text
//! outbox -> encode -> begin, records, ledger record, commit -> trim
//! ```
//!
//! Every transaction carries a ledger record with the position it reaches; after anything unclear a new client fences the
//! old one and reads the ledger. What comes after what is decided in `machine` (pure), done in `driver`; who we are is
//! decided in `ledger` (pure); the cluster is behind the trait [`sink::Sink`], in `kafka`. Begin reading at `machine`.

mod check;
mod dead;
mod driver;
mod durable_file;
mod encode;
mod feed;
#[cfg(test)]
mod fixture_tests;
mod kafka;
mod ledger;

mod machine;
mod merge;
mod poison;
mod report;
mod sink;
mod visible;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::config;
use crate::config::delivery::{Mode, PositionStore};
use crate::metrics::DeliveryMetrics;
use crate::outbox::Outbox;
use crate::progress::Progress;
use crate::status::DeliveryStatus;

#[cfg(test)]
pub(crate) use fixture_tests::write_fixture_files;

use driver::{Driver, Timing};
use feed::OutboxFeed;
use kafka::{Kafka, KafkaOptions};
use machine::{Limits, Machine};
use report::Report;

/// Bytes of one produce request: below every broker's `message.max.bytes`, and a short retransmission.
const REQUEST_BYTES: usize = 256 << 10;
const STALL_AFTER: Duration = Duration::from_secs(120);
const GUARANTEE: &str =
    "exactly once: a read_committed consumer sees every accepted reading once, in order per source and device";

/// What the drain needs to run.
#[derive(Debug)]
pub struct DeliveryOptions {
    /// `[delivery]`
    pub config: config::Delivery,
    /// The agent's id.
    pub agent_id: String,
    /// Largest record, bytes as Kafka counts (`outbox.record_bytes_max`).
    pub record_bytes_max: usize,
    /// Handles.
    pub metrics: DeliveryMetrics,
}

/// The running drain.
#[derive(Debug)]
pub struct DeliveryHandle {
    outbox: Outbox,
    stop: Arc<AtomicBool>,
    progress: Progress,
    report: Arc<Report>,
    /// Closes when the thread ends.
    ended: Mutex<mpsc::Receiver<()>>,
}

/// Starts the thread `delivery`. Fails only on settings that no retry can cure (a property librdkafka refuses, a file
/// that cannot be read); an unreachable cluster is no failure.
pub fn start(outbox: Outbox, options: DeliveryOptions) -> Result<DeliveryHandle, String> {
    let DeliveryOptions { config, agent_id, record_bytes_max, metrics } = options;
    refuse_what_is_not_built(&config)?;
    let limits = limits_of(&config)?;
    let progress = Progress::new("delivery", STALL_AFTER);
    let report = Arc::new(Report::new(GUARANTEE));
    let stop = Arc::new(AtomicBool::new(false));
    let timing = Timing { max_wait: config.max_wait.0, on_cluster_change: config.on_cluster_change };
    let kafka = KafkaOptions {
        config,
        agent_id,
        record_bytes_max,
        metrics: metrics.clone(),
        progress: progress.clone(),
        stop: stop.clone(),
        directory: outbox.directory(),
        max_bytes: outbox.max_bytes(),
        ever_began: outbox.identity().ever_began,
    };
    let sink = Kafka::new(kafka, &limits)?;
    let feed = OutboxFeed::new(outbox.clone());
    let driver =
        Driver::new(sink, feed, Machine::new(limits), timing, stop.clone(), progress.clone(), report.clone(), metrics);
    let (alive, ended) = mpsc::sync_channel(1);
    let run = move || {
        // Dropped when the loop returns or unwinds: that is what `stop` waits for.
        let _alive: mpsc::SyncSender<()> = alive;
        driver.run();
    };
    std::thread::Builder::new()
        .name("delivery".to_owned())
        .spawn(run)
        .map_err(|error| format!("cannot start the thread delivery: {error}"))?;
    Ok(DeliveryHandle { outbox, stop, progress, report, ended: Mutex::new(ended) })
}

/// Checks what [`start`] would refuse, without starting: for `check-config`. All mistakes, each as `key: what is wrong`,
/// the key below `delivery`.
pub fn check(config: &config::Delivery) -> Vec<String> {
    check::check(config)
}

/// Settings of the contract that this version does not have yet: said, never ignored.
fn refuse_what_is_not_built(config: &config::Delivery) -> Result<(), String> {
    let not_yet = |what: &str| Err(format!("this version does not have {what} yet"));
    if config.mode != Mode::Txn {
        return not_yet("delivery.mode = \"idempotent\"; use \"txn\"");
    }
    if config.position != PositionStore::Ledger {
        return not_yet("delivery.position = \"group\"; use \"ledger\"");
    }
    if config.rate_max != "off" {
        return not_yet("delivery.rate_max; use \"off\"");
    }
    if !config.windows.is_empty() {
        return not_yet("delivery.windows; leave it empty");
    }
    Ok(())
}

fn limits_of(config: &config::Delivery) -> Result<Limits, String> {
    if config.message_timeout >= config.transaction_timeout {
        return Err(format!(
            "delivery.message_timeout ({}) must be below delivery.transaction_timeout ({})",
            config.message_timeout, config.transaction_timeout
        ));
    }
    if config.batch_records_max == 0 || config.batch_bytes_max.0 == 0 {
        return Err("delivery.batch_records_max and delivery.batch_bytes_max must be above 0".to_owned());
    }
    Ok(Limits {
        records: (config.batch_records_max as usize).min(driver::TRANSACTION_SEQUENCES_MAX as usize),
        bytes: config.batch_bytes_max.bytes(),
        request_bytes: REQUEST_BYTES,
        transaction_timeout: config.transaction_timeout.0,
        message_timeout: config.message_timeout.0,
    })
}

impl DeliveryHandle {
    /// The part of `/status`.
    pub fn status(&self) -> DeliveryStatus {
        self.report.status()
    }

    /// The loop, for health.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Finishes or aborts the transaction under way, marks the session clean, ends the thread; at most `within`.
    pub fn stop(&self, within: Duration) {
        self.stop.store(true, Ordering::Release);
        self.outbox.wake();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(within) {
            log::warn!("delivery did not end within {within:?}; the next start reads back what was under way");
        }
    }
}
