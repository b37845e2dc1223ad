//! The lines of a result: one JSON object each. A reading begins with `{"sequence":`, everything else has one key that says
//! what it is. The names are a contract with users.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::note::Note;
use super::{Exported, Fault, Finding, LookError, Verified};
use crate::clock;
use crate::record::{Flags, Hole, Kind, Reading, Stored};

/// How a line of a reading begins.
pub(super) const READING: &str = "{\"sequence\":";

/// A line that is no reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What will be looked at: first and last sequence; none if `first > last`.
    Begin {
        /// First sequence.
        first: u64,
        /// Last sequence, inclusive.
        last: u64,
    },
    /// How far it is.
    Progress {
        /// Parts done.
        done: u64,
        /// Parts in all.
        of: u64,
    },
    /// Sequences without a reading.
    Gap(GapLine),
    /// Something is wrong.
    Finding(Finding),
    /// An export ends.
    Exported(Exported),
    /// A check ends.
    Verified(Verified),
    /// It cannot go on.
    Error {
        /// What went wrong.
        fault: Fault,
        /// The same in words.
        text: String,
    },
}

impl Line {
    /// As text, without a line end.
    pub(crate) fn to_json(&self) -> String {
        harmless(serde_json::to_string(self).expect("numbers and text always become JSON"))
    }

    pub(crate) fn of_error(error: &LookError) -> Self {
        Self::Error { fault: error.fault(), text: error.to_string() }
    }

    /// Reads a line back; `None`: it is a reading.
    pub fn read(text: &str) -> serde_json::Result<Option<Self>> {
        if text.starts_with(READING) { Ok(None) } else { serde_json::from_str(text).map(Some) }
    }
}

/// Sequences without a reading, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapLine {
    /// First sequence.
    pub from: u64,
    /// Last sequence, inclusive.
    pub to: u64,
    /// Short word: that of the gap record (`drop_oldest`, `damage`, ...); `delivered` where Kafka has them and the outbox
    /// does not keep them.
    pub reason: String,
    /// Record bytes removed, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Readings per source, where known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, u64>,
    /// When it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noted_at: Option<String>,
    /// More about it, for humans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl GapLine {
    pub(super) fn plain(from: u64, to: u64, reason: &str) -> Self {
        Self {
            from,
            to,
            reason: reason.to_owned(),
            bytes: None,
            sources: BTreeMap::new(),
            noted_at: None,
            detail: None,
        }
    }

    pub(super) fn of_note(note: &Note, from: u64, to: u64) -> Self {
        Self { to, ..Self::of_hole(&note.hole(from)) }
    }

    pub(super) fn of_hole(hole: &Hole) -> Self {
        Self {
            bytes: (hole.bytes > 0).then_some(hole.bytes),
            sources: hole.sources.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
            noted_at: Some(clock::rfc3339(hole.noted.wall_ns)),
            ..Self::plain(hole.from.0, hole.to.0, &hole.reason)
        }
    }
}

#[derive(Serialize)]
struct ReadingLine<'a> {
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ce_id: Option<String>,
    source: &'a str,
    topic: &'a str,
    device: &'a str,
    kind: &'static str,
    received: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_time: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    quality: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mqtt: Option<MqttLine<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    replay_of: &'a str,
    #[serde(flatten)]
    value: Value<'a>,
}

#[derive(Serialize)]
struct MqttLine<'a> {
    topic: &'a str,
    qos: u8,
    retain: bool,
    dup: bool,
}

/// The value, in the form that loses nothing and reads best.
#[derive(Serialize)]
enum Value<'a> {
    #[serde(rename = "value")]
    Json(Box<RawValue>),
    #[serde(rename = "value")]
    Text(&'a str),
    #[serde(rename = "value_base64")]
    Bytes(String),
}

