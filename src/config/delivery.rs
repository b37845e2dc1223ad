//! `[delivery]`: the drain into Kafka.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::units::{ByteSize, Span};

/// `[delivery]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delivery {
    /// `txn` (exactly once) or `idempotent`.
    pub mode: Mode,
    /// Where the delivered position is kept.
    pub position: PositionStore,
    /// Compacted topic that holds the position of each agent.
    pub ledger_topic: String,
    /// Topic for records that can never be delivered; `off` keeps them on the gateway.
    pub dead_letter_topic: String,
    /// How many headers a record carries.
    pub headers: Headers,
    /// What the Kafka timestamp says.
    pub timestamp: TimestampChoice,
    /// `transactional.id` = this prefix + the agent's id.
    pub transactional_id_prefix: String,
    /// A dead agent holds readers back for this long at most; rises on slow links.
    pub transaction_timeout: Span,
    /// One record may take this long to be acknowledged; rises on slow links.
    pub message_timeout: Span,
    /// Idempotent mode: wait before reading back.
    pub settle_time: Span,
    /// What to do when the cluster is another one than before.
    pub on_cluster_change: OnClusterChange,
    /// Catch-up limit: `off`, `2MiB/s`, `5000/s`.
    pub rate_max: String,
    /// When the uplink may be used, as in `Mon-Fri 22:00-06:00`; empty: always.
    pub windows: Vec<String>,
    /// A waiting batch goes at this many records.
    pub batch_records_max: u32,
    /// A waiting batch goes at this size.
    pub batch_bytes_max: ByteSize,
    /// A waiting batch goes after this time.
    pub max_wait: Span,
    /// Whether missing data topics may be created.
    pub create_topics: bool,
    /// `[delivery.kafka]`
    pub kafka: Kafka,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            mode: Mode::Txn,
            position: PositionStore::Ledger,
            ledger_topic: "fieldpost.ledger".to_owned(),
            dead_letter_topic: "fieldpost.dead-letters".to_owned(),
            headers: Headers::Cloudevents,
            timestamp: TimestampChoice::Received,
            transactional_id_prefix: "fieldpost.".to_owned(),
            transaction_timeout: Span::secs(15),
            message_timeout: Span::secs(10),
            settle_time: Span::secs(30),
            on_cluster_change: OnClusterChange::Hold,
            rate_max: "off".to_owned(),
            windows: Vec::new(),
            batch_records_max: 5000,
            batch_bytes_max: ByteSize::mib(2),
            max_wait: Span::millis(100),
            create_topics: false,
            kafka: Kafka::default(),
        }
    }
}

/// `[delivery.kafka]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// `host:port` of some brokers.
    pub bootstrap_servers: Vec<String>,
    /// Present: TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Present: SASL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
    /// Codec of the record batches.
    pub compression: KafkaCompression,
    /// Passed through to librdkafka; what would break a promise is refused.
    pub properties: BTreeMap<String, String>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            bootstrap_servers: Vec::new(),
            tls: None,
            sasl: None,
            compression: KafkaCompression::Lz4,
            properties: BTreeMap::new(),
        }
    }
}

/// `tls = { ... }`, of Kafka and of MQTT sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file of the authorities to trust; absent: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// `false` accepts any certificate: loud, for trials only.
    pub verify: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self { ca_file: None, cert_file: None, key_file: None, verify: true }
    }
}

/// `sasl = { ... }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, `OAUTHBEARER`.
    pub mechanism: String,
    /// User name.
    pub username: String,
    /// File that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Name of a systemd credential that holds the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_credential: Option<String>,
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),* $(,)? } default $default:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),* }
        impl Default for $name { fn default() -> Self { Self::$default } }
        impl $name {
            /// The word in the configuration.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $word),* } }
        }
    };
}
pub(crate) use words;

words! {
    /// `delivery.mode`
    Mode {
        /// Transactions and a ledger: exactly once.
        Txn = "txn",
        /// Headers and read-back: no duplicates but those delayed longer than the settle time.
        Idempotent = "idempotent",
    } default Txn
}
words! {
    /// `delivery.position`
    PositionStore {
        /// A compacted topic.
        Ledger = "ledger",
        /// Offsets of a synthetic consumer group.
        Group = "group",
    } default Ledger
}
words! {
    /// `delivery.headers`
    Headers {
        /// Only the binary header `fp`.
        Minimal = "minimal",
        /// CloudEvents, binary mode.
        Cloudevents = "cloudevents",
        /// Everything known.
        Full = "full",
    } default Cloudevents
}
words! {
    /// `delivery.timestamp`
    TimestampChoice {
        /// Receipt time (unsynchronised readings use send time).
        Received = "received",
        /// Send time.
        Sent = "sent",
    } default Received
}
words! {
    /// `delivery.on_cluster_change`
    OnClusterChange {
        /// Keep buffering, raise an alarm.
        Hold = "hold",
        /// Go on after the local position.
        Continue = "continue",
        /// Send again all that is still held.
        Resend = "resend",
    } default Hold
}
words! {
    /// `delivery.kafka.compression`
    #[allow(missing_docs)]
    KafkaCompression { None = "none", Lz4 = "lz4", Zstd = "zstd", Snappy = "snappy", Gzip = "gzip" } default Lz4
}
