//! From `[delivery.kafka]` to librdkafka's settings. What would break a promise is refused with the reason.

use std::fs;
use std::path::Path;

use crate::config::delivery::{Delivery, Kafka, Sasl, Tls};
use crate::delivery::machine::Limits;

/// Settings that are not the owner's to change, and why.
const DENIED: &[(&str, &str)] = &[
    ("acks", "exactly once needs all in-sync replicas"),
    ("request.required.acks", "exactly once needs all in-sync replicas"),
    ("enable.idempotence", "exactly once rests on it"),
    ("enable.gapless.guarantee", "it is implied by transactions"),
    ("transactional.id", "it is made of delivery.transactional_id_prefix and agent.id"),
    ("transaction.timeout.ms", "use delivery.transaction_timeout"),
    ("message.timeout.ms", "use delivery.message_timeout"),
    ("delivery.timeout.ms", "use delivery.message_timeout"),
    ("isolation.level", "the ledger must be read committed"),
    ("partitioner", "the partition is computed before sending, as the Java client does"),
    ("allow.auto.create.topics", "a misspelt topic must be an error"),
    ("enable.auto.commit", "Fieldpost keeps its position in the ledger"),
    ("enable.auto.offset.store", "Fieldpost keeps its position in the ledger"),
    ("enable.partition.eof", "reading back ends by it"),
    ("auto.offset.reset", "reading back must not jump"),
    ("group.id", "no consumer group is joined"),
    ("message.max.bytes", "use outbox.record_bytes_max"),
    ("max.in.flight", "above 5 the order is lost"),
    ("max.in.flight.requests.per.connection", "above 5 the order is lost"),
    ("retries", "bounded by delivery.message_timeout"),
    ("message.send.max.retries", "bounded by delivery.message_timeout"),
    ("log.queue", "logs are served by Fieldpost"),
    ("log_level", "use agent.log, as in \"info,fieldpost::kafka=debug\""),
    ("debug", "use agent.log, as in \"info,fieldpost::kafka=debug\""),
    ("client.rack", "a follower may lag behind what the ledger must show"),
    ("delivery.report.only.error", "every record is accounted for"),
    ("bootstrap.servers", "use delivery.kafka.bootstrap_servers"),
    ("metadata.broker.list", "use delivery.kafka.bootstrap_servers"),
    ("compression.codec", "use delivery.kafka.compression"),
    ("compression.type", "use delivery.kafka.compression"),
    ("sasl.username", "use delivery.kafka.sasl"),
    ("sasl.password", "use delivery.kafka.sasl with a password_file"),
    ("sasl.mechanism", "use delivery.kafka.sasl"),
    ("sasl.mechanisms", "use delivery.kafka.sasl"),
    ("security.protocol", "follows from delivery.kafka.tls and delivery.kafka.sasl"),
    ("plugin.library.paths", "no foreign code is loaded"),
    ("queue.buffering.max.messages", "memory is bounded by the batch settings"),
    ("queue.buffering.max.kbytes", "memory is bounded by the batch settings"),
];

/// Room that the largest record leaves in a request for the batch's own header.
const BATCH_HEADER_BYTES: usize = 16 << 10;
/// librdkafka's own default of `message.max.bytes`; below it nothing is gained.
const MESSAGE_MAX_BYTES_MIN: usize = 1_000_000;
/// Bytes that librdkafka holds before it says that its queue is full.
const QUEUE_KBYTES: usize = 16_384;
const QUEUE_MESSAGES: usize = 8_000;

/// Name and value, in the order in which they are set.
pub(super) type Settings = Vec<(String, String)>;

/// Largest message the client sends, bytes.
pub(super) fn message_bytes_max(record_bytes_max: usize) -> usize {
    (record_bytes_max + BATCH_HEADER_BYTES).max(MESSAGE_MAX_BYTES_MIN)
}

