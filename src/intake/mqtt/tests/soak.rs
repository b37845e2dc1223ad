//! SIGKILL at random moments between a real mosquitto and the outbox: nothing is missing, nothing twice, order kept.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::mosquitto::{Mosquitto, OPEN, lines, settings};
use crate::config::Source;
use crate::intake::testing::{Bench, outbox, source};

const DIRECTORY: &str = "TEST_SOAK_DIRECTORY";
const URL: &str = "TEST_SOAK_URL";
const QOS: &str = "TEST_SOAK_QOS";

/// The process that is killed: this test program again, with the variables above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started, and killed, by the test below"]
async fn victim() {
    let (Ok(directory), Ok(url), Ok(qos)) = (std::env::var(DIRECTORY), std::env::var(URL), std::env::var(QOS)) else {
        return;
    };
    let outbox = outbox(Path::new(&directory), |_| {});
    let _source = source(&outbox, Source::Mqtt(settings(url, 5, qos.parse().unwrap())));
    std::future::pending::<()>().await;
}

/// Ended when dropped.
struct Victim(Child);

impl Victim {
    fn start(directory: &Path, url: &str, qos: u8) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "intake::mqtt::tests::soak::victim", "--ignored"]);
        command.env(DIRECTORY, directory).env(URL, url).env(QOS, qos.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_nothing_is_lost_or_doubled() {
    const MESSAGES: u32 = 3000;
    for qos in [1, 2] {
        let broker = Mosquitto::start(OPEN);
        let directory = tempfile::tempdir().unwrap();
        let config = Source::Mqtt(settings(broker.url("mqtt"), 5, qos));
        // The session must be there before the first message.
        let bench = Bench::at(directory.path(), config.clone());
        bench.status("up", |status| status.state == "up").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        bench.source.stop().await;
        bench.outbox.close(Duration::from_secs(10));
        drop(bench);
        let publisher = std::thread::scope(|scope| {
            let publisher = std::thread::Builder::new().name("publisher".to_owned());
            let publisher = publisher.spawn_scoped(scope, || {
                for from in (0..MESSAGES).step_by(150) {
                    broker.publish(qos, &lines(from, from + 150));
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            for _ in 0..12 {
                let victim = Victim::start(directory.path(), &broker.url("mqtt"), qos);
                let random = getrandom::u32().unwrap() % 400;
                std::thread::sleep(Duration::from_millis(150 + u64::from(random)));
                drop(victim);
            }
            publisher.unwrap().join()
        });
        publisher.unwrap();
        let bench = Bench::at(directory.path(), config);
        bench.stored_at_least(MESSAGES as usize).await;
        // Whatever is redelivered once more is recognised by now.
        bench
            .until("the last acknowledgement", |bench| {
                let status = bench.source.status();
                status.acknowledged == status.received
            })
            .await;
        let values = bench.values();
        assert_eq!(values.len(), MESSAGES as usize, "QoS {qos}");
        assert!(values == lines(0, MESSAGES), "QoS {qos}: order");
    }
}
