//! What a purge or a replay would do, told from the files: nothing is opened but copies, and nothing changes.
//!
//! A start may find more than is seen here: it repairs what is damaged. What cannot be read is told as such.

use super::super::directory::{disk_bytes, disk_size};
use super::super::limits::{FLOOR_BYTES_MIN, Sizes};
use super::super::reader::walk::Shelf;
use super::super::survey::{Copies, Hold, Pace, Survey};
use super::super::{in_doubt_at_start, run};
use super::LookError;
use super::files::Files;
use super::live::Shelves;
use super::looker::Looker;
use crate::clock;
use crate::config;
use crate::outbox::{Cause, Change, ChangeError, Left, Purged, Replayed, Selection, Step};

/// Nobody waits between two steps here.
const LOOK: Pace = Pace { bytes_max: 2 << 20, copies: false };

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum WouldError {
    /// The outbox cannot be looked at.
    #[error(transparent)]
    Look(#[from] LookError),
    /// It would not be done either.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

fn files(looker: &Looker) -> &Files {
    match &looker.walk.shelf {
        Shelves::Files(files) => files,
        Shelves::Live(_) => unreachable!("a running outbox is asked itself"),
    }
}

pub(super) fn purge(looker: &mut Looker, selection: &Selection) -> Result<Purged, WouldError> {
    selection.check_purge()?;
    let step = |change: &Change| -> Result<Step<Purged>, WouldError> {
        let mut survey = survey(files(looker));
        let hold = survey.hold.clone();
        let plans = survey.purge(&mut looker.walk, change, |_| hold);
        let to = plans.report.to;
        Ok(Step { report: plans.report, to, next: plans.next })
    };
    let mut purged = run(Change { selection: selection.clone(), dry_run: true }, step, |_: &Purged| ())?;
    let files = files(looker);
    files.still_idle()?;
    purged.left.extend(lost(files, &purged));
    Ok(purged)
}

pub(super) fn replay(
    looker: &mut Looker,
    selection: &Selection,
    config: &config::Outbox,
) -> Result<Replayed, WouldError> {
    selection.check_replay()?;
    if files(looker).state.is_none() {
        let text = "its file state is lost, which says whose the readings are; a start of the daemon repairs it";
        return Err(LookError::Store(text.to_owned()).into());
    }
    let step = |change: &Change| -> Result<Step<Replayed>, WouldError> {
        let survey = survey(files(looker));
        let (from, to) = survey.delivered(&change.selection);
        let room_bytes = room_bytes(files(looker), config);
        if from > to {
            let report = Replayed { dry_run: true, room_bytes, ..Replayed::default() };
            return Ok(Step { report, to, next: None });
        }
        let Copies { mut report, .. } = survey.copies(&mut looker.walk, (from, to), change, LOOK)?;
        report.room_bytes = room_bytes;
        let next = (report.reached < to).then_some(report.reached + 1);
        Ok(Step { report, to, next })
    };
    let replayed = run(Change { selection: selection.clone(), dry_run: true }, step, |_: &Replayed| ())?;
    files(looker).still_idle()?;
    Ok(replayed)
}

fn survey(files: &Files) -> Survey {
    let sight = files.sight();
    let (committed, durable) = (files.committed(), sight.durable_sequence);
    let clean = files.state.as_ref().is_some_and(|state| state.clean);
    Survey {
        generations: files.listed.clone(),
        durable,
        notes: sight.notes,
        purges: sight.purges,
        boot_id: clock::boot_id().into(),
        agent: files.state.as_ref().map(|state| state.agent.clone()).unwrap_or_default(),
        lives: files.state.as_ref().map(|state| state.lives.clone()).unwrap_or_default(),
        hold: Hold { committed, protected: in_doubt_at_start(clean, committed, durable), ..Hold::default() },
    }
}

/// Generations of which nobody knows what they hold: it may be meant. The next start sees whether it can be repaired.
fn lost(files: &Files, purged: &Purged) -> Vec<Left> {
    let listed = &files.listed;
    let acked = files.position.map_or(0, |position| position.next_sequence).max(files.end.1);
    let lost = files.unreadable.iter().map(|(id, why)| {
        let before = listed.iter().filter(|listed| listed.id < *id).map(|listed| listed.end_sequence()).max();
        let after = listed.iter().filter(|listed| listed.id > *id).map(|listed| listed.first_sequence).min();
        let from = before.unwrap_or(1).max(files.committed() + 1).max(purged.from);
        let to = after.unwrap_or(acked).saturating_sub(1);
        Left { from, to, cause: Cause::Unreadable, why: format!("{id} cannot be read: {why}") }
    });
    lost.filter(|left| left.from <= left.to).collect()
}

/// Room for readings, as a start would find it.
fn room_bytes(files: &Files, config: &config::Outbox) -> u64 {
    let sizes = Sizes::of(config.max_bytes.0).on_disk_of(disk_size(&files.state_dir));
    let used = disk_bytes(&files.state_dir) - disk_bytes(&files.directory.file("reserve")) + sizes.reserve_bytes;
    let free = files.directory.free().unwrap_or_default().bytes;
    sizes.readings_bytes_max().saturating_sub(used).min(free.saturating_sub(FLOOR_BYTES_MIN))
}
