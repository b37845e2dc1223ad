//! Budgets: bytes held in memory, bytes on disk, free space; and the sizes that follow from `max_bytes`. Plain
//! arithmetic but for the counter of [`HeldBytes`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::generation::SEGMENT_BYTES;

/// Bytes held of `held_bytes_max`; freed on drop.
#[derive(Debug)]
pub struct HeldPermit {
    bytes: usize,
    budget: HeldBytes,
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        self.budget.inner.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The budget `held_bytes_max`: bytes received and not yet answered, all sources together.
#[derive(Debug, Clone)]
pub struct HeldBytes {
    inner: Arc<HeldInner>,
}

#[derive(Debug)]
struct HeldInner {
    used: AtomicUsize,
    max: usize,
}

impl HeldBytes {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { inner: Arc::new(HeldInner { used: AtomicUsize::new(0), max }) }
    }

    /// Takes `bytes` of the budget, or nothing if they are not there. More than the whole budget is granted when nothing
    /// else is held, so that one large message cannot wait for ever.
    pub fn try_acquire(&self, bytes: usize) -> Option<HeldPermit> {
        let max = self.inner.max;
        let take = |used: usize| (used == 0 || used.saturating_add(bytes) <= max).then(|| used.saturating_add(bytes));
        self.inner.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(HeldPermit { bytes, budget: self.clone() })
    }

    /// Whether so much is held that a source that can make its sender wait should: an eighth of the budget. What is beyond
    /// is for sources that cannot (a serial line), and for large messages.
    pub fn is_crowded(&self) -> bool {
        self.inner.used.load(Ordering::Relaxed) > self.inner.max / 8
    }

    /// Bytes taken and the most that may be taken.
    pub fn used_and_max(&self) -> (usize, usize) {
        (self.inner.used.load(Ordering::Relaxed), self.inner.max)
    }
}

/// Raw bytes of a generation, at most: decides memory (docs/decisions/0209).
const GENERATION_RAW_BYTES_MAX: u64 = 12 << 20;
/// Raw bytes written before room is looked for again, at most.
const GROUP_RAW_BYTES_MAX: u64 = 3 << 19;
const GENERATION_RAW_BYTES_MIN: u64 = 1 << 20;
const RESERVE_BYTES_MAX: u64 = 16 << 20;
/// What the reserve must be good for beside the segment that opening a generation takes: the files of a new
/// generation, `pos`, summaries.
const RESERVE_BESIDE_BYTES: u64 = 256 << 10;
/// Below this `max_bytes` segments are small.
const SMALL_BELOW_BYTES: u64 = 64 << 20;
/// Room for control entries, notes, snapshots and small files.
const CONTROL_BYTES: u64 = 256 << 10;

/// Sizes that follow from `max_bytes` (docs/decisions/0225).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The cap.
    pub(super) max_bytes: u64,
    /// A generation is closed at this many raw bytes (its snapshot not counted).
    pub(super) generation_raw_bytes: u64,
    /// What is written at once, raw, before room is looked for again.
    pub(super) group_raw_bytes: u64,
    pub(super) reserve_bytes: u64,
    pub(super) segment_bytes: usize,
    /// `damaged/` may take this much.
    pub(super) damaged_bytes_max: u64,
}

impl Sizes {
    pub(super) fn of(max_bytes: u64) -> Self {
        let part = max_bytes / 16;
        let segment_bytes = SEGMENT_BYTES[usize::from(max_bytes < SMALL_BELOW_BYTES)];
        Self {
            max_bytes,
            generation_raw_bytes: part.clamp(GENERATION_RAW_BYTES_MIN, GENERATION_RAW_BYTES_MAX),
            group_raw_bytes: (max_bytes / 64).min(GROUP_RAW_BYTES_MAX),
            reserve_bytes: part.clamp(segment_bytes as u64 + RESERVE_BESIDE_BYTES, RESERVE_BYTES_MAX),
            segment_bytes,
            damaged_bytes_max: part,
        }
    }

    /// Record bytes of the largest arrival that is taken: a quarter, so that no single message takes the disk from all
    /// others (docs/decisions/0236).
    pub(super) fn arrival_bytes_max(&self) -> u64 {
        self.max_bytes / 4
    }

    /// On a file system of `disk_bytes` in all, which may be smaller than the cap: a generation is what `drop_oldest` drops
    /// at once, so several must fit.
    pub(super) fn on_disk_of(self, disk_bytes: u64) -> Self {
        let most = Self::of(disk_bytes).generation_raw_bytes;
        Self { generation_raw_bytes: self.generation_raw_bytes.min(most), ..self }
    }

    /// Readings are taken while what is on disk stays at or below this. What is left is for control entries and notes,
    /// and for two segments: a database that is opened is filled up to a whole one, and the newest one and the one that
    /// is delivered may be.
    pub(super) fn readings_bytes_max(&self) -> u64 {
        self.max_bytes.saturating_sub(2 * self.segment_bytes as u64 + CONTROL_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back_when_they_are_dropped() {
        let held = HeldBytes::new(100);
        let first = held.try_acquire(60).unwrap();
        assert!(held.try_acquire(41).is_none());
        let second = held.try_acquire(40).unwrap();
        assert_eq!(held.used_and_max(), (100, 100));
        assert!(held.is_crowded());
        drop((first, second));
        assert!(!held.is_crowded());
        let large = held.try_acquire(1000).expect("nothing else is held");
        assert!(held.try_acquire(1).is_none());
        drop(large);
        assert_eq!(held.used_and_max(), (0, 100));
    }

    #[test]
    fn the_smallest_outbox_still_has_room_for_several_generations() {
        let sizes = Sizes::of(8 << 20);
        assert_eq!(sizes.segment_bytes, 512 << 10);
        let for_generations = sizes.readings_bytes_max() - sizes.reserve_bytes;
        assert!(for_generations >= 5 * sizes.generation_raw_bytes, "{for_generations}");
        assert!(sizes.reserve_bytes > sizes.segment_bytes as u64, "a generation can be opened when the disk is full");
        assert_eq!(Sizes::of(1 << 30).segment_bytes, 1 << 20);
        let small_disk = Sizes::of(1 << 30).on_disk_of(48 << 20);
        assert_eq!((small_disk.generation_raw_bytes, small_disk.max_bytes), (3 << 20, 1 << 30));
    }
}
