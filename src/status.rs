//! What each stage tells about itself: the parts of `/status` and of `fieldpost status`. Field names are a contract
//! with users. Times are RFC 3339 text in UTC.

mod ask;
mod table;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

pub use ask::{ask, ask_port};
pub use table::{summary, table};

/// The outbox. Sequences are inclusive, except `next`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutboxStatus {
    /// Readings that wait for delivery.
    pub records: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// The cap on them.
    pub bytes_max: u64,
    /// The sequence the next reading gets.
    pub next: u64,
    /// Last sequence on the medium.
    pub durable: u64,
    /// Last sequence that Kafka has for certain.
    pub committed: u64,
    /// Age of the oldest waiting reading, 0 if none waits.
    pub oldest_age_seconds: f64,
    /// Policy when full: `block`, `drop_oldest`, `drop_newest`.
    pub when_full: String,
    /// `ok`, `full`, `failing: ...`.
    pub state: String,
    /// Readings dropped since the process began (policies, purges), and those refused since the outbox was made, whose count
    /// stands in the log.
    pub dropped: u64,
    /// Generations set aside as damaged.
    pub damaged: u64,
    /// When the medium is synced: `batch`, or like `interval:5s`.
    #[serde(default)]
    pub sync: String,
    /// How long a reading may wait for its sync to begin: what a power cut or a killed process may take of serial lines
    /// and QoS 0. MQTT acknowledgements wait for the sync.
    #[serde(default)]
    pub loss_window_seconds: f64,
    /// Syncs that made readings durable, since start.
    #[serde(default)]
    pub syncs: u64,
    /// Bytes of values made durable, since start.
    #[serde(default)]
    pub payload_bytes: u64,
    /// Bytes that go to the medium per day at the present rate; absent in the first seconds, and where the kernel does
    /// not count.
    #[serde(default)]
    pub daily_write_bytes: Option<u64>,
    /// Bytes to the medium per byte of payload at the present rate.
    #[serde(default)]
    pub written_per_payload_byte: Option<f64>,
    /// What the estimate rests on.
    #[serde(default)]
    pub daily_write_basis: Option<String>,
}

/// The drain into Kafka.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeliveryStatus {
    /// State of the delivery machine: `offline`, `initialising`, `recovering`, `idle`, `committing`, `recycling`, `halted`.
    pub phase: String,
    /// Since when.
    pub since: String,
    /// When the last transaction was committed.
    pub last_commit_at: Option<String>,
    /// What went wrong last, and when.
    pub last_error: Option<String>,
    /// Transactions committed since start.
    pub transactions: u64,
    /// Records committed since start.
    pub records: u64,
    /// What is promised in the mode in force.
    pub guarantee: String,
    /// Standing alarms: what the owner must do for delivery to go on, or which defence is off.
    pub alarms: Vec<String>,
}

/// One source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `mqtt` or `serial`.
    pub r#type: String,
    /// `connecting`, `up`, `held` (the outbox takes no more), `down`, `stopped`.
    pub state: String,
    /// Since when.
    pub since: String,
    /// Messages or frames that arrived.
    pub received: u64,
    /// Readings that are on the medium.
    pub accepted: u64,
    /// Acknowledgements handed to the source.
    pub acknowledged: u64,
    /// Messages or frames refused or dropped.
    pub rejected: u64,
    /// Redeliveries recognised and skipped.
    pub duplicates: u64,
    /// When something last arrived.
    pub last_at: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Standing alarms: what the owner must do.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Its readings that are stored and not delivered, counted about five times a second.
    #[serde(default)]
    pub queued_records: u64,
    /// What they take on disk.
    #[serde(default)]
    pub queued_bytes: u64,
    /// Why the outbox does not let it in at the moment, if so: `share_max`, `priority`.
    #[serde(default)]
    pub outside: Option<String>,
}

/// The daemon as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// `agent.id`
    pub id: String,
    /// Version of the program.
    pub version: String,
    /// 32 hexadecimal digits.
    pub incarnation: String,
    /// When this process started.
    pub started_at: String,
    /// What is promised in the mode in force.
    pub guarantee: String,
    /// `agent.state_dir` of this process: the directory itself, not its name ([`directory_id`]). A copy has another one.
    #[serde(default)]
    pub state_dir_id: Option<String>,
}

/// What tells a directory from every copy of it on this machine: device and inode, as in `2049:131072`.
pub fn directory_id(path: &std::path::Path) -> std::io::Result<String> {
    let found = std::fs::metadata(path)?;
    Ok(format!("{}:{}", found.dev(), found.ino()))
}

/// All of `/status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon.
    pub agent: AgentStatus,
    /// The outbox.
    pub outbox: OutboxStatus,
    /// The drain.
    pub delivery: DeliveryStatus,
    /// The sources by name.
    pub sources: BTreeMap<String, SourceStatus>,
}
