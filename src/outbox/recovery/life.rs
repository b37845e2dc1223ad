//! Where the log ends, who we are, and the segment of this process.
//!
//! A new incarnation begins whenever the end of the log cannot be trusted, so that no number is given twice: it is
//! shorter than `pos` says, `pos` is lost, or the newest generation is damaged or gone. What a kill or a power cut
//! leaves is no damage: a log that ends early, but not before `pos`; at most an arrival without its commit mark
//! (docs/decisions/0222).

use std::io;

use bytestring::ByteString;

use crate::clock;
use crate::outbox::OpenError;
use crate::record::{Incarnation, Nonce};

use super::super::entry::Segment;
use super::super::memory::Memory;
use super::super::position::Position;
use super::super::state::{Life, StateFile};
use super::losses::lose;
use super::newest::Tried;
use super::{LIMIT_STEP, Recovery, note};

/// How far a new incarnation jumps when no file says which numbers were given out.
const BLIND_JUMP: u64 = 1 << 32;

/// Where the log ends, and where it goes on.
#[derive(Debug)]
pub(super) struct Ends {
    /// After the last whole arrival found.
    pub(super) found_index: u64,
    pub(super) found_sequence: u64,
    pub(super) next_index: u64,
    pub(super) next_sequence: u64,
    pub(super) new_life: bool,
    /// There is a generation that opened.
    has_log: bool,
    /// What is wrong with the newest one.
    damage: Option<String>,
}

impl Ends {
    pub(super) fn of(tried: &[Tried], acked: Position) -> Self {
        let newest = tried.last().map(|tried| &tried.scan.summary);
        let (found_index, found_sequence) = newest
            .map_or((1, acked.committed.saturating_add(1)), |summary| (summary.end_index, summary.end_sequence.max(1)));
        Self {
            found_index,
            found_sequence,
            next_index: found_index,
            next_sequence: found_sequence,
            new_life: false,
            has_log: !tried.is_empty(),
            damage: tried.last().and_then(|tried| tried.scan.damage.clone()),
        }
    }

    /// Why this may not be the end of what was acknowledged.
    fn doubt(&self, known: Option<Position>, is_nobody: bool, set_aside: bool) -> Option<String> {
        let acked = known.unwrap_or_default();
        if set_aside {
            Some("the newest generation does not open".to_owned())
        } else if let Some(why) = &self.damage {
            Some(format!("the newest generation is damaged: {why}"))
        } else if self.found_index < acked.next_index || self.found_sequence < acked.next_sequence {
            Some("the end of the log is missing".to_owned())
        } else if known.is_none() {
            Some("outbox/pos is lost, so nobody knows how far the log reached".to_owned())
        } else {
            is_nobody.then(|| "outbox/state and the log are lost".to_owned())
        }
    }
}

/// Random bytes for identities.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// If `state` is lost or older than the log, the segments of the newest snapshot say who we are.
pub(super) fn adopt_lives(state: &mut StateFile, memory: &Memory, had_state: bool) -> Result<(), OpenError> {
    let newest = state.state.life().map_or(0, |life| life.number);
    let mut missing: Vec<Life> = Vec::new();
    for segment in memory.segments.iter().filter(|segment| segment.incarnation_number > newest) {
        if missing.iter().all(|life| life.number != segment.incarnation_number) {
            missing.push(Life {
                number: segment.incarnation_number,
                id: segment.incarnation.to_hex(),
                prev: missing.last().map(|life| life.id.clone()),
                first_sequence: segment.first_sequence,
                begun: true,
            });
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    log::warn!("the file outbox/state is lost or old: the identity of this outbox is taken from its log");
    let update = state.update(|state| {
        state.lives.append(&mut missing);
        if !had_state {
            (state.clean, state.ever_began) = (false, true);
        }
    });
    update.map_err(|source| OpenError::Io { what: "write", path: "outbox/state".to_owned(), source })
}

/// Makes the segment of this process, and a new incarnation where one is due.
pub(super) fn begin_segment(
    state: &mut StateFile,
    memory: &mut Memory,
    ends: &mut Ends,
    known: Option<Position>,
    recovery: &Recovery,
    had_state: bool,
    lost: &mut u64,
) -> Result<Segment, OpenError> {
    let fail =
        |source| OpenError::Io { what: "write", path: recovery.directory.file("state").display().to_string(), source };
    let acked = known.unwrap_or_default();
    let (mut life, mut old) = (state.state.life().cloned(), None);
    let is_new = life.is_none() && acked.next_index <= 1 && recovery.set_aside.is_empty() && !ends.has_log;
    let doubt = if is_new { None } else { ends.doubt(known, life.is_none(), !recovery.set_aside.is_empty()) };
    ends.new_life = doubt.is_some();
    if is_new || ends.new_life {
        // One that a start made and never wrote under is nobody's yet.
        let unused = state.state.life().filter(|life| !life.begun).and_then(Life::incarnation);
        let id = unused.map_or_else(|| random().map(Incarnation), Ok).map_err(fail)?;
        // The one before is the newest that has written: one made by a start that failed was never seen by anybody.
        old = memory.segments.last().map(|segment| segment.incarnation);
        old = old.or_else(|| match &life {
            Some(life) if life.begun => life.incarnation(),
            Some(unused) => Incarnation::from_hex(unused.prev.as_deref()?),
            None => None,
        });
        if ends.new_life {
            let blind = if had_state { 0 } else { BLIND_JUMP };
            let name = recovery.set_aside.iter().map(|id| id.first_index).max().unwrap_or(0);
            let index = ends.found_index.max(acked.next_index).max(name);
            let sequence = ends.found_sequence.max(acked.next_sequence);
            ends.next_index = state.state.index_limit.max(index + 1).saturating_add(blind);
            ends.next_sequence = state.state.sequence_limit.max(sequence + 1).saturating_add(blind);
        }
        let first = ends.next_sequence;
        state.update(|state| state.begin_life(id, old, first)).map_err(fail)?;
        life = state.state.life().cloned();
    }
    let (index, sequence) = (ends.next_index, ends.next_sequence);
    state
        .update(|state| {
            state.index_limit = state.index_limit.max(index + LIMIT_STEP);
            state.sequence_limit = state.sequence_limit.max(sequence + LIMIT_STEP);
        })
        .map_err(fail)?;
    let incarnation = life.as_ref().and_then(Life::incarnation).expect("there is a life: one was just made if not");
    let segment = Segment {
        first_index: ends.next_index,
        first_sequence: ends.next_sequence,
        incarnation_number: life.map_or(1, |life| life.number),
        incarnation,
        nonce: Nonce(random().map_err(fail)?),
        boot_id: ByteString::from(clock::boot_id()),
    };
    if let Some(doubt) = doubt {
        let gone = (ends.found_sequence, acked.next_sequence.saturating_sub(1));
        if gone.0 <= gone.1 {
            lose(
                memory,
                note(gone, old.unwrap_or(incarnation), "damage", &segment),
                "were at the end of the log",
                lost,
            );
        }
        let begin = ends.found_sequence.max(acked.next_sequence);
        let mut born = note((begin, ends.next_sequence - 1), incarnation, "new_incarnation", &segment);
        born.previous = old;
        memory.notes.add(born);
        log::error!(
            "{doubt} (the log should reach sequence {}, it reaches {}): going on as incarnation {} from sequence {}; a gap \
             record will say so",
            acked.next_sequence.saturating_sub(1),
            ends.found_sequence.saturating_sub(1),
            segment.incarnation_number,
            ends.next_sequence
        );
    }
    Ok(segment)
}
