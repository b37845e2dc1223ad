//! An MQTT source: keeps one connection after another to its broker. The broker's persistent session is the queue: what
//! was not acknowledged comes again, so nothing is acknowledged before it is on the medium, and leaving is always safe.
//!
//! Limits: bytes received and not yet stored are bounded by `held_bytes_max`. Above an eighth of it the source stops reading;
//! if that does not help within seconds it leaves the broker and comes back when there is room. QoS 0 has no way back: what finds no room is dropped, counted, and told in a gap
//! record.

mod connection;
mod inlet;
mod link;
pub(super) mod secret;
mod session;
mod subscriptions;
#[cfg(test)]
mod tests;
pub(super) mod tls;
pub(super) mod url;

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use self::connection::{Plan, Report, StatusTopic};
use self::link::{LinkError, Settings};
use self::session::{End, Pacing, Subscriptions, Verdict};
use self::subscriptions::SubscriptionFile;
use self::url::Endpoint;
use super::losses::Losses;
use super::source::{Board, Input, stopped};
use crate::config::intake::{Decode, Mqtt, Retained};
use crate::outbox::{HeldBytes, Outbox};
use crate::record::{Qos, SourceId};

/// How often it is looked whether there is room again.
const ROOM_CHECK_EVERY: Duration = Duration::from_millis(100);

/// What one MQTT source needs.
pub(super) struct Keeper {
    pub(super) agent_id: String,
    pub(super) config: Mqtt,
    pub(super) endpoint: Endpoint,
    pub(super) board: Board,
    pub(super) stop: watch::Receiver<bool>,
}

/// The client id: as configured, or made of agent and source.
pub(super) fn client_id(config: &Mqtt, agent_id: &str, source: &str) -> String {
    config.client_id.clone().unwrap_or_else(|| format!("fieldpost-{agent_id}-{source}"))
}

/// The status topic with its placeholders filled in; `None` if it is off.
pub(super) fn status_topic(config: &Mqtt, agent_id: &str, source: &str) -> Option<String> {
    let text = config.status_topic.as_str();
    (text != "off").then(|| text.replace("{agent}", agent_id).replace("{source}", source))
}

impl Keeper {
    /// Runs until the source is stopped.
    pub(super) async fn run(mut self, outbox: Outbox, inputs: mpsc::UnboundedSender<Input>) {
        let plan = self.plan(&outbox, inputs);
        let file = plan.file.clone();
        let mut known = tokio::task::spawn_blocking(move || file.load()).await.unwrap_or_default();
        let mut losses = Losses::default();
        let mut pacing = Pacing::new();
        let mut told = Told::default();
        if self.config.tls.as_ref().is_some_and(|tls| !tls.verify) {
            log::warn!(
                "source {}: tls.verify = false: ANY certificate is accepted, anyone on the way can read and forge; for trials only",
                self.board.name
            );
        }
        while !stopped(&self.stop) {
            self.board.state("connecting");
            let report = match self.settings().await {
                Ok(settings) => connect(&plan, settings, known.clone(), losses).await,
                Err(text) => {
                    let end = End::Lost(LinkError::Unreachable(text));
                    Report { end, connected: None, known: known.clone(), losses }
                }
            };
            losses = report.losses;
            known = report.known;
            let client_id = client_id(&self.config, &self.agent_id, &self.board.name);
            let verdict = pacing.after(&report.end, report.connected, &client_id, random_fraction());
            self.tell(&report.end, report.connected, &verdict, &mut told);
            match report.end {
                End::Stopped => break,
                End::Held => self.wait_for_room(&outbox).await,
                End::Lost(_) => self.board.state("down"),
            }
            let _ = tokio::time::timeout(verdict.pause, self.stop.wait_for(|stop| *stop)).await;
        }
        if let Some(text) = losses.untold() {
            let name = &self.board.name;
            log::error!("source {name}: it stops, and there is no room for a gap record of what was lost: {text}");
        }
        self.board.state("stopped");
    }

    /// The budget as this source uses it.
    fn held(&self, outbox: &Outbox) -> HeldBytes {
        outbox.held().of(&SourceId::from(&*self.board.name))
    }

    fn plan(&self, outbox: &Outbox, inputs: mpsc::UnboundedSender<Input>) -> Plan {
        let config = &self.config;
        let wanted: Vec<(String, Qos)> = config
            .subscribe
            .iter()
            .map(|entry| (entry.topic.clone(), Qos::from_number(entry.qos).unwrap_or(Qos::AtLeastOnce)))
            .collect();
        let status = status_topic(config, &self.agent_id, &self.board.name).map(|topic| {
            let online = serde_json::json!({
                "status": "online",
                "agent": self.agent_id,
                "source": &*self.board.name,
                "version": env!("CARGO_PKG_VERSION"),
                "boot_id": crate::clock::boot_id(),
            });
            let offline = serde_json::json!({
                "status": "offline", "agent": self.agent_id, "source": &*self.board.name,
            });
            StatusTopic { topic, online: online.to_string(), offline: offline.to_string() }
        });
        Plan {
            version: config.version,
            wanted: wanted.into(),
            file: SubscriptionFile::new(outbox.directory(), &self.board.name),
            board: self.board.clone(),
            inputs,
            held: self.held(outbox),
            stop: self.stop.clone(),
            drop_retained: config.retained == Retained::Drop,
            decoded: config.mapping.decode != Decode::None,
            receive_maximum: usize::from(config.receive_maximum),
            status,
        }
    }

