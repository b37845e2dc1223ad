//! `[outbox]`: the durable store on the gateway.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::units::{ByteSize, Limit, Span};

/// `[outbox]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbox {
    /// Cap on the disk space of everything under the state directory, 8 MiB and up.
    pub max_bytes: ByteSize,
    /// What happens at the cap.
    pub when_full: WhenFull,
    /// Free space of the file system that is never used up.
    pub free_space_floor: ByteSize,
    /// Readings older than this are dropped, with a gap record.
    pub max_age: Limit<Span>,
    /// Largest record (key, headers, value), as Kafka counts; above it: dead letter.
    pub record_bytes_max: ByteSize,
    /// When the medium is synced.
    pub sync: Sync,
    /// How long a sync waits for company; 50-200 ms spares flash on slow sources.
    pub gather: Span,
    /// Codec of the blocks on disk.
    pub compression: Compression,
    /// Delivered generations are kept up to this size (inside `max_bytes`), for replay.
    pub retain: ByteSize,
    /// Bytes received and not yet durable, all sources together.
    pub held_bytes_max: ByteSize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize(1 << 30),
            when_full: WhenFull::Block,
            free_space_floor: ByteSize::mib(64),
            max_age: Limit::Off,
            record_bytes_max: ByteSize::kib(960),
            sync: Sync::Batch,
            gather: Span::millis(0),
            compression: Compression::Zstd,
            retain: ByteSize(0),
            held_bytes_max: ByteSize::mib(32),
        }
    }
}

/// `outbox.when_full`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Take nothing from the sources until there is room.
    Block,
    /// Drop the oldest undelivered generation, with a gap record.
    DropOldest,
    /// Refuse new readings, counted, with a gap record.
    DropNewest,
}

impl WhenFull {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::DropOldest => "drop_oldest",
            Self::DropNewest => "drop_newest",
        }
    }
}

/// `outbox.compression`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Compression {
    Zstd,
    Lz4,
    None,
}

/// `outbox.sync`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// After every gathered batch, before anything is acknowledged.
    Batch,
    /// At most this often, or when much waits. MQTT acknowledgements and the drain wait all the same; a power cut, and a
    /// process that is killed, may lose serial and QoS 0 readings of the interval.
    Interval(Span),
}

impl std::fmt::Display for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch => f.write_str("batch"),
            Self::Interval(span) => write!(f, "interval:{span}"),
        }
    }
}

impl Serialize for Sync {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sync {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.split_once(':') {
            None if text == "batch" => Ok(Self::Batch),
            Some(("interval", span)) => span.parse().map(Self::Interval).map_err(de::Error::custom),
            _ => Err(de::Error::custom(format!("{text:?} is neither \"batch\" nor like \"interval:500ms\""))),
        }
    }
}
