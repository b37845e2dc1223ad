//! What is sent, configured or plugged in wrongly: a clear error or a visible record, and nothing accepted is lost.

use std::os::unix::fs::PermissionsExt;

use fieldpost::demo::brokers::process::Signal;
use fieldpost::demo::brokers::{MosquittoOptions, free_port};

use crate::harness::meter::Meter;
use crate::harness::rig::{Rig, devices};
use crate::harness::{Random, wait_for};

fn garbage(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.next() as u8).collect()
}

#[test]
fn garbage_on_every_input_becomes_records_and_harms_no_one() {
    let mut rig = Rig::new("garbage");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    let decode = "body = \"raw\"\ndecode = { format = \"json\" }";
    rig.mqtt_source("plant", mosquitto.port(), 1, decode);
    let line = rig.serial_source("meter", "body = \"raw\"\ndecode = { format = \"json\" }\nframe_bytes_max = \"4KiB\"");
    rig.agent.expect_warnings(&["frame", "decode", "json", "rejected", "longer"]);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    let mut meter = rig.meter(&line, "meter");
    let mut random = Random::new("garbage");
    let mut published = 0;
    for round in 0..30u64 {
        publisher.publish(&devices(3), 1, 20);
        meter.send(20);
        let length = random.within(0, 3000) as usize;
        publisher.publish_raw(&format!("plant/g{round}/telemetry"), &garbage(&mut random, length));
        published += 1;
        // Frames of noise, some of them too long, and the line ends in order.
        let mut noise = garbage(&mut random, 200 + 300 * round as usize);
        noise.push(b'\n');
        line.lock().unwrap().write(&noise);
    }
    meter.send(100);
    let tally = rig.settle();
    tally.assert_sound();
    assert!(tally.lost.is_empty(), "{tally}");
    let from_mqtt = tally.foreign.iter().filter(|record| record.key.starts_with(b"g")).count();
    let dead = tally.dead_letters.iter().filter(|record| record.key.starts_with(b"g")).count();
    assert_eq!(from_mqtt + dead, published, "each bad payload is somewhere to be seen: {tally}");
    let marked = |record: &&crate::harness::kafka::Record| record.headers.contains_key("fp_quality");
    assert!(tally.foreign.iter().filter(marked).count() >= published, "and marked as bad: {tally}");
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

#[test]
fn a_record_above_the_limit_is_a_dead_letter_whole_and_the_next_ones_flow() {
    const LIMIT: usize = 64 << 10;
    let mut rig = Rig::new("oversize");
    rig.outbox = "record_bytes_max = \"64KiB\"".to_owned();
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "packet_bytes_max = \"4MiB\"");
    let line = rig.serial_source("meter", "frame_bytes_max = \"256KiB\"");
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    let mut meter = rig.meter(&line, "meter");
    let mut random = Random::new("oversize");
    publisher.publish(&devices(3), 1, 20);
    meter.send(20);
    // What Kafka counts besides the value is told by the first that is refused.
    let mut published = vec![garbage(&mut random, LIMIT)];
    publisher.publish_raw("plant/big/telemetry", &published[0]);
    let text = wait_for("the first dead letter", || rig.tally().dead_letters.first()?.header("fp_error_text"));
    let counted: usize = text.split(' ').next().unwrap().parse().unwrap();
    let most = LIMIT - (counted - LIMIT);
    // A time stamp may be some digits longer or shorter. To the byte: the unit tests of `poison` and `mapping`.
    for bytes in [most - 8, most + 8, 900_000, 1_200_000] {
        published.push(garbage(&mut random, bytes));
        publisher.publish_raw("plant/big/telemetry", published.last().unwrap());
    }
    let frame = vec![b'7'; LIMIT + 1000];
    line.lock().unwrap().write(&[&frame[..], b"\n"].concat());
    meter.send(20);
    publisher.publish(&devices(3), 1, 20);
    wait_for("the frame and all messages to be told", || (rig.tally().dead_letters.len() >= 5).then_some(()));
    let tally = rig.settle();
    tally.assert_sound();
    assert!(tally.lost.is_empty(), "{tally}");
    let whole: Vec<_> = tally.foreign.iter().filter(|record| record.key == b"big").collect();
    assert_eq!(whole.len(), 1, "a record at the limit is an ordinary one: {tally}");
    assert!(whole[0].value == published[1]);

    assert_eq!(tally.dead_letters.len(), 5, "{tally}");
    let mut sequences = Vec::new();
    for record in &tally.dead_letters {
        assert_eq!(record.header("fp_error").as_deref(), Some("size"));
        assert!(record.header("fp_error_text").unwrap().contains("outbox.record_bytes_max"));
        assert_eq!(record.header("fp_origin_topic").as_ref(), Some(&rig.topics.data[0]));
        let id = record.header("ce_id").unwrap();
        sequences.push(id.rsplit('/').next().unwrap().parse::<u64>().unwrap());
    }
    sequences.sort_unstable();
    sequences.dedup();
    assert_eq!(sequences.len(), 5, "each has its own sequence");
    let of = |key: &[u8]| tally.dead_letters.iter().filter(|record| record.key == key).collect::<Vec<_>>();
    assert!(of(b"meter")[0].value == frame);
    let big = of(b"big");
    let topic_has = [&published[0], &published[2], &published[3]];
    assert!(big.iter().zip(topic_has).all(|(record, payload)| record.value == *payload), "what the topic takes");
    // The last is above what Kafka is asked to take in one record: its bytes stay on the gateway, the topic says where.
    let file = rig.agent.state_dir().join("outbox").join(big[3].header("fp_local_file").unwrap());
    let kept = std::fs::read(file).unwrap();
    assert!(big[3].value.is_empty() && kept.ends_with(&published[4]));
    let head = kept.split(|byte| *byte == b'\n').next().unwrap();
    let head: serde_json::Value = serde_json::from_slice(head).unwrap();
    assert_eq!((&head["v"], &head["error"], &head["value_bytes"]), (&1.into(), &"size".into(), &1_200_000.into()));
    rig.agent.stop();
}

