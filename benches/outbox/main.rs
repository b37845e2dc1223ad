//! The outbox beside a plain append-only file: same readings, same codec, one write and one `fdatasync` for the same group,
//! in the same run. `make bench-outbox`; figures and what they mean: docs/outbox.md.
//!
//! Every figure is taken in a process of its own, so that one does not soil the next. A pair (outbox, plain file) is
//! measured right after each other, several times; what is printed is the median of the ratios of the pairs.
//!
//! `TEST_QUICK=1` is for trying: shorter, fewer, less true. `TEST_ROWS=text` measures only rows with this text in
//! their name. No figure is a test.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs)]

mod child;
mod device;
mod dictionary;
mod machine;
mod ours;
mod plain;
mod readings;
mod table;

use child::{Job, Side, Work};
use table::{Aim, Table};

/// How long and how often.
#[derive(Debug, Clone, Copy)]
struct Effort {
    repetitions: usize,
    seconds: f64,
    /// Readings for the drain.
    drained: u64,
    /// Readings queued for memory and reopening.
    queued: u64,
}

const FULL: Effort = Effort { repetitions: 7, seconds: 1.0, drained: 1_000_000, queued: 5_000_000 };
const QUICK: Effort = Effort { repetitions: 3, seconds: 0.3, drained: 200_000, queued: 500_000 };

fn main() {
    if let Some(job) = Job::of_this_process() {
        return child::run(&job);
    }
    let quick = std::env::var_os("TEST_QUICK").is_some();
    let effort = if quick { QUICK } else { FULL };
    let only = std::env::var("TEST_ROWS").unwrap_or_default();
    let directory = tempfile::tempdir().expect("a temporary directory");
    machine::print_conditions(directory.path());
    if quick {
        println!("TEST_QUICK: {} queued instead of {}; figures of a short run mean little", QUICK.queued, FULL.queued);
    }
    let mut table = Table::new(only);
    appends(&mut table, effort);
    writers(&mut table, effort);
    drains(&mut table, effort);
    disk(&mut table, effort);
    backlog(&mut table, effort);
    codecs(&mut table, effort);
    dictionary::notes(&mut table);
    device::rows(&mut table, quick);
    table.print();
}

/// Measures both sides in turn; ratios of `figure`, outbox to plain file, with the figures of both.
fn pairs(table: &mut Table, name: &str, work: &Work, effort: Effort, figures: &[(&str, &str, Aim)]) {
    if !table.wants(name) {
        return;
    }
    let mut ratios = vec![Vec::new(); figures.len()];
    let mut sides = [Vec::new(), Vec::new()];
    for repetition in 0..effort.repetitions {
        let order = if repetition % 2 == 0 { [Side::Outbox, Side::Plain] } else { [Side::Plain, Side::Outbox] };
        let mut both = order.map(|side| (side, child::measure(&Job { side, work: work.clone() })));
        both.sort_by_key(|(side, _)| *side);
        for (at, (figure, ..)) in figures.iter().enumerate() {
            ratios[at].push(both[0].1[*figure] / both[1].1[*figure]);
        }
        let [ours, plain] = both;
        sides[0].push(ours.1);
        sides[1].push(plain.1);
    }
    for (at, (figure, what, aim)) in figures.iter().enumerate() {
        let beside = format!(
            "{} {:.0} against {:.0}, {:.0} and {:.0} syncs",
            figure,
            table::median_of(&sides[0], figure),
            table::median_of(&sides[1], figure),
            table::median_of(&sides[0], "syncs"),
            table::median_of(&sides[1], "syncs"),
        );
        table.add(&format!("{name}{what}"), table::median(&ratios[at]), "x", *aim, &beside);
    }
}

fn appends(table: &mut Table, effort: Effort) {
    let demands = [
        (1, 200, Aim::AtLeast(0.6, 0.8)),
        (100, 200, Aim::AtLeast(0.7, 0.85)),
        (1000, 200, Aim::AtLeast(0.6, 0.8)),
        (10_000, 200, Aim::AtLeast(0.5, 0.7)),
        (1, 1000, Aim::AtLeast(0.6, 0.8)),
        (100, 1000, Aim::AtLeast(0.6, 0.8)),
        (1000, 1000, Aim::AtLeast(0.6, 0.8)),
        (10_000, 1000, Aim::AtLeast(0.6, 0.8)),
    ];
    for (group, bytes, aim) in demands {
        let work = Work::Append { group, bytes, seconds: effort.seconds, codec: "zstd".to_owned() };
        let name = format!("append, group {group}, {bytes} B");
        let mut figures = vec![("readings/s", "", aim)];
        if (group, bytes) == (1000, 200) {
            figures.push(("ns CPU/reading", ": CPU", Aim::AtMost(1.8, 1.4)));
        }
        pairs(table, &name, &work, effort, &figures);
    }
}

