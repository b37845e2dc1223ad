//! Many cuts over all workloads: records a session, cuts it, opens what is left under the recorder, cuts that too.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::dice::Dice;
use super::journal::{Journal, Op};
use super::marks::{Expectation, Mark};
use super::recorder::{self, Recorded, Run, Skip, Work};
use super::replay::{self, Mode, Replay};
use super::workloads::{Damage, Place, Workload};

/// A cut of a cut of a cut ...
const LEVELS_MAX: u64 = 5;
/// Cuts of one recording; then another one is made.
const CUTS_OF_A_RECORDING: u64 = 40;
/// Bad cuts that are kept; more of them say nothing new.
const KEPT_MAX: u64 = 20;

/// How many cuts, of what.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub cuts: u64,
    pub workloads: Vec<Workload>,
    pub skip: Skip,
    /// Whether sync_file_range may count in some cuts.
    pub ranges: bool,
    /// Whether progress is told.
    pub tells: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Directories rebuilt, opened and compared.
    pub cuts: AtomicU64,
    pub bad: AtomicU64,
    /// Of `cuts`, those of an opening that had not ended.
    pub openings: AtomicU64,
    /// Of `cuts`, those of a session that itself began after a cut.
    pub repeated: AtomicU64,
    /// Acknowledged readings compared.
    pub checked: AtomicU64,
    /// What was bad.
    pub faults: Mutex<Vec<String>>,
}

impl Tally {
    pub fn count(&self, which: &AtomicU64) -> u64 {
        which.load(Ordering::Relaxed)
    }

    pub fn first_faults(&self) -> String {
        self.faults.lock().unwrap().iter().take(3).cloned().collect::<Vec<_>>().join("\n")
    }
}

/// `TEST_SEED`, or one of this moment; printed.
pub fn seed() -> u64 {
    let seed = std::env::var("TEST_SEED").ok().map(|text| text.parse().expect("TEST_SEED is a number"));
    let seed = seed.unwrap_or_else(|| u64::from_le_bytes(getrandom_bytes()) >> 32);
    eprintln!("power loss: TEST_SEED={seed}");
    seed
}

fn getrandom_bytes() -> [u8; 8] {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Runs the plan.
pub fn run(plan: &Plan) -> Tally {
    let tally = Tally::default();
    let work = Work::new();
    let count = plan.workloads.len() as u64;
    for (at, workload) in plan.workloads.iter().enumerate() {
        let until = plan.cuts * (at as u64 + 1) / count;
        let dice = Dice::new(plan.seed).fork(crc32fast::hash(workload.name.as_bytes()).into());
        let (cuts, bad) = (tally.count(&tally.cuts), tally.count(&tally.bad));
        let mut number = 0;
        while tally.count(&tally.cuts) < until && tally.count(&tally.bad) == bad {
            let end = until.min(tally.count(&tally.cuts) + CUTS_OF_A_RECORDING);
            if let Err(error) = one_recording(plan, workload, &work, &tally, dice.fork(number), end) {
                tally.cuts.fetch_add(1, Ordering::Relaxed);
                bad_one(&tally, format!("{}: the session that was to be cut: {error}", workload.name));
            }
            number += 1;
        }
        if plan.tells {
            let (now, new_bad) = (tally.count(&tally.cuts), tally.count(&tally.bad) - bad);
            eprintln!("{:>6} / {}  {:<24} cuts={} bad={new_bad}", now, plan.cuts, workload.name, now - cuts);
        }
    }
    tally
}

fn bad_one(tally: &Tally, fault: String) {
    tally.bad.fetch_add(1, Ordering::Relaxed);
    eprintln!("BAD {fault}");
    tally.faults.lock().unwrap().push(fault);
}

fn one_recording(
    plan: &Plan,
    workload: &Workload,
    work: &Work,
    tally: &Tally,
    mut dice: Dice,
    until: u64,
) -> Result<(), String> {
    let recorded = record(plan, workload, work, &mut dice)?;
    if !recorded.verdict.faults.is_empty() {
        return Err(format!("{:?}\n{}", recorded.verdict.faults, recorded.log));
    }
    let recorded = &recorded;
    let chains = &AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let dice = dice.clone();
            let name = format!("cuts-{worker}");
            let body = move || {
                while tally.count(&tally.cuts) < until && tally.count(&tally.bad) < KEPT_MAX {
                    let number = chains.fetch_add(1, Ordering::Relaxed);
                    let dir = work.fresh(&format!("{}-{worker}", workload.name));
                    chain(plan, workload, &dir, recorded, tally, dice.fork(1000 + number));
                }
            };
            std::thread::Builder::new().name(name).spawn_scoped(scope, body).unwrap();
        }
    });
    Ok(())
}

/// The session that is cut first.
fn record(plan: &Plan, workload: &Workload, work: &Work, dice: &mut Dice) -> Result<Recorded, String> {
    let dir = work.fresh(workload.name);
    let first = Run {
        workload,
        expected: Expectation::default(),
        arrivals: workload.arrivals,
        seed: dice.next(),
        damaged: false,
        closes: true,
        skip: plan.skip,
        full: workload.full,
        place: workload.place,
    };
    let recorded = recorder::run(&dir, &first)?;
    let Some(damage) = workload.damages else { return Ok(recorded) };
    if !recorded.verdict.faults.is_empty() {
        return Ok(recorded);
    }
    let mut expected = Expectation::default();
    recorded.journal.marks(recorded.journal.ops.len()).for_each(|mark| expected.apply(mark));
    damage_one(&dir.join("state/outbox"), damage, dice);
    recorder::run(&dir, &Run { expected, damaged: true, arrivals: workload.later, ..first })
}

