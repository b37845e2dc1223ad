//! Room on disk, and what is done when there is none.

use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;

use crate::clock;
use crate::config::{self, outbox::WhenFull};
use crate::record::{Flags, Kind, Reading, SourceId};

use super::super::directory::disk_bytes;
use super::super::view::Listed;
use super::queue::Work;
use super::{ROOM_EVERY, Writer};

/// What is known of the room on disk.
#[derive(Debug)]
pub(super) struct Room {
    /// There is none for readings.
    pub(super) full: bool,
    pub(super) has_reserve: bool,
    /// Bytes on disk of `damaged/`.
    pub(super) damaged_bytes: u64,
    pub(super) looked_at: Instant,
}

impl Room {
    pub(super) fn new() -> Self {
        Self { full: false, has_reserve: false, damaged_bytes: 0, looked_at: Instant::now() }
    }

    /// Some may have been made: look soon.
    pub(super) fn look_soon(&mut self) {
        self.looked_at = Instant::now().checked_sub(ROOM_EVERY).unwrap_or(self.looked_at);
    }
}

impl Writer {
    /// Measures, makes room by the policy, and keeps the result in `full`. Nothing may be under way.
    pub(super) fn look_for_room(&mut self) {
        self.room.looked_at = Instant::now();
        while !self.has_room() {
            // Undelivered readings make room only for others that wait.
            let may_drop = self.config.when_full == WhenFull::DropOldest && !self.queue.is_empty();
            let made = self.remove_retained() || (may_drop && self.drop_oldest());
            if !made {
                if !self.room.full {
                    log::warn!(
                        "the outbox is full ({} of {} bytes): {}",
                        self.shared.view().bytes,
                        self.sizes.max_bytes,
                        full_means(self.config.when_full)
                    );
                }
                self.room.full = true;
                self.set_state("full");
                return;
            }
        }
        if std::mem::take(&mut self.room.full) {
            log::info!("the outbox has room again");
            self.set_state("ok");
        }
        self.regain_reserve();
    }

    /// When nothing waits, no commit looks for room: what was refused is told all the same as soon as there is some.
    pub(super) fn leave_full(&mut self) {
        if self.room.full && self.queue.is_empty() && self.room.looked_at.elapsed() >= ROOM_EVERY {
            self.look_for_room();
            self.tell_refused();
        }
    }

    /// Measures the disk: one stat, one statvfs.
    fn has_room(&self) -> bool {
        let current = self.current.as_ref().map_or(0, |current| current.generation.disk_bytes());
        let reserve = if self.room.has_reserve { self.sizes.reserve_bytes } else { 0 };
        let bytes = {
            let mut view = self.shared.view();
            let closed: u64 = view.generations.iter().map(|listed| listed.disk_bytes).sum();
            view.bytes = closed + current + reserve + self.room.damaged_bytes;
            view.bytes
        };
        let free = self.directory.free_bytes().unwrap_or(u64::MAX);
        bytes <= self.sizes.readings_bytes_max() && free >= self.config.free_space_floor.0
    }

    /// Drops the oldest closed generation that nobody reads and no open transaction may hold. If there is none, the
    /// newest one is closed for it, once it holds enough.
    fn drop_oldest(&mut self) -> bool {
        if let Some(listed) = self.claim_oldest() {
            return self.drop_noted(&listed, "drop_oldest");
        }
        let enough = self.sizes.generation_raw_bytes / 4;
        if self.current.as_ref().is_none_or(|current| current.raw_bytes < enough) {
            return false;
        }
        if let Err(stop) = self.rotate() {
            self.failed(&stop);
            return false;
        }
        self.claim_oldest().is_some_and(|listed| self.drop_noted(&listed, "drop_oldest"))
    }

    fn claim_oldest(&self) -> Option<Listed> {
        self.shared.view().claim(|_| true)
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
        let Some(summary) = &listed.closed else { return false };
        let now = clock::now();
        if summary.boot_id == *self.tail.segment.boot_id {
            return summary.last_received_mono_ns.saturating_add(age_ns) < now.mono_ns;
        }
        let age = now.wall_ns.saturating_sub(summary.last_received_wall_ns);
        summary.synchronised && clock::synchronised() && u64::try_from(age).is_ok_and(|age| age > age_ns)
    }

