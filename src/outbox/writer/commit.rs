//! Writing, syncing, answering; and taking back what did not become durable.

use std::sync::Arc;
use std::time::Instant;

use crate::outbox::{Arrival, Control, Outcome};

use super::super::entry::{self, ALONE, FIRST};
use super::super::reading::PacketMark;
use super::super::recovery::LIMIT_STEP;
use super::flights::{Flight, UNSETTLED};
use super::queue::Work;
use super::source::Source;
use super::stop::Stop;
use super::{SYNC_STALL, Writer};

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
        let (mut raw_bytes, mut written_bytes, mut works) = (0, 0, 0);
        // It grows by blocks: asked for each work, the clock alone would cost more than packing it.
        let mut has_grown = true;
        while raw_bytes + self.tail.packer.raw_bytes() < self.sizes.group_raw_bytes && works < GROUP_WORKS_MAX {
            if std::mem::take(&mut has_grown) && self.current.as_ref().is_some_and(|current| self.is_grown(current)) {
                self.finish_group()?;
                self.rotate()?;
            }
            let Some(work) = self.next_work().or_else(|| self.next_that_came()) else { break };
            let arrival_bytes = work.arrival_bytes();
            if written_bytes > 0 && !self.room.is_full() && written_bytes + arrival_bytes > left_bytes {
                // Room is looked for before it is written.
                self.queue.push_front(work);
                break;
            }
            written_bytes += arrival_bytes;
            works += 1;
            self.write(work);
            let inserted_bytes = self.insert_ready()?;
            has_grown = inserted_bytes > 0;
            raw_bytes += inserted_bytes;
        }
        self.finish_group()
    }

    /// Likewise, of what came meanwhile: it shares the sync.
    fn next_that_came(&mut self) -> Option<Work> {
        self.take_submissions();
        self.next_work()
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
        self.syncer.wait();
        // What was written stood before what was parked.
        self.queue.unpark_all();
        for work in self.flights.take_back(&mut self.memory) {
            // A gap record for refusals is made anew when there is room, also if nothing else is to be written.
            if matches!(work, Work::Told(..)) {
                self.is_untold = true;
            } else {
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
    pub(super) fn settle_refusals(&mut self) {
        for key in self.flights.take_unsettled() {
            let refusal = self.memory.refusals.get(&key).cloned().unwrap_or_default();
            self.tail.packer.push_control(&entry::Control::Refused(key.0, refusal), ALONE);
        }
        self.flights.settle(self.tail.packer.next_index() - 1);
    }
}
