//! The drain: outbox to Kafka, exactly once.

use std::time::Duration;

use crate::config;
use crate::metrics::DeliveryMetrics;
use crate::outbox::Outbox;
use crate::progress::Progress;
use crate::status::DeliveryStatus;

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
pub struct DeliveryHandle {}

/// Starts the thread `delivery`. Fails only on settings that no retry can cure (a property librdkafka refuses, a file
/// that cannot be read); an unreachable cluster is no failure.
pub fn start(outbox: Outbox, options: DeliveryOptions) -> Result<DeliveryHandle, String> {
    let _ = (outbox, options);
    todo!()
}

impl DeliveryHandle {
    /// The part of `/status`.
    pub fn status(&self) -> DeliveryStatus {
        todo!()
    }

    /// The loop, for health.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Finishes or aborts the transaction under way, marks the session clean, ends the thread; at most `within`.
    pub fn stop(&self, within: Duration) {
        let _ = within;
    }
}
