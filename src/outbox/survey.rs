//! What somebody meets who is about to change the outbox: which generations, whose readings, how old. Looks and decides;
//! changes nothing. The writer makes one of what it has open, and does what is planned; where no daemon runs one is made of
//! the files, and says the same (`look/change.rs`).
//!
//! `survey/plan.rs` is about purges, `survey/copies.rs` about replays.

mod copies;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;

use crate::clock;
use crate::outbox::{Cause, Left, Purged};
use crate::record::{Flags, Kind, SourceId, Stored};

use super::note::Notes;
use super::purge::Purges;
use super::reader::place::Found;
use super::reader::walk::{Shelf, Trouble, Walk};
use super::state::{Life, State};
use super::view::{Listed, View};

pub(super) use copies::{Copies, Pace};
pub(super) use plan::{Plan, Plans};

/// First and last sequence, inclusive.
pub(super) type Range = (u64, u64);

/// Generations that are read to find where the old readings end.
const AGE_READ_MAX: usize = 4;

/// The log at one moment.
#[derive(Debug)]
pub(super) struct Survey {
    /// Oldest first.
    pub(super) generations: Vec<Listed>,
    /// Last sequence on the medium.
    pub(super) durable: u64,
    pub(super) notes: Arc<Notes>,
    pub(super) purges: Arc<Purges>,
    /// Of this process.
    pub(super) boot_id: ByteString,
    pub(super) agent: String,
    pub(super) lives: Vec<Life>,
    pub(super) hold: Hold,
}

/// What delivery has, and what it and others hold. It goes on meanwhile, so this is of one moment, too.
#[derive(Debug, Clone, Default)]
pub(super) struct Hold {
    /// Last sequence that Kafka has.
    pub(super) committed: u64,
    /// What a transaction with open outcome may hold.
    pub(super) protected: Option<Range>,
    /// Numbers of generations that somebody reads.
    pub(super) read: BTreeSet<u64>,
}

impl Hold {
    pub(super) fn of(view: &View) -> Self {
        let numbers = view.generations.iter().map(|listed| listed.id.number);
        let read = numbers.filter(|number| view.marks.holds(*number)).collect();
        Self { committed: view.committed, protected: view.protected, read }
    }
}

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

impl Survey {
    /// Of a running outbox. `durable`: last sequence on the medium.
    pub(super) fn of(view: &View, state: &State, boot_id: &ByteString, durable: u64) -> Self {
        Self {
            generations: view.generations.iter().cloned().collect(),
            durable,
            notes: view.notes.clone(),
            purges: view.purges.clone(),
            boot_id: boot_id.clone(),
            agent: state.agent.clone(),
            lives: state.lives.clone(),
            hold: Hold::of(view),
        }
    }

    /// Generations with readings in this range, oldest first.
    fn within(&self, from: u64, to: u64) -> Vec<Listed> {
        let holds = |listed: &&Listed| {
            let first = listed.first_sequence;
            first <= to && self.last_of(listed) >= from.max(first)
        };
        self.generations.iter().filter(holds).cloned().collect()
    }

    /// Last durable sequence of a generation; below its first if it holds none.
    fn last_of(&self, listed: &Listed) -> u64 {
        listed.end_sequence().saturating_sub(1).min(self.durable)
    }

    /// Readings in these ranges of a generation that neither a note nor a purge names yet; of one source, or of all.
    fn count_readings<S: Shelf>(
        &self,
        walk: &mut Walk<S>,
        listed: &Listed,
        ranges: &[(u64, u64)],
        source: Option<&SourceId>,
    ) -> Count {
        let Some((first, last)) = ranges.first().zip(ranges.last()).map(|(first, last)| (first.0, last.1)) else {
            return Count::default();
        };
        let whole = (first, last) == (listed.first_sequence, self.last_of(listed)) && ranges.len() == 1;
        let untouched = !self.purges.touch(first, last) && self.notes.uncovered(first, last) == [(first, last)];
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
        let read = read(walk, (first, last), |seen| match seen {
            Seen::Reading(stored) => {
                let (sequence, reading) = (stored.sequence.0, &stored.reading);
                let meant = ranges.iter().any(|(from, to)| *from <= sequence && sequence <= *to)
                    && source.is_none_or(|source| stored.source == *source && reading.kind != Kind::Gap)
                    && self.notes.covering(sequence).is_none()
                    && self.purges.naming(sequence, &stored.source, reading.kind).is_none();
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
            let open = ranges.iter().flat_map(|range| self.notes.uncovered(from.max(range.0), to.min(range.1)));
            count.unread.extend(open.map(|(from, to)| Left { from, to, cause, why: why.clone() }));
        }
        count
    }

    /// The last sequence that came at least this long ago; what stands before it came earlier. 0: none is known to be so old.
    /// And what follows, if nobody can read how old it is.
    ///
    /// By the boot clock for readings of this boot; for others by stamps of a synchronised clock. A copy stands where it was
    /// copied, not where it came.
    fn older_through<S: Shelf>(&self, walk: &mut Walk<S>, age: Duration) -> (u64, Option<Left>) {
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let generations = &self.generations;
        let whole = generations.iter().rposition(|listed| self.is_older(listed, age_ns));
        let mut through = whole.map_or(0, |at| self.last_of(&generations[at]));
        let mut unknown: Option<Left> = None;
        for listed in generations.iter().skip(whole.map_or(0, |at| at + 1)).take(AGE_READ_MAX) {
            let mut old = None;
            let read = read(walk, (listed.first_sequence, self.last_of(listed)), |seen| match seen {
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
        if stored.boot_id == self.boot_id {
            return reading.received.mono_ns.saturating_add(age_ns) < now.mono_ns;
        }
        let age = now.wall_ns.saturating_sub(reading.received.wall_ns);
        clock::synchronised()
            && !reading.flags.contains(Flags::UNSYNCHRONISED)
            && u64::try_from(age).is_ok_and(|age| age > age_ns)
    }

    /// Whether the youngest reading of a generation came at least this long ago.
    fn is_older(&self, listed: &Listed, age_ns: u64) -> bool {
        listed.closed.as_ref().is_some_and(|summary| summary.is_older(age_ns, &self.boot_id))
    }
}

/// Hands what stands in a range on to `visit`; beside an error the sequence where it is.
fn read<S: Shelf>(
    walk: &mut Walk<S>,
    (from, to): Range,
    mut visit: impl FnMut(Seen<'_>),
) -> Result<(), (u64, Trouble)> {
    let sight = walk.sight();
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
