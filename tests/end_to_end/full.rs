//! Kafka is away until the outbox is full: what each policy does then, and that all of it is told.

use fieldpost::demo::brokers::{Mosquitto, MosquittoOptions};

use crate::harness::agent::get;
use crate::harness::proxy::Proxy;
use crate::harness::publisher::Publisher;
use crate::harness::rig::{Rig, devices};
use crate::harness::wait_for;

const OUTBOX_BYTES: u64 = 8 << 20;

/// A daemon that cannot reach Kafka, with the smallest outbox there is.
fn cut_off(name: &str, policy: &str) -> (Rig, Proxy, Mosquitto, Publisher) {
    let (mut rig, proxy) = Rig::proxied(name);
    proxy.refuse(true);
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.outbox = format!("max_bytes = \"8MiB\"\nwhen_full = \"{policy}\"\ncompression = \"none\"");
    rig.agent.expect_warnings(&["fieldpost::delivery", "fieldpost::kafka", "librdkafka", "outbox"]);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.bytes = 2000;
    (rig, proxy, mosquitto, publisher)
}

fn assert_within_its_limit(rig: &mut Rig) {
    let status = rig.agent.status();
    assert!(status["outbox"]["bytes"].as_u64().unwrap() <= OUTBOX_BYTES, "{status:#}");
    let on_disk = disk_bytes(&rig.agent.state_dir());
    assert!(on_disk <= OUTBOX_BYTES, "{on_disk} bytes on disk: {status:#}");
}

