//! JSON payloads: an object is one reading, an array of objects is one reading each.
//!
//! Limits: at most 4,096 readings per payload. Numbers are never converted: a metric carries the digits that the sender
//! wrote (64-bit integers and `21.50` pass unchanged). Of a name that occurs twice the last one counts, as in most
//! readers. Paths are dotted field names, array elements cannot be named.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{DecodeError, Decoded, Metric, MetricKind};
use crate::config::intake::JsonDecode;

/// Most readings of one payload.
const READINGS_MAX: usize = 4096;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Json {
    device: Option<Vec<String>>,
    time: Option<Vec<String>>,
    metrics: Vec<Wanted>,
    fields: Vec<(String, Vec<String>)>,
}

#[derive(Debug)]
struct Wanted {
    path: Vec<String>,
    name: String,
    unit: String,
}

/// Members of one object, in order, unread.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Json {
    /// `fields`: dotted names that templates ask for.
    pub(super) fn new(settings: &JsonDecode, fields: Vec<String>) -> Self {
        let path = |text: &String| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let wanted = |metric: &crate::config::intake::JsonMetric| Wanted {
            path: path(&metric.path),
            name: metric.name.clone().unwrap_or_else(|| metric.path.clone()),
            unit: metric.unit.clone().unwrap_or_default(),
        };
        Self {
            device: settings.device.as_ref().map(path),
            time: settings.time.as_ref().map(path),
            metrics: settings.metrics.iter().map(wanted).collect(),
            fields: fields.into_iter().map(|name| (name.clone(), path(&name))).collect(),
        }
    }

    /// All readings of a payload, at least one.
    pub(super) fn decode(&self, payload: &[u8]) -> Result<Vec<Decoded>, DecodeError> {
        let bad = |detail: String| DecodeError { quality: "bad json", detail };
        let text = std::str::from_utf8(payload).map_err(|error| bad(error.to_string()))?;
        let root: &RawValue = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        let objects: Vec<&RawValue> = if root.get().starts_with('[') {
            let elements: Vec<&RawValue> = serde_json::from_str(root.get()).map_err(|error| bad(error.to_string()))?;
            if elements.is_empty() {
                return Err(DecodeError { quality: "no readings", detail: "an empty array".to_owned() });
            }
            if elements.len() > READINGS_MAX {
                return Err(bad(format!("{} readings in one payload, {READINGS_MAX} allowed", elements.len())));
            }
            elements
        } else {
            vec![root]
        };
        objects.into_iter().map(|object| self.object(object).map_err(&bad)).collect()
    }

    fn object(&self, raw: &RawValue) -> Result<Decoded, String> {
        let members = Members::of(raw).ok_or_else(|| "not an object".to_owned())?;
        let device = match &self.device {
            Some(path) => members.at(path).and_then(plain_text),
            None => None,
        };
        let time_ns = match &self.time {
            Some(path) => members.at(path).map(|raw| time_ns(raw).ok_or_else(|| "the time cannot be read".to_owned())),
            None => None,
        };
        let metrics = if self.metrics.is_empty() { self.every_metric(&members) } else { self.wanted_metrics(&members) };
        let fields = self.fields.iter().filter_map(|(name, path)| Some((name.clone(), plain_text(members.at(path)?)?)));
        Ok(Decoded { device, time_ns: time_ns.transpose()?, metrics, fields: fields.collect() })
    }

    fn every_metric(&self, members: &Members<'_>) -> Vec<Metric> {
        let special = |name: &str| {
            let is = |path: &Option<Vec<String>>| path.as_ref().is_some_and(|path| path.len() == 1 && path[0] == name);
            is(&self.device) || is(&self.time)
        };
        let metric = |(name, raw): &(Cow<'_, str>, &RawValue)| {
            let kind = kind_of(raw.get())?;
            Some(Metric { name: name.to_string(), value: raw.get().to_owned(), kind, unit: String::new() })
        };
        members.0.iter().filter(|(name, _)| !special(name)).filter_map(metric).collect()
    }

    fn wanted_metrics(&self, members: &Members<'_>) -> Vec<Metric> {
        let metric = |wanted: &Wanted| {
            let raw = members.at(&wanted.path)?;
            let kind = kind_of(raw.get())?;
            let (name, unit) = (wanted.name.clone(), wanted.unit.clone());
            Some(Metric { name, value: raw.get().to_owned(), kind, unit })
        };
        self.metrics.iter().filter_map(metric).collect()
    }
}

