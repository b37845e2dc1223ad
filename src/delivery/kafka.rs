//! The cluster as a [`Sink`]: one transactional client at a time, the topics it sends to, and reading back.
//!
//! A transaction goes out in this order: hints durable, begin, records, ledger record, commit. Everything that may have to
//! wait for the owner (a missing topic, a full dead-letter store) is settled before begin.

mod client;
mod code;
mod events;
mod hints;
mod live;
mod readback;
mod route;
mod settings;
mod topics;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[cfg(test)]
pub(super) use hints::write_fixture_hints;
pub(super) use settings::check_properties;

use crate::config::delivery::Delivery;
use crate::delivery::dead::DeadStore;
use crate::delivery::encode::{Encoder, FP_HEADER, Fingerprint, gap_ranges};
use crate::delivery::ledger::LedgerRecord;
use crate::delivery::machine::Limits;
use crate::delivery::sink::{Doubt, Receipt, Recovered, SendContext, Sink, SinkError};
use crate::delivery::visible::Visible;
use crate::metrics::DeliveryMetrics;
use crate::progress::Progress;
use crate::promise::Committed;
use crate::record::{Incarnation, Item, Kind, Sequence};

use client::Client;
use code::on_init;
use events::ClientEvents;
use hints::Hints;
use live::Live;
use rdkafka::Message;
use rdkafka::message::Headers;
use readback::{ReadError, Readback, Start};
use route::Suspects;
use topics::Purpose;

/// A client that has not become the live one for so long is replaced.
const RENEW_AFTER: Duration = Duration::from_secs(120);
/// One slice of `init_transactions`.
const INIT_SLICE: Duration = Duration::from_secs(2);
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// The coordinator looks for overdue transactions every 10 s; a hanging one is later than time-out, scan and slack.
const HANGING_SLACK: Duration = Duration::from_secs(20);
/// An open transaction that is given up in order to stop gets this long.
const ABORT_WITHIN: Duration = Duration::from_secs(1);
/// Separate ranges of visible sequences that are kept in memory; more means that something is badly wrong.
const VISIBLE_RANGES_MAX: usize = 1_000_000;

/// See the head of this file.
pub(super) struct Kafka {
    config: Delivery,
    agent_id: String,
    record_bytes_max: usize,
    metrics: DeliveryMetrics,
    progress: Progress,
    stop: Arc<AtomicBool>,
    encoder: Encoder,
    hints: Hints,
    dead: DeadStore,
    suspects: Suspects,
    live: Option<Live>,
}

/// What [`Kafka`] is made of.
pub(super) struct KafkaOptions<'a> {
    pub(super) config: Delivery,
    pub(super) agent_id: String,
    pub(super) record_bytes_max: usize,
    pub(super) metrics: DeliveryMetrics,
    pub(super) progress: Progress,
    pub(super) stop: Arc<AtomicBool>,
    /// Directory for hints and local dead letters.
    pub(super) directory: &'a Path,
    /// `outbox.max_bytes`
    pub(super) max_bytes: u64,
    /// Whether this outbox ever began a transaction.
    pub(super) ever_began: bool,
}

impl Kafka {
    /// Checks the settings by making a client that never connects; fails on what no retry can cure.
    pub(super) fn new(options: KafkaOptions<'_>, limits: &Limits) -> Result<Self, String> {
        let KafkaOptions {
            config,
            agent_id,
            record_bytes_max,
            metrics,
            progress,
            stop,
            directory,
            max_bytes,
            ever_began,
        } = options;
        check_properties(&config.kafka)?;
        let kafka = Self {
            encoder: Encoder::new(&agent_id, config.headers, config.timestamp),
            hints: Hints::open(directory, ever_began),
            dead: DeadStore::new(directory, super::dead::bytes_max(max_bytes, record_bytes_max as u64)),
            suspects: Suspects::default(),
            live: None,
            config,
            agent_id,
            record_bytes_max,
            metrics,
            progress,
            stop,
        };
        drop(kafka.new_client(limits)?);
        Ok(kafka)
    }

    fn new_client(&self, limits: &Limits) -> Result<(Client, Arc<ClientEvents>), String> {
        let settings = settings::producer(&self.config, &self.agent_id, self.record_bytes_max, limits)?;
        let events = Arc::new(ClientEvents::new(self.metrics.clone()));
        Ok((Client::new(&settings, events.clone())?, events))
    }

    fn bootstrap(&self) -> String {
        self.config.kafka.bootstrap_servers.join(",")
    }

