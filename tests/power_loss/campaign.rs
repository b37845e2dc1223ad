//! Many cuts over all workloads: records a session and starts chains of cuts from it (chain.rs).

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::chain::Chain;
use super::dice::Dice;
use super::journal::Op;
use super::marks::Expectation;
use super::recorder::{self, Recorded, Run, Skip, Work};
use super::workloads::{Damage, Workload};

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
    pub kept: AtomicU64,
    /// Of `cuts` and kills, those whose directory had no room to be opened, and was opened where there was some.
    pub no_room: AtomicU64,
    /// Processes killed, their successor compared, and cut like any other.
    pub kills: AtomicU64,
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
    let count = plan.workloads.len() as u64;
    for (at, workload) in plan.workloads.iter().enumerate() {
        // One for each: recordings are large, and may stand in memory.
        let work = Work::new();
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
                    if let Err(fault) = Chain::new(plan, workload, &dir, tally, dice.fork(1000 + number)).run(recorded)
                    {
                        bad_one(tally, format!("{}: {fault}", workload.name));
                    }
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

/// Kills a session each time `pos` was written and not synced, just before a generation goes that it says is delivered; then
/// cuts the next session while it begins.
pub fn killed_before_removals(plan: &Plan, workload: &Workload) -> Tally {
    let tally = Tally::default();
    let work = Work::new();
    let mut dice = Dice::new(plan.seed);
    let recorded = record(plan, workload, &work, &mut dice).unwrap();
    assert_eq!(recorded.verdict.faults, Vec::<String>::new());
    let ops = &recorded.journal.ops;
    let removals = (0..ops.len()).filter(|at| matches!(&ops[*at], Op::Rename { to, .. } if to.1.starts_with("dead-")));
    let written = removals.filter_map(|removal| {
        let began = ops[..removal].iter().rposition(|op| matches!(op, Op::SyncBegins { .. }))?;
        ops[..began].iter().rposition(|op| matches!(op, Op::Write { .. })).map(|at| at + 1)
    });
    for (number, at) in written.take(8).enumerate() {
        for repeat in 0..3 {
            let dir = work.fresh("killed");
            let dice = dice.fork(number as u64 * 100 + repeat);
            if let Err(fault) = Chain::new(plan, workload, &dir, &tally, dice).killed_at(at).run(&recorded) {
                bad_one(&tally, format!("{}: {fault}", workload.name));
                return tally;
            }
        }
    }
    tally
}
