//! Making, closing, removing and setting aside generations.

use std::fs::File;
use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::config;
use crate::promise::Durable;
use crate::record::Index;

use super::super::directory::{GenerationId, disk_bytes, sync_directory};
use super::super::entry::ALONE;
use super::super::generation::{Generation, unsynced_bytes_max};
use super::super::recovery::note;
use super::super::summary::Summary;
use super::super::view::Listed;
use super::{Current, SYNC_STALL, Stop, Work, Writer};

/// A quiet gateway begins a new generation this often, so that delivered readings leave the disk.
const GENERATION_AGE_MAX: Duration = Duration::from_secs(6 * 3600);

impl Writer {
    /// Whether the newest generation has enough.
    pub(super) fn is_grown(&self, current: &Current) -> bool {
        let age_max = match self.config.max_age {
            config::units::Limit::Off => GENERATION_AGE_MAX,
            config::units::Limit::At(age) => GENERATION_AGE_MAX.min(age.0 / 4),
        };
        current.raw_bytes >= self.sizes.generation_raw_bytes
            || (current.raw_bytes > 0 && current.made_at.elapsed() >= age_max)
    }

    /// Closes the newest generation and makes the next. Nothing may be under way.
    pub(super) fn rotate(&mut self) -> Result<(), Stop> {
        debug_assert!(self.flights.is_empty());
        self.close_current();
        self.make_generation()
    }

    /// Makes a generation whose snapshot holds all that is in memory. When this returns it is on the medium and marked.
    pub(super) fn make_generation(&mut self) -> Result<(), Stop> {
        self.shared.progress.phase("making a generation", SYNC_STALL);
        let (first_index, first_sequence) = (self.durable.through().0 + 1, self.durable_end_sequence);
        let id = GenerationId { number: self.next_number, first_index };
        self.next_number += 1;
        self.packer.restart_at(first_index, first_sequence);
        let made = self.fill_new(id);
        let generation = match made {
            Ok(generation) => Arc::new(generation),
            Err(stop) => {
                self.discard(id);
                return Err(stop);
            }
        };
        let end_index = self.packer.next_index();
        self.durable = Durable::after_sync(Index(end_index - 1));
        self.inserted_end = end_index;
        self.segment_due = false;
        let listed = Self::listed_current(&generation, first_sequence);
        let mut summary = Summary::starting_at(first_index, first_sequence);
        summary.end_index = end_index;
        self.current = Some(Current { generation, summary, raw_bytes: 0, made_at: Instant::now() });
        self.shared.publish(|view| {
            view.generations.push_back(listed);
            view.durable_index = end_index - 1;
        });
        log::debug!("made generation {id}");
        Ok(())
    }

    fn fill_new(&mut self, id: GenerationId) -> Result<Generation, Stop> {
        let generation = Generation::open(&self.directory, id, self.sizes.segment_bytes)?;
        for control in self.memory.snapshot() {
            self.packer.push_control(&control, ALONE);
        }
        self.packer.flush();
        let mut unsynced = 0;
        while let Some(block) = self.packer.take() {
            if unsynced + block.bytes.len() > unsynced_bytes_max(generation.segment_bytes()) {
                generation.sync()?;
                unsynced = 0;
            }
            generation.insert(block.first_index, &block.bytes)?;
            unsynced += block.bytes.len();
        }
        generation.sync()?;
        let mark = || File::create(self.directory.marker(id))?.sync_all();
        mark()
            .and_then(|()| sync_directory(self.directory.path()))
            .map_err(|error| Stop::Io("mark a new generation", error))?;
        Ok(generation)
    }

