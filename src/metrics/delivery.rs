//! Metrics of the drain.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Label `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Short word.
    pub reason: String,
}

/// Label `broker`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BrokerLabel {
    /// `host:port/id`.
    pub broker: String,
}

/// Handles of the drain.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct DeliveryMetrics {
    pub committed: Counter,
    pub transactions: Counter,
    pub transaction_seconds: Histogram,
    pub recycles: Family<ReasonLabel, Counter>,
    pub dead_letters: Family<ReasonLabel, Counter>,
    pub kafka_errors: Counter,
    pub kafka_request_timeouts: Gauge,
    pub kafka_request_latency_seconds: Family<BrokerLabel, Gauge<f64, AtomicU64>>,
    pub abandoned_clients: Counter,
    pub already_visible: Counter,
    pub halted: Gauge,
}

impl Default for DeliveryMetrics {
    fn default() -> Self {
        Self {
            committed: Counter::default(),
            transactions: Counter::default(),
            // 1 ms to 65 s: from one broker beside us to one record on a bad link.
            transaction_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            recycles: Family::default(),
            dead_letters: Family::default(),
            kafka_errors: Counter::default(),
            kafka_request_timeouts: Gauge::default(),
            kafka_request_latency_seconds: Family::default(),
            abandoned_clients: Counter::default(),
            already_visible: Counter::default(),
            halted: Gauge::default(),
        }
    }
}

impl DeliveryMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("delivery_committed", "Records committed to Kafka", m.committed.clone());
        registry.register("delivery_transactions", "Transactions committed", m.transactions.clone());
        registry.register_with_unit(
            "delivery_transaction",
            "Time from begin to committed",
            Unit::Seconds,
            m.transaction_seconds.clone(),
        );
        registry.register("delivery_recycles", "Kafka clients replaced", m.recycles.clone());
        registry.register("delivery_dead_letters", "Records that became dead letters", m.dead_letters.clone());
        registry.register(
            "delivery_already_visible",
            "Records found committed beyond the ledger's position, and not sent again",
            m.already_visible.clone(),
        );
        registry.register("delivery_halted", "1 while delivery waits for the owner for good", m.halted.clone());
        registry.register("kafka_errors", "Errors the Kafka client raised", m.kafka_errors.clone());
        registry.register(
            "kafka_request_timeouts",
            "Requests of the present Kafka client that timed out",
            m.kafka_request_timeouts.clone(),
        );
        registry.register_with_unit(
            "kafka_request_latency",
            "Mean round trip by broker over the last 30 s",
            Unit::Seconds,
            m.kafka_request_latency_seconds.clone(),
        );
        registry.register(
            "kafka_abandoned_clients",
            "Kafka clients that did not end in time and were left behind",
            m.abandoned_clients.clone(),
        );
        m
    }

    /// One more with this reason.
    pub fn recycled(&self, reason: &str) {
        self.recycles.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    /// One more with this reason.
    pub fn dead_letter(&self, reason: &str) {
        self.dead_letters.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    /// The latest round trip of a broker.
    pub fn observe_latency(&self, broker: &str, seconds: f64) {
        self.kafka_request_latency_seconds.get_or_create(&BrokerLabel { broker: broker.to_owned() }).set(seconds);
    }
}
