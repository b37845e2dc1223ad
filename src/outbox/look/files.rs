//! The generations of an outbox that no daemon uses: catalogued by their summaries where these hold, by reading copies
//! where they do not, as recovery would, but without changing anything.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::super::directory::{Directory, Found, GenerationId, pid_of};
use super::super::entry::Segment;
use super::super::format;
use super::super::generation::{Generation, StoreError};
use super::super::memory::Memory;
use super::super::position::Position;
use super::super::reader::place::Sight;
use super::super::reader::walk::{Shelf, Taken};
use super::super::scan::scan;
use super::super::slots;
use super::super::state::{self, Loaded, State};
use super::super::summary::Summary;
use super::super::view::Listed;
use super::LookError;
use super::bench::{self, Bench};
use super::blocks::segments_in;
use super::rescue::{self, Failed};

/// What the files say.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) state_dir: PathBuf,
    pub(super) directory: Directory,
    pub(super) found: Vec<Found>,
    /// Oldest first; the newest has an end too.
    pub(super) listed: Vec<Listed>,
    /// Generations that cannot be read at all, and why.
    pub(super) unreadable: Vec<(GenerationId, String)>,
    pub(super) memory: Memory,
    pub(super) position: Option<Position>,
    pub(super) state: Option<State>,
    /// After the last whole arrival: index, sequence.
    pub(super) end: (u64, u64),
    bench: Bench,
    copied: Option<(GenerationId, Arc<Generation>)>,
}

/// Pid of the daemon that holds the lock of a state directory; 0 if it does not say.
pub fn running(state_dir: &Path) -> io::Result<Option<u32>> {
    let path = state_dir.join("lock");
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(pid_of(&fs::read_to_string(path)?).unwrap_or(0))),
        Err(error) => Err(error.into()),
    }
}

impl Files {
    pub(super) fn open(state_dir: &Path, temporary: Option<&Path>) -> Result<Self, LookError> {
        let directory = Directory::new(state_dir.join("outbox"));
        let found = directory.list().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LookError::Nothing(state_dir.display().to_string()),
            _ => LookError::io("read", directory.path())(error),
        })?;
        if running(state_dir).map_err(LookError::io("read", &state_dir.join("lock")))?.is_some() {
            return Err(LookError::InUse(state_dir.display().to_string()));
        }
        let state = read_state(&directory)?;
        let position = match slots::read(&directory.file("pos")) {
            Ok(payload) => payload.as_deref().and_then(Position::decode),
            // As lost as if it were gone; `verify` tells which.
            Err(error) if error.kind() == io::ErrorKind::NotFound || rescue::is_of_medium(&error) => None,
            Err(error) => return Err(LookError::io("read", &directory.file("pos"))(error)),
        };
        let temporary_name = temporary.map_or_else(std::env::temp_dir, Path::to_owned);
        let bench = Bench::new(temporary).map_err(LookError::io("make a private directory in", &temporary_name))?;
        let mut files = Self {
            state_dir: state_dir.to_owned(),
            directory,
            found,
            listed: Vec::new(),
            unreadable: Vec::new(),
            memory: Memory::default(),
            position,
            state,
            end: (1, position.map_or(1, |position| position.committed + 1)),
            bench,
            copied: None,
        };
        files.catalogue()?;
        Ok(files)
    }

    fn catalogue(&mut self) -> Result<(), LookError> {
        // A newest one that was never finished does not exist; the next start removes it.
        let acked = self.position.map_or(0, |position| position.next_index);
        let skipped = self.found.last().filter(|last| !last.marked && acked <= last.id.first_index).map(|last| last.id);
        let found: Vec<_> = self.found.iter().map(|found| found.id).filter(|id| Some(*id) != skipped).collect();
        let limit = |at: usize| found.get(at + 1).map(|id: &GenerationId| id.first_index);
        let mut tried: Vec<(usize, Summary)> = Vec::new();
        let mut left = found.len();
        while left > 0 {
            left -= 1;
            let mut own = Memory::default();
            if let Some(summary) = self.read(found[left], limit(left), &mut own)? {
                tried.push((left, summary));
                self.memory = own;
                if self.memory.complete {
                    break;
                }
            }
        }
        tried.reverse();
        let mut memory = std::mem::take(&mut self.memory);
        for (at, _) in tried.iter().skip(1) {
            self.read(found[*at], limit(*at), &mut memory)?;
        }
        self.memory = memory;
        if let Some((_, newest)) = tried.last() {
            self.end = (newest.end_index, newest.end_sequence.max(1));
        }
        for (at, id) in found.iter().enumerate().take(left) {
            let summary = match Summary::read(&self.directory.summary(*id)) {
                Some(summary) => Some(summary),
                None => self.read(*id, limit(at), &mut Memory::default())?,
            };
            self.list(*id, summary);
        }
        for (at, summary) in tried {
            self.list(found[at], Some(summary));
        }
        Ok(())
    }

    fn list(&mut self, id: GenerationId, summary: Option<Summary>) {
        let Some(summary) = summary else { return };
        let disk_bytes = self.directory.generation_bytes(id);
        let first_sequence = summary.first_sequence;
        let closed = Some(Arc::new(summary));
        self.listed.push(Listed { id, first_sequence, closed, live: Weak::new(), disk_bytes });
    }

    /// Reads a copy from end to end; `None`: it is damaged, which is kept in `unreadable`.
    fn read(
        &mut self,
        id: GenerationId,
        limit: Option<u64>,
        memory: &mut Memory,
    ) -> Result<Option<Summary>, LookError> {
        let scanned = match self.copy_of(id) {
            Ok(generation) => scan(&generation, limit, memory),
            Err(error) => Err(error),
        };
        match scanned {
            Ok(scan) => Ok(Some(scan.summary)),
            Err(StoreError::Damaged(why)) => {
                self.unreadable.push((id, why));
                Ok(None)
            }
            Err(error) => Err(self.failure(id, error)),
        }
    }

    /// What ends a look, when a generation could not be read though it is not damaged.
    pub(super) fn failure(&self, id: GenerationId, error: StoreError) -> LookError {
        match error {
            StoreError::Later(_) => LookError::Foreign(format!("{id}: {error}")),
            StoreError::Busy(_) => LookError::InUse(self.state_dir.display().to_string()),
            StoreError::Io(source) => {
                LookError::Io { what: "copy", path: self.directory.generation(id).display().to_string(), source }
            }
            StoreError::Full(text) => LookError::Store(format!(
                "there is no room to copy {id} to {}: name another place with --temp-dir ({text})",
                self.bench.path().display()
            )),
            error => LookError::Store(format!("{id}: {error}")),
        }
    }

    /// Copies and opens a generation, unless that is the one at hand.
    pub(super) fn copy_of(&mut self, id: GenerationId) -> Result<Arc<Generation>, StoreError> {
        if let Some((at, generation)) = &self.copied {
            if *at == id {
                return Ok(generation.clone());
            }
        }
        if let Some((_, old)) = self.copied.take() {
            old.close();
        }
        let unread = match self.bench.copy(&self.directory.generation(id), id, |_| true) {
            Ok(unread) => bench::tell(&unread),
            Err(Failed::From(error)) if error.kind() == io::ErrorKind::InvalidData => Some(error.to_string()),
            Err(Failed::From(error)) => return Err(StoreError::of_io(error)),
            // A bad place on the medium of the copies says nothing about the outbox.
            Err(Failed::To(error)) if rescue::is_of_medium(&error) => return Err(StoreError::Io(error)),
            Err(Failed::To(error)) => return Err(StoreError::of_io(error)),
        };
        // What was copied while a daemon began to write is no evidence of anything.
        if running(&self.state_dir).map_err(StoreError::Io)?.is_some() {
            return Err(StoreError::Busy("the daemon began to use it".to_owned()));
        }
        if let Some(why) = unread {
            return Err(StoreError::Damaged(why));
        }
        let generation = Arc::new(self.bench.open(id)?);
        self.copied = Some((id, generation.clone()));
        Ok(generation)
    }

    pub(super) fn committed(&self) -> u64 {
        let oldest = self.listed.first().map_or(self.end.1, |listed| listed.first_sequence);
        self.position.map_or(oldest.saturating_sub(1), |position| position.committed).min(self.end.1.saturating_sub(1))
    }

    /// Fails if a daemon has begun to use the files.
    pub(super) fn still_idle(&self) -> Result<(), LookError> {
        match running(&self.state_dir) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(LookError::InUse(self.state_dir.display().to_string())),
            Err(error) => Err(LookError::io("read", &self.state_dir.join("lock"))(error)),
        }
    }
}

