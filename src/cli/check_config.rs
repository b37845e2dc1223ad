//! `fieldpost check-config`

use clap::Args;

use super::{ConfigArguments, Exit, Failure, show, tell};

/// Check the configuration and name every mistake in it
#[derive(Debug, Args)]
#[command(after_help = "Reads what `run` would read: the main file, conf.d/*.toml beside it by name, variables \
FIELDPOST_SECTION__KEY, arguments --set. Later ones win. Nothing is connected to and nothing is written. \
Exit code 78 when there is a mistake; warnings do not count.

Examples:
  fieldpost check-config
  fieldpost check-config --config ./fieldpost.toml --set delivery.headers=minimal")]
pub(super) struct CheckConfig {
    #[command(flatten)]
    config: ConfigArguments,
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let loaded = self.config.load()?;
        for warning in &loaded.warnings {
            tell(&format!("warning: {warning}"));
        }
        let sources: Vec<_> =
            loaded.config.sources.iter().map(|(name, source)| format!("{name} ({})", source.type_name())).collect();
        let sources = if sources.is_empty() { "none".to_owned() } else { sources.join(", ") };
        show(&format!("good: agent {}, sources: {sources}\n", loaded.config.agent.id))?;
        Ok(Exit::Done)
    }
}
