//! The recorded process: opens the outbox, compares it with what must be there, uses it, compares again, closes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fieldpost::metrics::OutboxMetrics;
use fieldpost::outbox::{
    Answer, Appender, Arrival, Budget, Change, Control, IdentityChange, OpenError, OpenOptions, Outbox, Outcome,
    Reader, Receipt, Selection,
};
use fieldpost::promise::Committed;
use fieldpost::record::{Item, Sequence};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;

use super::check;
use super::dice::Dice;
use super::marks::{Answered, Expectation, Fate, Mark, Marks};
use super::workloads::{self, Workload};

/// Where the process finds its [`Task`].
pub const TASK: &str = "TEST_POWER_LOSS_TASK";

/// Groups handed over and not answered, at most.
const OPEN_ARRIVALS_MAX: u64 = 120;
/// When nothing was answered for so long, the drain makes room.
const STUCK: Duration = Duration::from_millis(100);
/// When nothing helps for so long, something is wrong.
const HOPELESS: Duration = Duration::from_secs(60);
/// Packets of the past that are sent again after opening.
const REPEATED_MAX: usize = 40;

/// What a process shall do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub workload: String,
    /// The state directory.
    pub directory: PathBuf,
    /// Where marks are written.
    pub marks: PathBuf,
    /// Where the verdict is written.
    pub verdict: PathBuf,
    pub expected: Expectation,
    pub arrivals: u64,
    pub seed: u64,
    /// Whether holes for damage are in order, and a new incarnation.
    pub damaged: bool,
    /// Whether the outbox is closed at the end, or the process just ends.
    pub closes: bool,
}

/// What it found. No faults: all is well.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    pub faults: Vec<String>,
    /// Readings that were acknowledged and read again after opening.
    pub checked: u64,
}

/// Does what the task says, if there is one.
pub fn run_if_asked() -> bool {
    let Some(path) = std::env::var_os(TASK) else { return false };
    let task: Task = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).target(env_logger::Target::Stderr).init();
    let marks = Marks::new(File::create(&task.marks).unwrap(), task.expected.clone());
    let mut verdict = Verdict::default();
    run(&task, marks, &mut verdict);
    std::fs::write(&task.verdict, serde_json::to_vec(&verdict).unwrap()).unwrap();
    true
}

struct Session<'a> {
    task: &'a Task,
    workload: Workload,
    marks: Marks,
    outbox: Outbox,
    appender: Appender,
    answers: UnboundedReceiver<Answer>,
    reader: Reader,
    dice: Dice,
    read_through: u64,
    open: u64,
    faults: Vec<String>,
}

fn run(task: &Task, mut marks: Marks, verdict: &mut Verdict) {
    let workload = workloads::named(&task.workload);
    let options =
        OpenOptions { config: workload.config.clone(), agent_id: "gw-1".to_owned(), metrics: OutboxMetrics::default() };
    let outbox = match Outbox::open(&task.directory, options) {
        Ok(outbox) => outbox,
        Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => {
            marks.say(Mark::NoRoom);
            return;
        }
        Err(error) => {
            verdict.faults.push(format!("does not open: {error}"));
            return;
        }
    };
    let found = check::check(&outbox, &workload, &marks.expected, task, true);
    verdict.checked = found.checked;
    verdict.faults.extend(found.faults);
    if !verdict.faults.is_empty() {
        return;
    }
    if found.no_room {
        marks.say(Mark::NoRoom);
        return;
    }
    marks.say(Mark::Opened { incarnation: outbox.identity().incarnation.to_hex() });
    marks.say(Mark::Read { present: found.present, absent: found.absent });
    let (appender, answers) = outbox.appender(&"plant".into());
    let read_through = outbox.positions().committed.0;
    let reader = outbox.reader();
    let dice = Dice::new(task.seed);
    let mut session = Session {
        task,
        workload,
        marks,
        outbox,
        appender,
        answers,
        reader,
        dice,
        read_through,
        open: 0,
        faults: Vec::new(),
    };
    session.use_it();
    verdict.faults.extend(session.faults);
}

