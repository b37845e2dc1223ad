//! The running sources by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::{self, Config};
use crate::intake::{self, SourceHandle, SourceOptions};
use crate::metrics::IntakeMetrics;
use crate::outbox::Outbox;
use crate::progress::Progress;
use crate::status::SourceStatus;

/// Starts and stops sources, tells their state. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sources {
    outbox: Outbox,
    agent_id: String,
    record_bytes_max: usize,
    metrics: IntakeMetrics,
    running: Arc<Mutex<BTreeMap<String, Arc<SourceHandle>>>>,
}

impl Sources {
    /// None runs yet.
    pub fn new(outbox: Outbox, config: &Config, metrics: IntakeMetrics) -> Self {
        let record_bytes_max = config.outbox.record_bytes_max.bytes();
        Self { outbox, agent_id: config.agent.id.clone(), record_bytes_max, metrics, running: Arc::default() }
    }

    /// Starts one on the current runtime. The one of this name, if any, must have been stopped.
    pub fn start(&self, name: &str, config: &config::Source) -> Result<(), String> {
        let options = SourceOptions {
            name: name.to_owned(),
            agent_id: self.agent_id.clone(),
            config: config.clone(),
            record_bytes_max: self.record_bytes_max,
            metrics: self.metrics.source(name),
        };
        let handle = intake::start(&self.outbox, options)?;
        self.lock().insert(name.to_owned(), Arc::new(handle));
        Ok(())
    }

    /// Stops one, if it runs.
    pub async fn stop(&self, name: &str, within: Duration) {
        let handle = self.lock().remove(name);
        if let Some(handle) = handle {
            stop(name, &handle, within).await;
        }
    }

    /// Stops all, side by side.
    pub async fn stop_all(&self, within: Duration) {
        let handles = self.handles();
        let stops: Vec<_> = handles
            .into_iter()
            .map(|(name, handle)| tokio::spawn(async move { stop(&name, &handle, within).await }))
            .collect();
        for stop in stops {
            if let Err(error) = stop.await {
                log::error!("a source did not stop in order: {error}");
            }
        }
    }

    /// The part of `/status`.
    pub fn status(&self) -> BTreeMap<String, SourceStatus> {
        self.handles().into_iter().map(|(name, handle)| (name, handle.status())).collect()
    }

    /// The loops, for health.
    pub fn progress(&self) -> Vec<Progress> {
        self.handles().values().map(|handle| handle.progress()).collect()
    }

    fn handles(&self) -> BTreeMap<String, Arc<SourceHandle>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<SourceHandle>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn stop(name: &str, handle: &SourceHandle, within: Duration) {
    if tokio::time::timeout(within, handle.stop()).await.is_err() {
        log::warn!(
            "source {name} did not finish within {} s; what it did not acknowledge comes again",
            within.as_secs()
        );
    }
}
