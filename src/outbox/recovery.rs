//! Opening, in this order:
//!
//! 1. Lock the state directory; refuse an outbox of another agent or format.
//! 2. Finish removals; delete the newest generation if it is unmarked and nothing can have been acknowledged from it.
//! 3. Open generations from the newest back until one has a complete snapshot; rebuild the memory from there on. What
//!    does not open is set aside. A full disk is no damage: the reserve is given up, then opening fails.
//! 4. Compare the end of the log with what `pos` says was durable. If the newest generation is gone or too short, a new
//!    incarnation begins, beyond every number the old one can have given; what is missing is noted.
//! 5. List older generations by their summaries; finish what notes say is removed.
//! 6. Go on in the newest generation if it is whole; else the writer makes a new one, whose snapshot holds the new notes,
//!    and only then moves what is damaged away.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;

use crate::clock;
use crate::outbox::OpenError;
use crate::record::{Incarnation, Nonce};

use super::directory::{Directory, Found, GenerationId, disk_bytes, sync_directory};
use super::entry::Segment;
use super::generation::{Generation, StoreError};
use super::limits::Sizes;
use super::memory::Memory;
use super::note::Note;
use super::position::{Position, PositionFile};
use super::scan::{Scan, scan};
use super::state::{FORMAT, Life, Loaded, StateFile};
use super::summary::Summary;

/// How far a new incarnation jumps when no file says which numbers were given out.
const BLIND_JUMP: u64 = 1 << 32;
const BUSY_TRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(20);
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
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.display().to_string();
    move |source| OpenError::Io { what, path, source }
}

fn store_error(path: &Path, error: StoreError) -> OpenError {
    let source = match error {
        StoreError::Full(text) => io::Error::new(io::ErrorKind::StorageFull, text),
        StoreError::Io(error) => error,
        error => io::Error::other(error.to_string()),
    };
    OpenError::Io { what: "open", path: path.display().to_string(), source }
}

/// Random bytes for identities.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Locks the state directory; the lock lives as long as the file.
fn lock(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok_and(|_| pid.trim().parse::<u32>().is_ok());
            let holder = if known { format!(" (pid {})", pid.trim()) } else { String::new() };
            return Err(OpenError::Locked { path: state_dir.display().to_string(), holder });
        }
        Err(error) => return Err(io_error("lock", &path)(error.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(io_error("write", &path))?;
    Ok(file)
}

/// Refuses what is not ours, before anything is changed.
fn refuse_foreign(path: &Path, agent: &str) -> Result<(), OpenError> {
    let dir = path.display();
    match super::state::read(&path.join("state")).map_err(io_error("read", &path.join("state")))? {
        Loaded::State(state) if state.v != FORMAT => Err(OpenError::Foreign(format!(
            "{dir} has format {}, this program knows format {FORMAT}: use the version of fieldpost that wrote it",
            state.v
        ))),
        Loaded::State(state) if state.agent != agent => Err(OpenError::Foreign(format!(
            "{dir} is the outbox of agent \"{}\", not of \"{agent}\": set agent.id back, or give this agent a state_dir of its own",
            state.agent
        ))),
        Loaded::Unknown => Err(OpenError::Foreign(format!(
            "{dir}/state was written by an unknown version: use the version of fieldpost that wrote it"
        ))),
        _ => Ok(()),
    }
}

/// A generation that opened, with what was found in it.
struct Tried {
    found: Found,
    generation: Generation,
    scan: Scan,
}

struct Recovery {
    directory: Directory,
    sizes: Sizes,
    set_aside: Vec<GenerationId>,
}

/// Opens the outbox below `state_dir`.
pub(super) fn open(state_dir: &Path, agent: &str, sizes: Sizes) -> Result<(Opened, StateFile), OpenError> {
    let path = state_dir.join("outbox");
    // Readings are nobody else's business. A directory that is there keeps the mode its owner gave it.
    fs::DirBuilder::new().recursive(true).mode(0o750).create(&path).map_err(io_error("create", &path))?;
    let lock = lock(state_dir)?;
    refuse_foreign(&path, agent)?;
    let directory = Directory::new(path.clone());
    let (mut state, loaded) =
        StateFile::open(&directory.file("state"), agent).map_err(io_error("open", &directory.file("state")))?;
    let (position, known) =
        PositionFile::open(&directory.file("pos")).map_err(io_error("open", &directory.file("pos")))?;
    sync_directory(&path).and_then(|()| sync_directory(state_dir)).map_err(io_error("sync", &path))?;
    directory.sweep().map_err(io_error("clean up", &path))?;

    let mut recovery = Recovery { directory, sizes, set_aside: Vec::new() };
    let acked = known.unwrap_or_default();
    let found = recovery.list(acked)?;
    let next_number = found.last().map_or(1, |last| last.id.number + 1);
    let (older, tried, memory) = recovery.newest(&found)?;

    let mut memory = memory;
    let mut ends = Ends::of(&tried, acked);
    let had_state = matches!(loaded, Loaded::State(_)) && state.state.life().is_some();
    adopt_lives(&mut state, &memory, had_state)?;
    let segment = begin_segment(&mut state, &mut memory, &mut ends, known, &recovery, had_state)?;

    let mut closed = recovery.older(&older, tried.first().map(|tried| tried.found.id))?;
    let committed = committed(known, &memory, &closed, &tried, ends.next_sequence);
    let repaired = !recovery.set_aside.is_empty() || ends.new_life;
    let current = recovery.sort_tried(tried, &mut closed, repaired);
    recovery.note_set_aside(&mut memory, &closed, current.as_ref(), committed, &segment, &ends, &state);
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
    };
    Ok((opened, state))
}

