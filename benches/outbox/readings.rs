//! Telemetry as devices send it: JSON with a counter, a time and measured values.

use bytes::Bytes;
use bytestring::ByteString;
use fieldpost::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime};

/// Bytes that a source reads from its socket at once, at most.
const SOCKET_BYTES: usize = 64 << 10;

/// Readings made beforehand, so that making them costs neither side anything. More than one block holds, so that no
/// codec finds a reading twice.
pub(crate) struct Pool(Vec<Reading>);

impl Pool {
    pub(crate) fn of(value_bytes: usize) -> Self {
        let count = (8 << 20) / value_bytes.max(1);
        Self((0..count).map(|n| reading(n as u64, value_bytes)).collect())
    }

    /// So many from `at` on, as an MQTT source hands them on: topic and value are parts of the buffer that was read from the
    /// socket, the device's name is a text of its own.
    pub(crate) fn group(&self, at: u64, count: u64) -> impl Iterator<Item = Reading> + '_ {
        let known = move |n: u64| &self.0[(n % self.0.len() as u64) as usize];
        let mut buffer = Bytes::new();
        (at..at + count).map(move |n| {
            let reading = known(n);
            let topic = &reading.mqtt.as_ref().expect("set").topic;
            if buffer.is_empty() {
                buffer = read_from_socket((n..at + count).map(known));
            }
            let mqtt = MqttOrigin {
                topic: ByteString::try_from(buffer.split_to(topic.len())).expect("a topic is text"),
                ..reading.mqtt.clone().expect("set")
            };
            let value = buffer.split_to(reading.value.len());
            Reading { device: ByteString::from(&*reading.device), mqtt: Some(mqtt), value, ..reading.clone() }
        })
    }
}

/// Topics and values of readings, one behind the other, as much as is read at once.
fn read_from_socket<'a>(readings: impl Iterator<Item = &'a Reading>) -> Bytes {
    let mut buffer = Vec::with_capacity(SOCKET_BYTES);
    for reading in readings {
        let topic = &reading.mqtt.as_ref().expect("set").topic;
        if !buffer.is_empty() && buffer.len() + topic.len() + reading.value.len() > SOCKET_BYTES {
            break;
        }
        buffer.extend_from_slice(topic.as_bytes());
        buffer.extend_from_slice(&reading.value);
    }
    Bytes::from(buffer)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn reading(n: u64, value_bytes: usize) -> Reading {
    const NAMES: [&str; 8] =
        ["power_kw", "voltage_l1", "voltage_l2", "voltage_l3", "current_l1", "current_l2", "current_l3", "frequency"];
    let device = format!("line-{}", n % 40);
    let ms = 1_795_248_000_000 + n * 25;
    let mut value = format!(r#"{{"device":"{device}","counter":{},"time":{ms}"#, n / 40);
    for at in 0.. {
        let noise = mix(n * 64 + at);
        let name = NAMES[at as usize % NAMES.len()];
        let more = format!(r#","{name}_{}":{}.{:03}"#, at / 8, noise % 400, noise / 400 % 1000);
        if value.len() + more.len() + 1 > value_bytes {
            break;
        }
        value.push_str(&more);
    }
    value.push('}');
    Reading {
        topic: "telemetry".into(),
        mqtt: Some(MqttOrigin {
            topic: format!("plant/a/{device}/telemetry").into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
        }),
        device: device.into(),
        kind: Kind::Raw,
        flags: Flags::default(),
        received: ReceiptTime { wall_ns: ms as i64 * 1_000_000, mono_ns: n * 25_000_000 },
        device_time_ns: None,
        content_type: "application/json".into(),
        quality: "".into(),
        replay_of: "".into(),
        value: Bytes::from(value),
    }
}
