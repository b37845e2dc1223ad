//! Removing generations: delivered ones, ones a policy drops, damaged ones. Nothing undelivered goes before its note is
//! durable.

use crate::config;

use super::super::directory::GenerationId;
use super::super::recovery::note;
use super::super::view::Listed;
use super::queue::Work;
use super::{SYNC_STALL, Writer};

impl Writer {
    /// Removes generations that are delivered, beyond what `retain` keeps.
    pub(super) fn trim(&mut self) {
        let delivered = self.delivered();
        let kept: u64 = delivered.iter().map(|(_, bytes, readings)| if *readings { *bytes } else { 0 }).sum();
        let mut excess = kept.saturating_sub(self.config.retain.0);
        let mut over = Vec::new();
        for (id, bytes, readings) in delivered {
            if !readings || excess > 0 {
                over.push(id);
                excess = excess.saturating_sub(if readings { bytes } else { 0 });
            }
        }
        self.remove_delivered(&over);
        self.expire();
    }

    /// Generations with nothing left to deliver, oldest first: name, bytes, whether they hold readings at all.
    fn delivered(&self) -> Vec<(GenerationId, u64, bool)> {
        let view = self.shared.view();
        // The newest one holds the newest snapshot, also while the disk is too full to make another.
        let Some(newest) = view.generations.back().map(|listed| listed.id) else { return Vec::new() };
        let done = |listed: &&Listed| {
            let end = listed.end_sequence();
            let empty = end == listed.first_sequence;
            let closed = listed.closed.is_some() && listed.id < newest;
            closed && (empty || end.saturating_sub(1) <= view.committed) && !view.marks.holds(listed.id.number)
        };
        let listed = view.generations.iter().filter(done);
        listed.map(|listed| (listed.id, listed.disk_bytes, listed.end_sequence() != listed.first_sequence)).collect()
    }

    /// Removes one delivered generation that was kept for replay; whether there was one.
    pub(super) fn remove_retained(&mut self) -> bool {
        let Some((id, ..)) = self.delivered().into_iter().find(|(_, _, readings)| *readings) else { return false };
        self.remove_delivered(&[id])
    }

    pub(super) fn remove_delivered(&mut self, ids: &[GenerationId]) -> bool {
        if ids.is_empty() {
            return false;
        }
        // After a restart nobody must look for what is removed here.
        if let Err(error) = self.sync_position() {
            let text = format!("cannot write outbox/pos ({error}): delivered generations stay until it can be written");
            if self.timers.may_tell(&text) {
                log::error!("{text}");
            }
            return false;
        }
        ids.iter().map(|id| self.remove_files(*id)).fold(true, |all, one| all & one)
    }

    /// Takes a generation out of the catalogue and unlinks it; whether it is gone. One that somebody has begun to read
    /// waits for the next turn.
    fn remove_files(&mut self, id: GenerationId) -> bool {
        self.shared.progress.phase("removing a generation", SYNC_STALL);
        let Some(listed) = self.shared.publish(|view| view.take_out(id)) else { return false };
        // Somebody may have it open between two batches: he finds it closed, and its space is free at once.
        if let Some(live) = listed.live.upgrade() {
            live.close();
        }
        // There may be room now.
        self.room.look_soon();
        match self.directory.remove(id) {
            Ok(()) => true,
            Err(error) => {
                log::error!(
                    "cannot remove {} ({error}); it is tried again every second",
                    self.directory.generation(id).display()
                );
                self.room.unremoved.push(id);
                false
            }
        }
    }

    /// Removes what could not be removed before.
    pub(super) fn remove_again(&mut self) {
        let directory = &self.directory;
        self.room.unremoved.retain(|id| match directory.remove(*id) {
            Ok(()) => {
                log::info!("removed {id}, which could not be removed before");
                false
            }
            Err(error) => {
                log::debug!("still cannot remove {id}: {error}");
                true
            }
        });
    }

