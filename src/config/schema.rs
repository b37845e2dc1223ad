//! Every setting: its name, what it may be. The one list that loading checks against; tests keep it equal to the
//! structs of `config` and to `config/fieldpost.toml`.

use super::values;

/// What a setting may be.
#[derive(Debug)]
pub enum Shape {
    /// Text that the function accepts; else it says what was found and what is allowed.
    Text(fn(&str) -> Result<(), String>, &'static str),
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number in a range, inclusive.
    Integer(i64, i64),
    /// `true` or `false`.
    Boolean,
    /// A list of such values.
    List(&'static Shape),
    /// A table with these keys.
    Table(&'static [Key]),
    /// A table whose keys the owner names; the function says which names are legal.
    Map(fn(&str) -> Result<(), String>, &'static Shape),
    /// A table whose keys depend on the word in one of them (its default, if it has one).
    Tagged {
        /// The key that decides.
        tag: &'static str,
        /// Its words, each with its lists of keys.
        variants: &'static [(&'static str, &'static [&'static [Key]])],
    },
}

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its name in its table.
    pub name: &'static str,
    /// What it may be.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key { name, shape, required: false }
}

const fn required(name: &'static str, shape: Shape) -> Key {
    Key { name, shape, required: true }
}

const TEXT: Shape = Shape::Text(values::not_empty, "text");
const PATH: Shape = Shape::Text(values::not_empty, "a path, as text");
const SPAN: Shape = Shape::Text(values::span, "a duration, as in \"250ms\"");
const SPAN_OR_OFF: Shape = Shape::Text(values::span_or_off, "a duration, as in \"60s\", or \"off\"");
const SIZE: Shape = Shape::Text(values::size, "a size, as in \"64MiB\"");

/// The whole file.
pub const ROOT: Shape = Shape::Table(&[
    required("agent", Shape::Table(AGENT)),
    key("http", Shape::Table(&[key("listen", Shape::Text(values::listen, "an address and port, or \"off\""))])),
    key("outbox", Shape::Table(OUTBOX)),
    required("delivery", Shape::Table(DELIVERY)),
    key("sources", Shape::Map(values::source_name, &SOURCE)),
]);

const AGENT: &[Key] = &[
    required("id", Shape::Text(values::agent_id, "text, [A-Za-z0-9._-]{1,64}")),
    key("on_hardware_change", Shape::Word(&["hold", "adopt", "fresh"])),
    key("state_dir", PATH),
    key(
        "log",
        Shape::Text(values::log_filter, "a level, or levels by target as in \"info,fieldpost::delivery=debug\""),
    ),
];

const OUTBOX: &[Key] = &[
    key("max_bytes", Shape::Text(values::outbox_max_bytes, "a size of 8MiB and up, as in \"1GiB\"")),
    key("when_full", Shape::Word(&["block", "drop_oldest", "drop_newest"])),
    key("free_space_floor", SIZE),
    key("max_age", SPAN_OR_OFF),
    key("record_bytes_max", Shape::Text(values::record_bytes_max, "a size from 1KiB to 64MiB")),
    key("sync", Shape::Text(values::sync, "\"batch\", or as in \"interval:500ms\"")),
    key("gather", Shape::Text(values::gather, "a duration up to 10s, as in \"50ms\"")),
    key("compression", Shape::Word(&["zstd", "lz4", "none"])),
    key("retain", SIZE),
    key("held_bytes_max", Shape::Text(values::held_bytes_max, "a size from 1MiB to 4GiB")),
];

const DELIVERY: &[Key] = &[
    key("mode", Shape::Word(&["txn", "idempotent"])),
    key("position", Shape::Word(&["ledger", "group"])),
    key("ledger_topic", Shape::Text(values::kafka_topic, "the name of a Kafka topic")),
    key("dead_letter_topic", Shape::Text(values::kafka_topic, "the name of a Kafka topic, or \"off\"")),
    key("headers", Shape::Word(&["minimal", "cloudevents", "full"])),
    key("timestamp", Shape::Word(&["received", "sent"])),
    key("transactional_id_prefix", Shape::Text(values::any, "text")),
    key("transaction_timeout", Shape::Text(values::transaction_timeout, "a duration from 1s to 15m")),
    key("message_timeout", Shape::Text(values::message_timeout, "a duration from 500ms to 15m")),
    key("settle_time", SPAN),
    key("on_cluster_change", Shape::Word(&["hold", "continue", "resend"])),
    key("rate_max", Shape::Text(values::rate, "\"off\", or as in \"2MiB/s\" or \"5000/s\"")),
    key("windows", Shape::List(&Shape::Text(values::window, "as in \"Mon-Fri 22:00-06:00\""))),
    key("batch_records_max", Shape::Integer(1, 50_000)),
    key("batch_bytes_max", Shape::Text(values::batch_bytes_max, "a size from 1KiB to 64MiB")),
    key("max_wait", Shape::Text(values::max_wait, "a duration up to 1m")),
    key("create_topics", Shape::Boolean),
    required("kafka", Shape::Table(KAFKA)),
];

const KAFKA: &[Key] = &[
    required("bootstrap_servers", Shape::List(&Shape::Text(values::host_port, "as in \"kafka-1:9093\""))),
    key("tls", Shape::Table(TLS)),
    key("sasl", Shape::Table(SASL)),
    key("compression", Shape::Word(&["none", "lz4", "zstd", "snappy", "gzip"])),
    key("properties", Shape::Map(values::not_empty, &Shape::Text(values::any, "text, as librdkafka wants it"))),
];

