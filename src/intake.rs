//! Sources: from the wire to an acknowledged entry in the outbox.

use crate::config;
use crate::metrics::intake::SourceMetrics;
use crate::outbox::Outbox;
use crate::progress::Progress;
use crate::status::SourceStatus;

/// What a source needs to run.
#[derive(Debug)]
pub struct SourceOptions {
    /// Its name: the table's name.
    pub name: String,
    /// The agent's id, for templates and the client id.
    pub agent_id: String,
    /// `[sources.NAME]`
    pub config: config::Source,
    /// `outbox.record_bytes_max`: larger readings are stored with `Flags::DEAD`.
    pub record_bytes_max: usize,
    /// Handles.
    pub metrics: SourceMetrics,
}

/// A running source.
#[derive(Debug)]
pub struct SourceHandle {}

/// Starts a source on the current tokio runtime. Fails only on settings that no retry can cure (templates, a certificate
/// file that cannot be read); an absent broker or device is no failure.
pub fn start(outbox: &Outbox, options: SourceOptions) -> Result<SourceHandle, String> {
    let _ = (outbox, options);
    todo!()
}

/// Checks what [`start`] would refuse, without starting: for `check-config`. All mistakes, each as `key: what is wrong`.
pub fn check(name: &str, agent_id: &str, config: &config::Source) -> Vec<String> {
    let _ = (name, agent_id, config);
    Vec::new()
}

impl SourceHandle {
    /// The part of `/status`.
    pub fn status(&self) -> SourceStatus {
        todo!()
    }

    /// The loop, for health.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Takes no more, waits until what it took is answered and acknowledged (bounded by the caller's time-out), says
    /// goodbye to the broker; keeps the session.
    pub async fn stop(&self) {}
}
