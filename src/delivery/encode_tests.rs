use super::*;
use crate::record::{MqttOrigin, Qos, Reading, ReceiptTime, SourceId};
use bytes::Bytes;
use proptest::prelude::*;

fn stored(topic: &str, device: &str, value: &[u8]) -> Stored {
    Stored {
        sequence: Sequence(184_467),
        incarnation: Incarnation(*b"\x3f\x9c\x2a\x7e\x10\xb4\xd8\xf2abcdefgh"),
        segment: Nonce([7; 8]),
        boot_id: "boot".into(),
        source: "plant".into(),
        reading: Reading {
            topic: topic.into(),
            device: device.into(),
            kind: Kind::Raw,
            flags: Flags::default(),
            received: ReceiptTime { wall_ns: 1_795_253_282_123_456_789, mono_ns: 42 },
            device_time_ns: None,
            content_type: "application/json".into(),
            quality: "".into(),
            mqtt: Some(MqttOrigin {
                topic: "plant/a/line-3/telemetry".into(),
                qos: Qos::AtLeastOnce,
                retain: false,
                dup: true,
            }),
            replay_of: "".into(),
            value: Bytes::copy_from_slice(value),
        },
    }
}

fn header<'a>(record: &'a Record<'_>, name: &str) -> Option<&'a [u8]> {
    record.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
}

#[test]
fn a_reading_at_the_default_level_carries_what_the_contract_names() {
    let stored = stored("telemetry", "line-3", b"{}");
    let mut encoder = Encoder::new("gw-0017", Level::Cloudevents, TimestampChoice::Received);
    let record = encoder.reading(&stored).unwrap();
    assert_eq!((record.topic, record.key, record.value), ("telemetry", &b"line-3"[..], Some(&b"{}"[..])));
    assert_eq!(record.timestamp_ms, Some(1_795_253_282_123));
    assert_eq!(header(&record, "ce_id").unwrap(), b"gw-0017/3f9c2a7e10b4d8f2/184467");
    assert_eq!(header(&record, "ce_source").unwrap(), b"/gateways/gw-0017/plant");
    assert_eq!(header(&record, "ce_time").unwrap(), b"2026-11-21T09:28:02.123456789Z");
    assert_eq!(header(&record, "mqtt_topic").unwrap(), b"plant/a/line-3/telemetry");
    assert!(header(&record, "fp_received").is_none() && header(&record, "mqtt_qos").is_none());
    let fp = Fingerprint::from_bytes(header(&record, "fp").unwrap()).unwrap();
    assert_eq!((fp.sequence, fp.segment, fp.incarnation), (stored.sequence, stored.segment, stored.incarnation));
}

#[test]
fn minimal_has_one_header_and_full_has_all() {
    let stored = stored("telemetry", "line-3", b"{}");
    let mut minimal = Encoder::new("gw", Level::Minimal, TimestampChoice::Received);
    assert_eq!(minimal.reading(&stored).unwrap().headers.iter().len(), 1);
    let mut full = Encoder::new("gw", Level::Full, TimestampChoice::Received);
    let record = full.reading(&stored).unwrap();
    assert_eq!(header(&record, "ce_sequence").unwrap(), b"00000000000000184467");
    assert_eq!(header(&record, "mqtt_qos").unwrap(), b"1");
    assert_eq!(header(&record, "mqtt_dup").unwrap(), b"true");
    assert_eq!(header(&record, "fp_mono").unwrap(), b"42");
}

#[test]
fn an_unsynchronised_reading_uses_the_time_of_sending_and_keeps_the_truth() {
    let mut stored = stored("telemetry", "line-3", b"{}");
    stored.reading.flags = Flags::UNSYNCHRONISED;
    let mut encoder = Encoder::new("gw", Level::Cloudevents, TimestampChoice::Received);
    let record = encoder.reading(&stored).unwrap();
    assert_eq!(record.timestamp_ms, None);
    assert_eq!(header(&record, "fp_clock").unwrap(), b"unsynced");
    assert!(header(&record, "fp_received").is_some());
}

#[test]
fn without_a_device_the_source_is_the_key() {
    let stored = stored("telemetry", "", b"");
    let mut encoder = Encoder::new("gw", Level::Minimal, TimestampChoice::Received);
    assert_eq!(encoder.reading(&stored).unwrap().key, b"plant");
}

#[test]
fn topics_are_made_legal_or_refused() {
    let mut buffer = String::new();
    assert_eq!(legal_topic("plant/a/ü b", &mut buffer), Some("plant.a.__b"));
    for bad in ["", ".", "..", "/", &"x".repeat(250)] {
        assert_eq!(legal_topic(bad, &mut buffer), None, "{bad:?}");
    }
    assert!(legal_topic(&"x".repeat(249), &mut buffer).is_some());
}