    /// Removes what is left of a generation that could not be made: it has never held anything.
    fn discard(&mut self, id: GenerationId) {
        self.packer.restart_at(self.durable.through().0 + 1, self.durable_end_sequence);
        match self.directory.remove(id) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {id}, which was never finished ({error}): the next start does");
            }
            _ => {}
        }
    }

    /// Closes the newest generation at what is durable; it is never written again.
    pub(super) fn close_current(&mut self) {
        let Some(current) = self.current.take() else { return };
        let id = current.generation.id();
        let mut summary = current.summary;
        summary.end_index = self.durable.through().0 + 1;
        summary.end_sequence = self.durable_end_sequence;
        summary.boot_id = self.segment.boot_id.to_string();
        if let Err(error) = summary.write(&self.directory.summary(id)) {
            log::warn!("cannot write the summary of {id} ({error}): the next start reads the generation instead");
        }
        let bytes = disk_bytes(&self.directory.generation(id));
        let summary = Arc::new(summary);
        self.shared.publish(|view| {
            if let Some(listed) = view.generations.iter_mut().find(|listed| listed.id == id) {
                listed.closed = Some(summary);
                listed.disk_bytes = bytes;
            }
        });
    }

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
            closed && (empty || end.saturating_sub(1) <= view.committed) && view.reader_at != Some(listed.id.number)
        };
        let listed = view.generations.iter().filter(done);
        listed.map(|listed| (listed.id, listed.disk_bytes, listed.end_sequence() != listed.first_sequence)).collect()
    }

    /// Removes one delivered generation that was kept for replay; whether there was one.
    pub(super) fn remove_retained(&mut self) -> bool {
        let Some((id, ..)) = self.delivered().into_iter().find(|(_, _, readings)| *readings) else { return false };
        self.remove_delivered(&[id])
    }

    fn remove_delivered(&mut self, ids: &[GenerationId]) -> bool {
        if ids.is_empty() {
            return false;
        }
        // After a restart nobody must look for what is removed here.
        if let Err(error) = self.sync_position() {
            log::error!("cannot write outbox/pos ({error}): delivered generations stay until it can be written");
            return false;
        }
        ids.iter().map(|id| self.remove_files(*id)).fold(true, |all, one| all & one)
    }

    /// Takes a generation out of the catalogue and unlinks it.
    fn remove_files(&mut self, id: GenerationId) -> bool {
        self.shared.progress.phase("removing a generation", SYNC_STALL);
        self.shared.publish(|view| view.generations.retain(|listed| listed.id != id));
        // There may be room now.
        self.room_at = Instant::now().checked_sub(super::ROOM_EVERY).unwrap_or(self.room_at);
        match self.directory.remove(id) {
            Ok(()) => true,
            Err(error) => {
                log::error!(
                    "cannot remove {} ({error}); the next start tries again",
                    self.directory.generation(id).display()
                );
                false
            }
        }
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
    fn write_notes(&mut self, listed: &Listed, reason: &'static str) -> Option<Vec<(u64, u64)>> {
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
            let incarnation = life.map_or(self.segment.incarnation, |segment| segment.incarnation);
            let mut note = note(*range, incarnation, reason, &self.segment);
            if whole {
                note.bytes = summary.record_bytes;
                note.sources = summary.sources.iter().map(|(name, count)| (name.as_str().into(), *count)).collect();
            }
            self.backlog.push_front(Work::Note(Box::new(note), None));
        }
        if !ranges.is_empty() && !self.write_front_notes(ranges.len()) {
            return None;
        }
        Some(ranges)
    }

    /// Writes the notes at the front of the backlog now.
    fn write_front_notes(&mut self, count: usize) -> bool {
        debug_assert!(self.flights.is_empty());
        let result = (|| {
            if self.current.is_none() {
                self.make_generation()?;
            }
            for _ in 0..count {
                let work = self.backlog.pop_front().expect("just pushed");
                self.write(work);
            }
            self.finish_group()
        })();
        match &result {
            Ok(()) => self.succeeded(),
            Err(stop) => {
                self.failed(stop);
                // Nothing was removed for them. Written later they would name readings that meanwhile are on their way.
                self.backlog.retain(|work| !matches!(work, Work::Note(_, None)));
            }
        }
        result.is_ok()
    }

    /// Somebody cannot read a generation: what it held and is not delivered is noted, then it is moved away.
    pub(super) fn set_aside(&mut self, id: GenerationId, why: &str, done: SyncSender<bool>) {
        log::error!("{} is damaged ({why})", self.directory.generation(id).display());
        if self.current.as_ref().is_some_and(|current| current.generation.id() == id) {
            if let Err(stop) = self.rotate() {
                self.failed(&stop);
            }
        }
        let listed = self.shared.view().generations.iter().find(|listed| listed.id == id).cloned();
        let gone = match listed {
            None => true,
            Some(listed) => match self.write_notes(&listed, "damage") {
                None => false,
                Some(ranges) => {
                    for (from, to) in ranges {
                        log::error!("readings {from} to {to} are lost by damage; a gap record will say so");
                    }
                    self.move_aside(id);
                    true
                }
            },
        };
        if done.send(gone).is_err() {
            log::debug!("nobody waits for {id} any more");
        }
    }

    /// Moves a generation whose loss is noted into `damaged/`.
    pub(super) fn move_aside(&mut self, id: GenerationId) {
        self.shared.publish(|view| {
            view.generations.retain(|listed| listed.id != id);
            view.damaged += 1;
        });
        self.shared.metrics.damaged.inc();
        match self.directory.set_aside(id, self.sizes.damaged_bytes_max) {
            Ok(to) => log::error!("moved the damaged generation {id} to {}", to.display()),
            Err(error) => {
                log::error!("cannot move the damaged generation {id} away ({error}); the next start tries again");
            }
        }
        self.damaged_bytes = disk_bytes(&self.directory.damaged());
    }

    /// A closed generation in the catalogue.
    pub(in crate::outbox) fn listed(id: GenerationId, summary: Arc<Summary>, disk_bytes: u64) -> Listed {
        Listed { id, first_sequence: summary.first_sequence, closed: Some(summary), live: Weak::new(), disk_bytes }
    }

    /// The newest generation in the catalogue.
    pub(in crate::outbox) fn listed_current(generation: &Arc<Generation>, first_sequence: u64) -> Listed {
        Listed { id: generation.id(), first_sequence, closed: None, live: Arc::downgrade(generation), disk_bytes: 0 }
    }
}
