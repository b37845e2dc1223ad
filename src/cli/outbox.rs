//! `fieldpost outbox`

use clap::{Args, Subcommand};

use super::{ConfigArguments, Exit, Failure};

/// Look into the outbox on disk
#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Say what the outbox holds, without changing it
    Inspect(Inspect),
}

/// Say what the outbox holds, without changing it
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    config: ConfigArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl OutboxCommand {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self::Inspect(command) = self;
        let _ = (command.config.load()?, command.json);
        Err(Failure::new(Exit::Failed, "not in this version"))
    }
}
