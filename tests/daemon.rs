//! The daemon as a process, without any broker: start, status, health, reload, a second instance, stop, and what systemd
//! is told.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take. Nothing depends on it but how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Daemon {
    directory: tempfile::TempDir,
    process: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldpost"));
    command.current_dir(directory).args(arguments).args(["--config", "f.toml"]);
    for (name, _) in std::env::vars() {
        let steers = ["FIELDPOST_", "NOTIFY_", "WATCHDOG_"].iter().any(|prefix| name.starts_with(prefix));
        if steers || name.ends_with("_DIRECTORY") || name == "JOURNAL_STREAM" {
            command.env_remove(name);
        }
    }
    command
}

/// Port 1 of loopback: nobody listens there, so that every peer is away.
fn config(extra: &str) -> String {
    format!(
        "[agent]\nid = \"gw-1\"\nstate_dir = \"state\"\n[http]\nlisten = \"off\"\n[outbox]\nmax_bytes = \"16MiB\"\n\
         [delivery.kafka]\nbootstrap_servers = [\"127.0.0.1:1\"]\n{extra}"
    )
}

fn mqtt(name: &str, topic: &str) -> String {
    format!(
        "[sources.{name}]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1\"\nsubscribe = [{{ topic = \"{topic}\" }}]\n"
    )
}

