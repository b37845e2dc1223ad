//! `make crash`: the power cuts of main.rs, many of them, over all workloads. `TEST_CUTS=n` (300), `TEST_SEED=n`,
//! `TEST_WORKLOAD=name`, `TEST_KEPT=directory` of a bad cut. Ends with `result: cuts=N bad=N`.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "a program of its own; shares the parts of the tests")]
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "a failure may panic and tell")]

mod campaign;
mod chain;
mod check;
mod dice;
mod journal;
mod marks;
mod recorder;
mod replay;
mod session;
mod workloads;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use campaign::Plan;
use recorder::{Run, Skip, Work};

fn main() -> ExitCode {
    if session::run_if_asked() || std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    if let Some(kept) = std::env::var_os("TEST_KEPT") {
        let faults = again(Path::new(&kept));
        println!("{}result: cuts=1 bad={}", faults.join("\n") + "\n", u64::from(!faults.is_empty()));
        return if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let cuts = std::env::var("TEST_CUTS").map_or(300, |text| text.parse().expect("TEST_CUTS is a number"));
    let workloads = match std::env::var("TEST_WORKLOAD") {
        Ok(name) => vec![workloads::named(&name)],
        Err(_) => workloads::all(),
    };
    let began = Instant::now();
    let plan = Plan { seed: campaign::seed(), cuts, workloads, skip: Skip::Nothing, ranges: true, tells: true };
    let tally = campaign::run(&plan);
    println!(
        "{} cuts of an opening, {} of a session after a cut or kill, {} kills beside them, {} had no room to open; {} acknowledged readings compared; {:.0} s",
        tally.count(&tally.openings),
        tally.count(&tally.repeated),
        tally.count(&tally.kills),
        tally.count(&tally.no_room),
        tally.count(&tally.checked),
        began.elapsed().as_secs_f64()
    );
    let (cuts, bad) = (tally.count(&tally.cuts), tally.count(&tally.bad));
    println!("result: cuts={cuts} bad={bad}");
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tries a kept case again; what is wrong with it.
fn again(kept: &Path) -> Vec<String> {
    let task: session::Task = serde_json::from_slice(&std::fs::read(kept.join("task.json")).unwrap()).unwrap();
    let workload = workloads::named(&task.workload);
    let work = Work::new();
    let dir = work.fresh("again");
    for (name, ..) in session::files(&kept.join("state")) {
        let to = dir.join("state").join(&name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(kept.join("state").join(&name), to).unwrap();
    }
    let run = Run {
        workload: &workload,
        expected: task.expected,
        arrivals: task.arrivals,
        seed: task.seed,
        damaged: task.damaged,
        closes: task.closes,
        skip: Skip::Nothing,
        full: None,
        place: workload.place,
    };
    match recorder::run(&dir, &run) {
        Ok(recorded) => {
            eprintln!("{}", recorded.log);
            recorded.verdict.faults
        }
        Err(error) => vec![error],
    }
}
