//! What the owner changes in the outbox: gives up what waits (`purge`), sends again what is kept (`replay`).
//!
//! Both go through the writer in steps, so that intake goes on between them and a crash at any moment leaves a whole log:
//! the steps that were answered hold, the rest is untouched. Who asks, here or over the control socket, asks step by step.

use std::collections::BTreeMap;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::Outbox;
use super::writer::Command;

/// Which readings. All conditions must hold; sequences are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// From this sequence on.
    pub from: Option<u64>,
    /// Through this sequence; default: all that is there when it begins.
    pub to: Option<u64>,
    /// Of this source only.
    pub source: Option<String>,
    /// That came at least this many milliseconds ago. Only for a purge.
    pub older_than_ms: Option<u64>,
    /// Received at this time or later, nanoseconds since 1970-01-01 UTC. Only for a replay.
    pub since_ns: Option<i64>,
    /// Received before this time, nanoseconds since 1970-01-01 UTC. Only for a replay.
    pub until_ns: Option<i64>,
}

/// One step of a change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What is left of the selection.
    pub selection: Selection,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Step<R> {
    /// Durable, unless it is a dry run.
    pub report: R,
    /// The end of the selection as the first step found it, inclusive: what comes meanwhile is not meant.
    pub to: u64,
    /// Where the next step begins.
    pub next: Option<u64>,
}

/// What a purge did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Purged {
    /// Nothing was changed: this is what would go.
    pub dry_run: bool,
    /// First sequence looked at.
    pub from: u64,
    /// Last sequence of the selection, inclusive.
    pub to: u64,
    /// Last sequence that is dealt with, inclusive.
    pub reached: u64,
    /// Readings that waited and are given up; gap records will name them.
    pub readings: u64,
    /// Their record bytes.
    pub bytes: u64,
    /// Their number per source.
    pub sources: BTreeMap<String, u64>,
    /// When the oldest of them came, RFC 3339.
    pub oldest: Option<String>,
    /// When the newest of them came, RFC 3339.
    pub newest: Option<String>,
    /// Generations removed, with what was delivered and kept in them.
    pub generations: u64,
    /// Bytes that gave back.
    pub freed_bytes: u64,
    /// Readings that stay although they were meant, and why.
    pub left: Vec<Left>,
    /// Ranges given up by their sequences although nobody can read what stands there, and why. They are in `readings`, and
    /// with a source in `sources` where a generation holds no other; not in `bytes`.
    #[serde(default)]
    pub unread: Vec<Left>,
}

/// A range that a change left alone, or could not look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// First sequence.
    pub from: u64,
    /// Last sequence, inclusive.
    pub to: u64,
    /// Why, as one word.
    pub cause: Cause,
    /// Why, for humans.
    pub why: String,
}

impl Left {
    /// Sequences in it.
    pub fn sequences(&self) -> u64 {
        (self.to + 1).saturating_sub(self.from)
    }

    /// Adds it to a list; neighbours of one reason become one.
    fn join(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if last.to + 1 == self.from && last.cause == self.cause && last.why == self.why => {
                last.to = self.to;
            }
            _ => list.push(self),
        }
    }
}

/// Why a range was left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A transaction whose outcome is open may hold it. That ends by itself.
    InDoubt,
    /// It cannot be read now; another try may do.
    NotNow,
    /// It cannot be read: damaged, or of a later program.
    Unreadable,
}

/// What a replay did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Replayed {
    /// Nothing was copied: this is what would be.
    pub dry_run: bool,
    /// First sequence looked at: the first one selected that is still kept.
    pub from: u64,
    /// Last sequence that is dealt with, inclusive. A replay that was cut short goes on after it.
    pub reached: u64,
    /// Readings copied to the tail.
    pub readings: u64,
    /// Their record bytes.
    pub bytes: u64,
    /// What the copies take on disk, estimated from the originals.
    pub disk_bytes: u64,
    /// Room on disk for readings, before the copies of the last step.
    pub room_bytes: u64,
    /// Their number per source.
    pub sources: BTreeMap<String, u64>,
    /// Sequence of the first copy.
    pub first_copy: Option<u64>,
    /// Sequence of the last copy.
    pub last_copy: Option<u64>,
    /// Gap records in the range: what was lost is not sent again.
    pub gaps: u64,
    /// Sequences in the range that are not there: dropped, purged or damaged.
    pub missing: u64,
    /// Readings without a trustworthy time, passed over because a time was asked for.
    pub untimed: u64,
    /// Why it ended before its end.
    pub stopped: Option<String>,
}

/// Why a change was not made, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The selection makes no sense.
    #[error("{0}")]
    Selection(String),
    /// The outbox cannot do it now.
    #[error("{0}")]
    Refused(String),
    /// Who asked went away before it began: nothing was done.
    #[error("who asked is gone")]
    Unwanted,
    /// The outbox is closed.
    #[error("the outbox is closed")]
    Closed,
}

