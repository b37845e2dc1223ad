//! `fieldpost outbox`: one file per command. Those that look: `place.rs` finds the daemon or the files, `ask.rs` talks to the
//! daemon, `output.rs` writes a result where it is wanted. `purge.rs` and `replay.rs` change it, with `change.rs` in common.

mod ask;
mod change;
mod export;
mod inspect;
mod output;
mod place;
mod progress;
mod purge;
mod replay;
mod salvage;
mod stopping;
mod text;
mod verify;

use clap::Subcommand;

use super::{Exit, Failure};
use crate::outbox::look::Fault;
use crate::outbox::{LookError, look};

/// Look into the outbox, and change it
#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Say what the outbox holds, without changing it
    Inspect(inspect::Inspect),
    /// Check everything in the outbox, without changing it
    Verify(verify::Verify),
    /// Write readings out of the outbox, without changing it
    Export(export::Export),
    /// Recover what can be read from damaged generations
    Salvage(salvage::Salvage),
    /// Give up readings that wait, and remove delivered ones that are kept
    Purge(purge::Purge),
    /// Send delivered readings again that are still kept
    Replay(replay::Replay),
}

impl OutboxCommand {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        keep_the_store_quiet();
        let done = match self {
            Self::Inspect(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Salvage(command) => command.run(),
            Self::Purge(command) => command.run(),
            Self::Replay(command) => command.run(),
        };
        if done.is_err() && look::stop::is_asked() {
            done.map_err(|failure| failure.tell()).ok();
            stopping::end();
            return Ok(Exit::Failed);
        }
        done
    }
}

/// The store panics on some damage. That is caught and told in words; its own text would frighten and help nobody.
fn keep_the_store_quiet() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let of_store = panic.location().is_some_and(|place| place.file().contains("sled-"));
        if !of_store {
            usual(panic);
        }
    }));
}

impl From<LookError> for Failure {
    fn from(error: LookError) -> Self {
        Self::new(error.fault().into(), error.to_string())
    }
}

impl From<Fault> for Exit {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Foreign => Self::Configuration,
            Fault::Busy => Self::TryAgain,
            Fault::InputOutput => Self::InputOutput,
        }
    }
}
