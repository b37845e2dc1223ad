//! `purge` and `replay`: what they change, and above all what they do not.

use std::process::Command;

use crate::place::*;

fn copied(place: &Place) {
    let copied = Command::new("cp").args(["-a", "state", "copy"]).current_dir(place.directory.path()).status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_purge_aimed_at_a_copy_leaves_the_live_outbox_alone() {
    let place = Place::new();
    place.fill(300, 100);
    copied(&place);
    let _daemon = place.daemon();
    let live = |what: &str| place.run(&["outbox", "inspect", "--json"]).json()[what].clone();
    // A daemon of the same agent, with an outbox of the same incarnation, answers where a daemon of the copy would.
    std::os::unix::fs::symlink(place.path("state/control.sock"), place.path("copy/control.sock")).unwrap();
    let aimed = ["outbox", "purge", "--set", "agent.state_dir=copy", "--all", "--yes", "--json"];

    let lock = std::fs::File::open(place.path("copy/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let run = place.run(&aimed);
    assert_eq!(run.code, Some(75), "{}{}", run.text(), run.err);
    assert!(run.err.contains("that daemon uses another directory"), "{}", run.err);
    let run = place.run(&["outbox", "inspect", "--state-dir", "copy"]);
    assert_eq!(run.code, Some(75), "what is shown is not of another directory either: {}{}", run.text(), run.err);
    drop(lock);

    std::fs::remove_file(place.path("copy/control.sock")).unwrap();
    std::os::unix::fs::symlink(place.path("state/control.sock"), place.path("copy/control.sock")).unwrap();
    let run = place.run(&aimed);
    assert!(matches!(run.code, Some(0 | 75)), "{}", run.err);
    let of_copy = run.json();
    let stay: u64 = of_copy["left"]
        .as_array()
        .unwrap()
        .iter()
        .map(|left| left["to"].as_u64().unwrap() + 1 - left["from"].as_u64().unwrap())
        .sum();
    assert_eq!(of_copy["readings"].as_u64().unwrap() + stay, 300, "the copy is what was meant: {of_copy:#}");
    assert_eq!(live("waiting"), 300);

    // What is misspelt does not mean the live one.
    for wrong in ["agent.statedir=copy", "agents.state_dir=copy"] {
        let run = place.run(&["outbox", "purge", "--set", wrong, "--all", "--yes"]);
        assert_eq!(run.code, Some(78), "{wrong}: {}{}", run.text(), run.err);
    }
    let output = place.command(&["outbox", "purge", "--all", "--yes", "--config", "g.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(live("waiting"), 300);

    // A mistake elsewhere in the file, which somebody is just editing, is not in the way.
    let text = std::fs::read_to_string(place.path("f.toml")).unwrap();
    std::fs::write(place.path("f.toml"), text + "[sources.new]\ntype = \"none yet\"\n").unwrap();
    let run = place.run(&["outbox", "purge", "--to", "10", "--yes", "--json", "--dry-run"]);
    assert_eq!((run.code, &run.json()["dry_run"]), (Some(0), &true.into()), "{}", run.err);
    let run = place.run(&["outbox", "purge", "--from", "1000", "--yes", "--json"]);
    assert_eq!((run.code, &run.json()["dry_run"]), (Some(0), &false.into()), "nothing to do: {}", run.err);
}

#[test]
fn without_a_daemon_a_dry_run_or_a_missing_answer_changes_no_byte() {
    let place = Place::new();
    place.fill(300, 100);
    let before = tree(&place.path("state"));
    for (arguments, code, told) in [
        (&["outbox", "purge", "--all", "--dry-run"][..], 69, "fieldpost outbox inspect"),
        (&["outbox", "purge", "--all", "--dry-run", "--yes"], 69, "fieldpost outbox inspect"),
        (&["outbox", "replay", "--all", "--dry-run"], 69, "fieldpost outbox export"),
        // Here is no terminal to ask on.
        (&["outbox", "purge", "--all"], 2, "--yes"),
        (&["outbox", "purge", "--before", "2200-01-01T00:00:00Z", "--yes"], 2, "is in the future"),
    ] {
        let run = place.run(arguments);
        assert_eq!(run.code, Some(code), "{arguments:?}: {}{}", run.text(), run.err);
        assert!(run.err.contains(told), "{}", run.err);
        assert!(tree(&place.path("state")) == before, "{arguments:?} changed something");
    }
}
