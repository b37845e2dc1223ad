//! The same against a real mosquitto, started for each test on its own port.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::config::Source;
use crate::config::intake::{Mqtt, Subscription, Tls};
use crate::intake::testing::Bench;
use crate::record::Qos;

/// A broker with its directory; ended when dropped.
pub(super) struct Mosquitto {
    directory: tempfile::TempDir,
    port: u16,
    settings: String,
    child: Child,
}

fn program(name: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: apt-get install mosquitto mosquitto-clients openssl"))
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Mosquitto {
    /// `listener`: lines of its configuration after `listener PORT 127.0.0.1`, `DIR` standing for its directory.
    pub(super) fn start(listener: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), listener)
    }

    fn start_in(directory: tempfile::TempDir, listener: &str) -> Self {
        let path = directory.path().display().to_string();
        let port = free_port();
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let settings = format!(
            "{user}persistence_location {path}/\nmax_queued_messages 0\nlistener {port} 127.0.0.1\n{}\n",
            listener.replace("DIR", &path)
        );
        let child = Self::spawn(directory.path(), &settings, port);
        Self { directory, port, settings, child }
    }

    fn spawn(directory: &Path, settings: &str, port: u16) -> Child {
        let config = directory.join("mosquitto.conf");
        std::fs::write(&config, settings).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = Command::new(program("mosquitto"));
        command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || std::fs::read_to_string(directory.join("log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10), "mosquitto does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    /// Ends the broker in an orderly way and starts it again.
    fn restart(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(self.directory.path(), &self.settings, self.port);
    }

    pub(super) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://localhost:{}", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Publishes one message per line.
    pub(super) fn publish(&self, qos: u8, lines: &[String]) {
        let mut child = Command::new(program("mosquitto_pub"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-t", "plant/a/line-1/telemetry", "-l"])
            .args(["-q", &qos.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut text = lines.join("\n");
        text.push('\n');
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn settings(url: String, version: u8, qos: u8) -> Mqtt {
    let subscribe = vec![Subscription { topic: "plant/#".to_owned(), qos }];
    Mqtt { url, version, subscribe, ..Mqtt::default() }
}

pub(super) fn lines(from: u32, to: u32) -> Vec<String> {
    (from..to).map(|number| format!("reading {number}")).collect()
}

async fn up(bench: &Bench) {
    bench.status("up", |status| status.state == "up").await;
    // SUBACK follows CONNACK; the retained birth message is sent after it.
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Publishes until a message arrives: the subscription stands.
async fn arrives(bench: &Bench, broker: &Mosquitto, qos: u8, lines: &[String]) {
    up(bench).await;
    broker.publish(qos, lines);
    bench.stored_at_least(lines.len()).await;
    assert_eq!(bench.values(), lines);
}

pub(super) const OPEN: &str = "allow_anonymous true";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_quality_of_service_with_both_versions() {
    let broker = Mosquitto::start(OPEN);
    for version in [5, 3] {
        for qos in 0..=2 {
            let config =
                Mqtt { client_id: Some(format!("c-{version}-{qos}")), ..settings(broker.url("mqtt"), version, qos) };
            let bench = Bench::new(Source::Mqtt(config), |_| {});
            arrives(&bench, &broker, qos, &lines(0, 300)).await;
            let stored = bench.stored();
            let expected = Qos::from_number(qos).unwrap();
            assert!(stored.iter().all(|stored| stored.reading.mqtt.as_ref().unwrap().qos == expected));
            let acks = if qos == 0 { 0 } else { 300 };
            let status = bench.status("acknowledged", |status| status.acknowledged == acks).await;
            assert_eq!((status.received, status.duplicates, status.rejected), (300, 0, 0));
            bench.source.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_while_away_comes_after_a_restart_of_the_source() {
    for version in [5, 3] {
        let broker = Mosquitto::start(OPEN);
        let config = Source::Mqtt(settings(broker.url("mqtt"), version, 1));
        let mut bench = Bench::new(config.clone(), |_| {});
        arrives(&bench, &broker, 1, &lines(0, 10)).await;
        bench.source.stop().await;
        broker.publish(1, &lines(10, 300));
        bench.source = crate::intake::testing::source(&bench.outbox, config);
        bench.stored_at_least(300).await;
        assert_eq!(bench.values(), lines(0, 300));
        assert_eq!(bench.source.status().last_error, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_with_and_without_its_sessions() {
    for (persistence, lost) in [("persistence true", false), ("persistence false", true)] {
        let mut broker = Mosquitto::start(&format!("{OPEN}\n{persistence}"));
        let bench = Bench::new(Source::Mqtt(settings(broker.url("mqtt"), 5, 2)), |_| {});
        arrives(&bench, &broker, 2, &lines(0, 20)).await;
        broker.restart();
        bench.status("another connection", |status| status.state == "up").await;
        let error = bench.status("a word on it", |status| status.last_error.is_some()).await.last_error.unwrap();
        arrives_after(&bench, &broker).await;
        let told = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains("lost our session"));
        assert_eq!(told(&bench.source.status().last_error), lost, "{error}");
    }
}

async fn arrives_after(bench: &Bench, broker: &Mosquitto) {
    up(bench).await;
    broker.publish(2, &lines(20, 40));
    bench.stored_at_least(40).await;
    assert_eq!(bench.values(), lines(0, 40));
}

/// mosquitto names the reason in a DISCONNECT without properties, which the client library cannot read: the loop is known
/// by its short sessions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_with_one_id_are_noticed() {
    let broker = Mosquitto::start(OPEN);
    let config = Mqtt { client_id: Some("same".to_owned()), ..settings(broker.url("mqtt"), 5, 1) };
    let one = Bench::new(Source::Mqtt(config.clone()), |_| {});
    up(&one).await;
    let _two = Bench::new(Source::Mqtt(config), |_| {});
    let told = |alarm: &String| alarm.contains("client id \"same\"");
    one.status("the alarm", |status| status.alarms.iter().any(told)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_and_unix_sockets() {
    let broker = Mosquitto::start(&format!("{OPEN}\nlistener 0 DIR/socket\n{OPEN}"));
    let url = format!("unix://{}", broker.path("socket").display());
    let bench = Bench::new(Source::Mqtt(settings(url, 5, 1)), |_| {});
    arrives(&bench, &broker, 1, &lines(0, 50)).await;
    let port = free_port();
    let broker = Mosquitto::start(&format!("{OPEN}\nlistener {port} 127.0.0.1\nprotocol websockets\n{OPEN}"));
    for version in [5, 3] {
        let config = Mqtt {
            client_id: Some(format!("ws-{version}")),
            ..settings(format!("ws://127.0.0.1:{port}/mqtt"), version, 1)
        };
        let bench = Bench::new(Source::Mqtt(config), |_| {});
        arrives(&bench, &broker, 1, &lines(0, 50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_read_anew_at_each_connect() {
    let directory = tempfile::tempdir().unwrap();
    let users = directory.path().join("users");
    let made = Command::new(program("mosquitto_passwd")).args(["-b", "-c"]).arg(&users).args(["gw", "right"]).status();
    assert!(made.unwrap().success());
    let password = directory.path().join("password");
    std::fs::write(&password, "wrong\n").unwrap();
    let settings_text = format!("allow_anonymous false\npassword_file {}", users.display());
    let broker = Mosquitto::start_in(directory, &settings_text);
    for version in [5, 3] {
        std::fs::write(&password, "wrong\n").unwrap();
        let config = Mqtt {
            username: Some("gw".to_owned()),
            password_file: Some(password.clone()),
            ..settings(broker.url("mqtt"), version, 1)
        };
        let bench = Bench::new(Source::Mqtt(config), |_| {});
        let refused = |status: &crate::status::SourceStatus| {
            status.last_error.as_ref().is_some_and(|text| text.contains("refused") && !text.contains("wrong"))
        };
        bench.status("the refusal", refused).await;
        std::fs::write(&password, "right\n").unwrap();
        up(&bench).await;
    }
}

fn openssl(directory: &Path, args: &str) {
    let done = Command::new(program("openssl")).args(args.split(' ')).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// An authority, a server certificate for `localhost`, a client certificate; and another authority nobody trusts.
fn certificates(directory: &Path) {
    for name in ["ca", "other"] {
        openssl(
            directory,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {name}.key -out {name}.pem -subj /CN={name}"
            ),
        );
    }
    std::fs::write(directory.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    for name in ["server", "client"] {
        openssl(
            directory,
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ),
        );
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out {name}.pem -extfile names"
            ),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_client_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let broker = Mosquitto::start_in(
        directory,
        &format!(
            "cafile DIR/ca.pem\ncertfile DIR/server.pem\nkeyfile DIR/server.key\nrequire_certificate true\n{OPEN}"
        ),
    );
    let tls = |ca: &str, verify| Tls {
        ca_file: Some(broker.path(ca)),
        cert_file: Some(broker.path("client.pem")),
        key_file: Some(broker.path("client.key")),
        verify,
    };
    let with = |tls: Tls| Source::Mqtt(Mqtt { tls: Some(tls), ..settings(broker.url("mqtts"), 5, 1) });
    for good in [tls("ca.pem", true), tls("other.pem", false)] {
        let bench = Bench::new(with(good), |_| {});
        up(&bench).await;
        bench.source.stop().await;
    }
    let without_certificate = Tls { ca_file: Some(broker.path("ca.pem")), ..Tls::default() };
    for (bad, why) in [(tls("other.pem", true), "UnknownIssuer"), (without_certificate, "")] {
        let bench = Bench::new(with(bad), |_| {});
        let error = bench.status("the refusal", |status| status.last_error.is_some()).await.last_error.unwrap();
        assert!(error.contains(why), "{error}");
        assert_ne!(bench.source.status().state, "up");
    }
}
