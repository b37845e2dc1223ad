//! Names and plain file work of the outbox's directory.
//!
//! ```text
//! state_dir/lock             flock of the running daemon; holds its pid and version
//! state_dir/outbox/
//!   pos, state               two-slot files (slots.rs)
//!   reserve                  real bytes, given up when the disk is full
//!   g<first-index>-<n>/      one generation; n counts up, the higher one wins
//!   g<first-index>-<n>.ok    it is fully made
//!   g<first-index>-<n>.end   it is closed: where it ends and what it holds (summary.rs); can be rebuilt
//!   dead-...                 being removed, or made
//!   next-g...                rebuilt, about to take its place
//!   damaged/                 generations that would not open
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::wire::NUMBERS_END;

/// What a generation held, in its directory below `damaged/`.
const KEPT_SUMMARY: &str = "end";

/// A generation that is rebuilt and about to take its place.
const NEXT: &str = "next-";

/// Name of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GenerationId {
    /// Counts the generations ever made.
    pub(super) number: u64,
    /// Index of its first entry.
    pub(super) first_index: u64,
}

impl GenerationId {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (first, number) = name.strip_prefix('g')?.split_once('-')?;
        let id = Self { number: number.parse().ok()?, first_index: first.parse().ok()? };
        (id.number < NUMBERS_END && id.first_index < NUMBERS_END).then_some(id)
    }
}

impl std::fmt::Display for GenerationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "g{:020}-{:08}", self.first_index, self.number)
    }
}

/// A generation as the directory shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) id: GenerationId,
    /// Whether its marker is there.
    pub(super) marked: bool,
}

