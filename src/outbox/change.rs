//! What the owner changes in the outbox: gives up what waits (`purge`), sends again what is kept (`replay`).
//!
//! Both go through the writer in steps, so that intake goes on between them and a crash at any moment leaves a whole log:
//! the steps that were answered hold, the rest is untouched.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::SourceId;

use super::Outbox;
use super::writer::{Command, PurgeStep};

/// Which readings. All conditions must hold; sequences are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// From this sequence on.
    pub from: Option<u64>,
    /// Through this sequence; default: all that is there when it begins.
    pub to: Option<u64>,
    /// Of this source only.
    pub source: Option<String>,
    /// That came at least this many milliseconds ago.
    pub older_than_ms: Option<u64>,
}

/// What a purge did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Purged {
    /// Nothing was changed: this is what would go.
    pub dry_run: bool,
    /// First sequence looked at.
    pub from: u64,
    /// Last sequence looked at, inclusive.
    pub to: u64,
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
    /// Databases removed, with what was delivered and kept in them.
    pub generations: u64,
    /// Bytes that gave back.
    pub freed_bytes: u64,
    /// Readings that stay although they were meant, and why.
    pub left: Vec<Left>,
}

/// A range that a change left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// First sequence.
    pub from: u64,
    /// Last sequence, inclusive.
    pub to: u64,
    /// Why.
    pub why: String,
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
    /// The outbox is closed.
    #[error("the outbox is closed")]
    Closed,
}

impl Outbox {
    /// Gives up what waits and removes what is kept, within the selection; with `dry_run` only says what that would be.
    /// When this returns, what it reports is durable. After an error the steps reported so far hold. What a transaction
    /// with open outcome may hold stays, and is told. Blocks the thread; `progress` is called after each step.
    pub fn purge(
        &self,
        selection: &Selection,
        dry_run: bool,
        mut progress: impl FnMut(&Purged),
    ) -> Result<Purged, ChangeError> {
        let from = selection.from.unwrap_or(1).max(1);
        if selection.to.is_some_and(|to| to < from) {
            return Err(ChangeError::Selection(format!(
                "there is nothing from {from} to {}",
                selection.to.unwrap_or(0)
            )));
        }
        let mut step = PurgeStep {
            from,
            to: selection.to,
            source: selection.source.as_deref().map(SourceId::from),
            older_than: selection.older_than_ms.map(Duration::from_millis),
            dry_run,
        };
        let mut total = Purged { dry_run, from, ..Purged::default() };
        loop {
            let done = self.ask(|done| Command::Purge(step.clone(), done))??;
            total.add(done.purged);
            total.to = done.to;
            progress(&total);
            let Some(next) = done.next else { return Ok(total) };
            // What comes meanwhile was not meant.
            step = PurgeStep { from: next, to: Some(done.to), older_than: None, ..step };
        }
    }

    /// Asks the writer; it answers when it has time.
    fn ask<T>(&self, command: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Command) -> Result<T, ChangeError> {
        let (done, answer) = std::sync::mpsc::sync_channel(1);
        self.commands.send(command(done)).map_err(|_| ChangeError::Closed)?;
        answer.recv().map_err(|_| ChangeError::Closed)
    }
}

impl Purged {
    /// Adds what a further step did.
    fn add(&mut self, step: Self) {
        self.readings += step.readings;
        self.bytes += step.bytes;
        self.generations += step.generations;
        self.freed_bytes += step.freed_bytes;
        for (source, count) in step.sources {
            *self.sources.entry(source).or_default() += count;
        }
        self.oldest = [self.oldest.take(), step.oldest].into_iter().flatten().min();
        self.newest = self.newest.take().max(step.newest);
        for left in step.left {
            match self.left.last_mut() {
                Some(last) if last.to + 1 == left.from && last.why == left.why => last.to = left.to,
                _ => self.left.push(left),
            }
        }
    }
}
