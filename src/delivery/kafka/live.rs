//! The live client: its topics, and the transaction under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Client, Message, Topic};
use super::code::{ApiError, Code, on_transaction};
use super::events::ClientEvents;
use super::hints::Hints;
use super::route::Route;
use crate::clock;
use crate::delivery::encode::{Encoder, Record, partition_of};
use crate::delivery::ledger::LedgerRecord;
use crate::delivery::machine::Limits;
use crate::delivery::sink::{Receipt, SendContext, SinkError};
use crate::metrics::DeliveryMetrics;
use crate::progress::Progress;
use crate::promise::Committed;
use crate::record::{Incarnation, Item, Sequence};

/// Turn of the loop that waits for room in the producer's queue.
const ROOM_WAIT: Duration = Duration::from_millis(100);
/// A message that is not reported this long after its time-out will not be: the client is of no use.
const REPORT_SLACK: Duration = Duration::from_secs(30);

/// A topic that this client sends to.
struct Slot {
    name: String,
    handle: Topic,
    partitions: u32,
    checked: Instant,
    targets: HashMap<u32, usize>,
}

/// A partition that this client sends to; its number is the opaque value of messages.
#[derive(Debug, Clone, Copy)]
struct Target {
    slot: usize,
    partition: u32,
    /// Its hint is durable.
    hinted: bool,
}

/// Topics and partitions by number; numbers live as long as the client.
#[derive(Default)]
pub(super) struct Topics {
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
    targets: Vec<Target>,
}

impl Topics {
    pub(super) fn slot(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn add(&mut self, name: &str, handle: Topic, partitions: u32) -> usize {
        let slot = self.slots.len();
        let (checked, targets) = (Instant::now(), HashMap::new());
        self.slots.push(Slot { name: name.to_owned(), handle, partitions, checked, targets });
        self.by_name.insert(name.to_owned(), slot);
        slot
    }

    pub(super) fn handle(&self, slot: usize) -> &Topic {
        &self.slots[slot].handle
    }

    pub(super) fn partitions(&self, slot: usize) -> u32 {
        self.slots[slot].partitions
    }

    pub(super) fn age(&self, slot: usize) -> Duration {
        self.slots[slot].checked.elapsed()
    }

    pub(super) fn checked(&mut self, slot: usize, partitions: Option<u32>) {
        let slot = &mut self.slots[slot];
        slot.checked = Instant::now();
        if let Some(partitions) = partitions {
            slot.partitions = partitions;
        }
    }

    /// The target of a key in a topic.
    pub(super) fn target(&mut self, slot: usize, key: &[u8]) -> usize {
        let partition = partition_of(key, self.slots[slot].partitions);
        let targets = &mut self.targets;
        *self.slots[slot].targets.entry(partition).or_insert_with(|| {
            targets.push(Target { slot, partition, hinted: false });
            targets.len() - 1
        })
    }

    /// Topic, its partition count and the partition of a target.
    pub(super) fn place(&self, target: usize) -> (&str, u32, u32) {
        let Target { slot, partition, .. } = self.targets[target];
        (&self.slots[slot].name, self.slots[slot].partitions, partition)
    }

    pub(super) fn is_hinted(&self, target: usize) -> bool {
        self.targets[target].hinted
    }

    pub(super) fn set_hinted(&mut self, target: usize) {
        self.targets[target].hinted = true;
    }
}

struct Transaction {
    began: Instant,
    end_txn_before: u64,
    commit_took: Duration,
    position: Option<(Incarnation, Sequence)>,
    ledger_target: Option<usize>,
    dead: Vec<String>,
    sent: u64,
    /// Of these, all but the batch handed over last.
    sent_before: u64,
}

/// See the head of this file.
pub(super) struct Live {
    pub(super) client: Client,
    pub(super) topics: Topics,
    pub(super) routes: Vec<Route>,
    pub(super) events: Arc<ClientEvents>,
    made: Instant,
    transaction: Option<Transaction>,
    message_timeout: Duration,
}

impl Live {
    pub(super) fn new(client: Client, events: Arc<ClientEvents>, limits: &Limits) -> Self {
        Self {
            client,
            events,
            made: Instant::now(),
            topics: Topics::default(),
            routes: Vec::new(),
            transaction: None,
            message_timeout: limits.message_timeout,
        }
    }

    /// Time since it was made.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }

