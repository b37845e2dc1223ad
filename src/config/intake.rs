//! `[sources.NAME]`: where readings come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use super::delivery::Tls;
use super::delivery::words;
use super::units::{ByteSize, Limit, Span};

/// `[sources.NAME]`, by its `type`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Source {
    /// Subscribes to an MQTT broker.
    Mqtt(Mqtt),
    /// Reads a serial line.
    Serial(Serial),
}

impl Source {
    /// `mqtt` or `serial`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Mqtt(_) => "mqtt",
            Self::Serial(_) => "serial",
        }
    }

    /// What all types have in common.
    pub fn mapping(&self) -> &Mapping {
        match self {
            Self::Mqtt(mqtt) => &mqtt.mapping,
            Self::Serial(serial) => &serial.mapping,
        }
    }
}

/// Keys that `[sources.NAME]` may have for a `type`; empty if there is no such type. (serde cannot refuse unknown keys
/// where tables are flattened into one, so the loader does.) A test keeps the lists equal to the structs.
pub fn known_keys(type_name: &str) -> &'static [&'static str] {
    match type_name {
        "mqtt" => &[
            "type",
            "url",
            "version",
            "client_id",
            "username",
            "password_file",
            "password_credential",
            "tls",
            "subscribe",
            "keep_alive",
            "session_expiry",
            "receive_maximum",
            "packet_bytes_max",
            "retained",
            "redelivery_dedup",
            "status_topic",
            "topic",
            "device",
            "body",
            "decode",
            "share_max",
            "priority",
        ],
        "serial" => &[
            "type",
            "path",
            "baud",
            "line",
            "flow",
            "framing",
            "frame_bytes_max",
            "silent_after",
            "keep_first_partial",
            "topic",
            "device",
            "body",
            "decode",
            "share_max",
            "priority",
        ],
        _ => &[],
    }
}

/// How a message or frame becomes a record: settings of every source, in its table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mapping {
    /// Kafka topic: a template.
    pub topic: String,
    /// Record key: a template; no result: the source's name.
    pub device: String,
    /// What the record's value is.
    pub body: Body,
    /// How to read the payload.
    pub decode: Decode,
    /// Part of the outbox this source may fill, as in `25%`.
    pub share_max: String,
    /// 0-9: who is refused last when the outbox is nearly full.
    pub priority: u8,
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            topic: "telemetry".to_owned(),
            device: "{source}".to_owned(),
            body: Body::Raw,
            decode: Decode::None,
            share_max: "100%".to_owned(),
            priority: 0,
        }
    }
}

words! {
    /// `body`
    Body {
        /// Bytes as received.
        Raw = "raw",
        /// Canonical JSON.
        Reading = "reading",
    } default Raw
}

/// `decode = { format = "json", ... }`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decode {
    /// Do not look inside.
    #[default]
    None,
    /// JSON: an object of metrics, or an array of such objects (one reading each).
    Json(JsonDecode),
}

/// Keys of `format = "json"`. Paths are dotted field names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonDecode {
    /// Where the device's id is; absent: the `device` template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Where the device's time is: RFC 3339 text, or seconds or milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Metrics to take; empty: every top-level number, text and boolean that is neither device nor time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<JsonMetric>,
}

