//! The Kafka of a test: one for all by default, with topics of its own per test.

use std::sync::{Mutex, OnceLock};

use fieldpost::demo::brokers::kafka::{Kafka, KafkaOptions, admin};

use super::workdir::run_dir;

/// `host:port` of the cluster that all tests share: `TEST_KAFKA`, or a node that the first caller starts and that ends with
/// the test program.
pub fn shared() -> &'static str {
    static SHARED: OnceLock<(String, Option<Mutex<Kafka>>)> = OnceLock::new();
    let (bootstrap, _) = SHARED.get_or_init(|| match std::env::var("TEST_KAFKA") {
        Ok(bootstrap) => (bootstrap, None),
        Err(_) => {
            let kafka = Kafka::start(&run_dir().join("shared-kafka"), &KafkaOptions::default());
            let kafka = kafka.unwrap_or_else(|error| panic!("{error}"));
            (kafka.bootstrap(), Some(Mutex::new(kafka)))
        }
    });
    bootstrap
}

/// Creates a topic in any cluster.
pub fn create_topic(bootstrap: &str, name: &str, partitions: i32) {
    admin::create_topic(bootstrap, name, partitions, &[]).unwrap_or_else(|error| panic!("{error}"));
}
