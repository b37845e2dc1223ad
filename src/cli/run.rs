//! `fieldpost run`

use clap::Args;

use super::{ConfigArguments, Exit, Failure};
use crate::agent;
use crate::config::load;
use crate::telemetry::Telemetry;

/// Run the daemon
#[derive(Debug, Args)]
#[command(
    after_help = "TERM or INT stops it in order (sources acknowledge what they took, delivery ends its transaction), a second \
one at once. HUP reads the configuration again: sources and the log filter change while running, a configuration \
with mistakes is refused. It logs to the journal under systemd, else to standard error.

Examples:
  fieldpost run
  fieldpost run --config ./fieldpost.toml --set agent.state_dir=/tmp/fieldpost --set agent.log=debug
  FIELDPOST_OUTBOX__MAX_BYTES=64MiB fieldpost run"
)]
pub(super) struct Run {
    #[command(flatten)]
    config: ConfigArguments,
}

impl Run {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let origin = self.config.origin();
        let loaded = load::load(&origin)?;
        let telemetry = Telemetry::start(&loaded.config.agent.log)
            .map_err(|error| Failure::new(Exit::InputOutput, error.to_string()))?;
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        agent::run(origin, loaded.config, telemetry)?;
        Ok(Exit::Done)
    }
}
