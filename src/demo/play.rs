//! The acts of the demonstration, one after the other.

mod setting;

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::book::Book;
use super::brokers::{BrokerError, Kafka};
use super::daemon::{Daemon, METER_SOURCE};
use super::devices::Devices;
use super::reader::{self, LiveCount, Topic};
use super::screen::{Screen, View};
use super::{DemoError, DemoOptions, Outcome, tally};
use crate::status::Status;
use setting::Stage;

/// How long anything may take that is expected to happen.
const LIMIT: Duration = Duration::from_secs(120);
/// How often the daemon is asked.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long the daemon stays dead the first time.
const DEAD: Duration = Duration::from_secs(2);
/// At the end: how long nothing may arrive before the tally begins although something is owed.
const SILENCE: Duration = Duration::from_secs(20);

pub(super) fn run(options: &DemoOptions, interrupted: &Arc<AtomicBool>) -> Result<Outcome, DemoError> {
    let mut screen = Screen::new();
    let stage = Stage::build(options, interrupted, &mut screen)?;
    let mut play = Play::begin(stage, options, interrupted, screen)?;
    play.act("normal flow", options.outage * 3 / 4)?;
    let mut catch_up = None;
    if play.stage.kafka.is_some() {
        play.outage(options.outage)?;
        catch_up = Some(play.come_back()?);
    } else {
        play.screen.tell("your own Kafka is not stopped: no outage");
        play.kill_and_restart("kill -9 of the daemon under load", DEAD)?;
    }
    play.act("normal flow again", options.outage / 4)?;
    play.finish(catch_up)
}

struct CatchUp {
    backlog: u64,
    took: Duration,
}

struct Play {
    // Dropped in this order: who writes first, what is written to last.
    devices: Devices,
    live: LiveCount,
    stage: Stage,
    book: Arc<Book>,
    screen: Screen,
    view: View,
    status: Option<Status>,
    /// The newest sequence that any status told.
    durable: u64,
    asked: Option<Instant>,
    interrupted: Arc<AtomicBool>,
}

impl Play {
    fn begin(
        mut stage: Stage,
        options: &DemoOptions,
        interrupted: &Arc<AtomicBool>,
        mut screen: Screen,
    ) -> Result<Self, DemoError> {
        let book = Arc::new(Book::new(setting::METER));
        screen.tell("starting the daemon");
        stage.daemon.start()?;
        wait_sources_up(&mut stage.daemon, interrupted)?;
        let live = LiveCount::start(&stage.bootstrap, &stage.topics).map_err(DemoError::Failed)?;
        let meter = stage.meter.take().expect("the stage is built with a meter, and it is taken once");
        let devices = Devices::start(stage.fleet.clone(), meter, setting::METER, &book)?;
        let view = View {
            devices: format!(
                "{} over MQTT, {} readings/s at QoS 1; a meter at {}",
                options.devices,
                options.rate,
                stage.meter_path.display()
            ),
            mosquitto: stage.fleet.target.shown().to_owned(),
            kafka: format!("{}, transactions on", stage.bootstrap),
            ..View::default()
        };
        Ok(Self {
            devices,
            live,
            stage,
            book,
            screen,
            view,
            status: None,
            durable: 0,
            asked: None,
            interrupted: Arc::clone(interrupted),
        })
    }

    /// Looks on for some time.
    fn act(&mut self, title: &str, length: Duration) -> Result<(), DemoError> {
        self.screen.act(title, Some(length));
        self.watch_for(length)
    }

    fn watch_for(&mut self, length: Duration) -> Result<(), DemoError> {
        let end = Instant::now() + length;
        self.watch("", length + LIMIT, |_| Instant::now() >= end)
    }

