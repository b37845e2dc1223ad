//! CPU of the intake per message: MQTT 5, QoS 1, 200 B, from a broker in the same process that keeps the window full, into
//! a real outbox. Prints CPU time per thread name and message; asserts nothing.
//!
//! `cargo bench --bench intake -- [MESSAGES]`

#![allow(clippy::print_stdout)] // It is there to print.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use fieldpost::config::intake::{Mqtt, Subscription};
use fieldpost::config::{self, Source};
use fieldpost::intake::{SourceOptions, start};
use fieldpost::metrics::{IntakeMetrics, OutboxMetrics};
use fieldpost::outbox::{OpenOptions, Outbox};
use prometheus_client::registry::Registry;

const WINDOW: usize = 1000;
const PAYLOAD_BYTES: usize = 200;

fn main() {
    let messages = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(200_000);
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let broker = std::thread::Builder::new().name("broker".to_owned());
    let broker = broker.spawn(move || serve(&listener, messages)).expect("a thread can be started");
    let directory = tempfile::tempdir().expect("there is room for temporary files");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio starts");
    let (begun, took) = runtime.block_on(async {
        let outbox = config::Outbox::default();
        let metrics = OutboxMetrics::register(&mut Registry::default());
        let options = OpenOptions { config: outbox, agent_id: "bench".to_owned(), metrics };
        let outbox = Outbox::open(directory.path(), options).expect("a fresh outbox opens");
        let subscribe = vec![Subscription { topic: "plant/#".to_owned(), qos: 1 }];
        let mut mqtt = Mqtt { url: format!("mqtt://{address}"), subscribe, ..Mqtt::default() };
        mqtt.mapping.device = "{mqtt.topic[2]}".to_owned();
        let source = start(
            &outbox,
            SourceOptions {
                name: "plant".to_owned(),
                agent_id: "bench".to_owned(),
                config: Source::Mqtt(mqtt),
                record_bytes_max: 960 << 10,
                metrics: IntakeMetrics::register(&mut Registry::default()).source("plant"),
            },
        )
        .expect("the settings are sound");
        let begun = Instant::now();
        while source.status().acknowledged < messages as u64 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        (cpu_ns(), begun.elapsed())
    });
    println!("{messages} messages in {:.2} s: {:.0}/s", took.as_secs_f64(), messages as f64 / took.as_secs_f64());
    for (name, ns) in begun {
        println!("{name:>20}: {:.2} us CPU per message", ns as f64 / 1000.0 / messages as f64);
    }
    drop(runtime);
    broker.join().expect("the broker does not panic");
}

/// CPU time of this process by thread name, nanoseconds.
fn cpu_ns() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").expect("/proc is there").flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default().trim().to_owned();
        let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let ns: u64 = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        *all.entry(name).or_default() += ns;
    }
    all
}

fn serve(listener: &TcpListener, messages: usize) {
    let stream = listener.accept().expect("the source connects").0;
    stream.set_nodelay(true).expect("a socket takes options");
    let mut reader = BufReader::with_capacity(1 << 16, stream.try_clone().expect("a socket can be cloned"));
    let mut writer = BufWriter::with_capacity(1 << 16, stream);
    let mut window = WINDOW;
    let (mut sent, mut acked) = (0usize, 0usize);
    while acked < messages {
        while window > 0 && sent < messages && acked + sent > 0 {
            publish(&mut writer, sent).expect("the source is there");
            sent += 1;
            window -= 1;
        }
        writer.flush().expect("the source is there");
        loop {
            let (kind, body) = packet(&mut reader);
            match kind & 0xf0 {
                0x10 => writer.write_all(&[0x20, 3, 0, 0, 0]).expect("the source is there"),
                0x80 => writer.write_all(&[0x90, 4, body[0], body[1], 0, 1]).expect("the source is there"),
                0x30 => {
                    let at = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                    writer.write_all(&[0x40, 2, body[at], body[at + 1]]).expect("the source is there");
                    // The birth message: now begin.
                    publish(&mut writer, sent).expect("the source is there");
                    sent += 1;
                    window -= 1;
                }
                0x40 => {
                    acked += 1;
                    window += 1;
                }
                0xc0 => writer.write_all(&[0xd0, 0]).expect("the source is there"),
                _ => {}
            }
            if reader.buffer().len() < 4 {
                break;
            }
        }
        writer.flush().expect("the source is there");
    }
}

fn publish(writer: &mut BufWriter<TcpStream>, number: usize) -> std::io::Result<()> {
    let topic = format!("plant/a/line-{}/telemetry", number % 30);
    let id = (number % 65_535 + 1) as u16;
    let mut payload = format!("{{\"n\":{number},\"power\":21.50,\"pad\":\"");
    while payload.len() < PAYLOAD_BYTES - 2 {
        payload.push((b'a' + (payload.len() * 7 + number) as u8 % 26) as char);
    }
    payload.push_str("\"}");
    let length = 2 + topic.len() + 2 + 1 + payload.len();
    writer.write_all(&[0x32, (length & 127) as u8 | 0x80, (length >> 7) as u8])?;
    writer.write_all(&(topic.len() as u16).to_be_bytes())?;
    writer.write_all(topic.as_bytes())?;
    writer.write_all(&id.to_be_bytes())?;
    writer.write_all(&[0])?;
    writer.write_all(payload.as_bytes())
}

fn packet(reader: &mut BufReader<TcpStream>) -> (u8, Vec<u8>) {
    let mut byte = [0];
    let mut next = |reader: &mut BufReader<TcpStream>| {
        reader.read_exact(&mut byte).expect("the source stays");
        byte[0]
    };
    let kind = next(reader);
    let (mut length, mut shift) = (0, 0);
    loop {
        let part = next(reader);
        length |= usize::from(part & 127) << shift;
        shift += 7;
        if part & 128 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("the source stays");
    (kind, body)
}