#[test]
fn a_device_is_missing_then_comes_is_unplugged_and_comes_back() {
    let mut rig = Rig::new("unplugged");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    let line = rig.serial_source("meter", "");
    line.lock().unwrap().unplug();
    rig.agent.expect_warnings(&["serial", "meter"]);
    rig.write_config();
    rig.agent.start();
    let is_down = |status: &serde_json::Value| {
        let source = &status["sources"]["meter"];
        source["state"] != "up" && source["last_error"].is_string()
    };
    let status = rig.agent.wait_status("the missing device to be told", is_down);
    let path = line.lock().unwrap().path().display().to_string();
    let told = status["sources"]["meter"]["last_error"].as_str().unwrap().to_owned();
    assert!(told.contains(&path) || rig.agent.log().contains(&path), "{told}");
    let mut meter: Meter = rig.meter(&line, "meter");
    let mut publisher = rig.publisher("p", mosquitto.port());
    for _ in 0..3 {
        line.lock().unwrap().plug_in();
        rig.agent.wait_sources_up();
        meter.send(300);
        publisher.publish(&devices(3), 1, 100);
        line.lock().unwrap().unplug();
        rig.agent.wait_status("the unplugged device to be noticed", is_down);
    }
    line.lock().unwrap().plug_in();
    rig.agent.wait_sources_up();
    meter.send(200);
    rig.finish(&mut publisher);
}

#[test]
fn unreachable_hosts_and_wrong_credentials_are_told_and_cured_by_themselves() {
    let mut rig = Rig::new("unreachable");
    let users = vec![("gw".to_owned(), "right".to_owned())];
    let mosquitto = rig.mosquitto(&MosquittoOptions { users, ..MosquittoOptions::default() });
    let password = rig.path().join("password");
    std::fs::write(&password, "wrong").unwrap();
    rig.mqtt_source("plant", mosquitto.port(), 1, &format!("username = \"gw\"\npassword_file = {password:?}"));
    rig.mqtt_source("nowhere", free_port().unwrap(), 1, "");
    rig.agent.expect_warnings(&["plant", "nowhere"]);
    rig.write_config();
    rig.agent.start();
    let error = |status: &serde_json::Value, source: &str| {
        status["sources"][source]["last_error"].as_str().unwrap_or_default().to_lowercase()
    };
    let status = rig.agent.wait_status("both errors to be told", |status| {
        !error(status, "plant").is_empty() && !error(status, "nowhere").is_empty()
    });
    let refused = error(&status, "plant");
    assert!(refused.contains("auth") || refused.contains("password"), "{refused}");
    assert!(error(&status, "nowhere").contains("refused"), "{status:#}");
    assert!(!rig.agent.log().contains("wrong"), "the password is in the log");
    // The file is read again at each connect.
    std::fs::write(&password, "right").unwrap();
    rig.agent.wait_status("the source to come up", |status| status["sources"]["plant"]["state"] == "up");
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.login = Some(("gw".to_owned(), "right".to_owned()));
    publisher.publish(&devices(3), 1, 100);
    rig.finish(&mut publisher);
}

