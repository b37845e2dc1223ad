//! A state directory, the program, and a daemon on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldpost::config;
use fieldpost::metrics::Metrics;
use fieldpost::outbox::{Answer, Appender, Arrival, OpenOptions, Outbox, Receipt};
use fieldpost::record::{Flags, Kind, Reading, ReceiptTime};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

/// How long anything may take. Nothing depends on it but how long a failure takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A state directory with a configuration that names it.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Run {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error}: {} {}", self.text(), self.err))
    }

    /// Readings and gaps of an export.
    pub(crate) fn lines(&self) -> (Vec<Value>, Vec<Value>) {
        let lines = self.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.partition(|line| line.get("gap").is_none())
    }
}

pub(crate) fn reading(n: u64, bytes: usize) -> Reading {
    let letter = |at: usize| char::from(b'a' + ((n * 31 + (at * at) as u64) % 26) as u8);
    let pattern: String = (0..bytes.min(64)).map(letter).collect();
    let mut filler = pattern.repeat(bytes / pattern.len().max(1));
    filler.truncate(bytes);
    Reading {
        topic: "telemetry".into(),
        device: format!("line-{}", n % 3).into(),
        kind: Kind::Reading,
        flags: Flags::default(),
        received: ReceiptTime { wall_ns: 1_700_000_000_000_000_000 + n as i64 * 1_000_000_000, mono_ns: n },
        device_time_ns: None,
        content_type: "application/json".into(),
        quality: "".into(),
        mqtt: None,
        replay_of: "".into(),
        value: Bytes::from(format!("{{\"n\":{n},\"text\":\"{filler}\"}}")),
    }
}

/// An outbox that this test has open.
pub(crate) struct Filler {
    pub(crate) outbox: Outbox,
    pub(crate) appender: Appender,
    pub(crate) answers: UnboundedReceiver<Answer>,
    pub(crate) next: u64,
}

impl Filler {
    /// One reading of another source.
    pub(crate) fn append_of(&mut self, source: &str) {
        let (appender, mut answers) = self.outbox.appender(&source.into());
        let held = self.outbox.held().try_acquire(1).unwrap();
        let readings = vec![reading(self.next, 10)];
        appender.submit(vec![Arrival { readings, packet: None, receipt: Receipt(self.next), held }]);
        self.next += 1;
        assert_eq!(answers.blocking_recv().unwrap().done.len(), 1);
    }

    pub(crate) fn append(&mut self, count: u64, bytes: usize) {
        for _ in 0..count {
            let held = self.outbox.held().try_acquire(1).unwrap();
            let readings = vec![reading(self.next, bytes)];
            self.appender.submit(vec![Arrival { readings, packet: None, receipt: Receipt(self.next), held }]);
            self.next += 1;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut done = 0;
        while done < count {
            match self.answers.try_recv() {
                Ok(answer) => done += answer.done.len() as u64,
                Err(_) => {
                    assert!(Instant::now() < deadline);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    pub(crate) fn with(extra: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Port 1 of loopback: nobody listens there.
        let text = format!(
            "[agent]\nid = \"gw-1\"\nstate_dir = \"state\"\n[http]\nlisten = \"off\"\n[outbox]\nmax_bytes = \"64MiB\"\n\
             free_space_floor = \"0B\"\n[delivery.kafka]\nbootstrap_servers = [\"127.0.0.1:1\"]\n{extra}"
        );
        std::fs::write(directory.path().join("f.toml"), text).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn open(&self) -> Filler {
        let config = config::Outbox {
            max_bytes: config::ByteSize::mib(64),
            free_space_floor: config::ByteSize(0),
            ..config::Outbox::default()
        };
        let metrics = Metrics::new().outbox.clone();
        let options = OpenOptions { config, agent_id: "gw-1".to_owned(), metrics };
        let outbox = Outbox::open(&self.path("state"), options).unwrap();
        let (appender, answers) = outbox.appender(&"plant".into());
        let next = outbox.positions().durable.0 + 1;
        Filler { outbox, appender, answers, next }
    }

    /// Appends `count` readings and closes.
    pub(crate) fn fill(&self, count: u64, bytes: usize) {
        let mut filler = self.open();
        filler.append(count, bytes);
        filler.outbox.sync_position().unwrap();
        filler.outbox.close(PATIENCE);
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldpost"));
        command.current_dir(self.directory.path()).args(arguments);
        for (name, _) in std::env::vars() {
            if name.starts_with("FIELDPOST_") || name.ends_with("_DIRECTORY") || name == "JOURNAL_STREAM" {
                command.env_remove(name);
            }
        }
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        let output = self.command(arguments).args(["--config", "f.toml"]).output().unwrap();
        Run { code: output.status.code(), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
    }

    pub(crate) fn daemon(&self) -> Daemon {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let process = self.command(&["run", "--config", "f.toml"]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let daemon = Daemon(process);
        let told = || std::fs::read_to_string(self.path("log")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !told().contains("ready: ") {
            assert!(Instant::now() < deadline, "{}", told());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }
}

pub(crate) struct Daemon(pub(crate) Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every file below a directory with what is in it. Sockets have nothing in them.
pub(crate) fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![dir.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            }
            found.insert(entry.path(), if kind.is_file() { std::fs::read(entry.path()).unwrap() } else { Vec::new() });
        }
    }
    found
}
