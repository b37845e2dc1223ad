//! One test's set: a directory, topics, MQTT broker, serial lines, the daemon with its configuration, and the oracle.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use fieldpost::demo::brokers::{Mosquitto, MosquittoOptions};

use super::agent::Agent;
use super::kafka::{create_topic, proxy_to_shared, shared};
use super::meter::Meter;
use super::oracle::{Oracle, Tally, Topics};
use super::proxy::Proxy;
use super::publisher::Publisher;
use super::serial::SerialLine;
use super::wait_for;
use super::workdir::WorkDir;

pub struct Rig {
    pub name: String,
    pub agent: Agent,
    pub oracle: Arc<Oracle>,
    /// What the daemon is told; may be a proxy.
    pub bootstrap: String,
    /// Where the oracle looks.
    pub direct: String,
    pub topics: Topics,
    /// Lines of `[outbox]`, `[delivery]`, `[agent]`.
    pub outbox: String,
    pub delivery: String,
    pub agent_lines: String,
    /// The tables of the sources.
    pub sources: String,
    // Last: removed after all that uses it has ended.
    dir: WorkDir,
}

impl Rig {
    /// With the shared Kafka and topics of its own.
    pub fn new(name: &str) -> Self {
        let rig = Self::at(name, shared());
        rig.create_topics();
        rig
    }

    /// As [`Rig::new`], with a bad network between the daemon and Kafka.
    pub fn proxied(name: &str) -> (Self, Proxy) {
        let proxy = proxy_to_shared();
        let mut rig = Self::new(name);
        rig.bootstrap = format!("127.0.0.1:{}", proxy.port());
        (rig, proxy)
    }

    /// With another cluster; the topics are not made yet.
    pub fn at(name: &str, bootstrap: &str) -> Self {
        let dir = WorkDir::new(name);
        let topics = Topics {
            data: vec![format!("{name}.data")],
            dead_letters: format!("{name}.dead"),
            ledger: format!("{name}.ledger"),
        };
        Self {
            name: name.to_owned(),
            agent: Agent::new(dir.path()),
            oracle: Arc::default(),
            bootstrap: bootstrap.to_owned(),
            direct: bootstrap.to_owned(),
            topics,
            outbox: String::new(),
            delivery: String::new(),
            agent_lines: String::new(),
            sources: String::new(),
            dir,
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn create_topics(&self) {
        for topic in &self.topics.data {
            create_topic(&self.direct, topic, 3);
        }
        create_topic(&self.direct, &self.topics.dead_letters, 1);
    }

    pub fn mosquitto(&self, options: &MosquittoOptions) -> Mosquitto {
        Mosquitto::start(&self.path().join("mosquitto"), options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Adds an MQTT source that subscribes to all devices of a [`Publisher`]. `more`: further lines of its table.
    pub fn mqtt_source(&mut self, name: &str, port: u16, qos: u8, more: &str) {
        let topic = &self.topics.data[0];
        let _ = writeln!(
            self.sources,
            "[sources.{name}]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{port}\"\ntopic = \"{topic}\"\n\
             subscribe = [{{ topic = \"plant/+/telemetry\", qos = {qos} }}]\ndevice = \"{{mqtt.topic[1]}}\"\n{more}\n"
        );
    }

    /// Adds a serial source with a device that is plugged in. `more`: further lines of its table.
    pub fn serial_source(&mut self, name: &str, more: &str) -> Arc<Mutex<SerialLine>> {
        let line = SerialLine::new(&self.path().join(format!("tty-{name}")));
        let (path, topic) = (line.path().display(), &self.topics.data[0]);
        let _ = writeln!(
            self.sources,
            "[sources.{name}]\ntype = \"serial\"\npath = \"{path}\"\ntopic = \"{topic}\"\ndevice = \"{{source}}\"\n{more}\n"
        );
        Arc::new(Mutex::new(line))
    }

    pub fn publisher(&self, name: &str, port: u16) -> Publisher {
        Publisher::new(port, &format!("{}-{name}", self.name), &self.oracle)
    }

    pub fn meter(&self, line: &Arc<Mutex<SerialLine>>, source: &str) -> Meter {
        Meter::new(line, source, self.agent.http_port(), &self.oracle)
    }

    pub fn config_text(&self) -> String {
        let Self { name, bootstrap, outbox, delivery, agent_lines, sources, topics, .. } = self;
        let servers: Vec<_> = bootstrap.split(',').map(|server| format!("\"{server}\"")).collect();
        format!(
            "[agent]\nid = \"{name}\"\nstate_dir = \"{}\"\n{agent_lines}\n\
             [http]\nlisten = \"127.0.0.1:{}\"\n\
             [outbox]\n{outbox}\n\
             [delivery]\nledger_topic = \"{}\"\ndead_letter_topic = \"{}\"\n{delivery}\n\
             [delivery.kafka]\nbootstrap_servers = [{}]\n\n{sources}",
            self.agent.state_dir().display(),
            self.agent.http_port(),
            topics.ledger,
            topics.dead_letters,
            servers.join(", "),
        )
    }

    pub fn write_config(&self) {
        std::fs::write(self.agent.config_path(), self.config_text()).unwrap();
    }

    /// Writes the configuration, starts the daemon, waits until its sources are up.
    pub fn start(&mut self) {
        self.write_config();
        self.agent.start();
        self.agent.wait_sources_up();
    }

    /// Waits until all obligations have arrived and the outbox is empty, then compares everything.
    pub fn settle(&mut self) -> Tally {
        // What the MQTT broker has acknowledged may still be on its way to the daemon; the status cannot show that.
        let tally = wait_for("all obligations to be delivered", || {
            self.agent.wait_drained();
            let tally = self.tally();
            tally.lost.is_empty().then_some(tally)
        });
        eprintln!("{}: {tally}", self.name);
        tally
    }

    pub fn tally(&self) -> Tally {
        self.oracle.tally(&self.direct, &self.name, &self.topics)
    }

    /// Waits until the daemon has accepted (or known again) this many messages of a source since it started.
    pub fn wait_accepted(&mut self, source: &str, count: u64) {
        self.agent.wait_status(&format!("{count} messages of {source} to be accepted"), |status| {
            let source = &status["sources"][source];
            source["accepted"].as_u64() >= Some(count)
        });
    }

    /// The end of most tests: all is well, one fresh reading passes, and the daemon's log is quiet.
    pub fn finish(mut self, publisher: &mut Publisher) {
        self.settle().assert_clean();
        publisher.publish_fresh("fresh");
        self.settle().assert_clean();
        self.agent.stop();
        self.agent.assert_log_is_quiet();
    }
}

/// `d0` to `d(count-1)`.
pub fn devices(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("d{number}")).collect()
}