fn read_state(directory: &Directory) -> Result<Option<State>, LookError> {
    if let Some(later) = format::find_later(directory).map_err(LookError::io("read", directory.path()))? {
        return Err(LookError::Foreign(later.to_string()));
    }
    let path = directory.file("state");
    match state::read(&path) {
        Ok(Loaded::State(state)) => Ok(Some(state)),
        Ok(Loaded::Unknown) => Err(LookError::Foreign(format!("{} is not of fieldpost", path.display()))),
        Ok(Loaded::Nothing) => Ok(None),
        // As lost as if it were gone; `verify` tells which.
        Err(error) if rescue::is_of_medium(&error) => Ok(None),
        Err(error) => Err(LookError::io("read", &path)(error)),
    }
}

impl Shelf for Files {
    fn sight(&self) -> Sight {
        Sight {
            durable_index: self.end.0.saturating_sub(1),
            durable_sequence: self.end.1.saturating_sub(1),
            notes: Arc::new(self.memory.notes.clone()),
            purges: Arc::new(self.memory.purges.clone()),
            segments: self.memory.segments.clone().into(),
        }
    }

    fn take(&mut self, sequence: u64) -> Taken {
        let listed = self.listed.iter().rev().find(|listed| listed.holds(sequence));
        listed.map_or(Taken::Nothing, |listed| Taken::Generation(Box::new(listed.clone())))
    }

    fn open(&mut self, listed: &Listed) -> Result<Arc<Generation>, StoreError> {
        self.copy_of(listed.id)
    }

    fn segments(&mut self, generation: &Generation) -> Vec<Segment> {
        segments_in(generation)
    }

    fn first_after(&self, sequence: u64) -> Option<u64> {
        self.listed.iter().map(|listed| listed.first_sequence).find(|first| *first > sequence)
    }

    fn leave(&mut self) {}

    fn is_closed(&self) -> bool {
        false
    }
}
