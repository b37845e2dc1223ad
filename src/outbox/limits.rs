//! Budgets: bytes held in memory, bytes on disk, free space; and the sizes that follow from `max_bytes`. Plain
//! arithmetic but for the counter of [`HeldBytes`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::record::SourceId;

use super::generation::SEGMENT_BYTES;

/// Bytes held of `held_bytes_max`; freed on drop.
#[derive(Debug)]
pub struct HeldPermit {
    bytes: usize,
    budget: HeldBytes,
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        let mut books = self.budget.books();
        books.used -= self.bytes;
        if let Some(at) = self.budget.source {
            books.sources[at].used -= self.bytes;
            books.used_outside -= if books.sources[at].outside { self.bytes } else { 0 };
        }
    }
}

/// The budget `held_bytes_max`: bytes received and not yet answered, all sources together. A source that the outbox does not
/// let in holds at most a sixteenth of it, and all such sources together a quarter: what they hold keeps nobody else waiting.
#[derive(Debug, Clone)]
pub struct HeldBytes {
    max: usize,
    inner: Arc<Mutex<Books>>,
    /// Place in the books.
    source: Option<usize>,
}

#[derive(Debug, Default)]
struct Books {
    used: usize,
    /// Of `used`, by sources that are outside.
    used_outside: usize,
    /// Found by place, for each message asks; as few as there are names.
    sources: Vec<OfSource>,
}

#[derive(Debug)]
struct OfSource {
    name: SourceId,
    used: usize,
    outside: bool,
}

impl HeldBytes {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { max, inner: Arc::default(), source: None }
    }

    /// The same budget, as one source uses it.
    #[must_use]
    pub fn of(&self, source: &SourceId) -> Self {
        let mut books = self.books();
        let known = books.sources.iter().position(|own| own.name == *source);
        let at = known.unwrap_or_else(|| {
            books.sources.push(OfSource { name: source.clone(), used: 0, outside: false });
            books.sources.len() - 1
        });
        drop(books);
        Self { source: Some(at), ..self.clone() }
    }

    /// Takes `bytes` of the budget, or nothing if they are not there. More than the whole budget is granted when nothing
    /// else is held, so that one large message cannot wait for ever.
    pub fn try_acquire(&self, bytes: usize) -> Option<HeldPermit> {
        let mut books = self.books();
        let own = self.source.map(|at| &books.sources[at]);
        if let Some(own) = own.filter(|own| own.outside && own.used > 0) {
            if own.used + bytes > self.max / 16 || books.used_outside + bytes > self.max / 4 {
                return None;
            }
        }
        if books.used > books.used_outside && books.used.saturating_add(bytes) > self.max {
            return None;
        }
        books.used += bytes;
        if let Some(at) = self.source {
            books.sources[at].used += bytes;
            books.used_outside += if books.sources[at].outside { bytes } else { 0 };
        }
        Some(HeldPermit { bytes, budget: self.clone() })
    }

    /// Whether so much is held that a source that can make its sender wait should: an eighth of the budget, or the outbox does
    /// not let this source in. What is beyond is for sources that cannot (a serial line), and for large messages.
    pub fn is_crowded(&self) -> bool {
        let books = self.books();
        self.is_outside_in(&books) || books.used - books.used_outside > self.max / 8
    }

    /// Whether the outbox does not let this source in (its share, or its priority).
    pub fn is_outside(&self) -> bool {
        self.is_outside_in(&self.books())
    }

    fn is_outside_in(&self, books: &Books) -> bool {
        self.source.is_some_and(|at| books.sources[at].outside)
    }

    /// The outbox lets this source in no more, or again.
    pub(super) fn set_outside(&self, outside: bool) {
        let Some(at) = self.source else { return };
        let mut books = self.books();
        let own = &mut books.sources[at];
        if own.outside != outside {
            own.outside = outside;
            let used = own.used;
            books.used_outside = if outside { books.used_outside + used } else { books.used_outside - used };
        }
    }

    /// Bytes taken by sources that the outbox lets in, and the most that may be taken.
    pub(super) fn inside_and_max(&self) -> (usize, usize) {
        let books = self.books();
        (books.used - books.used_outside, self.max)
    }

    /// Bytes taken and the most that may be taken.
    pub fn used_and_max(&self) -> (usize, usize) {
        (self.books().used, self.max)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a source may have of the outbox.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Part of `max_bytes`, above 0, at most 1.
    pub share: f64,
    /// 0 to 9: who is refused last when the outbox is nearly full.
    pub priority: u8,
}

impl Default for Terms {
    fn default() -> Self {
        Self { share: 1.0, priority: 0 }
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
pub(super) const CONTROL_BYTES: u64 = 256 << 10;

/// Free space that is never used up, whatever `free_space_floor` says: for a new generation, notes, `pos`.
pub(super) const FLOOR_BYTES_MIN: u64 = 256 << 10;

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
        let generation_raw_bytes = part.clamp(GENERATION_RAW_BYTES_MIN, GENERATION_RAW_BYTES_MAX);
        Self {
            max_bytes,
            generation_raw_bytes,
            group_raw_bytes: (max_bytes / 64).min(GROUP_RAW_BYTES_MAX),
            reserve_bytes: part.clamp(segment_bytes as u64 + RESERVE_BESIDE_BYTES, RESERVE_BYTES_MAX),
            segment_bytes,
            // One generation that does not compress must fit, filled up to a whole segment.
            damaged_bytes_max: part.max(generation_raw_bytes + generation_raw_bytes / 8 + segment_bytes as u64),
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

    /// Open notes may take this much: they stand in every snapshot, at the head of each generation.
    pub(super) fn notes_bytes_max(&self) -> u64 {
        self.generation_raw_bytes / 4
    }

    /// What may be on disk while a generation is rebuilt: then it is opened, and notes tell what is lost.
    pub(super) fn rebuilding_bytes_max(&self) -> u64 {
        self.max_bytes.saturating_sub(self.segment_bytes as u64 + CONTROL_BYTES)
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
    fn what_a_source_outside_holds_keeps_nobody_else_waiting() {
        let held = HeldBytes::new(1600);
        let (loud, quiet) = (held.of(&"loud".into()), held.of(&"quiet".into()));
        let before = loud.try_acquire(300).unwrap();
        assert!(quiet.is_crowded() && loud.is_crowded());
        loud.set_outside(true);
        assert!(loud.is_crowded() && loud.is_outside() && !quiet.is_crowded());
        assert!(loud.try_acquire(1).is_none(), "it holds more than a sixteenth");
        let large = quiet.try_acquire(1300).expect("the rest is there");
        drop(large);
        drop(before);
        assert_eq!(held.used_and_max(), (0, 1600));
        let more = loud.try_acquire(90).unwrap();
        assert!(loud.try_acquire(20).is_none());
        loud.set_outside(false);
        assert!(loud.try_acquire(20).is_some() && !loud.is_crowded());
        drop(more);
        assert_eq!(held.used_and_max(), (0, 1600));
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