impl Daemon {
    fn start(text: &str, variables: &[(&str, &Path)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), text, variables)
    }

    fn start_in(directory: tempfile::TempDir, text: &str, variables: &[(&str, &Path)]) -> Self {
        std::fs::write(directory.path().join("f.toml"), text).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let mut run = command(directory.path(), &["run"]);
        let process = run.envs(variables.iter().copied()).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let daemon = Self { directory, process };
        daemon.wait_for("ready: ");
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn wait_for(&self, text: &str) {
        wait(&|| self.log().contains(text), &|| format!("{text:?} is not in the log:\n{}", self.log()));
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    fn ask(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = command(self.directory.path(), arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn status(&self) -> Value {
        let (code, out, err) = self.ask(&["status", "--json"]);
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn end(&mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

fn wait(good: &dyn Fn() -> bool, told: &dyn Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < deadline, "{}", told());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_starts_without_any_peer_tells_its_status_and_stops_in_order() {
    let mut daemon = Daemon::start(&config(&mqtt("plant", "a/#")), &[]);
    let status = daemon.status();
    assert_eq!(status["agent"]["id"], "gw-1");
    assert_eq!(status["agent"]["incarnation"].as_str().unwrap().len(), 32);
    assert_eq!(status["outbox"]["when_full"], "block");
    assert_eq!(status["sources"]["plant"]["type"], "mqtt");
    let (code, out, _) = daemon.ask(&["status"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("agent gw-1") && out.contains("plant") && !out.contains('\u{1b}'), "{out}");
    let mode = std::fs::metadata(daemon.path("state/control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let (code, out, err) = daemon.ask(&["outbox", "inspect", "--json"]);
    assert_eq!(code, Some(0), "{err}");
    let inspection: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(inspection["running"], daemon.process.id());

    daemon.signal("TERM");
    assert_eq!(daemon.end(), Some(0), "{}", daemon.log());
    assert!(daemon.log().trim_end().ends_with("stopped"), "{}", daemon.log());
    assert!(!daemon.path("state/control.sock").exists());
    assert_eq!(daemon.ask(&["status"]).0, Some(69));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut daemon = Daemon::start(&config(""), &[]);
    // Both are pending when it goes on, so that the second one finds the first one's stop under way.
    for signal in ["STOP", "TERM", "INT", "CONT"] {
        daemon.signal(signal);
    }
    assert_eq!(daemon.end(), Some(1), "{}", daemon.log());
}

#[test]
fn a_second_instance_is_told_to_try_again() {
    let daemon = Daemon::start(&config(""), &[]);
    let (code, _, err) = daemon.ask(&["run"]);
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("in use by another process") && err.contains(&daemon.process.id().to_string()), "{err}");
    assert_eq!(daemon.status()["agent"]["id"], "gw-1");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_an_input_output_error() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("state"), "a file").unwrap();
    std::fs::write(directory.path().join("f.toml"), config("")).unwrap();
    let output = command(directory.path(), &["run"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(74), "{err}");
    assert!(err.contains("state"), "{err}");
}

/// Runs the daemon on a state directory that must be refused; what it says. Nothing in it may change.
fn refused(directory: &Path, code: i32) -> String {
    let listing = || {
        let output = Command::new("find").arg(directory).args(["-printf", "%p %y %s %T@ %m %l\n"]).output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    std::fs::write(directory.join("f.toml"), config("")).unwrap();
    let before = listing();
    let output = command(directory, &["run"]).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert_eq!(String::from_utf8_lossy(&listing()), String::from_utf8_lossy(&before), "something was changed: {err}");
    err
}

#[test]
fn a_state_directory_that_is_none_is_named_and_left_alone() {
    use std::os::unix::fs::symlink;
    let make = |make: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        make(&directory.path().join("state"));
        directory
    };
    let home = make(&|state| {
        std::fs::create_dir_all(state.join("Documents")).unwrap();
        std::fs::write(state.join("letter.txt"), "dear").unwrap();
    });
    let err = refused(home.path(), 78);
    assert!(
        err.contains("is not the state directory of a fieldpost") && err.contains("Documents, letter.txt"),
        "{err}"
    );
    let other = make(&|state| {
        std::fs::create_dir_all(state.join("outbox")).unwrap();
        std::fs::write(state.join("outbox/mail-1"), "dear").unwrap();
    });
    let err = refused(other.path(), 78);
    assert!(err.contains("state/outbox holds other things (mail-1)"), "{err}");
    let file = make(&|state| std::fs::write(state, "a file").unwrap());
    assert!(refused(file.path(), 74).contains("it is a file, not a directory"));
    let file = make(&|state| {
        std::fs::create_dir_all(state).unwrap();
        std::fs::write(state.join("outbox"), "a file").unwrap();
    });
    let err = refused(file.path(), 74);
    assert!(err.contains("state/outbox: it is a file, not a directory"), "{err}");
    let dangling = make(&|state| symlink("/nonexistent/disk", state).unwrap());
    let err = refused(dangling.path(), 74);
    assert!(err.contains("a symbolic link to /nonexistent/disk, which does not exist"), "{err}");
    let circle = make(&|state| symlink(state, state).unwrap());
    assert!(refused(circle.path(), 74).contains("cannot be followed"));
}

#[test]
fn an_outbox_of_another_agent_or_a_later_format_is_named_and_left_alone() {
    let mut daemon = Daemon::start(&config(""), &[]);
    daemon.signal("TERM");
    assert_eq!(daemon.end(), Some(0), "{}", daemon.log());
    let state = daemon.path("state");
    // The file as a later program would leave it: slots of 4 KiB, each counter u64, length u32, payload, crc32.
    let whole = std::fs::read(state.join("outbox/state")).unwrap();
    let write_slots = |payload: &str| {
        let mut bytes = Vec::new();
        for counter in [1_000_000u64, 1_000_001] {
            let mut slot = counter.to_le_bytes().to_vec();
            slot.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            slot.extend_from_slice(payload.as_bytes());
            let sum = crc32fast::hash(&slot);
            slot.extend_from_slice(&sum.to_le_bytes());
            slot.resize(4096, 0);
            bytes.extend(slot);
        }
        std::fs::write(state.join("outbox/state"), bytes).unwrap();
    };
    write_slots(r#"{"v":2,"writer":"7.1.0","houses":[]}"#);
    let err = refused(daemon.directory.path(), 78);
    assert!(err.contains("outbox/state was written by fieldpost 7.1.0, format 2; this program"), "{err}");
    assert!(err.contains("knows up to 1"), "{err}");
    std::fs::write(state.join("outbox/state"), &whole).unwrap();
    let own = config("").replace("gw-1", "gw-2");
    std::fs::write(daemon.path("f.toml"), own).unwrap();
    let (code, _, err) = daemon.ask(&["run"]);
    assert_eq!(code, Some(78), "{err}");
    assert!(err.contains("is the outbox of agent \"gw-1\", not of \"gw-2\""), "{err}");
    assert!(std::fs::read(state.join("outbox/state")).unwrap() == whole);
}

#[test]
fn a_state_directory_behind_a_symbolic_link_is_as_good() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("disk")).unwrap();
    std::os::unix::fs::symlink("disk", directory.path().join("state")).unwrap();
    let daemon = Daemon::start_in(directory, &config(""), &[]);
    assert_eq!(daemon.status()["agent"]["id"], "gw-1");
    assert!(daemon.path("disk/outbox/state").exists());
}

#[test]
fn a_reload_takes_a_good_configuration_and_refuses_a_bad_one() {
    let daemon = Daemon::start(&config(&(mqtt("same", "a") + &mqtt("other", "b") + &mqtt("gone", "c"))), &[]);
    let since = |name: &str| daemon.status()["sources"][name].clone();
    let same = since("same");

    std::fs::write(daemon.path("f.toml"), config("[sources.same]\ntype = \"matt\"\n")).unwrap();
    daemon.signal("HUP");
    daemon.wait_for("reload refused, the running configuration stays: 1 mistake");
    daemon.wait_for("did you mean \"mqtt\"?");
    assert_eq!(daemon.status()["sources"].as_object().unwrap().len(), 3);

    let text = config(&(mqtt("same", "a") + &mqtt("other", "changed") + &mqtt("new", "d")));
    let text = text.replace("id =", "log = \"warn\"\nid =").replace("16MiB", "32MiB");
    std::fs::write(daemon.path("f.toml"), text).unwrap();
    daemon.signal("HUP");
    daemon.wait_for("sources added: new; sources removed: gone; sources changed: other; log filter changed");
    daemon.wait_for("needs a restart to take effect: outbox.max_bytes");
    daemon.wait_for("source gone is gone from the configuration; its session stays at the broker");
    wait(&|| daemon.status()["sources"].as_object().unwrap().contains_key("new"), &|| daemon.log());
    let status = daemon.status();
    let names: Vec<_> = status["sources"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["new", "other", "same"]);
    assert_eq!(status["outbox"]["bytes_max"], 16 << 20);
    assert_eq!(status["sources"]["same"]["type"], same["type"]);
}

#[test]
fn the_outbox_is_changed_through_the_daemon_or_without_one() {
    let text = config(&mqtt("plant", "a"));
    let mut daemon = Daemon::start(&text, &[]);
    let purge = ["outbox", "purge", "--all", "--json", "--yes"];
    for command in [&purge[..], &["outbox", "replay", "--all", "--json"]] {
        let (code, out, err) = daemon.ask(command);
        assert_eq!(code, Some(0), "{err}");
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["readings"], 0);
    }
    for (arguments, told) in [
        (&["outbox", "purge"][..], "--older-than"),
        (&["outbox", "replay"], "--since"),
        (&["outbox", "purge", "--from", "9", "--to", "3"], "ends before it begins"),
        (&["outbox", "purge", "--before", "yesterday"], "2026-11-21T08:00:00Z"),
        (
            &["outbox", "replay", "--all", "--since", "2026-11-21T09:00:00Z", "--until", "2026-11-21T08:00:00Z"],
            "time ends",
        ),
    ] {
        let (code, _, err) = daemon.ask(arguments);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(told), "{err}");
    }
    // Nobody to ask, and the daemon holds the lock.
    std::fs::rename(daemon.path("state/control.sock"), daemon.path("hidden")).unwrap();
    let (code, _, err) = daemon.ask(&purge);
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("control.sock") && err.contains("systemctl stop fieldpost"), "{err}");
    std::fs::rename(daemon.path("hidden"), daemon.path("state/control.sock")).unwrap();
    daemon.signal("TERM");
    assert_eq!(daemon.end(), Some(0));

    let (code, out, err) = daemon.ask(&purge);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["readings"], 0);
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("f.toml"), &text).unwrap();
    let output = command(elsewhere.path(), &purge).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no outbox"));
    assert!(!elsewhere.path().join("state").exists(), "nothing is made");
}

#[test]
fn http_tells_health_metrics_and_status() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = config(&mqtt("plant", "a")).replace("\"off\"", &format!("\"127.0.0.1:{port}\""));
    let daemon = Daemon::start(&text, &[]);
    let get = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_owned())
    };
    let (head, body) = get("/healthz");
    assert!(head.contains(" 200 ") && body == "ok\n", "{head}\n{body}");
    let (head, body) = get("/readyz");
    assert!(head.contains(" 503 ") && body.contains("source plant is "), "{head}\n{body}");
    let (head, body) = get("/metrics");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    for name in
        ["fieldpost_source_received_total{source=\"plant\"} 0", "fieldpost_outbox_records", "fieldpost_build_info"]
    {
        assert!(body.contains(name), "{name} is not in\n{body}");
    }
    assert!(body.ends_with("# EOF\n"), "{body}");
    let (_, body) = get("/status");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["agent"]["id"], "gw-1");
    assert!(get("/").1.contains("agent gw-1"));

    // Nothing that changes state is offered over the network.
    for path in ["/outbox/purge", "/outbox/replay"] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let body = r#"{"selection":{},"dry_run":true}"#;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 404 "), "{path}: {answer}");
    }

    let (code, _, err) = {
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("f.toml"), &text).unwrap();
        let output = command(other.path(), &["run"]).output().unwrap();
        (output.status.code(), (), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(code, Some(69), "{err}");
    assert!(err.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{err}");
    drop(daemon);
}

#[test]
fn systemd_is_told_of_readiness_life_reload_and_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let variables = [("NOTIFY_SOCKET", path.as_path()), ("WATCHDOG_USEC", Path::new("3000000"))];
    let mut daemon = Daemon::start(&config(""), &variables);
    let expect = |wanted: &str| loop {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).unwrap_or_else(|error| panic!("{wanted} never came: {error}"));
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        if text.contains(wanted) {
            return text;
        }
    };
    expect("READY=1");
    expect("WATCHDOG=1");
    expect("STATUS=delivery ");
    daemon.signal("HUP");
    assert!(expect("RELOADING=1").contains("MONOTONIC_USEC="));
    expect("READY=1");
    daemon.signal("TERM");
    expect("STOPPING=1");
    assert_eq!(daemon.end(), Some(0));
}
