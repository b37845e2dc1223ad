//! What goes wrong between the program and a daemon: exit codes, and what is told.

use std::path::Path;

use crate::place::*;
use crate::relay::{Play, Relay};

/// Every command that asks a daemon.
const ASKING: [(&[&str], &str); 5] = [
    (&["outbox", "inspect"], "inspect"),
    (&["outbox", "verify"], "verify"),
    (&["outbox", "export", "--output", "out.jsonl"], "export"),
    (&["outbox", "purge", "--to", "5", "--yes"], "purge"),
    (&["outbox", "replay", "--all"], "replay"),
];

#[test]
fn a_daemon_that_is_busy_means_try_again() {
    let place = Place::new();
    place.fill(300, 100);
    let _daemon = place.daemon();
    let relay = Relay::before(&place.path("state"));
    relay.set(Play::Busy("another change of the outbox is under way: try again in a moment"));
    for (arguments, name) in ASKING {
        let run = place.run(arguments);
        assert_eq!(run.code, Some(75), "{name}: {}{}", run.text(), run.err);
        assert!(run.err.contains("try again in a moment") && run.text().is_empty(), "{name}: {}", run.err);
    }
    relay.set(Play::Pass);
    assert_eq!(place.run(&["outbox", "inspect", "--json"]).json()["waiting"], 300, "nothing was changed");
}

#[test]
fn a_daemon_that_hangs_up_in_the_middle_gave_no_answer() {
    let place = Place::new();
    place.fill(3000, 1500);
    let _daemon = place.daemon();
    let relay = Relay::before(&place.path("state"));
    // In the head, behind it, and further on.
    for bytes in [0, 10, 200] {
        relay.set(Play::Cut(bytes));
        for (arguments, name) in ASKING {
            let run = place.run(arguments);
            assert_eq!(run.code, Some(69), "{name} after {bytes}: {}{}", run.text(), run.err);
            assert!(run.text().is_empty() && run.err.contains("the daemon"), "{name} after {bytes}: {}", run.err);
        }
    }
    relay.set(Play::Cut(1 << 20));
    let run = place.run(&["outbox", "export", "--output", "out.jsonl"]);
    assert_eq!(run.code, Some(69), "{}", run.err);
    assert!(run.err.contains(".partial") && !place.path("out.jsonl").exists(), "what came is named: {}", run.err);
}

/// Gives a database a version of the store that nobody knows yet.
fn from_the_future(generation: &Path) {
    let path = generation.join("conf");
    let conf = std::fs::read(&path).unwrap();
    let (text, _) = conf.split_last_chunk::<4>().unwrap();
    let text = std::str::from_utf8(text).unwrap().replace("version: 0.34", "version: 9.34");
    assert!(text.contains("9.34"), "{text}");
    let sum = crc32fast::hash(text.as_bytes()).to_le_bytes();
    std::fs::write(path, [text.as_bytes(), &sum].concat()).unwrap();
}

#[test]
fn a_later_version_is_the_same_with_and_without_a_daemon() {
    let place = Place::new();
    place.fill(30_000, 1500);
    let mut generations: Vec<_> = std::fs::read_dir(place.path("state/outbox"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("db").exists())
        .collect();
    generations.sort();
    assert!(generations.len() >= 3, "{generations:?}");
    let daemon = place.daemon();
    from_the_future(&generations[1]);
    let name = generations[1].file_name().unwrap().to_str().unwrap();
    let check = |how: &str| {
        for arguments in [&["outbox", "verify"][..], &["outbox", "export"]] {
            let run = place.run(arguments);
            assert_eq!(run.code, Some(78), "{how}: {arguments:?}: {}", run.err);
            assert!(run.err.contains(name) && run.err.contains("later"), "{how}: {}", run.err);
        }
    };
    check("beside a daemon");
    drop(daemon);
    check("without one");
}
