//! Every mistake in the settings of a source, as `key: what is wrong and what is allowed`.

use super::mapping::Mapper;
use super::mqtt::{self, secret, tls, url::Endpoint};
use super::offer;
use super::serial::line::Line;
use crate::config::Source;
use crate::config::intake::{Framing, Mapping, Mqtt, Serial};

/// Longest topic filter, bytes (MQTT 5, 4.7.3).
const FILTER_BYTES_MAX: usize = 65_535;

/// Longest delimiter, bytes.
const DELIMITER_BYTES_MAX: usize = 64;

/// All mistakes, in the order in which the settings are documented.
pub(super) fn check(name: &str, agent_id: &str, config: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    match config {
        Source::Mqtt(mqtt) => check_mqtt(name, agent_id, mqtt, &mut wrong),
        Source::Serial(serial) => check_serial(serial, &mut wrong),
    }
    check_mapping(config.mapping(), &mut wrong);
    if let Err(errors) = Mapper::new(config.mapping(), offer(name, agent_id, config), usize::MAX) {
        wrong.extend(errors);
    }
    wrong
}

/// The part that a share like `25%` means: above 0, at most 1.
pub(super) fn share(text: &str) -> Option<f64> {
    let percent = text.strip_suffix('%').and_then(|digits| digits.trim().parse::<f64>().ok());
    percent.filter(|percent| *percent > 0.0 && *percent <= 100.0).map(|percent| percent / 100.0)
}

fn check_mapping(mapping: &Mapping, wrong: &mut Vec<String>) {
    if share(&mapping.share_max).is_none() {
        wrong.push(format!(
            "share_max: {:?} is no share; write a percentage above 0%, as in \"25%\"",
            mapping.share_max
        ));
    }
    if mapping.priority > 9 {
        wrong.push(format!("priority: {} is out of range; 0 to 9", mapping.priority));
    }
}

fn check_mqtt(name: &str, agent_id: &str, config: &Mqtt, wrong: &mut Vec<String>) {
    let endpoint = Endpoint::parse(&config.url).map_err(|error| wrong.push(format!("url: {error}"))).ok();
    if !matches!(config.version, 3 | 5) {
        wrong.push(format!("version: {} is not known; 5, or 3 for 3.1.1", config.version));
    }
    let client_id = mqtt::client_id(config, agent_id, name);
    if client_id.is_empty() || client_id.len() > 65_535 || client_id.contains('\0') {
        wrong.push(
            "client_id: must not be empty: it names the session in which the broker keeps our messages".to_owned(),
        );
    }
    if let Err(error) = secret::check(config.password_file.as_deref(), config.password_credential.as_deref()) {
        wrong.push(error);
    }
    let password = config.password_file.is_some() || config.password_credential.is_some();
    if password && config.username.is_none() && config.version == 3 {
        wrong.push("username: is missing beside the password; MQTT 3.1.1 has no password without a user".to_owned());
    }
    check_tls(config, endpoint.as_ref(), wrong);
    check_subscriptions(config, wrong);
    if config.keep_alive.0.as_secs() < 5 || config.keep_alive.0.as_secs() > 65_535 {
        wrong.push(format!("keep_alive: {} is out of range; 5s to 18h", config.keep_alive));
    }
    if config.session_expiry.0.as_secs() == 0 {
        wrong.push(
            "session_expiry: must not be 0: the broker would throw our queue away with each connection".to_owned(),
        );
    }
    if config.receive_maximum == 0 {
        wrong.push("receive_maximum: must not be 0; 1 to 65535".to_owned());
    }
    if !(256..=268_435_455).contains(&config.packet_bytes_max.0) {
        wrong.push(format!("packet_bytes_max: {} is out of range; 256B to 255MiB", config.packet_bytes_max));
    }
    let status_topic = mqtt::status_topic(config, agent_id, name);
    let illegal = |topic: &String| topic.is_empty() || topic.contains(['+', '#', '\0', '{', '}']);
    if let Some(topic) = status_topic.filter(illegal) {
        wrong.push(format!(
            "status_topic: {topic:?} is no topic to publish to; {{agent}} and {{source}} are known, wildcards are not; or \"off\""
        ));
    }
}

fn check_tls(config: &Mqtt, endpoint: Option<&Endpoint>, wrong: &mut Vec<String>) {
    match (endpoint, &config.tls) {
        (Some(endpoint), Some(_)) if !endpoint.is_tls() => {
            wrong.push("tls: the url is not encrypted; write mqtts:// or wss://, or remove tls".to_owned());
        }
        (Some(endpoint), tls) if endpoint.is_tls() => {
            if let Err(error) = tls::client_config(&tls.clone().unwrap_or_default()) {
                wrong.push(error);
            }
        }
        _ => {}
    }
}

fn check_subscriptions(config: &Mqtt, wrong: &mut Vec<String>) {
    if config.subscribe.is_empty() {
        wrong.push(
            "subscribe: is empty, nothing would ever arrive; as in subscribe = [{ topic = \"plant/#\", qos = 1 }]"
                .to_owned(),
        );
    }
    for (number, entry) in config.subscribe.iter().enumerate() {
        if entry.qos > 2 {
            wrong.push(format!("subscribe[{number}].qos: {} is not known; 0, 1 or 2", entry.qos));
        }
        if let Err(error) = check_filter(&entry.topic) {
            wrong.push(format!("subscribe[{number}].topic: {:?} {error}", entry.topic));
        }
        if config.subscribe[..number].iter().any(|other| other.topic == entry.topic) {
            wrong.push(format!("subscribe[{number}].topic: {:?} is there twice", entry.topic));
        }
    }
}

