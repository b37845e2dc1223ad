//! `fieldpost config show`

use clap::{Args, Subcommand};

use super::{ConfigArguments, Exit, Failure, json, show};
use crate::config::{Config, Source};

/// Show the configuration in force
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every setting as it is after all files, variables and arguments
    Show(Show),
}

/// Print every setting as it is after all files, variables and arguments
#[derive(Debug, Args)]
#[command(after_help = "Passwords in addresses and in Kafka properties are not shown.

Examples:
  fieldpost config show
  FIELDPOST_OUTBOX__MAX_BYTES=64MiB fieldpost config show --json")]
pub(super) struct Show {
    #[command(flatten)]
    config: ConfigArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let Self::Show(command) = self;
        let config = redacted(command.config.load()?.config);
        if command.json {
            show(&json(&config)?)?;
        } else {
            let text = toml::to_string(&config);
            show(&text.map_err(|error| Failure::new(Exit::Failed, format!("cannot write TOML: {error}")))?)?;
        }
        Ok(Exit::Done)
    }
}

const REDACTED: &str = "[redacted]";

fn redacted(mut config: Config) -> Config {
    for (key, value) in &mut config.delivery.kafka.properties {
        let secret = ["password", "secret", "token", ".pem", "oauthbearer.config", "jaas"];
        if secret.iter().any(|word| key.contains(word)) {
            REDACTED.clone_into(value);
        }
    }
    for source in config.sources.values_mut() {
        if let Source::Mqtt(mqtt) = source {
            if let Ok(mut url) = url::Url::parse(&mqtt.url) {
                if url.password().is_some() && url.set_password(Some("redacted")).is_ok() {
                    mqtt.url = url.into();
                }
            }
        }
    }
    config
}