/// Overwrites a good part of a generation.
fn damage_one(outbox: &Path, damage: Damage, dice: &mut Dice) {
    let generations = std::fs::read_dir(outbox).unwrap().map(|entry| entry.unwrap().path());
    let mut generations: Vec<PathBuf> = generations.filter(|path| path.is_dir()).collect();
    generations.sort();
    assert!(generations.len() >= 3, "too few generations to damage one: {generations:?}");
    let chosen = match damage {
        Damage::Middle => &generations[1],
        Damage::Newest => generations.last().expect("there are three"),
    };
    let path = chosen.join("db");
    let mut bytes = std::fs::read(&path).unwrap();
    let (from, to) = (bytes.len() / 8, bytes.len() / 2);
    bytes[from..to].iter_mut().for_each(|byte| *byte = dice.next() as u8);
    std::fs::write(path, bytes).unwrap();
}

/// Where the power goes, in a session of this level.
fn choose_end(journal: &Journal, level: u64, dice: &mut Dice) -> usize {
    let all = journal.ops.len();
    let opened = journal.find(|mark| matches!(mark, Mark::Opened { .. })).unwrap_or(all);
    if dice.percent(if level > 1 { 65 } else { 10 }) {
        return dice.below(opened as u64 + 1) as usize;
    }
    if dice.percent(50) {
        return dice.below(all as u64 + 1) as usize;
    }
    // Beside a change of names or the end of a sync.
    let special = |op: &Op| {
        matches!(op, Op::Create { .. } | Op::Rename { .. } | Op::Unlink { .. } | Op::Truncate { .. })
            || matches!(op, Op::SyncEnds { .. }) && dice.clone().percent(10)
    };
    let places: Vec<usize> = (0..all).filter(|at| special(&journal.ops[*at])).collect();
    match places.get(dice.below(places.len() as u64) as usize) {
        Some(at) => (at + dice.between(0, 3) as usize).min(all),
        None => all,
    }
}

/// Cuts a session, opens what is left, cuts that session, and so on.
fn chain(plan: &Plan, workload: &Workload, dir: &Path, first: &Recorded, tally: &Tally, mut dice: Dice) {
    let mut levels = 1;
    while plan.skip == Skip::Nothing && levels < LEVELS_MAX && dice.percent(50) {
        levels += 1;
    }
    let mut last: Option<Recorded> = None;
    let mut place = workload.place;
    let mut way = Vec::new();
    for level in 1..=levels {
        let recorded = last.as_ref().unwrap_or(first);
        let no_room = recorded.journal.find(|mark| matches!(mark, Mark::NoRoom)).is_some();
        // What did not open for want of room must open where there is some.
        let end = if no_room && place != Place::Anywhere {
            place = Place::Anywhere;
            recorded.journal.ops.len()
        } else {
            choose_end(&recorded.journal, level, &mut dice)
        };
        let mut expected = recorded.expected.clone();
        recorded.journal.marks(end).for_each(|mark| expected.apply(mark));
        let mode = if plan.ranges && dice.percent(30) { Mode::Range } else { Mode::Strict };
        let cut = Replay::new(&recorded.journal, end, mode).cut(&mut dice);
        let state = dir.join("state");
        std::fs::remove_dir_all(&state).unwrap();
        std::fs::create_dir(&state).unwrap();
        replay::write(&cut, &state);
        way.push(format!("{end}/{} {mode:?}", recorded.journal.ops.len()));
        tally.cuts.fetch_add(1, Ordering::Relaxed);
        tally.repeated.fetch_add(u64::from(level > 1), Ordering::Relaxed);
        let opened = recorded.journal.find(|mark| matches!(mark, Mark::Opened { .. })).is_some_and(|at| at < end);
        tally.openings.fetch_add(u64::from(!opened), Ordering::Relaxed);
        let next = Run {
            workload,
            expected,
            arrivals: workload.later,
            seed: dice.next(),
            damaged: workload.damages.is_some(),
            closes: dice.percent(50),
            skip: Skip::Nothing,
            full: None,
            place,
        };
        let outcome = recorder::run(dir, &next);
        let fault = match &outcome {
            Ok(next) if next.verdict.faults.is_empty() => None,
            Ok(next) => Some(format!("{:?}\n{}", next.verdict.faults, next.log)),
            Err(error) => Some(error.clone()),
        };
        if let Some(fault) = fault {
            let kept = keep(plan, workload, dir, &cut, tally);
            return bad_one(tally, format!("{} {way:?}, kept in {kept}: {fault}", workload.name));
        }
        let next = outcome.expect("no fault");
        tally.checked.fetch_add(next.verdict.checked, Ordering::Relaxed);
        last = Some(next);
    }
}

/// Keeps what a bad cut left, to be looked at and tried again (`TEST_KEPT`).
fn keep(
    plan: &Plan,
    workload: &Workload,
    dir: &Path,
    cut: &std::collections::BTreeMap<String, Option<Vec<u8>>>,
    tally: &Tally,
) -> String {
    if plan.skip != Skip::Nothing {
        return "no place, for it was to be bad".to_owned();
    }
    let number = tally.count(&tally.bad);
    let name = format!("power-loss-{}-{}-{number}", plan.seed, workload.name);
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if to.exists() {
        std::fs::remove_dir_all(&to).unwrap();
    }
    std::fs::create_dir_all(to.join("state")).unwrap();
    replay::write(cut, &to.join("state"));
    for file in ["task.json", "log", "journal"] {
        if dir.join(file).exists() {
            std::fs::copy(dir.join(file), to.join(file)).unwrap();
        }
    }
    to.display().to_string()
}
