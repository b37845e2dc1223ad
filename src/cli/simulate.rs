//! `fieldpost simulate`: simulated devices, to try a broker or a configuration.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::sync::watch;

use super::{Exit, Failure, json, show, tell};
use crate::config::Span;
use crate::record::Qos;
use crate::simulate::meter::{Meter, MeterOptions};
use crate::simulate::mqtt::{self, FleetError, FleetOptions, Target};
use crate::simulate::{Counts, Totals};

/// Simulate devices: an MQTT fleet, or a meter on a serial line
#[derive(Debug, Args)]
#[command(
    after_help = "A reading is {\"device\", \"counter\", \"time\", \"power_kw\", \"energy_kwh\"}; counters begin at 1 and have no holes.
Acknowledged means: by the broker (PUBACK, PUBCOMP). A serial line acknowledges nothing.
Ends after --count, after --for, or at Ctrl-C. Exit code 1 when a reading was not acknowledged, 69 when no broker answers.

Examples:
  fieldpost simulate --mqtt mqtt://localhost:1883                     40 devices, 40 readings a second
  fieldpost simulate --mqtt mqtt://localhost --rate 500 --for 30s --qos 2
  fieldpost simulate --serial --link /tmp/meter                       then read it: path = \"/tmp/meter\""
)]
pub(super) struct Simulate {
    // The comment is the help text; its brackets are no links.
    #[allow(rustdoc::broken_intra_doc_links)]
    /// Publish to this broker: mqtt://[user[:password]@]host[:port] or mqtts://...
    #[arg(long, value_name = "URL", required_unless_present = "serial", conflicts_with = "serial")]
    mqtt: Option<String>,
    /// Be a meter on a pseudo terminal that writes one JSON line per reading
    #[arg(long)]
    serial: bool,
    /// Devices of the fleet
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "serial")]
    devices: u32,
    /// Readings per second, all devices together; 0: as fast as the broker acknowledges [default: one per device]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Quality of service: 0, 1 or 2
    #[arg(long, value_name = "Q", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2), conflicts_with = "serial")]
    qos: u8,
    /// Readings in all [default: no end]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this time, as in 30s [default: no end]
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<Span>,
    /// Topic; {device} is replaced
    #[arg(long, value_name = "TOPIC", default_value = "plant/sim/{device}/telemetry", conflicts_with = "serial")]
    topic: String,
    /// Devices are called PREFIX-001, ...
    #[arg(long, value_name = "PREFIX", default_value = "sim")]
    prefix: String,
    /// PEM file of the authorities to trust, for mqtts [default: those of the system]
    #[arg(long, value_name = "FILE", conflicts_with = "serial")]
    ca_file: Option<PathBuf>,
    /// Make a symbolic link to the pseudo terminal, so that its path stays the same
    #[arg(long, value_name = "PATH", requires = "serial")]
    link: Option<PathBuf>,
    /// The same seed gives the same values
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number, as in 500 or 0.2".to_owned())?;
    if (0.0..=1e6).contains(&rate) { Ok(rate) } else { Err("between 0 and 1000000".to_owned()) }
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    totals: Totals,
    seconds: f64,
}

