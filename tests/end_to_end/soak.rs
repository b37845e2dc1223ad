//! One long run with everything at once: half of the readings over MQTT, half over a serial line, while the daemon is killed and
//! stopped, Kafka is cut off, stalled and restarted, and the device is unplugged. `make soak` runs it with 200,000 readings.

use std::time::{Duration, Instant};

use fieldpost::demo::brokers::MosquittoOptions;
use fieldpost::demo::brokers::kafka::{Kafka, KafkaOptions};

use crate::harness::proxy::{API_END_TXN, API_PRODUCE, Fault, Reserved};
use crate::harness::rig::{Rig, devices};
use crate::harness::workdir::WorkDir;
use crate::harness::{Background, LIMIT, Random};

const PAUSE: Duration = Duration::from_millis(500);

#[test]
fn soak() {
    let readings: u64 = std::env::var("TEST_READINGS").map_or(20_000, |text| text.parse().expect("a number"));
    let dir = WorkDir::new("soak-kafka");
    let reserved = Reserved::new();
    let options = KafkaOptions { proxies: vec![vec![reserved.port()]], ..KafkaOptions::default() };
    let mut kafka = Kafka::start(dir.path(), &options).unwrap();
    let proxy = reserved.forward(kafka.proxied_port(0, 0), true);
    let mut rig = Rig::at("soak", &kafka.bootstrap());
    rig.bootstrap = format!("127.0.0.1:{}", proxy.port());
    rig.create_topics();
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 2, "");
    let line = rig.serial_source("meter", "");
    rig.agent.expect_warnings(&["fieldpost::delivery", "fieldpost::kafka", "librdkafka", "meter"]);
    rig.start();

    // In a hundred steps with pauses, so that a small run meets about as many faults as a large one.
    let (quarter, step) = (readings / 4, (readings / 400).max(1));
    let mqtt = |name: &str, qos: u8, prefix: &str| {
        let devices: Vec<_> = devices(10).iter().map(|device| format!("{prefix}{device}")).collect();
        let worker = (rig.publisher(name, mosquitto.port()), quarter);
        Background::start(worker, move |(publisher, left)| {
            let count = (*left).min(step);
            publisher.publish(&devices, qos, count as usize);
            *left -= count;
            std::thread::sleep(PAUSE);
        })
    };
    let (one, two) = (mqtt("p1", 1, "a-"), mqtt("p2", 2, "b-"));
    let serial = Background::start((rig.meter(&line, "meter"), readings / 2), move |(meter, left)| {
        let count = (*left).min(2 * step);
        meter.send(count);
        *left -= count;
        std::thread::sleep(PAUSE);
    });

    let mut random = Random::new("soak");
    let (mut faults, mut idle_since) = (0, Instant::now());
    let mut before = rig.oracle.issued();
    while rig.oracle.issued() < quarter * 2 + readings / 2 {
        std::thread::sleep(random.millis(300, 2500));
        let now = rig.oracle.issued();
        if now != before {
            (before, idle_since) = (now, Instant::now());
        }
        assert!(idle_since.elapsed() < LIMIT * 2, "nothing is issued any more: {now}");
        faults += 1;
        match random.within(0, 9) {
            0 | 1 => {
                rig.agent.kill();
                rig.start();
            }
            2 => {
                rig.agent.stop();
                rig.start();
            }
            3 => proxy.cut(),
            4 => {
                proxy.refuse(true);
                std::thread::sleep(random.millis(100, 4000));
                proxy.refuse(false);
            }
            5 => {
                proxy.stall(random.within(0, 2) == 0, true);
                std::thread::sleep(random.millis(100, 4000));
                proxy.cut();
                proxy.heal();
            }
            6 => proxy.inject(Fault { api_key: API_END_TXN, delay: random.millis(100, 1000), cut: true }),
            7 => proxy.inject(Fault { api_key: API_PRODUCE, delay: random.millis(100, 3000), cut: false }),
            _ if faults % 2 == 0 => {
                kafka.kill_node(0).unwrap();
                std::thread::sleep(random.millis(0, 2000));
                kafka.start_node(0).unwrap();
                kafka.wait_ready().unwrap();
            }
            _ => {
                let mut line = line.lock().unwrap();
                line.unplug();
                std::thread::sleep(random.millis(0, 500));
                line.plug_in();
            }
        }
    }
    eprintln!("soak: {faults} faults");
    proxy.heal();
    two.stop();
    serial.stop();
    let (mut publisher, _) = one.stop();
    rig.finish(&mut publisher);
}
