//! The real daemon as a process: started with a configuration file, watched through its HTTP endpoint, killed, stopped,
//! reloaded. A warning in its log that the test did not announce fails the test.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use fieldpost::demo::brokers::free_port;
use fieldpost::demo::brokers::process::{Process, Signal};
use serde_json::Value;

use super::{LIMIT, wait_for};

pub struct Agent {
    dir: PathBuf,
    http_port: u16,
    process: Option<Process>,
    expected_warnings: Vec<String>,
    /// Size of a disk of its own for the state directory. It lives as long as one process.
    pub small_disk_mib: Option<u64>,
}

impl Agent {
    /// Nothing runs yet. Configuration and log are in `dir`.
    pub fn new(dir: &Path) -> Self {
        let http_port = free_port().unwrap();
        Self { dir: dir.to_owned(), http_port, process: None, expected_warnings: Vec::new(), small_disk_mib: None }
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("fieldpost.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Warnings and errors that hold one of these texts are part of what is tested.
    pub fn expect_warnings(&mut self, texts: &[&str]) {
        self.expected_warnings.extend(texts.iter().map(|text| (*text).to_owned()));
    }

    /// Starts the daemon and does not wait.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut arguments = vec!["run".into(), "--config".into(), self.config_path().into_os_string()];
        let mut program = env!("CARGO_BIN_EXE_fieldpost");
        if let Some(mib) = self.small_disk_mib {
            let mut around = alone_on_a_disk(&self.state_dir(), mib);
            around.push(program.into());
            around.append(&mut arguments);
            (program, arguments) = ("unshare", around);
        }
        let log = self.dir.join("log");
        let process = Process::start("fieldpost", program, arguments, &[], &log);
        self.process = Some(process.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.launch();
        let port = self.http_port;
        wait_for("the daemon to answer", || {
            self.assert_running();
            status(port)
        });
    }

    /// Panics with the end of the log if the daemon has ended.
    pub fn assert_running(&mut self) {
        let process = self.process.as_mut().expect("it was started");
        if let Some(end) = process.ended() {
            panic!("{}", process.failed(format!("the daemon ended ({end})")));
        }
    }

    /// The state directory as the daemon sees it, also where it has a disk of its own.
    pub fn state_dir_inside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        // Without links on the way: an absolute one would lead back to what we see.
        let path = self.state_dir().canonicalize().unwrap();
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it was started").pid()
    }

    /// A command beside the daemon, with its configuration; not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldpost"));
        command.args(arguments).arg("--config").arg(self.config_path());
        command
    }

    /// `/status`, waiting for an answer.
    pub fn status(&mut self) -> Value {
        let port = self.http_port;
        wait_for("an answer to /status", || {
            self.assert_running();
            status(port)
        })
    }

    /// Waits until `/status` fulfils the condition; the last one is part of the failure.
    pub fn wait_status(&mut self, what: &str, mut good: impl FnMut(&Value) -> bool) -> Value {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let status = self.status();
            if good(&status) {
                return status;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "waited {} s in vain: {what}\n{status:#}\nlog:\n{}",
                LIMIT.as_secs(),
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until all sources of the configuration are up.
    pub fn wait_sources_up(&mut self) {
        let config = std::fs::read_to_string(self.config_path()).unwrap();
        let tables = config.lines().filter_map(|line| line.strip_prefix("[sources.")?.strip_suffix(']'));
        let names: Vec<_> = tables.filter(|name| !name.contains('.')).collect();
        assert!(!names.is_empty(), "no source is configured:\n{config}");
        self.wait_status("all sources to be up", |status| {
            names.iter().all(|name| status["sources"][name]["state"] == "up")
        });
    }

    /// Waits until everything in the outbox is delivered.
    pub fn wait_drained(&mut self) {
        self.wait_status("the outbox to be empty", |status| {
            let outbox = &status["outbox"];
            outbox["records"] == 0 && outbox["committed"] == outbox["durable"]
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.take().expect("it was started").kill().unwrap();
    }

    /// SIGTERM; the daemon must end with 0.
    pub fn stop(&mut self) {
        let end = self.terminate();
        assert!(end.success(), "the daemon ended with {end} after SIGTERM; log:\n{}", self.log_tail());
    }

    pub fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it was started");
        process.stop(LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits for the daemon to end by itself.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("it was started");
        process.wait(LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    pub fn signal(&mut self, signal: Signal) {
        self.process.as_mut().expect("it was started").signal(signal).unwrap();
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    pub fn wait_log(&mut self, text: &str) {
        wait_for(&format!("{text:?} in the log"), || self.log().contains(text).then_some(()));
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// No warning, error or panic beyond the expected ones.
    pub fn assert_log_is_quiet(&self) {
        let log = self.log();
        let loud = |line: &&str| {
            let head = line.get(..line.len().min(48)).unwrap_or(line);
            head.contains(" WARN ") || head.contains(" ERROR ") || line.contains("panicked")
        };
        let unexpected: Vec<&str> = log
            .lines()
            .filter(loud)
            .filter(|line| !self.expected_warnings.iter().any(|text| line.contains(text.as_str())))
            .collect();
        assert!(unexpected.is_empty(), "unexpected in the daemon's log:\n{}", unexpected.join("\n"));
    }
}

/// `/status` of the daemon at this port, if it answers.
pub fn status(http_port: u16) -> Option<Value> {
    let (code, body) = get(http_port, "/status")?;
    (code == 200).then(|| serde_json::from_str(&body).expect("/status is JSON"))
}

/// Code and body of an HTTP request.
pub fn get(http_port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", http_port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// What stands before the program so that it has a tmpfs of this size for its state, in a mount namespace of its own: nobody
/// else sees it, and it ends with the process.
fn alone_on_a_disk(state_dir: &Path, mib: u64) -> Vec<OsString> {
    std::fs::create_dir_all(state_dir).unwrap();
    let mut words: Vec<OsString> = ["--mount", "--propagation", "private"].map(OsString::from).into();
    if !rustix::process::geteuid().is_root() {
        words.extend(["--user", "--map-root-user"].map(OsString::from));
    }
    let mount = format!("mount -t tmpfs -o size={mib}m none \"$0\" && exec \"$@\"");
    words.extend(["--", "sh", "-c", &mount].map(OsString::from));
    words.push(state_dir.into());
    words
}
