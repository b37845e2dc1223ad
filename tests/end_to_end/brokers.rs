//! The brokers themselves: that they start, stop, and serve what the other tests need.

use fieldpost::demo::brokers::kafka::{Kafka, KafkaOptions};

use crate::harness::kafka::{create_topic, shared};
use crate::harness::workdir::WorkDir;

#[test]
fn the_shared_kafka_takes_topics() {
    create_topic(shared(), "brokers-one", 3);
    create_topic(shared(), "brokers-one", 3);
}

#[test]
fn three_nodes_survive_the_loss_of_one() {
    let dir = WorkDir::new("three_nodes");
    let mut kafka = Kafka::start(dir.path(), &KafkaOptions { nodes: 3, ..KafkaOptions::default() }).unwrap();
    create_topic(&kafka.bootstrap(), "brokers-three", 3);
    kafka.kill_node(1).unwrap();
    kafka.start_node(1).unwrap();
    kafka.wait_ready().unwrap();
    kafka.stop_node(0).unwrap();
    kafka.start_node(0).unwrap();
    kafka.wait_ready().unwrap();
}