    /// Notes the undelivered readings of a generation that is claimed, durably, then removes it. Whether it is gone.
    pub(super) fn drop_noted(&mut self, listed: &Listed, reason: &'static str) -> bool {
        let noted = self.write_notes(listed, reason);
        let gone = noted.is_some_and(|ranges| {
            let count: u64 = ranges.iter().map(|(from, to)| to - from + 1).sum();
            self.dropped += count;
            self.shared.metrics.dropped(reason).inc_by(count);
            self.shared.view().dropped = self.dropped + self.memory.refused_total();
            log::warn!(
                "dropped {count} undelivered readings ({}..={}) for {reason}; a gap record will say so",
                listed.first_sequence,
                listed.end_sequence().saturating_sub(1)
            );
            self.remove_files(listed.id)
        });
        self.shared.publish(|view| view.claimed = None);
        gone
    }

    /// Writes notes for what of a closed generation is neither delivered nor noted; the ranges, once they are durable.
    pub(super) fn write_notes(&mut self, listed: &Listed, reason: &'static str) -> Option<Vec<(u64, u64)>> {
        let summary = listed.closed.clone()?;
        let committed = self.shared.view().committed;
        let from = listed.first_sequence.max(committed + 1);
        let ranges = if from < summary.end_sequence {
            self.memory.notes.uncovered(from, summary.end_sequence - 1)
        } else {
            Vec::new()
        };
        let whole = ranges == [(listed.first_sequence, summary.end_sequence - 1)];
        for range in &ranges {
            let life = self.memory.segments.iter().rev().find(|segment| segment.first_sequence <= range.0);
            let incarnation = life.map_or(self.tail.segment.incarnation, |segment| segment.incarnation);
            let mut note = note(*range, incarnation, reason, &self.tail.segment);
            if whole {
                note.bytes = summary.record_bytes;
                note.sources = summary.sources.iter().map(|(name, count)| (name.as_str().into(), *count)).collect();
            }
            self.queue.push_front(Work::Note(Box::new(note)));
        }
        if !ranges.is_empty() && !self.write_front_notes(ranges.len()) {
            return None;
        }
        Some(ranges)
    }

    /// Writes the notes at the front of the backlog now.
    pub(super) fn write_front_notes(&mut self, count: usize) -> bool {
        debug_assert!(self.flights.is_empty());
        let result = (|| {
            if self.current.is_none() {
                self.make_generation()?;
            }
            for _ in 0..count {
                let work = self.queue.pop().expect("just pushed");
                self.write(work);
            }
            self.finish_group()
        })();
        match &result {
            Ok(()) => self.succeeded(),
            Err(stop) => {
                self.failed(stop);
                // Nothing was removed for them. Written later they would name readings that meanwhile are on their way.
                self.queue.withdraw_own();
            }
        }
        result.is_ok()
    }

    /// Drops closed generations whose youngest reading is older than `max_age`, by a clock that can be trusted.
    pub(super) fn expire(&mut self) {
        let config::units::Limit::At(age) = self.config.max_age else { return };
        if !self.flights.is_empty() || self.timers.is_waiting_out() {
            return;
        }
        let age_ns = u64::try_from(age.0.as_nanos()).unwrap_or(u64::MAX);
        let expired = {
            let mut view = self.shared.view();
            let committed = view.committed;
            let oldest = view.generations.iter().find(|listed| listed.end_sequence() > committed + 1);
            let oldest = oldest.filter(|listed| self.is_older(listed, age_ns)).map(|listed| listed.id);
            oldest.and_then(|id| view.claim(|listed| listed.id == id))
        };
        if let Some(listed) = expired {
            self.drop_noted(&listed, "max_age");
        }
    }

    fn is_older(&self, listed: &Listed, age_ns: u64) -> bool {
        listed.closed.as_ref().is_some_and(|summary| summary.is_older(age_ns, &self.tail.segment.boot_id))
    }
}
