//! Room on disk, and what is done when there is none.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::config::outbox::WhenFull;

use super::super::directory::{Free, GenerationId, disk_bytes};
use super::super::limits::{CONTROL_BYTES, FLOOR_BYTES_MIN};
use super::super::view::Listed;
use super::reserve::Reserve;
use super::{ROOM_EVERY, Writer};

/// What lies beside the generations is measured this often, and so are closed generations when there is no room.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// Directory, `conf` and marks of the newest generation.
const MARKS_BYTES: u64 = 16 << 10;
/// Room for so many segments above all floors is plenty: a database that is opened takes one.
const ROOMY_SEGMENTS: u64 = 4;
/// Free inodes for a new generation and what belongs to it.
const INODES_MIN: u64 = 32;

/// Why there is no room for readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    /// `max_bytes` is reached.
    Cap,
    /// The file system has so little free space that `free_space_floor` is reached, or none at all.
    Space { free: u64 },
    /// The file system has no free inodes.
    Inodes,
    /// A write was refused for want of space, whatever the file system says about it (a quota).
    Refused(String),
}

/// What is known of the room on disk.
#[derive(Debug)]
pub(super) struct Room {
    /// Why there is none for readings, if so.
    lack: Option<Lack>,
    /// A write was refused for want of space; until then it counts.
    refused: Option<(String, Instant)>,
    pub(super) reserve: Reserve,
    /// Generations that are out of the catalogue and could not be removed. It is tried again.
    pub(super) unremoved: Vec<GenerationId>,
    /// Bytes on disk of `damaged/`.
    pub(super) damaged_bytes: u64,
    /// Bytes on disk of all else but listed generations and the reserve.
    beside_bytes: u64,
    measured_at: Option<Instant>,
    /// Bytes on disk of the newest generation.
    current_bytes: u64,
    /// What they were when the outbox became full, or when the generation was made after that.
    full_from_bytes: Option<u64>,
    free: Free,
    pub(super) looked_at: Instant,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            lack: None,
            refused: None,
            reserve: Reserve::default(),
            unremoved: Vec::new(),
            damaged_bytes: 0,
            beside_bytes: 0,
            measured_at: None,
            current_bytes: 0,
            full_from_bytes: None,
            free: Free::default(),
            looked_at: Instant::now(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.lack.is_some()
    }

    /// The newest generation is another one.
    pub(super) fn begins_anew(&mut self) {
        (self.current_bytes, self.full_from_bytes) = (0, None);
    }

    /// Some may have been made: look soon.
    pub(super) fn look_soon(&mut self) {
        self.refused = None;
        self.looked_at = Instant::now().checked_sub(ROOM_EVERY).unwrap_or(self.looked_at);
    }

    /// A write was refused for want of space: so there is none for a while, or until something is removed.
    pub(super) fn refused(&mut self, why: String, during: Duration) {
        self.refused = Some((why, Instant::now() + during));
    }
}

impl Writer {
    /// Measures, makes room by the policy, and keeps the result. Nothing may be under way.
    pub(super) fn look_for_room(&mut self) {
        self.room.looked_at = Instant::now();
        self.measure();
        while let Some(lack) = self.lack() {
            if !self.make_room(&lack) {
                self.shared.view().is_roomy = false;
                return self.be_full(lack);
            }
            self.measure();
        }
        let is_roomy = self.left_bytes() > self.floor_bytes() + ROOMY_SEGMENTS * self.sizes.segment_bytes as u64;
        self.shared.view().is_roomy = is_roomy;
        if self.room.lack.take().is_some() {
            log::info!("the outbox has room again");
            self.set_state("ok");
        }
        self.regain_reserve();
    }

    /// Whether something was removed so that there may be room.
    fn make_room(&mut self, lack: &Lack) -> bool {
        if self.remove_retained() {
            return true;
        }
        if *lack == Lack::Cap && self.measure_closed() {
            return true;
        }
        // Undelivered readings make room only for others that wait, and only if that can be enough.
        let may_drop = self.config.when_full == WhenFull::DropOldest && !self.queue.is_empty();
        may_drop && self.could_help(lack) && self.drop_oldest()
    }