/// Where the log ends, and where it goes on.
#[derive(Debug)]
struct Ends {
    /// After the last whole arrival found.
    found_index: u64,
    found_sequence: u64,
    next_index: u64,
    next_sequence: u64,
    new_life: bool,
}

impl Ends {
    fn of(tried: &[Tried], acked: Position) -> Self {
        let newest = tried.last().map(|tried| &tried.scan.summary);
        let (found_index, found_sequence) = newest
            .map_or((1, acked.committed.saturating_add(1)), |summary| (summary.end_index, summary.end_sequence.max(1)));
        Self { found_index, found_sequence, next_index: found_index, next_sequence: found_sequence, new_life: false }
    }
}

/// If `state` is lost or older than the log, the segments of the newest snapshot say who we are.
fn adopt_lives(state: &mut StateFile, memory: &Memory, had_state: bool) -> Result<(), OpenError> {
    let newest = state.state.life().map_or(0, |life| life.number);
    let mut missing: Vec<Life> = Vec::new();
    for segment in memory.segments.iter().filter(|segment| segment.incarnation_number > newest) {
        if missing.iter().all(|life| life.number != segment.incarnation_number) {
            missing.push(Life {
                number: segment.incarnation_number,
                id: segment.incarnation.to_hex(),
                prev: missing.last().map(|life| life.id.clone()),
                first_sequence: segment.first_sequence,
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
fn begin_segment(
    state: &mut StateFile,
    memory: &mut Memory,
    ends: &mut Ends,
    known: Option<Position>,
    recovery: &Recovery,
    had_state: bool,
) -> Result<Segment, OpenError> {
    let fail =
        |source| OpenError::Io { what: "write", path: recovery.directory.file("state").display().to_string(), source };
    let acked = known.unwrap_or_default();
    let (mut life, mut old) = (state.state.life().cloned(), None);
    let is_new = life.is_none() && known.is_none() && recovery.set_aside.is_empty() && memory.segments.is_empty();
    let short = ends.found_index < acked.next_index || ends.found_sequence < acked.next_sequence;
    ends.new_life = !is_new && (short || !recovery.set_aside.is_empty() || life.is_none());
    if is_new || ends.new_life {
        let id = Incarnation(random().map_err(fail)?);
        // The one before is the newest that has written: one made by a start that failed was never seen by anybody.
        old = memory.segments.last().map(|segment| segment.incarnation);
        old = old.or_else(|| life.as_ref().and_then(Life::incarnation));
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
    if ends.new_life {
        let gone = (ends.found_sequence, acked.next_sequence.saturating_sub(1));
        if gone.0 <= gone.1 {
            memory.notes.add(note(gone, old.unwrap_or(incarnation), "damage", &segment));
        }
        let begin = ends.found_sequence.max(acked.next_sequence);
        let mut born = note((begin, ends.next_sequence - 1), incarnation, "new_incarnation", &segment);
        born.previous = old;
        memory.notes.add(born);
        log::error!(
            "the newest part of the outbox is damaged or missing (it should reach sequence {}, it reaches {}): \
             going on as incarnation {} from sequence {}; gap records will say so",
            acked.next_sequence.saturating_sub(1),
            ends.found_sequence.saturating_sub(1),
            segment.incarnation_number,
            ends.next_sequence
        );
    }
    Ok(segment)
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

impl Recovery {
    /// Generations by number, without a newest one that is only half made.
    fn list(&self, acked: Position) -> Result<Vec<Found>, OpenError> {
        let path = self.directory.path();
        let mut found = self.directory.list().map_err(io_error("list", path))?;
        if let Some(last) = found.last().copied().filter(|last| !last.marked) {
            if acked.next_index <= last.id.first_index {
                log::info!("removing {}: it was never finished", last.id);
                self.directory.remove(last.id).map_err(io_error("remove", &self.directory.generation(last.id)))?;
                found.pop();
            }
        }
        Ok(found)
    }

    /// Opens one; `None`: it is damaged.
    fn try_open(&self, id: GenerationId) -> Result<Option<Generation>, OpenError> {
        let path = self.directory.generation(id);
        let mut given_up = false;
        let mut busy = 0;
        loop {
            match Generation::open(&self.directory, id, self.sizes.segment_bytes) {
                Ok(generation) => return Ok(Some(generation)),
                Err(StoreError::Damaged(why)) => {
                    log::error!(
                        "{} does not open ({why}): it is moved to {}",
                        path.display(),
                        self.directory.damaged().display()
                    );
                    return Ok(None);
                }
                Err(StoreError::Full(_)) if !given_up => {
                    given_up = true;
                    let gave = self
                        .directory
                        .give_up_reserve()
                        .map_err(io_error("remove", &self.directory.file("reserve")))?;
                    log::warn!("the disk is full while the outbox opens; the reserve was given up: {gave}");
                }
                // We hold the lock of the directory: whoever has it open is about to let go.
                Err(StoreError::Busy(_)) if busy < BUSY_TRIES => {
                    busy += 1;
                    std::thread::sleep(BUSY_WAIT);
                }
                Err(error) => return Err(store_error(&path, error)),
            }
        }
    }

    /// Opens from the newest back to the first with a complete snapshot. Returns the older ones, the opened ones (oldest
    /// first) and what they say.
    fn newest(&mut self, found: &[Found]) -> Result<(Vec<Found>, Vec<Tried>, Memory), OpenError> {
        let mut tried: Vec<Tried> = Vec::new();
        let mut left = found.len();
        let mut memory = Memory::default();
        while left > 0 {
            left -= 1;
            let limit = found.get(left + 1).map(|next| next.id.first_index);
            let Some(generation) = self.try_open(found[left].id)? else {
                self.set_aside.push(found[left].id);
                continue;
            };
            let mut own = Memory::default();
            match scan(&generation, limit, &mut own) {
                Ok(scan) => tried.push(Tried { found: found[left], generation, scan }),
                Err(error) => {
                    log::error!("{} cannot be read ({error}): it is moved away", found[left].id);
                    self.set_aside.push(found[left].id);
                    continue;
                }
            }
            memory = own;
            if memory.complete {
                break;
            }
            log::error!("the snapshot of {} is damaged: going back to the one before", found[left].id);
        }
        tried.reverse();
        for (at, later) in tried.iter().enumerate().skip(1) {
            let limit = tried.get(at + 1).map(|next| next.found.id.first_index);
            scan(&later.generation, limit, &mut memory).map_err(|error| store_error(self.directory.path(), error))?;
        }
        Ok((found[..left].to_vec(), tried, memory))
    }

    /// Generations before those that were opened, by their summaries.
    fn older(&mut self, older: &[Found], first_tried: Option<GenerationId>) -> Result<Vec<Closed>, OpenError> {
        let mut closed = Vec::new();
        for (at, found) in older.iter().enumerate() {
            let limit = older.get(at + 1).map(|next| next.id.first_index).or(first_tried.map(|id| id.first_index));
            let summary = match Summary::read(&self.directory.summary(found.id)) {
                Some(summary) => summary,
                None => match self.summarise(found.id, limit)? {
                    Some(summary) => summary,
                    None => {
                        self.set_aside.push(found.id);
                        continue;
                    }
                },
            };
            let disk_bytes = disk_bytes(&self.directory.generation(found.id));
            closed.push(Closed { id: found.id, summary: Arc::new(summary), disk_bytes });
        }
        Ok(closed)
    }

    /// Reads a generation whose summary is lost.
    fn summarise(&self, id: GenerationId, limit: Option<u64>) -> Result<Option<Summary>, OpenError> {
        let Some(generation) = self.try_open(id)? else { return Ok(None) };
        match scan(&generation, limit, &mut Memory::default()) {
            Ok(scan) => {
                self.write_summary(id, &scan.summary);
                Ok(Some(scan.summary))
            }
            Err(error) => {
                log::error!("{id} cannot be read ({error}): it is moved away");
                Ok(None)
            }
        }
    }

    fn write_summary(&self, id: GenerationId, summary: &Summary) {
        if let Err(error) = summary.write(&self.directory.summary(id)) {
            log::warn!("cannot write the summary of {id} ({error}): the next start reads it again");
        }
    }

    /// The newest one goes on if it is whole; the others are closed.
    fn sort_tried(&self, mut tried: Vec<Tried>, closed: &mut Vec<Closed>, repaired: bool) -> Option<Continued> {
        let newest = tried.pop()?;
        for tried in tried {
            self.push_closed(tried.found.id, tried.scan.summary, closed);
        }
        let Tried { found, generation, scan } = newest;
        if let Some(why) = &scan.damage {
            log::error!("{} is damaged ({why}); what is missing will be told by gap records", found.id);
        }
        let ended = self.directory.summary(found.id).exists() || scan.raw_bytes >= self.sizes.generation_raw_bytes;
        let small = generation.segment_bytes() != self.sizes.segment_bytes;
        if repaired || ended || small || !found.marked || scan.torn || scan.damage.is_some() {
            drop(generation);
            self.push_closed(found.id, scan.summary, closed);
            return None;
        }
        Some(Continued { generation: Arc::new(generation), summary: scan.summary, raw_bytes: scan.raw_bytes })
    }

    fn push_closed(&self, id: GenerationId, summary: Summary, closed: &mut Vec<Closed>) {
        self.write_summary(id, &summary);
        let disk_bytes = disk_bytes(&self.directory.generation(id));
        closed.push(Closed { id, summary: Arc::new(summary), disk_bytes });
    }

    fn close(&self, current: Option<Continued>, closed: &mut Vec<Closed>) -> Option<Continued> {
        let current = current?;
        current.generation.close();
        self.push_closed(current.generation.id(), current.summary, closed);
        None
    }

    /// Notes what the generations set aside held, between their neighbours.
    #[allow(clippy::too_many_arguments)]
    fn note_set_aside(
        &self,
        memory: &mut Memory,
        closed: &[Closed],
        current: Option<&Continued>,
        committed: u64,
        segment: &Segment,
        ends: &Ends,
        state: &StateFile,
    ) {
        for id in &self.set_aside {
            let before = closed.iter().filter(|closed| closed.id < *id).map(|closed| closed.summary.end_sequence).max();
            let after =
                closed.iter().filter(|closed| closed.id > *id).map(|closed| closed.summary.first_sequence).min();
            let after = after.or(current.map(|current| current.summary.first_sequence)).unwrap_or(ends.found_sequence);
            let from = before.unwrap_or(0).max(committed + 1);
            for (from, to) in memory.notes.uncovered(from, after.saturating_sub(1)) {
                let life = state.state.lives.iter().rev().find(|life| life.first_sequence <= from);
                let incarnation = life.and_then(Life::incarnation).unwrap_or(segment.incarnation);
                log::error!("readings {from} to {to} were in {id} and are lost; a gap record will say so");
                memory.notes.add(note((from, to), incarnation, "damage", segment));
            }
        }
    }

    /// A note wins: generations it names whole are removed before anything reads.
    fn finish_removals(&self, memory: &mut Memory, closed: &mut Vec<Closed>) -> Result<(), OpenError> {
        let mut failed = None;
        closed.retain(|closed| {
            let (first, end) = (closed.summary.first_sequence, closed.summary.end_sequence);
            let whole = first < end && memory.notes.uncovered(first, end - 1).is_empty();
            if !whole || failed.is_some() {
                return true;
            }
            log::info!("removing {}: a note says that it was dropped", closed.id);
            failed = self.directory.remove(closed.id).err().map(|error| (closed.id, error));
            false
        });
        match failed {
            Some((id, error)) => Err(io_error("remove", &self.directory.generation(id))(error)),
            None => Ok(()),
        }
    }
}