/// Refuses pass-through properties that would break a promise.
pub(in crate::delivery) fn check_properties(kafka: &Kafka) -> Result<(), String> {
    for name in kafka.properties.keys() {
        let wanted = name.trim();
        if let Some((_, reason)) = DENIED.iter().find(|(denied, _)| *denied == wanted) {
            return Err(format!("delivery.kafka.properties: {wanted} may not be set: {reason}"));
        }
        if wanted.ends_with("_cb") || wanted.starts_with("ssl.key.password") {
            return Err(format!("delivery.kafka.properties: {wanted} may not be set here"));
        }
    }
    Ok(())
}

/// Settings of every client: where and how to connect. Secrets are read from their files each time.
pub(super) fn connection(kafka: &Kafka, agent_id: &str) -> Result<Settings, String> {
    let mut settings = Settings::new();
    let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
    if kafka.bootstrap_servers.is_empty() {
        return Err("delivery.kafka.bootstrap_servers is empty: name at least one broker as \"host:port\"".to_owned());
    }
    set("bootstrap.servers", &kafka.bootstrap_servers.join(","));
    set("client.id", &format!("fieldpost-{agent_id}"));
    set("socket.keepalive.enable", "true");
    set("connections.max.idle.ms", "240000");
    set("socket.connection.setup.timeout.ms", "15000");
    set("reconnect.backoff.ms", "250");
    set("reconnect.backoff.max.ms", "10000");
    set("retry.backoff.ms", "100");
    set("retry.backoff.max.ms", "1000");
    set("topic.metadata.refresh.interval.ms", "60000");
    set("metadata.recovery.strategy", "rebootstrap");
    set("allow.auto.create.topics", "false");
    let protocol = match (&kafka.tls, &kafka.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    set("security.protocol", protocol);
    if let Some(tls) = &kafka.tls {
        settings.extend(tls_settings(tls)?);
    }
    if let Some(sasl) = &kafka.sasl {
        settings.extend(sasl_settings(sasl)?);
    }
    settings.extend(kafka.properties.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(settings)
}

fn tls_settings(tls: &Tls) -> Result<Settings, String> {
    let mut settings = Settings::new();
    for (name, file) in [
        ("ssl.ca.location", &tls.ca_file),
        ("ssl.certificate.location", &tls.cert_file),
        ("ssl.key.location", &tls.key_file),
    ] {
        if let Some(file) = file {
            fs::File::open(file).map_err(|error| format!("cannot open {}: {error}", file.display()))?;
            settings.push((name.to_owned(), file.display().to_string()));
        }
    }
    if !tls.verify {
        settings.push(("enable.ssl.certificate.verification".to_owned(), "false".to_owned()));
        settings.push(("ssl.endpoint.identification.algorithm".to_owned(), "none".to_owned()));
    }
    Ok(settings)
}

fn sasl_settings(sasl: &Sasl) -> Result<Settings, String> {
    let password = match (&sasl.password_file, &sasl.password_credential) {
        (Some(file), _) => read_secret(file)?,
        (None, Some(name)) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
                .ok_or("delivery.kafka.sasl.password_credential needs systemd's $CREDENTIALS_DIRECTORY")?;
            read_secret(&Path::new(&directory).join(name))?
        }
        (None, None) => return Err("delivery.kafka.sasl needs password_file or password_credential".to_owned()),
    };
    Ok(vec![
        ("sasl.mechanisms".to_owned(), sasl.mechanism.clone()),
        ("sasl.username".to_owned(), sasl.username.clone()),
        ("sasl.password".to_owned(), password),
    ])
}

/// The file's content without the line end that editors add.
fn read_secret(file: &Path) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Settings of the transactional producer.
pub(super) fn producer(
    config: &Delivery,
    agent_id: &str,
    record_bytes_max: usize,
    limits: &Limits,
) -> Result<Settings, String> {
    let mut settings = connection(&config.kafka, agent_id)?;
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    set("transactional.id", format!("{}{agent_id}", config.transactional_id_prefix));
    set("enable.idempotence", "true".to_owned());
    set("acks", "all".to_owned());
    set("max.in.flight", "5".to_owned());
    set("transaction.timeout.ms", limits.transaction_timeout.as_millis().to_string());
    set("message.timeout.ms", limits.message_timeout.as_millis().to_string());
    // A retry must fit into the message's time.
    let socket_timeout_ms = (limits.message_timeout.as_millis() * 6 / 10).clamp(1_000, 300_000);
    set("socket.timeout.ms", socket_timeout_ms.to_string());
    set("linger.ms", "5".to_owned());
    set("batch.size", limits.request_bytes.to_string());
    set("batch.num.messages", "10000".to_owned());
    set("message.max.bytes", message_bytes_max(record_bytes_max).to_string());
    set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string());
    set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string());
    set("compression.codec", config.kafka.compression.as_str().to_owned());
    set("statistics.interval.ms", "30000".to_owned());
    set("log.queue", "true".to_owned());
    // 6 brings single disconnects and request time-outs, which are shown at debug only.
    set("log_level", "6".to_owned());
    Ok(settings)
}

