//! Metrics of the outbox.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles of the outbox.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct OutboxMetrics {
    pub records: Gauge,
    pub bytes: Gauge,
}

impl OutboxMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("outbox_records", "Readings that wait for delivery", m.records.clone());
        registry.register("outbox_bytes", "Bytes on disk", m.bytes.clone());
        m
    }
}
