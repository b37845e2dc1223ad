//! Where each item goes: topic and partition, made sure of before the transaction begins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::code::Code;
use super::hints::NewHint;
use super::readback::Start;
use super::topics::{self, Purpose};
use super::{ASK_WITHIN, Kafka, settings};
use crate::clock;
use crate::delivery::encode::{DeadReason, key_of, legal_topic, partition_of};
use crate::delivery::poison::refuse_beforehand;
use crate::delivery::sink::{Condemned, Doubt, SendContext, SinkError, Treatment};
use crate::record::{Item, Sequence, Stored};

/// Partition counts are asked again after this, as the Java client does.
const TOPIC_AGE_MAX: Duration = Duration::from_secs(300);
/// What the estimate of a record's size may miss.
const SIZE_SLACK_BYTES: usize = 1024;

/// The way of one item.
#[derive(Debug)]
pub(super) enum Route {
    /// An ordinary record.
    Plain { target: usize },
    /// A gap record; without a target it is kept on the gateway.
    Hole { target: Option<usize> },
    /// A dead letter; without a target it is only kept on the gateway, with a file its value is.
    Dead { target: Option<usize>, reason: DeadReason, file: Option<String> },
}

/// Partitions that records in doubt may be in.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    partitions: BTreeMap<String, BTreeSet<u32>>,
    /// Topics that are read whole (from their hints): their partition count changed.
    whole: BTreeSet<String>,
    counts: BTreeMap<String, Option<u32>>,
}

impl Kafka {
    fn dead_letter_topic(&self) -> Option<String> {
        let topic = &self.config.dead_letter_topic;
        (topic != "off").then(|| topic.clone())
    }

    /// The topic's number; asks the cluster if it is new or was asked long ago, makes it if it may.
    pub(super) fn topic(&mut self, name: &str, purpose: Purpose) -> Result<usize, SinkError> {
        let live = self.live()?;
        let known = live.topics.slot(name);
        if let Some(slot) = known.filter(|slot| live.topics.age(*slot) < TOPIC_AGE_MAX) {
            return Ok(slot);
        }
        match (self.ask_partitions(name, known), known) {
            (Ok(slot), _) => Ok(slot),
            (Err(Code::UNKNOWN_TOPIC | Code::LOCAL_UNKNOWN_TOPIC), _) => {
                self.make_topic(name, purpose)?;
                self.ask_partitions(name, known)
                    .map_err(|code| SinkError::Retry(format!("topic {name} was made and is not there yet: {code}")))
            }
            (Err(Code::TOPIC_FORBIDDEN), _) => Err(SinkError::Blocked(format!(
                "topic {name} may not be used by this gateway. Readings are kept. Allow it: {}",
                topics::acl_command(name, &self.bootstrap())
            ))),
            (Err(Code::INVALID_TOPIC), _) => Err(SinkError::Blocked(format!("the cluster refuses the name {name:?}"))),
            // Known and only not answered now: what was known is good enough.
            (Err(_), Some(slot)) => {
                self.live()?.topics.checked(slot, None);
                Ok(slot)
            }
            (Err(code), None) => Err(SinkError::Retry(format!("cannot ask for the partitions of {name}: {code}"))),
        }
    }

    fn ask_partitions(&mut self, name: &str, known: Option<usize>) -> Result<usize, Code> {
        self.progress.beat();
        let Some(live) = self.live.as_mut() else { return Err(Code::TRANSPORT) };
        if let Some(slot) = known {
            let partitions = live.client.partitions(live.topics.handle(slot), ASK_WITHIN)?;
            live.topics.checked(slot, Some(partitions));
            return Ok(slot);
        }
        let handle = live.client.topic(name).map_err(|_| Code::INVALID_TOPIC)?;
        match live.client.partitions(&handle, ASK_WITHIN) {
            Ok(partitions) => Ok(live.topics.add(name, handle, partitions)),
            Err(code) => {
                live.client.release(handle);
                Err(code)
            }
        }
    }

    fn make_topic(&mut self, name: &str, purpose: Purpose) -> Result<(), SinkError> {
        let bootstrap = self.bootstrap();
        let blocked = |why: String| {
            SinkError::Blocked(format!(
                "topic {name} does not exist{why}. Readings are kept. Make it: {}",
                topics::command(name, purpose, &bootstrap)
            ))
        };
        if purpose == Purpose::Data && !self.config.create_topics {
            return Err(blocked(" (delivery.create_topics is false)".to_owned()));
        }
        let connection = settings::connection(&self.config.kafka, &self.agent_id).map_err(SinkError::Configuration)?;
        topics::create(&connection, name, purpose)
            .map_err(|error| blocked(format!(" and could not be made ({error})")))?;
        log::info!("made the topic {name}");
        Ok(())
    }