impl<'a> Members<'a> {
    fn of(raw: &'a RawValue) -> Option<Self> {
        if !raw.get().starts_with('{') {
            return None;
        }
        let mut reader = serde_json::Deserializer::from_str(raw.get());
        MembersSeed.deserialize(&mut reader).ok()
    }

    fn at(&self, path: &[String]) -> Option<&'a RawValue> {
        let (first, rest) = path.split_first()?;
        let (_, raw) = self.0.iter().rev().find(|(name, _)| name == first)?;
        if rest.is_empty() { Some(raw) } else { Members::of(raw)?.at(rest) }
    }
}

struct MembersSeed;

impl<'de> DeserializeSeed<'de> for MembersSeed {
    type Value = Members<'de>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Members<'de>, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MembersSeed {
    type Value = Members<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some((Name(name), raw)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            members.push((name, raw));
        }
        Ok(Members(members))
    }
}

/// A member's name, borrowed where it has no escapes.
#[derive(serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Type of a JSON token; `None` for null, objects and arrays.
fn kind_of(token: &str) -> Option<MetricKind> {
    match token.as_bytes().first()? {
        b't' | b'f' => Some(MetricKind::Bool),
        b'"' => Some(MetricKind::Text),
        b'-' | b'0'..=b'9' => Some(if token.contains(['.', 'e', 'E']) {
            MetricKind::F64
        } else if token.parse::<i64>().is_ok() {
            MetricKind::I64
        } else if token.parse::<u64>().is_ok() {
            MetricKind::U64
        } else {
            MetricKind::F64
        }),
        _ => None,
    }
}

/// A text without its quotes, or the digits of a number, or the word of a boolean.
fn plain_text(raw: &RawValue) -> Option<String> {
    match kind_of(raw.get())? {
        MetricKind::Text => serde_json::from_str(raw.get()).ok(),
        _ => Some(raw.get().to_owned()),
    }
}

