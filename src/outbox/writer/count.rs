//! What is in a part of the log, for an owner who is about to change it: from summaries where they tell, else by reading.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::outbox::Purged;
use crate::record::{Flags, Kind, SourceId, Stored};

use super::super::block::Decoder;
use super::super::generation::{Generation, StoreError};
use super::super::reader::live::Live;
use super::super::reader::place::{Found, Place};
use super::super::reader::walk::Shelf;
use super::super::view::Listed;
use super::Writer;

/// Generations that are read to find where the old readings end.
const AGE_READ_MAX: usize = 4;
const BUSY_TRIES: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// Readings of some ranges.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) readings: u64,
    pub(super) bytes: u64,
    pub(super) sources: BTreeMap<String, u64>,
    /// Receipt of the oldest and the newest, wall clock.
    received: Option<(i64, i64)>,
    /// The generation was read for it.
    pub(super) was_read: bool,
}

impl Count {
    fn add(&mut self, source: &SourceId, bytes: u64, wall_ns: i64) {
        self.readings += 1;
        self.bytes += bytes;
        match self.sources.get_mut(source.as_str()) {
            Some(count) => *count += 1,
            None => {
                self.sources.insert(source.as_str().to_owned(), 1);
            }
        }
        self.saw(wall_ns, wall_ns);
    }

    fn saw(&mut self, oldest: i64, newest: i64) {
        let (first, last) = self.received.unwrap_or((oldest, newest));
        self.received = Some((first.min(oldest), last.max(newest)));
    }

    /// Adds it to a report.
    pub(super) fn tell(&self, purged: &mut Purged) {
        purged.readings += self.readings;
        purged.bytes += self.bytes;
        for (source, count) in &self.sources {
            *purged.sources.entry(source.clone()).or_default() += count;
        }
        if let Some((oldest, newest)) = self.received {
            // Text of one form and zone: it sorts like the times.
            let (oldest, newest) = (clock::rfc3339(oldest), clock::rfc3339(newest));
            purged.oldest = [purged.oldest.take(), Some(oldest)].into_iter().flatten().min();
            purged.newest = purged.newest.take().max(Some(newest));
        }
    }
}

impl Writer {
    /// Readings in these ranges of a generation that neither a note nor a purge names yet; of one source, or of all.
    pub(super) fn count_readings(&self, listed: &Listed, ranges: &[(u64, u64)], source: Option<&SourceId>) -> Count {
        let Some((first, last)) = ranges.first().zip(ranges.last()).map(|(first, last)| (first.0, last.1)) else {
            return Count::default();
        };
        let whole = (first, last) == (listed.first_sequence, self.last_of(listed)) && ranges.len() == 1;
        let untouched =
            !self.memory.purges.touch(first, last) && self.memory.notes.uncovered(first, last) == [(first, last)];
        if let Some(summary) =
            listed.closed.as_ref().filter(|_| whole && untouched && source.is_none_or(|s| listed.holds_only(s)))
        {
            let sources = summary.sources.clone();
            let mut count =
                Count { readings: last - first + 1, bytes: summary.record_bytes, sources, ..Count::default() };
            count.saw(summary.first_received_wall_ns, summary.last_received_wall_ns);
            return count;
        }
        let mut count = Count { was_read: true, ..Count::default() };
        let read = self.read(listed, first, |stored| {
            let (sequence, reading) = (stored.sequence.0, &stored.reading);
            let meant = ranges.iter().any(|(from, to)| *from <= sequence && sequence <= *to)
                && source.is_none_or(|source| stored.source == *source && reading.kind != Kind::Gap)
                && self.memory.notes.covering(sequence).is_none()
                && self.memory.purges.naming(sequence, &stored.source, reading.kind).is_none();
            if meant {
                count.add(&stored.source, reading.record_bytes() as u64, reading.received.wall_ns);
            }
            sequence < last
        });
        if let Err(error) = read {
            log::warn!("{} cannot be read ({error}): what is counted of it may be too little", listed.id);
        }
        count
    }

    /// The last sequence that came at least this long ago; what stands before it came earlier. 0: none is known to be so old.
    ///
    /// By the boot clock for readings of this boot; for others by stamps of a synchronised clock. A copy stands where it was
    /// copied, not where it came.
    pub(super) fn older_through(&self, age: Duration) -> u64 {
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let generations: Vec<_> = self.shared.view().generations.iter().cloned().collect();
        let whole = generations.iter().rposition(|listed| self.is_older(listed, age_ns));
        let mut through = whole.map_or(0, |at| self.last_of(&generations[at]));
        let (now, synchronised) = (clock::now(), clock::synchronised());
        for listed in generations.iter().skip(whole.map_or(0, |at| at + 1)).take(AGE_READ_MAX) {
            let mut old = None;
            let read = self.read(listed, listed.first_sequence, |stored| {
                let reading = &stored.reading;
                let is_old = if stored.boot_id == self.tail.segment.boot_id {
                    reading.received.mono_ns.saturating_add(age_ns) < now.mono_ns
                } else {
                    let age = now.wall_ns.saturating_sub(reading.received.wall_ns);
                    synchronised
                        && !reading.flags.contains(Flags::UNSYNCHRONISED)
                        && u64::try_from(age).is_ok_and(|age| age > age_ns)
                };
                if is_old && !reading.flags.contains(Flags::REPLAY) {
                    old = Some(stored.sequence.0);
                }
                true
            });
            if let Err(error) = read {
                log::warn!("{} cannot be read ({error}): its readings count as young", listed.id);
            }
            match old {
                Some(sequence) => through = sequence,
                None => break,
            }
        }
        through
    }

    /// Hands the readings of a generation from `from` on to `visit`, as long as it wants more. What is damaged is passed
    /// over; the drain tells of it.
    pub(super) fn read(
        &self,
        listed: &Listed,
        from: u64,
        mut visit: impl FnMut(&Stored) -> bool,
    ) -> Result<(), StoreError> {
        let mut shelf = Live::new(self.shared.clone());
        let (sight, mut decoder) = (shelf.sight(), Decoder::default());
        let end = listed.closed.as_ref().map_or(u64::MAX, |summary| summary.end_index).min(sight.durable_index + 1);
        let mut place = Place::start(open(&mut shelf, listed)?, Vec::new());
        let mut next = from;
        loop {
            match place.find(next, end, &sight, &mut decoder)? {
                Found::Reading(stored) if !visit(&stored) => return Ok(()),
                Found::Reading(_) => next += 1,
                Found::Missing(to, _) => next = to + 1,
                Found::End => return Ok(()),
            }
        }
    }
}

/// A database that somebody is just opening is waited for.
fn open(shelf: &mut Live, listed: &Listed) -> Result<Arc<Generation>, StoreError> {
    for _ in 0..BUSY_TRIES {
        let known = shelf.shared().view().generations.iter().find(|known| known.id == listed.id).cloned();
        match shelf.open(&known.ok_or(StoreError::Closed)?) {
            Err(StoreError::Busy(_)) => std::thread::sleep(BUSY_WAIT),
            opened => return opened,
        }
    }
    Err(StoreError::Busy("somebody is opening it".to_owned()))
}
