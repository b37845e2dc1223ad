//! The Kafka of a test: one for all by default, with topics of its own per test; and an independent reader.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use fieldpost::demo::brokers::kafka::{Kafka, KafkaOptions, admin};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::proxy::{Proxy, Reserved};
use super::workdir::run_dir;
use super::{LIMIT, wait_for};

struct Shared {
    bootstrap: String,
    /// Proxies in front of our own node, for one test each. They are listeners of the node, so their number is fixed at its
    /// start.
    proxies: Mutex<Vec<Proxy>>,
    _own: Option<Mutex<Kafka>>,
}

/// How many tests can ask for a proxy.
const PROXIES: usize = 20;

fn shared_cluster() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var("TEST_KAFKA") {
        Ok(bootstrap) => Shared { bootstrap, proxies: Mutex::default(), _own: None },
        Err(_) => {
            let (kafka, proxies) = start_proxied(&run_dir().join("shared-kafka"), PROXIES);
            Shared { bootstrap: kafka.bootstrap(), proxies: Mutex::new(proxies), _own: Some(Mutex::new(kafka)) }
        }
    })
}

fn start_proxied(dir: &Path, count: usize) -> (Kafka, Vec<Proxy>) {
    let reserved: Vec<_> = (0..count).map(|_| Reserved::new()).collect();
    let proxies = reserved.iter().map(|reserved| vec![reserved.port()]).collect();
    let kafka = Kafka::start(dir, &KafkaOptions { proxies, ..KafkaOptions::default() });
    let kafka = kafka.unwrap_or_else(|error| panic!("{error}"));
    let forward = |(number, reserved): (usize, Reserved)| reserved.forward(kafka.proxied_port(number, 0), true);
    let proxies = reserved.into_iter().enumerate().map(forward).collect();
    (kafka, proxies)
}

/// `host:port` of the cluster that all tests share: `TEST_KAFKA`, or a node that the first caller starts and that ends with
/// the test program.
pub fn shared() -> &'static str {
    &shared_cluster().bootstrap
}

/// A bad network in front of the shared cluster, for this test alone. Another cluster (`TEST_KAFKA`) advertises its own
/// addresses: clients would go round the proxy.
pub fn proxy_to_shared() -> Proxy {
    let proxy = shared_cluster().proxies.lock().unwrap().pop();
    proxy.expect("a proxy is left; tests with a bad network cannot run with TEST_KAFKA")
}

/// Creates a topic in any cluster.
pub fn create_topic(bootstrap: &str, name: &str, partitions: i32) {
    admin::create_topic(bootstrap, name, partitions, &[]).unwrap_or_else(|error| panic!("{error}"));
}

/// A record as a consumer sees it.
#[derive(Debug, Clone)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, Vec<u8>>,
}

impl Record {
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

fn consumer(bootstrap: &str, isolation: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "fieldpost-tests-never-committed")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("fetch.wait.max.ms", "50");
    config.create().unwrap()
}

/// All that a `read_committed` consumer sees of a topic, per partition in its order. A topic that does not exist is empty.
///
/// Waits until no transaction is open in it: before that "the end" would be the first open one. A consumer of its own for each
/// call, so that the end it reports is the end after that wait.
pub fn read_all(bootstrap: &str, topic: &str) -> Vec<Record> {
    let (committed, everything) = (consumer(bootstrap, "read_committed"), consumer(bootstrap, "read_uncommitted"));
    let request = Duration::from_secs(10);
    let partitions: Vec<i32> = wait_for("metadata of a topic", || {
        let metadata = committed.fetch_metadata(Some(topic), request).ok()?;
        let found = metadata.topics().iter().find(|found| found.name() == topic)?;
        let unknown = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        match found.error() {
            Some(error) if error == unknown => Some(Vec::new()),
            Some(_) => None,
            None => Some(found.partitions().iter().map(|partition| partition.id()).collect()),
        }
    });
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        wait_for("an open transaction to end", || {
            let high = everything.fetch_watermarks(topic, *partition, request).ok()?.1;
            let stable = committed.fetch_watermarks(topic, *partition, request).ok()?.1;
            (stable >= high).then_some(())
        });
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
    }
    if partitions.is_empty() {
        return Vec::new();
    }
    committed.assign(&assignment).unwrap();
    let (mut records, mut open, mut deadline) = (Vec::new(), partitions.len(), Instant::now() + LIMIT);
    while open > 0 {
        assert!(Instant::now() < deadline, "{topic}: no answer from the cluster");
        match committed.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => eprintln!("reading {topic}: {error}"),
            Some(Ok(message)) => {
                deadline = Instant::now() + LIMIT;
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                records.push(Record {
                    topic: topic.to_owned(),
                    partition: message.partition(),
                    offset: message.offset(),
                    key: message.key().unwrap_or_default().to_vec(),
                    value: message.payload().unwrap_or_default().to_vec(),
                    headers: headers.map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect(),
                });
            }
        }
    }
    records
}
