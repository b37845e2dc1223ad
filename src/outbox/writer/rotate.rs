//! Making and closing generations.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::config;
use crate::promise::Durable;
use crate::record::Index;

use super::super::directory::GenerationId;
use super::super::entry::ALONE;
use super::super::generation::{Generation, unsynced_bytes_max};
use super::super::summary::Summary;
use super::super::view::Listed;
use super::stop::Stop;
use super::{Current, SYNC_STALL, Writer};

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
            || (current.raw_bytes > 0 && self.is_spread())
            || (current.raw_bytes > 0 && current.made_at.elapsed() >= age_max)
    }

    /// When nothing comes any more, age alone ends a generation: what is closed can expire and leave the disk.
    pub(super) fn rotate_if_old(&mut self) {
        let idle = self.queue.is_empty() && self.flights.is_empty();
        if !idle || self.room.is_full() || self.timers.is_waiting_out() {
            return;
        }
        if self.current.as_ref().is_some_and(|current| self.is_grown(current)) {
            if let Err(stop) = self.rotate() {
                self.failed(&stop);
            }
        }
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
        let (first_index, first_sequence) = (self.tail.durable_end_index(), self.tail.durable_end_sequence);
        let id = GenerationId { number: self.next_number, first_index };
        self.next_number += 1;
        self.tail.packer.restart_at(first_index, first_sequence);
        let made = self.fill_new(id);
        let generation = match made {
            Ok(generation) => Arc::new(generation),
            Err(stop) => {
                self.discard(id);
                return Err(stop);
            }
        };
        let end_index = self.tail.packer.next_index();
        self.tail.durable = Durable::after_sync(Index(end_index - 1));
        self.tail.inserted_end = end_index;
        self.tail.segment_due = false;
        let listed = Self::listed_current(&generation, first_sequence);
        let mut summary = Summary::starting_at(first_index, first_sequence);
        summary.end_index = end_index;
        self.room.begins_anew();
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
            self.tail.packer.push_control(&control, ALONE);
        }
        self.tail.packer.flush();
        let mut unsynced = 0;
        while let Some(block) = self.tail.packer.take() {
            if unsynced + block.bytes.len() > unsynced_bytes_max(generation.segment_bytes()) {
                generation.sync()?;
                unsynced = 0;
            }
            generation.insert(block.first_index, &block.bytes)?;
            unsynced += block.bytes.len();
        }
        generation.sync()?;
        self.directory.mark(id).map_err(|error| Stop::Io("mark a new generation", error))?;
        Ok(generation)
    }

    /// Removes what is left of a generation that could not be made: it has never held anything.
    fn discard(&mut self, id: GenerationId) {
        self.tail.back_to_durable();
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
        summary.end_index = self.tail.durable_end_index();
        summary.end_sequence = self.tail.durable_end_sequence;
        summary.boot_id = self.tail.segment.boot_id.to_string();
        if let Err(error) = summary.write(&self.directory.summary(id)) {
            log::warn!("cannot write the summary of {id} ({error}): the next start reads the generation instead");
        }
        let bytes = self.directory.generation_bytes(id);
        let summary = Arc::new(summary);
        self.shared.publish(|view| {
            if let Some(listed) = view.generations.iter_mut().find(|listed| listed.id == id) {
                listed.closed = Some(summary);
                listed.disk_bytes = bytes;
            }
        });
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