/// One metric of `format = "json"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonMetric {
    /// Where the value is.
    pub path: String,
    /// Name in the reading; absent: the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Unit (UCUM), passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// `type = "mqtt"`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mqtt {
    /// `mqtt://`, `mqtts://`, `ws://`, `wss://`, `unix://`.
    pub url: String,
    /// 5, or 3 for 3.1.1.
    pub version: u8,
    /// Absent: `fieldpost-<agent.id>-<source>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Name of a systemd credential that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_credential: Option<String>,
    /// TLS settings for `mqtts` and `wss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// What to subscribe to.
    pub subscribe: Vec<Subscription>,
    /// Keep-alive interval.
    pub keep_alive: Span,
    /// How long the broker keeps our session and queue (MQTT 5).
    pub session_expiry: Span,
    /// Messages the broker may have in flight to us (MQTT 5).
    pub receive_maximum: u16,
    /// Largest packet accepted.
    pub packet_bytes_max: ByteSize,
    /// What to do with retained messages.
    pub retained: Retained,
    /// Recognise redeliveries at QoS 1 and skip them.
    pub redelivery_dedup: bool,
    /// Last will and birth; `off`; `{agent}` and `{source}` are replaced.
    pub status_topic: String,
    /// Settings of every source.
    #[serde(flatten)]
    pub mapping: Mapping,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            url: String::new(),
            version: 5,
            client_id: None,
            username: None,
            password_file: None,
            password_credential: None,
            tls: None,
            subscribe: Vec::new(),
            keep_alive: Span::secs(30),
            session_expiry: Span::secs(7 * 86_400),
            receive_maximum: 1000,
            packet_bytes_max: ByteSize::mib(1),
            retained: Retained::Accept,
            redelivery_dedup: true,
            status_topic: "fieldpost/{agent}/status".to_owned(),
            mapping: Mapping::default(),
        }
    }
}

/// One entry of `subscribe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// Topic filter.
    pub topic: String,
    /// Highest quality of service wanted: 0, 1 or 2.
    #[serde(default = "Subscription::default_qos")]
    pub qos: u8,
}

impl Subscription {
    fn default_qos() -> u8 {
        1
    }
}

words! {
    /// `retained`
    Retained {
        /// Treat them like others.
        Accept = "accept",
        /// Drop them, counted.
        Drop = "drop",
    } default Accept
}

/// `type = "serial"`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Serial {
    /// Device file, best one under `/dev/serial/by-id/`.
    pub path: PathBuf,
    /// Bits per second.
    pub baud: u32,
    /// Data bits, parity, stop bits, as in `8N1`.
    pub line: String,
    /// Flow control.
    pub flow: Flow,
    /// How the byte stream is cut into frames.
    pub framing: Framing,
    /// A frame longer than this is lost, with a gap record.
    pub frame_bytes_max: ByteSize,
    /// Alarm when nothing came for this long.
    pub silent_after: Limit<Span>,
    /// Whether the part before the first delimiter after opening is kept.
    pub keep_first_partial: bool,
    /// Settings of every source.
    #[serde(flatten)]
    pub mapping: Mapping,
}

impl Default for Serial {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            baud: 115_200,
            line: "8N1".to_owned(),
            flow: Flow::None,
            framing: Framing::default(),
            frame_bytes_max: ByteSize::kib(64),
            silent_after: Limit::Off,
            keep_first_partial: false,
            mapping: Mapping::default(),
        }
    }
}

words! {
    /// `flow`
    Flow {
        /// None.
        None = "none",
        /// XON/XOFF.
        Software = "software",
        /// RTS/CTS.
        Hardware = "hardware",
    } default None
}

/// `framing = { type = "delimiter", ... }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Framing {
    /// Frames end with these bytes, which are not part of them.
    Delimiter {
        /// One or more bytes; `\n`, `\r`, `\t`, `\0`, `\xNN` are understood by TOML's own escapes.
        #[serde(default = "Framing::default_delimiter")]
        delimiter: String,
    },
}

impl Framing {
    fn default_delimiter() -> String {
        "\n".to_owned()
    }
}

impl Default for Framing {
    fn default() -> Self {
        Self::Delimiter { delimiter: Self::default_delimiter() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn keys_of(source: &Source) -> BTreeSet<String> {
        serde_json::to_value(source).unwrap().as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_known_keys_are_those_of_the_structs() {
        // Settings that are absent by default are not serialised: they are given a value here.
        let mqtt = Mqtt {
            client_id: Some(String::new()),
            username: Some(String::new()),
            password_file: Some(PathBuf::new()),
            password_credential: Some(String::new()),
            tls: Some(Tls::default()),
            ..Mqtt::default()
        };
        for source in [Source::Mqtt(mqtt), Source::Serial(Serial::default())] {
            let known: BTreeSet<String> = known_keys(source.type_name()).iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(keys_of(&source), known, "{}", source.type_name());
        }
        assert!(known_keys("carrier-pigeon").is_empty());
    }
}
