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