impl Simulate {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let counts = Arc::new(Counts::default());
        let stop = Stop::on_signals(self.duration.map(|span| span.0))?;
        let begin = Instant::now();
        let outcome = match &self.mqtt {
            Some(url) => self.fleet(url, &counts, &stop),
            None => self.meter(&counts, &stop),
        };
        let summary = Summary { totals: counts.totals(), seconds: begin.elapsed().as_secs_f64() };
        if self.json {
            show(&json(&summary)?)?;
        } else if summary.totals.issued > 0 {
            show(&format!("{}\n", line(&summary.totals, self.serial)))?;
        }
        outcome.map(|()| Exit::Done)
    }

    fn fleet(&self, url: &str, counts: &Arc<Counts>, stop: &Stop) -> Result<(), Failure> {
        let usage = |error: mqtt::OptionsError| Failure::new(Exit::Usage, format!("--mqtt: {error}"));
        let mut session = [0u8; 4];
        getrandom::fill(&mut session)
            .map_err(|error| Failure::new(Exit::Failed, format!("no random number: {error}")))?;
        let rate = self.rate.unwrap_or(f64::from(self.devices));
        let options = FleetOptions {
            target: Target::parse(url, self.ca_file.clone()).map_err(usage)?,
            devices: self.devices as usize,
            rate: (rate > 0.0).then_some(rate),
            qos: Qos::from_number(self.qos).expect("the argument's range is 0 to 2"),
            count: self.count,
            topic: self.topic.clone(),
            prefix: self.prefix.clone(),
            seed: self.seed,
            session: data_encoding::HEXLOWER.encode(&session),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("no runtime: {error}")))?;
        runtime.block_on(async {
            let (stopper, stopped) = watch::channel(false);
            let fleet = mqtt::run(options, Arc::clone(counts) as _, stopped);
            tokio::pin!(fleet);
            let mut progress = Progress::new(self.serial);
            loop {
                match tokio::time::timeout(Duration::from_millis(100), &mut fleet).await {
                    Ok(outcome) => {
                        progress.end();
                        return outcome.map_err(failure);
                    }
                    Err(_) => {
                        progress.show(&counts.totals());
                        stopper.send_if_modified(|told| !std::mem::replace(told, stop.is_set()) && *told);
                    }
                }
            }
        })
    }

    fn meter(&self, counts: &Arc<Counts>, stop: &Stop) -> Result<(), Failure> {
        let io = |error: std::io::Error| Failure::new(Exit::InputOutput, format!("pseudo terminal: {error}"));
        let meter = Meter::open(self.link.as_deref()).map_err(io)?;
        let options = MeterOptions {
            device: format!("{}-meter", self.prefix),
            rate: self.rate.filter(|rate| *rate > 0.0).unwrap_or(1.0),
            count: self.count,
            seed: self.seed,
        };
        tell(&format!("a meter speaks at {}, {} readings/s", meter.path().display(), options.rate));
        let mut progress = Progress::new(self.serial);
        std::thread::scope(|scope| {
            let speak = || meter.run(&options, counts.as_ref(), &stop.flag);
            let thread = std::thread::Builder::new().name("meter".to_owned()).spawn_scoped(scope, speak).map_err(io)?;
            while !thread.is_finished() {
                progress.show(&counts.totals());
                if stop.is_set() {
                    stop.flag.store(true, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            progress.end();
            thread.join().map_err(|_| Failure::new(Exit::Failed, "the meter's thread panicked"))?.map_err(io)
        })
    }
}

fn failure(error: FleetError) -> Failure {
    let exit = match &error {
        FleetError::Unreachable { .. } => Exit::Unavailable,
        FleetError::Unacknowledged(_) => Exit::Failed,
    };
    Failure::new(exit, error.to_string())
}

/// Ctrl-C, SIGTERM, or the end of the time.
struct Stop {
    flag: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Stop {
    fn on_signals(after: Option<Duration>) -> Result<Self, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // The second signal ends the process at once, in case the first one is not heard.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
                .map_err(|error| Failure::new(Exit::Failed, format!("signals: {error}")))?;
        }
        Ok(Self { flag, deadline: after.map(|after| Instant::now() + after) })
    }

    fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

fn line(totals: &Totals, serial: bool) -> String {
    if serial {
        return format!("issued={} heard={} unheard={}", totals.issued, totals.written, totals.unheard);
    }
    let resent = if totals.resent > 0 { format!(" resent={}", totals.resent) } else { String::new() };
    format!("issued={} acknowledged={}{resent}", totals.issued, totals.acknowledged)
}

/// One line that is overwritten on a terminal, a line every ten seconds elsewhere; on standard error.
struct Progress {
    serial: bool,
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(10);

    fn new(serial: bool) -> Self {
        Self { serial, terminal: std::io::stderr().is_terminal(), last: None }
    }

    fn show(&mut self, totals: &Totals) {
        let text = line(totals, self.serial);
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
        } else if self.last.is_none_or(|last| last.elapsed() >= Self::EVERY) && totals.issued > 0 {
            tell(&text);
            self.last = Some(Instant::now());
        }
    }

    fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
