//! Writing, syncing, answering; and taking back what did not become durable.

use std::sync::Arc;
use std::time::Instant;

use crate::outbox::{Answer, Arrival, Control, Outcome};
use crate::promise::Durable;
use crate::record::{Index, ReceiptTime};

use super::super::entry::{self, ALONE, FIRST};
use super::super::generation::unsynced_bytes_max;
use super::super::reading::PacketMark;
use super::super::recovery::LIMIT_STEP;
use super::flights::{Flight, UNSETTLED};
use super::queue::Work;
use super::source::Source;
use super::stop::Stop;
use super::{Current, SYNC_STALL, Writer};

/// A group ends at this many works (and at `Sizes::group_raw_bytes`), so that trims and answers are not kept waiting.
const GROUP_WORKS_MAX: usize = 20_000;
/// More entries than one group can have.
const LIMIT_MARGIN: u64 = 1 << 20;
/// Packet identifiers in one entry.
const RELEASED_MAX: usize = 2000;

impl Writer {
    /// Writes what waits. Whatever happens, nothing is answered that is not durable.
    pub(super) fn commit(&mut self) {
        self.shared.progress.phase("writing", SYNC_STALL);
        self.timers.retry_at = None;
        self.look_for_room();
        self.watch_door();
        if self.timers.retry_at.is_some() {
            return;
        }
        match self.try_commit() {
            Ok(()) => {
                self.queue.restart_waiting();
                self.succeeded();
            }
            Err(stop) => self.failed(&stop),
        }
    }

    /// Something was written: what failed before is over.
    pub(super) fn succeeded(&mut self) {
        self.timers.retry.reset();
        self.timers.retry_at = None;
        let state = self.full_state();
        self.set_state(&state);
    }

    fn try_commit(&mut self) -> Result<(), Stop> {
        if self.current.is_none() {
            self.make_generation()?;
        }
        self.raise_limits()?;
        self.tell_refused();
        let left_bytes = self.left_bytes();
        let mut raw_bytes = 0;
        let mut works = 0;
        while raw_bytes < self.sizes.group_raw_bytes && works < GROUP_WORKS_MAX {
            if self.current.as_ref().is_some_and(|current| self.is_grown(current)) {
                self.finish_group()?;
                self.rotate()?;
            }
            if raw_bytes > 0 && !self.room.is_full() && raw_bytes + self.queue.first_arrival_bytes() > left_bytes {
                break;
            }
            let Some(work) = self.next_work() else { break };
            works += 1;
            self.write(work);
            raw_bytes += self.insert_ready()?;
        }
        self.finish_group()
    }

    /// The next thing that may be written: when there is no room, control entries of sources that wait for none.
    fn next_work(&mut self) -> Option<Work> {
        if self.takes_nothing() { self.queue.pop_needing_no_room() } else { self.next_admitted() }
    }

    /// Gives a work its entries. Nothing touches the disk here.
    pub(super) fn write(&mut self, work: Work) {
        let flight = match &work {
            Work::Arrival(source, arrival) => self.write_arrival(source.clone(), arrival),
            Work::Control(source, control) => (self.write_control(&source.clone(), control), Outcome::Appended),
            Work::Told(source, reading, refusal) => {
                self.write_segment();
                let told = entry::Control::Refused(source.clone(), refusal.clone());
                self.tail.packer.push_control(&told, FIRST);
                let through = self.tail.packer.push_tail(source, reading);
                let undo = self.memory.set_refusal(source, refusal.clone());
                self.flights.push_undo(through, undo);
                (through, Outcome::Appended)
            }
            Work::Copy(source, reading) => {
                self.write_segment();
                let one = std::slice::from_ref(&**reading);
                (self.tail.packer.push_arrival(source, one, None), Outcome::Appended)
            }
            Work::Purge(purge) => {
                (self.tail.packer.push_control(&entry::Control::Purged((**purge).clone()), ALONE), Outcome::Appended)
            }
            Work::Note(note) => {
                (self.tail.packer.push_control(&entry::Control::Note((**note).clone()), ALONE), Outcome::Appended)
            }
        };
        let (through, outcome) = flight;
        self.flights.push(Flight { work, through, sequence_after: self.tail.packer.next_sequence(), outcome });
    }

