//! For tests of sources: an outbox in a temporary directory, and a source that feeds it.

use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;

use super::{SourceHandle, SourceOptions, start};
use crate::config;
use crate::metrics::{IntakeMetrics, OutboxMetrics};
use crate::outbox::{Budget, OpenOptions, Outbox};
use crate::record::{Item, Sequence, Stored};
use crate::status::SourceStatus;

/// Longest wait for anything: only a failed test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// An outbox and the source that feeds it.
pub(super) struct Bench {
    pub(super) outbox: Outbox,
    pub(super) source: SourceHandle,
    directory: Option<tempfile::TempDir>,
}

/// Opens an outbox with small settings.
pub(super) fn outbox(directory: &std::path::Path, change: impl FnOnce(&mut config::Outbox)) -> Outbox {
    let mut config = config::Outbox { max_bytes: config::ByteSize::mib(64), ..config::Outbox::default() };
    change(&mut config);
    let metrics = OutboxMetrics::register(&mut Registry::default());
    Outbox::open(directory, OpenOptions { config, agent_id: "gw-1".to_owned(), metrics }).unwrap()
}

/// Starts a source called `plant`.
pub(super) fn source(outbox: &Outbox, config: config::Source) -> SourceHandle {
    let metrics = IntakeMetrics::register(&mut Registry::default()).source("plant");
    let (name, agent_id) = ("plant".to_owned(), "gw-1".to_owned());
    start(outbox, SourceOptions { name, agent_id, config, record_bytes_max: 960 << 10, metrics }).unwrap()
}

impl Bench {
    /// A fresh outbox and a source.
    pub(super) fn new(config: config::Source, change: impl FnOnce(&mut config::Outbox)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let outbox = outbox(directory.path(), change);
        let source = source(&outbox, config);
        Self { outbox, source, directory: Some(directory) }
    }

    /// The same in a directory that outlives it.
    pub(super) fn at(directory: &std::path::Path, config: config::Source) -> Self {
        let outbox = outbox(directory, |_| {});
        let source = source(&outbox, config);
        Self { outbox, source, directory: None }
    }

    /// From now on each sync takes this long, as on a worn card.
    pub(super) fn slow_down(&self, ms: u64) {
        let directory = self.directory.as_ref().expect("the bench has a directory of its own");
        std::fs::write(directory.path().join("outbox/fault-sync"), format!("always {ms}ms")).unwrap();
    }

    /// Everything that is stored, in order. Holes are none of a source's business.
    pub(super) fn stored(&self) -> Vec<Stored> {
        let mut reader = self.outbox.reader();
        let mut after = Sequence(0);
        let mut all = Vec::new();
        loop {
            let batch = reader.batch_after(after, Budget { records_max: 10_000, bytes_max: 64 << 20 }).unwrap();
            let Some(last) = batch.items.last() else { return all };
            after = last.last();
            all.extend(batch.items.into_iter().filter_map(|item| match item {
                Item::Reading(stored) => Some(stored),
                Item::Hole(_) => None,
            }));
        }
    }

    /// Values of everything that is stored, as text.
    pub(super) fn values(&self) -> Vec<String> {
        let text = |stored: Stored| String::from_utf8_lossy(&stored.reading.value).into_owned();
        self.stored().into_iter().map(text).collect()
    }

    /// Waits until so much is stored, then gives all of it.
    pub(super) async fn stored_at_least(&self, count: usize) -> Vec<Stored> {
        self.until(&format!("{count} readings"), |bench| bench.stored().len() >= count).await;
        self.stored()
    }

    /// Waits until the source's status is as wanted.
    pub(super) async fn status(&self, what: &str, is: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
        self.until(what, |bench| is(&bench.source.status())).await;
        self.source.status()
    }

    /// Waits for something.
    pub(super) async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is(self) {
            let values =
                || self.values().into_iter().map(|v| v.chars().take(40).collect::<String>()).collect::<Vec<_>>();
            assert!(begun.elapsed() < PATIENCE, "{what} did not come; {:?}; {:?}", self.source.status(), values());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
