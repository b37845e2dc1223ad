//! From an item of the log to a record of Kafka: topic, key, timestamp, headers, value. Pure: the time comes in.
//!
//! Limits: a topic name has 1 to 249 characters of `[A-Za-z0-9._-]` and is neither `.` nor `..` (Apache Kafka,
//! `Topic.java`); what cannot be made legal becomes a dead letter.
//!
//! The header `fp`, 34 bytes, stands in every record; tails, consumers' filters and audits read this one:
//!
//! | bytes | content |
//! |---|---|
//! | 0..16 | incarnation |
//! | 16..24 | sequence, big-endian |
//! | 24..32 | nonce of the segment (one process start) |
//! | 32 | kind: 0 raw, 1 reading, 2 gap |
//! | 33 | flags: 1 bad, 2 uncertain, 4 unsynchronised, 8 replay, 16 dead |
//!
//! Buffers are reused: encoding a reading allocates nothing once they have grown.

use std::io::Write;
use std::ops::Range;

use serde::Serialize;

use crate::config::delivery::{Headers as Level, TimestampChoice};
use crate::record::{Flags, Hole, Incarnation, Kind, Nonce, Sequence, Stored};

/// Name of the binary header that identifies a record.
pub(crate) const FP_HEADER: &str = "fp";
/// Bytes of the header `fp`.
pub(crate) const FP_BYTES: usize = 34;
/// Longest topic name.
pub(crate) const TOPIC_CHARS_MAX: usize = 249;
/// What a record costs beside key, value and headers: record varints, and the batch header if it travels alone.
const RECORD_OVERHEAD_BYTES: usize = 96;

/// Headers of one record, in one buffer.
#[derive(Debug, Default)]
pub(crate) struct HeaderList {
    bytes: Vec<u8>,
    spans: Vec<(&'static str, Range<usize>)>,
}

impl HeaderList {
    /// Name and value, in order.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&'static str, &[u8])> {
        self.spans.iter().map(|(name, span)| (*name, &self.bytes[span.clone()]))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    fn put(&mut self, name: &'static str, value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.spans.push((name, start..self.bytes.len()));
    }

    fn put_fmt(&mut self, name: &'static str, value: std::fmt::Arguments<'_>) {
        let start = self.bytes.len();
        // Writing to a Vec cannot fail; a Display that fails leaves a shorter value.
        let _ = self.bytes.write_fmt(value);
        self.spans.push((name, start..self.bytes.len()));
    }

    fn put_time(&mut self, name: &'static str, wall_ns: i64) {
        match jiff::Timestamp::from_nanosecond(i128::from(wall_ns)) {
            Ok(time) => self.put_fmt(name, format_args!("{time}")),
            Err(_) => self.put(name, b"invalid"),
        }
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.spans.iter().map(|(name, _)| name.len() + 6).sum::<usize>()
    }
}

/// A record, ready for the producer. Borrows from the encoder and from the item.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    /// Legal topic name.
    pub(crate) topic: &'a str,
    /// Key.
    pub(crate) key: &'a [u8],
    /// Value; empty is an empty value, `None` is none at all.
    pub(crate) value: Option<&'a [u8]>,
    /// Milliseconds since 1970; `None` is the time of sending.
    pub(crate) timestamp_ms: Option<i64>,
    /// Headers.
    pub(crate) headers: &'a HeaderList,
}

impl Record<'_> {
    /// Size as Kafka counts it, rounded up, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.key.len() + self.value.map_or(0, <[u8]>::len) + self.headers.size() + RECORD_OVERHEAD_BYTES
    }
}

/// Why a record is a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadReason {
    /// Short code: `size`, `topic`, or the name of the broker's error. Header `fp_error`, label `reason`.
    pub(crate) code: String,
    /// For people. Header `fp_error_text`.
    pub(crate) text: String,
}

/// Turns items into records.
#[derive(Debug)]
pub(crate) struct Encoder {
    agent_id: String,
    level: Level,
    timestamp: TimestampChoice,
    epoch: (Incarnation, String),
    headers: HeaderList,
    topic: String,
    value: Vec<u8>,
}

#[derive(Serialize)]
struct GapValue<'a> {
    from: u64,
    to: u64,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    bytes: u64,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    sources: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upto: Option<u64>,
    noted_at: String,
}

/// The range that the value of a gap record names, if it is one of ours.
pub(crate) fn gap_range(value: &[u8]) -> Option<(Sequence, Sequence)> {
    #[derive(serde::Deserialize)]
    struct Range {
        from: u64,
        to: u64,
    }
    let range: Range = serde_json::from_slice(value).ok()?;
    (range.from <= range.to).then_some((Sequence(range.from), Sequence(range.to)))
}

/// What the header `fp` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// Life of the outbox.
    pub(crate) incarnation: Incarnation,
    /// Number of the record.
    pub(crate) sequence: Sequence,
    /// Process start that appended it.
    pub(crate) segment: Nonce,
    /// Number of the kind, see [`Kind`].
    pub(crate) kind: u8,
    /// Flags.
    pub(crate) flags: u8,
}

