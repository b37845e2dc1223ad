//! The independent consumer: `read_committed`, from the first offset, with a client of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::tally::{Fp, Record};

/// One request may take this long.
const REQUEST: Duration = Duration::from_secs(10);

/// A topic and how many partitions it has.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) name: String,
    pub(super) partitions: i32,
    pub(super) dead_letters: bool,
}

fn consumer(bootstrap: &str, isolation: &str) -> Result<BaseConsumer, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "fieldpost-demo-tally") // the client wants one; nothing is ever committed under it
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "100")
        .set("reconnect.backoff.max.ms", "500")
        .set("allow.auto.create.topics", "false")
        // That Kafka is away is part of the play.
        .set_log_level(RDKafkaLogLevel::Critical)
        .create()
}

fn assign(consumer: &BaseConsumer, topics: &[Topic]) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        for partition in 0..topic.partitions {
            list.add_partition_offset(&topic.name, partition, Offset::Beginning)?;
        }
    }
    consumer.assign(&list)
}

/// Counts what arrives, live, on a thread of its own.
#[derive(Debug)]
pub(super) struct LiveCount {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl LiveCount {
    pub(super) fn start(bootstrap: &str, topics: &[Topic]) -> Result<Self, String> {
        let consumer = consumer(bootstrap, "read_committed").map_err(|error| error.to_string())?;
        assign(&consumer, topics).map_err(|error| error.to_string())?;
        let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&count), Arc::clone(&stop));
        let run = move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(Ok(_)) = consumer.poll(Duration::from_millis(100)) {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let thread = std::thread::Builder::new().name("consumer".to_owned()).spawn(run);
        Ok(Self { count, stop, thread: Some(thread.map_err(|error| error.to_string())?) })
    }

    /// Records so far.
    pub(super) fn records(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for LiveCount {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads everything that is committed. First waits until no transaction is open (last stable offset = high watermark), so
/// that nothing can appear behind what was read.
pub(super) fn read_all(bootstrap: &str, topics: &[Topic], patience: Duration) -> Result<Vec<Record>, String> {
    let text = |error: KafkaError| error.to_string();
    let committed = consumer(bootstrap, "read_committed").map_err(text)?;
    let uncommitted = consumer(bootstrap, "read_uncommitted").map_err(text)?;
    let deadline = Instant::now() + patience;
    for topic in topics {
        for partition in 0..topic.partitions {
            wait_settled(&committed, &uncommitted, &topic.name, partition, deadline)?;
        }
    }
    assign(&committed, topics).map_err(text)?;
    collect(&committed, topics, deadline)
}

fn wait_settled(
    committed: &BaseConsumer,
    uncommitted: &BaseConsumer,
    topic: &str,
    partition: i32,
    deadline: Instant,
) -> Result<(), String> {
    loop {
        let stable = committed.fetch_watermarks(topic, partition, REQUEST);
        let high = uncommitted.fetch_watermarks(topic, partition, REQUEST);
        match (stable, high) {
            (Ok((_, stable)), Ok((_, high))) if stable >= high => return Ok(()),
            (Ok((_, stable)), Ok((_, high))) if Instant::now() >= deadline => {
                return Err(format!("{topic} [{partition}]: a transaction stays open (stable {stable}, end {high})"));
            }
            (Err(error), _) | (_, Err(error)) if Instant::now() >= deadline => {
                return Err(format!("{topic} [{partition}]: {error}"));
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn collect(consumer: &BaseConsumer, topics: &[Topic], deadline: Instant) -> Result<Vec<Record>, String> {
    let mut ends = 0;
    let all: i32 = topics.iter().map(|topic| topic.partitions).sum();
    let mut records = Vec::new();
    while ends < all {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => records.push(record(&message, topics)),
            // One per partition: nothing is written any more, so no partition ends twice.
            Some(Err(KafkaError::PartitionEOF(_))) => ends += 1,
            Some(Err(error)) => log::debug!("the tally reads on after: {error}"),
            None => {}
        }
        if Instant::now() >= deadline {
            return Err(format!("only {ends} of {all} partitions could be read to their end in time"));
        }
    }
    Ok(records)
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>, topics: &[Topic]) -> Record {
    let headers = message.headers();
    let fp = headers.and_then(|headers| {
        headers.iter().find(|header| header.key == "fp").and_then(|header| Fp::parse(header.value.unwrap_or_default()))
    });
    Record {
        place: (message.topic().to_owned(), message.partition(), message.offset()),
        dead_letter: topics.iter().any(|topic| topic.dead_letters && topic.name == message.topic()),
        fp,
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().unwrap_or_default().to_vec(),
    }
}