impl Session<'_> {
    fn use_it(&mut self) {
        self.repeat();
        let first = self.marks.expected.fates.len() as u64;
        let end = first + self.task.arrivals;
        let mut next = first;
        while next < end && self.faults.is_empty() {
            let group = self.dice.between(1, self.workload.group_max).min(end - next);
            self.submit(next..next + group);
            next += group;
            let open_max = self.dice.below(OPEN_ARRIVALS_MAX);
            self.wait(if self.workload.group_max == 1 { 0 } else { open_max });
            if self.dice.percent(self.workload.drain.percent) {
                self.drain();
            }
            if self.workload.names && self.dice.percent(20) {
                self.name();
            }
            if self.workload.changes && self.dice.percent(8) {
                self.change();
            }
            if self.workload.releases && self.dice.percent(10) {
                self.release(next);
            }
        }
        self.wait(0);
        if self.faults.is_empty() {
            let found = check::check(&self.outbox, &self.workload, &self.marks.expected, self.task, false);
            self.faults.extend(found.faults.iter().map(|fault| format!("before closing: {fault}")));
        }
        if self.task.closes {
            self.outbox.close(HOPELESS);
            let files = files(&self.task.directory);
            self.marks.say(Mark::End { files });
        }
    }

    /// A broker sends again what it had no answer for, and what it does not know to be answered.
    fn repeat(&mut self) {
        let Some(ids) = self.workload.packets else { return };
        let expected = &self.marks.expected;
        let end = expected.fates.len();
        // An identifier's newest use counts.
        let newest = end.saturating_sub(usize::from(ids))..end;
        let usable = newest.filter(|at| !expected.released.contains(&(*at as u64)));
        let unanswered: Vec<u64> = expected_open(&self.task.expected);
        let last_stored = expected.fates.iter().rposition(|fate| *fate == Fate::Stored).unwrap_or(0) as u64;
        let mut again: Vec<(u64, Outcome)> = Vec::new();
        for at in usable {
            let arrival = at as u64;
            let outcome = match expected.fates[at] {
                Fate::Stored => Outcome::Duplicate,
                // One that was refused without an answer, before one that was stored, would change the order.
                Fate::Gone if arrival > last_stored && unanswered.contains(&arrival) => Outcome::Appended,
                _ => continue,
            };
            again.push((arrival, outcome));
        }
        let excess = again.len().saturating_sub(REPEATED_MAX);
        // The newest ones, and never without those that are to be appended.
        let first = again.iter().position(|(_, outcome)| *outcome == Outcome::Appended).unwrap_or(excess);
        again.drain(..excess.min(first));
        for (arrival, wanted) in again {
            if wanted == Outcome::Appended {
                self.marks.say(Mark::Repeating { arrival });
            }
            self.hand_over(arrival, true);
            let outcomes = self.take_answers();
            let outcomes = if outcomes.is_empty() { self.wait_for_one() } else { outcomes };
            let fine = outcomes.iter().all(|(_, outcome)| *outcome == wanted)
                || (wanted == Outcome::Appended && outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Refused));
            if !fine {
                self.faults.push(format!("arrival {arrival} sent again with DUP: {outcomes:?}, not {wanted:?}"));
                return;
            }
        }
    }

    fn hand_over(&mut self, arrival: u64, dup: bool) {
        let readings = self.workload.readings(arrival);
        let held = loop {
            match self.outbox.held().try_acquire(readings.iter().map(|reading| reading.value.len()).sum()) {
                Some(held) => break held,
                None => self.wait(self.open.saturating_sub(1)),
            }
        };
        let packet = self.workload.packet(arrival, dup);
        self.appender.submit(vec![Arrival { readings, packet, receipt: Receipt(arrival), held }]);
        self.open += 1;
    }

    fn submit(&mut self, arrivals: std::ops::Range<u64>) {
        self.marks.say(Mark::Submitting { upto: arrivals.end });
        arrivals.for_each(|arrival| self.hand_over(arrival, false));
    }

    /// Takes the answers that are there.
    fn take_answers(&mut self) -> Vec<(u64, Outcome)> {
        let mut done = Vec::new();
        while let Ok(answer) = self.answers.try_recv() {
            done.extend(answer.done.iter().map(|(receipt, outcome)| (receipt.0, *outcome)));
        }
        if !done.is_empty() {
            self.open -= done.len() as u64;
            let fate = |outcome| if outcome == Outcome::Refused { Answered::Refused } else { Answered::Stored };
            self.marks.say(Mark::Answered(done.iter().map(|(arrival, outcome)| (*arrival, fate(*outcome))).collect()));
        }
        done
    }

    fn wait_for_one(&mut self) -> Vec<(u64, Outcome)> {
        let began = Instant::now();
        let mut last_help = began;
        loop {
            let done = self.take_answers();
            if !done.is_empty() {
                return done;
            }
            if began.elapsed() > HOPELESS {
                self.faults.push(format!("{} arrivals stay unanswered: {:?}", self.open, self.outbox.status()));
                return Vec::new();
            }
            if last_help.elapsed() > STUCK && self.workload.drain.records > 0 {
                last_help = Instant::now();
                (0..20).for_each(|_| self.drain());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until at most `most` arrivals are unanswered.
    fn wait(&mut self, most: u64) {
        self.take_answers();
        while self.open > most && self.faults.is_empty() {
            self.wait_for_one();
        }
    }

    /// Plays delivery: reads a batch, says so, trims.
    fn drain(&mut self) {
        let budget = Budget { records_max: self.workload.drain.records, bytes_max: 1 << 20 };
        let batch = match self.reader.batch_after(Sequence(self.read_through), budget) {
            Ok(batch) => batch,
            // The store may have no room to open a generation: delivery tries again, and whoever waits gives up in time.
            Err(error) => return log::info!("the drain: {error}"),
        };
        let Some(last) = batch.items.last() else { return };
        self.read_through = last.last().0;
        // Through the last reading: what a hole at the end held is known only by what follows.
        let reading = batch.items.iter().rev().find_map(|item| match item {
            // A copy says nothing of how far arrivals are delivered.
            Item::Reading(stored) if stored.reading.replay_of.is_empty() => {
                Workload::number_of(&stored.reading).map(|(arrival, _)| (stored, arrival))
            }
            _ => None,
        });
        let Some((stored, arrival)) = reading else { return };
        let sequence = stored.sequence.0;
        self.marks.say(Mark::Delivered { sequence, arrival });
        self.marks.say(Mark::Trimming { sequence });
        self.outbox.trim_through(Committed::in_test(stored.incarnation, stored.sequence));
        if self.dice.percent(self.workload.drain.synced_percent) {
            match self.outbox.sync_position() {
                Ok(()) => self.marks.say(Mark::PositionSynced { sequence }),
                Err(error) => log::info!("the position was not synced: {error}"),
            }
        }
    }

    fn name(&mut self) {
        let number = self.marks.expected.named_max + 1;
        self.marks.say(Mark::Naming { number });
        match self.outbox.change_identity(IdentityChange::Cluster(format!("cluster-{number}"))) {
            Ok(()) => self.marks.say(Mark::Named { number }),
            Err(error) => self.faults.push(format!("the identity could not be changed: {error}")),
        }
    }

    /// Plays the owner: gives a range up, or has one sent again.
    fn change(&mut self) {
        let committed = self.outbox.positions().committed.0;
        if self.dice.percent(50) {
            let from = committed + 1 + self.dice.below(1000);
            let selection =
                Selection { from: Some(from), to: Some(from + self.dice.below(800)), ..Selection::default() };
            let change = Change { selection, dry_run: false };
            match self.outbox.purge(&change) {
                Ok(step) if step.report.left.is_empty() && step.report.reached >= from => {
                    self.marks.say(Mark::Purged { from, to: step.report.reached });
                }
                other => log::info!("purge: {other:?}"),
            }
        } else {
            let from = committed.saturating_sub(self.dice.below(600));
            let selection = Selection { from: Some(from), to: Some(committed), ..Selection::default() };
            match self.outbox.replay(&Change { selection, dry_run: false }) {
                Ok(step) => {
                    if let Some(through) = step.report.last_copy {
                        self.marks.say(Mark::Copied { through });
                    }
                }
                Err(error) => log::info!("replay: {error}"),
            }
        }
    }

    fn release(&mut self, next: u64) {
        let Some(ids) = self.workload.packets.map(u64::from) else { return };
        // At times the broker has lost the session, and with it all identifiers.
        if self.dice.percent(10) {
            self.marks.say(Mark::Releasing { arrivals: (next.saturating_sub(ids)..next).collect() });
            return self.appender.control(Control::SessionCleared);
        }
        let from = next.saturating_sub(self.dice.below(ids));
        // One that is open would come back as if it were new.
        let stored = |at: &u64| self.marks.expected.fates[*at as usize] == Fate::Stored;
        let arrivals: Vec<u64> = (from..(from + 20).min(next)).filter(stored).collect();
        let packets = arrivals.iter().filter_map(|arrival| self.workload.packet(*arrival, false));
        let released = packets.map(|packet| packet.id).collect();
        self.marks.say(Mark::Releasing { arrivals });
        self.appender.control(Control::Released(released));
    }
}

/// Arrivals without an answer when the power was cut.
fn expected_open(expected: &Expectation) -> Vec<u64> {
    let fates = expected.fates.iter().enumerate();
    fates.filter(|(_, fate)| **fate == Fate::Open).map(|(at, _)| at as u64).collect()
}

/// Every file below a directory: path, length, CRC-32.
pub fn files(root: &Path) -> Vec<(String, u64, u32)> {
    let (mut found, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, bytes.len() as u64, crc32fast::hash(&bytes)));
            }
        }
    }
    found.sort();
    found
}
