//! Where generations are that are to be recovered, whether somebody uses them, and which sequences stood in them.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::super::directory::{Directory, GenerationId};
use super::super::super::position::Position;
use super::super::super::slots;
use super::super::super::state::{self, Loaded};
use super::super::super::summary::Summary;
use super::super::LookError;
use super::super::files::running;

/// A directory that holds a `db`, and the name it had.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) id: GenerationId,
}

/// Sequences that stood in a generation, where known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Bounds {
    pub(super) first: Option<u64>,
    /// Exclusive.
    pub(super) end: Option<u64>,
}

/// State directories that what is recovered may be of.
pub(super) struct Guard(Vec<PathBuf>);

/// From a generation in `damaged/` up to its state directory.
const STATE_DIR_ABOVE_MAX: usize = 3;

impl Guard {
    pub(super) fn of(path: &Path) -> Self {
        let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let above = full.ancestors().take(1 + STATE_DIR_ABOVE_MAX);
        // What was set aside is not in use, even while a daemon runs.
        Self(above.filter(|dir| !full.starts_with(dir.join("outbox/damaged"))).map(Path::to_owned).collect())
    }

    /// Fails if a daemon uses one of them.
    pub(super) fn check(&self) -> Result<(), LookError> {
        match self.0.iter().find(|dir| matches!(running(dir), Ok(Some(_)))) {
            Some(dir) => Err(LookError::InUse(dir.display().to_string())),
            None => Ok(()),
        }
    }
}

/// Generations at `path`, oldest first: it may be one, hold some, or be a state directory.
pub(super) fn places(path: &Path) -> Result<Vec<Place>, LookError> {
    let mut found = Vec::new();
    if path.join("db").is_file() {
        found.push(place(path.to_owned()));
    }
    for directory in [path.to_owned(), path.join("outbox"), path.join("damaged"), path.join("outbox/damaged")] {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(_) if directory != path => continue,
            Err(error) => return Err(LookError::io("read", path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(LookError::io("read", &directory))?;
            let is_generation = parse(&entry.file_name().to_string_lossy()).is_some();
            if is_generation && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(place(entry.path()));
            }
        }
    }
    found.sort_by(|one, other| (one.id, &one.path).cmp(&(other.id, &other.path)));
    Ok(found)
}

fn place(path: PathBuf) -> Place {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let id = name.as_deref().and_then(parse).unwrap_or(GenerationId { number: 0, first_index: 0 });
    Place { path, id }
}

/// The name of a generation, also with the number that setting aside adds to a name that is taken.
fn parse(name: &str) -> Option<GenerationId> {
    let name = name.strip_prefix("dead-").unwrap_or(name);
    let plain =
        name.split_once('.').map_or(name, |(plain, rest)| if rest.parse::<u32>().is_ok() { plain } else { name });
    GenerationId::parse(plain)
}

/// The agent, if its `state` is near.
pub(super) fn agent_of(path: &Path) -> Option<String> {
    let near = [path.join("outbox/state"), path.join("state"), path.join("../state"), path.join("../../state")];
    near.iter().find_map(|path| match state::read(path) {
        Ok(Loaded::State(state)) => Some(state.agent),
        _ => None,
    })
}

impl Place {
    /// By its summary; else it ends where the next one begins; the newest in its outbox where `pos` says. `last`: no newer one
    /// is recovered.
    pub(super) fn bounds(&self, last: bool) -> Bounds {
        if self.id.number == 0 {
            return Bounds::default();
        }
        let full = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let Some(holder) = full.parent() else { return Bounds::default() };
        let is_aside = holder.file_name().is_some_and(|name| name == "damaged");
        let outbox = Directory::new(if is_aside { holder.parent().unwrap_or(holder) } else { holder }.to_owned());
        let own = if is_aside { Directory::kept_summary(&full) } else { outbox.summary(self.id) };
        let own = Summary::read(&own);
        if let Some(own) = own {
            return Bounds { first: Some(own.first_sequence), end: Some(own.end_sequence) };
        }
        let Ok(all) = outbox.list() else { return Bounds::default() };
        let before = all.iter().rev().find(|found| found.id.number + 1 == self.id.number);
        let after = all.iter().find(|found| found.id.number > self.id.number);
        let end = match after {
            Some(after) if after.id.number == self.id.number + 1 => {
                Summary::read(&outbox.summary(after.id)).map(|summary| summary.first_sequence)
            }
            None if last && !is_aside => position(&outbox).map(|position| position.next_sequence),
            _ => None,
        };
        let first = before.and_then(|before| Summary::read(&outbox.summary(before.id)));
        Bounds { first: first.map(|summary| summary.end_sequence), end }
    }
}

fn position(outbox: &Directory) -> Option<Position> {
    slots::read(&outbox.file("pos")).ok()?.as_deref().and_then(Position::decode)
}
