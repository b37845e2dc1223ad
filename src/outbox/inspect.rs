//! A look at an outbox from outside, without changing or opening anything: what files and names say.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::directory::{Directory, disk_bytes, pid_of};
use super::format;
use super::position::Position;
use super::slots;
use super::state::{self, Loaded};
use super::summary::Summary;

/// What `fieldpost outbox inspect` tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The directory.
    pub path: String,
    /// Pid of the running daemon, if one holds the lock.
    pub running: Option<u32>,
    /// Agent it belongs to, from `state`; absent if that is lost.
    pub agent: Option<String>,
    /// Incarnation in force.
    pub incarnation: Option<String>,
    /// Whether the last delivery session ended clean.
    pub clean: Option<bool>,
    /// Last sequence that Kafka has, from `pos`.
    pub committed: Option<u64>,
    /// The next sequence, from `pos`: at most a second behind a running daemon.
    pub next: Option<u64>,
    /// Databases, oldest first.
    pub generations: Vec<InspectedGeneration>,
    /// Bytes of everything.
    pub bytes: u64,
    /// Bytes of what was set aside.
    pub damaged_bytes: u64,
    /// What is wrong or unusual, in words.
    pub remarks: Vec<String>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectedGeneration {
    /// Name of its directory.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether it is closed.
    pub closed: bool,
    /// First sequence, if closed.
    pub first_sequence: Option<u64>,
    /// Last sequence, inclusive, if closed and not empty.
    pub last_sequence: Option<u64>,
    /// Readings per source, if closed.
    pub sources: Vec<(String, u64)>,
}

/// Looks at the outbox below `state_dir`.
pub(super) fn inspect(state_dir: &Path) -> io::Result<Inspection> {
    let directory = Directory::new(state_dir.join("outbox"));
    let mut remarks = Vec::new();
    let found = directory.list()?;
    let state = match state::read(&directory.file("state"))? {
        Loaded::State(state) => Some(state),
        Loaded::Nothing => {
            remarks.push("state is lost: the next start takes the identity from the log".to_owned());
            None
        }
        Loaded::Unknown => {
            remarks.push("state was written by an unknown version".to_owned());
            None
        }
    };
    let position = match slots::read(&directory.file("pos")) {
        Ok(payload) => payload.as_deref().and_then(Position::decode),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if position.is_none() {
        remarks.push("pos is lost: the ledger in Kafka knows what is delivered".to_owned());
    }
    if let Some(later) = format::find_later(&directory)? {
        remarks.push(later.to_string());
    }
    let newest = found.last().map(|found| found.id);
    let mut generations = Vec::new();
    for found in found {
        if !found.marked {
            remarks.push(format!("{} was never finished", found.id));
        }
        let summary = Summary::read(&directory.summary(found.id));
        if summary.is_none() && Some(found.id) != newest {
            remarks.push(format!("the summary of {} is lost: the next start rebuilds it", found.id));
        }
        generations.push(inspected(found.id.to_string(), directory.generation_bytes(found.id), summary));
    }
    let damaged_bytes = disk_bytes(&directory.damaged());
    if damaged_bytes > 0 {
        remarks.push(format!("{} holds generations that would not open", directory.damaged().display()));
    }
    Ok(Inspection {
        path: directory.path().display().to_string(),
        running: running(state_dir),
        agent: state.as_ref().map(|state| state.agent.clone()),
        incarnation: state.as_ref().and_then(|state| Some(state.life()?.id.clone())),
        clean: state.as_ref().map(|state| state.clean),
        committed: position.map(|position| position.committed),
        next: position.map(|position| position.next_sequence),
        generations,
        bytes: disk_bytes(directory.path()),
        damaged_bytes,
        remarks,
    })
}

fn inspected(name: String, bytes: u64, summary: Option<Summary>) -> InspectedGeneration {
    let last = summary.as_ref().filter(|summary| summary.end_sequence > summary.first_sequence);
    InspectedGeneration {
        name,
        bytes,
        closed: summary.is_some(),
        first_sequence: summary.as_ref().map(|summary| summary.first_sequence),
        last_sequence: last.map(|summary| summary.end_sequence - 1),
        sources: summary.map(|summary| summary.sources.into_iter().collect()).unwrap_or_default(),
    }
}

/// Pid of the daemon that holds the lock.
fn running(state_dir: &Path) -> Option<u32> {
    let path = state_dir.join("lock");
    let file = std::fs::File::open(&path).ok()?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => pid_of(&std::fs::read_to_string(path).ok()?),
        _ => None,
    }
}
