//! Copies delivered readings that are still kept to the tail of the log, a step at a time.
//!
//! Opening a database writes to the disk (the rest of a segment, a snapshot), so the one that is being copied stays open from
//! step to step: one at most, until the replay ends, its generation is removed, or nobody asks for a step any more.

use std::time::{Duration, Instant};

use crate::outbox::{Change, ChangeError, Replayed, Step};
use crate::record::{Reading, SourceId};

use super::super::reader::live::Live;
use super::super::reader::walk::Walk;
use super::super::survey::{Copies, Pace, Survey};
use super::queue::Work;
use super::stop::Stop;
use super::{SYNC_STALL, Writer};

/// What one step copies: intake waits for it, and so much is held in memory.
const COPY: Pace = Pace { bytes_max: 256 << 10, copies: true };
/// What one step only looks at.
const LOOK: Pace = Pace { bytes_max: 2 << 20, copies: false };

/// Who asks for the next step does so at once; one who went away keeps no database open.
const STEP_WITHIN: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// Where a replay stands between two steps.
#[derive(Debug)]
pub(super) struct Replay {
    /// It holds no mark: what it has open may be removed, which closes it.
    walk: Walk<Live>,
    paused_at: Instant,
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
        let survey = self.survey();
        let (from, to) = survey.delivered(&change.selection);
        self.measure();
        let room_bytes = self.left_bytes();
        let nothing = Replayed { dry_run: change.dry_run, room_bytes, ..Replayed::default() };
        if from > to {
            return Ok(Step { report: nothing, to, next: None });
        }
        let found = self.look(&survey, (from, to), change)?;
        let mut report = found.report;
        if !change.dry_run {
            let before = self.tail.durable_end_sequence;
            if let Err((first_left, why)) = self.copy(found.copies, report.disk_bytes) {
                let reached = first_left - 1;
                report = if reached < from { nothing } else { self.look(&survey, (from, reached), change)?.report };
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
    fn look(&mut self, survey: &Survey, range: (u64, u64), change: &Change) -> Result<Copies, ChangeError> {
        let mut walk = match self.replay.take() {
            Some(replay) => replay.walk,
            None => Walk::new(Live::new(self.shared.clone())),
        };
        let pace = if change.dry_run { LOOK } else { COPY };
        let found = survey.copies(&mut walk, range, change, pace);
        walk.pause();
        self.replay = Some(Replay { walk, paused_at: Instant::now() });
        found
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
