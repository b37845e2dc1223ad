//! Kafka, the network or the MQTT broker goes away and comes back.

use std::time::Duration;

use fieldpost::demo::brokers::kafka::{Kafka, KafkaOptions};
use fieldpost::demo::brokers::{Mosquitto, MosquittoOptions};

use crate::harness::proxy::{API_END_TXN, API_PRODUCE, Fault, Proxy};
use crate::harness::publisher::Publisher;
use crate::harness::rig::{Rig, devices};
use crate::harness::workdir::WorkDir;
use crate::harness::{Random, meter_in_background, publish_in_background, wait_for};

/// What a daemon says while Kafka is away.
const KAFKA_AWAY: &[&str] = &["fieldpost::delivery", "fieldpost::kafka", "librdkafka"];
/// What a daemon says while its MQTT broker is away.
const BROKER_AWAY: &[&str] = &["fieldpost::intake::mqtt"];

fn with_mqtt(rig: &mut Rig) -> (Mosquitto, Publisher) {
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    let publisher = rig.publisher("p", mosquitto.port());
    (mosquitto, publisher)
}

#[test]
fn kafka_is_down_at_boot() {
    let dir = WorkDir::new("down_at_boot-kafka");
    let mut kafka = Kafka::prepare(dir.path(), &KafkaOptions::default()).unwrap();
    let mut rig = Rig::at("down_at_boot", &kafka.bootstrap());
    let (_mosquitto, mut publisher) = with_mqtt(&mut rig);
    rig.agent.expect_warnings(KAFKA_AWAY);
    rig.start();
    publisher.publish(&devices(5), 1, 1000);
    rig.wait_accepted("plant", 1000);
    let is_away = |status: &serde_json::Value| status["delivery"]["alarms"].to_string().contains("unreachable: Kafka");
    rig.agent.wait_status("the alarm", is_away);
    kafka.start_node(0).unwrap();
    kafka.wait_ready().unwrap();
    rig.create_topics();
    rig.agent.wait_status("the end of the alarm", |status| !is_away(status));
    wait_for("the end of the outage in the log", || rig.agent.log().contains("Kafka is back after").then_some(()));
    let log = rig.agent.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("Kafka does not answer (")).collect();
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("refused"), "{told:?}");
    assert!(log.contains("readings wait for it"), "{log}");
    rig.finish(&mut publisher);
}

#[test]
fn kafka_is_stopped_and_killed_and_comes_back() {
    let dir = WorkDir::new("broker_restart-kafka");
    let mut kafka = Kafka::start(dir.path(), &KafkaOptions::default()).unwrap();
    let mut rig = Rig::at("broker_restart", &kafka.bootstrap());
    rig.create_topics();
    let (_mosquitto, publisher) = with_mqtt(&mut rig);
    let line = rig.serial_source("meter", "");
    rig.agent.expect_warnings(KAFKA_AWAY);
    rig.start();
    let load = publish_in_background(publisher, devices(5), 1);
    let serial = meter_in_background(rig.meter(&line, "meter"));
    let mut random = Random::new("broker_restart");
    for round in 0..4 {
        std::thread::sleep(random.millis(300, 1500));
        if round % 2 == 0 {
            kafka.kill_node(0).unwrap();
        } else {
            kafka.stop_node(0).unwrap();
        }
        std::thread::sleep(random.millis(0, 3000));
        kafka.start_node(0).unwrap();
        kafka.wait_ready().unwrap();
    }
    serial.stop();
    let mut publisher = load.stop();
    rig.finish(&mut publisher);
}

#[test]
fn nodes_of_three_are_killed_and_frozen() {
    let dir = WorkDir::new("failover-kafka");
    let mut kafka = Kafka::start(dir.path(), &KafkaOptions { nodes: 3, ..KafkaOptions::default() }).unwrap();
    let mut rig = Rig::at("failover", &kafka.bootstrap());
    rig.create_topics();
    let (_mosquitto, publisher) = with_mqtt(&mut rig);
    rig.agent.expect_warnings(KAFKA_AWAY);
    rig.start();
    let load = publish_in_background(publisher, devices(5), 1);
    let mut random = Random::new("failover");
    for round in 0..3 {
        let node = random.within(0, 3) as usize;
        if round == 1 {
            kafka.freeze_node(node).unwrap();
            std::thread::sleep(random.millis(4000, 8000));
            kafka.thaw_node(node).unwrap();
        } else {
            kafka.kill_node(node).unwrap();
            std::thread::sleep(random.millis(100, 5000));
            kafka.start_node(node).unwrap();
        }
        kafka.wait_ready().unwrap();
    }
    let mut publisher = load.stop();
    rig.finish(&mut publisher);
}

#[test]
fn the_network_to_kafka_is_bad() {
    let (mut rig, proxy) = Rig::proxied("bad_network");
    let (_mosquitto, publisher) = with_mqtt(&mut rig);
    rig.delivery = "transaction_timeout = \"8s\"\nmessage_timeout = \"4s\"".to_owned();
    rig.agent.expect_warnings(KAFKA_AWAY);
    rig.start();
    let load = publish_in_background(publisher, devices(5), 1);
    let mut random = Random::new("bad_network");
    for round in 0..18 {
        trouble(&proxy, round % 6, &mut random);
    }
    let mut publisher = load.stop();
    rig.finish(&mut publisher);
}

