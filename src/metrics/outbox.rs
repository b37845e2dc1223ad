//! Metrics of the outbox.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::intake::SourceLabel;

/// Label `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// `drop_oldest`, `drop_newest`, `share_max`, `priority`, `too_large`, `max_age`, `damage`, `purge`.
    pub reason: String,
}

/// Handles of the outbox.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct OutboxMetrics {
    pub records: Gauge,
    pub bytes: Gauge,
    pub oldest_age_seconds: Gauge<f64, AtomicU64>,
    pub generations: Gauge,
    pub full: Gauge,
    pub failing: Gauge,
    pub free_bytes: Gauge,
    pub reserve_bytes: Gauge,
    pub notes: Gauge,
    pub appended: Counter,
    pub refused: Counter,
    pub failed: Counter,
    pub damaged: Counter,
    pub blocks: Counter,
    pub written_bytes: Counter,
    pub payload_bytes: Counter,
    pub syncs: Counter,
    pub medium_bytes: Counter,
    pub sync_seconds: Histogram,
    dropped: Family<ReasonLabel, Counter>,
    source_bytes: Family<SourceLabel, Gauge>,
    source_records: Family<SourceLabel, Gauge>,
    source_outside: Family<SourceLabel, Gauge>,
}

impl Default for OutboxMetrics {
    fn default() -> Self {
        Self {
            records: Gauge::default(),
            bytes: Gauge::default(),
            oldest_age_seconds: Gauge::default(),
            generations: Gauge::default(),
            full: Gauge::default(),
            failing: Gauge::default(),
            free_bytes: Gauge::default(),
            reserve_bytes: Gauge::default(),
            notes: Gauge::default(),
            appended: Counter::default(),
            refused: Counter::default(),
            failed: Counter::default(),
            damaged: Counter::default(),
            blocks: Counter::default(),
            written_bytes: Counter::default(),
            payload_bytes: Counter::default(),
            syncs: Counter::default(),
            medium_bytes: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 18)),
            dropped: Family::default(),
            source_bytes: Family::default(),
            source_records: Family::default(),
            source_outside: Family::default(),
        }
    }
}

impl OutboxMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("outbox_records", "Readings that wait for delivery", m.records.clone());
        registry.register("outbox_bytes", "Bytes on disk", m.bytes.clone());
        let age = m.oldest_age_seconds.clone();
        registry.register_with_unit("outbox_oldest_age", "Age of the oldest waiting reading", Unit::Seconds, age);
        registry.register("outbox_generations", "Databases on disk", m.generations.clone());
        registry.register("outbox_full", "1 while there is no room for readings", m.full.clone());
        registry.register("outbox_failing", "1 while the outbox cannot be written", m.failing.clone());
        let free = m.free_bytes.clone();
        registry.register("outbox_free_bytes", "Free bytes of the file system as last looked at", free);
        let reserve = m.reserve_bytes.clone();
        registry.register("outbox_reserve_bytes", "Bytes held back for a full disk; 0 while given up", reserve);
        registry.register("outbox_notes", "Ranges that gap records will tell", m.notes.clone());
        registry.register("outbox_appended", "Readings made durable", m.appended.clone());
        registry.register("outbox_refused", "Readings refused by policy", m.refused.clone());
        registry.register("outbox_dropped", "Readings lost to a policy or damage, by reason", m.dropped.clone());
        registry.register("outbox_failed", "Writes that failed and are tried again", m.failed.clone());
        registry.register("outbox_damaged", "Databases set aside as damaged", m.damaged.clone());
        registry.register("outbox_blocks", "Blocks written", m.blocks.clone());
        registry.register("outbox_written_bytes", "Bytes of blocks written, compressed", m.written_bytes.clone());
        registry.register("outbox_payload_bytes", "Bytes of values made durable", m.payload_bytes.clone());
        registry.register("outbox_syncs", "Syncs of the medium that made readings durable", m.syncs.clone());
        let medium = m.medium_bytes.clone();
        let help = "Bytes of file pages this process had written, without the journal of the file system";
        registry.register("outbox_medium_bytes", help, medium);
        let bytes = m.source_bytes.clone();
        registry.register("outbox_source_bytes", "Bytes on disk of undelivered readings, by source", bytes);
        let records = m.source_records.clone();
        registry.register("outbox_source_records", "Undelivered readings, by source", records);
        let outside = m.source_outside.clone();
        registry.register("outbox_source_outside", "1 while its share or priority keeps a source out", outside);
        let sync = m.sync_seconds.clone();
        registry.register_with_unit("outbox_sync", "Time of a sync of the medium", Unit::Seconds, sync);
        m
    }

    /// What is stored of a source, and whether it is kept out.
    pub fn source(&self, name: &str, records: u64, bytes: u64, outside: bool) {
        let label = SourceLabel { source: name.to_owned() };
        let gauge = |family: &Family<SourceLabel, Gauge>, value: i64| {
            family.get_or_create_owned(&label).set(value);
        };
        gauge(&self.source_records, i64::try_from(records).unwrap_or(i64::MAX));
        gauge(&self.source_bytes, i64::try_from(bytes).unwrap_or(i64::MAX));
        gauge(&self.source_outside, i64::from(outside));
    }

    /// The counter of readings lost for a reason.
    pub fn dropped(&self, reason: &str) -> Counter {
        self.dropped.get_or_create_owned(&ReasonLabel { reason: reason.to_owned() })
    }
}
