//! Rules between settings, settings that this version does not act on, and what deserves a warning.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::delivery::{Mode, PositionStore, Tls};
use super::intake::Serial;
use super::mistake::{Mistake, Place};
use super::outbox::Sync;
use super::{Config, Delivery, OnHardwareChange, Source};

/// Collects what is wrong, each at the place of its setting.
struct Report<'a> {
    places: &'a BTreeMap<String, Place>,
    main: &'a Place,
    found: Vec<Mistake>,
}

impl Report<'_> {
    fn at(&mut self, key: &str, text: impl Into<String>) {
        let mut path = key;
        let place = loop {
            match (self.places.get(path), path.rfind(['.', '['])) {
                (Some(place), _) => break place,
                (None, Some(cut)) => path = &path[..cut],
                (None, None) => break self.main,
            }
        };
        self.found.push(Mistake { place: place.clone(), key: key.to_owned(), text: text.into() });
    }
}

/// Checks the whole configuration. A rule that concerns a setting with a mistake of its own stays silent.
pub(super) fn check(
    config: &Config,
    places: &BTreeMap<String, Place>,
    main: &Place,
    mistakes: &mut Vec<Mistake>,
    warnings: &mut Vec<Mistake>,
) {
    let mut wrong = Report { places, main, found: Vec::new() };
    outbox(config, &mut wrong);
    delivery(config, &mut wrong);
    sources(config, &mut wrong);
    for mistake in wrong.found {
        let known =
            |key: &str| mistakes.iter().any(|other| other.key == key || other.key.starts_with(&format!("{key}[")));
        let others: &[&str] = match mistake.key.as_str() {
            "delivery.message_timeout" | "delivery.max_wait" => &["delivery.transaction_timeout"],
            "outbox.record_bytes_max" => &["outbox.max_bytes", "outbox.held_bytes_max"],
            _ => &[],
        };
        if !known(&mistake.key) && !others.iter().any(|key| known(key)) {
            mistakes.push(mistake);
        }
    }
    let mut look = Report { places, main, found: Vec::new() };
    notices(config, &mut look);
    warnings.append(&mut look.found);
}

fn outbox(config: &Config, wrong: &mut Report<'_>) {
    let outbox = &config.outbox;
    if outbox.record_bytes_max.0 > outbox.max_bytes.0 / 8 {
        let text = format!("{} is above an eighth of outbox.max_bytes ({})", outbox.record_bytes_max, outbox.max_bytes);
        wrong.at("outbox.record_bytes_max", text);
    }
    if outbox.record_bytes_max > outbox.held_bytes_max {
        let text = format!("{} is above outbox.held_bytes_max ({})", outbox.record_bytes_max, outbox.held_bytes_max);
        wrong.at("outbox.record_bytes_max", text);
    }
}

fn delivery(config: &Config, wrong: &mut Report<'_>) {
    const LATER: &str = "not in this version";
    let delivery = &config.delivery;
    if delivery.kafka.bootstrap_servers.is_empty() {
        wrong.at("delivery.kafka.bootstrap_servers", "found an empty list; allowed: at least one host:port");
    }
    if delivery.mode == Mode::Idempotent {
        wrong.at("delivery.mode", format!("\"idempotent\" is {LATER}; allowed: \"txn\""));
    }
    if delivery.position == PositionStore::Group {
        wrong.at("delivery.position", format!("\"group\" is {LATER}; allowed: \"ledger\""));
    }
    if delivery.rate_max != "off" {
        wrong.at("delivery.rate_max", format!("a limit is {LATER}; allowed: \"off\""));
    }
    if !delivery.windows.is_empty() {
        wrong.at("delivery.windows", format!("windows are {LATER}; allowed: []"));
    }
    if delivery.ledger_topic == "off" {
        wrong.at("delivery.ledger_topic", "found \"off\"; exactly-once delivery needs its ledger");
    }
    if delivery.ledger_topic == delivery.dead_letter_topic {
        wrong.at(
            "delivery.dead_letter_topic",
            "the same topic as delivery.ledger_topic; dead letters need one of their own",
        );
    }
    let limit = delivery.transaction_timeout;
    for (key, value) in [("message_timeout", delivery.message_timeout), ("max_wait", delivery.max_wait)] {
        if value >= limit {
            let text = format!("{value} is not below delivery.transaction_timeout ({limit})");
            wrong.at(&format!("delivery.{key}"), text);
        }
    }
    if let Some(tls) = &delivery.kafka.tls {
        client_certificate("delivery.kafka.tls", tls, wrong);
    }
    if let Some(sasl) = &delivery.kafka.sasl {
        if let "GSSAPI" | "OAUTHBEARER" = sasl.mechanism.as_str() {
            wrong.at("delivery.kafka.sasl.mechanism", format!("{:?} is {LATER}", sasl.mechanism));
        }
        one_password("delivery.kafka.sasl", sasl.password_file.is_some(), sasl.password_credential.is_some(), wrong);
        if sasl.password_file.is_none() && sasl.password_credential.is_none() {
            wrong.at("delivery.kafka.sasl", "no password: set password_file or password_credential");
        }
    }
    for text in crate::delivery::check(delivery) {
        if let Some((key, text)) = text.split_once(": ") {
            wrong.at(&format!("delivery.{key}"), text);
        }
    }
}