/// The directory `outbox`.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn generation(&self, id: GenerationId) -> PathBuf {
        self.path.join(id.to_string())
    }

    pub(super) fn marker(&self, id: GenerationId) -> PathBuf {
        self.path.join(format!("{id}.ok"))
    }

    pub(super) fn summary(&self, id: GenerationId) -> PathBuf {
        self.path.join(format!("{id}.end"))
    }

    /// The summary of a generation that was set aside, if it was kept.
    pub(super) fn kept_summary(set_aside: &Path) -> PathBuf {
        set_aside.join(KEPT_SUMMARY)
    }

    /// Bytes on disk of a generation with its marks.
    pub(super) fn generation_bytes(&self, id: GenerationId) -> u64 {
        let paths = [self.generation(id), self.marker(id), self.summary(id)];
        paths.iter().map(|path| disk_bytes(path)).sum()
    }

    pub(super) fn damaged(&self) -> PathBuf {
        self.path.join("damaged")
    }

    /// Generations, oldest first.
    pub(super) fn list(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if let Some(id) = name.to_str().and_then(GenerationId::parse) {
                if entry.file_type()?.is_dir() {
                    found.push(Found { id, marked: self.marker(id).exists() });
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Finishes exchanges, removes what an earlier removal left, and marks of generations that are gone.
    pub(super) fn sweep(&self) -> io::Result<()> {
        // Before the marks are looked at: they are those of what takes its place.
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|name| GenerationId::parse(name.strip_prefix(NEXT)?));
            if let Some(id) = id {
                self.finish_exchange(&entry.path(), id)?;
            }
        }
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with("dead-") || name.ends_with(super::summary::NEW) {
                remove_all(&entry.path())?;
                continue;
            }
            let stem = name.strip_suffix(".ok").or_else(|| name.strip_suffix(".end"));
            if stem.and_then(GenerationId::parse).is_some_and(|id| !self.generation(id).exists()) {
                remove_all(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes a generation: its marks, then its name, durably, then its files.
    pub(super) fn remove(&self, id: GenerationId) -> io::Result<()> {
        let dead = self.path.join(format!("dead-{id}"));
        match fs::rename(self.generation(id), &dead) {
            // An earlier try came so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dead.exists() => {}
            renamed => renamed?,
        }
        self.remove_marks(id)?;
        sync_directory(&self.path)?;
        fs::remove_dir_all(dead)
    }

    fn remove_marks(&self, id: GenerationId) -> io::Result<()> {
        for path in [self.marker(id), self.summary(id)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves a generation into `damaged/` and keeps that directory below `cap` bytes, oldest out first.
    pub(super) fn set_aside(&self, id: GenerationId, cap: u64) -> io::Result<PathBuf> {
        let to = self.free_damaged(id)?;
        fs::rename(self.generation(id), &to)?;
        self.keep_summary(id, &to);
        self.remove_marks(id)?;
        sync_directory(&self.damaged())?;
        sync_directory(&self.path)?;
        self.trim_damaged(cap)?;
        Ok(to)
    }

    /// What a closed generation held goes with it: whoever recovers what is in it learns what is missing. Nothing but that
    /// needs it, so a failure is no more than a pity.
    fn keep_summary(&self, id: GenerationId, set_aside: &Path) {
        let kept = fs::read(self.summary(id)).and_then(|bytes| fs::write(Self::kept_summary(set_aside), bytes));
        match kept {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::debug!("what {id} held is not kept beside it: {error}");
            }
            _ => {}
        }
    }

    /// Where a generation is rebuilt; swept at the next start until it is done.
    pub(super) fn rebuilding(&self, id: GenerationId) -> PathBuf {
        self.path.join(format!("dead-rebuilt-{id}"))
    }

    /// Puts what was rebuilt in the place of a generation, which moves into `damaged/`. What a cut leaves half done is
    /// finished by the next start ([`Self::sweep`]).
    pub(super) fn exchange(&self, id: GenerationId, cap: u64) -> io::Result<PathBuf> {
        let next = self.path.join(format!("{NEXT}{id}"));
        if next.exists() {
            remove_all(&next)?;
        }
        fs::rename(self.rebuilding(id), &next)?;
        let begun = || {
            sync_directory(&self.path)?;
            let to = self.free_damaged(id)?;
            fs::rename(self.generation(id), &to).map(|()| to)
        };
        let to = match begun() {
            Ok(to) => to,
            Err(error) => {
                // A start must not find it and take it for what was to come.
                remove_all(&next)?;
                return Err(error);
            }
        };
        self.keep_summary(id, &to);
        // From here on the rebuilt one is the generation: what fails is told, and finished by the next start.
        let tell = |what: &str, result: io::Result<()>| {
            if let Err(error) = result {
                log::error!("cannot {what} after {id} was rebuilt ({error}); the next start tries again");
            }
        };
        tell("sync damaged/", sync_directory(&self.damaged()));
        tell("sync the outbox", sync_directory(&self.path));
        if let Err(error) = fs::rename(&next, self.generation(id)) {
            fs::rename(&to, self.generation(id))?;
            return Err(error);
        }
        tell("sync the outbox", sync_directory(&self.path));
        tell("trim damaged/", self.trim_damaged(cap));
        Ok(to)
    }

    /// A rebuilt generation whose place is free takes it. Otherwise it was not yet that far.
    fn finish_exchange(&self, next: &Path, id: GenerationId) -> io::Result<()> {
        if self.generation(id).exists() {
            return remove_all(next);
        }
        fs::rename(next, self.generation(id))?;
        sync_directory(&self.path)
    }

    /// A free name in `damaged/`, which is made.
    fn free_damaged(&self, id: GenerationId) -> io::Result<PathBuf> {
        let damaged = self.damaged();
        if damaged.exists() && !damaged.is_dir() {
            remove_all(&damaged)?;
        }
        fs::create_dir_all(&damaged)?;
        let mut to = damaged.join(id.to_string());
        for number in 1.. {
            if !to.exists() {
                break;
            }
            to = damaged.join(format!("{id}.{number}"));
        }
        Ok(to)
    }

    /// Keeps what is on disk at or below `max` when `bytes` more come: damaged generations go, the oldest first, then the
    /// reserve. Where that is not enough, somebody has lowered the cap: what is held goes on, and that is said.
    pub(super) fn make_room(&self, bytes: u64, max: u64) -> io::Result<()> {
        let all = self.path.parent().unwrap_or(&self.path);
        let over = || disk_bytes(all).saturating_add(bytes).saturating_sub(max);
        let damaged_over = over();
        if damaged_over > 0 {
            self.trim_damaged(disk_bytes(&self.damaged()).saturating_sub(damaged_over))?;
        }
        if over() > 0 && self.give_up_reserve()? {
            log::warn!("outbox/reserve was given up: a damaged generation takes {bytes} bytes to be rebuilt");
        }
        let left = over();
        if left > 0 {
            log::warn!("the outbox passes max_bytes while a damaged generation is rebuilt: {left} bytes are missing");
        }
        Ok(())
    }

    /// Keeps `damaged/` at or below `cap` bytes: the oldest generations go first. Nothing else in it is removed.
    pub(super) fn trim_damaged(&self, cap: u64) -> io::Result<()> {
        let mut total = disk_bytes(&self.damaged());
        let mut kept: Vec<_> = children(&self.damaged()).collect();
        kept.sort_unstable();
        for path in kept {
            if total <= cap {
                break;
            }
            let id = name_of(&path).and_then(|name| GenerationId::parse(name.split('.').next()?));
            if id.is_some() {
                let bytes = disk_bytes(&path);
                log::warn!("removing {} ({bytes} bytes): damaged/ may take {cap} bytes", path.display());
                remove_all(&path)?;
                total = total.saturating_sub(bytes);
            }
        }
        Ok(())
    }

    /// Makes `reserve` from written bytes, unless it is there.
    pub(super) fn make_reserve(&self, bytes: u64) -> io::Result<()> {
        let path = self.file("reserve");
        if disk_bytes(&path) >= bytes {
            return Ok(());
        }
        let mut file = File::create(&path)?;
        let stamp = super::format::stamp();
        file.write_all(stamp.as_bytes())?;
        // Not zeros: a file system may store those as a hole.
        let chunk = [0xa5u8; 64 * 1024];
        let mut left = bytes.saturating_sub(stamp.len() as u64);
        while left > 0 {
            let len = left.min(chunk.len() as u64) as usize;
            file.write_all(&chunk[..len])?;
            left -= len as u64;
        }
        file.sync_all()
    }

    /// Marks a generation as fully made; durable when this returns.
    pub(super) fn mark(&self, id: GenerationId) -> io::Result<()> {
        let mut marker = File::create(self.marker(id))?;
        marker.write_all(super::format::stamp().as_bytes())?;
        marker.sync_all()?;
        sync_directory(&self.path)
    }

    /// Gives `reserve` up; whether there was one.
    pub(super) fn give_up_reserve(&self) -> io::Result<bool> {
        match fs::remove_file(self.file("reserve")) {
            Ok(()) => sync_directory(&self.path).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is free for us on the file system.
    pub(super) fn free(&self) -> io::Result<Free> {
        let stat = rustix::fs::statvfs(&self.path)?;
        // A file system without a table of inodes says that it has none, of none.
        let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Ok(Free { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
    }

    /// Bytes on disk of everything below the state directory but listed generations, `damaged/` and the reserve.
    pub(super) fn beside_bytes(&self, is_listed: impl Fn(GenerationId) -> bool) -> u64 {
        let counted = |name: &str| {
            let stem = name.strip_suffix(".ok").or_else(|| name.strip_suffix(".end")).unwrap_or(name);
            GenerationId::parse(stem).is_some_and(&is_listed) || matches!(name, "damaged" | "reserve")
        };
        let outbox = children(&self.path).filter(|path| !name_of(path).is_some_and(counted));
        let parent = self.path.parent().into_iter().flat_map(children).filter(|path| *path != self.path);
        outbox.chain(parent).map(|path| disk_bytes(&path)).sum()
    }
}

/// What is free on a file system. Unknown: everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Free {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

impl Default for Free {
    fn default() -> Self {
        Self { bytes: u64::MAX, inodes: u64::MAX }
    }
}

fn children(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

/// The pid in the text of `lock`.
pub(super) fn pid_of(lock: &str) -> Option<u32> {
    lock.lines().next()?.trim().parse().ok()
}

/// Bytes that a file or a whole directory takes on disk; what cannot be read counts nothing.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let own = meta.blocks() * 512;
    if !meta.is_dir() {
        return own;
    }
    let Ok(entries) = fs::read_dir(path) else { return own };
    own + entries.flatten().map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

/// Removes a file, or a directory with all in it.
fn remove_all(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Size in bytes of the file system that holds a path, or will: no limit if it does not say.
pub(super) fn disk_size(path: &Path) -> u64 {
    // What is above a relative path is the empty one.
    let stat = path.ancestors().chain([Path::new(".")]).find_map(|there| rustix::fs::statvfs(there).ok());
    stat.map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Makes every file below a directory, and the directories, durable.
pub(super) fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(path)
}
