//! Sources: from the wire to an acknowledged entry in the outbox.
//!
//! ```text
//! mqtt/connection  ─┐                          ┌─> outbox ─> answer with the proof
//! serial           ─┴─> source::Stage (mapping)┘               └─> acknowledge
//! ```
//!
//! An input task per source waits for nothing but its wire; a stage task per source maps, submits, acknowledges. Both are
//! described in [`source`].

mod check;
mod decode;
mod framing;
mod losses;
mod mapping;
mod mqtt;
mod serial;
mod source;
mod template;
#[cfg(test)]
mod testing;

use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;

use self::mapping::Mapper;
use self::source::{Board, Stage};
use self::template::Offer;
use crate::config;
use crate::config::intake::Decode;
use crate::metrics::intake::SourceMetrics;
use crate::outbox::{Outbox, Terms};
use crate::progress::Progress;
use crate::record::SourceId;
use crate::status::SourceStatus;

/// A stage that does not turn for this long has stalled.
const STALL_AFTER: Duration = Duration::from_secs(30);

/// What a source needs to run.
#[derive(Debug)]
pub struct SourceOptions {
    /// Its name: the table's name.
    pub name: String,
    /// The agent's id, for templates and the client id.
    pub agent_id: String,
    /// `[sources.NAME]`
    pub config: config::Source,
    /// `outbox.record_bytes_max`: larger readings are stored with `Flags::DEAD`.
    pub record_bytes_max: usize,
    /// Handles.
    pub metrics: SourceMetrics,
}

/// A running source. Dropping it stops the source as [`SourceHandle::stop`] does, without waiting.
#[derive(Debug)]
pub struct SourceHandle {
    board: Board,
    progress: Progress,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Starts a source on the current tokio runtime. Fails only on settings that no retry can cure (templates, a certificate
/// file that cannot be read); an absent broker or device is no failure.
pub fn start(outbox: &Outbox, options: SourceOptions) -> Result<SourceHandle, String> {
    let SourceOptions { name, agent_id, config, record_bytes_max, metrics } = options;
    let wrong = check(&name, &agent_id, &config);
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    let mapper = Mapper::new(config.mapping(), offer(&name, &agent_id, &config), record_bytes_max)
        .map_err(|errors| errors.join("; "))?;
    let board = Board::new(&name, config.type_name(), metrics);
    let progress = Progress::new(&format!("source-{name}"), STALL_AFTER);
    let (stop, stopped) = watch::channel(false);
    // Bounded by the permits of `held_bytes_max` in what it carries; what carries none is at most one per packet
    // identifier and message, and a handful per connection.
    #[allow(clippy::disallowed_methods)]
    let (inputs, received) = mpsc::unbounded_channel();
    let source = SourceId::from(name.as_str());
    outbox.admit(&source, terms(config.mapping()));
    let appender = outbox.appender(&source);
    let dedup = matches!(&config, config::Source::Mqtt(mqtt) if mqtt.redelivery_dedup);
    let input = match config {
        config::Source::Mqtt(config) => {
            let endpoint = mqtt::url::Endpoint::parse(&config.url)?;
            let keeper = mqtt::Keeper { agent_id, config, endpoint, board: board.clone(), stop: stopped };
            tokio::spawn(keeper.run(outbox.clone(), inputs))
        }
        config::Source::Serial(config) => {
            let reader = serial::Reader::new(config, board.clone(), inputs, outbox.held().of(&source), stopped)?;
            tokio::spawn(reader.run())
        }
    };
    let limits = source::Limits { dedup, arrival_bytes_max: outbox.arrival_bytes_max() };
    let stage = Stage::new(mapper, appender, received, board.clone(), progress.clone(), limits);
    let tasks = Mutex::new(vec![input, tokio::spawn(stage.run())]);
    Ok(SourceHandle { board, progress, stop, tasks })
}

/// What the source may have of the outbox. Checked before.
fn terms(mapping: &config::intake::Mapping) -> Terms {
    let share = check::share(&mapping.share_max).unwrap_or(1.0);
    Terms { share, priority: mapping.priority }
}

/// Checks what [`start`] would refuse, without starting: for `check-config`. All mistakes, each as `key: what is wrong`.
pub fn check(name: &str, agent_id: &str, config: &config::Source) -> Vec<String> {
    check::check(name, agent_id, config)
}

fn offer<'a>(name: &'a str, agent_id: &'a str, config: &config::Source) -> Offer<'a> {
    let mqtt = matches!(config, config::Source::Mqtt(_));
    Offer { source: name, agent: agent_id, mqtt, fields: config.mapping().decode != Decode::None }
}

impl SourceHandle {
    /// The part of `/status`.
    pub fn status(&self) -> SourceStatus {
        self.board.status()
    }

    /// The loop, for health.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Takes no more, waits until what it took is answered and acknowledged (bounded by the caller's time-out), says
    /// goodbye to the broker; keeps the session.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut tasks = self.tasks.lock().await;
        while let Some(task) = tasks.last_mut() {
            if let Err(error) = task.await {
                log::error!("source {}: a task failed: {error}; please report this", self.board.name);
            }
            tasks.pop();
        }
    }
}