/// A report that grows step by step.
pub trait Report: Default {
    /// Adds what a further step did.
    fn add(&mut self, step: Self);
    /// Whether there is no use in a further step.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Asks step after step, until the selection is done with or stopped. `progress` gets the sum after each step; after an error
/// what it got last holds.
pub fn run<R: Report, E>(
    mut change: Change,
    mut ask: impl FnMut(&Change) -> Result<Step<R>, E>,
    mut progress: impl FnMut(&R),
) -> Result<R, E> {
    let mut total = R::default();
    loop {
        let step = ask(&change)?;
        total.add(step.report);
        progress(&total);
        let Some(next) = step.next.filter(|_| !total.is_stopped()) else { return Ok(total) };
        let selection = Selection { from: Some(next), to: Some(step.to), older_than_ms: None, ..change.selection };
        change = Change { selection, ..change };
    }
}

impl Outbox {
    /// One step of a purge: gives up what waits and removes what is kept. What a transaction with open outcome may hold
    /// stays, and is told. Blocks the thread.
    pub fn purge(&self, change: &Change) -> Result<Step<Purged>, ChangeError> {
        let asker = Arc::new(());
        self.purge_for(&Arc::downgrade(&asker), change)
    }

    /// Like [`Self::purge`], for somebody who may go away: then a step that has not begun is not made.
    pub fn purge_for(&self, asker: &Weak<()>, change: &Change) -> Result<Step<Purged>, ChangeError> {
        change.selection.check_purge()?;
        self.ask(|done| Command::Purge(change.clone(), asker.clone(), done))?
    }

    /// One step of a replay: copies delivered readings that are still kept to the tail. Blocks the thread.
    pub fn replay(&self, change: &Change) -> Result<Step<Replayed>, ChangeError> {
        let asker = Arc::new(());
        self.replay_for(&Arc::downgrade(&asker), change)
    }

    /// Like [`Self::replay`], for somebody who may go away: then a step that has not begun is not made.
    pub fn replay_for(&self, asker: &Weak<()>, change: &Change) -> Result<Step<Replayed>, ChangeError> {
        change.selection.check_replay()?;
        self.ask(|done| Command::Replay(change.clone(), asker.clone(), done))?
    }

    /// Asks the writer; it answers when it has time.
    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, ChangeError> {
        let (done, answer) = sync_channel(1);
        self.commands.send(command(done)).map_err(|_| ChangeError::Closed)?;
        answer.recv().map_err(|_| ChangeError::Closed)
    }
}

impl Selection {
    pub(super) fn check_purge(&self) -> Result<(), ChangeError> {
        if self.since_ns.or(self.until_ns).is_some() {
            return Err(ChangeError::Selection("a purge goes by age, not by since and until".to_owned()));
        }
        self.check()
    }

    pub(super) fn check_replay(&self) -> Result<(), ChangeError> {
        if self.older_than_ms.is_some() {
            return Err(ChangeError::Selection("a replay goes by since and until, not by age".to_owned()));
        }
        self.check()
    }

    fn check(&self) -> Result<(), ChangeError> {
        let backwards = |from: Option<i128>, to: Option<i128>| from.zip(to).is_some_and(|(from, to)| to < from);
        if backwards(self.from.map(i128::from), self.to.map(i128::from)) {
            return Err(ChangeError::Selection("the range ends before it begins".to_owned()));
        }
        if backwards(self.since_ns.map(i128::from), self.until_ns.map(i128::from)) {
            return Err(ChangeError::Selection("the time ends before it begins".to_owned()));
        }
        Ok(())
    }
}

fn add_sources(sources: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (source, count) in more {
        *sources.entry(source).or_default() += count;
    }
}

impl Report for Purged {
    fn add(&mut self, step: Self) {
        self.dry_run = step.dry_run;
        if self.from == 0 {
            self.from = step.from;
        }
        self.to = self.to.max(step.to);
        self.reached = self.reached.max(step.reached);
        self.readings += step.readings;
        self.bytes += step.bytes;
        self.generations += step.generations;
        self.freed_bytes += step.freed_bytes;
        add_sources(&mut self.sources, step.sources);
        self.oldest = [self.oldest.take(), step.oldest].into_iter().flatten().min();
        self.newest = self.newest.take().max(step.newest);
        step.left.into_iter().for_each(|left| left.join(&mut self.left));
        step.unread.into_iter().for_each(|unread| unread.join(&mut self.unread));
    }
}

impl Report for Replayed {
    fn add(&mut self, step: Self) {
        self.dry_run = step.dry_run;
        if self.from == 0 {
            self.from = step.from;
        }
        self.reached = self.reached.max(step.reached);
        self.readings += step.readings;
        self.bytes += step.bytes;
        self.disk_bytes += step.disk_bytes;
        self.room_bytes = step.room_bytes;
        add_sources(&mut self.sources, step.sources);
        self.first_copy = self.first_copy.or(step.first_copy);
        self.last_copy = step.last_copy.or(self.last_copy);
        self.gaps += step.gaps;
        self.missing += step.missing;
        self.untimed += step.untimed;
        self.stopped = step.stopped;
    }

    fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }
}
