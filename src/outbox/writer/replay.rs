//! Copies delivered readings that are still kept to the tail of the log, a step at a time.
//!
//! Opening a database writes to the disk (the rest of a segment, a snapshot), so the one that is being copied stays open from
//! step to step: one at most, until the replay ends, its generation is removed, or nobody asks for a step any more.

use std::time::{Duration, Instant};

use crate::outbox::{Change, ChangeError, Replayed, Selection, Step};
use crate::record::{Flags, Incarnation, Kind, Reading, SourceId, Stored};

use super::super::reader::live::Live;
use super::super::reader::place;
use super::super::reader::walk::{Shelf, Trouble, Walk};
use super::super::state::Life;
use super::queue::Work;
use super::stop::Stop;
use super::{SYNC_STALL, Writer};

/// Record bytes that one step copies: intake waits for it, and so much is held in memory.
const STEP_BYTES_MAX: u64 = 256 << 10;
/// Record bytes that one step only looks at.
const LOOK_BYTES_MAX: u64 = 2 << 20;

/// Who asks for the next step does so at once; one who went away keeps no database open.
const STEP_WITHIN: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// Where a replay stands between two steps.
#[derive(Debug)]
pub(super) struct Replay {
    /// It holds no mark: what it has open may be removed, which closes it.
    walk: Walk<Live>,
    paused_at: Instant,
}

/// What a step found.
#[derive(Default)]
struct Found {
    report: Replayed,
    /// Original sequence and the copy.
    copies: Vec<(u64, SourceId, Reading)>,
    seen: u64,
    looked_bytes: u64,
}

impl Writer {
    /// One step of a replay. Nothing may be under way.
    pub(super) fn replay(&mut self, change: &Change) -> Result<Step<Replayed>, ChangeError> {
        let done = self.replay_step(change);
        if !done.as_ref().is_ok_and(|step| step.next.is_some() && step.report.stopped.is_none()) {
            self.replay = None;
        }
        done
    }

    /// Closes what a replay has open of which no step is asked for any more.
    pub(super) fn end_idle_replay(&mut self) {
        if self.replay.as_ref().is_some_and(|replay| replay.paused_at.elapsed() >= STEP_WITHIN) {
            self.replay = None;
        }
    }

    fn replay_step(&mut self, change: &Change) -> Result<Step<Replayed>, ChangeError> {
        debug_assert!(self.flights.is_empty());
        self.shared.progress.phase("copying", SYNC_STALL);
        let selection = &change.selection;
        let (committed, oldest) = {
            let view = self.shared.view();
            (view.committed, view.generations.front().map_or(u64::MAX, |listed| listed.first_sequence))
        };
        let to = selection.to.map_or(committed, |to| to.min(committed));
        let from = selection.from.unwrap_or(1).max(oldest);
        self.measure();
        let room_bytes = self.left_bytes();
        let nothing = Replayed { dry_run: change.dry_run, room_bytes, ..Replayed::default() };
        if from > to {
            return Ok(Step { report: nothing, to, next: None });
        }
        let found = self.look((from, to), change)?;
        let mut report = found.report;
        if !change.dry_run {
            let before = self.tail.durable_end_sequence;
            if let Err((first_left, why)) = self.copy(found.copies, report.disk_bytes) {
                let reached = first_left - 1;
                report = if reached < from { nothing } else { self.look((from, reached), change)?.report };
                (report.from, report.reached, report.stopped) = (from, reached, Some(why));
            }
            let after = self.tail.durable_end_sequence;
            (report.first_copy, report.last_copy) =
                ((after > before).then_some(before), (after > before).then_some(after - 1));
        }
        report.room_bytes = room_bytes;
        if report.readings > 0 && !change.dry_run {
            log::info!("copied on request: {} readings between {from} and {}", report.readings, report.reached);
        }
        let next = (report.reached < to).then_some(report.reached + 1);
        Ok(Step { report, to, next })
    }

    /// What one step is about: from `from` on, as much as its bounds allow.
    fn look(&mut self, range: (u64, u64), change: &Change) -> Result<Found, ChangeError> {
        let mut walk = match self.replay.take() {
            Some(replay) => replay.walk,
            None => Walk::new(Live::new(self.shared.clone())),
        };
        let found = self.look_by(&mut walk, range, change);
        walk.pause();
        self.replay = Some(Replay { walk, paused_at: Instant::now() });
        found
    }

