//! SIGKILL at random moments: this test binary starts itself as a writer that prints what was answered. `TEST_SEED=n`
//! repeats the choices (the moments themselves are the machine's), `TEST_KILLS=n` changes their number.
//!
//! What a kill can show is that everything answered has left the process: without sled's flush in `Generation::sync` it
//! fails at the first kill. What has left it and is not on the medium only a power cut shows (`tests/power_loss`).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::testing::{Dice, reading_of, seed};
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::WhenFull;
use crate::record::Item;

const DIRECTORY: &str = "TEST_OUTBOX_KILL_DIRECTORY";
const START: &str = "TEST_OUTBOX_KILL_START";
const DROPS: &str = "TEST_OUTBOX_KILL_DROPS";
const KILLS: u64 = 200;
/// A child sends so many readings again that the one before it stored.
const AGAIN: u64 = 30;
/// A child that trims leaves so many.
const LEFT: u64 = 600;

/// Small generations, so that most children make several.
fn settings(drops: bool) -> OpenOptions {
    let mut options = options(ByteSize::mib(8));
    options.config.when_full = if drops { WhenFull::DropOldest } else { WhenFull::Block };
    options
}

/// Reading `n`; it always gets sequence n + 1. Some are split over several blocks.
fn reading(n: u64) -> Reading {
    let size = if n % 50 == 0 { 25_000 } else { 200 + (n % 13) as usize * 150 };
    reading_of(n, size, true)
}

/// The child: appends until it is killed. What the one before it stored last is sent again with DUP, as a broker would.
/// It trims, unless the policy is to make room.
#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let start: u64 = std::env::var(START).unwrap().parse().unwrap();
    let drops = std::env::var(DROPS).is_ok();
    let mut out = std::io::stdout();
    let mut say = move |text: String| {
        writeln!(out, "\nkill {text}").unwrap();
        out.flush().unwrap();
    };
    say("opening".to_owned());
    let mut rig = Rig::open_with(Path::new(&dir), settings(drops));
    let mut number = start.saturating_sub(AGAIN);
    loop {
        let group = 1 + number % 40;
        for n in number..number + group {
            let dup = n < start + AGAIN && start > 0;
            let packet = Packet { id: (n % 60_000) as u16 + 1, qos: Qos::AtLeastOnce, dup, hash: n, dedup: true };
            rig.submit(vec![reading(n)], Some(packet));
        }
        let outcomes = rig.outcomes(group as usize);
        for (n, (_, outcome)) in (number..).zip(&outcomes) {
            let known = n < start;
            assert_eq!(*outcome, if known { Outcome::Duplicate } else { Outcome::Appended }, "reading {n} of {start}");
        }
        number += group;
        say(format!("answered {number}"));
        // Packet identifiers come back after 60,000 readings; those that are done are released long before.
        let done: Vec<u16> =
            (number.saturating_sub(400)..number.saturating_sub(300)).map(|n| (n % 60_000) as u16 + 1).collect();
        rig.appender.control(Control::Released(done));
        if !drops && number > LEFT && number % 3 == 0 {
            trim(&rig.outbox, number - LEFT);
        }
    }
}

/// Starts a child, kills it, and returns how far it said that it was answered.
fn kill_one(dir: &Path, start: u64, drops: bool, dice: &mut Dice) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "outbox::kill_tests::child_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .env(START, start.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if drops {
        command.env(DROPS, "1");
    }
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let (opening, opens) = mpsc::sync_channel(1);
    let reader = std::thread::Builder::new()
        .spawn(move || {
            let mut answered = 0;
            for line in lines.lines().map_while(Result::ok) {
                match line.strip_prefix("kill ").and_then(|line| line.strip_prefix("answered ")) {
                    Some(number) => answered = number.parse().unwrap_or(answered),
                    None if line == "kill opening" => opening.send(()).unwrap(),
                    None => {}
                }
            }
            answered
        })
        .unwrap();
    opens.recv_timeout(Duration::from_secs(60)).expect("the child begins");
    // Half of them early: into the opening and the first writing.
    let within = if dice.roll(2) == 0 { 100_000 } else { 500_000 };
    std::thread::sleep(Duration::from_micros(dice.roll(within)));
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ended.is_none(), "the child ended by itself: {ended:?}");
    reader.join().unwrap()
}

#[test]
fn what_was_answered_is_there_once_after_every_kill() {
    let kills = std::env::var("TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap());
    let mut dice = Dice(seed());
    let dir = tempfile::tempdir().unwrap();
    let (mut stored, mut dropped, mut life) = (0, false, None);
    for kill in 0..kills {
        // A run of them with room made by dropping, then a run that trims.
        let drops = kill / 20 % 3 == 2;
        dropped |= drops;
        let answered = kill_one(dir.path(), stored, drops, &mut dice);
        let rig = Rig::open_with(dir.path(), settings(drops));
        let positions = rig.outbox.positions();
        let end = positions.durable.0;
        assert!(end >= answered, "kill {kill}: {end} of {answered} answered readings are there");
        assert!(end >= stored, "kill {kill}: {end} of {stored} that were there before are there");
        let now = rig.outbox.identity().incarnation;
        assert_eq!(*life.get_or_insert(now), now, "kill {kill}: a kill is no damage");
        check(&read_all(&mut rig.outbox.reader(), positions.committed.0), dropped, kill);
        stored = end;
        if drops {
            // So that the next run begins with room.
            trim(&rig.outbox, end.saturating_sub(LEFT));
        }
        rig.close();
    }
    println!("{stored} readings over {kills} kills");
    assert!(stored > kills * 10, "the children got somewhere: {stored}");
}

/// Every sequence is the reading that was sent under it, or was dropped by policy.
fn check(items: &[Item], dropped: bool, kill: u64) {
    for item in items {
        match item {
            Item::Reading(stored) => {
                let wanted = reading(stored.sequence.0 - 1);
                assert!(stored.reading == wanted, "kill {kill}: sequence {} is another reading", stored.sequence);
            }
            Item::Hole(hole) => assert!(dropped && &*hole.reason == "drop_oldest", "kill {kill}: {hole:?}"),
        }
    }
}