    fn live(&mut self) -> Result<&mut Live, SinkError> {
        self.live.as_mut().ok_or_else(|| SinkError::Retry("there is no client".to_owned()))
    }

    fn readback(&self) -> Result<Readback<'_>, SinkError> {
        let hanging_after = self.config.transaction_timeout.0 + HANGING_SLACK;
        Readback::new(&self.config.kafka, &self.agent_id, &self.stop, &self.progress, hanging_after)
            .map_err(SinkError::Configuration)
    }

    /// Our newest record in these partitions of the ledger, with its partition and offset.
    fn newest_ledger_record(&self, starts: &[Start]) -> Result<Option<(u32, i64, Vec<u8>)>, SinkError> {
        let mut newest: Option<(u32, i64, Vec<u8>)> = None;
        let read = self.readback()?.read(starts, |message| {
            if message.key() == Some(self.agent_id.as_bytes()) {
                newest = message
                    .payload()
                    .map(|value| (message.partition().unsigned_abs(), message.offset(), value.to_vec()));
            }
        });
        read.map_err(|error| match error {
            ReadError::Retry(text) => SinkError::Retry(text),
            ReadError::Hanging(text) => SinkError::Blocked(text),
            ReadError::Forbidden(text) => SinkError::Blocked(format!(
                "{text}. Allow it: {}",
                topics::acl_command(&self.config.ledger_topic, &self.bootstrap())
            )),
        })?;
        Ok(newest)
    }

    fn read_ledger(&mut self) -> Result<Option<(LedgerRecord, Committed)>, SinkError> {
        let topic = self.config.ledger_topic.clone();
        let slot = self.topic(&topic, Purpose::Ledger)?;
        let partitions = self.live()?.topics.partitions(slot);
        let ours = crate::delivery::encode::partition_of(self.agent_id.as_bytes(), partitions);
        let from = self.hints.get(&topic, ours);
        let start = |partition, from| Start { topic: topic.clone(), partition, from };
        let mut newest = self.newest_ledger_record(&[start(ours, from)])?;
        if newest.is_none() && from.is_some() {
            newest = self.newest_ledger_record(&[start(ours, None)])?;
        }
        if newest.is_none() && partitions > 1 {
            // The count may have been changed, against the advice: then our key lived in another partition.
            let others: Vec<Start> = (0..partitions).filter(|p| *p != ours).map(|p| start(p, None)).collect();
            newest = self.newest_ledger_record(&others)?;
        }
        let Some((partition, offset, value)) = newest else { return Ok(None) };
        let record = LedgerRecord::from_json(&value).map_err(|error| {
            SinkError::Fatal(format!(
                "the ledger record of this agent, {topic}-{partition} offset {offset}, cannot be read: {error}. Readings \
                 are kept. A newer version of Fieldpost may have written it"
            ))
        })?;
        if partition == ours {
            self.hints.advance(&topic, ours, offset);
        }
        let committed = Committed::by_kafka(record.incarnation, record.upto);
        Ok(Some((record, committed)))
    }
}

impl Sink for Kafka {
    fn connect(&mut self, limits: &Limits) -> Result<(), SinkError> {
        // Passwords and certificates may have been renewed: a client that gets nowhere is made anew with what they are now.
        if self.live.as_ref().is_some_and(|live| live.age() >= RENEW_AFTER) {
            self.live = None;
        }
        if self.live.is_none() {
            let (client, events) = self.new_client(limits).map_err(SinkError::Configuration)?;
            self.live = Some(Live::new(client, events, limits));
        }
        let live = self.live()?;
        let connected = live.client.init_transactions(INIT_SLICE).map_err(|error| on_init(&error));
        connected.map_err(|error| match (error, live.events.last_error()) {
            (SinkError::Retry(text), Some(why)) => SinkError::Retry(format!("{text}; {why}")),
            (error, _) => error,
        })
    }

    fn recover(&mut self) -> Result<Recovered, SinkError> {
        let cluster_id = self.live()?.client.cluster_id(ASK_WITHIN);
        self.hints.for_cluster(cluster_id.as_deref());
        self.suspects = Suspects::default();
        let ledger = self.read_ledger()?;
        Ok(Recovered { cluster_id, ledger })
    }

    fn suspect(&mut self, items: &[Item]) -> Result<(), SinkError> {
        self.collect_suspects(items)
    }