    /// Counts readings refused; the count is written with the group.
    pub(super) fn refuse(&mut self, source: &SourceId, readings: &[Reading]) {
        let mut refusal = self.memory.refusals.get(source).cloned().unwrap_or_default();
        refusal.total += readings.len() as u64;
        refusal.bytes += readings.iter().map(|reading| reading.record_bytes() as u64).sum::<u64>();
        if let Some(last) = readings.last() {
            refusal.topic = ByteString::from(&*last.topic);
        }
        let undo = self.memory.set_refusal(source, refusal);
        self.flights.push_refusal(source, undo);
        self.shared.metrics.dropped("drop_newest").inc_by(readings.len() as u64);
    }

    /// Queues a gap record for each source with refusals that none has told, once there is room.
    pub(super) fn tell_refused(&mut self) {
        if self.room.full {
            return;
        }
        let untold: Vec<_> = self
            .memory
            .refusals
            .iter()
            .filter(|(_, refusal)| refusal.told < refusal.total)
            .map(|(source, refusal)| (source.clone(), refusal.clone()))
            .collect();
        for (source, mut refusal) in untold {
            if self.queue.tells_of(&source) {
                continue;
            }
            let (count, bytes) = (refusal.total - refusal.told, refusal.bytes - refusal.told_bytes);
            (refusal.told, refusal.told_bytes) = (refusal.total, refusal.bytes);
            let reading = gap_of_refused(&source, &refusal.topic, count, bytes);
            self.queue.push_front(Work::Told(source, Box::new(reading), refusal));
        }
    }

    /// Gives the reserve up for good use; whether there was one.
    pub(super) fn give_up_reserve(&mut self) -> bool {
        self.room.has_reserve = false;
        match self.directory.give_up_reserve() {
            Ok(gave) => {
                if gave {
                    log::warn!("the disk is full: outbox/reserve was given up");
                }
                gave
            }
            Err(error) => {
                log::error!("the disk is full and outbox/reserve cannot be removed: {error}");
                false
            }
        }
    }

    /// Writes the reserve (again) when there is ample room for it.
    fn regain_reserve(&mut self) {
        if self.room.has_reserve || self.timers.retry_at.is_some() {
            return;
        }
        let bytes = self.sizes.reserve_bytes;
        let there = disk_bytes(&self.directory.file("reserve")) >= bytes;
        let free = self.directory.free_bytes().unwrap_or(0);
        let used = self.shared.view().bytes;
        let room = free >= self.config.free_space_floor.0.saturating_add(2 * bytes)
            && used + bytes <= self.sizes.readings_bytes_max();
        if !there && !room {
            return;
        }
        match self.directory.make_reserve(bytes) {
            Ok(()) => {
                self.room.has_reserve = true;
                self.shared.view().bytes += bytes;
            }
            Err(error) => {
                log::warn!("cannot write outbox/reserve ({error}); it is tried again when there is more room");
                self.give_up_reserve();
            }
        }
    }
}

fn full_means(policy: WhenFull) -> &'static str {
    match policy {
        WhenFull::Block => "nothing more is taken from the sources until readings are delivered",
        WhenFull::DropOldest => "nothing more can be dropped at the moment, so nothing more is taken",
        WhenFull::DropNewest => "new readings are refused and counted",
    }
}

/// The gap record for readings a source lost to `drop_newest`. It takes a fresh sequence, for those had none.
fn gap_of_refused(source: &SourceId, topic: &ByteString, count: u64, bytes: u64) -> Reading {
    let value = serde_json::json!({
        "reason": "drop_newest", "source": source.as_str(), "count": count, "bytes": bytes,
    });
    let unsynchronised = if clock::synchronised() { Flags::default() } else { Flags::UNSYNCHRONISED };
    Reading {
        topic: topic.clone(),
        device: source.0.clone(),
        kind: Kind::Gap,
        flags: unsynchronised,
        received: clock::now(),
        device_time_ns: None,
        content_type: ByteString::from_static("application/json"),
        quality: ByteString::new(),
        mqtt: None,
        replay_of: ByteString::new(),
        value: Bytes::from(value.to_string()),
    }
}