    /// Makes the routes of these items. With `open`, nothing is asked or written: what is missing is `Blocked`.
    pub(super) fn route(&mut self, items: &[Item], context: &SendContext<'_>, open: bool) -> Result<(), SinkError> {
        let mut routes = std::mem::take(&mut self.live()?.routes);
        routes.clear();
        let mut last: Option<(&str, usize)> = None;
        let mut buffer = String::new();
        for item in items {
            let route = match item {
                Item::Hole(hole) => {
                    let condemned = find(context, item).is_some_and(|c| c.treatment == Treatment::LocalOnly);
                    let target = match self.dead_letter_topic().filter(|_| !condemned) {
                        Some(topic) => {
                            let slot = self.slot(&topic, Purpose::DeadLetters, open)?;
                            let key = self.agent_id.clone();
                            Some(self.live()?.topics.target(slot, key.as_bytes()))
                        }
                        None => {
                            self.write_allowed(open)?;
                            let kept = self.dead.keep_gap(&self.agent_id, hole);
                            kept.map_err(|error| SinkError::Blocked(format!("cannot keep a gap record: {error}")))?;
                            None
                        }
                    };
                    Route::Hole { target }
                }
                Item::Reading(stored) => match self.refusal(stored, find(context, item)) {
                    Some((reason, treatment)) => self.route_dead(stored, reason, treatment, open)?,
                    None => {
                        let topic = &*stored.reading.topic;
                        let slot = match last.filter(|(name, _)| *name == topic) {
                            Some((_, slot)) => slot,
                            None => {
                                let Some(legal) = legal_topic(topic, &mut buffer) else {
                                    return Err(SinkError::Fatal("an illegal topic passed the check".to_owned()));
                                };
                                let slot = self.slot(legal, Purpose::Data, open)?;
                                last = Some((topic, slot));
                                slot
                            }
                        };
                        Route::Plain { target: self.live()?.topics.target(slot, key_of(stored)) }
                    }
                },
            };
            routes.push(route);
        }
        self.live()?.routes = routes;
        self.ensure_hints(open)
    }

    /// The topic's number, asked of the cluster only outside a transaction.
    fn slot(&mut self, name: &str, purpose: Purpose, open: bool) -> Result<usize, SinkError> {
        if open {
            let known = self.live()?.topics.slot(name);
            return known
                .ok_or_else(|| SinkError::Blocked(format!("topic {name} is new: it waits for the next transaction")));
        }
        self.topic(name, purpose)
    }

    fn write_allowed(&self, open: bool) -> Result<(), SinkError> {
        if open { Err(SinkError::Blocked("a local write waits for the next transaction".to_owned())) } else { Ok(()) }
    }

    /// Why a reading is a dead letter, if it is one.
    fn refusal(&mut self, stored: &Stored, condemned: Option<&Condemned>) -> Option<(DeadReason, Treatment)> {
        if let Some(condemned) = condemned {
            return Some((condemned.reason.clone(), condemned.treatment));
        }
        let mut size = stored.reading.record_bytes() + SIZE_SLACK_BYTES;
        let mut buffer = String::new();
        let is_legal = legal_topic(&stored.reading.topic, &mut buffer).is_some();
        if size > self.record_bytes_max {
            size = self.encoder.reading(stored).map_or(size, |record| record.size());
        }
        let reason = refuse_beforehand(stored.reading.flags, is_legal, size, self.record_bytes_max)?;
        Some((reason, Treatment::DeadLetter))
    }

    fn route_dead(
        &mut self,
        stored: &Stored,
        reason: DeadReason,
        treatment: Treatment,
        open: bool,
    ) -> Result<Route, SinkError> {
        let topic = self.dead_letter_topic().filter(|_| treatment < Treatment::LocalOnly);
        let size_max = settings::message_bytes_max(self.record_bytes_max);
        let now = clock::now().wall_ns;
        let too_large = self.encoder.dead_reading(stored, "", &reason, now, None).size() > size_max;
        let mut file = None;
        if topic.is_none() || too_large || treatment > Treatment::DeadLetter {
            self.write_allowed(open)?;
            let kept = self.dead.keep(&self.agent_id, stored, &reason);
            file = Some(kept.map_err(|error| SinkError::Blocked(format!("cannot keep a dead letter: {error}")))?);
        }
        let target = match topic {
            Some(topic) => {
                let slot = self.slot(&topic, Purpose::DeadLetters, open)?;
                Some(self.live()?.topics.target(slot, key_of(stored)))
            }
            None => None,
        };
        Ok(Route::Dead { target, reason, file })
    }

