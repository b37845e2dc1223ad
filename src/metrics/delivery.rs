//! Metrics of the drain.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Handles of the drain.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)]
pub struct DeliveryMetrics {
    pub committed: Counter,
    pub transactions: Counter,
}

impl DeliveryMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("delivery_committed", "Records committed to Kafka", m.committed.clone());
        registry.register("delivery_transactions", "Transactions committed", m.transactions.clone());
        m
    }
}
