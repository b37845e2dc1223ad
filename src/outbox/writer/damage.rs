//! What somebody could not read: rebuilt from what is whole in it, once; then noted and, if nothing opens, moved away.

use std::sync::mpsc::SyncSender;

use super::super::directory::GenerationId;
use super::super::generation::StoreError;
use super::super::note::Note;
use super::super::repair;
use super::queue::Work;
use super::{SYNC_STALL, Writer};

/// What came of rebuilding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rebuilt {
    /// What is whole can be read.
    Done,
    /// There is nothing more to be had.
    Nothing,
    /// No block of it is whole.
    Empty,
    /// No room, or the file system says no: another try may do.
    NotNow,
}

impl Writer {
    /// Somebody cannot read a generation. Answers whether to look again: it was rebuilt, or what it held and is not
    /// delivered is noted and it is gone. Otherwise nothing can be written now.
    pub(super) fn set_aside(&mut self, id: GenerationId, why: &str, done: SyncSender<bool>) {
        log::error!("{} is damaged ({why})", self.directory.generation(id).display());
        let over = match self.rebuild(id) {
            Rebuilt::Done => true,
            Rebuilt::NotNow => false,
            Rebuilt::Nothing | Rebuilt::Empty => self.note_and_move(id),
        };
        if done.send(over).is_err() {
            log::debug!("nobody waits for {id} any more");
        }
    }

    fn note_and_move(&mut self, id: GenerationId) -> bool {
        let listed = self.shared.view().generations.iter().find(|listed| listed.id == id).cloned();
        let Some(listed) = listed else { return true };
        let noted = self.write_notes(&listed, "damage").is_some();
        if noted {
            self.move_aside(id);
        }
        noted
    }

    /// Somebody misses a range. Answers as [`Self::set_aside`] does; a note has headroom, so a full disk alone does not
    /// stop it.
    pub(super) fn note_missing(&mut self, note: Note, done: SyncSender<bool>) {
        let holder = {
            let view = self.shared.view();
            view.generations.iter().rev().find(|listed| listed.holds(note.from)).map(|listed| listed.id)
        };
        let over = match holder.map(|id| (id, self.rebuild(id))) {
            Some((_, Rebuilt::Done)) => true,
            Some((_, Rebuilt::NotNow)) => false,
            Some((id, Rebuilt::Empty)) => self.note_and_move(id),
            None | Some((_, Rebuilt::Nothing)) => {
                self.queue.push_front(Work::Note(Box::new(note)));
                self.write_front_notes(1)
            }
        };
        if done.send(over).is_err() {
            log::debug!("nobody waits for the note any more");
        }
    }

    /// Rebuilds a generation from what is whole in it, once: what is missing then is lost.
    fn rebuild(&mut self, id: GenerationId) -> Rebuilt {
        if self.rebuilt.contains(&id) {
            return Rebuilt::Nothing;
        }
        if self.current.as_ref().is_some_and(|current| current.generation.id() == id) {
            if let Err(stop) = self.rotate() {
                self.failed(&stop);
            }
        }
        self.shared.progress.phase("rebuilding a generation", SYNC_STALL);
        let shared = self.shared.clone();
        // Who is just opening it has published his handle when this is ours.
        let opening = shared.opening();
        let live = {
            let mut view = self.shared.view();
            let Some(listed) = view.generations.iter().find(|listed| listed.id == id) else { return Rebuilt::Nothing };
            let live = listed.live.upgrade();
            // Nobody begins to read it now; who reads it finds it closed and comes back.
            view.claimed = Some(id.number);
            live
        };
        if let Some(live) = live {
            live.close();
        }
        let made = self.rebuild_files(id);
        let bytes = self.directory.generation_bytes(id);
        let rebuilt = match &made {
            Ok(Some(_)) => Rebuilt::Done,
            Ok(None) => Rebuilt::Empty,
            Err(StoreError::Damaged(_)) => Rebuilt::Nothing,
            Err(_) => Rebuilt::NotNow,
        };
        if rebuilt != Rebuilt::NotNow {
            self.rebuilt.push(id);
        }
        self.shared.publish(|view| {
            view.claimed = None;
            view.damaged += u64::from(rebuilt == Rebuilt::Done);
            if let Some(listed) = view.generations.iter_mut().find(|listed| listed.id == id) {
                listed.disk_bytes = bytes;
            }
        });
        drop(opening);
        match made {
            Ok(Some(_)) => {
                self.shared.metrics.damaged.inc();
            }
            Ok(None) => log::error!("nothing is whole in {id}"),
            Err(error) if rebuilt == Rebuilt::NotNow => {
                log::error!(
                    "{id} cannot be rebuilt now ({error}): delivery waits, for what is whole in it would be lost"
                );
            }
            Err(error) => log::error!("{id} cannot be rebuilt: {error}"),
        }
        self.measure_damaged();
        rebuilt
    }

    /// Nobody may have the generation open.
    fn rebuild_files(&mut self, id: GenerationId) -> Result<Option<usize>, StoreError> {
        let image = repair::image(&self.directory, id).map_err(StoreError::Io)?;
        let mut made = repair::rebuild(&self.directory, id, &image, &self.sizes);
        if matches!(made, Err(StoreError::Full(_))) && self.give_up_reserve() {
            made = repair::rebuild(&self.directory, id, &image, &self.sizes);
        }
        // It may have been given up to stay below the cap.
        self.find_reserve();
        made
    }

    /// Moves a generation whose loss is noted into `damaged/`.
    pub(super) fn move_aside(&mut self, id: GenerationId) {
        let shared = self.shared.clone();
        let _nobody_opens_it = shared.opening();
        let live = self.shared.publish(|view| {
            let listed = view.generations.iter().find(|listed| listed.id == id);
            let live = listed.and_then(|listed| listed.live.upgrade());
            view.generations.retain(|listed| listed.id != id);
            view.damaged += 1;
            live
        });
        // Whoever looks into it must not have it open while it is moved.
        if let Some(live) = live {
            live.close();
        }
        self.shared.metrics.damaged.inc();
        match self.directory.set_aside(id, self.sizes.damaged_bytes_max) {
            Ok(to) => log::error!("moved the damaged generation {id} to {}", to.display()),
            Err(error) => {
                log::error!("cannot move the damaged generation {id} away ({error}); the next start tries again");
            }
        }
        self.measure_damaged();
    }
}