/// Settings of a consumer for reading back.
pub(super) fn consumer(kafka: &Kafka, agent_id: &str, committed: bool) -> Result<Settings, String> {
    let mut settings = connection(kafka, agent_id)?;
    let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
    // Never joined; librdkafka wants one before it lets partitions be assigned.
    set("group.id", &format!("fieldpost.{agent_id}"));
    set("isolation.level", if committed { "read_committed" } else { "read_uncommitted" });
    set("enable.partition.eof", "true");
    set("enable.auto.commit", "false");
    set("enable.auto.offset.store", "false");
    set("auto.offset.reset", "error");
    set("fetch.wait.max.ms", "100");
    set("queued.max.messages.kbytes", "4096");
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits() -> Limits {
        Limits {
            records: 5000,
            bytes: 2 << 20,
            request_bytes: 256 << 10,
            transaction_timeout: Duration::from_secs(15),
            message_timeout: Duration::from_secs(10),
        }
    }

    fn config() -> Delivery {
        let mut config = Delivery::default();
        config.kafka.bootstrap_servers = vec!["localhost:9092".to_owned(), "b:9093".to_owned()];
        config
    }

    fn get<'a>(settings: &'a Settings, name: &str) -> Option<&'a str> {
        settings.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn what_would_break_a_promise_is_refused_with_the_reason() {
        let mut config = config();
        config.kafka.properties.insert("acks".to_owned(), "1".to_owned());
        let error = check_properties(&config.kafka).unwrap_err();
        assert!(error.contains("acks") && error.contains("in-sync replicas"), "{error}");
        config.kafka.properties.clear();
        config.kafka.properties.insert("socket.nagle.disable".to_owned(), "true".to_owned());
        assert_eq!(check_properties(&config.kafka), Ok(()));
        assert_eq!(get(&producer(&config, "gw", 983_040, &limits()).unwrap(), "socket.nagle.disable"), Some("true"));
    }

    #[test]
    fn the_producer_is_transactional_and_a_retry_fits_into_its_time() {
        let settings = producer(&config(), "gw-1", 983_040, &limits()).unwrap();
        assert_eq!(get(&settings, "transactional.id"), Some("fieldpost.gw-1"));
        assert_eq!(get(&settings, "bootstrap.servers"), Some("localhost:9092,b:9093"));
        assert_eq!(get(&settings, "socket.timeout.ms"), Some("6000"));
        assert_eq!(get(&settings, "message.max.bytes"), Some("1000000"));
        assert_eq!(get(&settings, "security.protocol"), Some("plaintext"));
    }

    #[test]
    fn a_password_is_read_again_each_time_and_never_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        let mut config = config();
        config.kafka.sasl = Some(Sasl {
            mechanism: "SCRAM-SHA-512".to_owned(),
            username: "gw".to_owned(),
            password_file: Some(file.clone()),
            password_credential: None,
        });
        let error = connection(&config.kafka, "gw").unwrap_err();
        assert!(error.contains("password") && error.contains("No such file"), "{error}");
        for secret in ["first", "second"] {
            fs::write(&file, format!("{secret}\n")).unwrap();
            let settings = connection(&config.kafka, "gw").unwrap();
            assert_eq!(get(&settings, "sasl.password"), Some(secret));
            assert_eq!(get(&settings, "security.protocol"), Some("sasl_plaintext"));
        }
    }
}
