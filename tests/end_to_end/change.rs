//! What the owner changes: readings given up while Kafka is away, delivered ones sent again, and kills in the middle of both.
//! Whatever happens, every sequence is accounted for by a reading or a gap record, and others lose nothing.

use std::process::Stdio;
use std::time::Duration;

use fieldpost::demo::brokers::MosquittoOptions;
use serde_json::Value;

use crate::harness::Random;
use crate::harness::agent::Agent;
use crate::harness::oracle::Tally;
use crate::harness::rig::{Rig, devices};

fn outbox(agent: &Agent, arguments: &[&str]) -> Value {
    let output = agent.command(&[&["outbox"], arguments, &["--json"]].concat()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    // 75: what may be in doubt stays. Without a report it fails below.
    assert!(matches!(output.status.code(), Some(0 | 75)), "{arguments:?}: {} {err}", output.status);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn readings(report: &Value) -> u64 {
    report["readings"].as_u64().unwrap()
}

/// Everything lost is named by a gap record of the reason `purge`, and nothing else is.
fn assert_purged(tally: &Tally, purged: u64) {
    eprintln!("{tally}");
    tally.assert_sound();
    assert_eq!(tally.lost.len() as u64, purged, "{tally}");
    assert_eq!(tally.gap_readings("purge"), purged, "{tally}");
    assert!(tally.gaps.iter().all(|gap| gap.reason == "purge"), "{tally}");
}

#[test]
fn readings_given_up_while_kafka_is_away_are_named_and_others_lose_nothing() {
    let (mut rig, proxy) = Rig::proxied("change_purge");
    proxy.refuse(true);
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    let line = rig.serial_source("meter", "");
    rig.outbox = "max_bytes = \"32MiB\"\ncompression = \"none\"".to_owned();
    rig.agent.expect_warnings(&["fieldpost::delivery", "fieldpost::kafka", "librdkafka"]);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.bytes = 1500;
    let mut meter = rig.meter(&line, "meter");
    let mut accepted = 0;
    let mut fill = |rig: &mut Rig, publisher: &mut crate::harness::publisher::Publisher| {
        for _ in 0..10 {
            publisher.publish(&devices(5), 1, 200);
            meter.send(100);
        }
        accepted += 2000;
        rig.wait_accepted("plant", accepted);
        rig.wait_accepted("meter", accepted / 2);
    };

    fill(&mut rig, &mut publisher);
    let would = outbox(&rig.agent, &["purge", "--source", "meter", "--dry-run"]);
    let of_meter = outbox(&rig.agent, &["purge", "--source", "meter", "--yes"]);
    assert_eq!((readings(&would), readings(&of_meter)), (1000, 1000), "{of_meter:#}");
    let range = outbox(&rig.agent, &["purge", "--from", "101", "--to", "600", "--yes"]);
    assert!(readings(&range) > 200 && readings(&range) < 500, "those of the meter are given up already: {range:#}");
    std::thread::sleep(Duration::from_millis(1200));
    fill(&mut rig, &mut publisher);
    // What the second round brought is younger than what the first one did.
    let status = rig.agent.status();
    assert_eq!(status["outbox"]["durable"], 6000, "{status:#}");
    let old = outbox(&rig.agent, &["purge", "--older-than", "1s", "--source", "plant", "--yes"]);
    let all_old = 2000 - readings(&range);
    assert!(readings(&old) >= all_old, "{old:#}");
    let purged = [&of_meter, &range, &old].map(readings).iter().sum();
    assert_eq!(rig.agent.status()["outbox"]["dropped"], purged);
    proxy.refuse(false);
    rig.agent.wait_drained();
    let tally = rig.tally();
    assert_purged(&tally, purged);
    let lost_of_meter = tally.lost.iter().filter(|lost| lost.starts_with("meter/")).count() as u64;
    assert_eq!(lost_of_meter, 1000, "what came after the purge was not meant: {tally}");
    // As few gap records as there are batches, not as many as there are readings.
    assert!(tally.gaps.len() < 50, "{}", tally.gaps.len());

    publisher.publish_fresh("fresh");
    rig.agent.wait_drained();
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

#[test]
fn a_kill_in_the_middle_of_a_purge_leaves_a_log_in_which_everything_is_accounted_for() {
    let (mut rig, proxy) = Rig::proxied("change_purge_kill");
    proxy.refuse(true);
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    let line = rig.serial_source("meter", "");
    rig.outbox = "max_bytes = \"32MiB\"\ncompression = \"none\"".to_owned();
    rig.agent.expect_warnings(&["fieldpost::delivery", "fieldpost::kafka", "librdkafka"]);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.bytes = 2000;
    let mut meter = rig.meter(&line, "meter");
    for _ in 0..20 {
        publisher.publish(&devices(5), 1, 350);
        meter.send(20);
    }
    rig.wait_accepted("plant", 7000);
    let mut random = Random::new("purge kill");
    for (round, selection) in
        ["--source=plant --to=3000", "--from=2000 --to=5000", "--source=plant"].into_iter().cycle().take(9).enumerate()
    {
        let mut arguments = vec!["outbox", "purge", "--yes"];
        arguments.extend(selection.split(' '));
        let mut asking = rig.agent.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The command itself takes a while to ask.
        std::thread::sleep(random.millis(round as u64, 80));
        rig.agent.kill();
        let end = asking.wait().unwrap();
        eprintln!("round {round}, {selection}: the command ended with {end}");
        rig.agent.start();
    }
    // Whatever of it was done holds, and the rest can be done now.
    let rest = outbox(&rig.agent, &["purge", "--source", "plant", "--yes"]);
    eprintln!("left to the last one: {}", readings(&rest));
    proxy.refuse(false);
    rig.agent.wait_drained();
    let tally = rig.tally();
    eprintln!("{tally}");
    tally.assert_sound();
    let lost_of_plant = tally.lost.iter().filter(|lost| !lost.starts_with("meter/")).count();
    assert_eq!(lost_of_plant, 7000, "{tally}");
    // Of the meter only what the range named; a purge of everything in it may have been cut short.
    assert_eq!(tally.gap_readings("purge"), tally.lost.len() as u64, "{tally}");
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

#[test]
fn what_is_kept_is_sent_again_as_new_readings_that_name_their_origin() {
    let mut rig = Rig::new("change_replay");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.outbox = "max_bytes = \"64MiB\"\nretain = \"32MiB\"\ncompression = \"none\"".to_owned();
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.bytes = 2000;
    publisher.publish(&devices(5), 1, 4000);
    rig.wait_accepted("plant", 4000);
    rig.agent.wait_drained();

    let report = outbox(&rig.agent, &["replay", "--from", "101", "--to", "600"]);
    assert_eq!((readings(&report), &report["reached"]), (500, &Value::from(600)), "{report:#}");
    rig.agent.wait_drained();
    let tally = rig.tally();
    tally.assert_clean();
    let mut origins: Vec<u64> = tally.replays.iter().map(|replay| sequence_of(&replay.origin)).collect();
    origins.sort_unstable();
    assert_eq!(origins, (101..=600).collect::<Vec<_>>());

    // Killed in the middle, and gone on with from where it was.
    let mut random = Random::new("replay kill");
    for round in 0..4 {
        let arguments = ["outbox", "replay", "--from", "601", "--to", "4000"];
        let mut asking = rig.agent.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(random.millis(10 * round, 120));
        rig.agent.kill();
        let end = asking.wait().unwrap();
        rig.agent.start();
        rig.agent.wait_drained();
        let tally = rig.tally();
        eprintln!("round {round}: the command ended with {end}, copies: {}", tally.replays.len());
        tally.assert_clean();
        let copies: Vec<u64> = tally.replays.iter().map(|replay| sequence_of(&replay.origin)).collect();
        assert!(copies.iter().all(|origin| (101..=4000).contains(origin)), "{copies:?}");
    }
    publisher.publish_fresh("fresh");
    rig.settle().assert_clean();
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

/// The number at the end of a `ce_id`.
fn sequence_of(ce_id: &str) -> u64 {
    ce_id.rsplit('/').next().unwrap().parse().unwrap()
}
