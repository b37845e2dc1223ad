//! Nothing goes wrong: every kind of source arrives.

use fieldpost::demo::brokers::MosquittoOptions;
use fieldpost::demo::brokers::mosquitto::MosquittoTls;
use serde_json::json;

use crate::harness::kafka::read_all;
use crate::harness::rig::{Rig, devices};
use crate::harness::tls::Certificates;

fn every_quality_of_service_and_a_serial_line(name: &str, more: &str) {
    let mut rig = Rig::new(name);
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 2, more);
    let line = rig.serial_source("meter", "");
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    let mut meter = rig.meter(&line, "meter");
    for qos in [2, 1, 0, 1, 2] {
        publisher.publish(&devices(7), qos, 200);
        meter.send(150);
    }
    rig.finish(&mut publisher);
}

#[test]
fn mqtt_5_and_serial() {
    every_quality_of_service_and_a_serial_line("mqtt_5_and_serial", "");
}

#[test]
fn mqtt_3_1_1_and_serial() {
    every_quality_of_service_and_a_serial_line("mqtt_3_1_1_and_serial", "version = 3");
}

#[test]
fn large_and_empty_payloads() {
    let mut rig = Rig::new("large_and_empty_payloads");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    // Larger than a block of the outbox, smaller than what Kafka takes.
    publisher.bytes = 700 << 10;
    publisher.publish(&devices(2), 1, 6);
    publisher.bytes = 200;
    publisher.publish(&devices(2), 1, 10);
    publisher.publish_raw("plant/empty/telemetry", b"");
    let tally = rig.settle();
    tally.assert_sound();
    assert_eq!((tally.lost.len(), tally.delivered, tally.foreign.len()), (0, 16, 1), "{tally}");
    assert_eq!((tally.foreign[0].key.as_slice(), tally.foreign[0].value.as_slice()), (&b"empty"[..], &b""[..]));
    rig.agent.stop();
    rig.agent.assert_log_is_quiet();
}

#[test]
fn user_password_and_mutual_tls() {
    let mut rig = Rig::new("mutual_tls");
    let certificates = Certificates::make(rig.path());
    let tls = MosquittoTls {
        ca_file: certificates.file("ca.pem"),
        cert_file: certificates.file("broker.pem"),
        key_file: certificates.file("broker.key"),
    };
    let users = vec![("gw".to_owned(), "s3cret".to_owned())];
    let mosquitto = rig.mosquitto(&MosquittoOptions { users, tls: Some(tls), ..MosquittoOptions::default() });
    let password = rig.path().join("password");
    std::fs::write(&password, "s3cret\n").unwrap();
    rig.mqtt_source("plant", mosquitto.port(), 1, &format!("username = \"gw\"\npassword_file = {password:?}"));
    let tls_port = mosquitto.tls_port().unwrap();
    rig.sources = rig
        .sources
        .replace(&format!("mqtt://127.0.0.1:{}", mosquitto.port()), &format!("mqtts://127.0.0.1:{tls_port}"));
    rig.sources.push_str(&format!(
        "tls = {{ ca_file = {:?}, cert_file = {:?}, key_file = {:?} }}\n",
        certificates.file("ca.pem"),
        certificates.file("client.pem"),
        certificates.file("client.key")
    ));
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.login = Some(("gw".to_owned(), "s3cret".to_owned()));
    publisher.publish(&devices(3), 1, 300);
    assert!(!rig.agent.log().contains("s3cret"), "a password is in the log");
    rig.finish(&mut publisher);
}

#[test]
fn what_a_consumer_sees_of_a_json_reading() {
    let mut rig = Rig::new("json_reading");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    let decode = "body = \"reading\"\ndecode = { format = \"json\", time = \"ts\" }";
    rig.mqtt_source("plant", mosquitto.port(), 1, decode);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.publish_raw("plant/line-3/telemetry", br#"{"ts":"2026-11-21T08:00:00.123Z","power":21.50,"on":true}"#);
    publisher.publish_raw("plant/line-3/telemetry", br#"{"power": 1"#);
    rig.wait_accepted("plant", 2);
    rig.agent.wait_drained();
    let records = read_all(&rig.direct, &rig.topics.data[0]);
    assert_eq!(records.len(), 2, "{records:?}");
    let value: serde_json::Value = serde_json::from_slice(&records[0].value).unwrap();
    assert_eq!(value["device"], "line-3");
    assert_eq!(value["ts"], "2026-11-21T08:00:00.123Z");
    assert_eq!(value["quality"], "good");
    let metrics = value["metrics"].as_array().unwrap();
    assert!(metrics.iter().any(|m| m["name"] == "power" && m["value"] == json!(21.5)), "{value}");
    assert!(String::from_utf8_lossy(&records[0].value).contains("21.50"), "the sender's digits are kept");
    let header = |name: &str| records[0].header(name);
    assert_eq!(header("ce_specversion").as_deref(), Some("1.0"));
    assert_eq!(header("ce_type").as_deref(), Some("io.fieldpost.reading.v1"));
    assert_eq!(header("ce_source").as_deref(), Some("/gateways/json_reading/plant"));
    assert_eq!(header("ce_subject").as_deref(), Some("line-3"));
    assert_eq!(header("mqtt_topic").as_deref(), Some("plant/line-3/telemetry"));
    assert!(header("ce_time").unwrap().starts_with("2026-11-21T08:00:00.123"), "{:?}", header("ce_time"));
    // What cannot be decoded is kept as it came, and says so.
    assert_eq!(records[1].value, br#"{"power": 1"#);
    assert_eq!(records[1].header("ce_type").as_deref(), Some("io.fieldpost.raw.v1"));
    assert!(records[1].header("fp_quality").unwrap().starts_with("bad"));
    rig.agent.stop();
}
