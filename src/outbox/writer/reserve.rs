//! The reserve: real bytes that are given up when the disk is full, so that what is held can be delivered and what
//! is lost can be noted.
//!
//! What the file system says to be free need not be free for us (a quota). So a reserve that had to be given up soon after
//! it was written, or could not be written, is written again only after a pause, which doubles: else it would be written
//! and given up with every reading. The first time is free.

use std::time::{Duration, Instant};

use super::super::directory::disk_bytes;
use super::Writer;

/// The first pause, and the longest. One that stood as long as that stood long.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    /// Whole.
    pub(super) is_there: bool,
    /// When it was written by this process.
    written_at: Option<Instant>,
    pause: Duration,
    /// When it went away, or could not be written.
    gone_at: Option<Instant>,
}

impl Reserve {
    /// It is written.
    fn written(&mut self, now: Instant) {
        self.is_there = true;
        self.written_at = Some(now);
    }

    /// It was given up, or could not be written.
    fn gone(&mut self, now: Instant) {
        let could_not = !std::mem::take(&mut self.is_there);
        let stood_long = self.written_at.is_none_or(|at| now.duration_since(at) >= PAUSE.1);
        let is_free = !could_not && (stood_long || self.gone_at.is_none());
        self.pause = if is_free { Duration::ZERO } else { (2 * self.pause).clamp(PAUSE.0, PAUSE.1) };
        self.gone_at = Some(now);
    }

    fn may_be_written(&self, now: Instant) -> bool {
        !self.is_there && self.gone_at.is_none_or(|at| now.duration_since(at) >= self.pause)
    }
}

impl Writer {
    /// Gives the reserve up for good use; whether there was one.
    pub(super) fn give_up_reserve(&mut self) -> bool {
        if self.room.reserve.is_there {
            self.room.reserve.gone(Instant::now());
        }
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
        self.room.reserve.is_there = disk_bytes(&self.directory.file("reserve")) >= self.sizes.reserve_bytes;
    }

    /// Bytes that readings leave alone because the reserve will want them back.
    pub(super) fn missing_reserve_bytes(&self) -> u64 {
        if self.room.reserve.is_there { 0 } else { self.sizes.reserve_bytes }
    }

    /// A reader found the disk full: it gets what the reserve holds.
    pub(super) fn lend_reserve(&mut self) {
        let wanted = std::mem::take(&mut self.shared.view().reserve_wanted);
        if wanted && self.room.reserve.is_there {
            self.give_up_reserve();
        }
    }

    /// Writes the reserve (again) when there is ample room for it.
    pub(super) fn regain_reserve(&mut self) {
        if !self.room.reserve.may_be_written(Instant::now()) || self.timers.retry_at.is_some() {
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
                self.room.reserve.written(Instant::now());
                self.shared.view().bytes += bytes;
                log::info!("outbox/reserve is there ({bytes} bytes)");
            }
            Err(error) => {
                log::warn!("cannot write outbox/reserve ({error}); it is tried again later, when there is room");
                self.room.reserve.gone(Instant::now());
                self.give_up_reserve();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_that_never_stands_long_is_written_less_and_less() {
        let start = Instant::now();
        let minutes = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut reserve = Reserve { is_there: true, ..Reserve::default() };
        reserve.gone(minutes(0));
        assert!(reserve.may_be_written(minutes(0)), "the first time at once");
        let mut written = 0;
        for minute in 0..24 * 60 {
            if reserve.may_be_written(minutes(minute)) {
                reserve.written(minutes(minute));
                reserve.gone(minutes(minute));
                written += 1;
            }
        }
        assert!((24..=32).contains(&written), "{written} times in a day");
        assert!(reserve.may_be_written(minutes(25 * 60)));
        // It could not even be written.
        reserve.gone(minutes(25 * 60));
        assert!(!reserve.may_be_written(minutes(25 * 60 + 59)) && reserve.may_be_written(minutes(26 * 60)));
        // It stood long.
        reserve.written(minutes(26 * 60));
        reserve.gone(minutes(28 * 60));
        assert!(reserve.may_be_written(minutes(28 * 60)));
    }
}
