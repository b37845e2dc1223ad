//! What travels through Fieldpost: plain data, known to every stage, knowing none.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;

/// The name of a source: the name of its table in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub ByteString);

impl SourceId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for SourceId {
    fn from(name: &str) -> Self {
        Self(ByteString::from(name))
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Position of an entry in the log: +1 for every entry of any kind, never used again once durable.
///
/// Key of a block, name of a generation, base of the hole check. See `outbox::entry` for the kinds of entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Index(pub u64);

/// Number of a reading or gap record, +1 over all topics and sources of one agent; the number in `ce_id`.
///
/// The first one an agent ever gives is 1, so that 0 means "nothing yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence that follows this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of an outbox: 128 random bits, made with the outbox and renewed when its history is no longer certain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub [u8; 16]);

impl Incarnation {
    /// All 32 hexadecimal digits.
    pub fn to_hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The first 16 hexadecimal digits: the epoch in `ce_id`.
    pub fn epoch(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..8])
    }

    /// Reads 32 hexadecimal digits back.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({})", self.epoch())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// A random mark of 64 bits: of a segment (one process start that appends) or of a delivery session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Nonce(pub [u8; 8]);

impl Nonce {
    /// 16 hexadecimal digits.
    pub fn to_hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// Reads 16 hexadecimal digits back.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nonce({})", self.to_hex())
    }
}

/// What the value of a record holds. The numbers are part of the `fp` header and of the block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Bytes as they were received.
    Raw = 0,
    /// Canonical JSON made by a decoder.
    Reading = 1,
    /// Says what was lost, and why.
    Gap = 2,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Reading),
            2 => Some(Self::Gap),
            _ => None,
        }
    }
}

/// Marks of a reading, one bit each. The numbers are part of the `fp` header and of the block format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// Quality is bad: checksum or decoding failed; the value holds the bytes as received.
    pub const BAD: Self = Self(1);
    /// Quality is uncertain.
    pub const UNCERTAIN: Self = Self(2);
    /// The wall clock was not synchronised when the reading came.
    pub const UNSYNCHRONISED: Self = Self(4);
    /// A copy of an earlier reading, sent again on request.
    pub const REPLAY: Self = Self(8);
    /// Cannot become an ordinary record (larger than `record_bytes_max`): the drain makes it a dead letter.
    pub const DEAD: Self = Self(16);

    /// Whether every bit of `other` is set here.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// When a reading came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceiptTime {
    /// Wall clock, nanoseconds since 1970-01-01 UTC. May be far off while `UNSYNCHRONISED`.
    pub wall_ns: i64,
    /// `CLOCK_BOOTTIME`, nanoseconds; comparable within one boot only (the boot id stands in the segment).
    pub mono_ns: u64,
}

/// MQTT quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Qos {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

impl Qos {
    /// The level with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// How an MQTT message arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttOrigin {
    /// Topic as received, before any legalisation for Kafka.
    pub topic: ByteString,
    /// Quality of service of the delivery to us.
    pub qos: Qos,
    /// Retain flag as received.
    pub retain: bool,
    /// DUP flag as received.
    pub dup: bool,
}

/// One reading as a source hands it on: what becomes one Kafka record.
///
/// It has no sequence yet: the outbox gives it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Kafka topic, already legal; empty or over 249 characters makes the record a dead letter `topic`.
    pub topic: ByteString,
    /// Device id: the record's key.
    pub device: ByteString,
    /// What `value` holds.
    pub kind: Kind,
    /// Marks.
    pub flags: Flags,
    /// When its last byte was received.
    pub received: ReceiptTime,
    /// The device's own time, nanoseconds since 1970-01-01 UTC, if it sent one.
    pub device_time_ns: Option<i64>,
    /// Media type of `value`; empty if unknown.
    pub content_type: ByteString,
    /// Why the quality is not good (`bad crc`, `bad json`, ...); empty if it is good.
    pub quality: ByteString,
    /// MQTT particulars; `None` for other sources.
    pub mqtt: Option<MqttOrigin>,
    /// `ce_id` of the record this one repeats; empty if it is none.
    pub replay_of: ByteString,
    /// The record's value. Empty is an empty value, never a tombstone.
    pub value: Bytes,
}

impl Reading {
    /// Size as Kafka counts it towards `record_bytes_max`, headers estimated from what they are made of, in bytes.
    pub fn record_bytes(&self) -> usize {
        const HEADERS_FIXED_BYTES: usize = 320;
        let mqtt = self.mqtt.as_ref().map_or(0, |m| m.topic.len());
        HEADERS_FIXED_BYTES
            + self.device.len() * 2
            + self.content_type.len()
            + self.quality.len()
            + self.replay_of.len()
            + mqtt
            + self.value.len()
    }
}

/// One reading out of the log: with its place, ready to be encoded for Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub sequence: Sequence,
    /// The life of the outbox that gave the number.
    pub incarnation: Incarnation,
    /// Nonce of the segment that appended it.
    pub segment: Nonce,
    /// Kernel boot id of that segment (text form of `/proc/sys/kernel/random/boot_id`).
    pub boot_id: ByteString,
    /// The source it came from.
    pub source: SourceId,
    /// The reading.
    pub reading: Reading,
}

/// Sequences that were removed before delivery, or never came to be: becomes one gap record with sequence `to`.
///
/// It names all of `from..=to`, unless `ranges` says which parts of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// First sequence missing.
    pub from: Sequence,
    /// Last sequence missing, inclusive.
    pub to: Sequence,
    /// Only these are missing, inclusive, ascending, the first beginning with `from` and the last ending with `to`. Empty:
    /// everything from `from` through `to`. The log hands out none with ranges; the drain makes them (`delivery::merge`).
    pub ranges: Vec<(Sequence, Sequence)>,
    /// The life of the outbox whose numbers these are.
    pub incarnation: Incarnation,
    /// Nonce of the segment that noted it.
    pub segment: Nonce,
    /// Kernel boot id of that segment.
    pub boot_id: ByteString,
    /// When it was noted.
    pub noted: ReceiptTime,
    /// Short word: `drop_oldest`, `drop_newest`, `damage`, `new_incarnation`, ...
    pub reason: ByteString,
    /// Payload bytes removed, 0 if unknown.
    pub bytes: u64,
    /// Readings removed per source, where known.
    pub sources: Vec<(SourceId, u64)>,
    /// For `new_incarnation`: the incarnation before this one.
    pub previous: Option<Incarnation>,
}

/// What the drain reads: every sequence is accounted for by exactly one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A reading (or a gap record that a source wrote: `Kind::Gap`).
    Reading(Stored),
    /// A range without readings, to be told as a gap record.
    Hole(Hole),
}

impl Item {
    /// First sequence this item accounts for.
    pub fn first(&self) -> Sequence {
        match self {
            Self::Reading(stored) => stored.sequence,
            Self::Hole(hole) => hole.from,
        }
    }

    /// Last sequence this item accounts for, inclusive; the sequence of its record.
    pub fn last(&self) -> Sequence {
        match self {
            Self::Reading(stored) => stored.sequence,
            Self::Hole(hole) => hole.to,
        }
    }

    /// The life of the outbox that gave the sequences.
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Self::Reading(stored) => stored.incarnation,
            Self::Hole(hole) => hole.incarnation,
        }
    }
}
