//! The demonstration: real brokers, simulated devices, the real daemon, an outage, two kills, and a tally at the end.
//!
//! Limits first. It runs on one machine, so a SIGKILL is not a power cut (the page cache survives). A reading on the serial
//! line that no one read, because the daemon was dead, is nobody's loss but is nobody's gain either: it is told as such, and
//! [`book`] says how it is told apart. With brokers of your own nothing is stopped but the daemon.

mod book;
pub mod brokers;
mod daemon;
mod devices;
mod play;
mod reader;
mod screen;
mod tally;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use book::Book;
pub use tally::Verdict;

/// How the demonstration is to go.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How long Kafka is gone. The normal flow before lasts three quarters of it.
    pub outage: Duration,
    /// MQTT devices.
    pub devices: usize,
    /// Readings per second, all MQTT devices together.
    pub rate: f64,
    /// Everything is kept here: configuration, logs, the outbox. `None`: a temporary directory that goes away.
    pub keep: Option<PathBuf>,
    /// Use this cluster and do not stop it.
    pub kafka: Option<String>,
    /// Use this MQTT broker.
    pub mqtt: Option<String>,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The tally.
    pub verdict: Verdict,
    /// Readings that the daemon has put on disk: the last sequence it gave.
    pub on_disk: u64,
    /// Readings that waited when Kafka was back; 0 without an outage.
    pub backlog: u64,
    /// From Kafka's return until no reading waited longer than a second.
    pub caught_up_in: Option<Duration>,
    /// Where the files are, if they were kept.
    pub kept: Option<PathBuf>,
    /// Names that were used on brokers of your own, and stay there.
    pub left_behind: Vec<String>,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A part is not installed, or a broker does not work.
    #[error(transparent)]
    Broker(#[from] brokers::BrokerError),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted; everything that was started has been stopped")]
    Interrupted,
    /// Something did not happen in time, or broke.
    #[error("{0}")]
    Failed(String),
}

/// Plays it. `interrupted` ends it early; whatever happens, all that it started has ended when this returns.
pub fn run(options: &DemoOptions, interrupted: &Arc<AtomicBool>) -> Result<Outcome, DemoError> {
    play::run(options, interrupted)
}