fn sources(config: &Config, wrong: &mut Report<'_>) {
    let mut ports: BTreeMap<&std::path::Path, &str> = BTreeMap::new();
    for (name, source) in &config.sources {
        let table = format!("sources.{name}");
        match source {
            // All rules of an MQTT source are in `intake::check`.
            Source::Mqtt(_) => {}
            Source::Serial(serial) => {
                serial_source(&table, serial, config, wrong);
                if let Some(other) = ports.insert(&serial.path, name) {
                    let text = format!("{} is already read by sources.{other}", serial.path.display());
                    wrong.at(&format!("{table}.path"), text);
                }
            }
        }
        for text in crate::intake::check(name, &config.agent.id, source) {
            match text.split_once(": ") {
                Some((key, text)) => wrong.at(&format!("{table}.{key}"), text),
                None => wrong.at(&table, text),
            }
        }
    }
}

fn serial_source(table: &str, serial: &Serial, config: &Config, wrong: &mut Report<'_>) {
    if serial.frame_bytes_max > config.outbox.held_bytes_max {
        let text =
            format!("{} is above outbox.held_bytes_max ({})", serial.frame_bytes_max, config.outbox.held_bytes_max);
        wrong.at(&format!("{table}.frame_bytes_max"), text);
    }
}

fn client_certificate(table: &str, tls: &Tls, wrong: &mut Report<'_>) {
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        wrong.at(table, "cert_file and key_file belong together: one of them is missing");
    }
}

fn one_password(table: &str, file: bool, credential: bool, wrong: &mut Report<'_>) {
    if file && credential {
        wrong.at(table, "password_file and password_credential: set one of them");
    }
}

/// systemd hands credentials to the service only: from a shell they cannot be looked at.
fn credential(table: &str, name: Option<&str>, look: &mut Report<'_>) {
    if name.is_some() && std::env::var_os("CREDENTIALS_DIRECTORY").is_none() {
        let text = "cannot be checked here: only the service sees $CREDENTIALS_DIRECTORY";
        look.at(&format!("{table}.password_credential"), text);
    }
}

/// What is legal and deserves a look.
fn notices(config: &Config, look: &mut Report<'_>) {
    if config.sources.is_empty() {
        look.at("sources", "there is no source: nothing will be read");
    }
    if config.http.listen.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback()) {
        let text = format!("{} can be reached from other machines, without any login", config.http.listen);
        look.at("http.listen", text);
    }
    if config.delivery.kafka.tls.as_ref().is_some_and(|tls| !tls.verify) {
        look.at("delivery.kafka.tls.verify", "the broker's certificate is not checked: for trials only");
    }
    if let Some(sasl) = &config.delivery.kafka.sasl {
        credential("delivery.kafka.sasl", sasl.password_credential.as_deref(), look);
    }
    for (name, source) in &config.sources {
        if let Source::Mqtt(mqtt) = source {
            credential(&format!("sources.{name}"), mqtt.password_credential.as_deref(), look);
            if mqtt.tls.as_ref().is_some_and(|tls| !tls.verify) {
                look.at(
                    &format!("sources.{name}.tls.verify"),
                    "the broker's certificate is not checked: for trials only",
                );
            }
        }
    }
    if config.agent.on_hardware_change != OnHardwareChange::Hold {
        look.at("agent.on_hardware_change", "has no effect in this version: the hardware is not compared");
    }
    if config.delivery.settle_time != Delivery::default().settle_time {
        look.at("delivery.settle_time", "has no effect in mode \"txn\"");
    }
    if let Sync::Interval(span) = config.outbox.sync {
        let text = format!("a power cut or a killed process may lose serial and QoS 0 readings of the last {span}");
        look.at("outbox.sync", text);
    }
}