    /// Every partition of the routes has a durable hint before anything is sent to it.
    fn ensure_hints(&mut self, open: bool) -> Result<(), SinkError> {
        let Self { live, hints, progress, .. } = self;
        let Some(live) = live.as_mut() else { return Ok(()) };
        let targets: BTreeSet<usize> = live
            .routes
            .iter()
            .filter_map(|route| match route {
                Route::Plain { target } => Some(*target),
                Route::Hole { target } | Route::Dead { target, .. } => *target,
            })
            .filter(|target| !live.topics.is_hinted(*target))
            .collect();
        if targets.is_empty() {
            return Ok(());
        }
        if open {
            return Err(SinkError::Blocked("a new partition waits for the next transaction".to_owned()));
        }
        let mut new = Vec::new();
        for target in &targets {
            let (topic, count, partition) = live.topics.place(*target);
            if hints.get(topic, partition).is_some() && hints.count(topic) == Some(count) {
                continue;
            }
            progress.beat();
            let place = i32::try_from(partition).unwrap_or(i32::MAX);
            let (_, offset) = live
                .client
                .watermarks(topic, place, ASK_WITHIN)
                .map_err(|code| SinkError::Retry(format!("cannot ask for the end of {topic}-{partition}: {code}")))?;
            // A partition that was sent to under another count keeps its older hint.
            let offset = hints.get(topic, partition).map_or(offset, |old| old.min(offset));
            new.push(NewHint { topic: topic.to_owned(), count, partition, offset });
        }
        if !new.is_empty() {
            hints
                .add(&new)
                .map_err(|error| SinkError::Blocked(format!("cannot write the partition hints: {error}")))?;
        }
        targets.iter().for_each(|target| live.topics.set_hinted(*target));
        Ok(())
    }

    /// Notes the partitions that these items may be in.
    pub(super) fn collect_suspects(&mut self, items: &[Item]) -> Result<(), SinkError> {
        self.suspect_dead_letters()?;
        let mut buffer = String::new();
        for item in items {
            let Item::Reading(stored) = item else { continue };
            let Some(topic) = legal_topic(&stored.reading.topic, &mut buffer) else { continue };
            if !self.suspects.counts.contains_key(topic) {
                let count = match self.ask_partitions_of_suspect(topic)? {
                    Some(slot) => Some(self.live()?.topics.partitions(slot)),
                    None => None,
                };
                if count.is_some() && self.hints.count(topic).is_some_and(|old| Some(old) != count) {
                    self.suspects.whole.insert(topic.to_owned());
                }
                self.suspects.counts.insert(topic.to_owned(), count);
            }
            if let Some(Some(count)) = self.suspects.counts.get(topic) {
                let partition = partition_of(key_of(stored), *count);
                self.suspects.partitions.entry(topic.to_owned()).or_default().insert(partition);
            }
        }
        Ok(())
    }

    /// Without a complete list of hints every partition of the dead-letter topic may hold a record in doubt.
    fn suspect_dead_letters(&mut self) -> Result<(), SinkError> {
        let Some(topic) = self.dead_letter_topic().filter(|topic| !self.suspects.counts.contains_key(topic)) else {
            return Ok(());
        };
        let count = match self.hints.complete() {
            true => None,
            false => match self.ask_partitions_of_suspect(&topic)? {
                Some(slot) => Some(self.live()?.topics.partitions(slot)),
                None => None,
            },
        };
        self.suspects.partitions.entry(topic.clone()).or_default().extend(0..count.unwrap_or(0));
        self.suspects.counts.insert(topic, count);
        Ok(())
    }

    /// A topic that is not there holds nothing of ours.
    fn ask_partitions_of_suspect(&mut self, topic: &str) -> Result<Option<usize>, SinkError> {
        let known = self.live()?.topics.slot(topic);
        match self.ask_partitions(topic, known) {
            Ok(slot) => Ok(Some(slot)),
            Err(Code::UNKNOWN_TOPIC | Code::LOCAL_UNKNOWN_TOPIC | Code::INVALID_TOPIC) => Ok(None),
            Err(Code::TOPIC_FORBIDDEN) => Err(SinkError::Blocked(format!(
                "topic {topic} may not be read by this gateway, and the last transaction's outcome is in doubt. Allow it: {}",
                topics::acl_command(topic, &self.bootstrap())
            ))),
            Err(code) => Err(SinkError::Retry(format!("cannot ask for the partitions of {topic}: {code}"))),
        }
    }

    /// Where to read for records in doubt.
    pub(super) fn tail_starts(&self, doubt: Doubt) -> Vec<Start> {
        let mut starts: BTreeMap<(String, u32), Option<i64>> = BTreeMap::new();
        for (topic, partition, offset) in self.hints.all() {
            let suspected = topic == self.config.dead_letter_topic || self.suspects.whole.contains(topic);
            if topic != self.config.ledger_topic && (suspected || doubt == Doubt::SinceHints) {
                starts.insert((topic.to_owned(), partition), Some(offset));
            }
        }
        for (topic, partitions) in &self.suspects.partitions {
            for partition in partitions {
                let hint = self.hints.get(topic, *partition);
                // With a complete list of hints, a partition without one was never sent to.
                if hint.is_some() || !self.hints.complete() {
                    starts.insert((topic.clone(), *partition), hint);
                }
            }
        }
        starts.into_iter().map(|((topic, partition), from)| Start { topic, partition, from }).collect()
    }
}

fn find<'a>(context: &SendContext<'a>, item: &Item) -> Option<&'a Condemned> {
    let (incarnation, sequence): (_, Sequence) = (item.incarnation(), item.last());
    context.condemned.iter().find(|c| c.sequence == sequence && c.incarnation == incarnation)
}