fn trouble(proxy: &Proxy, kind: u32, random: &mut Random) {
    match kind {
        0 => proxy.cut(),
        1 => proxy.refuse(true),
        2 => proxy.stall(true, true),
        3 => proxy.stall(false, true),
        4 => proxy.delay(random.millis(50, 300)),
        _ => proxy.inject(Fault { api_key: API_PRODUCE, delay: random.millis(100, 3000), cut: false }),
    }
    std::thread::sleep(random.millis(100, 2000));
    if kind == 2 || kind == 3 {
        // What was stalled comes late, after its connection is gone.
        proxy.cut();
    }
    proxy.heal();
    std::thread::sleep(random.millis(100, 800));
}

/// The connection is lost while the commit is on its way, and the commit arrives after the next transaction has begun: the way
/// in which librdkafka alone makes duplicates.
#[test]
fn a_commit_arrives_late_after_a_cut() {
    let (mut rig, proxy) = Rig::proxied("late_commit");
    let (_mosquitto, publisher) = with_mqtt(&mut rig);
    rig.agent.expect_warnings(KAFKA_AWAY);
    rig.start();
    let load = publish_in_background(publisher, devices(5), 1);
    let mut random = Random::new("late_commit");
    for round in 1..=20 {
        proxy.inject(Fault { api_key: API_END_TXN, delay: random.millis(120, 500), cut: true });
        wait_for("a commit to be held", || (proxy.faults_done() >= round).then_some(()));
        std::thread::sleep(random.millis(0, 300));
    }
    let mut publisher = load.stop();
    rig.finish(&mut publisher);
}

#[test]
fn a_link_of_64_kbit_drains_a_backlog() {
    let (mut rig, proxy) = Rig::proxied("slow_link");
    let (_mosquitto, mut publisher) = with_mqtt(&mut rig);
    rig.agent.expect_warnings(KAFKA_AWAY);
    proxy.refuse(true);
    rig.start();
    publisher.publish(&devices(5), 1, 600);
    publisher.bytes = 20 << 10;
    publisher.publish(&devices(5), 1, 5);
    rig.wait_accepted("plant", 605);
    proxy.limit_bits_per_second(64_000);
    proxy.refuse(false);
    rig.finish(&mut publisher);
}

#[test]
fn mosquitto_restarts_and_keeps_its_sessions() {
    let mut rig = Rig::new("mosquitto_persistent");
    let mut mosquitto = rig.mosquitto(&MosquittoOptions { persistence: true, ..MosquittoOptions::default() });
    rig.mqtt_source("plant", mosquitto.port(), 2, "");
    rig.agent.expect_warnings(BROKER_AWAY);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.publish(&devices(5), 1, 500);
    // Queued for the daemon while it is away, then kept over the restart.
    rig.agent.stop();
    publisher.publish(&devices(5), 1, 500);
    publisher.publish(&devices(5), 2, 500);
    mosquitto.stop().unwrap();
    mosquitto.start_again().unwrap();
    rig.start();
    for _ in 0..3 {
        let load = publish_in_background(publisher, devices(5), 2);
        std::thread::sleep(Duration::from_millis(400));
        mosquitto.stop().unwrap();
        mosquitto.start_again().unwrap();
        publisher = load.stop();
    }
    rig.finish(&mut publisher);
}

#[test]
fn mosquitto_restarts_and_forgets_everything() {
    let mut rig = Rig::new("mosquitto_forgetful");
    let mut mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.agent.expect_warnings(BROKER_AWAY);
    rig.start();
    let mut publisher = rig.publisher("p", mosquitto.port());
    for _ in 0..3 {
        // The same packet identifiers come again after each restart: none may be taken for a redelivery.
        publisher.publish(&devices(5), 1, 300);
        rig.wait_accepted("plant", rig.oracle.obliged());
        let before = rig.agent.status()["sources"]["plant"]["since"].clone();
        mosquitto.kill().unwrap();
        mosquitto.start_again().unwrap();
        rig.agent.wait_status("the source to be up again", |status| {
            let source = &status["sources"]["plant"];
            source["state"] == "up" && source["since"] != before
        });
    }
    rig.finish(&mut publisher);
}

/// mosquitto 2.0.11 sends a whole backlog once the first of it are acknowledged, whatever our receive maximum is, and takes
/// packet identifiers again that are still in use.
#[test]
fn a_backlog_has_more_messages_than_there_are_packet_identifiers() {
    let mut rig = Rig::new("large_backlog");
    let (_mosquitto, mut publisher) = with_mqtt(&mut rig);
    rig.start();
    rig.agent.stop();
    publisher.publish(&devices(50), 1, 150_000);
    rig.start();
    rig.finish(&mut publisher);
}
