//! Templates of `topic` and `device`: literal text with placeholders in braces.
//!
//! Limits: a template has at most 64 parts. A placeholder is one of `{source}`, `{agent}`, `{mqtt.topic}`,
//! `{mqtt.topic[N]}` (level N of the MQTT topic, from 0; MQTT sources only) and `{field.NAME}` (a value of the payload, by
//! dotted name; needs a decoder). `{{` and `}}` stand for braces. `{source}` and `{agent}` are filled in once.

use bytestring::ByteString;

/// Most parts of one template.
const PARTS_MAX: usize = 64;
/// Longest topic name that Kafka takes, in characters.
const TOPIC_CHARACTERS_MAX: usize = 249;

/// What a source can offer to its templates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer<'a> {
    /// Name of the source.
    pub(crate) source: &'a str,
    /// Id of the agent.
    pub(crate) agent: &'a str,
    /// Whether messages have an MQTT topic.
    pub(crate) mqtt: bool,
    /// Whether payloads are decoded.
    pub(crate) fields: bool,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// No placeholder is left: every rendering is this text.
    Fixed(ByteString),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Level(usize),
    Field(String),
}

impl Template {
    /// Reads a template, or says what is wrong with it and what is allowed.
    pub(crate) fn parse(text: &str, offer: Offer<'_>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
            } else if brace == "}" {
                return Err(format!("{text:?}: a single '}}' (write \"}}}}\" for a brace)"));
            } else {
                let Some(end) = rest.find('}') else {
                    return Err(format!("{text:?}: '{{' is never closed (write \"{{{{\" for a brace)"));
                };
                match placeholder(&rest[..end], offer).map_err(|error| format!("{text:?}: {error}"))? {
                    Part::Text(known) => literal.push_str(&known),
                    part => {
                        if !literal.is_empty() {
                            parts.push(Part::Text(std::mem::take(&mut literal)));
                        }
                        parts.push(part);
                    }
                }
                rest = &rest[end + 1..];
            }
        }
        literal.push_str(rest);
        if parts.is_empty() {
            return Ok(Self { shape: Shape::Fixed(literal.into()) });
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if parts.len() > PARTS_MAX {
            return Err(format!("{text:?}: more than {PARTS_MAX} parts"));
        }
        Ok(Self { shape: Shape::Parts(parts) })
    }

    /// The text, or `None` if a placeholder has nothing to show or the result is empty. `topic` is the MQTT topic;
    /// `field` looks up a value of the payload.
    pub(crate) fn render<'f>(
        &self,
        topic: Option<&str>,
        field: impl Fn(&str) -> Option<std::borrow::Cow<'f, str>>,
    ) -> Option<ByteString> {
        let parts = match &self.shape {
            Shape::Fixed(text) => return (!text.is_empty()).then(|| text.clone()),
            Shape::Parts(parts) => parts,
        };
        let mut out = String::with_capacity(64);
        for part in parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Topic => out.push_str(topic?),
                Part::Level(level) => out.push_str(topic?.split('/').nth(*level)?),
                Part::Field(name) => out.push_str(&field(name)?),
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    /// Names of the payload's values that rendering asks for.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &str> {
        let parts = match &self.shape {
            Shape::Fixed(_) => &[][..],
            Shape::Parts(parts) => parts,
        };
        parts.iter().filter_map(|part| if let Part::Field(name) = part { Some(name.as_str()) } else { None })
    }

    /// The text, if it is the same for every message.
    pub(crate) fn fixed(&self) -> Option<&str> {
        match &self.shape {
            Shape::Fixed(text) => Some(text),
            Shape::Parts(_) => None,
        }
    }
}