    /// Reads certificates and password anew.
    async fn settings(&self) -> Result<Settings, String> {
        let (config, endpoint, agent_id) = (self.config.clone(), self.endpoint.clone(), self.agent_id.clone());
        let source = self.board.name.clone();
        let read = move || settings(&config, endpoint, &agent_id, &source);
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn tell(&self, end: &End, connected: Option<Duration>, verdict: &Verdict, told: &mut Told) {
        if let Some((name, text)) = &verdict.alarm {
            if self.board.alarm(name, Some(text.clone())) {
                log::error!("source {}: {text}", self.board.name);
            }
        }
        if let End::Lost(error) = end {
            let text = error.to_string();
            if verdict.alarm.is_none() {
                self.board.error(text.clone());
            }
            let what = if connected.is_some() { "connection lost" } else { "cannot connect" };
            if told.is_news(&text) {
                let (name, pause) = (&self.board.name, verdict.pause.as_secs_f64());
                log::warn!("source {name}: {what}: {text}; trying again in {pause:.1} s (try {})", told.times);
            }
        }
    }

    /// Stays away until a new connection would not have to wait at once.
    async fn wait_for_room(&mut self, outbox: &Outbox) {
        self.board.state("held");
        let held = self.held(outbox);
        while held.is_crowded() {
            let stop = tokio::time::timeout(ROOM_CHECK_EVERY, self.stop.wait_for(|stop| *stop)).await;
            if stop.is_ok() {
                return;
            }
        }
    }
}

/// What was told last: a broker that is away for a week is told at the 1st, 2nd, 4th, 8th, ... try.
#[derive(Debug, Default)]
struct Told {
    text: String,
    times: u64,
}

impl Told {
    fn is_news(&mut self, text: &str) -> bool {
        if self.text != text {
            *self = Self { text: text.to_owned(), times: 0 };
        }
        self.times += 1;
        self.times.is_power_of_two()
    }
}

/// One try: prepares the file, connects in a task of its own, so that a panic in there is one failed try.
async fn connect(plan: &Plan, settings: Settings, known: Subscriptions, losses: Losses) -> Report {
    let before = known.before_connect(&plan.wanted);
    // MQTT 5 subscribes anyway: only what has to be unsubscribed one day must be on disk.
    let stored = if plan.version == 3 { before != known } else { before.filters != known.filters };
    if stored {
        store(plan.file.clone(), before.clone(), &plan.board.name).await;
    }
    let task = tokio::spawn(connection::run(plan.clone(), settings, known.clone(), losses));
    match task.await {
        Ok(report) => {
            let answered = report.connected.is_some() || matches!(report.end, End::Lost(LinkError::Unreachable(_)));
            if answered { report } else { Report { known: before, ..report } }
        }
        Err(error) => {
            log::error!("source {}: the connection's task failed: {error}; please report this", plan.board.name);
            let end = End::Lost(LinkError::Broken(format!("internal error: {error}")));
            Report { end, connected: None, known: before, losses: Losses::default() }
        }
    }
}

/// Stores what is known about the subscriptions, away from the tasks that must not wait.
async fn store(file: SubscriptionFile, subscriptions: Subscriptions, name: &str) {
    let stored = tokio::task::spawn_blocking(move || file.store(&subscriptions)).await;
    let error = match stored {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    log::warn!("source {name}: cannot remember the subscriptions ({error}); after a restart they are made again");
}

fn settings(config: &Mqtt, endpoint: Endpoint, agent_id: &str, source: &str) -> Result<Settings, String> {
    let tls = if endpoint.is_tls() { Some(tls::client_config(&config.tls.clone().unwrap_or_default())?) } else { None };
    let password = match secret::password_path(config.password_file.as_deref(), config.password_credential.as_deref())?
    {
        Some(path) => Some(secret::read_password(&path)?),
        None => None,
    };
    let credentials = match (&config.username, password) {
        (None, None) => None,
        (user, password) => Some((user.clone().unwrap_or_default(), password.unwrap_or_default())),
    };
    let offline = serde_json::json!({ "status": "offline", "agent": agent_id, "source": source }).to_string();
    Ok(Settings {
        endpoint,
        version: config.version,
        client_id: client_id(config, agent_id, source),
        credentials,
        tls,
        keep_alive: config.keep_alive.0,
        session_expiry: config.session_expiry.0,
        receive_maximum: config.receive_maximum,
        packet_bytes_max: u32::try_from(config.packet_bytes_max.0).unwrap_or(u32::MAX),
        will: status_topic(config, agent_id, source).map(|topic| (topic, offline)),
    })
}

fn random_fraction() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}