impl Fingerprint {
    /// The 34 bytes.
    pub(crate) fn to_bytes(self) -> [u8; FP_BYTES] {
        let mut bytes = [0; FP_BYTES];
        bytes[..16].copy_from_slice(&self.incarnation.0);
        bytes[16..24].copy_from_slice(&self.sequence.0.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.segment.0);
        bytes[32] = self.kind;
        bytes[33] = self.flags;
        bytes
    }

    /// Reads them back; longer headers of later versions are accepted.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            incarnation: Incarnation(bytes.get(..16)?.try_into().ok()?),
            sequence: Sequence(u64::from_be_bytes(bytes.get(16..24)?.try_into().ok()?)),
            segment: Nonce(bytes.get(24..32)?.try_into().ok()?),
            kind: *bytes.get(32)?,
            flags: *bytes.get(33)?,
        })
    }
}

impl Encoder {
    /// For one agent.
    pub(crate) fn new(agent_id: &str, level: Level, timestamp: TimestampChoice) -> Self {
        let epoch = (Incarnation([0; 16]), Incarnation([0; 16]).epoch());
        let (headers, topic, value) = Default::default();
        Self { agent_id: agent_id.to_owned(), level, timestamp, epoch, headers, topic, value }
    }

    /// The record of a reading; `None` if its topic cannot be made legal.
    pub(crate) fn reading<'a>(&'a mut self, stored: &'a Stored) -> Option<Record<'a>> {
        let timestamp_ms = self.timestamp_of(stored);
        self.reading_headers(stored, timestamp_ms);
        let topic = legal_topic(&stored.reading.topic, &mut self.topic)?;
        let reading = &stored.reading;
        let key = key_of(stored);
        Some(Record { topic, key, value: Some(&reading.value), timestamp_ms, headers: &self.headers })
    }