    fn tails(&mut self, doubt: Doubt, ours: &[Incarnation], after: Sequence) -> Result<Visible, SinkError> {
        let starts = self.tail_starts(doubt);
        let mut visible = Visible::default();
        let read = self.readback()?.read(&starts, |message| {
            let Some(headers) = message.headers() else { return };
            let found = headers.iter().find(|header| header.key == FP_HEADER).and_then(|header| header.value);
            let Some(fp) = found.and_then(Fingerprint::from_bytes) else { return };
            if !ours.contains(&fp.incarnation) || visible.range_count() > VISIBLE_RANGES_MAX {
                return;
            }
            let ranges = match fp.kind == Kind::Gap as u8 {
                true => message.payload().and_then(gap_ranges),
                false => None,
            };
            let ranges = ranges.filter(|ranges| ranges.last().is_some_and(|(_, to)| *to == fp.sequence));
            for (from, to) in ranges.unwrap_or_else(|| vec![(fp.sequence, fp.sequence)]) {
                if to > after || to == Sequence(0) {
                    visible.insert(fp.incarnation, from, to);
                }
            }
        });
        match read {
            Ok(_) if visible.range_count() > VISIBLE_RANGES_MAX => Err(SinkError::Fatal(
                "more separate records of this agent lie beyond the ledger's position than can be true".to_owned(),
            )),
            Ok(ends) => {
                // Nothing of ours there: the next reading back need not fetch these (mostly aborted) records again.
                for (topic, partition, end) in ends.iter().filter(|_| visible.is_empty()) {
                    self.hints.advance(topic, *partition, *end);
                }
                Ok(visible)
            }
            Err(ReadError::Retry(text)) => Err(SinkError::Retry(text)),
            Err(ReadError::Hanging(text)) => Err(SinkError::Blocked(text)),
            Err(ReadError::Forbidden(text)) => Err(SinkError::Blocked(format!(
                "{text}. The last transaction's outcome is in doubt and reading back settles it: allow Read and Describe on \
                 the data topics"
            ))),
        }
    }

    fn prepare(&mut self, items: &[Item], context: &SendContext<'_>, open: bool) -> Result<(), SinkError> {
        if !open {
            let topic = self.config.ledger_topic.clone();
            let slot = self.topic(&topic, Purpose::Ledger)?;
            let Self { live, agent_id, .. } = self;
            if let Some(live) = live {
                live.topics.target(slot, agent_id.as_bytes());
            }
        }
        self.route(items, context, open)
    }

    fn begin(&mut self) -> Result<(), SinkError> {
        self.live()?.begin()
    }

    fn send(&mut self, items: &[Item], context: &SendContext<'_>) -> Result<(), SinkError> {
        let Self { live, encoder, config, progress, .. } = self;
        let live = live.as_mut().ok_or_else(|| SinkError::Retry("there is no client".to_owned()))?;
        live.send(items, encoder, &config.dead_letter_topic, context, progress)
    }

    fn keeps_up(&mut self, until: Instant) -> Result<bool, SinkError> {
        self.live()?.keeps_up(until)
    }

    fn finish(&mut self, ledger: &LedgerRecord) -> Result<(), SinkError> {
        let Self { live, agent_id, progress, config, .. } = self;
        let live = live.as_mut().ok_or_else(|| SinkError::Retry("there is no client".to_owned()))?;
        // Only `prepare` asks the cluster: an answer missed here would leave a transaction open without its ledger record.
        let slot = live.topics.slot(&config.ledger_topic);
        let slot =
            slot.ok_or_else(|| SinkError::Fatal("a transaction without `prepare`; please report this".to_owned()))?;
        live.finish(slot, agent_id, ledger, progress)
    }

    fn commit(&mut self, slice: Duration) -> Result<Receipt, SinkError> {
        let Self { live, hints, metrics, config, .. } = self;
        let live = live.as_mut().ok_or_else(|| SinkError::Retry("there is no client".to_owned()))?;
        let receipt = live.commit(slice, metrics)?;
        live.advance_hints(hints, &config.ledger_topic);
        if let Err(error) = hints.write_moved(false) {
            log::warn!("cannot write the partition hints ({error}); reading back after a crash will take longer");
        }
        Ok(receipt)
    }

    fn close(&mut self, abort: bool) {
        if let Some(live) = self.live.take() {
            if abort {
                live.abort(ABORT_WITHIN);
            }
            let since = Instant::now();
            drop(live);
            log::debug!("client closed in {} ms", since.elapsed().as_millis());
        }
        if self.stop.load(Ordering::Acquire) {
            if let Err(error) = self.hints.write_moved(true) {
                log::warn!("cannot write the partition hints ({error}); reading back after a crash will take longer");
            }
        }
    }
}
