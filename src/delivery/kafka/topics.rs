//! Making topics that are missing, or saying exactly what the owner has to type.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;

use super::settings::Settings;

const WITHIN: Duration = Duration::from_secs(10);
/// Partitions of the ledger topic; fixed for its life.
const LEDGER_PARTITIONS: i32 = 32;
/// A scan of the ledger stays short: compaction keeps every commit marker for the retention of deletes.
const LEDGER_CONFIG: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("max.compaction.lag.ms", "3600000"),
    ("delete.retention.ms", "3600000"),
];

/// What a topic is for: how it is made, and whether it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Positions of the fleet.
    Ledger,
    /// Dead letters and gap records.
    DeadLetters,
    /// Readings.
    Data,
}

/// The command that makes the topic.
pub(super) fn command(name: &str, purpose: Purpose, bootstrap: &str) -> String {
    let head = format!("kafka-topics.sh --bootstrap-server {bootstrap} --create --topic {name}");
    match purpose {
        Purpose::Ledger => {
            let config: String = LEDGER_CONFIG.iter().map(|(k, v)| format!(" --config {k}={v}")).collect();
            format!(
                "{head} --partitions {LEDGER_PARTITIONS} --replication-factor 3 --config min.insync.replicas=2{config}"
            )
        }
        Purpose::DeadLetters => format!("{head} --partitions 1 --config cleanup.policy=delete"),
        Purpose::Data => head,
    }
}

/// The command that lets this user do what the topic needs.
pub(super) fn acl_command(name: &str, bootstrap: &str) -> String {
    format!(
        "kafka-acls.sh --bootstrap-server {bootstrap} --add --allow-principal User:<this gateway> --operation Read \
         --operation Write --operation Describe --topic {name}"
    )
}

/// Makes a topic; one that is there already is as good. Blocks.
pub(super) fn create(connection: &Settings, name: &str, purpose: Purpose) -> Result<(), String> {
    let mut config = ClientConfig::new();
    for (key, value) in connection {
        config.set(key, value);
    }
    let admin: AdminClient<DefaultClientContext> = config.create().map_err(|error| error.to_string())?;
    let brokers = admin.inner().fetch_metadata(None, WITHIN).map_err(|error| error.to_string())?.brokers().len();
    let replication = i32::try_from(brokers.clamp(1, 3)).unwrap_or(3);
    let topic = match purpose {
        Purpose::Ledger => {
            let mut topic = NewTopic::new(name, LEDGER_PARTITIONS, TopicReplication::Fixed(replication));
            topic.config.extend(LEDGER_CONFIG);
            if replication == 3 {
                topic = topic.set("min.insync.replicas", "2");
            }
            topic
        }
        Purpose::DeadLetters => NewTopic::new(name, 1, TopicReplication::Fixed(-1)).set("cleanup.policy", "delete"),
        Purpose::Data => NewTopic::new(name, -1, TopicReplication::Fixed(-1)),
    };
    let options = AdminOptions::new().request_timeout(Some(WITHIN)).operation_timeout(Some(WITHIN));
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let results = runtime.block_on(admin.create_topics([&topic], &options)).map_err(|error| error.to_string())?;
    match results.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) => Ok(()),
        Some(Err((_, code))) => Err(code.to_string()),
        None => Err("the cluster gave no answer".to_owned()),
    }
}
