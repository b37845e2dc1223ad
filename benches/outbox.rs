//! Append and drain of the outbox, beside a plain append-only file with the same codec and as many syncs in the same run.
//!
//! `cargo bench --bench outbox` prints readings per second, CPU per reading and peak memory. No figure is a test.

#![allow(clippy::print_stdout, missing_docs)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldpost::config;
use fieldpost::metrics::OutboxMetrics;
use fieldpost::outbox::{Arrival, Budget, OpenOptions, Outbox, Receipt};
use fieldpost::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime, Sequence};

const READINGS: usize = 1_000_000;
const VALUE_BYTES: usize = 200;
const GROUP: usize = 1000;

fn reading(n: usize) -> Reading {
    let mut value = format!(
        "{{\"device\":\"line-{}\",\"seq\":{n},\"power\":{}.{},\"voltage\":{}.{},\"current\":{},\"state\":\"running\",\"pad\":\"",
        n % 40,
        n * 7919 % 4000,
        n % 10,
        228 + n % 5,
        n * 31 % 10,
        n * 104_729 % 1000,
    );
    while value.len() < VALUE_BYTES - 2 {
        value.push(char::from(b'a' + (n * value.len() % 23) as u8));
    }
    value.push_str("\"}");
    Reading {
        topic: "telemetry".into(),
        device: format!("line-{}", n % 40).into(),
        kind: Kind::Raw,
        flags: Flags::default(),
        received: ReceiptTime { wall_ns: 1_795_000_000_000_000_000 + n as i64 * 40_000, mono_ns: n as u64 * 40_000 },
        device_time_ns: None,
        content_type: "application/json".into(),
        quality: "".into(),
        mqtt: Some(MqttOrigin {
            topic: format!("plant/a/line-{}/telemetry", n % 40).into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
        }),
        replay_of: "".into(),
        value: Bytes::from(value),
    }
}

/// CPU of this process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("it has fields").split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// A line of `/proc/self/status`, in MiB.
fn memory(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let found = status.lines().find(|l| l.starts_with(line)).expect("it has the line");
    found.split_whitespace().nth(1).expect("it has a number").parse::<f64>().expect("a number") / 1024.0
}

struct Run {
    what: &'static str,
    wall: Duration,
    cpu: Duration,
}

impl Run {
    fn of(what: &'static str, work: impl FnOnce()) -> Self {
        let (start, before) = (Instant::now(), cpu());
        work();
        let run = Self { what, wall: start.elapsed(), cpu: cpu().saturating_sub(before) };
        println!(
            "{:<34} {:>10.0} readings/s {:>7.2} us CPU/reading   peak {:>6.1} MiB, now {:>6.1} MiB",
            run.what,
            run.rate(),
            run.cpu.as_secs_f64() * 1e6 / READINGS as f64,
            memory("VmHWM"),
            memory("VmRSS"),
        );
        run
    }

    fn rate(&self) -> f64 {
        READINGS as f64 / self.wall.as_secs_f64()
    }
}

fn plain_file(dir: &Path) {
    let mut file = File::create(dir.join("plain")).expect("the directory is writable");
    let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd");
    for group in 0..READINGS / GROUP {
        let mut raw = Vec::new();
        for n in group * GROUP..(group + 1) * GROUP {
            let reading = reading(n);
            for text in [&*reading.topic, &reading.device, &reading.content_type, &reading.mqtt.expect("set").topic] {
                raw.extend_from_slice(&(text.len() as u32).to_le_bytes());
                raw.extend_from_slice(text.as_bytes());
            }
            raw.extend_from_slice(&reading.received.wall_ns.to_le_bytes());
            raw.extend_from_slice(&reading.received.mono_ns.to_le_bytes());
            raw.extend_from_slice(&reading.value);
        }
        for block in raw.chunks(60 * 1024) {
            let packed = zstd.compress(block).expect("it packs");
            file.write_all(&crc32fast::hash(&packed).to_le_bytes()).expect("it writes");
            file.write_all(&packed).expect("it writes");
        }
        file.sync_data().expect("it syncs");
    }
}

fn append(outbox: &Outbox) {
    let (appender, mut answers) = outbox.appender(&"plant".into());
    let held = outbox.held();
    for group in 0..READINGS / GROUP {
        let arrivals = (group * GROUP..(group + 1) * GROUP).map(|n| Arrival {
            readings: vec![reading(n)],
            packet: None,
            receipt: Receipt(n as u64),
            held: held.try_acquire(VALUE_BYTES).expect("the group fits the budget"),
        });
        appender.submit(arrivals.collect());
        let mut left = GROUP;
        while left > 0 {
            left -= answers.blocking_recv().expect("the outbox answers").done.len();
        }
    }
}

fn drain(outbox: &Outbox) {
    let mut reader = outbox.reader();
    let mut after = Sequence(0);
    let budget = Budget { records_max: 5000, bytes_max: 2 << 20 };
    while after.0 < READINGS as u64 {
        let batch = reader.batch_after(after, budget).expect("it reads");
        after = batch.items.last().expect("nothing is missing").last();
    }
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    println!("{READINGS} readings of {VALUE_BYTES} B, groups of {GROUP}; start at {:.1} MiB", memory("VmRSS"));
    let making = Run::of("making readings (in all but drain)", || {
        (0..READINGS).for_each(|n| drop(std::hint::black_box(reading(n))));
    });
    let config = config::Outbox::default();
    let options = OpenOptions { config, agent_id: "bench".to_owned(), metrics: OutboxMetrics::default() };
    let outbox = Outbox::open(dir.path(), options).expect("it opens");
    let appended = Run::of("append", || append(&outbox));
    let drained = Run::of("drain", || drain(&outbox));
    let bytes = outbox.status().bytes;
    outbox.close(Duration::from_secs(60));
    let plain = Run::of("plain file, same codec and syncs", || plain_file(dir.path()));
    let net = |run: &Run| (run.cpu.saturating_sub(making.cpu)).as_secs_f64() * 1e6 / READINGS as f64;
    println!(
        "append + drain: {:.2} us CPU per reading",
        net(&appended) + drained.cpu.as_secs_f64() * 1e6 / READINGS as f64
    );
    println!(
        "append / plain file: {:.2}x the speed, {:.2}x the CPU",
        appended.rate() / plain.rate(),
        net(&appended) / net(&plain)
    );
    println!("on disk: {:.2} bytes per payload byte", bytes as f64 / (READINGS * VALUE_BYTES) as f64);
}
