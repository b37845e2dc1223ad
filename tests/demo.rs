//! The commands that people try first, as they run them: the demonstration from beginning to end, its end by a signal, and
//! the simulated devices against a real broker.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use fieldpost::demo::brokers::{Mosquitto, MosquittoOptions};
use rustix::process::{Pid, Signal, kill_process};

fn fieldpost(temporary: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldpost"));
    command.args(arguments).env("TMPDIR", temporary).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `a=1 b=2` as numbers by name.
fn figures(line: &str) -> BTreeMap<&str, u64> {
    let pairs = line.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, number)| (name, number.parse().unwrap())).collect()
}

/// Processes whose command line names this directory.
fn processes_in(directory: &Path) -> Vec<String> {
    let name = directory.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
            let line = text(&line).replace('\0', " ");
            if line.contains(&name) {
                found.push(line);
            }
        }
    }
    found
}

fn assert_left_nothing(directory: &Path, output: &Output) {
    let left = processes_in(directory);
    assert!(left.is_empty(), "still running: {left:#?}\n{}", text(&output.stderr));
    let files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.is_empty(), "left behind: {files:#?}");
}

#[test]
fn the_demonstration_loses_doubles_and_reorders_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let output = fieldpost(directory.path(), &["demo", "--seconds", "5", "--rate", "300"]).wait_with_output().unwrap();
    let (out, story) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{story}\n{out}");
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("result: issued="), "{out}");
    let figures = figures(last);
    assert!(figures["acknowledged"] > 0 && figures["delivered"] >= figures["acknowledged"], "{last}");
    assert!(figures["issued"] >= figures["delivered"], "{last}");
    for fault in ["lost", "duplicated", "reordered"] {
        assert_eq!(figures[fault], 0, "{out}");
    }
    for act in ["Kafka is gone", "kill -9 of the daemon, Kafka still gone", "middle of the catch-up", "caught up"] {
        assert!(story.contains(act), "{act} is missing in:\n{story}");
    }
    assert_left_nothing(directory.path(), &output);
}

#[test]
fn the_demonstration_cleans_up_when_it_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = fieldpost(directory.path(), &["demo"]);
    let mut story = BufReader::new(child.stderr.take().unwrap()).lines();
    let begun = story.by_ref().map_while(Result::ok).any(|line| line.contains("normal flow"));
    assert!(begun, "it ended before the first act");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let rest: Vec<_> = story.map_while(Result::ok).collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{rest:#?}");
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:#?}");
    assert_left_nothing(directory.path(), &output);
}

#[test]
fn simulated_devices_are_acknowledged_by_a_real_broker_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start(directory.path(), &MosquittoOptions::default()).unwrap();
    for qos in ["1", "2"] {
        let arguments = ["simulate", "--mqtt", &broker.url(), "--count", "500", "--rate", "0", "--qos", qos, "--json"];
        let output = fieldpost(directory.path(), &arguments).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&summary["issued"], &summary["acknowledged"]), (&500.into(), &500.into()), "QoS {qos}");
    }
}

#[test]
fn a_fleet_publishes_again_what_a_broker_that_died_had_not_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Mosquitto::start(directory.path(), &MosquittoOptions::default()).unwrap();
    let arguments = ["simulate", "--mqtt", &broker.url(), "--for", "4s", "--rate", "1000", "--json"];
    let fleet = fieldpost(directory.path(), &arguments);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    broker.kill().unwrap();
    broker.start_again().unwrap();
    let output = fleet.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["issued"], summary["acknowledged"], "{summary}");
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let output = fieldpost(directory.path(), &["simulate", "--mqtt", "mqtt://user:secret@127.0.0.1:1"]);
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let told = text(&output.stderr);
    assert!(told.contains("mqtt://127.0.0.1:1") && !told.contains("secret"), "{told}");
}