    fn write_arrival(&mut self, source: Arc<Source>, arrival: &Arrival) -> (u64, Outcome) {
        let id = &source.id;
        if let Some(packet) = &arrival.packet {
            if let Some(through) = self.memory.duplicate_of(id, packet) {
                return (through, Outcome::Duplicate);
            }
        }
        if arrival.readings.is_empty() && arrival.packet.is_none() {
            return (self.tail.packer.next_index() - 1, Outcome::Appended);
        }
        if let Some(why) = self.refusal_of(id, arrival) {
            self.refuse(id, why, &arrival.readings);
            return (UNSETTLED, Outcome::Refused);
        }
        self.write_segment();
        let through = self.tail.packer.push_arrival(id, &arrival.readings, arrival.packet.as_ref());
        if let Some(packet) = &arrival.packet {
            let undo = self.memory.enter(id, PacketMark::from(packet), through);
            self.flights.push_undo(through, undo);
        }
        (through, Outcome::Appended)
    }

    fn write_control(&mut self, source: &Arc<Source>, control: &Control) -> u64 {
        let id = &source.id;
        match control {
            Control::SessionCleared => {
                let through = self.tail.packer.push_control(&entry::Control::SessionCleared(id.clone()), ALONE);
                if let Some(undo) = self.memory.clear_session(id) {
                    self.flights.push_undo(through, undo);
                }
                through
            }
            Control::Released(ids) => {
                for ids in ids.chunks(RELEASED_MAX) {
                    let entry = entry::Control::Released(id.clone(), ids.to_vec());
                    let through = self.tail.packer.push_control(&entry, ALONE);
                    self.memory.release(id, ids, |undo| self.flights.push_undo(through, undo));
                }
                self.tail.packer.next_index() - 1
            }
        }
    }

    /// The first arrival of this process in a generation that an earlier one began.
    fn write_segment(&mut self) {
        if std::mem::take(&mut self.tail.segment_due) {
            self.tail.packer.push_control(&entry::Control::Segment(self.tail.segment.clone()), ALONE);
        }
    }

    /// Inserts blocks that are ready, with a sync where the cap demands one. Returns the raw bytes inserted.
    pub(super) fn insert_ready(&mut self) -> Result<u64, Stop> {
        let mut raw_bytes = 0;
        while let Some(block) = self.tail.packer.take() {
            let current = self.current.as_mut().expect("a generation is made before anything is written");
            let max = unsynced_bytes_max(current.generation.segment_bytes());
            if self.tail.unsynced_bytes > 0 && self.tail.unsynced_bytes + block.bytes.len() > max {
                self.sync()?;
            }
            let current = self.current.as_mut().expect("a sync does not take it");
            current.generation.insert(block.first_index, &block.bytes)?;
            current.raw_bytes += block.raw_bytes as u64;
            raw_bytes += block.raw_bytes as u64;
            self.tail.unsynced_bytes += block.bytes.len();
            self.tail.inserted_end = block.end_index;
            let m = &self.shared.metrics;
            m.blocks.inc();
            m.written_bytes.inc_by(block.bytes.len() as u64);
        }
        Ok(raw_bytes)
    }

    /// Ends the block under way, syncs, answers.
    pub(super) fn finish_group(&mut self) -> Result<(), Stop> {
        self.settle_refusals();
        self.tail.packer.flush();
        self.insert_ready()?;
        if self.tail.unsynced_bytes > 0 {
            self.sync()?;
        }
        // What needed no entry: redeliveries of what was durable already.
        self.answer();
        Ok(())
    }

    /// The only place where something becomes durable.
    pub(super) fn sync(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        self.shared.progress.phase("syncing", SYNC_STALL);
        let current = self.current.as_ref().expect("a sync follows an insert");
        current.generation.sync()?;
        self.shared.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
        self.shared.metrics.syncs.inc();
        self.tail.unsynced_bytes = 0;
        self.synced_through(self.tail.inserted_end);
        Ok(())
    }

    /// A sync covers everything below `end`: whole arrivals in it are durable.
    fn synced_through(&mut self, end: u64) {
        let synced = self.current.as_ref().is_some_and(|current| current.generation.is_synced());
        assert!(synced, "nothing becomes durable before its sync has returned");
        if let Some((through, sequence_after)) = self.flights.whole_below(end) {
            // A redelivery names an entry that may be durable already.
            let through = through.max(self.tail.durable.through().0);
            self.tail.durable = Durable::after_sync(Index(through));
            self.tail.durable_end_sequence = self.tail.durable_end_sequence.max(sequence_after);
            self.flights.forget_undo_through(through);
        }
        self.answer();
    }

