//! Looking into the outbox, for its owner: what it holds, whether it is whole, what is in it. Changes nothing.
//!
//! Beside the daemon it is the daemon that reads, over its own handles ([`crate::outbox::Outbox::look`]). Without one the files are
//! read: sled writes when it opens, so each generation is copied into a private directory, one at a time, and opened
//! there (docs/decisions/0230). Either way the results are the same: lines of JSON, the shapes of `line.rs`.

mod bench;
mod blocks;
mod change;
mod export;
mod files;
mod inspect;
mod line;
mod live;
mod looker;
mod rescue;
mod salvage;
pub mod stop;
#[cfg(test)]
mod tests;
mod verify;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use change::WouldError;
pub use export::{Exported, Wanted};
pub use files::running;
pub(in crate::outbox) use inspect::Counts;
pub use inspect::{InspectedGeneration, InspectedNote, InspectedRefusal, InspectedSource, Inspection};
pub use line::{GapLine, Line};
pub(crate) use line::{harmless, steers};
pub use salvage::{NOT_RECOVERED, Salvaged, SalvagedGeneration, salvage};
pub use verify::{Finding, Level, Verified};

use super::{Purged, Replayed, Selection};
use crate::config;
use files::Files;
use looker::Looker;

/// Why looking ended early.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// No outbox is there.
    #[error("there is no outbox in {0}")]
    Nothing(String),
    /// A daemon uses the files: ask it instead.
    #[error("a daemon uses {0}: its files change under whoever reads them, so ask the daemon")]
    InUse(String),
    /// Written by another program or version.
    #[error("{0}")]
    Foreign(String),
    /// The file system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// Verb, as in `read`.
        what: &'static str,
        /// On what.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be looked at now; another try may do.
    #[error("cannot look into the outbox now: {0}")]
    Busy(String),
    /// The store cannot be read.
    #[error("cannot read the outbox: {0}")]
    Store(String),
    /// Whoever takes the lines does not take them any more.
    #[error("cannot hand the result on: {0}")]
    Output(io::Error),
}

/// What went wrong, for whoever has to act on it: the same beside a daemon, which sends it, as without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Of another program or version: no further try helps.
    Foreign,
    /// Busy: try again.
    Busy,
    /// The medium, the file system, or the store.
    InputOutput,
}

impl LookError {
    /// What went wrong, in one word.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Foreign(_) => Fault::Foreign,
            Self::InUse(_) | Self::Busy(_) => Fault::Busy,
            Self::Nothing(_) | Self::Io { .. } | Self::Store(_) | Self::Output(_) => Fault::InputOutput,
        }
    }

    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { what, path, source }
    }
}

/// Takes the lines of a result, one by one, without their line ends.
pub type Out<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// Eyes on an outbox. Owned by one thread; blocks it.
#[derive(Debug)]
pub struct Look {
    looker: Looker,
}

impl Look {
    pub(super) fn live(outbox: &super::Outbox) -> Self {
        Self { looker: Looker::live(outbox) }
    }

    /// At files that no daemon uses. Generations are copied into a private directory below `temporary` (default:
    /// `$TMPDIR`, else `/tmp`), one at a time.
    pub fn at_files(state_dir: &Path, temporary: Option<&Path>) -> Result<Self, LookError> {
        Ok(Self { looker: Looker::files(Files::open(state_dir, temporary)?) })
    }

    /// What the outbox holds.
    pub fn inspect(&mut self) -> Result<Inspection, LookError> {
        inspect::inspect(&mut self.looker)
    }

    /// Checks everything. Lines: [`Line::Progress`], [`Line::Finding`], [`Line::Verified`] at the end.
    pub fn verify(&mut self, out: &mut Out<'_>) -> Result<Verified, LookError> {
        verify::verify(&mut self.looker, out)
    }

    /// What a purge would give up. Only of files: a running outbox is asked itself.
    pub fn purge(&mut self, selection: &Selection) -> Result<Purged, WouldError> {
        change::purge(&mut self.looker, selection)
    }

    /// What a replay would copy, and whether there would be room. Only of files.
    pub fn replay(&mut self, selection: &Selection, config: &config::Outbox) -> Result<Replayed, WouldError> {
        change::replay(&mut self.looker, selection, config)
    }

    /// Readings and gaps of a selection in order of sequence. Lines: [`Line::Begin`], readings, [`Line::Gap`],
    /// [`Line::Progress`], [`Line::Exported`] at the end.
    pub fn export(&mut self, selection: &Wanted, out: &mut Out<'_>) -> Result<Exported, LookError> {
        export::export(&mut self.looker, selection, out)
    }
}