/// RFC 3339 text, or seconds or milliseconds since 1970: numbers from 100,000,000,000 on are milliseconds (as seconds they
/// would lie beyond the year 5138).
fn time_ns(raw: &RawValue) -> Option<i64> {
    const MILLISECONDS_FROM: i128 = 100_000_000_000;
    let token = raw.get();
    if kind_of(token)? == MetricKind::Text {
        let text: String = serde_json::from_str(token).ok()?;
        let time: jiff::Timestamp = text.parse().ok()?;
        return i64::try_from(time.as_nanosecond()).ok();
    }
    let (whole, fraction) = token.split_once('.').unwrap_or((token, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (negative, digits) = whole.strip_prefix('-').map_or((false, whole), |digits| (true, digits));
    let number: i128 = digits.parse::<i64>().ok()?.into();
    let unit: i128 = if number >= MILLISECONDS_FROM { 1_000_000 } else { 1_000_000_000 };
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let part: i128 = digits.parse::<i128>().ok()? * unit / 1_000_000_000;
    let total = number * unit + part;
    i64::try_from(if negative { -total } else { total }).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reading_json;
    use super::*;
    use crate::config::intake::JsonMetric;

    fn json(settings: &JsonDecode) -> Json {
        Json::new(settings, vec!["meta.id".to_owned()])
    }

    fn one(settings: &JsonDecode, payload: &str) -> Decoded {
        let mut all = json(settings).decode(payload.as_bytes()).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn numbers_keep_their_digits_and_everything_plain_becomes_a_metric() {
        let payload = r#"{"t":21.50,"big":18446744073709551615,"n":-9223372036854775808,"huge":99999999999999999999,
            "e":1E3,"ok":true,"s":"a\"b","nil":null,"deep":{"x":1},"list":[1],"id":"m-1"}"#;
        let settings = JsonDecode { device: Some("id".to_owned()), ..JsonDecode::default() };
        let decoded = one(&settings, payload);
        assert_eq!(decoded.device.as_deref(), Some("m-1"));
        let text = String::from_utf8(reading_json("m-1", None, &decoded.metrics)).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"device":"m-1","metrics":[{"name":"t","value":21.50,"type":"f64"},"#,
                r#"{"name":"big","value":18446744073709551615,"type":"u64"},"#,
                r#"{"name":"n","value":-9223372036854775808,"type":"i64"},"#,
                r#"{"name":"huge","value":99999999999999999999,"type":"f64"},{"name":"e","value":1E3,"type":"f64"},"#,
                r#"{"name":"ok","value":true,"type":"bool"},{"name":"s","value":"a\"b","type":"string"}],"quality":"good"}"#
            )
        );
    }

    #[test]
    fn paths_names_units_fields_and_times() {
        let settings = JsonDecode {
            device: Some("meta.id".to_owned()),
            time: Some("at".to_owned()),
            metrics: vec![JsonMetric {
                path: "v.power".to_owned(),
                name: Some("power".to_owned()),
                unit: Some("kW".to_owned()),
            }],
        };
        let decoded = one(&settings, r#"{"meta":{"id":42},"at":"2026-11-21T08:00:00.123Z","v":{"power":21.50}}"#);
        assert_eq!(decoded.device.as_deref(), Some("42"));
        assert_eq!(decoded.time_ns, Some(1_795_248_000_123_000_000));
        assert_eq!(decoded.field("meta.id").as_deref(), Some("42"));
        let text = String::from_utf8(reading_json("42", Some("2026-11-21T08:00:00.123Z"), &decoded.metrics)).unwrap();
        assert_eq!(
            text,
            r#"{"device":"42","ts":"2026-11-21T08:00:00.123Z","metrics":[{"name":"power","value":21.50,"type":"f64","unit":"kW"}],"quality":"good"}"#
        );
    }

    #[test]
    fn times_in_seconds_and_milliseconds() {
        let settings = JsonDecode { time: Some("t".to_owned()), ..JsonDecode::default() };
        let time = |text: &str| one(&settings, &format!("{{\"t\":{text}}}")).time_ns;
        assert_eq!(time("1700000000"), Some(1_700_000_000_000_000_000));
        assert_eq!(time("1700000000.25"), Some(1_700_000_000_250_000_000));
        assert_eq!(time("1700000000123"), Some(1_700_000_000_123_000_000));
        assert_eq!(time("1700000000123.5"), Some(1_700_000_000_123_500_000));
        assert_eq!(one(&settings, "{}").time_ns, None);
        for bad in ["\"yesterday\"", "1e9", "99999999999999999999", "true"] {
            let error = json(&settings).decode(format!("{{\"t\":{bad}}}").as_bytes());
            assert_eq!(error.unwrap_err().quality, "bad json", "{bad}");
        }
    }

    #[test]
    fn an_array_is_several_readings_and_one_bad_element_spoils_it() {
        let decoder = json(&JsonDecode::default());
        assert_eq!(decoder.decode(br#" [{"a":1},{"a":2}] "#).unwrap().len(), 2);
        assert_eq!(decoder.decode(br#"[{"a":1},7]"#).unwrap_err().quality, "bad json");
        assert_eq!(decoder.decode(b"[]").unwrap_err().quality, "no readings");
        let many = format!("[{}]", vec!["{}"; READINGS_MAX + 1].join(","));
        assert_eq!(decoder.decode(many.as_bytes()).unwrap_err().quality, "bad json");
        for bad in [&b""[..], b"7", b"{", b"{}x", b"\xff{}", b"null", b"{\"a\":01}"] {
            assert_eq!(decoder.decode(bad).unwrap_err().quality, "bad json", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let settings = JsonDecode { time: Some("t".to_owned()), ..JsonDecode::default() };
            let _ = json(&settings).decode(&payload);
        }

        #[test]
        fn never_panics_on_nearly_json(text in r#"[\[\]{}":,tna0-9.eE+\\ -]{0,60}"#) {
            let settings = JsonDecode { time: Some("t".to_owned()), device: Some("a.b".to_owned()), ..JsonDecode::default() };
            let _ = json(&settings).decode(text.as_bytes());
        }

        #[test]
        fn integers_of_64_bits_pass_unchanged(signed in any::<i64>(), unsigned in any::<u64>()) {
            let decoded = one(&JsonDecode::default(), &format!("{{\"s\":{signed},\"u\":{unsigned}}}"));
            prop_assert_eq!(decoded.metrics[0].value.parse::<i64>().unwrap(), signed);
            prop_assert_eq!(decoded.metrics[1].value.parse::<u64>().unwrap(), unsigned);
            prop_assert_eq!(decoded.metrics[0].kind, MetricKind::I64);
        }
    }
}
