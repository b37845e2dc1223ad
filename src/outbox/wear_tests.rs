//! When the medium is synced, counted in syncs: `interval`, the gather window, and what ends both early.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::{Compression, Sync};
use crate::config::units::Span;

const NEVER: Span = Span(Duration::from_secs(3600));

fn synced(sync: Sync, gather: Span) -> OpenOptions {
    let mut options = options(ByteSize::mib(64));
    options.config.sync = sync;
    options.config.gather = gather;
    options
}

/// Submits one reading and does not wait for it.
fn submit(rig: &mut Rig, n: u64) {
    rig.submit(vec![reading_of(n, 50, false)], None);
}

/// The writer has taken everything that was sent before.
fn settle(rig: &Rig) {
    rig.outbox.sync_position().unwrap();
}

fn syncs(rig: &Rig) -> u64 {
    rig.outbox.status().syncs
}

#[test]
fn before_its_sync_nothing_is_answered_or_readable() {
    for (sync, gather) in [(Sync::Interval(NEVER), Span::millis(0)), (Sync::Batch, NEVER)] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open_with(dir.path(), synced(sync, gather));
        let before = syncs(&rig);
        for n in 0..400 {
            submit(&mut rig, n);
        }
        settle(&rig);
        assert!(rig.answers.try_recv().is_err(), "nothing is acknowledged before its sync");
        assert_eq!(rig.outbox.positions().durable, Sequence(0));
        assert!(rig.outbox.reader().batch_after(Sequence(0), SOME).unwrap().items.is_empty());
        assert_eq!(syncs(&rig), before);
        assert_eq!(rig.outbox.status().loss_window_seconds, 3600.0);
        // An orderly end waits for no company.
        let outbox = rig.outbox.clone();
        outbox.close(Duration::from_secs(30));
        assert_eq!(rig.outcomes(400).len(), 400);
        assert_eq!(syncs(&rig), before + 1, "400 readings, one sync");
        assert_eq!(outbox.positions().durable, Sequence(400));
    }
}

#[test]
fn under_slow_load_there_is_one_sync_per_interval() {
    const INTERVAL: Duration = Duration::from_millis(200);
    for (sync, gather) in [(Sync::Interval(Span(INTERVAL)), Span::millis(0)), (Sync::Batch, Span(INTERVAL))] {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open_with(dir.path(), synced(sync, gather));
        let (before, start) = (syncs(&rig), Instant::now());
        for n in 0..100 {
            submit(&mut rig, n);
            std::thread::sleep(Duration::from_millis(10));
        }
        rig.outcomes(100);
        let intervals = start.elapsed().as_nanos() / INTERVAL.as_nanos() + 1;
        let found = syncs(&rig) - before;
        assert!(found > 1 && u128::from(found) <= intervals, "{found} syncs in {intervals} intervals");
        rig.close();
    }
}

#[test]
fn what_is_much_waits_for_no_company() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), synced(Sync::Interval(NEVER), NEVER));
    for n in 0..500 {
        submit(&mut rig, n);
    }
    rig.outcomes(500);
    // One large one is much, too: it holds a sixteenth of what may be held.
    let held = rig.outbox.held().try_acquire(3 << 20).unwrap();
    let arrival = Arrival { readings: vec![reading_of(1, 50, false)], packet: None, receipt: Receipt(501), held };
    rig.appender.submit(vec![arrival]);
    assert_eq!(rig.outcomes(1), [(Receipt(501), Outcome::Appended)]);
    rig.close();
}

#[test]
fn batch_syncs_once_per_reading_that_comes_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), synced(Sync::Batch, Span::millis(0)));
    let before = rig.outbox.status();
    for n in 0..20 {
        rig.append(reading_of(n, 50, false), None);
    }
    let after = rig.outbox.status();
    assert_eq!(after.syncs - before.syncs, 20);
    assert_eq!(after.payload_bytes - before.payload_bytes, 20 * 50);
    assert_eq!((after.sync.as_str(), after.loss_window_seconds), ("batch", 0.0));
    rig.close();
}

const DIRECTORY: &str = "TEST_OUTBOX_INTERVAL_DIRECTORY";

/// The child: ten readings with a sync, ten that wait for theirs; then it is killed.
#[test]
fn child_that_waits_for_its_interval() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let mut rig = Rig::open_with(Path::new(&dir), synced(Sync::Batch, Span::millis(0)));
    rig.append_all(&many(0, 10, 100));
    rig.close();
    let mut rig = Rig::open_with(Path::new(&dir), synced(Sync::Interval(NEVER), Span::millis(0)));
    for n in 10..20 {
        submit(&mut rig, n);
    }
    settle(&rig);
    let answered = rig.answers.try_recv().is_ok();
    writeln!(std::io::stdout(), "answered {answered}").unwrap();
    std::io::stdout().flush().unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_kill_within_the_interval_takes_what_was_not_acknowledged_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "outbox::wear_tests::child_that_waits_for_its_interval", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).find_map(|line| line.split("answered ").nth(1).map(str::to_owned));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(told.as_deref().map(str::trim), Some("false"), "what waits for its sync is not acknowledged");
    let rig = Rig::open(dir.path());
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(readings(&items), many(0, 10, 100), "what was acknowledged is there");
    rig.close();
}

#[test]
fn codecs_mix_in_one_generation_after_a_change_of_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = many(0, 2400, 200);
    for (at, codec) in
        [Compression::Zstd, Compression::Lz4, Compression::None, Compression::Zstd].into_iter().enumerate()
    {
        let mut options = options(ByteSize::mib(64));
        options.config.compression = codec;
        let mut rig = Rig::open_with(dir.path(), options);
        rig.append_all(&wanted[at * 600..(at + 1) * 600]);
        assert_eq!(generations(dir.path()), 1, "all in one generation");
        assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == wanted[..(at + 1) * 600]);
        rig.close();
    }
}