impl<'a> Value<'a> {
    /// JSON stays as it is, but on one line; other text becomes a string; what is no UTF-8 becomes Base64.
    fn of(reading: &'a Reading) -> Self {
        let Ok(text) = std::str::from_utf8(&reading.value) else { return Self::exact(reading) };
        let trimmed = text.trim();
        let says_json = reading.kind != Kind::Raw || reading.content_type.ends_with("json");
        let looks_json = trimmed.starts_with(['{', '[']);
        if says_json || looks_json {
            // Inside a string JSON has no line ends, so they are but space.
            let line = trimmed.replace(['\n', '\r'], " ");
            if let Ok(json) = RawValue::from_string(line) {
                return Self::Json(json);
            }
        }
        Self::Text(text)
    }

    fn exact(reading: &Reading) -> Self {
        Self::Bytes(data_encoding::BASE64.encode(&reading.value))
    }
}

/// A reading as a line. `exact`: the value as Base64, whatever it is.
pub(super) fn reading_line(stored: &Stored, agent: Option<&str>, exact: bool) -> String {
    let reading = &stored.reading;
    let time = |ns: i64| clock::rfc3339(ns);
    let line = ReadingLine {
        sequence: stored.sequence.0,
        ce_id: agent.map(|agent| format!("{agent}/{}/{}", stored.incarnation.epoch(), stored.sequence)),
        source: stored.source.as_str(),
        topic: &reading.topic,
        device: &reading.device,
        kind: match reading.kind {
            Kind::Raw => "raw",
            Kind::Reading => "reading",
            Kind::Gap => "gap",
        },
        received: time(reading.received.wall_ns),
        device_time: reading.device_time_ns.map(time),
        quality: &reading.quality,
        flags: flags(reading.flags),
        content_type: &reading.content_type,
        mqtt: reading.mqtt.as_ref().map(|mqtt| MqttLine {
            topic: &mqtt.topic,
            qos: mqtt.qos as u8,
            retain: mqtt.retain,
            dup: mqtt.dup,
        }),
        replay_of: &reading.replay_of,
        value: if exact { Value::exact(reading) } else { Value::of(reading) },
    };
    harmless(serde_json::to_string(&line).expect("numbers and text always become JSON"))
}

/// Whether a character steers a terminal or turns the direction of writing.
pub(crate) fn steers(char: char) -> bool {
    char.is_control() || matches!(char, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON without characters that steer a terminal or turn the direction of writing. They stand in strings only, values that
/// were JSON before included, so an escape means the same. Of those below U+0020 JSON holds line ends alone, between values.
pub(crate) fn harmless(json: String) -> String {
    let steers = |char: char| char >= ' ' && steers(char);
    if json.is_ascii() && !json.contains('\u{7f}') || !json.contains(steers) {
        return json;
    }
    let mut text = String::with_capacity(json.len() + 64);
    for char in json.chars() {
        if steers(char) {
            text += &format!("\\u{:04x}", u32::from(char));
        } else {
            text.push(char);
        }
    }
    text
}

fn flags(flags: Flags) -> Vec<&'static str> {
    let all = [
        (Flags::BAD, "bad"),
        (Flags::UNCERTAIN, "uncertain"),
        (Flags::UNSYNCHRONISED, "unsynchronised"),
        (Flags::REPLAY, "replay"),
        (Flags::DEAD, "dead"),
    ];
    all.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_steers_no_terminal_and_says_the_same() {
        let json = "{\"a\":\"1\u{7f}2\u{9b}31m\u{202e}3\u{2066}\\\\é€\"}";
        let line = harmless(json.to_owned());
        assert_eq!(line, "{\"a\":\"1\\u007f2\\u009b31m\\u202e3\\u2066\\\\é€\"}");
        let [before, after] = [json, &line].map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert_eq!(before, after);
        let gap = Line::Gap(GapLine::plain(1, 2, "\u{9b}"));
        assert_eq!(Line::read(&gap.to_json()).unwrap(), Some(gap));
    }
}