    pub(super) fn begin(&mut self) -> Result<(), SinkError> {
        let end_txn_before = self.client.end_txn_sent();
        self.client.begin(self.topics.targets.len()).map_err(|error| on_transaction("begin", &error, None))?;
        self.transaction = Some(Transaction {
            began: Instant::now(),
            end_txn_before,
            commit_took: Duration::ZERO,
            position: None,
            ledger_target: None,
            dead: Vec::new(),
            sent: 0,
            sent_before: 0,
        });
        Ok(())
    }

    /// Sends items along the routes that were made for them.
    pub(super) fn send(
        &mut self,
        items: &[Item],
        encoder: &mut Encoder,
        dead_letter_topic: &str,
        context: &SendContext<'_>,
        progress: &Progress,
    ) -> Result<(), SinkError> {
        let routes = std::mem::take(&mut self.routes);
        if routes.len() != items.len() {
            return Err(SinkError::Fatal("items were sent that were not prepared; please report this".to_owned()));
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.sent_before = transaction.sent;
        }
        for (item, route) in items.iter().zip(&routes) {
            match (item, route) {
                (Item::Reading(stored), Route::Plain { target }) => {
                    let record =
                        encoder.reading(stored).ok_or_else(|| SinkError::Fatal("unprepared topic".to_owned()))?;
                    self.produce(*target, &record, progress)?;
                }
                (Item::Reading(stored), Route::Dead { target, reason, file }) => {
                    if let Some(target) = target {
                        let now = clock::now().wall_ns;
                        let record = encoder.dead_reading(stored, dead_letter_topic, reason, now, file.as_deref());
                        self.produce(*target, &record, progress)?;
                    }
                    self.note_dead(&reason.code);
                }
                (Item::Hole(hole), Route::Hole { target }) => {
                    if let Some(target) = target {
                        let record = encoder.hole(hole, dead_letter_topic, context.previous_upto);
                        self.produce(*target, &record, progress)?;
                    }
                }
                (Item::Hole(_), _) | (Item::Reading(_), Route::Hole { .. }) => {
                    return Err(SinkError::Fatal("an item was sent on another's route; please report this".to_owned()));
                }
            }
        }
        self.check_reports("produce")
    }

    /// See [`crate::delivery::sink::Sink::keeps_up`].
    pub(super) fn keeps_up(&self, until: Instant) -> Result<bool, SinkError> {
        let sent_before = self.transaction.as_ref().map_or(0, |transaction| transaction.sent_before);
        let done = self.client.wait_reports(until, |reports| reports.acknowledged + reports.failed >= sent_before);
        self.check_reports("produce")?;
        Ok(done)
    }

    fn note_dead(&mut self, code: &str) {
        if let Some(transaction) = &mut self.transaction {
            transaction.dead.push(code.to_owned());
        }
    }

    fn produce(&mut self, target: usize, record: &Record<'_>, progress: &Progress) -> Result<(), SinkError> {
        let Target { slot, partition, .. } = self.topics.targets[target];
        debug_assert_eq!(self.topics.slots[slot].name, record.topic);
        let message = Message {
            topic: &self.topics.slots[slot].handle,
            partition: i32::try_from(partition).unwrap_or(i32::MAX),
            key: record.key,
            value: record.value,
            timestamp_ms: record.timestamp_ms,
            headers: Some(record.headers),
            target,
        };
        self.produce_message(&message, progress)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.sent += 1;
        }
        Ok(())
    }

    /// Hands over one message; waits while the queue is full. Every message in it has a time-out, so this ends.
    fn produce_message(&self, message: &Message<'_>, progress: &Progress) -> Result<(), SinkError> {
        let since = Instant::now();
        loop {
            match self.client.produce(message) {
                Ok(()) => return Ok(()),
                Err(Code::QUEUE_FULL) => {
                    progress.beat();
                    self.check_reports("produce")?;
                    if since.elapsed() > self.message_timeout + REPORT_SLACK {
                        return Err(self.failure("produce", Code::TIMED_OUT));
                    }
                    self.client.wait_report(ROOM_WAIT);
                }
                Err(code) => return Err(self.failure("produce", code)),
            }
        }
    }

