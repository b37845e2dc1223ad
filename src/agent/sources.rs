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

    /// Names of those that run.
    pub fn names(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Stops these, side by side; the names of those that did not finish in time.
    pub async fn stop_all(&self, names: &[String], within: Duration) -> Vec<String> {
        let handles: Vec<_> = names.iter().filter_map(|name| self.lock().remove_entry(name)).collect();
        let stops: Vec<_> = handles
            .into_iter()
            .map(|(name, handle)| {
                let stop = tokio::spawn(async move { tokio::time::timeout(within, handle.stop()).await.is_ok() });
                (name, stop)
            })
            .collect();
        let mut stuck = Vec::new();
        for (name, stop) in stops {
            match stop.await {
                Ok(true) => {}
                Ok(false) => {
                    let limit = within.as_secs();
                    log::warn!(
                        "source {name} did not finish within {limit} s; what it did not acknowledge comes again"
                    );
                    stuck.push(name);
                }
                Err(error) => {
                    log::error!("source {name} did not stop in order: {error}");
                    stuck.push(name);
                }
            }
        }
        stuck
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
