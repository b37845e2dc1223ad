//! The end of the log: which numbers are given out, inserted, durable.

use crate::promise::Durable;
use crate::record::Index;

use super::super::entry::Segment;
use super::super::packer::Packer;

/// Where the log is written. `durable <= inserted < packed`.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) packer: Packer,
    /// Of this process.
    pub(super) segment: Segment,
    /// The segment entry is not yet in the log.
    pub(super) segment_due: bool,
    pub(super) durable: Durable,
    /// First sequence that is not durable.
    pub(super) durable_end_sequence: u64,
    /// First index that is not inserted.
    pub(super) inserted_end: u64,
    /// Encoded bytes inserted since the last sync.
    pub(super) unsynced_bytes: usize,
}

impl Tail {
    /// Goes on behind what recovery found, all of which is on the medium: opening synced every file.
    pub(super) fn behind(
        next_index: u64,
        next_sequence: u64,
        packer: Packer,
        segment: Segment,
        segment_due: bool,
    ) -> Self {
        Self {
            packer,
            segment,
            segment_due,
            durable: Durable::after_sync(Index(next_index - 1)),
            durable_end_sequence: next_sequence,
            inserted_end: next_index,
            unsynced_bytes: 0,
        }
    }

    /// First index that is not durable.
    pub(super) fn durable_end_index(&self) -> u64 {
        self.durable.through().0 + 1
    }

    /// Forgets what is not durable.
    pub(super) fn back_to_durable(&mut self) {
        self.unsynced_bytes = 0;
        self.inserted_end = self.durable_end_index();
        self.packer.restart_at(self.inserted_end, self.durable_end_sequence);
    }
}
