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
    ranges: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct GapValue<'a> {
    from: u64,
    to: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ranges: &'a [(u64, u64)],
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

/// The ranges that the value of a gap record names, inclusive and ascending, if it is one of ours.
pub(crate) fn gap_ranges(value: &[u8]) -> Option<Vec<(Sequence, Sequence)>> {
    #[derive(serde::Deserialize)]
    struct Named {
        from: u64,
        to: u64,
        #[serde(default)]
        ranges: Vec<(u64, u64)>,
    }
    let Named { from, to, mut ranges } = serde_json::from_slice(value).ok()?;
    if ranges.is_empty() {
        ranges.push((from, to));
    }
    let ascends = ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
    let ends = (ranges[0].0, ranges[ranges.len() - 1].1) == (from, to);
    let good = ascends && ends && ranges.iter().all(|(from, to)| from <= to);
    good.then(|| ranges.into_iter().map(|(from, to)| (Sequence(from), Sequence(to))).collect())
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
        let (headers, topic, value, ranges) = Default::default();
        Self { agent_id: agent_id.to_owned(), level, timestamp, epoch, headers, topic, value, ranges }
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
        self.ranges.clear();
        self.ranges.extend(hole.ranges.iter().map(|(from, to)| (from.0, to.0)));
        let value = GapValue {
            from: hole.from.0,
            to: hole.to.0,
            ranges: &self.ranges,
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
#[path = "encode_tests.rs"]
mod tests;
