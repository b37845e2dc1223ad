//! What the outbox holds: positions, generations, sources, notes, refusals. Beside a daemon from its own view, exact;
//! without one from the files.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::directory::{Directory, disk_bytes};
use super::super::entry::{Refusal, Why};
use super::super::format::FORMAT;
use super::super::note::Notes;
use super::super::reader::walk::Shelf;
use super::super::state::State;
use super::super::summary::Summary;
use super::super::view::Listed;
use super::live::Shelves;
use super::looker::Looker;
use super::{Files, LookError};
use crate::clock;
use crate::record::SourceId;

/// What `fieldpost outbox inspect` tells. Sequences are inclusive, except `next`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The directory.
    pub path: String,
    /// Version of its format.
    pub format: u32,
    /// Pid of the daemon that tells this; absent if it was read from files.
    pub running: Option<u32>,
    /// Agent it belongs to, from `state`; absent if that is lost.
    pub agent: Option<String>,
    /// Incarnation in force, 32 hexadecimal digits.
    pub incarnation: Option<String>,
    /// Whether the last delivery session ended clean.
    pub clean: Option<bool>,
    /// Kafka cluster it delivers to.
    pub cluster: Option<String>,
    /// Last sequence that Kafka has; from files: as of at most a second before the end.
    pub committed: u64,
    /// Last sequence on the medium.
    pub durable: u64,
    /// The sequence the next reading gets.
    pub next: u64,
    /// Sequences that wait for delivery.
    pub waiting: u64,
    /// When the oldest waiting reading came, as well as it is known.
    pub oldest_waiting_at: Option<String>,
    /// Oldest first.
    pub generations: Vec<InspectedGeneration>,
    /// Readings on disk per source, delivered ones that are kept included.
    pub sources: BTreeMap<String, InspectedSource>,
    /// Ranges that will be told by gap records.
    pub notes: Vec<InspectedNote>,
    /// Readings refused by policy, per source.
    pub refusals: BTreeMap<String, InspectedRefusal>,
    /// Bytes of everything.
    pub bytes: u64,
    /// Bytes of delivered generations that are kept for replay.
    pub retained_bytes: u64,
    /// Bytes of what was set aside.
    pub damaged_bytes: u64,
    /// What was set aside: names below `damaged/`.
    pub damaged: Vec<String>,
    /// What is wrong or unusual, in words.
    pub remarks: Vec<String>,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectedGeneration {
    /// Name of its directory.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// `delivered` (kept for replay, or about to go), `partly`, `waiting`, `damaged`.
    pub state: String,
    /// Whether it is closed: the newest one of a running daemon is not.
    pub closed: bool,
    /// First sequence, if it holds any.
    pub first_sequence: Option<u64>,
    /// Last sequence, inclusive.
    pub last_sequence: Option<u64>,
    /// When its first reading came.
    pub oldest_at: Option<String>,
    /// When its last reading came.
    pub newest_at: Option<String>,
    /// Bytes of its readings as Kafka counts them.
    pub record_bytes: u64,
    /// Readings per source.
    pub sources: BTreeMap<String, u64>,
}

/// Readings of one source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InspectedSource {
    /// Readings on disk.
    pub readings: u64,
    /// Their bytes as Kafka counts them: exact where a generation holds this source only, else its share by number.
    pub record_bytes: u64,
}

/// A range that will not be delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InspectedNote {
    /// First sequence.
    pub from: u64,
    /// Last sequence.
    pub to: u64,
    /// Short word, as in the gap record.
    pub reason: String,
    /// When it was noted.
    pub noted_at: String,
}

/// Refusals of one source since the outbox was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InspectedRefusal {
    /// Readings refused.
    pub readings: u64,
    /// Their bytes as Kafka counts them.
    pub record_bytes: u64,
    /// How many of them a gap record has told.
    pub told: u64,
    /// Readings by reason: `drop_newest`, `share_max`, `priority`, `too_large`.
    pub reasons: BTreeMap<String, u64>,
}

/// By source and reason.
type Refusals = HashMap<(SourceId, Why), Refusal>;

