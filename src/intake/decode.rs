//! From a payload to readings. Pure: no runtime, no clock, no I/O.
//!
//! A payload that a decoder cannot read is not an error of the stream: the caller keeps its bytes and marks them bad.

pub(crate) mod json;

use std::borrow::Cow;

use crate::config::intake::Decode;

/// One reading found in a payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Decoded {
    /// The device's id, if the decoder is told where to find it.
    pub(crate) device: Option<String>,
    /// The device's own time, nanoseconds since 1970-01-01 UTC.
    pub(crate) time_ns: Option<i64>,
    /// What was measured, in the order of the payload.
    pub(crate) metrics: Vec<Metric>,
    /// Text of the placeholders that were asked for, as pairs of name and value.
    pub(crate) fields: Vec<(String, String)>,
}

impl Decoded {
    /// The value of a placeholder.
    pub(crate) fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| Cow::Borrowed(value.as_str()))
    }
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metric {
    /// Its name.
    pub(crate) name: String,
    /// A JSON token, digits as the sender wrote them.
    pub(crate) value: String,
    /// Type of the value.
    pub(crate) kind: MetricKind,
    /// UCUM unit; empty if unknown.
    pub(crate) unit: String,
}

/// Type of a metric, as named in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Bool,
    I64,
    U64,
    F64,
    Text,
}

impl MetricKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::F64 => "f64",
            Self::Text => "string",
        }
    }
}

/// Why a payload has no readings: a word for the quality, and for the log what exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecodeError {
    /// For example `bad json`.
    pub(crate) quality: &'static str,
    /// For the log; never holds the payload.
    pub(crate) detail: String,
}

/// A decoder made ready.
#[derive(Debug)]
pub(crate) enum Decoder {
    None,
    Json(json::Json),
}

impl Decoder {
    /// `fields`: names of the `{field.NAME}` placeholders in use.
    pub(crate) fn new(config: &Decode, fields: Vec<String>) -> Self {
        match config {
            Decode::None => Self::None,
            Decode::Json(settings) => Self::Json(json::Json::new(settings, fields)),
        }
    }

    /// All readings of a payload, at least one; `None` without a decoder.
    pub(crate) fn decode(&self, payload: &[u8]) -> Option<Result<Vec<Decoded>, DecodeError>> {
        match self {
            Self::None => None,
            Self::Json(json) => Some(json.decode(payload)),
        }
    }

    /// Media type of a payload that this decoder reads.
    pub(crate) fn content_type(&self) -> &'static str {
        match self {
            Self::None => "",
            Self::Json(_) => "application/json",
        }
    }
}

/// The canonical `reading` JSON: what a consumer gets with `body = "reading"`.
pub(crate) fn reading_json(device: &str, time: Option<&str>, metrics: &[Metric]) -> Vec<u8> {
    let mut out = String::with_capacity(64 + metrics.len() * 64);
    out.push_str("{\"device\":");
    push_text(&mut out, device);
    if let Some(time) = time {
        out.push_str(",\"ts\":");
        push_text(&mut out, time);
    }
    out.push_str(",\"metrics\":[");
    for (number, metric) in metrics.iter().enumerate() {
        out.push_str(if number == 0 { "{\"name\":" } else { ",{\"name\":" });
        push_text(&mut out, &metric.name);
        out.push_str(",\"value\":");
        out.push_str(&metric.value);
        out.push_str(",\"type\":\"");
        out.push_str(metric.kind.as_str());
        out.push('"');
        if !metric.unit.is_empty() {
            out.push_str(",\"unit\":");
            push_text(&mut out, &metric.unit);
        }
        out.push('}');
    }
    out.push_str("],\"quality\":\"good\"}");
    out.into_bytes()
}

fn push_text(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("a str always becomes JSON"));
}