/// Blocks in use, of all files below a directory.
fn disk_bytes(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[test]
fn block_takes_no_more_and_loses_nothing() {
    let (mut rig, proxy, _mosquitto, mut publisher) = cut_off("full_block", "block");
    publisher.publish(&devices(5), 1, 10_000);
    rig.agent.wait_status("the source to be held", |status| status["sources"]["plant"]["state"] == "held");
    assert_within_its_limit(&mut rig);
    // Full, killed, and still full.
    rig.agent.kill();
    rig.agent.start();
    rig.agent.wait_status("the source to be held again", |status| status["sources"]["plant"]["state"] == "held");
    assert_within_its_limit(&mut rig);
    proxy.refuse(false);
    rig.finish(&mut publisher);
}

#[test]
fn drop_oldest_keeps_the_newest_and_names_what_it_dropped() {
    let (mut rig, proxy, _mosquitto, mut publisher) = cut_off("full_drop_oldest", "drop_oldest");
    publisher.publish(&devices(5), 1, 10_000);
    rig.wait_accepted("plant", 10_000);
    assert_within_its_limit(&mut rig);
    let dropped = rig.agent.status()["outbox"]["dropped"].as_u64().unwrap();
    assert!(dropped > 0);
    proxy.refuse(false);
    rig.agent.wait_drained();
    let tally = rig.tally();
    eprintln!("{tally}");
    tally.assert_sound();
    assert_eq!(tally.lost.len() as u64, tally.gap_readings("drop_oldest"), "every dropped reading is named: {tally}");
    assert_eq!(tally.delivered + tally.lost.len() as u64, 10_000, "{tally}");
    assert!(tally.lost.iter().all(|lost| !lost.ends_with("/1999")), "the newest of each device is there: {tally}");
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

#[test]
fn drop_newest_refuses_and_counts() {
    let (mut rig, proxy, _mosquitto, mut publisher) = cut_off("full_drop_newest", "drop_newest");
    publisher.publish(&devices(5), 1, 10_000);
    let status = rig.agent.wait_status("all messages to be answered and counted", |status| {
        let (source, dropped) = (&status["sources"]["plant"], status["outbox"]["dropped"].as_u64().unwrap());
        source["acknowledged"] == 10_000 && source["accepted"].as_u64().unwrap() + dropped == 10_000
    });
    assert_within_its_limit(&mut rig);
    let dropped = status["outbox"]["dropped"].as_u64().unwrap();
    assert!(dropped > 0, "{status:#}");
    proxy.refuse(false);
    // The gap record comes when there is room for it.
    let tally = wait_for("the gap record", || {
        rig.agent.wait_drained();
        Some(rig.tally()).filter(|tally| tally.gap_count("drop_newest") > 0)
    });
    eprintln!("{tally}");
    tally.assert_sound();
    assert_eq!(tally.lost.len() as u64, dropped, "{tally}");
    assert_eq!(tally.gap_count("drop_newest"), dropped, "{tally}");
    assert!(tally.lost.iter().all(|lost| !lost.ends_with("/0")), "the oldest of each device is there: {tally}");
    publisher.publish_fresh("fresh");
    wait_for("the fresh reading", || {
        rig.agent.wait_drained();
        rig.tally().lost.iter().all(|lost| !lost.starts_with("fresh")).then_some(())
    });
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

/// One source that chatters and one that does not, Kafka away.
fn chatter(name: &str, policy: &str) -> (Rig, Proxy, [Mosquitto; 2], [Publisher; 2]) {
    let (mut rig, proxy) = Rig::proxied(name);
    proxy.refuse(true);
    let brokers = ["loud", "quiet"].map(|source| {
        Mosquitto::start(&rig.path().join(source), &MosquittoOptions::default())
            .unwrap_or_else(|error| panic!("{error}"))
    });
    rig.mqtt_source("loud", brokers[0].port(), 1, "share_max = \"30%\"");
    rig.mqtt_source("quiet", brokers[1].port(), 1, "");
    rig.outbox =
        format!("max_bytes = \"8MiB\"\nwhen_full = \"{policy}\"\ncompression = \"none\"\nheld_bytes_max = \"4MiB\"");
    rig.agent.expect_warnings(&[
        "fieldpost::delivery",
        "fieldpost::kafka",
        "librdkafka",
        "outbox",
        "fieldpost::intake",
    ]);
    rig.start();
    let publishers = [("loud", 0), ("quiet", 1)].map(|(name, at)| {
        let mut publisher = rig.publisher(name, brokers[at].port());
        publisher.bytes = 2000;
        publisher
    });
    (rig, proxy, brokers, publishers)
}

#[test]
fn a_chattering_source_waits_at_its_share_and_the_quiet_one_goes_on() {
    let (mut rig, proxy, _brokers, [mut loud, mut quiet]) = chatter("share_block", "block");
    loud.publish(&devices(5), 1, 6_000);
    rig.agent.wait_status("loud to be outside", |status| status["sources"]["loud"]["outside"] == "share_max");
    quiet.publish(&["quiet".to_owned()], 1, 200);
    rig.wait_accepted("quiet", 200);
    let status = rig.agent.status();
    assert_eq!(status["outbox"]["state"], "ok", "{status:#}");
    assert!(status["sources"]["loud"]["accepted"].as_u64().unwrap() < 3_000, "{status:#}");
    assert_within_its_limit(&mut rig);
    proxy.refuse(false);
    rig.finish(&mut loud);
}

#[test]
fn a_chattering_source_is_refused_above_its_share_and_the_quiet_one_loses_nothing() {
    let (mut rig, proxy, _brokers, [mut loud, mut quiet]) = chatter("share_drop", "drop_oldest");
    loud.publish(&devices(5), 1, 6_000);
    rig.agent.wait_status("all of loud to be answered", |status| status["sources"]["loud"]["acknowledged"] == 6_000);
    quiet.publish(&["quiet".to_owned()], 1, 200);
    rig.wait_accepted("quiet", 200);
    let status = rig.agent.status();
    let accepted = status["sources"]["loud"]["accepted"].as_u64().unwrap();
    assert!(accepted < 3_000, "{status:#}");
    assert_within_its_limit(&mut rig);
    proxy.refuse(false);
    let tally = wait_for("the gap record", || {
        rig.agent.wait_drained();
        Some(rig.tally()).filter(|tally| tally.gap_count("share_max") == 6_000 - accepted)
    });
    eprintln!("{tally}");
    tally.assert_sound();
    assert_eq!(tally.lost.len() as u64, 6_000 - accepted, "{tally}");
    assert!(tally.lost.iter().all(|lost| !lost.starts_with("quiet")), "{tally}");
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

#[test]
fn a_small_disk_that_is_full_to_the_last_byte_drains_and_goes_on() {
    let (mut rig, proxy) = Rig::proxied("full_disk");
    proxy.refuse(true);
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.outbox =
        "max_bytes = \"64MiB\"\nfree_space_floor = \"0B\"\ncompression = \"none\"\nheld_bytes_max = \"4MiB\"".into();
    rig.agent.small_disk_mib = Some(24);
    rig.agent.expect_warnings(&[
        "fieldpost::delivery",
        "fieldpost::kafka",
        "librdkafka",
        "outbox",
        "fieldpost::intake",
    ]);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.bytes = 2000;
    publisher.publish(&devices(5), 1, 10_000);
    let full = |status: &serde_json::Value| status["outbox"]["state"].as_str().is_some_and(|s| s.starts_with("full: "));
    rig.agent.wait_status("the disk to be full", full);
    rig.agent.wait_status("the source to be held", |status| status["sources"]["plant"]["state"] == "held");
    // Somebody else takes what is left.
    let state_dir = rig.agent.state_dir_inside();
    let disk = rustix::fs::statvfs(&state_dir).unwrap();
    assert_eq!(disk.f_blocks * disk.f_frsize, 24 << 20, "{} is the disk of the daemon alone", state_dir.display());
    let mut other = std::fs::File::create(state_dir.join("somebody-elses-file")).unwrap();
    let taken = (0..24 << 8).take_while(|_| std::io::Write::write_all(&mut other, &[0x5a; 4096]).is_ok()).count();
    assert!(taken < 24 << 8, "the disk is full");
    let health = get(rig.agent.http_port(), "/healthz").map(|(code, _)| code);
    assert_eq!(health, Some(200), "it does as it is told");
    proxy.refuse(false);
    rig.settle().assert_clean();
    std::fs::remove_file(state_dir.join("somebody-elses-file")).unwrap();
    rig.agent.wait_status("the outbox to be well", |status| status["outbox"]["state"] == "ok");
    assert!(state_dir.join("outbox/reserve").exists(), "the reserve is back");
    rig.finish(&mut publisher);
}