#[test]
fn a_state_directory_that_cannot_be_used_ends_the_daemon_with_its_name() {
    let mut rig = Rig::new("unwritable");
    let line = rig.serial_source("meter", "");
    // A file in its place: root may write anywhere, but not below a file.
    std::fs::write(rig.agent.state_dir(), "").unwrap();
    rig.write_config();
    rig.agent.launch();
    let end = rig.agent.wait_end();
    let log = rig.agent.log();
    assert_eq!(end.code(), Some(74), "{log}");
    assert!(log.contains(&rig.agent.state_dir().display().to_string()), "{log}");
    drop(line);
}

#[test]
fn a_wrong_configuration_ends_the_daemon_with_every_mistake() {
    let mut rig = Rig::new("misconfigured");
    rig.outbox = "max_byte = \"64MiB\"\nwhen_full = \"explode\"".to_owned();
    rig.delivery = "max_wait = 5".to_owned();
    rig.write_config();
    rig.agent.launch();
    let end = rig.agent.wait_end();
    let log = rig.agent.log();
    assert_eq!(end.code(), Some(78), "{log}");
    for text in ["max_byte", "max_bytes", "explode", "drop_oldest", "max_wait", "fieldpost.toml"] {
        assert!(log.contains(text), "{text} is not in:\n{log}");
    }
}

#[test]
fn a_reload_takes_a_good_configuration_and_refuses_a_bad_one() {
    let mut rig = Rig::new("reload");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.agent.expect_warnings(&["no_such_key", "configuration", "reload"]);
    rig.start();
    let pid = rig.agent.pid();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.publish(&devices(3), 1, 100);

    let good = rig.config_text();
    std::fs::write(rig.agent.config_path(), good.replace("[outbox]\n", "[outbox]\nno_such_key = 1\n")).unwrap();
    rig.agent.signal(Signal::HUP);
    rig.agent.wait_log("no_such_key");
    publisher.publish(&devices(3), 1, 100);

    let line = rig.serial_source("meter", "");
    rig.write_config();
    rig.agent.signal(Signal::HUP);
    rig.agent.wait_status("the new source to be up", |status| status["sources"]["meter"]["state"] == "up");
    let mut meter = rig.meter(&line, "meter");
    meter.send(100);
    publisher.publish(&devices(3), 1, 100);
    assert_eq!(rig.agent.pid(), pid);

    // A source that is taken out ends; the other one lives on.
    let all = rig.config_text();
    let without = all.split("[sources.meter]").next().unwrap();
    std::fs::write(rig.agent.config_path(), without).unwrap();
    rig.agent.signal(Signal::HUP);
    rig.agent.wait_status("the source to be gone", |status| {
        let meter = &status["sources"]["meter"];
        meter.is_null() || meter["state"] == "stopped"
    });
    rig.finish(&mut publisher);
}

#[test]
fn the_endpoints_answer_and_the_state_directory_is_private() {
    let mut rig = Rig::new("endpoints");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.start();
    let port = rig.agent.http_port();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.publish(&devices(3), 1, 100);
    rig.wait_accepted("plant", 100);
    let ask = |path: &str| crate::harness::agent::get(port, path).unwrap();
    assert_eq!(ask("/healthz").0, 200);
    wait_for("/readyz", || (ask("/readyz").0 == 200).then_some(()));
    assert_eq!(ask("/nothing").0, 404);
    let (code, metrics) = ask("/metrics");
    assert_eq!(code, 200);
    for text in ["fieldpost_source_accepted_total{source=\"plant\"} 100", "fieldpost_outbox_records", "# EOF"] {
        assert!(metrics.contains(text), "{text} is not in:\n{metrics}");
    }
    let mode = std::fs::metadata(rig.agent.state_dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "others may look into the state directory");
    rig.finish(&mut publisher);
}
