//! Reading back what is committed: the ledger, and the ends of data partitions. Safe API only.
//!
//! "`read_committed` to the end" is not enough: while another agent's transaction is open before our committed record,
//! the last stable offset lies before it and the end comes too early. So: take the high watermark with a
//! `read_uncommitted` handle, wait until the `read_committed` watermark (the last stable offset) has reached it, then
//! read. Commit markers take offsets, therefore watermarks are compared, never offsets of records.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};

use super::settings::{self, Settings};
use crate::config::delivery::Kafka as KafkaConfig;
use crate::progress::Progress;

/// An answer to one question may take this long.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// No record and no end for this long while reading: begin again.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// Where to begin in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) topic: String,
    pub(super) partition: u32,
    /// `None`: at the log's start.
    pub(super) from: Option<i64>,
}

/// Why reading back did not end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// Try again.
    Retry(String),
    /// An open transaction has stood before the end for longer than any agent's may.
    Hanging(String),
    /// Not allowed to read this.
    Forbidden(String),
}

/// Logs to our own target; errors of read-back clients are told by the calls that fail.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        log::debug!(target: "fieldpost::kafka", "read-back: {facility}: {message}");
    }
    fn error(&self, error: KafkaError, reason: &str) {
        log::debug!(target: "fieldpost::kafka", "read-back: {error}: {reason}");
    }
}

impl ConsumerContext for Quiet {}

/// Two handles for the length of one recovery.
pub(super) struct Readback<'a> {
    committed: BaseConsumer<Quiet>,
    uncommitted: BaseConsumer<Quiet>,
    stop: &'a AtomicBool,
    progress: &'a Progress,
    hanging_after: Duration,
}

fn consumer(settings: &Settings) -> Result<BaseConsumer<Quiet>, String> {
    let mut config = ClientConfig::new();
    for (name, value) in settings {
        config.set(name, value);
    }
    config.create_with_context(Quiet).map_err(|error| format!("cannot make a consumer: {error}"))
}

impl<'a> Readback<'a> {
    pub(super) fn new(
        kafka: &KafkaConfig,
        agent_id: &str,
        stop: &'a AtomicBool,
        progress: &'a Progress,
        hanging_after: Duration,
    ) -> Result<Self, String> {
        Ok(Self {
            committed: consumer(&settings::consumer(kafka, agent_id, true)?)?,
            uncommitted: consumer(&settings::consumer(kafka, agent_id, false)?)?,
            stop,
            progress,
            hanging_after,
        })
    }

    /// Hands every committed record from the starts to the ends, as they are when this begins, to `visit`. Returns the
    /// ends: topic, partition, high watermark.
    pub(super) fn read(
        &self,
        starts: &[Start],
        mut visit: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<Vec<(String, u32, i64)>, ReadError> {
        let mut ends = Vec::new();
        let mut by_topic: BTreeMap<&str, Vec<&Start>> = BTreeMap::new();
        for start in starts {
            by_topic.entry(&start.topic).or_default().push(start);
        }
        for (topic, starts) in by_topic {
            self.read_topic(topic, &starts, &mut visit, &mut ends)?;
        }
        Ok(ends)
    }

    fn read_topic(
        &self,
        topic: &str,
        starts: &[&Start],
        visit: &mut impl FnMut(&BorrowedMessage<'_>),
        ends: &mut Vec<(String, u32, i64)>,
    ) -> Result<(), ReadError> {
        // Metadata first: else the assignment waits half a second for it.
        self.committed.fetch_metadata(Some(topic), ASK_WITHIN).map_err(|error| told(&error, topic))?;
        let mut assignment = TopicPartitionList::new();
        let mut waiting = Vec::new();
        for start in starts {
            let (low, high) = self.watermarks(&self.uncommitted, topic, start.partition)?;
            let from = start.from.filter(|from| (low..=high).contains(from)).unwrap_or(low);
            ends.push((topic.to_owned(), start.partition, high));
            if from < high {
                self.wait_stable(topic, start.partition, high)?;
                assignment
                    .add_partition_offset(topic, start.partition as i32, Offset::Offset(from))
                    .map_err(|error| told(&error, topic))?;
                waiting.push(start.partition as i32);
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        self.committed.assign(&assignment).map_err(|error| told(&error, topic))?;
        let read = self.read_to_ends(topic, waiting, visit);
        let unassigned = self.committed.unassign().map_err(|error| told(&error, topic));
        read.and(unassigned)
    }

    fn read_to_ends(
        &self,
        topic: &str,
        mut waiting: Vec<i32>,
        visit: &mut impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<(), ReadError> {
        let mut heard = Instant::now();
        while !waiting.is_empty() {
            self.check_stop()?;
            match self.committed.poll(POLL) {
                Some(Ok(message)) => visit(&message),
                Some(Err(KafkaError::PartitionEOF(partition))) => waiting.retain(|p| *p != partition),
                Some(Err(error)) if is_forbidden(&error) || is_final(&error) => return Err(told(&error, topic)),
                // Transport errors heal by themselves.
                Some(Err(_)) => continue,
                None if heard.elapsed() < SILENCE_MAX => continue,
                None => return Err(ReadError::Retry(format!("reading back {topic}: silence"))),
            }
            heard = Instant::now();
        }
        Ok(())
    }

    fn wait_stable(&self, topic: &str, partition: u32, high: i64) -> Result<(), ReadError> {
        let since = Instant::now();
        let mut pause = Duration::from_millis(10);
        loop {
            self.check_stop()?;
            let (_, stable) = self.watermarks(&self.committed, topic, partition)?;
            if stable >= high {
                return Ok(());
            }
            if since.elapsed() >= self.hanging_after {
                return Err(ReadError::Hanging(format!(
                    "hanging transaction: {topic}-{partition} stands at {stable}, its end is {high}, for {} s. Some \
                     producer's transaction is open longer than it may be; delivery waits. Look for it with \
                     `kafka-transactions.sh --bootstrap-server ... find-hanging --topic {topic}`",
                    since.elapsed().as_secs()
                )));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    fn watermarks(&self, with: &BaseConsumer<Quiet>, topic: &str, partition: u32) -> Result<(i64, i64), ReadError> {
        with.fetch_watermarks(topic, partition as i32, ASK_WITHIN).map_err(|error| told(&error, topic))
    }

    fn check_stop(&self) -> Result<(), ReadError> {
        self.progress.beat();
        if self.stop.load(Ordering::Acquire) {
            return Err(ReadError::Retry("asked to stop".to_owned()));
        }
        Ok(())
    }
}

fn is_forbidden(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed)
    )
}

/// Errors of a partition that reading on will not cure.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopic
        )
    )
}

fn told(error: &KafkaError, topic: &str) -> ReadError {
    let text = format!("reading back {topic}: {error}");
    if is_forbidden(error) { ReadError::Forbidden(text) } else { ReadError::Retry(text) }
}
