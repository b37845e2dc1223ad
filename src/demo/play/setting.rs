//! Everything that stands on the stage before the first act: brokers, topics, the meter's line, the daemon's files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::demo::brokers::kafka::admin;
use crate::demo::brokers::{BrokerError, Kafka, KafkaOptions, Mosquitto, MosquittoOptions};
use crate::demo::daemon::{Daemon, MQTT_SOURCE, Setting};
use crate::demo::reader::Topic;
use crate::demo::screen::Screen;
use crate::demo::{DemoError, DemoOptions, devices};
use crate::record::Qos;
use crate::simulate::meter::Meter;
use crate::simulate::mqtt::{FleetOptions, Target, forget_session};

/// Device id of the meter.
pub(super) const METER: &str = "meter-1";

/// The stage.
pub(super) struct Stage {
    pub(super) daemon: Daemon,
    pub(super) meter: Option<Meter>,
    pub(super) meter_path: PathBuf,
    pub(super) fleet: FleetOptions,
    pub(super) topics: Vec<Topic>,
    pub(super) bootstrap: String,
    /// `None`: the cluster is not ours.
    pub(super) kafka: Option<Kafka>,
    mosquitto: Option<Mosquitto>,
    agent_id: String,
    ledger_topic: String,
    // Last: the files go when no one writes to them any more.
    dir: Workdir,
}

impl Stage {
    pub(super) fn build(
        options: &DemoOptions,
        interrupted: &Arc<AtomicBool>,
        screen: &mut Screen,
    ) -> Result<Self, DemoError> {
        let dir = Workdir::make(options.keep.as_deref())?;
        let run = run_name()?;
        screen.tell(match (&options.mqtt, &options.kafka) {
            (None, None) => "starting mosquitto and Apache Kafka",
            (Some(_), None) => "starting Apache Kafka",
            (None, Some(_)) => "starting mosquitto",
            (Some(_), Some(_)) => "using your brokers",
        });
        let (mosquitto, kafka) = start_brokers(options, &dir.path, interrupted)?;
        let own = |name: Option<String>, url: &Option<String>| name.or_else(|| url.clone()).unwrap_or_default();
        let bootstrap = own(kafka.as_ref().map(Kafka::bootstrap), &options.kafka);
        let mqtt_url = own(mosquitto.as_ref().map(Mosquitto::url), &options.mqtt);
        let prefix = if kafka.is_some() { String::new() } else { format!("fieldpost-demo-{run}.") };
        let topics = super::data_topics(&prefix);
        for topic in &topics {
            admin::create_topic(&bootstrap, &topic.name, topic.partitions, &[])?;
        }
        let meter = devices::open_line(&dir.path)?;
        let meter_path = meter.path().to_owned();
        let ledger_topic = format!("{prefix}fieldpost.ledger");
        let agent_id = format!("demo-{run}");
        let daemon = Daemon::prepare(&Setting {
            dir: &dir.path,
            bootstrap: &bootstrap,
            mqtt_url: &mqtt_url,
            mqtt_filter: &format!("fieldpost-demo/{run}/+/telemetry"),
            mqtt_status_off: mosquitto.is_none(),
            meter_path: &meter_path,
            meter_device: METER,
            agent_id: &agent_id,
            topic: &topics[0].name,
            ledger_topic: &ledger_topic,
            dead_letter_topic: &topics[1].name,
        })?;
        let fleet = FleetOptions {
            target: Target::parse(&mqtt_url, None).map_err(|error| DemoError::Failed(format!("--mqtt: {error}")))?,
            devices: options.devices,
            rate: Some(options.rate),
            qos: Qos::AtLeastOnce,
            count: None,
            topic: format!("fieldpost-demo/{run}/{{device}}/telemetry"),
            prefix: "line".to_owned(),
            seed: 1,
            session: run,
        };
        Ok(Self {
            daemon,
            meter: Some(meter),
            meter_path,
            fleet,
            topics,
            bootstrap,
            kafka,
            mosquitto,
            agent_id,
            ledger_topic,
            dir,
        })
    }

    /// Removes the daemon's session from an MQTT broker that lives on.
    pub(super) fn say_goodbye(&self) {
        if self.mosquitto.is_none() {
            let client_id = format!("fieldpost-{}-{MQTT_SOURCE}", self.agent_id);
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                runtime.block_on(forget_session(&self.fleet, client_id));
            }
        }
    }

    pub(super) fn kept(&self) -> Option<PathBuf> {
        self.dir.keep.then(|| self.dir.path.clone())
    }

    pub(super) fn left_behind(&self) -> Vec<String> {
        if self.kafka.is_some() {
            return Vec::new();
        }
        let topics = self.topics.iter().map(|topic| &topic.name).chain([&self.ledger_topic]);
        topics.map(|name| format!("topic {name}")).collect()
    }
}

type Brokers = (Option<Mosquitto>, Option<Kafka>);

/// Starts what is to be started, in the background, so that Ctrl-C is heard meanwhile.
fn start_brokers(options: &DemoOptions, dir: &Path, interrupted: &AtomicBool) -> Result<Brokers, DemoError> {
    let (with_mqtt, with_kafka) = (options.mqtt.is_none(), options.kafka.is_none());
    let dir = dir.to_owned();
    let start = move || -> Result<Brokers, BrokerError> {
        let mqtt_options = MosquittoOptions { persistence: true, ..MosquittoOptions::default() };
        let mosquitto = with_mqtt.then(|| Mosquitto::start(&dir.join("mosquitto"), &mqtt_options)).transpose()?;
        let kafka = with_kafka.then(|| Kafka::start(&dir.join("kafka"), &KafkaOptions::default())).transpose()?;
        Ok((mosquitto, kafka))
    };
    let thread: JoinHandle<_> = std::thread::Builder::new()
        .name("brokers".to_owned())
        .spawn(start)
        .map_err(|error| DemoError::io("starting a thread", error))?;
    while !thread.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let brokers = thread.join().map_err(|_| DemoError::Failed("starting the brokers panicked".to_owned()))?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(DemoError::Interrupted);
    }
    Ok(brokers?)
}

/// Tells this run's names from those of others on the same brokers.
fn run_name() -> Result<String, DemoError> {
    let random = getrandom::u32().map_err(|error| DemoError::Failed(format!("no random number: {error}")))?;
    Ok(format!("{random:08x}"))
}

/// The directory of everything.
struct Workdir {
    path: PathBuf,
    keep: bool,
}

impl Workdir {
    fn make(keep: Option<&Path>) -> Result<Self, DemoError> {
        let path = match keep {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!("fieldpost-demo-{}", run_name()?)),
        };
        std::fs::create_dir_all(&path).map_err(|error| DemoError::io(&format!("making {}", path.display()), error))?;
        let path = path.canonicalize().map_err(|error| DemoError::io(&path.display().to_string(), error))?;
        let used = std::fs::read_dir(&path).map_err(|error| DemoError::io(&path.display().to_string(), error))?;
        if used.count() > 0 {
            return Err(DemoError::Failed(format!("{} is not empty: name a new directory", path.display())));
        }
        Ok(Self { path, keep: keep.is_some() })
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if !self.keep {
            if let Err(error) = std::fs::remove_dir_all(&self.path) {
                log::warn!("{} could not be removed: {error}", self.path.display());
            }
        }
    }
}