/// What only the writer knows.
#[derive(Debug)]
pub(in crate::outbox) struct Counts {
    /// The newest generation.
    pub(in crate::outbox) newest: Option<Summary>,
    pub(in crate::outbox) newest_bytes: u64,
    pub(in crate::outbox) refusals: Refusals,
}

/// What both ways of looking have.
struct Facts {
    directory: Directory,
    state: Option<State>,
    listed: Vec<Listed>,
    unreadable: Vec<(String, u64)>,
    committed: u64,
    durable: u64,
    notes: Arc<Notes>,
    refusals: Refusals,
    running: Option<u32>,
    remarks: Vec<String>,
}

pub(super) fn inspect(looker: &mut Looker) -> Result<Inspection, LookError> {
    let facts = match &looker.walk.shelf {
        Shelves::Live(_) => live(looker)?,
        Shelves::Files(files) => from_files(files)?,
    };
    Ok(tell(facts))
}

fn live(looker: &Looker) -> Result<Facts, LookError> {
    let outbox = looker.outbox.as_ref().expect("live eyes have an outbox");
    let counts = outbox.counts().map_err(LookError::Busy)?;
    let shared = &outbox.shared;
    let state = shared.state().state.clone();
    let view = shared.view();
    let mut listed: Vec<_> = view.generations.iter().cloned().collect();
    if let (Some(newest), Some(summary)) = (listed.last_mut(), counts.newest) {
        if newest.closed.is_none() && newest.first_sequence == summary.first_sequence {
            (newest.closed, newest.disk_bytes) = (Some(Arc::new(summary)), counts.newest_bytes);
        }
    }
    Ok(Facts {
        directory: shared.directory.clone(),
        state: Some(state),
        listed,
        unreadable: Vec::new(),
        committed: view.committed,
        durable: view.durable_sequence,
        notes: view.notes.clone(),
        refusals: counts.refusals,
        running: Some(std::process::id()),
        remarks: Vec::new(),
    })
}

fn from_files(files: &Files) -> Result<Facts, LookError> {
    let mut remarks = Vec::new();
    if files.state.is_none() {
        remarks.push("state is lost: the next start takes the identity from the log".to_owned());
    }
    if files.position.is_none() {
        remarks.push("pos is lost: the ledger in Kafka knows what is delivered".to_owned());
    }
    for (id, why) in &files.unreadable {
        remarks.push(format!("{id} cannot be read: {why}"));
    }
    let acked = files.position.map_or(0, |position| position.next_sequence);
    if files.end.1 < acked {
        remarks.push(format!(
            "the log ends at sequence {}, but {} was acknowledged: see fieldpost outbox verify",
            files.end.1.saturating_sub(1),
            acked - 1
        ));
    }
    let newest = files.found.last().map(|found| found.id);
    for found in &files.found {
        if !found.marked {
            remarks.push(format!("{} was never finished", found.id));
        } else if Summary::read(&files.directory.summary(found.id)).is_none() && Some(found.id) != newest {
            remarks.push(format!("the summary of {} is lost: the next start rebuilds it", found.id));
        }
    }
    files.still_idle()?;
    Ok(Facts {
        directory: files.directory.clone(),
        state: files.state.clone(),
        listed: files.listed.clone(),
        unreadable: files
            .unreadable
            .iter()
            .map(|(id, _)| (id.to_string(), files.directory.generation_bytes(*id)))
            .collect(),
        committed: files.committed(),
        durable: files.sight().durable_sequence,
        notes: Arc::new(files.memory.notes.clone()),
        refusals: files.memory.refusals.clone(),
        running: None,
        remarks,
    })
}

