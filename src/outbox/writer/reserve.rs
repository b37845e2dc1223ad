//! The reserve: real bytes that are given up when the disk is full, so that what is held can be delivered and what
//! is lost can be noted.

use super::super::directory::disk_bytes;
use super::Writer;

impl Writer {
    /// Gives the reserve up for good use; whether there was one.
    pub(super) fn give_up_reserve(&mut self) -> bool {
        self.room.has_reserve = false;
        match self.directory.give_up_reserve() {
            Ok(gave) => {
                if gave {
                    log::warn!(
                        "the disk is full: outbox/reserve was given up ({} bytes), it comes back when there is room",
                        self.sizes.reserve_bytes
                    );
                }
                gave
            }
            Err(error) => {
                log::error!("the disk is full and outbox/reserve cannot be removed: {error}");
                false
            }
        }
    }

    /// Whether it is there, whole.
    pub(super) fn find_reserve(&mut self) {
        self.room.has_reserve = disk_bytes(&self.directory.file("reserve")) >= self.sizes.reserve_bytes;
    }

    /// Bytes that readings leave alone because the reserve will want them back.
    pub(super) fn missing_reserve_bytes(&self) -> u64 {
        if self.room.has_reserve { 0 } else { self.sizes.reserve_bytes }
    }

    /// A reader found the disk full: it gets what the reserve holds.
    pub(super) fn lend_reserve(&mut self) {
        let wanted = std::mem::take(&mut self.shared.view().reserve_wanted);
        if wanted && self.room.has_reserve {
            self.give_up_reserve();
        }
    }

    /// Writes the reserve (again) when there is ample room for it.
    pub(super) fn regain_reserve(&mut self) {
        if self.room.has_reserve || self.timers.retry_at.is_some() {
            return;
        }
        let bytes = self.sizes.reserve_bytes;
        let free = self.directory.free().map_or(0, |free| free.bytes);
        let used = self.shared.view().bytes;
        if free < self.floor_bytes().saturating_add(bytes) || used + bytes > self.sizes.readings_bytes_max() {
            return;
        }
        match self.directory.make_reserve(bytes) {
            Ok(()) => {
                self.room.has_reserve = true;
                self.shared.view().bytes += bytes;
                log::info!("outbox/reserve is there ({bytes} bytes)");
            }
            Err(error) => {
                log::warn!("cannot write outbox/reserve ({error}); it is tried again when there is more room");
                self.give_up_reserve();
            }
        }
    }
}
