//! What the outbox costs the medium, and how long it would do so: bytes per day at the rate of the last minutes.
//!
//! What reaches the medium cannot be seen from here in whole. Counted are the pages of files that this process made dirty
//! (`write_bytes` of `/proc/self/io`: everything below the state directory, sled's rewriting included) and the syncs.
//! What the journal of the file system adds is assumed per sync ([`JOURNAL_BYTES_PER_SYNC`]); what a card does inside
//! (erase blocks far larger than a page) is its own secret. docs/outbox.md compares the estimate with a device's counter.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What ext4 writes to its journal and its tables for a sync that makes a file longer, measured at a loop device
/// (docs/outbox.md, "Flash wear").
pub(super) const JOURNAL_BYTES_PER_SYNC: u64 = 16 << 10;
/// Samples are at least this far apart.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// Samples kept: ten minutes.
const SAMPLES_MAX: usize = 60;
const DAY_SECONDS: f64 = 86_400.0;

/// Counters at one moment. They never fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes of pages this process had written; `None` where the kernel does not say.
    pub(super) process_bytes: Option<u64>,
    pub(super) syncs: u64,
    /// Bytes of values made durable.
    pub(super) payload_bytes: u64,
}

/// The rate over some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    /// Bytes that go to the medium per day.
    pub(super) daily_bytes: u64,
    /// Bytes to the medium per byte of payload; `None` if there was none.
    pub(super) per_payload_byte: Option<f64>,
    /// Over how long it was measured.
    pub(super) over: Duration,
}

/// Counters of the last ten minutes.
#[derive(Debug, Default)]
pub(super) struct Wear(VecDeque<(Instant, Counts)>);

impl Wear {
    /// Keeps the counters, if the last ones are old enough.
    pub(super) fn sample(&mut self, now: Instant, counts: Counts) {
        if self.0.back().is_some_and(|(last, _)| now.saturating_duration_since(*last) < SAMPLE_EVERY) {
            return;
        }
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now, counts));
    }

    /// From the oldest sample to now; `None` before there is anything to say.
    pub(super) fn estimate(&self, now: Instant, counts: Counts) -> Option<Estimate> {
        let (then, before) = self.0.front()?;
        let over = now.saturating_duration_since(*then);
        if over < SAMPLE_EVERY {
            return None;
        }
        let pages = counts.process_bytes?.saturating_sub(before.process_bytes?);
        let bytes = pages + counts.syncs.saturating_sub(before.syncs) * JOURNAL_BYTES_PER_SYNC;
        let payload = counts.payload_bytes.saturating_sub(before.payload_bytes);
        Some(Estimate {
            daily_bytes: (bytes as f64 / over.as_secs_f64() * DAY_SECONDS) as u64,
            per_payload_byte: (payload > 0).then(|| bytes as f64 / payload as f64),
            over,
        })
    }
}

/// Bytes of pages this process has had written to disks so far; `None` on a kernel without task accounting.
pub(super) fn process_bytes() -> Option<u64> {
    let io = std::fs::read_to_string("/proc/self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(process_bytes: u64, syncs: u64, payload_bytes: u64) -> Counts {
        Counts { process_bytes: Some(process_bytes), syncs, payload_bytes }
    }

    #[test]
    fn pages_and_journal_of_the_last_minutes_become_bytes_per_day() {
        let (mut wear, start) = (Wear::default(), Instant::now());
        wear.sample(start, counts(1000, 5, 70));
        assert_eq!(wear.estimate(start, counts(9000, 6, 170)), None, "no time has passed");
        let now = start + Duration::from_secs(20);
        let found = wear.estimate(now, counts(9000, 6, 170)).unwrap();
        let bytes = 8000 + JOURNAL_BYTES_PER_SYNC;
        assert_eq!(found.daily_bytes, bytes * 86_400 / 20);
        assert_eq!(found.per_payload_byte, Some(bytes as f64 / 100.0));
        let unknown = Counts { process_bytes: None, ..counts(0, 6, 170) };
        assert_eq!(wear.estimate(now, unknown), None, "what the kernel does not say is not guessed");
        assert_eq!(wear.estimate(now, counts(9000, 5, 70)).unwrap().per_payload_byte, None);
    }

    #[test]
    fn what_was_ten_minutes_ago_no_longer_counts() {
        let (mut wear, start) = (Wear::default(), Instant::now());
        for second in 0..3600 {
            // A burst in the first minute, silence after it.
            wear.sample(start + Duration::from_secs(second), counts(1_000_000 * second.min(60), 0, 0));
        }
        assert_eq!(wear.0.len(), SAMPLES_MAX);
        let now = start + Duration::from_secs(3600);
        let found = wear.estimate(now, counts(60_000_000, 0, 0)).unwrap();
        assert_eq!(found.daily_bytes, 0);
        assert!(found.over <= Duration::from_secs(610), "{:?}", found.over);
    }

    #[test]
    fn the_kernel_says_what_this_process_writes() {
        let before = process_bytes().expect("Linux with task accounting has /proc/self/io");
        // Not in tmpfs, where nothing goes to a disk: beside the test program itself.
        let beside = std::env::current_exe().unwrap();
        let mut file = tempfile::NamedTempFile::new_in(beside.parent().unwrap()).unwrap();
        std::io::Write::write_all(&mut file, &vec![7; 1 << 20]).unwrap();
        file.as_file().sync_all().unwrap();
        let after = process_bytes().unwrap();
        assert!(after - before >= 1 << 20, "{before} {after}");
    }
}
