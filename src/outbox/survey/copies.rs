//! What a replay copies: delivered readings that are still kept, up to what one step may take.

use crate::outbox::{Change, ChangeError, Replayed, Selection};
use crate::record::{Flags, Incarnation, Kind, Reading, SourceId, Stored};

use super::super::reader::place::Found;
use super::super::reader::walk::{Shelf, Trouble, Walk};
use super::super::state::Life;
use super::{Range, Survey};

/// How much one step may take.
#[derive(Debug, Clone, Copy)]
pub(in crate::outbox) struct Pace {
    /// Record bytes looked at; one reading is, however large it is.
    pub(in crate::outbox) bytes_max: u64,
    /// Whether the copies are wanted, or only what they would be.
    pub(in crate::outbox) copies: bool,
}

/// What a step found.
#[derive(Debug, Default)]
pub(in crate::outbox) struct Copies {
    pub(in crate::outbox) report: Replayed,
    /// Original sequence and the copy.
    pub(in crate::outbox) copies: Vec<(u64, SourceId, Reading)>,
    seen: u64,
    looked_bytes: u64,
}

impl Survey {
    /// The delivered part of a selection: first and last sequence; nothing, if the first is above the last.
    pub(in crate::outbox) fn delivered(&self, selection: &Selection) -> Range {
        let oldest = self.generations.first().map_or(u64::MAX, |listed| listed.first_sequence);
        let committed = self.hold.committed;
        (selection.from.unwrap_or(1).max(oldest), selection.to.map_or(committed, |to| to.min(committed)))
    }

    /// What one step is about: from `from` on, as much as its pace allows.
    pub(in crate::outbox) fn copies<S: Shelf>(
        &self,
        walk: &mut Walk<S>,
        (from, to): (u64, u64),
        change: &Change,
        pace: Pace,
    ) -> Result<Copies, ChangeError> {
        let mut found = Copies::default();
        (found.report.dry_run, found.report.from, found.report.reached) = (change.dry_run, from, to);
        let mut density = Density::default();
        let sight = walk.sight();
        let mut next = from;
        while next <= to {
            let stored = match walk.find(next, &sight).map_err(refused)? {
                Found::Reading(stored) => stored,
                Found::Missing(end, _) => {
                    next = end + 1;
                    continue;
                }
                Found::End => unreachable!("find() goes on to the next generation"),
            };
            let bytes = stored.reading.record_bytes() as u64;
            if found.looked_bytes + bytes > pace.bytes_max && found.seen > 0 {
                found.report.reached = next - 1;
                walk.keep(stored);
                break;
            }
            found.looked_bytes += bytes;
            found.seen += 1;
            match self.wanted(&stored, &change.selection, &mut found.report) {
                Wanted::Not => {}
                Wanted::Gone => found.seen -= 1,
                Wanted::Of(life) => {
                    if density.through < next {
                        density = self.density_at(next);
                    }
                    found.report.count(&stored.source, bytes, density.on_disk(bytes));
                    if pace.copies {
                        found.copies.push((next, stored.source.clone(), copy_of(&stored, &self.agent, life)));
                    }
                }
            }
            next += 1;
        }
        found.report.missing = found.report.reached - from + 1 - found.seen;
        Ok(found)
    }

    fn density_at(&self, sequence: u64) -> Density {
        let listed = self.generations.iter().rev().find(|listed| listed.holds(sequence));
        let closed = listed.and_then(|listed| listed.closed.as_ref().map(|summary| (listed.disk_bytes, summary)));
        closed.map_or(Density::default(), |(disk_bytes, summary)| Density {
            through: summary.end_sequence - 1,
            disk_bytes,
            record_bytes: summary.record_bytes,
        })
    }

    fn wanted(&self, stored: &Stored, selection: &Selection, report: &mut Replayed) -> Wanted {
        let (sequence, reading) = (stored.sequence.0, &stored.reading);
        let given_up = self.notes.covering(sequence).is_some()
            || self.purges.naming(sequence, &stored.source, reading.kind).is_some();
        if given_up {
            return Wanted::Gone;
        }
        if selection.source.as_deref().is_some_and(|source| source != stored.source.as_str()) {
            return Wanted::Not;
        }
        if reading.kind == Kind::Gap {
            report.gaps += 1;
            return Wanted::Not;
        }
        if selection.since_ns.is_some() || selection.until_ns.is_some() {
            if reading.flags.contains(Flags::UNSYNCHRONISED) {
                report.untimed += 1;
                return Wanted::Not;
            }
            let at = reading.received.wall_ns;
            if selection.since_ns.is_some_and(|since| at < since) || selection.until_ns.is_some_and(|until| at >= until)
            {
                return Wanted::Not;
            }
        }
        let life = self.lives.iter().rev().find(|life| life.first_sequence <= sequence).and_then(Life::incarnation);
        life.map_or(Wanted::Gone, Wanted::Of)
    }
}

fn refused(trouble: Trouble) -> ChangeError {
    let why = match trouble {
        Trouble::Damaged(id, why) => format!("{id} cannot be read ({why})"),
        Trouble::Later(why) | Trouble::Busy(why) | Trouble::Store(why) => why,
    };
    ChangeError::Refused(format!(
        "{why}: look at it with `fieldpost outbox verify`, or leave it out with --from and --to"
    ))
}

/// What readings take on disk in one generation.
#[derive(Default)]
struct Density {
    /// Its last sequence.
    through: u64,
    disk_bytes: u64,
    record_bytes: u64,
}

impl Density {
    /// Estimated; as they are where that is not known.
    fn on_disk(&self, bytes: u64) -> u64 {
        (bytes * self.disk_bytes).checked_div(self.record_bytes).map_or(bytes, |part| part + 1)
    }
}

/// Whether a reading is to be copied.
enum Wanted {
    Of(Incarnation),
    Not,
    /// It was given up, or whose it is is no longer known.
    Gone,
}

impl Replayed {
    fn count(&mut self, source: &SourceId, bytes: u64, disk_bytes: u64) {
        self.readings += 1;
        self.bytes += bytes;
        self.disk_bytes += disk_bytes;
        match self.sources.get_mut(source.as_str()) {
            Some(count) => *count += 1,
            None => {
                self.sources.insert(source.as_str().to_owned(), 1);
            }
        }
    }
}

/// A copy keeps what the original says, and names the first origin.
fn copy_of(stored: &Stored, agent: &str, life: Incarnation) -> Reading {
    let mut copy = stored.reading.clone();
    copy.flags = copy.flags.with(Flags::REPLAY);
    if copy.replay_of.is_empty() {
        copy.replay_of = format!("{agent}/{}/{}", life.epoch(), stored.sequence).into();
    }
    copy
}
