//! A cut, the session that opens what it left, a cut of that session, and so on.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::campaign::{Plan, Tally};
use super::dice::Dice;
use super::journal::{Journal, Op};
use super::marks::Mark;
use super::recorder::{self, Recorded, Run, Skip};
use super::replay::{self, Mode, Replay, State};
use super::workloads::{Place, Workload};

/// A cut of a cut of a cut ...
const LEVELS_MAX: u64 = 5;
/// So many of a hundred times the process is killed instead, and the next one runs on what it had not synced.
const KILLS_PERCENT: u64 = 20;

/// Larger recordings are not kept: the state and the task are what trying again takes.
const KEPT_BYTES_MAX: u64 = 64 << 20;

pub struct Chain<'a> {
    plan: &'a Plan,
    workload: &'a Workload,
    dir: &'a Path,
    tally: &'a Tally,
    dice: Dice,
    place: Place,
    /// Where the first session is killed, instead of where the dice say.
    kills_at: Option<usize>,
    /// Sessions so far.
    level: u64,
    /// Where in the recording the last process began.
    from: usize,
    /// What was done, to be told.
    way: Vec<String>,
}

/// How a session ends.
struct Ending<'a> {
    replay: Replay<'a>,
    end: usize,
    killed: bool,
    state: State,
}

impl<'a> Chain<'a> {
    pub fn new(plan: &'a Plan, workload: &'a Workload, dir: &'a Path, tally: &'a Tally, dice: Dice) -> Self {
        let place = workload.place;
        Self { plan, workload, dir, tally, dice, place, kills_at: None, level: 0, from: 0, way: Vec::new() }
    }

    /// A chain that begins with a kill before this record.
    pub fn killed_at(self, at: usize) -> Self {
        Self { kills_at: Some(at), ..self }
    }

    /// Goes down from a recorded session until the dice say it is enough; what was bad.
    pub fn run(mut self, first: &Recorded) -> Result<(), String> {
        let mut last: Option<Recorded> = None;
        loop {
            let recorded = last.as_ref().unwrap_or(first);
            let ending = self.end(recorded);
            let next = self.open(recorded, &ending)?;
            let begins = self.kills_at.take().is_some();
            let stays = self.plan.skip == Skip::Nothing && self.level < LEVELS_MAX && self.dice.percent(50);
            if !stays && !begins && !has_no_room(&next.journal) {
                return Ok(());
            }
            last = Some(self.follow(recorded, &ending, next));
        }
    }

