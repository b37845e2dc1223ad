//! Every mistake in `[delivery]` that [`super::start`] would refuse, as `key: what is wrong`, the key below `delivery`.

use std::path::Path;

use rdkafka::config::ClientConfig;

use super::kafka::check_properties;
use crate::config;
use crate::config::delivery::Kafka;

/// All mistakes.
pub(super) fn check(config: &config::Delivery) -> Vec<String> {
    let mut wrong = Vec::new();
    properties(&config.kafka, &mut wrong);
    if let Some(tls) = &config.kafka.tls {
        let files = [("ca_file", &tls.ca_file), ("cert_file", &tls.cert_file), ("key_file", &tls.key_file)];
        for (key, file) in files {
            readable(&format!("kafka.tls.{key}"), file.as_deref(), &mut wrong);
        }
    }
    if let Some(sasl) = &config.kafka.sasl {
        readable("kafka.sasl.password_file", sasl.password_file.as_deref(), &mut wrong);
    }
    wrong
}

/// One by one, so that all are named: first what would break a promise, then what librdkafka itself refuses. A value may
/// be a secret and is never repeated.
fn properties(kafka: &Kafka, wrong: &mut Vec<String>) {
    for (name, value) in &kafka.properties {
        let alone = Kafka { properties: [(name.clone(), value.clone())].into(), ..Kafka::default() };
        let key = format!("kafka.properties.{name:?}");
        if let Err(text) = check_properties(&alone) {
            let text = text.strip_prefix("delivery.kafka.properties: ").unwrap_or(&text);
            wrong.push(format!("{key}: {text}"));
        } else if ClientConfig::new().set(name, value).create_native_config().is_err() {
            wrong.push(format!("{key}: librdkafka knows no such property, or refuses the value"));
        }
    }
}

fn readable(key: &str, file: Option<&Path>, wrong: &mut Vec<String>) {
    if let Some(error) = file.and_then(|file| std::fs::File::open(file).err().map(|error| (file, error))) {
        wrong.push(format!("{key}: cannot read {}: {}", error.0.display(), error.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Delivery;
    use crate::config::delivery::Tls;

    #[test]
    fn every_refused_property_is_named_and_no_value_is_shown() {
        let mut config = Delivery::default();
        for name in ["enable.idempotence", "no.such.property", "socket.keepalive.enable", "message.max.bytes"] {
            config.kafka.properties.insert(name.to_owned(), "hush".to_owned());
        }
        config.kafka.properties.insert("socket.nagle.disable".to_owned(), "true".to_owned());
        let wrong = check(&config);
        assert_eq!(wrong.len(), 4, "{wrong:#?}");
        assert!(
            wrong.iter().all(|text| text.starts_with("kafka.properties.\"") && !text.contains("hush")),
            "{wrong:#?}"
        );
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let mut config = Delivery::default();
        config.kafka.tls = Some(Tls { ca_file: Some("/nonexistent/ca.pem".into()), ..Tls::default() });
        assert_eq!(check(&config).len(), 1);
        assert!(check(&config)[0].starts_with("kafka.tls.ca_file: cannot read /nonexistent/ca.pem"));
        assert!(check(&Delivery::default()).is_empty());
    }
}
