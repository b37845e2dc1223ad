//! Power cuts, replayed. The real outbox with the real store is run under a recorder (`shim.c`), and from the recording
//! those directories are built that a cut may leave (`replay.rs`). Each is opened, compared with what was
//! acknowledged (`check.rs`), used, and cut again: also while it was being opened.
//!
//! `TEST_SEED=n` repeats the choices. A recording depends on the timing of threads as well, so what a bad cut left is kept,
//! and `TEST_KEPT=directory make crash` tries it again. `make crash` runs many more cuts.
//!
//! Each sync is there for something that this finds: with that of a new database left out (`Opening::sync`), more than half
//! of the cuts were bad (21 of 38 with `TEST_SEED=11`); with that of what is appended, see `Skip`.

#![allow(missing_docs, unreachable_pub, reason = "a test program has no outside")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed test may panic and tell")]

mod campaign;
mod chain;
mod check;
mod dice;
mod journal;
mod marks;
mod recorder;
mod replay;
mod replay_tests;
mod session;
mod workloads;

use campaign::Plan;
use recorder::Skip;

/// Not a test: what the others start under the recorder.
#[test]
fn recorded_process() {
    session::run_if_asked();
}

fn plan(cuts: u64) -> Plan {
    Plan { seed: campaign::seed(), cuts, workloads: workloads::all(), skip: Skip::Nothing, ranges: true, tells: false }
}

fn only(plan: Plan, names: &[&str]) -> Plan {
    Plan { workloads: names.iter().map(|name| workloads::named(name)).collect(), ..plan }
}

#[test]
fn what_was_acknowledged_is_there_after_every_cut() {
    let tally = campaign::run(&plan(60));
    assert_eq!(tally.count(&tally.bad), 0, "{}", tally.first_faults());
    assert!(tally.count(&tally.checked) > 0, "nothing acknowledged was compared");
    assert!(tally.count(&tally.openings) > 0, "no opening was cut");
}

/// Found by cuts: a process was killed between the write of `pos` and its sync. The next one read it, found it written already,
/// removed what it said was delivered, and after the cut the older `pos` missed those readings: told as lost by damage.
#[test]
fn a_position_that_a_killed_process_wrote_is_synced_before_it_is_relied_on() {
    let workload = workloads::named("trim-while-appending");
    let tally = campaign::killed_before_removals(&plan(0), &workload);
    assert_eq!(tally.count(&tally.bad), 0, "{}", tally.first_faults());
    assert!(tally.count(&tally.kills) > 0, "no generation was removed");
}

/// The same test with our fdatasync left out must see losses, or it could not see any.
#[test]
fn without_fdatasync_readings_are_lost_and_seen_to_be() {
    let plan =
        Plan { skip: Skip::Fdatasync, ranges: false, ..only(plan(20), &["small-groups", "trim-while-appending"]) };
    let tally = campaign::run(&plan);
    assert!(tally.count(&tally.bad) > 0, "{} cuts without fdatasync, and nothing was lost", plan.cuts);
    assert!(tally.faults.lock().unwrap().iter().any(|fault| fault.contains("acknowledged readings are lost")));
}

/// Likewise without the syncs after a database was made.
#[test]
fn without_the_syncs_of_opening_readings_are_lost_and_seen_to_be() {
    let plan = Plan { skip: Skip::Opening, ..only(plan(30), &["small-groups", "trim-while-appending"]) };
    let tally = campaign::run(&plan);
    assert!(tally.count(&tally.bad) > 0, "{} cuts without the syncs of opening, and all was well", plan.cuts);
}
