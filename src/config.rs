//! The configuration: what the owner may set, with its defaults. Loading and checking is in [`load`].
//!
//! `config/fieldpost.toml` documents every setting; a test keeps it equal to the defaults here.

mod check;
pub mod delivery;
pub mod intake;
pub mod layer;
pub mod load;
pub mod mistake;
pub mod outbox;
mod rules;
pub mod schema;
pub mod units;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use delivery::Delivery;
pub use intake::Source;
pub use outbox::Outbox;
pub use units::{ByteSize, Limit, Span};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is.
    pub agent: Agent,
    /// Health and metrics endpoint.
    #[serde(default)]
    pub http: Http,
    /// The durable outbox.
    #[serde(default)]
    pub outbox: Outbox,
    /// The drain into Kafka.
    pub delivery: Delivery,
    /// Sources by name.
    #[serde(default)]
    pub sources: BTreeMap<String, Source>,
}

/// `[agent]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Unique in the fleet and stable, `[A-Za-z0-9._-]{1,64}`; no default, never the host name.
    pub id: String,
    /// What to do when the hardware under the disk changed.
    #[serde(default)]
    pub on_hardware_change: OnHardwareChange,
    /// Where the outbox lives. Under systemd `$STATE_DIRECTORY` is the default.
    #[serde(default = "Agent::default_state_dir")]
    pub state_dir: PathBuf,
    /// Level, or levels per target as in `info,fieldpost::delivery=debug`.
    #[serde(default = "Agent::default_log")]
    pub log: String,
}

impl Agent {
    /// `/var/lib/fieldpost`, or the directory that systemd hands over.
    pub fn default_state_dir() -> PathBuf {
        std::env::var_os("STATE_DIRECTORY").map_or_else(|| PathBuf::from("/var/lib/fieldpost"), PathBuf::from)
    }

    fn default_log() -> String {
        "info".to_owned()
    }
}

/// `agent.on_hardware_change`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnHardwareChange {
    /// Keep buffering, do not deliver, raise an alarm.
    #[default]
    Hold,
    /// A spare took over the disk: go on.
    Adopt,
    /// An image was cloned: new incarnation, old content dropped.
    Fresh,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// `address:port`, or `off`.
    pub listen: String,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9464".to_owned() }
    }
}
