//! How many readings fit below a cap: fills an outbox under the policy `block` until it takes no more.
//!
//! `cargo bench --bench capacity` prints the table of docs/outbox.md, "How much fits". `TEST_CAPS_MIB="8 16"` asks for
//! other caps.

#![allow(clippy::print_stdout, missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldpost::config::{self, ByteSize};
use fieldpost::metrics::OutboxMetrics;
use fieldpost::outbox::{Arrival, OpenOptions, Outbox, Receipt};
use fieldpost::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime};

/// Readings in one submission.
const GROUP: u64 = 200;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// As a meter sends it: names and units repeat, numbers do not.
fn telemetry(n: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut text = format!("{{\"device\":\"line-{}\",\"seq\":{n}", n % 40);
    let names = ["power", "voltage", "current", "energy", "frequency", "temperature", "pressure", "flow"];
    for name in names.iter().cycle() {
        if text.len() + 24 > bytes {
            break;
        }
        text.push_str(&format!(",\"{name}\":{}.{}", random.next() % 1000, random.next() % 100));
    }
    text.push('}');
    text.into_bytes()
}

fn noise(n: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..bytes).map(|_| random.next() as u8).collect()
}

fn reading(n: u64, value: Vec<u8>) -> Reading {
    Reading {
        topic: "telemetry".into(),
        device: format!("line-{}", n % 40).into(),
        kind: Kind::Raw,
        flags: Flags::default(),
        received: ReceiptTime { wall_ns: 1_795_000_000_000_000_000 + n as i64 * 40_000, mono_ns: n * 40_000 },
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

/// Fills it; readings stored, and bytes on disk.
fn fill(dir: &Path, max: ByteSize, value: impl Fn(u64) -> Vec<u8>) -> (u64, u64) {
    let config = config::Outbox { max_bytes: max, free_space_floor: ByteSize(0), ..config::Outbox::default() };
    let options = OpenOptions { config, agent_id: "bench".to_owned(), metrics: OutboxMetrics::default() };
    let outbox = Outbox::open(dir, options).expect("an empty directory opens");
    let (appender, mut answers) = outbox.appender(&"plant".into());
    let mut sent = 0;
    'filling: loop {
        let arrivals = (sent..sent + GROUP).map(|n| Arrival {
            readings: vec![reading(n, value(n))],
            packet: None,
            receipt: Receipt(n),
            held: outbox.held().try_acquire(1).expect("little is held"),
        });
        appender.submit(arrivals.collect());
        sent += GROUP;
        let since = Instant::now();
        let mut answered = 0;
        while answered < GROUP {
            match answers.try_recv() {
                Ok(answer) => answered += answer.done.len() as u64,
                Err(_) if outbox.status().state == "full" && since.elapsed() > Duration::from_secs(1) => break 'filling,
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }
    let stored = outbox.positions().durable.0;
    let bytes = outbox.status().bytes;
    outbox.close(Duration::from_secs(10));
    (stored, bytes)
}

fn main() {
    let caps = std::env::var("TEST_CAPS_MIB").unwrap_or_else(|_| "8 16 64 256 1024".to_owned());
    println!("max_bytes  value                  readings   payload MiB  payload / max_bytes");
    for cap in caps.split_whitespace() {
        let mib: u64 = cap.parse().expect("TEST_CAPS_MIB holds numbers");
        for (what, bytes, noisy) in
            [("JSON", 200, false), ("JSON", 1000, false), ("random bytes", 200, true), ("random bytes", 1000, true)]
        {
            let dir = tempfile::tempdir_in(".").expect("a directory for the outbox");
            let value = |n| if noisy { noise(n, bytes) } else { telemetry(n, bytes) };
            let (stored, _) = fill(dir.path(), ByteSize::mib(mib), value);
            let payload = stored as f64 * bytes as f64 / 1_048_576.0;
            println!(
                "{:>5} MiB  {what:<13}{bytes:>5} B  {stored:>10}  {payload:>11.1}  {:>19.2}",
                mib,
                payload / mib as f64
            );
        }
    }
}
