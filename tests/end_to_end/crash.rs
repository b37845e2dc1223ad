//! The daemon is killed, stopped and started again, under load.

use fieldpost::demo::brokers::MosquittoOptions;

use crate::harness::rig::{Rig, devices};
use crate::harness::{Random, meter_in_background, publish_in_background};

fn times(default: u64) -> u64 {
    std::env::var("TEST_KILLS").map_or(default, |text| text.parse().expect("TEST_KILLS is a number"))
}

#[test]
fn the_daemon_is_killed_at_random_moments() {
    let mut rig = Rig::new("kills");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 2, "");
    let line = rig.serial_source("meter", "");
    rig.start();
    let at_least_once = publish_in_background(rig.publisher("p1", mosquitto.port()), devices(5), 1);
    let named = |prefix: &str| devices(5).iter().map(|device| format!("{prefix}{device}")).collect();
    let exactly_once = publish_in_background(rig.publisher("p2", mosquitto.port()), named("q2-"), 2);
    let serial = meter_in_background(rig.meter(&line, "meter"));
    let mut random = Random::new("kills");
    for _ in 0..times(30) {
        if random.within(0, 4) > 0 {
            rig.agent.wait_sources_up();
            std::thread::sleep(random.millis(0, 1200));
        } else {
            // While it is starting.
            std::thread::sleep(random.millis(0, 300));
        }
        rig.agent.kill();
        std::thread::sleep(random.millis(0, 100));
        rig.agent.launch();
    }
    rig.agent.wait_sources_up();
    serial.stop();
    exactly_once.stop();
    let mut publisher = at_least_once.stop();
    rig.finish(&mut publisher);
}

#[test]
fn the_daemon_is_stopped_in_order_and_started_again() {
    let mut rig = Rig::new("stops");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 2, "");
    let line = rig.serial_source("meter", "");
    rig.start();
    let load = publish_in_background(rig.publisher("p1", mosquitto.port()), devices(5), 1);
    let serial = meter_in_background(rig.meter(&line, "meter"));
    let mut random = Random::new("stops");
    for _ in 0..6 {
        std::thread::sleep(random.millis(200, 1500));
        rig.agent.stop();
        rig.start();
    }
    serial.stop();
    let mut publisher = load.stop();
    rig.finish(&mut publisher);
}

#[test]
fn a_second_instance_is_refused_and_the_first_goes_on() {
    let mut rig = Rig::new("second");
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    rig.start();
    let log = rig.path().join("second.log");
    let config = rig.agent.config_path().display().to_string();
    let program = env!("CARGO_BIN_EXE_fieldpost");
    let mut second =
        fieldpost::demo::brokers::Process::start("second", program, ["run", "--config", &config], &[], &log).unwrap();
    let end = second.wait(crate::harness::LIMIT).unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    assert_eq!(end.code(), Some(75), "{text}");
    assert!(text.contains(&rig.agent.state_dir().display().to_string()), "{text}");
    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.publish(&devices(3), 1, 300);
    rig.finish(&mut publisher);
}
