//! The end-to-end figures: MQTT QoS 1, 200 B payloads, from a real mosquitto through the real daemon to a `read_committed`
//! consumer of a real Kafka, all on this machine. `cargo bench --bench end_to_end`; `BENCH_READINGS=n` changes the size.
//!
//! Publishers would take processor time from what is measured. So mosquitto holds all messages before the daemon
//! starts (its session exists from an earlier start); what remains beside the daemon is mosquitto, Kafka and the consumer, and
//! their processor time is printed too: with two cores they, not the daemon, may be the limit.

#![allow(missing_docs, unreachable_pub, dead_code, reason = "a program of its own; shares the harness of the tests")]
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "a failure may panic and tell")]

mod harness;

use std::process::Command;
use std::time::{Duration, Instant};

use fieldpost::demo::brokers::MosquittoOptions;
use fieldpost::demo::brokers::kafka::{Jars, Kafka, KafkaOptions};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use harness::rig::{Rig, devices};
use harness::workdir::WorkDir;

const PAYLOAD_BYTES: usize = 200;
const IDLE: Duration = Duration::from_secs(20);

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only wants to know that it builds
    }
    let readings: usize = std::env::var("BENCH_READINGS").map_or(300_000, |text| text.parse().unwrap());
    let dir = WorkDir::new("bench-kafka");
    let kafka = Kafka::start(dir.path(), &KafkaOptions::default()).unwrap();
    let mut rig = Rig::at("bench", &kafka.bootstrap());
    rig.create_topics();
    let mosquitto = rig.mosquitto(&MosquittoOptions::default());
    rig.mqtt_source("plant", mosquitto.port(), 1, "");
    conditions(&rig, readings);

    rig.start();
    idle(&rig);
    rig.agent.stop();

    let mut publisher = rig.publisher("p", mosquitto.port());
    publisher.bytes = PAYLOAD_BYTES;
    publisher.publish(&devices(50), 1, readings);
    drain(&mut rig, &kafka, mosquitto.pid().unwrap(), readings);
    let tally = rig.settle();
    tally.assert_clean();
    rig.agent.stop();
}

fn conditions(rig: &Rig, readings: usize) {
    let first_line = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = first_line("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().unwrap();
    let disk = Command::new("df").args(["--output=source,fstype"]).arg(rig.path()).output().unwrap();
    let disk = String::from_utf8_lossy(&disk.stdout).lines().last().unwrap_or_default().trim().to_owned();
    println!("conditions: {cores} cores ({model}), Linux {}", first_line("/proc/sys/kernel/osrelease").trim());
    println!(
        "conditions: Kafka {} (one node), state on {disk}, {readings} readings of {PAYLOAD_BYTES} B, MQTT 5, QoS 1",
        Jars::version()
    );
}

fn idle(rig: &Rig) {
    std::thread::sleep(Duration::from_secs(5));
    let before = Usage::of(rig.agent.pid());
    std::thread::sleep(IDLE);
    let after = Usage::of(rig.agent.pid());
    let share = (after.cpu - before.cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    println!("idle:       RSS {:.1} MiB, CPU {share:.2} % over {} s", after.rss_mib, IDLE.as_secs());
}

/// From the first tenth to the end, so that starting up is not part of the rate.
fn drain(rig: &mut Rig, kafka: &Kafka, mosquitto: u32, readings: usize) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "bench")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..3 {
        assignment.add_partition_offset(&rig.topics.data[0], partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    rig.write_config();
    rig.agent.launch();
    let started = Instant::now();
    let pids = [rig.agent.pid(), mosquitto, kafka.pids()[0], std::process::id()];
    let usages = || pids.map(|pid| Usage::of(pid).cpu);
    let (mut seen, mut first, mut last) = (0, None, Instant::now());
    while seen < readings {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(_)) => {
                (seen, last) = (seen + 1, Instant::now());
                if seen == readings / 10 {
                    first = Some((last, usages()));
                }
            }
            Some(Err(error)) => eprintln!("consumer: {error}"),
            None => assert!(last.elapsed() < harness::LIMIT, "{seen} of {readings} readings came"),
        }
    }
    let (first, before) = first.expect("a tenth has been seen");
    let (counted, seconds) = ((readings - readings / 10) as f64, (last - first).as_secs_f64());
    let after = usages();
    let micros = |at: usize| (after[at] - before[at]).as_secs_f64() * 1e6 / counted;
    println!(
        "drain:      {:.0} readings/s end to end ({seen} in {:.1} s from the start of the daemon)",
        counted / seconds,
        (last - started).as_secs_f64()
    );
    println!(
        "drain:      CPU per reading: daemon {:.1} us, mosquitto {:.1} us, Kafka {:.1} us, consumer {:.1} us",
        micros(0),
        micros(1),
        micros(2),
        micros(3)
    );
    let busy: f64 = (0..4).map(micros).sum::<f64>() * counted / 1e6 / seconds;
    println!(
        "drain:      {busy:.2} cores busy with these four; the daemon alone {:.2}",
        micros(0) * counted / 1e6 / seconds
    );
    println!("drain:      peak RSS {:.1} MiB", Usage::of(pids[0]).peak_rss_mib);
}

/// What `/proc` says about a process.
struct Usage {
    cpu: Duration,
    rss_mib: f64,
    peak_rss_mib: f64,
}

impl Usage {
    fn of(pid: u32) -> Self {
        /// `USER_HZ`, 100 on every Linux of today.
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u32 = fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
        };
        Self { cpu: TICK * ticks, rss_mib: mib("VmRSS:"), peak_rss_mib: mib("VmHWM:") }
    }
}