    /// Looks on until `done`. An error after `limit`.
    fn watch(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> Result<(), DemoError> {
        let deadline = Instant::now() + limit;
        loop {
            self.look()?;
            if done(self) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let status = self.status.as_ref().map(crate::status::summary).unwrap_or_default();
                return Err(DemoError::Failed(format!("waited {} s in vain: {what}; {status}", limit.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One look at everything.
    fn look(&mut self) -> Result<(), DemoError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
            self.asked = Some(Instant::now());
            self.status = self.stage.daemon.status()?;
            let figures = self.book.figures();
            self.view.issued = figures.mqtt_issued + figures.meter_issued;
            self.view.acknowledged = figures.mqtt_acknowledged;
        }
        self.view.delivered = self.live.records();
        self.view.daemon = match (self.stage.daemon.pid(), &self.status) {
            (None, _) => "KILLED".to_owned(),
            (Some(pid), None) => format!("process {pid}, starting"),
            (Some(pid), Some(status)) => {
                let port = self.stage.daemon.http_port();
                format!("process {pid}, delivery {}, http://127.0.0.1:{port}/status", status.delivery.phase)
            }
        };
        self.view.outbox = self.status.as_ref().map(|status| {
            self.durable = self.durable.max(status.outbox.durable);
            (status.outbox.records, status.outbox.bytes, status.outbox.oldest_age_seconds)
        });
        self.screen.show(&self.view);
        Ok(())
    }

    /// Kafka goes away; in the middle of it the daemon is killed and started again.
    fn outage(&mut self, length: Duration) -> Result<(), DemoError> {
        self.devices.check()?;
        let begin = Instant::now();
        self.kafka()?.kill_node(0)?;
        self.view.kafka = "GONE (kill -9)".to_owned();
        self.screen.act("Kafka is gone; the readings keep coming", Some(length));
        self.watch_for(length / 2)?;
        self.kill_and_restart("kill -9 of the daemon, Kafka still gone", DEAD)?;
        self.watch_for(length.saturating_sub(begin.elapsed()))
    }

    /// Kafka comes back; as soon as the first of the backlog has arrived the daemon is killed once more.
    fn come_back(&mut self) -> Result<CatchUp, DemoError> {
        let backlog = self.status.as_ref().map_or(0, |status| status.outbox.records);
        let before = self.live.records();
        self.screen.act(&format!("Kafka is started again; {backlog} readings wait on disk"), None);
        self.kafka()?.start_node(0)?;
        self.view.kafka = "starting".to_owned();
        let bootstrap = self.stage.bootstrap.clone();
        self.watch("Kafka to answer", LIMIT, |_| answers(&bootstrap))?;
        let back = Instant::now();
        self.view.kafka = format!("{bootstrap}, back");
        self.screen.tell("Kafka answers: catch-up");
        self.watch("the first reading after the outage", LIMIT, |play| play.live.records() > before)?;
        self.kill_and_restart("kill -9 of the daemon, in the middle of the catch-up", Duration::ZERO)?;
        self.watch("the backlog to be delivered", LIMIT, |play| {
            play.status
                .as_ref()
                .is_some_and(|status| status.delivery.transactions > 0 && status.outbox.oldest_age_seconds < 1.0)
        })?;
        let took = back.elapsed();
        self.screen
            .tell(&format!("caught up: {backlog} readings and what came meanwhile, in {:.1} s", took.as_secs_f64()));
        Ok(CatchUp { backlog, took })
    }

    fn kill_and_restart(&mut self, title: &str, dead: Duration) -> Result<(), DemoError> {
        let status = self.stage.daemon.status()?;
        let accepted = status.and_then(|status| Some(status.sources.get(METER_SOURCE)?.accepted)).unwrap_or(0);
        self.book.agent_killed(accepted);
        self.stage.daemon.kill()?;
        self.status = None;
        self.screen.tell(title);
        let begin = Instant::now();
        let book = Arc::clone(&self.book);
        // The meter must notice that no one reads before someone does again, or the two lives could not be told apart.
        self.watch("the meter to speak into the void", LIMIT, |_| book.meter_is_unheard() && begin.elapsed() >= dead)?;
        self.stage.daemon.start()?;
        self.watch("the daemon to answer after its restart", LIMIT, |play| play.status.is_some())?;
        let status = self.status.as_ref().map_or(0, |status| status.outbox.records);
        self.screen.tell(&format!(
            "the daemon is up again and finds {status} readings on disk; the ledger will tell which are delivered"
        ));
        Ok(())
    }

    fn finish(mut self, catch_up: Option<CatchUp>) -> Result<Outcome, DemoError> {
        self.screen.act("the devices stop; the rest is delivered", None);
        self.devices.check()?;
        self.devices.stop()?;
        let owed = self.book.figures().mqtt_acknowledged;
        let mut last = (0, Instant::now());
        self.watch("the rest to be delivered", LIMIT * 5, |play| {
            let seen = play.live.records();
            if seen != last.0 {
                last = (seen, Instant::now());
            }
            let empty =
                play.status.as_ref().is_some_and(|s| s.outbox.records == 0 && s.outbox.committed == s.outbox.durable);
            let quiet = last.1.elapsed();
            (empty && seen >= owed.max(play.durable) && quiet > Duration::from_secs(1)) || quiet > SILENCE
        })?;
        self.screen.act("the tally: an independent consumer reads everything, read_committed", None);
        self.stage.daemon.stop()?;
        let records = reader::read_all(&self.stage.bootstrap, &self.stage.topics, LIMIT)
            .map_err(|error| DemoError::Failed(format!("the tally could not be made: {error}")))?;
        let verdict = tally::tally(&self.book.snapshot(), &records);
        self.stage.say_goodbye();
        Ok(Outcome {
            verdict,
            on_disk: self.durable,
            backlog: catch_up.as_ref().map_or(0, |catch_up| catch_up.backlog),
            caught_up_in: catch_up.map(|catch_up| catch_up.took),
            kept: self.stage.kept(),
            left_behind: self.stage.left_behind(),
        })
    }

    fn kafka(&mut self) -> Result<&mut Kafka, BrokerError> {
        self.stage.kafka.as_mut().ok_or_else(|| BrokerError::Refused("this Kafka is not ours to stop".to_owned()))
    }
}

fn wait_sources_up(daemon: &mut Daemon, interrupted: &AtomicBool) -> Result<(), DemoError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = daemon.status()?;
        let up = |status: &Status| status.sources.values().all(|source| source.state == "up");
        if status.as_ref().is_some_and(up) {
            return Ok(());
        }
        if interrupted.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        if Instant::now() >= deadline {
            let summary = status.as_ref().map(crate::status::table).unwrap_or_default();
            return Err(DemoError::Failed(format!("the sources are not up after {} s\n{summary}", LIMIT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether anyone listens at the first of these addresses.
fn answers(bootstrap: &str) -> bool {
    let first = bootstrap.split(',').next().unwrap_or_default();
    let mut addresses = first.to_socket_addrs().into_iter().flatten();
    addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())
}

/// The topics that are read at the end.
fn data_topics(prefix: &str) -> Vec<Topic> {
    vec![
        Topic { name: format!("{prefix}telemetry"), partitions: 6, dead_letters: false },
        Topic { name: format!("{prefix}dead-letters"), partitions: 1, dead_letters: true },
    ]
}