fn tell(facts: Facts) -> Inspection {
    let Facts { directory, state, listed, committed, durable, notes, refusals, mut remarks, .. } = facts;
    let newest = listed.last().map(|listed| listed.id);
    let mut generations: Vec<_> = listed
        .iter()
        .map(|listed| generation(listed, committed, facts.running.is_none() || Some(listed.id) != newest))
        .collect();
    generations.extend(facts.unreadable.into_iter().map(|(name, bytes)| damaged_generation(name, bytes)));
    generations.sort_by(|one, other| one.name.cmp(&other.name));
    let damaged = names_in(&directory);
    if !damaged.is_empty() {
        remarks.push(format!("{} holds generations that were set aside", directory.damaged().display()));
    }
    let oldest = listed.iter().filter(|listed| listed.end_sequence() > committed + 1);
    let oldest = oldest.filter_map(|listed| listed.closed.as_ref()).find(|summary| !summary.sources.is_empty());
    Inspection {
        path: directory.path().display().to_string(),
        format: state.as_ref().map_or(FORMAT, |state| state.v),
        running: facts.running,
        agent: state.as_ref().map(|state| state.agent.clone()),
        incarnation: state.as_ref().and_then(|state| Some(state.life()?.id.clone())),
        clean: state.as_ref().map(|state| state.clean),
        cluster: state.as_ref().and_then(|state| state.cluster.clone()),
        committed,
        durable,
        next: durable + 1,
        waiting: durable.saturating_sub(committed),
        oldest_waiting_at: oldest.map(|summary| clock::rfc3339(summary.first_received_wall_ns)),
        retained_bytes: generations.iter().filter(|one| one.state == "delivered").map(|one| one.bytes).sum(),
        sources: sources(&listed),
        generations,
        notes: notes.iter().map(note).collect(),
        refusals: refused(&refusals),
        bytes: disk_bytes(directory.path()),
        damaged_bytes: if damaged.is_empty() { 0 } else { disk_bytes(&directory.damaged()) },
        damaged,
        remarks,
    }
}

fn note(note: &super::super::note::Note) -> InspectedNote {
    InspectedNote {
        from: note.from,
        to: note.to,
        reason: note.reason.to_string(),
        noted_at: clock::rfc3339(note.noted.wall_ns),
    }
}

fn refused(refusals: &Refusals) -> BTreeMap<String, InspectedRefusal> {
    let mut found: BTreeMap<String, InspectedRefusal> = BTreeMap::new();
    for ((source, why), refusal) in refusals {
        let own = found.entry(source.to_string()).or_default();
        own.readings += refusal.total;
        own.record_bytes += refusal.bytes;
        own.told += refusal.told;
        own.reasons.insert(why.as_str().to_owned(), refusal.total);
    }
    found
}

fn names_in(directory: &Directory) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory.damaged()) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn damaged_generation(name: String, bytes: u64) -> InspectedGeneration {
    InspectedGeneration {
        name,
        bytes,
        state: "damaged".to_owned(),
        closed: true,
        first_sequence: None,
        last_sequence: None,
        oldest_at: None,
        newest_at: None,
        record_bytes: 0,
        sources: BTreeMap::new(),
    }
}

fn generation(listed: &Listed, committed: u64, closed: bool) -> InspectedGeneration {
    let summary = listed.closed.as_deref().cloned().unwrap_or_default();
    let (first, end) = (listed.first_sequence, summary.end_sequence);
    let holds = listed.closed.is_some() && end > first;
    let state = match () {
        () if holds && end <= committed + 1 => "delivered",
        () if holds && first <= committed => "partly",
        () => "waiting",
    };
    let time = |ns: i64| (!summary.sources.is_empty()).then(|| clock::rfc3339(ns));
    InspectedGeneration {
        name: listed.id.to_string(),
        bytes: listed.disk_bytes,
        state: state.to_owned(),
        closed,
        first_sequence: holds.then_some(first),
        last_sequence: holds.then(|| end - 1),
        oldest_at: time(summary.first_received_wall_ns),
        newest_at: time(summary.last_received_wall_ns),
        record_bytes: summary.record_bytes,
        sources: summary.sources,
    }
}

fn sources(listed: &[Listed]) -> BTreeMap<String, InspectedSource> {
    let mut sources: BTreeMap<String, InspectedSource> = BTreeMap::new();
    for summary in listed.iter().filter_map(|listed| listed.closed.as_ref()) {
        let all: u64 = summary.sources.values().sum();
        for (name, count) in &summary.sources {
            let source = sources.entry(name.clone()).or_default();
            source.readings += count;
            let bytes = u128::from(summary.record_bytes) * u128::from(*count) / u128::from(all.max(1));
            source.record_bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        }
    }
    sources
}
