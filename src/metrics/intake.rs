//! Metrics of the sources, one label `source` each.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label `source`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabel {
    /// Name of the source.
    pub source: String,
}

/// Families over all sources.
#[derive(Debug, Clone, Default)]
pub struct IntakeMetrics {
    received: Family<SourceLabel, Counter>,
    accepted: Family<SourceLabel, Counter>,
    acknowledged: Family<SourceLabel, Counter>,
    duplicates: Family<SourceLabel, Counter>,
    rejected: Family<SourceLabel, Counter>,
    bad: Family<SourceLabel, Counter>,
    connects: Family<SourceLabel, Counter>,
    sessions_lost: Family<SourceLabel, Counter>,
    bytes: Family<SourceLabel, Counter>,
    partial_bytes: Family<SourceLabel, Counter>,
    line_errors: Family<SourceLabel, Counter>,
    line_counters: Family<SourceLabel, Gauge>,
    up: Family<SourceLabel, Gauge>,
}

/// The handles of one source.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct SourceMetrics {
    pub received: Counter,
    pub accepted: Counter,
    pub acknowledged: Counter,
    pub duplicates: Counter,
    pub rejected: Counter,
    pub bad: Counter,
    pub connects: Counter,
    pub sessions_lost: Counter,
    pub bytes: Counter,
    pub partial_bytes: Counter,
    pub line_errors: Counter,
    pub line_counters: Gauge,
    pub up: Gauge,
}

impl IntakeMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register("source_received", "Messages or frames that arrived", m.received.clone());
        registry.register("source_accepted", "Readings that are on the medium", m.accepted.clone());
        registry.register("source_acknowledged", "Acknowledgements handed to the source", m.acknowledged.clone());
        registry.register("source_duplicates", "Redeliveries recognised and skipped", m.duplicates.clone());
        registry.register("source_rejected", "Messages or frames refused or dropped", m.rejected.clone());
        registry.register("source_bad", "Readings of bad quality (kept as raw bytes)", m.bad.clone());
        registry.register("source_connects", "Connections or ports opened", m.connects.clone());
        registry.register(
            "source_sessions_lost",
            "Times the broker had lost our session and perhaps messages with it",
            m.sessions_lost.clone(),
        );
        registry.register("source_bytes", "Bytes read from the line", m.bytes.clone());
        registry.register(
            "source_partial_bytes",
            "Bytes of unfinished frames that were discarded",
            m.partial_bytes.clone(),
        );
        registry.register(
            "source_line_errors",
            "Errors that the kernel counted on the line: framing, parity, overrun, break",
            m.line_errors.clone(),
        );
        registry.register(
            "source_line_counters",
            "1 if the driver counts line errors, 0 if it cannot: then source_line_errors says nothing",
            m.line_counters.clone(),
        );
        registry.register("source_up", "1 while the source is connected or open", m.up.clone());
        metrics
    }

    /// The handles of one source.
    pub fn source(&self, name: &str) -> SourceMetrics {
        let label = SourceLabel { source: name.to_owned() };
        SourceMetrics {
            received: self.received.get_or_create_owned(&label),
            accepted: self.accepted.get_or_create_owned(&label),
            acknowledged: self.acknowledged.get_or_create_owned(&label),
            duplicates: self.duplicates.get_or_create_owned(&label),
            rejected: self.rejected.get_or_create_owned(&label),
            bad: self.bad.get_or_create_owned(&label),
            connects: self.connects.get_or_create_owned(&label),
            sessions_lost: self.sessions_lost.get_or_create_owned(&label),
            bytes: self.bytes.get_or_create_owned(&label),
            partial_bytes: self.partial_bytes.get_or_create_owned(&label),
            line_errors: self.line_errors.get_or_create_owned(&label),
            line_counters: self.line_counters.get_or_create_owned(&label),
            up: self.up.get_or_create_owned(&label),
        }
    }
}