/// Rules of MQTT 5, 4.7 and 4.8.2.
fn check_filter(filter: &str) -> Result<(), &'static str> {
    let mut path = filter;
    if let Some(shared) = filter.strip_prefix("$share/") {
        let (group, rest) = shared.split_once('/').ok_or("is no shared subscription; $share/GROUP/FILTER")?;
        if group.is_empty() || group.contains(['+', '#']) {
            return Err("is no shared subscription; the group's name has no wildcards");
        }
        path = rest;
    }
    if path.is_empty() {
        return Err("is empty");
    }
    if filter.len() > FILTER_BYTES_MAX || filter.contains('\0') {
        return Err("is too long or holds a NUL");
    }
    let levels: Vec<&str> = path.split('/').collect();
    for (number, level) in levels.iter().enumerate() {
        if level.contains('#') && (*level != "#" || number + 1 < levels.len()) {
            return Err("is wrong: '#' stands alone, as the last level");
        }
        if level.contains('+') && *level != "+" {
            return Err("is wrong: '+' stands alone in its level");
        }
    }
    Ok(())
}

fn check_serial(config: &Serial, wrong: &mut Vec<String>) {
    if config.path.as_os_str().is_empty() {
        wrong.push("path: is missing; name the device, best by /dev/serial/by-id/...".to_owned());
    }
    if !(50..=4_000_000).contains(&config.baud) {
        wrong.push(format!("baud: {} is out of range; 50 to 4000000", config.baud));
    }
    if let Err(error) = Line::parse(&config.line) {
        wrong.push(format!("line: {error}"));
    }
    if !(1..=64 << 20).contains(&config.frame_bytes_max.0) {
        wrong.push(format!("frame_bytes_max: {} is out of range; 1B to 64MiB", config.frame_bytes_max));
    }
    let Framing::Delimiter { delimiter } = &config.framing;
    if delimiter.is_empty() || delimiter.len() > DELIMITER_BYTES_MAX {
        wrong.push(format!(
            "framing.delimiter: {delimiter:?} must have 1 to {DELIMITER_BYTES_MAX} bytes, as in \"\\n\""
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::intake::Subscription;
    use crate::config::{ByteSize, Span};

    fn good() -> Mqtt {
        let subscribe = vec![Subscription { topic: "plant/+/t".to_owned(), qos: 1 }];
        Mqtt { url: "mqtt://broker".to_owned(), subscribe, ..Mqtt::default() }
    }

    fn mistakes(config: Mqtt) -> Vec<String> {
        check("plant", "gw-1", &Source::Mqtt(config))
    }

    #[test]
    fn a_sound_source_has_no_mistakes() {
        assert_eq!(mistakes(good()), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_told_in_one_go() {
        let mut config = good();
        config.url = "http://x".to_owned();
        config.version = 4;
        config.client_id = Some(String::new());
        config.subscribe = vec![
            Subscription { topic: "a/#/b".to_owned(), qos: 3 },
            Subscription { topic: "a+".to_owned(), qos: 1 },
            Subscription { topic: "$share/g".to_owned(), qos: 1 },
        ];
        config.keep_alive = Span::secs(1);
        config.session_expiry = Span::secs(0);
        config.receive_maximum = 0;
        config.packet_bytes_max = ByteSize(1);
        config.status_topic = "a/+".to_owned();
        config.mapping.device = "{nope}".to_owned();
        config.mapping.share_max = "half".to_owned();
        config.mapping.priority = 10;
        let wrong = mistakes(config);
        for key in [
            "url:",
            "version:",
            "client_id:",
            "subscribe[0].qos:",
            "subscribe[0].topic:",
            "subscribe[1].topic:",
            "subscribe[2].topic:",
            "keep_alive:",
            "session_expiry:",
            "receive_maximum:",
            "packet_bytes_max:",
            "status_topic:",
            "device:",
            "share_max:",
            "priority:",
        ] {
            assert!(wrong.iter().any(|mistake| mistake.starts_with(key)), "{key} {wrong:?}");
        }
        assert_eq!(wrong.len(), 15, "{wrong:?}");
    }

    #[test]
    fn tls_settings_are_read() {
        let tls = crate::config::intake::Tls { ca_file: Some("/nonexistent.pem".into()), ..Default::default() };
        let wrong = mistakes(Mqtt { tls: Some(tls.clone()), ..good() });
        assert!(wrong[0].starts_with("tls: the url is not encrypted"), "{wrong:?}");
        let wrong = mistakes(Mqtt { url: "mqtts://b".to_owned(), tls: Some(tls), ..good() });
        assert!(wrong[0].starts_with("tls.ca_file: /nonexistent.pem"), "{wrong:?}");
    }

    #[test]
    fn mistakes_of_a_serial_line() {
        let config = Serial {
            baud: 0,
            line: "8N9".to_owned(),
            frame_bytes_max: ByteSize(0),
            framing: Framing::Delimiter { delimiter: String::new() },
            ..Serial::default()
        };
        let wrong = check("meter", "gw-1", &Source::Serial(config));
        for key in ["path:", "baud:", "line:", "frame_bytes_max:", "framing.delimiter:"] {
            assert!(wrong.iter().any(|mistake| mistake.starts_with(key)), "{key} {wrong:?}");
        }
        assert_eq!(wrong.len(), 5, "{wrong:?}");
        let config = Serial { path: "/dev/ttyUSB0".into(), ..Serial::default() };
        assert_eq!(check("meter", "gw-1", &Source::Serial(config)), Vec::<String>::new());
    }

    #[test]
    fn filters() {
        for good in ["#", "+", "a/+/b/#", "/", "$share/g/a/#", "a//b", "$SYS/#"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["", "a#", "#/a", "a/b+", "$share//a", "$share/g/", "a\0"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }
}
