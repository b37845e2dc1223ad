//! Answering what has become durable.

use std::sync::Arc;

use crate::clock;
use crate::outbox::{Answer, Arrival, Outcome};
use crate::promise::Durable;
use crate::record::{Reading, ReceiptTime, SourceId};

use super::super::note::Note;
use super::queue::Work;
use super::source::Source;
use super::{Current, Writer};

impl Writer {
    /// Answers what is durable, one answer per source.
    pub(super) fn answer(&mut self) {
        let through = self.tail.durable.through().0;
        let mut settled: Vec<Settled> = Vec::new();
        let mut newest = None;
        let mut noted = false;
        let (mut appended, mut refused) = (0, 0);
        while let Some(flight) = self.flights.pop_through(through) {
            match flight.work {
                Work::Arrival(source, Arrival { readings, receipt, held, .. }) => {
                    let at = Settled::of(&mut settled, source, self.tail.durable);
                    at.answer.done.push((receipt, flight.outcome));
                    match flight.outcome {
                        Outcome::Appended => {
                            if let Some(reading) = readings.first() {
                                newest.get_or_insert((flight.sequence_after, reading.received));
                            }
                        }
                        Outcome::Refused => refused += readings.len() as u64,
                        Outcome::Duplicate => {}
                    }
                    at.answer.spent.push((readings, held));
                }
                Work::Told(source, reading, _) => self.count(&source, std::iter::once(&*reading)),
                Work::Copy(source, reading) => {
                    appended += 1;
                    // It waits since now, whenever it came.
                    newest.get_or_insert((flight.sequence_after, clock::now()));
                    self.count(&source, std::iter::once(&*reading));
                }
                Work::Purge(purge) => {
                    self.memory.purges.add(*purge);
                    noted = true;
                }
                Work::Note(note) => {
                    self.count_lost(&note);
                    let told = self.shared.view().committed;
                    self.memory.notes.add_beyond(told, *note);
                    noted = true;
                }
                Work::Control(..) => {}
            }
        }
        for one in &settled {
            self.count(&one.source.id, one.appended());
            appended += one.appended().count() as u64;
            let payload_bytes = one.appended().map(|reading| reading.value.len() as u64).sum::<u64>();
            self.shared.metrics.payload_bytes.inc_by(payload_bytes);
        }
        self.shared.metrics.appended.inc_by(appended);
        self.shared.metrics.refused.inc_by(refused);
        if noted {
            self.publish_memory();
        }
        self.publish_durable(newest);
        settled.into_iter().for_each(Settled::tell);
    }

    /// A note of damage is durable: says and counts what no note named before.
    fn count_lost(&self, note: &Note) {
        if &*note.reason != "damage" {
            return;
        }
        for (from, to) in self.memory.notes.uncovered(note.from, note.to) {
            log::error!("readings {from} to {to} are lost by damage; a gap record will say so");
            self.shared.metrics.dropped("damage").inc_by(to - from + 1);
        }
    }

    fn count<'a>(&mut self, source: &SourceId, readings: impl Iterator<Item = &'a Reading>) {
        if let Some(Current { summary, .. }) = &mut self.current {
            summary.count_all(source, readings);
        }
    }

    fn publish_durable(&mut self, newest: Option<(u64, ReceiptTime)>) {
        if let Some(current) = &mut self.current {
            current.summary.end_index = self.tail.durable_end_index();
            current.summary.end_sequence = self.tail.durable_end_sequence;
        }
        let (index, sequence) = (self.tail.durable.through().0, self.tail.durable_end_sequence.saturating_sub(1));
        self.shared.publish(|view| {
            assert!(view.durable_index <= index && view.durable_sequence <= sequence, "durable never goes back");
            (view.durable_index, view.durable_sequence) = (index, sequence);
            if let Some((after, received)) = newest {
                view.ages.push(after.saturating_sub(1), received);
            }
        });
    }
}

/// What became durable of one source.
struct Settled {
    source: Arc<Source>,
    answer: Answer,
}

impl Settled {
    /// The one of this source.
    fn of(all: &mut Vec<Self>, source: Arc<Source>, durable: Durable) -> &mut Self {
        let at = all.iter().rposition(|known| Arc::ptr_eq(&known.source, &source)).unwrap_or_else(|| {
            all.push(Self { source, answer: Answer { done: Vec::new(), durable, spent: Vec::new() } });
            all.len() - 1
        });
        &mut all[at]
    }

    /// Readings that were stored just now.
    fn appended(&self) -> impl Iterator<Item = &Reading> {
        let arrivals = self.answer.done.iter().zip(&self.answer.spent);
        let appended = arrivals.filter(|((_, outcome), _)| *outcome == Outcome::Appended);
        appended.flat_map(|(_, (readings, _))| readings)
    }

    fn tell(self) {
        if !self.source.answer(self.answer) {
            log::debug!(
                "source {} is gone: what it sent is stored, it will be acknowledged as a redelivery",
                self.source.id
            );
        }
    }
}
