//! The newest generations: opened from the end back until one has a complete snapshot.

use std::io;
use std::path::Path;

use crate::outbox::OpenError;

use super::super::directory::{Found, GenerationId};
use super::super::format::{FORMAT, WRITER};
use super::super::generation::{Generation, Opening, StoreError, unless_busy};
use super::super::memory::Memory;
use super::super::position::Position;
use super::super::repair;
use super::super::scan::{Scan, scan};
use super::super::summary::Summary;
use super::{Recovery, io_error};

/// A generation that opened, with what was found in it.
pub(super) struct Tried {
    pub(super) found: Found,
    pub(super) generation: Generation,
    pub(super) scan: Scan,
}

pub(super) fn store_error(path: &Path, error: StoreError) -> OpenError {
    let source = match error {
        StoreError::Later(text) => {
            return OpenError::Foreign(format!(
                "{}: {text}: a later fieldpost wrote it. This program, fieldpost {WRITER}, knows formats up to {FORMAT}: use \
                 the version that wrote it, or a later one. Nothing was set aside or removed",
                path.display()
            ));
        }
        StoreError::Full(text) => io::Error::new(io::ErrorKind::StorageFull, text),
        StoreError::Io(error) => error,
        error => io::Error::other(error.to_string()),
    };
    OpenError::Io { what: "open", path: path.display().to_string(), source }
}

impl Recovery {
    /// Generations by number, without a newest one that is only half made.
    pub(super) fn list(&self, acked: Position) -> Result<Vec<Found>, OpenError> {
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
    fn try_open(&self, id: GenerationId, opening: Opening) -> Result<Option<Generation>, OpenError> {
        let path = self.directory.generation(id);
        let mut given_up = false;
        loop {
            // We hold the lock of the directory: whoever has it open is about to let go.
            let opened = unless_busy(|| match opening {
                Opening::ToWrite => Generation::open(&self.directory, id, self.sizes.segment_bytes),
                // What opening adds is given back: there may be no room for a segment of each.
                Opening::ToRead => Generation::open_closed(&self.directory, id),
            });
            match opened {
                Ok(generation) => return Ok(Some(generation)),
                Err(StoreError::Damaged(why)) => {
                    log::error!("{} does not open ({why})", path.display());
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
                Err(error) => return Err(store_error(&path, error)),
            }
        }
    }

    /// Opens and reads one, below `limit`. If it is damaged, or does not reach as far as `acked` says, it is rebuilt from
    /// what is whole in it, once. `None`: nothing can be read.
    pub(super) fn read(
        &mut self,
        id: GenerationId,
        limit: Option<u64>,
        acked: Position,
        opening: Opening,
    ) -> Result<Option<(Generation, Scan, Memory)>, OpenError> {
        let path = self.directory.generation(id);
        let image = repair::image(&self.directory, id).map_err(io_error("read", &path.join("db")))?;
        let first = self.read_as_it_is(id, limit, opening)?;
        let damage = match &first {
            None => Some("nothing can be read".to_owned()),
            Some((_, scan, _)) => {
                let short = scan.summary.end_index < acked.next_index;
                scan.damage.clone().or_else(|| short.then(|| "its end is missing".to_owned()))
            }
        };
        let Some(damage) = damage else { return Ok(first) };
        log::error!("{} is damaged ({damage})", path.display());
        if let Some((generation, ..)) = &first {
            generation.close();
        }
        drop(first);
        // What opening wiped must not be lost if the rebuilding is cut short.
        image.write_back(&self.directory, id).map_err(io_error("restore", &path))?;
        let rebuild = || repair::rebuild(&self.directory, id, &image, &self.sizes);
        let mut made = rebuild();
        if matches!(made, Err(StoreError::Full(_))) {
            let gave = self.directory.give_up_reserve();
            if gave.map_err(io_error("remove", &self.directory.file("reserve")))? {
                log::warn!("the disk is full while {id} is rebuilt; the reserve was given up");
                made = rebuild();
            }
        }
        match made {
            Ok(Some(_)) => self.rebuilt.push(id),
            // Nothing is whole, or not even a new database can be made of it.
            Ok(None) | Err(StoreError::Damaged(_)) => {}
            // Going on would give up blocks that are whole.
            Err(error) => return Err(store_error(&path, error)),
        }
        self.read_as_it_is(id, limit, opening)
    }

    fn read_as_it_is(
        &self,
        id: GenerationId,
        limit: Option<u64>,
        opening: Opening,
    ) -> Result<Option<(Generation, Scan, Memory)>, OpenError> {
        let Some(generation) = self.try_open(id, opening)? else { return Ok(None) };
        let mut memory = Memory::default();
        match scan(&generation, limit, &mut memory) {
            Ok(scan) => Ok(Some((generation, scan, memory))),
            Err(error @ StoreError::Later(_)) => Err(store_error(&self.directory.generation(id), error)),
            Err(error) => {
                log::error!("{id} cannot be read ({error})");
                Ok(None)
            }
        }
    }

    /// Index at which a generation ends: where the next one begins, or where it was closed. What stands behind was not
    /// durable then, and whoever asked for it was told so.
    fn limit(&self, found: &[Found], at: usize) -> Option<u64> {
        let next = found.get(at + 1).map(|next| next.id.first_index);
        let closed = Summary::read(&self.directory.summary(found[at].id)).map(|summary| summary.end_index);
        next.into_iter().chain(closed).min()
    }

    /// Opens from the newest back to the first with a complete snapshot. Returns the older ones, the opened ones (oldest
    /// first) and what they say.
    pub(super) fn newest(
        &mut self,
        found: &[Found],
        acked: Position,
    ) -> Result<(Vec<Found>, Vec<Tried>, Memory), OpenError> {
        let mut tried: Vec<Tried> = Vec::new();
        let mut left = found.len();
        let mut memory = Memory::default();
        while left > 0 {
            left -= 1;
            let limit = self.limit(found, left);
            let acked = if tried.is_empty() && self.set_aside.is_empty() { acked } else { Position::default() };
            let Some((generation, scan, own)) = self.read(found[left].id, limit, acked, Opening::ToWrite)? else {
                self.set_aside.push(found[left].id);
                continue;
            };
            tried.push(Tried { found: found[left], generation, scan });
            memory = own;
            if memory.complete {
                break;
            }
            log::error!("the snapshot of {} is damaged: going back to the one before", found[left].id);
        }
        tried.reverse();
        for (at, later) in tried.iter().enumerate().skip(1) {
            let limit = self.limit(found, left + at);
            scan(&later.generation, limit, &mut memory).map_err(|error| store_error(self.directory.path(), error))?;
        }
        Ok((found[..left].to_vec(), tried, memory))
    }
}
