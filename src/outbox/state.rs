//! The file `state`: who this outbox is. Two slots (slots.rs), JSON inside, synced at every change. If it is lost, the
//! identity comes from the segments in the newest snapshot.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::outbox::{Identity, IdentityChange};
use crate::record::{Incarnation, Nonce};

use super::entry::Segment;
use super::format::{FORMAT, WRITER};
use super::slots::{self, Slots};
use super::wire::NUMBERS_END;

/// Incarnations kept by name. Those of older ones that still have undelivered readings are named by their segments.
const LIVES_MAX: usize = 16;
/// Longest cluster id that is kept; Kafka's own have 22 bytes.
const CLUSTER_BYTES_MAX: usize = 256;

/// One incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Life {
    /// Counts from 1.
    pub(super) number: u64,
    /// 32 hexadecimal digits.
    pub(super) id: String,
    /// The one before it, ours or foreign.
    pub(super) prev: Option<String>,
    /// First sequence it accounts for.
    pub(super) first_sequence: u64,
    /// Something was written under it; until then another start may take it over.
    #[serde(default = "yes")]
    pub(super) begun: bool,
}

/// Of files written before there was `begun`.
fn yes() -> bool {
    true
}

impl Life {
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        Incarnation::from_hex(&self.id)
    }
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Format of the directory (format.rs).
    pub(super) v: u32,
    /// Version of the program that wrote this file last; empty before 0.1.0 was out.
    #[serde(default)]
    pub(super) writer: String,
    pub(super) agent: String,
    /// Oldest first; the last one is in force.
    pub(super) lives: Vec<Life>,
    /// No index at or above was ever given out without this file saying so first.
    pub(super) index_limit: u64,
    /// Likewise for sequences: a new incarnation begins here, so that no number of the old one comes again.
    pub(super) sequence_limit: u64,
    #[serde(default)]
    pub(super) ever_began: bool,
    #[serde(default)]
    pub(super) session_number: u64,
    /// Nonce of the ledger record read last, and our own.
    #[serde(default)]
    pub(super) nonces: [String; 2],
    #[serde(default)]
    pub(super) clean: bool,
    #[serde(default)]
    pub(super) cluster: Option<String>,
}

impl State {
    pub(super) fn new(agent: &str) -> Self {
        Self {
            v: FORMAT,
            writer: WRITER.to_owned(),
            agent: agent.to_owned(),
            lives: Vec::new(),
            index_limit: 0,
            sequence_limit: 0,
            ever_began: false,
            session_number: 0,
            nonces: [Nonce::default().to_hex(), Nonce::default().to_hex()],
            clean: true,
            cluster: None,
        }
    }

    /// Everything that is counted on from.
    fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        let lives = self.lives.iter().flat_map(|life| [life.number, life.first_sequence]);
        lives.chain([self.index_limit, self.sequence_limit, self.session_number])
    }

    /// The incarnation in force.
    pub(super) fn life(&self) -> Option<&Life> {
        self.lives.last()
    }

    /// Begins an incarnation after `previous`.
    pub(super) fn begin_life(&mut self, id: Incarnation, previous: Option<Incarnation>, first_sequence: u64) {
        if self.life().is_some_and(|life| !life.begun) {
            self.lives.pop();
        }
        let number = self.life().map_or(1, |life| life.number + 1);
        let prev = previous.map(Incarnation::to_hex);
        self.lives.push(Life { number, id: id.to_hex(), prev, first_sequence, begun: false });
        let excess = self.lives.len().saturating_sub(LIVES_MAX);
        self.lives.drain(..excess);
    }

    /// Makes a change of delivery's.
    pub(super) fn change(&mut self, change: &IdentityChange) {
        match change {
            IdentityChange::SessionBegins { ledger, own } => {
                self.nonces = [ledger.to_hex(), own.to_hex()];
                self.session_number += 1;
                self.clean = false;
                self.ever_began = true;
            }
            IdentityChange::CleanEnd => self.clean = true,
            IdentityChange::Cluster(id) if id.len() > CLUSTER_BYTES_MAX => {
                log::error!(
                    "the cluster calls itself by {} bytes: that name is not kept, and no change of it is seen",
                    id.len()
                );
            }
            IdentityChange::Cluster(id) => self.cluster = Some(id.clone()),
            IdentityChange::Previous(previous) => {
                if let Some(life) = self.lives.last_mut() {
                    life.prev = Some(previous.to_hex());
                }
            }
        }
    }

    /// What delivery sees. `undelivered_from` is the first sequence that Kafka may not have.
    pub(super) fn identity(&self, segment: Nonce, segments: &[Segment], undelivered_from: u64) -> Identity {
        let last = self.lives.len().saturating_sub(1);
        // A life is over when the next one began at or below what is delivered.
        let open = |at: usize| self.lives.get(at + 1).is_none_or(|next| next.first_sequence > undelivered_from);
        let named =
            (0..self.lives.len()).filter(|at| *at == last || open(*at)).filter_map(|at| self.lives[at].incarnation());
        let named: Vec<_> = named.collect();
        let oldest = self.lives.first().map_or(0, |life| life.number);
        let mut known: Vec<_> = segments.iter().filter(|segment| segment.incarnation_number < oldest).collect();
        known.dedup_by_key(|segment| segment.incarnation);
        let known = known.into_iter().map(|segment| segment.incarnation).chain(named);
        let nonce = |at: usize| Nonce::from_hex(&self.nonces[at]).unwrap_or_default();
        Identity {
            incarnation: self.life().and_then(Life::incarnation).unwrap_or(Incarnation([0; 16])),
            previous: self.life().and_then(|life| Incarnation::from_hex(life.prev.as_deref()?)),
            known: known.collect(),
            ever_began: self.ever_began,
            segment,
            segments: segments.iter().map(|segment| segment.nonce).collect(),
            session_nonces: [nonce(0), nonce(1)],
            session_number: self.session_number,
            clean: self.clean,
            cluster_id: self.cluster.clone(),
        }
    }
}

