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
fn without_a_daemon_a_dry_run_tells_from_the_files_and_changes_no_byte() {
    let place = Place::new();
    let mut filler = place.open();
    for _ in 0..40 {
        filler.append(60, 1500);
        filler.append_of("noise");
    }
    filler.outbox.sync_position().unwrap();
    filler.outbox.close(PATIENCE);
    let before = tree(&place.path("state"));
    let unchanged = |what: &str| assert!(tree(&place.path("state")) == before, "{what} changed something");

    // The same as a daemon says, to the last number.
    let questions: [&[&str]; 4] = [
        &["purge", "--source", "noise"],
        &["purge", "--from", "100", "--to", "1999"],
        &["purge", "--all"],
        &["replay", "--all"],
    ];
    let ask = |question: &[&str]| {
        let run = place.run(&[&["outbox"], question, &["--dry-run", "--json"]].concat());
        assert_eq!(run.code, Some(0), "{question:?}: {}{}", run.text(), run.err);
        let mut told = run.json();
        // What a database takes on disk changes when it is opened, and a start makes one.
        for size in ["freed_bytes", "room_bytes"] {
            told.as_object_mut().unwrap().remove(size);
        }
        told
    };
    let by_files = questions.map(ask);
    unchanged("a dry run");
    let [of_noise, of_range, all, replay] = &by_files;
    assert_eq!((&of_noise["readings"], &of_noise["sources"]["noise"]), (&40.into(), &40.into()), "{of_noise:#}");
    assert_eq!((&of_range["readings"], &all["readings"]), (&1900.into(), &2440.into()));
    assert_eq!(replay["readings"], 0, "nothing is delivered: {replay:#}");
    for (arguments, code, told) in [
        // Here is no terminal to ask on.
        (&["outbox", "purge", "--all"][..], 2, "--yes"),
        (&["outbox", "purge", "--before", "2200-01-01T00:00:00Z", "--yes"], 2, "is in the future"),
        (&["outbox", "purge", "--from", "9", "--to", "3", "--dry-run"], 2, "ends before it begins"),
    ] {
        let run = place.run(arguments);
        assert_eq!(run.code, Some(code), "{arguments:?}: {}{}", run.text(), run.err);
        assert!(run.err.contains(told), "{}", run.err);
        unchanged(told);
    }
    copied(&place);
    {
        let _daemon = place.daemon();
        for (question, by_files) in questions.iter().zip(&by_files) {
            assert_eq!(&ask(question), by_files, "{question:?}");
        }
    }
    // And what it says is what is done.
    let run = place.run(&["outbox", "purge", "--source", "noise", "--yes", "--json", "--set", "agent.state_dir=copy"]);
    assert_eq!((run.code, &run.json()["readings"]), (Some(0), &of_noise["readings"]), "{}", run.err);
}

#[test]
fn what_cannot_be_read_has_an_exit_code_with_and_without_a_daemon() {
    let place = Place::new();
    let mut filler = place.open();
    for _ in 0..30 {
        filler.append(1000, 1500);
        filler.append_of("noise");
    }
    filler.outbox.close(PATIENCE);
    let mut generations: Vec<_> = std::fs::read_dir(place.path("state/outbox"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("db").exists())
        .collect();
    generations.sort();
    assert!(generations.len() >= 3, "{generations:?}");
    std::fs::remove_file(generations[1].join("conf")).unwrap();
    let name = generations[1].file_name().unwrap().to_str().unwrap();
    let check = |how: &str| {
        let run = place.run(&["outbox", "purge", "--source", "noise", "--dry-run", "--json"]);
        assert_eq!(run.code, Some(1), "{how}: {}{}", run.text(), run.err);
        let told = run.json();
        let left = &told["left"][0];
        assert_eq!(left["cause"], "unreadable", "{how}: {told:#}");
        assert!(left["why"].as_str().unwrap().contains(name), "{how}: {told:#}");
        assert!(run.err.contains("cannot be read") && run.err.contains("fieldpost outbox verify"), "{}", run.err);
        let run = place.run(&["outbox", "purge", "--from", "1", "--to", "29999", "--dry-run"]);
        assert_eq!(run.code, Some(0), "{how}: {}{}", run.text(), run.err);
        told["readings"].as_u64().unwrap()
    };
    let by_files = check("without a daemon");
    let by_daemon = {
        let _daemon = place.daemon();
        check("beside a daemon")
    };
    assert!(by_files > 0 && by_files == by_daemon, "{by_files} {by_daemon}");
}
