//! The files of delivery in the fixtures of the outbox (`src/outbox/fixture_write_tests.rs`).

use std::path::Path;

use super::dead::DeadStore;
use super::encode::DeadReason;
use crate::record::{
    Flags, Hole, Incarnation, Kind, MqttOrigin, Nonce, Qos, Reading, ReceiptTime, Sequence, SourceId, Stored,
};

/// Writes `hints` and `dead/` as this version does.
pub(crate) fn write_fixture_files(outbox: &Path) {
    super::kafka::write_fixture_hints(outbox);
    let store = DeadStore::new(outbox, 1 << 20);
    let stored = Stored {
        sequence: Sequence(9),
        incarnation: Incarnation([1; 16]),
        segment: Nonce([2; 8]),
        boot_id: "boot".into(),
        source: "plant".into(),
        reading: Reading {
            topic: "telemetry".into(),
            device: "meter-1".into(),
            kind: Kind::Raw,
            flags: Flags::DEAD,
            received: ReceiptTime { wall_ns: 1_750_000_000_000_000_000, mono_ns: 1 },
            device_time_ns: None,
            content_type: "".into(),
            quality: "".into(),
            mqtt: Some(MqttOrigin { topic: "plant/1".into(), qos: Qos::AtLeastOnce, retain: false, dup: false }),
            replay_of: "".into(),
            value: bytes::Bytes::from_static(b"\n\x00too large"),
        },
    };
    let reason = DeadReason { code: "size".to_owned(), text: "too large".to_owned() };
    store.keep("gw-1", &stored, &reason).unwrap();
    let hole = Hole {
        from: Sequence(20),
        to: Sequence(29),
        incarnation: Incarnation([1; 16]),
        segment: Nonce([2; 8]),
        boot_id: "boot".into(),
        noted: ReceiptTime { wall_ns: 1_750_000_001_000_000_000, mono_ns: 2 },
        reason: "drop_oldest".into(),
        bytes: 1234,
        ranges: Vec::new(),
        sources: vec![(SourceId::from("plant"), 10)],
        previous: None,
    };
    store.keep_gap("gw-1", &hole).unwrap();
}
