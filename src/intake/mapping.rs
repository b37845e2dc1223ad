//! How a message or frame becomes readings: decoder, templates, flags. Pure but for the clock reading it is handed.

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;

use super::decode::{DecodeError, Decoded, Decoder, reading_json};
use super::template::{Offer, Template, legal_topic};
use crate::config::intake::{Body, Mapping};
use crate::record::{Flags, Kind, MqttOrigin, Reading, ReceiptTime};

/// A message or frame as it was received.
#[derive(Debug)]
pub(super) struct Received {
    /// The bytes.
    pub(super) payload: Bytes,
    /// When its last byte came.
    pub(super) at: ReceiptTime,
    /// MQTT particulars.
    pub(super) mqtt: Option<MqttOrigin>,
    /// Media type that the sender named; empty if none.
    pub(super) content_type: ByteString,
}

/// What a message became.
#[derive(Debug)]
pub(super) struct Mapped {
    /// At least one.
    pub(super) readings: Vec<Reading>,
    /// Why the decoder could not read it, if so: the bytes are kept as one bad reading.
    pub(super) bad: Option<DecodeError>,
}

/// The mapping of one source, made ready.
#[derive(Debug)]
pub(super) struct Mapper {
    source: ByteString,
    topic: Template,
    device: Template,
    body: Body,
    decoder: Decoder,
    record_bytes_max: usize,
}

