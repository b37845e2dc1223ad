//! Builds the stages, starts them from the end of the flow (outbox, delivery, HTTP, sources) and stops them from its
//! beginning (sources finish and acknowledge, delivery gets a deadline, the outbox closes).
//!
//! An orderly stop only saves time at the next start: a kill at any moment costs nothing.

mod change;
pub mod doors;
pub mod health;
mod look;
pub mod reload;
pub mod signals;
pub mod sources;
mod supervisor;
pub mod systemd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::load::{self, Origin};
use crate::config::{Config, Source};
use crate::delivery::{self, DeliveryHandle, DeliveryOptions};
use crate::metrics::Metrics;
use crate::outbox::{OpenError, OpenOptions, Outbox};
use crate::record::SourceId;
use crate::telemetry::Telemetry;

use doors::Doors;
use health::Health;
use signals::Signals;
use sources::Sources;

/// Sources finish what they took and acknowledge it.
const SOURCES_STOP: Duration = Duration::from_secs(8);
/// Delivery finishes or aborts its transaction.
const DELIVERY_STOP: Duration = Duration::from_secs(6);
/// The outbox answers, syncs and closes.
const OUTBOX_CLOSE: Duration = Duration::from_secs(4);
/// Tasks that are left.
const RUNTIME_STOP: Duration = Duration::from_secs(1);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The outbox cannot be opened.
    #[error(transparent)]
    Outbox(#[from] OpenError),
    /// A setting that no retry can cure.
    #[error("{0}")]
    Setting(String),
    /// The HTTP address cannot be listened on.
    #[error("http.listen: cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The system refused a thread or a signal handler.
    #[error("cannot {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl StartError {
    /// For `map_err`.
    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Runs the daemon until a signal stops it.
pub fn run(origin: Origin, config: Config, telemetry: Telemetry) -> Result<(), StartError> {
    let signals = signals::start().map_err(StartError::system("handle signals"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("tokio")
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()
        .map_err(StartError::system("start threads"))?;
    let ended = runtime.block_on(async {
        let agent = Agent::start(origin, config, telemetry).await?;
        agent.run(signals).await;
        Ok(())
    });
    runtime.shutdown_timeout(RUNTIME_STOP);
    ended
}

/// The running daemon.
#[derive(Debug)]
pub struct Agent {
    origin: Origin,
    config: Config,
    telemetry: Telemetry,
    outbox: Outbox,
    delivery: Arc<DeliveryHandle>,
    sources: Sources,
    /// Sources that did not stop: a name in here must not start again.
    stuck: Vec<String>,
    health: Health,
    doors: doors::Served,
}

impl Agent {
    async fn start(origin: Origin, config: Config, telemetry: Telemetry) -> Result<Self, StartError> {
        log::info!("fieldpost {} starts as {}", env!("CARGO_PKG_VERSION"), config.agent.id);
        let metrics = Metrics::new();

        let options = OpenOptions {
            config: config.outbox.clone(),
            agent_id: config.agent.id.clone(),
            metrics: metrics.outbox.clone(),
        };
        let outbox = open_outbox(&config.agent.state_dir, options).await?;

        let options = DeliveryOptions {
            config: config.delivery.clone(),
            agent_id: config.agent.id.clone(),
            record_bytes_max: config.outbox.record_bytes_max.bytes(),
            metrics: metrics.delivery.clone(),
        };
        let delivery = Arc::new(delivery::start(outbox.clone(), options).map_err(StartError::Setting)?);

        let sources = Sources::new(outbox.clone(), &config, metrics.intake.clone());
        let health = Health::new(&config.agent, outbox.clone(), delivery.clone(), sources.clone(), metrics);
        let doors = Doors::take(&config).await?;
        for (name, source) in &config.sources {
            let started = sources.start(name, source);
            started.map_err(|text| StartError::Setting(format!("sources.{name}: {text}")))?;
        }
        let doors = doors.serve(&health);
        Ok(Self { origin, config, telemetry, outbox, delivery, sources, stuck: Vec::new(), health, doors })
    }

    async fn run(mut self, signals: Signals) {
        systemd::ready();
        log::info!("ready: {}", self.health.summary());
        let watch = tokio::spawn(supervisor::watch(self.health.clone(), self.telemetry.clone()));
        supervisor::obey(&mut self, signals).await;
        systemd::stopping();
        self.stop().await;
        watch.abort();
    }

    /// Takes what can be changed while running; a configuration with mistakes changes nothing.
    async fn reload(&mut self) {
        systemd::reloading();
        let origin = self.origin.clone();
        let loaded = tokio::task::spawn_blocking(move || load::load(&origin)).await;
        match loaded {
            Ok(Ok(loaded)) => {
                for warning in &loaded.warnings {
                    log::warn!("{warning}");
                }
                self.apply(loaded.config).await;
            }
            Ok(Err(mistakes)) => log::error!("reload refused, the running configuration stays: {mistakes}"),
            Err(error) => log::error!("reload failed, the running configuration stays: {error}"),
        }
        systemd::ready();
    }

    async fn apply(&mut self, new: Config) {
        let plan = reload::plan(&self.config, &new);
        log::info!("reload: {plan}");
        if plan.log {
            match self.telemetry.set_filter(&new.agent.log) {
                Ok(()) => self.config.agent.log.clone_from(&new.agent.log),
                Err(error) => log::error!("reload: {error}; the log filter stays"),
            }
        }
        let stopping: Vec<_> = plan.removed.iter().chain(&plan.changed).cloned().collect();
        self.stuck.extend(self.sources.stop_all(&stopping, SOURCES_STOP).await);
        for name in &plan.removed {
            self.outbox.dismiss(&SourceId::from(name.as_str()));
            if let Some(Source::Mqtt(_)) = self.config.sources.remove(name) {
                log::warn!(
                    "source {name} is gone from the configuration; its session stays at the broker, which keeps \
                     queueing for it until the session expires"
                );
            }
        }
        for name in plan.changed.iter().chain(&plan.added) {
            if self.stuck.contains(name) {
                log::error!(
                    "source {name} did not stop, so it cannot start with its new settings: restart the service"
                );
            } else {
                self.start_source(name, &new);
            }
        }
    }

    /// Starts one source with its new settings; with its old ones if the new ones are refused.
    fn start_source(&mut self, name: &str, new: &Config) {
        let Some(source) = new.sources.get(name) else { return };
        let Err(text) = self.sources.start(name, source) else {
            self.config.sources.insert(name.to_owned(), source.clone());
            return;
        };
        match self.config.sources.get(name).map(|old| self.sources.start(name, old)) {
            Some(Ok(())) => log::error!("sources.{name}: {text}; it runs on with its old settings"),
            Some(Err(error)) => log::error!("sources.{name}: {text}; nor do its old settings work any more: {error}"),
            None => log::error!("sources.{name}: {text}; it does not run"),
        }
    }

    async fn stop(self) {
        log::info!("stopping: sources finish and acknowledge");
        self.sources.stop_all(&self.sources.names(), SOURCES_STOP).await;
        log::info!("stopping: delivery ends its transaction");
        let delivery = self.delivery;
        within("delivery", DELIVERY_STOP, move || delivery.stop(DELIVERY_STOP)).await;
        let outbox = self.outbox;
        within("the outbox", OUTBOX_CLOSE, move || outbox.close(OUTBOX_CLOSE)).await;
        self.doors.close();
        log::info!("stopped");
        log::logger().flush();
    }
}

/// Runs a blocking stop; gives up on it a moment after its own limit, so that a stuck disk cannot hold the process.
async fn within(what: &str, limit: Duration, stop: impl FnOnce() + Send + 'static) {
    match tokio::time::timeout(limit + Duration::from_millis(500), tokio::task::spawn_blocking(stop)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("{what} did not stop in order: {error}"),
        Err(_) => log::warn!("{what} did not stop within {} s; the process ends without it", limit.as_secs()),
    }
}

/// Opens the outbox; a long recovery keeps asking systemd for more time.
async fn open_outbox(state_dir: &Path, options: OpenOptions) -> Result<Outbox, StartError> {
    let state_dir: PathBuf = state_dir.to_owned();
    let mut opening = tokio::task::spawn_blocking(move || Outbox::open(&state_dir, options));
    loop {
        match tokio::time::timeout(Duration::from_secs(10), &mut opening).await {
            Ok(Ok(opened)) => return Ok(opened?),
            Ok(Err(error)) => {
                return Err(StartError::System { what: "open the outbox", source: std::io::Error::other(error) });
            }
            Err(_) => {
                log::info!("still opening the outbox");
                systemd::opening();
            }
        }
    }
}