    /// Whether dropping all that is held could end the lack: what others took of the disk is not ours to make up for.
    fn could_help(&self, lack: &Lack) -> bool {
        let view = self.shared.view();
        let closed = view.generations.iter().filter(|listed| listed.closed.is_some());
        match lack {
            Lack::Cap | Lack::Refused(_) => true,
            Lack::Space { free } => {
                let held: u64 = closed.map(|listed| listed.disk_bytes).sum();
                free + held >= self.floor_bytes() + self.need_bytes() + self.missing_reserve_bytes()
            }
            // A generation is at least four files.
            Lack::Inodes => self.room.free.inodes + 4 * closed.count() as u64 >= INODES_MIN,
        }
    }

    fn be_full(&mut self, lack: Lack) {
        if self.room.lack.as_ref() != Some(&lack) {
            let first = self.room.lack.is_none();
            self.room.lack = Some(lack);
            if first {
                log::warn!("the outbox is full: {}; {}", self.why_full(), full_means(self.config.when_full));
            }
        }
        self.set_state(&self.full_state());
    }

    /// For `/status`: `full`, and why unless it is the cap.
    pub(super) fn full_state(&self) -> String {
        match &self.room.lack {
            None => "ok".to_owned(),
            Some(Lack::Cap) => "full".to_owned(),
            Some(_) => format!("full: {}", self.why_full()),
        }
    }

    fn why_full(&self) -> String {
        match &self.room.lack {
            None => String::new(),
            Some(Lack::Cap) => {
                format!("it takes {} bytes of max_bytes = {}", self.shared.view().bytes, self.sizes.max_bytes)
            }
            Some(Lack::Space { .. }) => {
                format!("the file system has less than {} bytes free (free_space_floor)", self.floor_bytes())
            }
            Some(Lack::Inodes) => "the file system has no inodes free".to_owned(),
            Some(Lack::Refused(why)) => format!("the file system refused a write ({why})"),
        }
    }

    /// When nothing waits, no commit looks for room: what was refused is told all the same as soon as there is some.
    pub(super) fn leave_full(&mut self) {
        let is_owed = self.room.is_full() || self.is_untold;
        if is_owed && self.queue.is_empty() && self.room.looked_at.elapsed() >= ROOM_EVERY {
            self.look_for_room();
            self.tell_refused();
        }
    }

    /// Free space of the file system that readings leave alone.
    pub(super) fn floor_bytes(&self) -> u64 {
        self.config.free_space_floor.0.max(self.sizes.group_raw_bytes + FLOOR_BYTES_MIN)
    }

    /// Bytes for the arrival that waits first; after a lack at least for a group, so that it does not come and go with
    /// every reading.
    fn need_bytes(&self) -> u64 {
        let first = self.queue.first_arrival_bytes();
        let first = if self.fits_never(first) { 0 } else { on_disk(first) };
        if self.room.is_full() { first.max(self.sizes.group_raw_bytes) } else { first }
    }

    /// Whether an arrival of so many bytes would not even fit an outbox that holds nothing else.
    pub(super) fn fits_never(&self, arrival_bytes: u64) -> bool {
        on_disk(arrival_bytes) + self.sizes.reserve_bytes + FLOOR_BYTES_MIN > self.sizes.readings_bytes_max()
    }

    /// What a group may write.
    pub(super) fn left_bytes(&self) -> u64 {
        let used = self.shared.view().bytes + self.missing_reserve_bytes();
        self.sizes.readings_bytes_max().saturating_sub(used).min(self.room.free.bytes.saturating_sub(FLOOR_BYTES_MIN))
    }

