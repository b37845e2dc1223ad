//! What is in a part of the log, for an owner who is about to change it: from summaries where they tell, else by reading.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock;
use crate::outbox::{Cause, Left, Purged};
use crate::record::{Flags, Kind, SourceId, Stored};

use super::super::reader::live::Live;
use super::super::reader::place::Found;
use super::super::reader::walk::{Shelf, Trouble, Walk};
use super::super::view::Listed;
use super::Writer;

/// Generations that are read to find where the old readings end.
const AGE_READ_MAX: usize = 4;

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
    /// Of the ranges, what could not be read: not counted.
    pub(super) unread: Vec<Left>,
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

    /// Counts ranges that nobody can read by their sequences: each is a reading, or tells of a loss.
    pub(super) fn add_unread(&mut self, unread: &[Left], source: Option<&SourceId>) {
        let sequences: u64 = unread.iter().map(Left::sequences).sum();
        self.readings += sequences;
        if let Some(source) = source.filter(|_| sequences > 0) {
            *self.sources.entry(source.as_str().to_owned()).or_default() += sequences;
        }
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
        let mut unread = Vec::new();
        let read = self.read((first, last), |seen| match seen {
            Seen::Reading(stored) => {
                let (sequence, reading) = (stored.sequence.0, &stored.reading);
                let meant = ranges.iter().any(|(from, to)| *from <= sequence && sequence <= *to)
                    && source.is_none_or(|source| stored.source == *source && reading.kind != Kind::Gap)
                    && self.memory.notes.covering(sequence).is_none()
                    && self.memory.purges.naming(sequence, &stored.source, reading.kind).is_none();
                if meant {
                    count.add(&stored.source, reading.record_bytes() as u64, reading.received.wall_ns);
                }
            }
            Seen::Missing(from, to, why) => unread.push((from, to, Cause::Unreadable, why)),
        });
        if let Err((at, trouble)) = read {
            let (cause, why) = told(trouble);
            unread.push((at, last, cause, why));
        }
        for (from, to, cause, why) in unread {
            let why = format!("{} cannot be read there: {why}", listed.id);
            log::warn!("a purge meets {from} to {to}: {why}");
            let open = ranges.iter().flat_map(|range| self.memory.notes.uncovered(from.max(range.0), to.min(range.1)));
            count.unread.extend(open.map(|(from, to)| Left { from, to, cause, why: why.clone() }));
        }
        count
    }

    /// The last sequence that came at least this long ago; what stands before it came earlier. 0: none is known to be so old.
    /// And what follows, if nobody can read how old it is.
    ///
    /// By the boot clock for readings of this boot; for others by stamps of a synchronised clock. A copy stands where it was
    /// copied, not where it came.
    pub(super) fn older_through(&self, age: Duration) -> (u64, Option<Left>) {
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let generations: Vec<_> = self.shared.view().generations.iter().cloned().collect();
        let whole = generations.iter().rposition(|listed| self.is_older(listed, age_ns));
        let mut through = whole.map_or(0, |at| self.last_of(&generations[at]));
        let mut unknown: Option<Left> = None;
        for listed in generations.iter().skip(whole.map_or(0, |at| at + 1)).take(AGE_READ_MAX) {
            let mut old = None;
            let read = self.read((listed.first_sequence, self.last_of(listed)), |seen| match seen {
                Seen::Reading(stored) if self.is_old(stored, age_ns) => old = Some(stored.sequence.0),
                _ => {}
            });
            if let Some(sequence) = old {
                // What stands before it came before it, whether it can be read or not.
                (through, unknown) = (sequence, None);
            }
            match read {
                Ok(()) if old.is_none() => break,
                Ok(()) => {}
                Err((at, trouble)) => {
                    let (cause, why) = told(trouble);
                    let why = format!("{} cannot be read ({why}), so how old it is is not known", listed.id);
                    log::warn!("a purge by age: {why}");
                    let (from, to) = (at.max(through + 1), self.last_of(listed));
                    unknown = Some(match unknown {
                        Some(before) => Left { to, ..before },
                        None => Left { from, to, cause, why },
                    });
                }
            }
        }
        (through, unknown)
    }

    fn is_old(&self, stored: &Stored, age_ns: u64) -> bool {
        let reading = &stored.reading;
        if reading.flags.contains(Flags::REPLAY) {
            return false;
        }
        let now = clock::now();
        if stored.boot_id == self.tail.segment.boot_id {
            return reading.received.mono_ns.saturating_add(age_ns) < now.mono_ns;
        }
        let age = now.wall_ns.saturating_sub(reading.received.wall_ns);
        clock::synchronised()
            && !reading.flags.contains(Flags::UNSYNCHRONISED)
            && u64::try_from(age).is_ok_and(|age| age > age_ns)
    }

    /// Hands what stands in a range on to `visit`; beside an error the sequence where it is.
    fn read(&self, (from, to): (u64, u64), mut visit: impl FnMut(Seen<'_>)) -> Result<(), (u64, Trouble)> {
        let mut walk = Walk::new(Live::new(self.shared.clone()));
        let sight = walk.shelf.sight();
        let mut next = from;
        while next <= to {
            match walk.find(next, &sight).map_err(|trouble| (next, trouble))? {
                Found::Reading(stored) => {
                    visit(Seen::Reading(&stored));
                    next += 1;
                }
                Found::Missing(end, why) => {
                    visit(Seen::Missing(next, end.min(to), why));
                    next = end + 1;
                }
                Found::End => unreachable!("find() goes on to the next generation"),
            }
        }
        Ok(())
    }
}

/// What stands in the log.
enum Seen<'a> {
    Reading(&'a Stored),
    /// Nothing that can be read from here to there, inclusive; why.
    Missing(u64, u64, String),
}

fn told(trouble: Trouble) -> (Cause, String) {
    match trouble {
        Trouble::Damaged(_, why) | Trouble::Later(why) => (Cause::Unreadable, why),
        Trouble::Busy(why) | Trouble::Store(why) => (Cause::NotNow, why),
    }
}