    /// Answers what is durable, one answer per source.
    fn answer(&mut self) {
        let through = self.tail.durable.through().0;
        let mut answers: Vec<(Arc<Source>, Answer)> = Vec::new();
        let mut newest = None;
        let mut noted = false;
        let mut added = (0, 0);
        let mut payload_bytes = 0;
        while let Some(flight) = self.flights.pop_through(through) {
            match flight.work {
                Work::Arrival(source, arrival) => {
                    if flight.outcome == Outcome::Appended {
                        added.0 += arrival.readings.len() as u64;
                        payload_bytes += arrival.readings.iter().map(|reading| reading.value.len() as u64).sum::<u64>();
                        if let Some(reading) = arrival.readings.first() {
                            newest.get_or_insert((flight.sequence_after, reading.received));
                        }
                        self.count(&source.id, &arrival.readings);
                    }
                    if flight.outcome == Outcome::Refused {
                        added.1 += arrival.readings.len() as u64;
                    }
                    let at = answers.iter().position(|(known, _)| Arc::ptr_eq(known, &source));
                    let at = at.unwrap_or_else(|| {
                        answers.push((source, Answer { done: Vec::new(), durable: self.tail.durable }));
                        answers.len() - 1
                    });
                    answers[at].1.done.push((arrival.receipt, flight.outcome));
                }
                Work::Told(source, reading, _) => self.count(&source, std::slice::from_ref(&*reading)),
                Work::Copy(source, reading) => {
                    added.0 += 1;
                    // It waits since now, whenever it came.
                    newest.get_or_insert((flight.sequence_after, crate::clock::now()));
                    self.count(&source, std::slice::from_ref(&*reading));
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
        self.shared.metrics.appended.inc_by(added.0);
        self.shared.metrics.payload_bytes.inc_by(payload_bytes);
        self.shared.metrics.refused.inc_by(added.1);
        if noted {
            self.publish_memory();
        }
        self.publish_durable(newest);
        for (source, answer) in answers {
            if !source.answer(answer) {
                log::debug!(
                    "source {} is gone: what it sent is stored, it will be acknowledged as a redelivery",
                    source.id
                );
            }
        }
    }

    /// A note of damage is durable: says and counts what no note named before.
    fn count_lost(&self, note: &super::super::note::Note) {
        if &*note.reason != "damage" {
            return;
        }
        for (from, to) in self.memory.notes.uncovered(note.from, note.to) {
            log::error!("readings {from} to {to} are lost by damage; a gap record will say so");
            self.shared.metrics.dropped("damage").inc_by(to - from + 1);
        }
    }

    fn count(&mut self, source: &crate::record::SourceId, readings: &[crate::record::Reading]) {
        if let Some(Current { summary, .. }) = &mut self.current {
            readings.iter().for_each(|reading| summary.count(source, reading));
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

    /// `state` must know how far numbers may reach before they are given out.
    pub(super) fn raise_limits(&mut self) -> Result<(), Stop> {
        let (index, sequence) = (self.tail.packer.next_index(), self.tail.packer.next_sequence());
        let mut state = self.shared.state();
        if index + LIMIT_MARGIN <= state.state.index_limit && sequence + LIMIT_MARGIN <= state.state.sequence_limit {
            return Ok(());
        }
        let raised = state.update(|state| {
            state.index_limit = index + LIMIT_STEP;
            state.sequence_limit = sequence + LIMIT_STEP;
        });
        raised.map_err(|error| Stop::Io("write outbox/state", error))
    }

    /// Takes back everything that is not durable and closes the generation; the work goes back to where it stood.
    pub(super) fn failed(&mut self, stop: &Stop) {
        // What was written stood before what was parked.
        self.queue.unpark_all();
        for work in self.flights.take_back(&mut self.memory) {
            // A gap record for refusals is made anew when there is room.
            if !matches!(work, Work::Told(..)) {
                self.queue.push_front(work);
            }
        }
        self.tail.back_to_durable();
        self.close_current();
        let delay = self.timers.retry.next_delay();
        self.timers.retry_at = Some(Instant::now() + delay);
        if stop.is_full() {
            // What it frees is for notes and for the drain.
            self.give_up_reserve();
            // Seen by the next look, which comes with the next try.
            self.room.refused(stop.to_string(), 2 * delay);
        } else {
            self.set_state(&format!("failing: {stop}"));
        }
        if self.timers.may_tell(&stop.to_string()) {
            log::error!(
                "the outbox cannot be written ({stop}); nothing of it was acknowledged, it is tried again in a new generation until it succeeds"
            );
        }
        self.shared.metrics.failed.inc();
    }

    pub(super) fn set_state(&self, state: &str) {
        let mut view = self.shared.view();
        if view.state != state {
            view.state = state.to_owned();
        }
    }

    /// Writes the counts of readings that were refused in this group; the refusals are durable with them.
    fn settle_refusals(&mut self) {
        for key in self.flights.take_unsettled() {
            let refusal = self.memory.refusals.get(&key).cloned().unwrap_or_default();
            self.tail.packer.push_control(&entry::Control::Refused(key.0, refusal), ALONE);
        }
        self.flights.settle(self.tail.packer.next_index() - 1);
    }
}
