//! `fieldpost demo`: the whole story on this machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::{Exit, Failure, show};
use crate::demo::brokers::BrokerError;
use crate::demo::{self, DemoError, DemoOptions, Outcome};

/// Play the whole story here: brokers, devices, an outage, two kills, and a tally
#[derive(Debug, Args)]
#[command(
    after_help = "Starts mosquitto and Apache Kafka (`make setup` installs them), a meter on a pseudo terminal, MQTT devices and the
daemon. Kafka goes away, the daemon is killed twice, then an independent read_committed consumer counts.
Takes about a minute and a half. Exit code 0: nothing lost, doubled or reordered; 1: something was.

The last line is for scripts:
  result: issued=N acknowledged=N delivered=N lost=0 duplicated=0 reordered=0

Examples:
  fieldpost demo
  fieldpost demo --seconds 120 --keep ./demo      a longer outage; logs, configuration and outbox stay
  fieldpost demo --kafka localhost:9092           with your own cluster, which is not stopped"
)]
pub(super) struct Demo {
    /// How long Kafka is gone, in seconds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// MQTT devices
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=1000))]
    devices: u16,
    /// Readings per second, all MQTT devices together
    #[arg(long, value_name = "R", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Keep logs, configuration and outbox in this directory (new or empty)
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Use this Kafka cluster (plain text) instead of starting one; it is not stopped, so there is no outage
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Use this MQTT broker instead of starting mosquitto
    #[arg(long, value_name = "URL")]
    mqtt: Option<String>,
}

impl Demo {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|error| Failure::new(Exit::Failed, format!("signals: {error}")))?;
        }
        let options = DemoOptions {
            outage: Duration::from_secs(self.seconds),
            devices: usize::from(self.devices),
            rate: f64::from(self.rate),
            keep: self.keep,
            kafka: self.kafka,
            mqtt: self.mqtt,
        };
        let outcome = demo::run(&options, &interrupted).map_err(failure)?;
        show(&report(&outcome))?;
        Ok(if outcome.verdict.is_clean() { Exit::Done } else { Exit::Failed })
    }
}

fn failure(error: DemoError) -> Failure {
    let exit = match &error {
        DemoError::Broker(BrokerError::Missing(_)) => Exit::Unavailable,
        _ => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

fn report(outcome: &Outcome) -> String {
    use std::fmt::Write as _;
    let verdict = &outcome.verdict;
    let mut text = String::from("\n               issued  acknowledged  delivered\n");
    for (name, (issued, owed, delivered)) in ["MQTT", "serial"].into_iter().zip(verdict.parts) {
        let _ = writeln!(text, "{name:<10} {issued:>10} {owed:>13} {delivered:>10}");
    }
    text.push('\n');
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<22} {value}");
    };
    row("on disk", format!("{} (last sequence the daemon gave)", outcome.on_disk));
    row("lost", verdict.lost.to_string());
    row("delivered twice", verdict.duplicated.to_string());
    row("out of order", verdict.reordered.to_string());
    row("holes in the sequence", verdict.sequence_faults.to_string());
    row("gap records", verdict.gaps.to_string());
    if verdict.dead_letters + verdict.strange > 0 {
        row("dead letters, strange", format!("{}, {}", verdict.dead_letters, verdict.strange));
    }
    if verdict.published_twice > 0 {
        row(
            "published twice",
            format!("{} by the device after a reconnect, not by the daemon", verdict.published_twice),
        );
    }
    let meaning = "serial readings that no one took: the daemon was dead, and a line repeats nothing";
    row("issued to nobody", format!("{} ({meaning})", verdict.unheard));
    if let Some(time) = outcome.caught_up_in {
        row("catch-up", format!("{} readings in {:.1} s after Kafka was back", outcome.backlog, time.as_secs_f64()));
    }
    for example in &verdict.examples {
        row("fault", example.clone());
    }
    if let Some(dir) = &outcome.kept {
        row("files", dir.display().to_string());
    }
    if !outcome.left_behind.is_empty() {
        row("left on your brokers", outcome.left_behind.join(", "));
    }
    let _ = writeln!(text, "\n{verdict}");
    text
}
