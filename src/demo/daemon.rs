//! The real daemon as a child process: this very executable, with a real configuration file.

use std::io;
use std::path::{Path, PathBuf};

use super::DemoError;
use super::brokers::{Process, free_port};
use crate::status::{self, Status};

/// What goes into its configuration.
#[derive(Debug)]
pub(super) struct Setting<'a> {
    pub(super) dir: &'a Path,
    pub(super) bootstrap: &'a str,
    pub(super) mqtt_url: &'a str,
    /// Subscribed to; the third level is the device.
    pub(super) mqtt_filter: &'a str,
    /// Leave no retained status message on a broker that lives on.
    pub(super) mqtt_status_off: bool,
    pub(super) meter_path: &'a Path,
    pub(super) meter_device: &'a str,
    pub(super) agent_id: &'a str,
    pub(super) topic: &'a str,
    pub(super) ledger_topic: &'a str,
    pub(super) dead_letter_topic: &'a str,
}

/// The child.
#[derive(Debug)]
pub(super) struct Daemon {
    config: PathBuf,
    log: PathBuf,
    http_port: u16,
    process: Option<Process>,
}

impl Daemon {
    /// Writes its configuration; nothing runs yet.
    pub(super) fn prepare(setting: &Setting<'_>) -> Result<Self, DemoError> {
        let http_port = free_port()?;
        let config = setting.dir.join("fieldpost.toml");
        let text = configuration(setting, http_port);
        std::fs::write(&config, text).map_err(|error| DemoError::io("writing the configuration", error))?;
        Ok(Self { config, log: setting.dir.join("fieldpost.log"), http_port, process: None })
    }

    pub(super) fn http_port(&self) -> u16 {
        self.http_port
    }

    /// Starts it. Does not wait.
    pub(super) fn start(&mut self) -> Result<(), DemoError> {
        let program = std::env::current_exe().map_err(|error| DemoError::io("finding this program", error))?;
        let arguments = ["run".into(), "--config".into(), self.config.clone().into_os_string()];
        self.process = Some(Process::start("fieldpost", program, arguments, &[], &self.log)?);
        Ok(())
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) -> Result<(), DemoError> {
        Ok(self.process.take().map_or(Ok(()), |mut process| process.kill())?)
    }

    /// SIGTERM, and waits for the orderly end.
    pub(super) fn stop(&mut self) -> Result<(), DemoError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let ended = process.stop(std::time::Duration::from_secs(30))?;
        if ended.success() { Ok(()) } else { Err(process.failed(format!("the daemon ended with {ended}")).into()) }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// `None` while it does not answer. An error if it has ended by itself.
    pub(super) fn status(&mut self) -> Result<Option<Status>, DemoError> {
        let Some(process) = self.process.as_mut() else { return Ok(None) };
        if let Some(ended) = process.ended() {
            return Err(process.failed(format!("the daemon ended by itself ({ended})")).into());
        }
        Ok(status::ask_port(self.http_port).ok())
    }
}

impl DemoError {
    pub(super) fn io(what: &str, error: io::Error) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}

fn configuration(setting: &Setting<'_>, http_port: u16) -> String {
    let Setting {
        bootstrap,
        mqtt_url,
        mqtt_filter,
        meter_device,
        agent_id,
        topic,
        ledger_topic,
        dead_letter_topic,
        ..
    } = setting;
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let status_topic = if setting.mqtt_status_off { "status_topic = \"off\"\n" } else { "" };
    let servers: Vec<_> = bootstrap.split(',').map(quoted).collect();
    format!(
        r#"# Written by `fieldpost demo`. Every setting is explained in config/fieldpost.toml.
[agent]
id = {}
state_dir = {}

[http]
listen = "127.0.0.1:{http_port}"

[outbox]
max_bytes = "256MiB"
free_space_floor = "16MiB"

[delivery]
ledger_topic = {}
dead_letter_topic = {}

[delivery.kafka]
bootstrap_servers = [{}]

[sources.plant]
type = "mqtt"
url = {}
subscribe = [{{ topic = {}, qos = 1 }}]
topic = {}
device = "{{mqtt.topic[2]}}"
{status_topic}
[sources.{METER_SOURCE}]
type = "serial"
path = {}
topic = {}
device = {}
body = "reading"
decode = {{ format = "json", device = "device", time = "time" }}
"#,
        quoted(agent_id),
        quoted(&setting.dir.join("state").display().to_string()),
        quoted(ledger_topic),
        quoted(dead_letter_topic),
        servers.join(", "),
        quoted(mqtt_url),
        quoted(mqtt_filter),
        quoted(topic),
        quoted(&setting.meter_path.display().to_string()),
        quoted(topic),
        quoted(meter_device),
    )
}

/// Name of the serial source.
pub(super) const METER_SOURCE: &str = "meter";

/// Name of the MQTT source.
pub(super) const MQTT_SOURCE: &str = "plant";
