//! Copies delivered readings that are still kept to the tail of the log, a step at a time.

use crate::outbox::{Change, ChangeError, Replayed, Selection, Step};
use crate::record::{Flags, Incarnation, Kind, Reading, SourceId, Stored};

use super::super::state::Life;
use super::super::view::Listed;
use super::count::Seen;
use super::queue::Work;
use super::stop::Stop;
use super::{SYNC_STALL, Writer};

/// Record bytes that one step copies: intake waits for it, and so much is held in memory.
const STEP_BYTES_MAX: u64 = 256 << 10;
/// Record bytes that one step only looks at.
const LOOK_BYTES_MAX: u64 = 2 << 20;

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
    fn look(&self, (from, to): (u64, u64), change: &Change) -> Result<Found, ChangeError> {
        let mut found = Found::default();
        (found.report.dry_run, found.report.from, found.report.reached) = (change.dry_run, from, to);
        for listed in self.within(from, to) {
            if !self.look_in(&listed, (from, to), change, &mut found)? {
                break;
            }
        }
        found.report.missing = found.report.reached - from + 1 - found.seen;
        Ok(found)
    }

    /// Takes what is wanted of one generation; whether the step goes on with the next one.
    fn look_in(
        &self,
        listed: &Listed,
        (from, to): (u64, u64),
        change: &Change,
        found: &mut Found,
    ) -> Result<bool, ChangeError> {
        let lives = self.shared.state().state.lives.clone();
        let (agent, dry_run) = (self.shared.state().state.agent.clone(), change.dry_run);
        let on_disk = |bytes: u64| match &listed.closed {
            Some(summary) if summary.record_bytes > 0 => bytes * listed.disk_bytes / summary.record_bytes + 1,
            _ => bytes,
        };
        let mut go_on = true;
        let read = self.read(listed, from.max(listed.first_sequence), |seen| {
            // What is missing is counted by what was seen.
            let Seen::Reading(stored) = seen else { return true };
            let sequence = stored.sequence.0;
            if sequence > to {
                return false;
            }
            let bytes = stored.reading.record_bytes() as u64;
            let full = found.looked_bytes + bytes > if dry_run { LOOK_BYTES_MAX } else { STEP_BYTES_MAX };
            if full && found.seen > 0 {
                found.report.reached = sequence - 1;
                go_on = false;
                return false;
            }
            found.looked_bytes += bytes;
            found.seen += 1;
            match self.wanted(stored, &change.selection, &lives, &mut found.report) {
                Wanted::Not => {}
                Wanted::Gone => found.seen -= 1,
                Wanted::Of(life) => {
                    found.report.count(&stored.source, bytes, on_disk(bytes));
                    if !dry_run {
                        found.copies.push((sequence, stored.source.clone(), copy_of(stored, &agent, life)));
                    }
                }
            }
            true
        });
        match read {
            Ok(_) => Ok(go_on),
            Err((_, error)) => Err(ChangeError::Refused(format!(
                "{} cannot be read ({error}): look at it with `fieldpost outbox verify`, or leave it out with --from and --to",
                listed.id
            ))),
        }
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