#[test]
fn a_gap_record_names_the_range_and_reads_back() {
    let hole = Hole {
        from: Sequence(100),
        to: Sequence(180),
        ranges: Vec::new(),
        incarnation: Incarnation([1; 16]),
        segment: Nonce([2; 8]),
        boot_id: "b".into(),
        noted: ReceiptTime::default(),
        reason: "drop_oldest".into(),
        bytes: 9000,
        sources: vec![(SourceId::from("plant"), 81)],
        previous: Some(Incarnation([9; 16])),
    };
    let mut encoder = Encoder::new("gw", Level::Cloudevents, TimestampChoice::Received);
    let record = encoder.hole(&hole, "fieldpost.dead-letters", Some(Sequence(77)));
    assert_eq!(record.key, b"gw");
    let value: serde_json::Value = serde_json::from_slice(record.value.unwrap()).unwrap();
    assert_eq!(value["from"], 100);
    assert_eq!(value["source"], "plant");
    assert_eq!(value["upto"], 77);
    assert!(value.get("ranges").is_none(), "a plain range is told as ever");
    assert_eq!(gap_ranges(record.value.unwrap()), Some(vec![(Sequence(100), Sequence(180))]));
    assert_eq!(Fingerprint::from_bytes(header(&record, "fp").unwrap()).unwrap().sequence, Sequence(180));

    let hole = Hole { ranges: vec![(Sequence(100), Sequence(120)), (Sequence(180), Sequence(180))], ..hole };
    let record = encoder.hole(&hole, "fieldpost.dead-letters", None);
    let value: serde_json::Value = serde_json::from_slice(record.value.unwrap()).unwrap();
    assert_eq!(value["ranges"], serde_json::json!([[100, 120], [180, 180]]));
    assert_eq!(gap_ranges(record.value.unwrap()), Some(hole.ranges));
}

#[test]
fn ranges_that_contradict_themselves_are_not_believed() {
    for ranges in ["[[1,2],[2,9]]", "[[2,9]]", "[[1,3]]", "[[1,5],[9,8],[9,9]]", "[[1]]"] {
        let value = format!("{{\"from\":1,\"to\":9,\"ranges\":{ranges},\"reason\":\"purge\"}}");
        assert_eq!(gap_ranges(value.as_bytes()), None, "{ranges}");
    }
}

#[test]
fn a_dead_letter_keeps_the_original_and_says_why() {
    let stored = stored("telemetry", "line-3", b"big");
    let reason = DeadReason { code: "size".into(), text: "3 bytes are too many".into() };
    let mut encoder = Encoder::new("gw", Level::Cloudevents, TimestampChoice::Received);
    let record = encoder.dead_reading(&stored, "dlq", &reason, 0, None);
    assert_eq!((record.topic, record.value), ("dlq", Some(&b"big"[..])));
    assert_eq!(header(&record, "fp_error").unwrap(), b"size");
    assert_eq!(header(&record, "fp_origin_topic").unwrap(), b"telemetry");
    let record = encoder.dead_reading(&stored, "dlq", &reason, 0, Some("dead/x"));
    assert_eq!(record.value, None);
}

/// Vectors of Apache Kafka's `UtilsTest.testMurmur2`.
#[test]
fn murmur2_agrees_with_the_java_client() {
    for (text, hash) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(text.as_bytes()) as i32, hash, "{text}");
    }
}

proptest! {
    #[test]
    fn any_reading_encodes_to_something_legal(
        topic in ".{0,300}", device in ".{0,40}", quality in ".{0,20}", value in prop::collection::vec(any::<u8>(), 0..200),
        wall_ns in any::<i64>(), device_time in any::<Option<i64>>(), flags in any::<u8>(), level in 0..3,
    ) {
        let mut stored = stored(&topic, &device, &value);
        stored.reading.quality = quality.into();
        stored.reading.received.wall_ns = wall_ns;
        stored.reading.device_time_ns = device_time;
        stored.reading.flags = Flags(flags);
        let level = [Level::Minimal, Level::Cloudevents, Level::Full][level as usize];
        let mut encoder = Encoder::new("gw", level, TimestampChoice::Received);
        if let Some(record) = encoder.reading(&stored) {
            prop_assert!(!record.topic.is_empty() && record.topic.len() <= TOPIC_CHARS_MAX);
            prop_assert!(record.topic.bytes().all(legal_char));
            prop_assert!(!record.key.is_empty());
            prop_assert!(record.timestamp_ms.is_none_or(|ms| ms > 0));
            prop_assert!(record.size() >= record.key.len() + value.len());
            prop_assert_eq!(header(&record, "fp").map(<[u8]>::len), Some(FP_BYTES));
        }
    }

    #[test]
    fn any_bytes_are_a_fingerprint_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert_eq!(Fingerprint::from_bytes(&bytes).is_some(), bytes.len() >= FP_BYTES);
        let _ = gap_ranges(&bytes);
    }
}
