//! Opening, in this order:
//!
//! 1. Refuse what is no place for an outbox, or one of another agent or a later format; lock the state directory.
//! 2. Finish removals; delete the newest generation if it is unmarked and nothing can have been acknowledged from it.
//! 3. Open generations from the newest back until one has a complete snapshot; rebuild the memory from there on. What
//!    does not open is set aside. A full disk is no damage: the reserve is given up, then opening fails.
//! 4. Compare the end of the log with what `pos` says was durable. If the newest generation is gone or too short, a new
//!    incarnation begins, beyond every number the old one can have given; what is missing is noted.
//! 5. List older generations by their summaries; finish what notes say is removed.
//! 6. Go on in the newest generation if it is whole; else the writer makes a new one, whose snapshot holds the new notes,
//!    and only then moves what is damaged away.
//!
//! Files: `place.rs` and `lock.rs` (1), `newest.rs` (2, 3), `life.rs` (4), `older.rs` (5, 6), `losses.rs` (notes of 4 to 6).

mod life;
mod lock;
mod losses;
mod newest;
mod older;
mod place;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use bytestring::ByteString;

use crate::clock;
use crate::outbox::OpenError;
use crate::record::Incarnation;

use super::directory::{Directory, GenerationId, sync_directory};
use super::entry::Segment;
use super::generation::Generation;
use super::limits::Sizes;
use super::memory::Memory;
use super::note::Note;
use super::position::{Position, PositionFile};
use super::state::{Loaded, StateFile};
use super::summary::Summary;
use life::Ends;
use newest::Tried;

/// The limits in `state` are raised by this much at once.
pub(super) const LIMIT_STEP: u64 = 1 << 22;

/// A closed generation.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) id: GenerationId,
    pub(super) summary: Arc<Summary>,
    pub(super) disk_bytes: u64,
}

/// The newest generation, to be written on.
#[derive(Debug)]
pub(super) struct Continued {
    pub(super) generation: Arc<Generation>,
    pub(super) summary: Summary,
    pub(super) raw_bytes: u64,
}

/// An outbox after recovery.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) directory: Directory,
    pub(super) lock: File,
    pub(super) position: PositionFile,
    pub(super) memory: Memory,
    /// Oldest first.
    pub(super) closed: Vec<Closed>,
    pub(super) current: Option<Continued>,
    /// To be moved away once the notes are durable.
    pub(super) set_aside: Vec<GenerationId>,
    pub(super) committed: u64,
    pub(super) next_index: u64,
    pub(super) next_sequence: u64,
    pub(super) next_number: u64,
    /// Of this process.
    pub(super) segment: Segment,
    /// Readings found missing by this opening; they are noted.
    pub(super) lost: u64,
    /// Generations rebuilt by this opening; what they were is in `damaged/`.
    pub(super) rebuilt: Vec<GenerationId>,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.display().to_string();
    move |source| OpenError::Io { what, path, source }
}

struct Recovery {
    directory: Directory,
    sizes: Sizes,
    set_aside: Vec<GenerationId>,
    rebuilt: Vec<GenerationId>,
}

/// Opens the outbox below `state_dir`.
pub(super) fn open(state_dir: &Path, agent: &str, sizes: Sizes) -> Result<(Opened, StateFile), OpenError> {
    let path = state_dir.join("outbox");
    place::check(state_dir)?;
    let directory = Directory::new(path.clone());
    lock::refuse_foreign(&directory, agent)?;
    // Readings are nobody else's business. A directory that is there keeps the mode its owner gave it.
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&path).map_err(io_error("create", &path))?;
    let mut lock = lock::lock(state_dir)?;
    // Once more: until now another process may have written.
    lock::refuse_foreign(&directory, agent)?;
    lock::sign(&mut lock).map_err(io_error("write", &state_dir.join("lock")))?;
    let (mut state, loaded) =
        StateFile::open(&directory.file("state"), agent).map_err(io_error("open", &directory.file("state")))?;
    let (mut position, mut known) =
        PositionFile::open(&directory.file("pos")).map_err(io_error("open", &directory.file("pos")))?;
    sync_directory(&path).and_then(|()| sync_directory(state_dir)).map_err(io_error("sync", &path))?;
    if known.is_none() && matches!(loaded, Loaded::Nothing) && directory.list().is_ok_and(|found| found.is_empty()) {
        // From here on a `pos` that cannot be read is damage, and no kill at the first start looks like it.
        let origin = Position { next_index: 1, next_sequence: 1, ..Position::default() };
        position.write(origin).map_err(io_error("write", &directory.file("pos")))?;
        known = Some(origin);
    }
    directory.sweep().map_err(io_error("clean up", &path))?;

    let mut recovery = Recovery { directory, sizes, set_aside: Vec::new(), rebuilt: Vec::new() };
    let acked = known.unwrap_or_default();
    let found = recovery.list(acked)?;
    let next_number = found.last().map_or(1, |last| last.id.number + 1);
    let (older, tried, memory) = recovery.newest(&found, acked)?;

    let mut memory = memory;
    let mut ends = Ends::of(&tried, acked);
    let had_state = matches!(loaded, Loaded::State(_)) && state.state.life().is_some();
    life::adopt_lives(&mut state, &memory, had_state)?;
    let mut lost = 0;
    let segment = life::begin_segment(&mut state, &mut memory, &mut ends, known, &recovery, had_state, &mut lost)?;

    let mut closed = recovery.older(&older, tried.first().map(|tried| tried.found.id))?;
    let committed = committed(known, &memory, &closed, &tried, ends.next_sequence);
    let repaired = !recovery.set_aside.is_empty() || ends.new_life;
    let current = recovery.sort_tried(tried, &mut closed, repaired);
    recovery.note_set_aside(&mut memory, &closed, current.as_ref(), committed, &segment, &ends, &state, &mut lost);
    recovery.finish_removals(&mut memory, &mut closed)?;
    memory.add_segment(segment.clone());
    let current = if recovery.set_aside.is_empty() { current } else { recovery.close(current, &mut closed) };
    let opened = Opened {
        directory: recovery.directory,
        lock,
        position,
        memory,
        closed,
        current,
        set_aside: recovery.set_aside,
        committed,
        next_index: ends.next_index,
        next_sequence: ends.next_sequence,
        next_number,
        segment,
        lost,
        rebuilt: recovery.rebuilt,
    };
    Ok((opened, state))
}

/// A note of this process.
pub(super) fn note(range: (u64, u64), incarnation: Incarnation, reason: &'static str, segment: &Segment) -> Note {
    Note {
        from: range.0,
        to: range.1,
        incarnation,
        segment: segment.nonce,
        boot_id: segment.boot_id.clone(),
        noted: clock::now(),
        reason: ByteString::from_static(reason),
        bytes: 0,
        sources: Vec::new(),
        previous: None,
    }
}

/// Last sequence that is delivered; without `pos`, just below the oldest we know of.
fn committed(known: Option<Position>, memory: &Memory, closed: &[Closed], tried: &[Tried], next: u64) -> u64 {
    let oldest_note = memory.notes.iter().next().map(|note| note.from);
    let oldest_closed = closed.first().map(|closed| closed.summary.first_sequence);
    let oldest_tried = tried.first().map(|tried| tried.scan.summary.first_sequence);
    let oldest = oldest_note.into_iter().chain(oldest_closed).chain(oldest_tried).min().unwrap_or(next);
    known.map_or(oldest.saturating_sub(1), |position| position.committed).min(next.saturating_sub(1))
}
