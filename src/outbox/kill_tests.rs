//! SIGKILL at random moments: this test binary starts itself as a writer that prints what was answered.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::Item;

const DIRECTORY: &str = "TEST_OUTBOX_KILL_DIRECTORY";
const ROUNDS: u64 = 20;

/// The child: appends until it is killed. A packet that was answered is printed; the first one after a start is sent
/// again with DUP, as a broker would.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let start: u64 = std::env::var("TEST_OUTBOX_KILL_START").unwrap().parse().unwrap();
    let mut rig = Rig::open_with(Path::new(&dir), options(ByteSize::mib(16)));
    let mut out = std::io::stdout();
    let mut number = start;
    loop {
        let group = 1 + number % 40;
        for n in number..number + group {
            let dup = n < start + 60 && start > 0;
            let packet = Packet { id: (n % 60_000) as u16 + 1, qos: Qos::AtLeastOnce, dup, hash: n, dedup: true };
            rig.submit(vec![reading_of(n, 200 + (n % 13) as usize * 150, true)], Some(packet));
        }
        rig.outcomes(group as usize);
        number += group;
        writeln!(out, "answered {number}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_answered_is_there_once_after_every_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut answered = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "outbox::kill_tests::child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, dir.path())
            .env("TEST_OUTBOX_KILL_START", answered.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::Builder::new()
            .spawn(move || {
                let numbers = lines.lines().map_while(Result::ok);
                let number = |line: String| line.split("answered ").nth(1).and_then(|text| text.trim().parse().ok());
                numbers.filter_map(number).last().unwrap_or(0u64)
            })
            .unwrap();
        // Short lives hit the opening, longer ones the writing and the rotation.
        std::thread::sleep(Duration::from_millis(if round % 2 == 0 { 5 + round * 6 } else { 150 + round * 17 }));
        child.kill().unwrap();
        child.wait().unwrap();
        answered = answered.max(reader.join().unwrap());
        check(dir.path(), answered);
        answered = stored(dir.path()).len() as u64;
    }
    assert!(answered > 1000, "the children got somewhere: {answered}");
}

fn stored(dir: &Path) -> Vec<Item> {
    let rig = Rig::open_with(dir, options(ByteSize::mib(16)));
    let items = read_all(&mut rig.outbox.reader(), 0);
    rig.close();
    items
}

/// Numbers 0.. in order, none twice, at least `answered` of them. Those after were stored and not answered.
fn check(dir: &Path, answered: u64) {
    let items = stored(dir);
    assert_eq!(holes(&items), []);
    assert!(items.len() as u64 >= answered, "{} of {answered} answered readings are there", items.len());
    for (n, reading) in readings(&items).iter().enumerate() {
        let n = n as u64;
        assert!(*reading == reading_of(n, 200 + (n % 13) as usize * 150, true), "reading {n}");
    }
}