    /// Chooses where a session ends, how, and what that leaves.
    fn end<'r>(&mut self, recorded: &'r Recorded) -> Ending<'r> {
        self.level += 1;
        let journal = &recorded.journal;
        // What did not open for want of room must open where there is some.
        let moves = has_no_room(journal);
        if moves {
            self.place = Place::Anywhere;
            self.tally.no_room.fetch_add(1, Ordering::Relaxed);
        }
        let end = match self.kills_at {
            Some(at) => at,
            None if moves => journal.ops.len(),
            None => self.choose_end(journal),
        };
        let mode = if self.plan.ranges && self.dice.percent(30) { Mode::Range } else { Mode::Strict };
        let kills = self.plan.skip == Skip::Nothing && !moves && self.dice.percent(KILLS_PERCENT);
        let killed = kills || self.kills_at.is_some();
        let replay = Replay::new(journal, end, mode);
        let state = if killed { replay.whole() } else { replay.cut(&mut self.dice) };
        let what = if killed { "killed" } else { "cut" };
        self.way.push(format!("{what} at {end}/{} {mode:?}", journal.ops.len()));
        self.count(killed, end <= opened(journal, self.from));
        Ending { replay, end, killed, state }
    }

    fn count(&self, killed: bool, opening: bool) {
        if killed {
            self.tally.kills.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.tally.cuts.fetch_add(1, Ordering::Relaxed);
        self.tally.repeated.fetch_add(u64::from(self.level > 1), Ordering::Relaxed);
        self.tally.openings.fetch_add(u64::from(opening), Ordering::Relaxed);
    }

    /// Opens what is left, compares, uses it.
    fn open(&mut self, recorded: &Recorded, ending: &Ending<'_>) -> Result<Recorded, String> {
        let state = self.dir.join("state");
        std::fs::remove_dir_all(&state).unwrap();
        std::fs::create_dir(&state).unwrap();
        replay::write(&ending.state, &state);
        if self.dir.join("journal").exists() {
            std::fs::rename(self.dir.join("journal"), self.dir.join("journal-before")).unwrap();
        }
        let mut expected = recorded.expected.clone();
        recorded.journal.marks(ending.end).for_each(|mark| expected.apply(mark));
        let run = Run {
            workload: self.workload,
            expected,
            arrivals: self.workload.later,
            seed: self.dice.next(),
            damaged: self.workload.damages.is_some(),
            closes: self.dice.percent(50),
            skip: Skip::Nothing,
            full: None,
            place: match self.place {
                // Names that were not synced may bring back what was removed: as much as that must fit.
                Place::Tmpfs(bytes) => Place::Tmpfs(bytes.max(room_of(&ending.state))),
                Place::Anywhere => Place::Anywhere,
            },
        };
        let fault = match recorder::run(self.dir, &run) {
            Ok(next) if !next.verdict.faults.is_empty() => format!("{:?}\n{}", next.verdict.faults, next.log),
            Ok(next) if has_no_room(&next.journal) && self.place == Place::Anywhere => {
                format!("no room, although there is some\n{}", next.log)
            }
            Ok(next) => {
                self.tally.checked.fetch_add(next.verdict.checked, Ordering::Relaxed);
                return Ok(next);
            }
            Err(error) => error,
        };
        Err(format!("{:?}, kept in {}: {fault}", self.way, self.keep(&ending.state)))
    }

    /// What is to be cut next.
    fn follow(&mut self, recorded: &Recorded, ending: &Ending<'_>, mut next: Recorded) -> Recorded {
        self.from = 0;
        if ending.killed {
            self.from = ending.end;
            next.journal = recorded.journal.followed_by(ending.end, &ending.replay.objects(), &next.journal);
            next.expected = recorded.expected.clone();
        }
        next
    }

    /// Where the power goes.
    fn choose_end(&mut self, journal: &Journal) -> usize {
        let (from, all) = (self.from, journal.ops.len());
        let dice = &mut self.dice;
        // After a kill: just when what the last process left unsynced was read, and nothing new is synced yet.
        if from > 0 && dice.percent(50) {
            return (opened(journal, from) + dice.between(0, 12) as usize).min(all);
        }
        if dice.percent(if self.level > 1 { 65 } else { 10 }) {
            return dice.between(from as u64, opened(journal, from) as u64) as usize;
        }
        if dice.percent(50) {
            return dice.between(from as u64, all as u64) as usize;
        }
        // Beside a change of names or the end of a sync.
        let special = |at: &usize| match &journal.ops[*at] {
            Op::Create { .. } | Op::Rename { .. } | Op::Unlink { .. } | Op::Truncate { .. } => true,
            Op::SyncEnds { id, .. } => id % 8 == 0,
            _ => false,
        };
        let places: Vec<usize> = (from..all).filter(special).collect();
        match places.get(dice.below(places.len() as u64) as usize) {
            Some(at) => (at + dice.between(0, 3) as usize).min(all),
            None => all,
        }
    }

    /// Keeps what a bad cut left, to be looked at and tried again (`TEST_KEPT`).
    fn keep(&self, state: &State) -> String {
        if self.plan.skip != Skip::Nothing {
            return "no place, for it was to be bad".to_owned();
        }
        let number = self.tally.kept.fetch_add(1, Ordering::Relaxed);
        let name = format!("power-loss-{}-{}-{number}", self.plan.seed, self.workload.name);
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if to.exists() {
            std::fs::remove_dir_all(&to).unwrap();
        }
        std::fs::create_dir_all(to.join("state")).unwrap();
        replay::write(state, &to.join("state"));
        for file in ["task.json", "log", "journal", "journal-before"] {
            let bytes = std::fs::metadata(self.dir.join(file)).map(|meta| meta.len());
            if bytes.is_ok_and(|bytes| bytes <= KEPT_BYTES_MAX) {
                std::fs::copy(self.dir.join(file), to.join(file)).unwrap();
            }
        }
        to.display().to_string()
    }
}

fn has_no_room(journal: &Journal) -> bool {
    journal.find(|mark| matches!(mark, Mark::NoRoom)).is_some()
}

/// Where the process that began at `from` has its outbox open.
fn opened(journal: &Journal, from: usize) -> usize {
    let is_opened = |op: &Op| matches!(op, Op::Mark(Mark::Opened { .. }));
    journal.ops[from..].iter().position(is_opened).map_or(journal.ops.len(), |at| from + at)
}

/// Bytes that a state takes on a file system of its own, page by page.
fn room_of(state: &State) -> u64 {
    state.values().flatten().map(|content| (content.len() as u64).next_multiple_of(4096)).sum()
}