/// The open file and what it holds.
#[derive(Debug)]
pub(super) struct StateFile {
    slots: Slots,
    pub(super) state: State,
}

/// What the slots held.
#[derive(Debug)]
pub(super) enum Loaded {
    /// A state of some agent.
    State(State),
    /// Nothing valid.
    Nothing,
    /// A whole payload that is no state: of another program.
    Unknown,
}

fn parse(payload: Option<Vec<u8>>) -> Loaded {
    match payload {
        None => Loaded::Nothing,
        Some(payload) => match serde_json::from_slice::<State>(&payload) {
            Ok(state) if state.numbers().all(|number| number < NUMBERS_END) => Loaded::State(state),
            _ => Loaded::Unknown,
        },
    }
}

/// Reads without changing anything.
pub(super) fn read(path: &Path) -> io::Result<Loaded> {
    match slots::read(path) {
        Ok(payload) => Ok(parse(payload)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Loaded::Nothing),
        Err(error) => Err(error),
    }
}

impl StateFile {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path, agent: &str) -> io::Result<(Self, Loaded)> {
        let (slots, payload) = Slots::open(path)?;
        let loaded = parse(payload);
        let state = match &loaded {
            Loaded::State(state) => state.clone(),
            _ => State::new(agent),
        };
        Ok((Self { slots, state }, loaded))
    }

    /// Changes the state durably; on an error the old one stays in force.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state.clone();
        change(&mut state);
        state.writer = WRITER.to_owned();
        let payload = serde_json::to_vec(&state).map_err(io::Error::other)?;
        self.slots.write(&payload)?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_state_fits_its_slot() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(&dir.path().join("state"), &"x".repeat(64)).unwrap();
        for n in 0..10_000u64 {
            let id = Incarnation(u128::MAX.wrapping_sub(u128::from(n)).to_be_bytes());
            file.state.begin_life(id, Some(id), u64::MAX);
            let number = file.state.lives.len() as u64;
            file.state.lives.iter_mut().for_each(|life| life.begun = true);
            assert!(number <= LIVES_MAX as u64);
        }
        file.state.lives.iter_mut().for_each(|life| life.number = u64::MAX);
        (file.state.index_limit, file.state.sequence_limit, file.state.session_number) = (u64::MAX, u64::MAX, u64::MAX);
        file.state.change(&IdentityChange::Cluster("c".repeat(CLUSTER_BYTES_MAX)));
        file.update(|state| state.change(&IdentityChange::CleanEnd)).unwrap();
        file.state.change(&IdentityChange::Cluster("d".repeat(100_000)));
        file.update(|_| {}).unwrap();
        assert_eq!(file.state.cluster, Some("c".repeat(CLUSTER_BYTES_MAX)));
    }

    #[test]
    fn a_start_that_failed_before_it_wrote_costs_no_incarnation() {
        let mut state = State::new("gw");
        let id = |n| Incarnation([n; 16]);
        state.begin_life(id(1), None, 1);
        state.lives[0].begun = true;
        for _ in 0..1000 {
            state.begin_life(id(2), Some(id(1)), 100);
        }
        assert_eq!(state.lives.iter().map(|life| life.number).collect::<Vec<_>>(), [1, 2]);
        assert!(state.lives[0].begun, "{state:?}");
    }
}