fn placeholder(name: &str, offer: Offer<'_>) -> Result<Part, String> {
    let level = |index: &str| index.strip_suffix(']').and_then(|digits| digits.parse::<usize>().ok());
    match name {
        "source" => Ok(Part::Text(offer.source.to_owned())),
        "agent" => Ok(Part::Text(offer.agent.to_owned())),
        _ if name == "mqtt.topic" || name.starts_with("mqtt.topic[") => {
            let part = match name.strip_prefix("mqtt.topic[") {
                None => Part::Topic,
                Some(index) => Part::Level(
                    level(index)
                        .ok_or_else(|| format!("{{{name}}}: the level is a number from 0, as in {{mqtt.topic[1]}}"))?,
                ),
            };
            if offer.mqtt { Ok(part) } else { Err(format!("{{{name}}}: only sources of type mqtt have a topic")) }
        }
        _ => match name.strip_prefix("field.") {
            Some("") => Err("{field.}: the name of the field is missing, as in {field.meter}".to_owned()),
            Some(_) if !offer.fields => {
                Err(format!("{{{name}}}: needs a decoder, for example decode = {{ format = \"json\" }}"))
            }
            Some(field) => Ok(Part::Field(field.to_owned())),
            None => Err(format!(
                "{{{name}}} is not known; allowed are {{source}}, {{agent}}, {{mqtt.topic}}, {{mqtt.topic[N]}}, {{field.NAME}}"
            )),
        },
    }
}

/// The name as Kafka takes it: '/' becomes '.', any other character outside `[A-Za-z0-9._-]` becomes '_'. Empty if the
/// result is empty, over 249 characters, or `.` or `..`: such a record becomes a dead letter `topic`.
pub(crate) fn legal_topic(name: ByteString) -> ByteString {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name = if name.chars().all(legal) {
        name
    } else {
        let change = |c| {
            if c == '/' {
                '.'
            } else if legal(c) {
                c
            } else {
                '_'
            }
        };
        name.chars().map(change).collect::<String>().into()
    };
    if name.len() > TOPIC_CHARACTERS_MAX || name == "." || name == ".." { ByteString::new() } else { name }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    const OFFER: Offer<'static> = Offer { source: "plant", agent: "gw-1", mqtt: true, fields: true };

    fn render(text: &str, topic: &str) -> Option<String> {
        let field = |name: &str| (name == "a.b").then_some(Cow::Borrowed("17"));
        Template::parse(text, OFFER).unwrap().render(Some(topic), field).map(String::from)
    }

    #[test]
    fn placeholders_are_filled_in() {
        let topic = "plant/a/line-3/telemetry";
        assert_eq!(render("{mqtt.topic[1]}-{mqtt.topic[2]}", topic).unwrap(), "a-line-3");
        assert_eq!(render("{mqtt.topic}", topic).unwrap(), topic);
        assert_eq!(render("{agent}/{source}/{field.a.b}", topic).unwrap(), "gw-1/plant/17");
        assert_eq!(render("plain {{x}}", topic).unwrap(), "plain {x}");
        assert_eq!(render("{source}", topic).unwrap(), "plant");
    }

    #[test]
    fn what_is_missing_gives_nothing_rather_than_half_a_name() {
        assert_eq!(render("a-{mqtt.topic[9]}", "x/y"), None);
        assert_eq!(render("a-{field.nope}", "x/y"), None);
        assert_eq!(render("", "x/y"), None);
        assert_eq!(render("{mqtt.topic[0]}", "/y"), None);
    }

    #[test]
    fn mistakes_name_what_is_wrong_and_what_is_allowed() {
        let error = |text, offer| Template::parse(text, offer).unwrap_err();
        assert!(error("{mqtt.topi}", OFFER).contains("allowed are"));
        assert!(error("{mqtt.topic[x]}", OFFER).contains("number from 0"));
        assert!(error("{source", OFFER).contains("never closed"));
        assert!(error("a}b", OFFER).contains("single '}'"));
        assert!(error("{field.x}", Offer { fields: false, ..OFFER }).contains("decoder"));
        assert!(error("{mqtt.topic}", Offer { mqtt: false, ..OFFER }).contains("only sources of type mqtt"));
        assert!(error("{field.}", OFFER).contains("missing"));
    }

    #[test]
    fn topics_become_legal_or_empty() {
        assert_eq!(&*legal_topic("plant/a b/ü".into()), "plant.a_b._");
        assert_eq!(&*legal_topic("ok-1_2.3".into()), "ok-1_2.3");
        assert_eq!(&*legal_topic("..".into()), "");
        assert_eq!(legal_topic("x".repeat(249).into()).len(), 249);
        assert_eq!(&*legal_topic("x".repeat(250).into()), "");
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics_and_legal_topics_stay_legal(text in ".{0,80}") {
            let _ = Template::parse(&text, OFFER);
            let legal = legal_topic(text.into());
            proptest::prop_assert!(legal.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
            proptest::prop_assert_eq!(legal_topic(legal.clone()), legal);
        }
    }
}