fn writers(table: &mut Table, effort: Effort) {
    let work = Work::Writers { writers: 64, bytes: 200, seconds: effort.seconds };
    let figures =
        [("readings/s", "", Aim::AtLeast(0.75, 0.9)), ("p99 us", ": p99 of an append", Aim::AtMost(1.6, 1.6))];
    pairs(table, "64 concurrent writers", &work, effort, &figures);
}

fn drains(table: &mut Table, effort: Effort) {
    let work = Work::Beside { group: 1000, bytes: 200, seconds: effort.seconds };
    let figures = [("readings/s", "", Aim::AtLeast(0.7, 0.85))];
    pairs(table, "append beside drain", &work, effort, &figures);
    let name = "append beside drain: drained meanwhile";
    if table.wants(name) {
        let once = || child::measure(&Job { side: Side::Outbox, work: work.clone() });
        let runs: Vec<_> = (0..effort.repetitions).map(|_| once()).collect();
        let share = table::median_of(&runs, "drained share");
        table.add(name, share, "of all", Aim::AtLeast(0.95, 0.95), "readings read by the end of the appending");
    }
    let work = Work::Drain { readings: effort.drained, bytes: 200 };
    pairs(table, "drain alone", &work, effort, &[("readings/s", "", Aim::AtLeast(0.8, 0.95))]);
}

fn disk(table: &mut Table, effort: Effort) {
    if !table.wants("disk") {
        return;
    }
    let run = child::measure(&Job { side: Side::Outbox, work: Work::Disk { readings: effort.drained, bytes: 200 } });
    let beside = format!("{:.2} bytes on disk per byte of payload", run["disk bytes"] / run["payload bytes"]);
    table.add("disk per encoded byte", run["disk bytes"] / run["encoded bytes"], "x", Aim::AtMost(2.2, 1.5), &beside);
    let after = run["bytes after drain"];
    let name = "disk after drain, in generations";
    let beside = format!("{:.1} MB", after / 1e6);
    table.add(name, after / run["bytes of a generation"], "", Aim::AtMost(1.0, 1.0), &beside);
}

fn backlog(table: &mut Table, effort: Effort) {
    if !table.wants("queued") {
        return;
    }
    let millions = effort.queued as f64 / 1e6;
    let run = child::measure_backlog(effort.queued);
    let name = |what: &str| format!("{millions} M queued: {what}");
    let peak = format!("peak growth {:.1} MB", run["peak growth"] / 1e6);
    table.add(&name("RSS growth"), run["rss growth"] / 1e6, "MB", Aim::AtMost(64.0, 24.0), &peak);
    for cache in ["warm", "cold"] {
        let get = |what: &str| run[format!("{what} {cache}").as_str()];
        let said = |what: &str| name(&format!("{what}, page cache {cache}"));
        table.add(&said("reopen"), get("reopen"), "s", Aim::AtMost(0.5, 0.05), "after SIGKILL");
        let beside = format!("RSS after it {:.1} MB", get("rss") / 1e6);
        table.add(&said("first read"), get("first read") * 1e3, "ms", Aim::AtMost(50.0, 50.0), &beside);
    }
}

/// What each codec costs, for docs/outbox.md: no demand.
fn codecs(table: &mut Table, effort: Effort) {
    for codec in ["zstd", "lz4", "none"] {
        let name = format!("codec {codec}");
        if !table.wants(&name) {
            continue;
        }
        let work = Work::Append { group: 1000, bytes: 200, seconds: effort.seconds, codec: codec.to_owned() };
        let once = || child::measure(&Job { side: Side::Outbox, work: work.clone() });
        let runs: Vec<_> = (0..effort.repetitions).map(|_| once()).collect();
        let of = |figure| table::median_of(&runs, figure);
        let beside = format!(
            "{:.0} readings/s, {:.2} us CPU, {:.2} B encoded and {:.2} B written per byte of payload",
            of("readings/s"),
            of("ns CPU/reading") / 1e3,
            of("encoded bytes") / of("payload bytes"),
            of("written bytes") / of("payload bytes"),
        );
        table.note(&name, &beside);
    }
}