    /// The ledger record, last.
    pub(super) fn finish(
        &mut self,
        slot: usize,
        agent_id: &str,
        ledger: &LedgerRecord,
        progress: &Progress,
    ) -> Result<(), SinkError> {
        let target = self.topics.target(slot, agent_id.as_bytes());
        let (_, _, partition) = self.topics.place(target);
        let value = ledger.to_json();
        let message = Message {
            topic: &self.topics.slots[slot].handle,
            partition: i32::try_from(partition).unwrap_or(i32::MAX),
            key: agent_id.as_bytes(),
            value: Some(&value),
            timestamp_ms: None,
            headers: None,
            target,
        };
        self.produce_message(&message, progress)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.sent += 1;
            transaction.position = Some((ledger.incarnation, ledger.upto));
            transaction.ledger_target = Some(target);
        }
        Ok(())
    }

    /// One slice of the commit.
    pub(super) fn commit(&mut self, slice: Duration, metrics: &DeliveryMetrics) -> Result<Receipt, SinkError> {
        let since = Instant::now();
        let Some(transaction) = &mut self.transaction else {
            return Err(SinkError::Fatal("a commit without a transaction; please report this".to_owned()));
        };
        // Before the call: what is committed without its ledger record would be sent again.
        let Some((incarnation, upto)) = transaction.position else {
            return Err(SinkError::Fatal("a commit without its ledger record; please report this".to_owned()));
        };
        let result = self.client.commit(slice);
        transaction.commit_took += since.elapsed();
        if let Err(error) = result {
            return Err(self.failure_of("commit", &error));
        }
        let (first_at, acknowledged) = self.client.with_reports(|reports| (reports.first_at, reports.acknowledged));
        let until_first = first_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(transaction.began));
        // A commit that returned success has flushed: every message was reported. Less would be a hole in the accounts.
        if acknowledged > transaction.sent {
            log::warn!("{acknowledged} delivery reports for {} messages; please report this", transaction.sent);
        }
        for reason in transaction.dead.drain(..) {
            metrics.dead_letter(&reason);
        }
        metrics.transaction_seconds.observe(transaction.began.elapsed().as_secs_f64());
        Ok(Receipt {
            committed: Committed::by_kafka(incarnation, upto),
            overhead: until_first.min(since.duration_since(transaction.began)) + transaction.commit_took,
            end_txn_sent: self.client.end_txn_sent() - transaction.end_txn_before,
        })
    }

    /// After a commit: reading back begins behind what it wrote.
    pub(super) fn advance_hints(&mut self, hints: &mut Hints, ledger_topic: &str) {
        self.transaction = None;
        let offsets = self.client.with_reports(|reports| reports.offsets.clone());
        for (target, offset) in offsets.into_iter().enumerate().filter(|(_, offset)| *offset >= 0) {
            let (topic, _, partition) = self.topics.place(target);
            // The ledger's newest record itself must be read again.
            let next = if topic == ledger_topic { offset } else { offset + 1 };
            hints.advance(topic, partition, next);
        }
    }

    /// Tells the cluster that the open transaction is void, as far as it listens in time.
    pub(super) fn abort(&self, within: Duration) {
        if self.transaction.is_some() {
            if let Err(error) = self.client.abort(within) {
                log::debug!("abort before closing: {error}");
            }
        }
    }

    fn check_reports(&self, call: &str) -> Result<(), SinkError> {
        match self.client.with_reports(|reports| reports.first_error) {
            Some((code, _)) => Err(self.failure(call, code)),
            None => Ok(()),
        }
    }

    fn failure(&self, call: &str, code: Code) -> SinkError {
        let error = match self.client.fatal_error() {
            Some((code, text)) => ApiError { code, fatal: true, retriable: false, abortable: false, text },
            None => ApiError { code, fatal: false, retriable: false, abortable: true, text: "refused".to_owned() },
        };
        self.failure_of(call, &error)
    }

    fn failure_of(&self, call: &str, error: &ApiError) -> SinkError {
        let cause = self.client.with_reports(|reports| reports.first_error);
        let ledger_target = self.transaction.as_ref().and_then(|transaction| transaction.ledger_target);
        if let Some((code, target)) = cause.filter(|(code, target)| Some(*target) == ledger_target && code.is_refusal())
        {
            // No reading is to blame: looking for one would condemn innocents.
            return SinkError::Configuration(format!(
                "{call}: the ledger topic {} refuses this agent's record with {code}. Readings are kept. Look at the \
                 topic's settings (cleanup.policy=compact, max.message.bytes, message.timestamp.*) and rights",
                self.topic_of(target)
            ));
        }
        on_transaction(call, error, cause.map(|(code, target)| (code, self.topic_of(target))))
    }

    fn topic_of(&self, target: usize) -> &str {
        self.topics.targets.get(target).map_or("?", |target| &self.topics.slots[target.slot].name)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Handles of topics go before their client.
        for slot in self.topics.slots.drain(..) {
            self.client.release(slot.handle);
        }
    }
}