const TLS: &[Key] =
    &[key("ca_file", PATH), key("cert_file", PATH), key("key_file", PATH), key("verify", Shape::Boolean)];

const SASL: &[Key] = &[
    required("mechanism", Shape::Word(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"])),
    required("username", TEXT),
    key("password_file", PATH),
    key("password_credential", TEXT),
];

const SOURCE: Shape =
    Shape::Tagged { tag: "type", variants: &[("mqtt", &[MQTT, MAPPING]), ("serial", &[SERIAL, MAPPING])] };

const MQTT: &[Key] = &[
    required("url", Shape::Text(values::mqtt_url, "as in \"mqtts://broker:8883\"")),
    key("version", Shape::Integer(3, 5)),
    key("client_id", TEXT),
    key("username", TEXT),
    key("password_file", PATH),
    key("password_credential", TEXT),
    key("tls", Shape::Table(TLS)),
    required(
        "subscribe",
        Shape::List(&Shape::Table(&[
            required("topic", Shape::Text(values::topic_filter, "an MQTT topic filter")),
            key("qos", Shape::Integer(0, 2)),
        ])),
    ),
    key("keep_alive", Shape::Text(values::keep_alive, "a duration from 5s to 18h")),
    key("session_expiry", Shape::Text(values::session_expiry, "a duration up to 49710d")),
    key("receive_maximum", Shape::Integer(1, 65_535)),
    key("packet_bytes_max", Shape::Text(values::packet_bytes_max, "a size from 1KiB to 255MiB")),
    key("retained", Shape::Word(&["accept", "drop"])),
    key("redelivery_dedup", Shape::Boolean),
    key("status_topic", TEXT),
];

const SERIAL: &[Key] = &[
    required("path", PATH),
    key("baud", Shape::Integer(50, 12_000_000)),
    key("line", Shape::Text(values::serial_line, "data bits, parity, stop bits, as in \"8N1\"")),
    key("flow", Shape::Word(&["none", "software", "hardware"])),
    key("framing", FRAMING),
    key("frame_bytes_max", Shape::Text(values::frame_bytes_max, "a size from 1B to 64MiB")),
    key("silent_after", SPAN_OR_OFF),
    key("keep_first_partial", Shape::Boolean),
];

const FRAMING: Shape = Shape::Tagged {
    tag: "type",
    variants: &[("delimiter", &[&[key("delimiter", Shape::Text(values::not_empty, "text"))]])],
};

const MAPPING: &[Key] = &[
    key("topic", TEXT),
    key("device", TEXT),
    key("body", Shape::Word(&["raw", "reading"])),
    key("decode", DECODE),
    key("share_max", Shape::Text(values::percent, "as in \"25%\"")),
    key("priority", Shape::Integer(0, 9)),
];

const DECODE: Shape = Shape::Tagged { tag: "format", variants: &[("none", &[]), ("json", &[JSON])] };

const JSON: &[Key] = &[
    key("device", TEXT),
    key("time", TEXT),
    key(
        "metrics",
        Shape::List(&Shape::Table(&[
            required("path", TEXT),
            key("name", TEXT),
            key("unit", Shape::Text(values::any, "text")),
        ])),
    ),
];

impl Shape {
    /// What is allowed, for a message.
    pub fn allowed(&self) -> String {
        match self {
            Self::Text(_, allowed) => (*allowed).to_owned(),
            Self::Word(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", "),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Self::Boolean => "true or false".to_owned(),
            Self::List(of) => format!("a list of values, each {}", of.allowed()),
            Self::Table(_) | Self::Map(..) | Self::Tagged { .. } => "a table".to_owned(),
        }
    }

    /// The shape of one key of a table; of a tagged table, of whichever variant has it.
    fn at(&self, name: &str) -> Option<&'static Shape> {
        let find = |keys: &'static [Key]| keys.iter().find(|key| key.name == name).map(|key| &key.shape);
        match self {
            Self::Table(keys) => find(keys),
            Self::Map(_, of) => Some(of),
            Self::Tagged { tag, .. } if *tag == name => Some(&TAG),
            Self::Tagged { variants, .. } => variants.iter().flat_map(|(_, lists)| *lists).find_map(|keys| find(keys)),
            _ => None,
        }
    }
}

const TAG: Shape = Shape::Text(values::any, "text");

/// The shape of a setting by its path, if there is such a setting.
pub fn shape_at(path: &[String]) -> Option<&'static Shape> {
    static START: Shape = ROOT;
    path.iter().try_fold(&START, |shape, name| shape.at(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::intake::known_keys;

    #[test]
    fn sources_have_the_keys_of_their_structs() {
        let Shape::Tagged { tag, variants } = SOURCE else { panic!("sources have a type") };
        for (word, lists) in variants {
            let keys = lists.iter().flat_map(|list| *list).map(|key| key.name).chain([tag]);
            assert_eq!(keys.collect::<BTreeSet<_>>(), known_keys(word).iter().copied().collect(), "{word}");
        }
    }

    #[test]
    fn paths_lead_to_settings() {
        let at = |path: &str| shape_at(&path.split('.').map(str::to_owned).collect::<Vec<_>>());
        assert!(matches!(at("outbox.max_bytes"), Some(Shape::Text(..))));
        assert!(matches!(at("sources.anything.baud"), Some(Shape::Integer(..))));
        assert!(matches!(at("sources.anything.type"), Some(Shape::Text(..))));
        assert!(at("outbox.nothing").is_none() && at("outbox.max_bytes.more").is_none());
    }
}