impl Mapper {
    /// Reads the templates, or says everything that is wrong, each as `key: what`.
    pub(super) fn new(mapping: &Mapping, offer: Offer<'_>, record_bytes_max: usize) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut template = |key: &str, text: &str| {
            Template::parse(text, offer).map_err(|error| errors.push(format!("{key}: {error}"))).ok()
        };
        let topic = template("topic", &mapping.topic);
        let device = template("device", &mapping.device);
        if mapping.topic.is_empty() {
            errors.push("topic: is empty; name the Kafka topic, as in topic = \"telemetry\"".to_owned());
        }
        if mapping.body == Body::Reading && !offer.fields {
            errors.push(
                "body: \"reading\" needs a decoder, for example decode = { format = \"json\" }; or body = \"raw\""
                    .to_owned(),
            );
        }
        match (topic, device) {
            (Some(topic), Some(device)) if errors.is_empty() => {
                let fields = topic.fields().chain(device.fields()).map(str::to_owned).collect();
                let decoder = Decoder::new(&mapping.decode, fields);
                let source = ByteString::from(offer.source);
                Ok(Self { source, topic, device, body: mapping.body, decoder, record_bytes_max })
            }
            _ => Err(errors),
        }
    }

    /// All readings of one message. Never drops: what cannot be decoded is kept as bytes, marked bad.
    pub(super) fn map(&self, received: Received, synchronised: bool) -> Mapped {
        let base = if synchronised { Flags::default() } else { Flags::UNSYNCHRONISED };
        match (self.decoder.decode(&received.payload), self.body) {
            (None, _) => Mapped { readings: vec![self.raw(received, None, base, "")], bad: None },
            (Some(Ok(decoded)), Body::Raw) => {
                let single = if decoded.len() == 1 { decoded.first() } else { None };
                Mapped { readings: vec![self.raw(received, single, base, "")], bad: None }
            }
            (Some(Ok(decoded)), Body::Reading) => {
                let readings = decoded.iter().map(|one| self.decoded(&received, one, base)).collect();
                Mapped { readings, bad: None }
            }
            (Some(Err(error)), _) => {
                let readings = vec![self.raw(received, None, base.with(Flags::BAD), error.quality)];
                Mapped { readings, bad: Some(error) }
            }
        }
    }

    /// A gap record: JSON that says what was lost. `topic` is an MQTT topic it belongs to, if there is one.
    pub(super) fn gap(&self, value: Vec<u8>, at: ReceiptTime, topic: Option<&str>, synchronised: bool) -> Reading {
        let nothing = |_: &str| None::<Cow<'_, str>>;
        Reading {
            topic: self.topic.render(topic, nothing).map(legal_topic).unwrap_or_default(),
            device: self.device.fixed().filter(|text| !text.is_empty()).map_or_else(|| self.source.clone(), Into::into),
            kind: Kind::Gap,
            flags: if synchronised { Flags::default() } else { Flags::UNSYNCHRONISED },
            received: at,
            device_time_ns: None,
            content_type: ByteString::from_static("application/json"),
            quality: ByteString::new(),
            mqtt: None,
            replay_of: ByteString::new(),
            value: value.into(),
        }
    }

    fn raw(&self, received: Received, decoded: Option<&Decoded>, flags: Flags, quality: &'static str) -> Reading {
        let (topic, device) = self.names(received.mqtt.as_ref(), decoded);
        let known = if quality.is_empty() { self.decoder.content_type() } else { "" };
        let content_type =
            if received.content_type.is_empty() { ByteString::from_static(known) } else { received.content_type };
        self.sized(Reading {
            topic,
            device,
            kind: Kind::Raw,
            flags,
            received: received.at,
            device_time_ns: decoded.and_then(|decoded| decoded.time_ns),
            content_type,
            quality: ByteString::from_static(quality),
            mqtt: received.mqtt,
            replay_of: ByteString::new(),
            value: received.payload,
        })
    }

    fn decoded(&self, received: &Received, decoded: &Decoded, flags: Flags) -> Reading {
        let (topic, device) = self.names(received.mqtt.as_ref(), Some(decoded));
        let time = decoded.time_ns.map(crate::clock::rfc3339);
        self.sized(Reading {
            topic,
            value: reading_json(&device, time.as_deref(), &decoded.metrics).into(),
            device,
            kind: Kind::Reading,
            flags,
            received: received.at,
            device_time_ns: decoded.time_ns,
            content_type: ByteString::from_static("application/json"),
            quality: ByteString::new(),
            mqtt: received.mqtt.clone(),
            replay_of: ByteString::new(),
        })
    }

    fn names(&self, mqtt: Option<&MqttOrigin>, decoded: Option<&Decoded>) -> (ByteString, ByteString) {
        let level = mqtt.map(|mqtt| &*mqtt.topic);
        let field = |name: &str| decoded.and_then(|decoded| decoded.field(name));
        let topic = self.topic.render(level, field).map(legal_topic).unwrap_or_default();
        let device = decoded
            .and_then(|decoded| decoded.device.clone().filter(|id| !id.is_empty()).map(ByteString::from))
            .or_else(|| self.device.render(level, field))
            .unwrap_or_else(|| self.source.clone());
        (topic, device)
    }

    /// A record that Kafka would refuse is stored all the same; the drain makes it a dead letter.
    fn sized(&self, reading: Reading) -> Reading {
        if reading.record_bytes() > self.record_bytes_max {
            Reading { flags: reading.flags.with(Flags::DEAD), ..reading }
        } else {
            reading
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::intake::{Decode, JsonDecode};
    use crate::record::Qos;

    fn mapper(mapping: &Mapping) -> Mapper {
        let fields = mapping.decode != Decode::None;
        Mapper::new(mapping, Offer { source: "plant", agent: "gw-1", mqtt: true, fields }, 2000).unwrap()
    }

    fn message(topic: &str, payload: &str) -> Received {
        let mqtt = MqttOrigin { topic: topic.into(), qos: Qos::AtLeastOnce, retain: false, dup: false };
        Received {
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            at: ReceiptTime::default(),
            mqtt: Some(mqtt),
            content_type: ByteString::new(),
        }
    }

    fn json() -> Mapping {
        Mapping { decode: Decode::Json(JsonDecode::default()), ..Mapping::default() }
    }

    #[test]
    fn raw_bytes_pass_as_they_came_even_none_at_all() {
        let mapping = Mapping {
            device: "{mqtt.topic[1]}".to_owned(),
            topic: "t/{mqtt.topic[0]}".to_owned(),
            ..Mapping::default()
        };
        let mapped = mapper(&mapping).map(message("a/b", ""), true);
        let reading = &mapped.readings[0];
        assert_eq!((&*reading.topic, &*reading.device, reading.kind), ("t.a", "b", Kind::Raw));
        assert_eq!((reading.value.len(), reading.flags, &*reading.quality), (0, Flags::default(), ""));
        let mapped = mapper(&mapping).map(message("a", "x"), false);
        assert_eq!(&*mapped.readings[0].device, "plant");
        assert_eq!(mapped.readings[0].flags, Flags::UNSYNCHRONISED);
    }

    #[test]
    fn a_raw_body_with_a_decoder_still_names_the_device_by_a_field() {
        let mapping = Mapping { device: "m-{field.meter.id}".to_owned(), ..json() };
        let payload = r#"{"meter":{"id":7},"t":21.50}"#;
        let mapped = mapper(&mapping).map(message("a", payload), true);
        assert_eq!(&*mapped.readings[0].device, "m-7");
        assert_eq!(mapped.readings[0].value, payload);
        assert_eq!(&*mapped.readings[0].content_type, "application/json");
    }

    #[test]
    fn an_array_becomes_several_readings_with_their_own_devices() {
        let decode = Decode::Json(JsonDecode { device: Some("id".to_owned()), ..JsonDecode::default() });
        let mapping = Mapping { body: Body::Reading, decode, ..json() };
        let mapped = mapper(&mapping).map(message("a", r#"[{"id":"x","v":1},{"id":"y","v":2.0}]"#), true);
        let devices: Vec<_> = mapped.readings.iter().map(|reading| &*reading.device).collect();
        assert_eq!(devices, ["x", "y"]);
        assert!(mapped.readings.iter().all(|reading| reading.kind == Kind::Reading));
    }

    #[test]
    fn what_cannot_be_decoded_is_kept_and_marked() {
        let mapping = Mapping { body: Body::Reading, ..json() };
        let mapped = mapper(&mapping).map(message("a", "{\"v\":"), true);
        assert!(mapped.bad.is_some());
        let reading = &mapped.readings[0];
        assert_eq!((reading.kind, reading.flags, &*reading.quality), (Kind::Raw, Flags::BAD, "bad json"));
        assert_eq!(reading.value, "{\"v\":");
        assert_eq!(&*reading.content_type, "");
    }

    #[test]
    fn a_record_over_the_limit_is_flagged_dead() {
        let mapped = mapper(&Mapping::default()).map(message("a", &"x".repeat(2000)), true);
        assert!(mapped.readings[0].flags.contains(Flags::DEAD));
        let mapped = mapper(&Mapping::default()).map(message("a", &"x".repeat(1500)), true);
        assert!(!mapped.readings[0].flags.contains(Flags::DEAD));
    }

    #[test]
    fn the_limit_itself_is_not_above_the_limit() {
        let mapping = Mapping::default();
        let offer = Offer { source: "plant", agent: "gw-1", mqtt: true, fields: false };
        let size = |text: &str| {
            let mapped = Mapper::new(&mapping, offer, usize::MAX).unwrap().map(message("a", text), true);
            mapped.readings[0].record_bytes()
        };
        let text = "x".repeat(1000);
        let limit = size(&text);
        let map = |text: &str| Mapper::new(&mapping, offer, limit).unwrap().map(message("a", text), true);
        assert!(!map(&text).readings[0].flags.contains(Flags::DEAD));
        let above = map(&(text.clone() + "y"));
        assert!(above.readings[0].flags.contains(Flags::DEAD));
        assert_eq!(above.readings[0].value, text + "y", "never cut");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mapping =
            Mapping { topic: "{x}".to_owned(), device: "{y".to_owned(), body: Body::Reading, ..Mapping::default() };
        let offer = Offer { source: "s", agent: "a", mqtt: true, fields: false };
        let errors = Mapper::new(&mapping, offer, 1).unwrap_err();
        assert_eq!(errors.len(), 3, "{errors:?}");
    }
}