    fn look_by(&self, walk: &mut Walk<Live>, (from, to): (u64, u64), change: &Change) -> Result<Found, ChangeError> {
        let mut found = Found::default();
        (found.report.dry_run, found.report.from, found.report.reached) = (change.dry_run, from, to);
        let lives = self.shared.state().state.lives.clone();
        let (agent, dry_run) = (self.shared.state().state.agent.clone(), change.dry_run);
        let bytes_max = if dry_run { LOOK_BYTES_MAX } else { STEP_BYTES_MAX };
        let mut density = Density::default();
        let sight = walk.shelf.sight();
        let mut next = from;
        while next <= to {
            let stored = match walk.find(next, &sight).map_err(refused)? {
                place::Found::Reading(stored) => *stored,
                place::Found::Missing(end, _) => {
                    next = end + 1;
                    continue;
                }
                place::Found::End => unreachable!("find() goes on to the next generation"),
            };
            let bytes = stored.reading.record_bytes() as u64;
            if found.looked_bytes + bytes > bytes_max && found.seen > 0 {
                found.report.reached = next - 1;
                walk.keep(stored);
                break;
            }
            found.looked_bytes += bytes;
            found.seen += 1;
            match self.wanted(&stored, &change.selection, &lives, &mut found.report) {
                Wanted::Not => {}
                Wanted::Gone => found.seen -= 1,
                Wanted::Of(life) => {
                    if density.through < next {
                        density = self.density_at(next);
                    }
                    found.report.count(&stored.source, bytes, density.on_disk(bytes));
                    if !dry_run {
                        found.copies.push((next, stored.source.clone(), copy_of(&stored, &agent, life)));
                    }
                }
            }
            next += 1;
        }
        found.report.missing = found.report.reached - from + 1 - found.seen;
        Ok(found)
    }

    fn density_at(&self, sequence: u64) -> Density {
        let view = self.shared.view();
        let listed = view.generations.iter().rev().find(|listed| listed.holds(sequence));
        let closed = listed.and_then(|listed| listed.closed.as_ref().map(|summary| (listed.disk_bytes, summary)));
        closed.map_or(Density::default(), |(disk_bytes, summary)| Density {
            through: summary.end_sequence - 1,
            disk_bytes,
            record_bytes: summary.record_bytes,
        })
    }

    fn wanted(&self, stored: &Stored, selection: &Selection, lives: &[Life], report: &mut Replayed) -> Wanted {
        let (sequence, reading) = (stored.sequence.0, &stored.reading);
        let given_up = self.memory.notes.covering(sequence).is_some()
            || self.memory.purges.naming(sequence, &stored.source, reading.kind).is_some();
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
        let life = lives.iter().rev().find(|life| life.first_sequence <= sequence).and_then(Life::incarnation);
        life.map_or(Wanted::Gone, Wanted::Of)
    }

    /// Appends the copies and waits until they are durable; else the first one that is not, and why.
    fn copy(&mut self, copies: Vec<(u64, SourceId, Reading)>, disk_bytes: u64) -> Result<(), (u64, String)> {
        let originals: Vec<u64> = copies.iter().map(|(sequence, ..)| *sequence).collect();
        let Some(first) = originals.first() else { return Ok(()) };
        // Not at the cost of what is kept: that may be what is copied.
        if self.room.is_full() || disk_bytes > self.left_bytes() {
            return Err((*first, "there is no room for more copies in the outbox".to_owned()));
        }
        let before = self.tail.durable_end_sequence;
        let Err(stop) = self.append_copies(copies) else {
            self.succeeded();
            return Ok(());
        };
        self.failed(&stop);
        self.queue.withdraw_own();
        let done = (self.tail.durable_end_sequence - before) as usize;
        originals.get(done).map_or(Ok(()), |left| Err((*left, format!("the outbox cannot be written now ({stop})"))))
    }

    fn append_copies(&mut self, copies: Vec<(u64, SourceId, Reading)>) -> Result<(), Stop> {
        if self.current.is_none() {
            self.make_generation()?;
        }
        self.raise_limits()?;
        for (_, source, reading) in copies {
            if self.current.as_ref().is_some_and(|current| self.is_grown(current)) {
                self.finish_group()?;
                self.rotate()?;
            }
            self.write(Work::Copy(source, Box::new(reading)));
            self.insert_ready()?;
        }
        self.finish_group()
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