    fn lack(&self) -> Option<Lack> {
        let need = self.need_bytes();
        let free = self.room.free;
        if let Some((why, _)) = self.room.refused.as_ref().filter(|(_, until)| *until > Instant::now()) {
            return Some(Lack::Refused(why.clone()));
        }
        let reserve = self.missing_reserve_bytes();
        if self.shared.view().bytes + need + reserve > self.sizes.readings_bytes_max() {
            return Some(Lack::Cap);
        }
        if free.bytes < (self.floor_bytes() + need).saturating_add(reserve) {
            return Some(Lack::Space { free: free.bytes });
        }
        (free.inodes < INODES_MIN).then_some(Lack::Inodes)
    }

    /// Measures the disk: a stat and a statvfs; now and then the small files.
    pub(super) fn measure(&mut self) {
        if self.room.measured_at.is_none_or(|at| at.elapsed() >= MEASURE_EVERY) {
            self.room.measured_at = Some(Instant::now());
            self.remove_again();
            let listed: HashSet<_> = self.shared.view().generations.iter().map(|listed| listed.id).collect();
            self.room.beside_bytes = self.directory.beside_bytes(|id| listed.contains(&id));
            // Its owner may have emptied it to make room.
            self.measure_damaged();
        }
        let current = self.current.as_ref().map_or(0, |current| current.generation.disk_bytes() + MARKS_BYTES);
        self.room.current_bytes = current;
        if self.room.lack != Some(Lack::Cap) {
            self.room.full_from_bytes = None;
        } else if self.room.full_from_bytes.is_none() {
            self.room.full_from_bytes = Some(current);
        }
        let reserve = if self.room.reserve.is_there { self.sizes.reserve_bytes } else { 0 };
        let mut view = self.shared.view();
        let closed: u64 = view.generations.iter().map(|listed| listed.disk_bytes).sum();
        view.bytes = closed + current + reserve + self.room.damaged_bytes + self.room.beside_bytes;
        drop(view);
        self.room.free = self.directory.free().unwrap_or_default();
        self.shared.metrics.free_bytes.set(i64::try_from(self.room.free.bytes).unwrap_or(i64::MAX));
    }

    /// Readers make closed generations a little larger while they have them open. Whether any is smaller again.
    fn measure_closed(&self) -> bool {
        let closed: Vec<_> =
            self.shared.view().generations.iter().filter(|g| g.closed.is_some()).map(|g| g.id).collect();
        let sizes: Vec<_> = closed.into_iter().map(|id| (id, self.directory.generation_bytes(id))).collect();
        let mut view = self.shared.view();
        let mut shrunk = false;
        for (id, bytes) in sizes {
            if let Some(listed) = view.generations.iter_mut().find(|listed| listed.id == id) {
                shrunk |= bytes < listed.disk_bytes;
                listed.disk_bytes = bytes;
            }
        }
        shrunk
    }

    /// Whether the newest generation takes more disk than its raw bytes tell: groups of one small reading do; and when the
    /// outbox is full, entries that count what is refused fill the room left for them. In a generation of their own they
    /// leave the disk with the next one.
    pub(super) fn is_spread(&self) -> bool {
        let from = self.room.full_from_bytes.unwrap_or(u64::MAX);
        let spread_bytes = 2 * self.sizes.generation_raw_bytes + self.sizes.segment_bytes as u64;
        self.room.current_bytes > spread_bytes || self.room.current_bytes >= from.saturating_add(CONTROL_BYTES / 2)
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

    /// Measures `damaged/` anew.
    pub(super) fn measure_damaged(&mut self) {
        self.room.damaged_bytes = disk_bytes(&self.directory.damaged());
    }
}

/// Raw bytes as they may come to lie on disk when they do not compress.
fn on_disk(raw: u64) -> u64 {
    raw + raw / 16 + 4096
}

fn full_means(policy: WhenFull) -> &'static str {
    match policy {
        WhenFull::Block => "nothing more is taken from the sources until readings are delivered",
        WhenFull::DropOldest => "nothing more can be dropped at the moment, so nothing more is taken",
        WhenFull::DropNewest => "new readings are refused and counted",
    }
}