    /// The record of a reading in the dead-letter topic: as it would have been, and why it is here.
    pub(crate) fn dead_reading<'a>(
        &'a mut self,
        stored: &'a Stored,
        topic: &'a str,
        reason: &DeadReason,
        now_ns: i64,
        local_file: Option<&str>,
    ) -> Record<'a> {
        self.reading_headers(stored, None);
        self.dead_headers(reason, &stored.reading.topic, now_ns, local_file);
        let value = local_file.is_none().then_some(&stored.reading.value[..]);
        Record { topic, key: key_of(stored), value, timestamp_ms: None, headers: &self.headers }
    }

    /// The gap record of a hole, to be sent to `topic`. `upto` is told with the reason `new_incarnation`: the position
    /// that the previous incarnation had reached.
    pub(crate) fn hole<'a>(&'a mut self, hole: &Hole, topic: &'a str, upto: Option<Sequence>) -> Record<'a> {
        let kind = Kind::Gap;
        let fingerprint = Fingerprint {
            incarnation: hole.incarnation,
            sequence: hole.to,
            segment: hole.segment,
            kind: kind as u8,
            flags: 0,
        };
        self.refresh_epoch(hole.incarnation);
        let headers = &mut self.headers;
        headers.clear();
        headers.put(FP_HEADER, &fingerprint.to_bytes());
        if self.level != Level::Minimal {
            headers.put("ce_specversion", b"1.0");
            headers.put("ce_type", ce_type(kind));
            headers.put_fmt("ce_id", format_args!("{}/{}/{}", self.agent_id, self.epoch.1, hole.to));
            headers.put_fmt("ce_source", format_args!("/gateways/{}", self.agent_id));
            headers.put_time("ce_time", hole.noted.wall_ns);
            headers.put("content-type", b"application/json");
        }
        if self.level == Level::Full {
            headers.put_fmt("ce_sequence", format_args!("{:020}", hole.to.0));
            headers.put("fp_boot", hole.boot_id.as_bytes());
        }
        let one_source = (hole.sources.len() == 1).then(|| hole.sources[0].0.as_str());
        let value = GapValue {
            from: hole.from.0,
            to: hole.to.0,
            reason: &hole.reason,
            source: one_source,
            bytes: hole.bytes,
            sources: hole.sources.iter().map(|(name, count)| (name.to_string(), (*count).into())).collect(),
            previous: hole.previous.map(Incarnation::to_hex),
            upto: hole.previous.and(upto).map(|s| s.0),
            noted_at: jiff::Timestamp::from_nanosecond(i128::from(hole.noted.wall_ns))
                .map_or_else(|_| "invalid".to_owned(), |time| time.to_string()),
        };
        self.value.clear();
        serde_json::to_writer(&mut self.value, &value).expect("numbers and text always become JSON");
        Record {
            topic,
            key: self.agent_id.as_bytes(),
            value: Some(&self.value),
            timestamp_ms: None,
            headers: &self.headers,
        }
    }

    fn timestamp_of(&self, stored: &Stored) -> Option<i64> {
        let received_ms = stored.reading.received.wall_ns / 1_000_000;
        let use_received = self.timestamp == TimestampChoice::Received
            && !stored.reading.flags.contains(Flags::UNSYNCHRONISED)
            && received_ms > 0;
        use_received.then_some(received_ms)
    }

    fn refresh_epoch(&mut self, incarnation: Incarnation) {
        if self.epoch.0 != incarnation {
            self.epoch = (incarnation, incarnation.epoch());
        }
    }

    fn reading_headers(&mut self, stored: &Stored, timestamp_ms: Option<i64>) {
        let reading = &stored.reading;
        self.refresh_epoch(stored.incarnation);
        let headers = &mut self.headers;
        headers.clear();
        let fingerprint = Fingerprint {
            incarnation: stored.incarnation,
            sequence: stored.sequence,
            segment: stored.segment,
            kind: reading.kind as u8,
            flags: reading.flags.0,
        };
        headers.put(FP_HEADER, &fingerprint.to_bytes());
        if self.level == Level::Minimal {
            return;
        }
        headers.put("ce_specversion", b"1.0");
        headers.put("ce_type", ce_type(reading.kind));
        headers.put_fmt("ce_id", format_args!("{}/{}/{}", self.agent_id, self.epoch.1, stored.sequence));
        headers.put_fmt("ce_source", format_args!("/gateways/{}/{}", self.agent_id, stored.source));
        headers.put("ce_subject", key_of(stored));
        headers.put_time("ce_time", reading.device_time_ns.unwrap_or(reading.received.wall_ns));
        if !reading.content_type.is_empty() {
            headers.put("content-type", reading.content_type.as_bytes());
        }
        if let Some(mqtt) = &reading.mqtt {
            headers.put("mqtt_topic", mqtt.topic.as_bytes());
        }
        if !reading.quality.is_empty() {
            headers.put("fp_quality", reading.quality.as_bytes());
        }
        if reading.flags.contains(Flags::UNSYNCHRONISED) {
            headers.put("fp_clock", b"unsynced");
        }
        if !reading.replay_of.is_empty() {
            headers.put("fp_replay_of", reading.replay_of.as_bytes());
        }
        if timestamp_ms.is_none() || self.level == Level::Full {
            headers.put_time("fp_received", reading.received.wall_ns);
        }
        if self.level == Level::Full {
            headers.put_fmt("ce_sequence", format_args!("{:020}", stored.sequence.0));
            headers.put_fmt("fp_mono", format_args!("{}", reading.received.mono_ns));
            headers.put("fp_boot", stored.boot_id.as_bytes());
            if let Some(mqtt) = &reading.mqtt {
                headers.put_fmt("mqtt_qos", format_args!("{}", mqtt.qos as u8));
                headers.put_fmt("mqtt_retain", format_args!("{}", mqtt.retain));
                headers.put_fmt("mqtt_dup", format_args!("{}", mqtt.dup));
            }
        }
    }

    fn dead_headers(&mut self, reason: &DeadReason, origin_topic: &str, now_ns: i64, local_file: Option<&str>) {
        self.headers.put("fp_error", reason.code.as_bytes());
        self.headers.put("fp_error_text", reason.text.as_bytes());
        self.headers.put("fp_origin_topic", origin_topic.as_bytes());
        self.headers.put_time("fp_failed_at", now_ns);
        if let Some(file) = local_file {
            self.headers.put("fp_local_file", file.as_bytes());
        }
    }
}

/// The device, or the source where no device was found.
pub(crate) fn key_of(stored: &Stored) -> &[u8] {
    if stored.reading.device.is_empty() { stored.source.as_str().as_bytes() } else { stored.reading.device.as_bytes() }
}

fn ce_type(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Raw => b"io.fieldpost.raw.v1",
        Kind::Reading => b"io.fieldpost.reading.v1",
        Kind::Gap => b"io.fieldpost.gap.v1",
    }
}

fn legal_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// `/` becomes `.`, every other illegal character `_`; `None` if the result is empty, too long, `.` or `..`.
pub(crate) fn legal_topic<'a>(topic: &'a str, buffer: &'a mut String) -> Option<&'a str> {
    let legal = if topic.bytes().all(legal_char) {
        topic
    } else {
        buffer.clear();
        buffer.extend(topic.chars().map(|c| match c {
            '/' => '.',
            c if c.is_ascii() && legal_char(c as u8) => c,
            _ => '_',
        }));
        buffer.as_str()
    };
    (!legal.is_empty() && legal.len() <= TOPIC_CHARS_MAX && legal != "." && legal != "..").then_some(legal)
}

/// The partition of a key, as the Java client and librdkafka's `murmur2_random` choose it for keys that are not null.
pub(crate) fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

/// MurmurHash2 with the seed of Apache Kafka (`Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(gap_range(record.value.unwrap()), Some((Sequence(100), Sequence(180))));
        assert_eq!(Fingerprint::from_bytes(header(&record, "fp").unwrap()).unwrap().sequence, Sequence(180));
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
            let _ = gap_range(&bytes);
        }
    }
}
