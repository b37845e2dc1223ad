//! What the tests of this stage have in common.

use bytes::Bytes;

use crate::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime};

/// A reading whose contents follow from `seed`.
pub(super) fn reading_of(seed: u64, value_bytes: usize, incompressible: bool) -> Reading {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let value: Vec<u8> = if incompressible {
        (0..value_bytes).map(|_| random() as u8).collect()
    } else {
        let text = format!("{{\"n\":{seed},\"power\":{},\"voltage\":230.1}}", random() % 10_000);
        text.bytes().cycle().take(value_bytes).collect()
    };
    let bare = random() % 4 == 0;
    let text = |text: &str| if bare { "".into() } else { text.into() };
    Reading {
        topic: "telemetry".into(),
        device: format!("line-{}", seed % 7).into(),
        kind: if bare { Kind::Raw } else { Kind::Reading },
        flags: Flags((seed % 8) as u8),
        received: ReceiptTime { wall_ns: 1_700_000_000_000_000_000 + (seed % 1_000_000) as i64, mono_ns: seed },
        device_time_ns: (!bare).then_some(seed as i64),
        content_type: text("application/json"),
        quality: text("bad crc"),
        mqtt: (!bare).then(|| MqttOrigin {
            topic: "plant/a/line".into(),
            qos: Qos::ExactlyOnce,
            retain: seed % 2 == 0,
            dup: seed % 3 == 0,
        }),
        replay_of: text(""),
        value: Bytes::from(value),
    }
}
