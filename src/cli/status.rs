//! `fieldpost status`: asks the daemon over its control socket.

use std::path::PathBuf;

use clap::Args;

use super::{ConfigArguments, Exit, Failure, json, show};
use crate::agent::doors::SOCKET;
use crate::config::load;
use crate::status::{self, Status};

/// Where the unit lets the daemon put its socket.
pub(super) const SYSTEM_DIRECTORY: &str = "/run/fieldpost";

/// Ask the running daemon what it is doing
#[derive(Debug, Args)]
#[command(after_help = "Looks for the daemon of this configuration: in its state directory, then in /run/fieldpost. \
Exit code 69 when no daemon answers.

Examples:
  fieldpost status
  fieldpost status --json | jq .outbox.records")]
pub(super) struct StatusCommand {
    #[command(flatten)]
    config: ConfigArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Ask at this socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl StatusCommand {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let status = match &self.socket {
            Some(path) => status::ask(path).map_err(|error| nobody(&[(path.clone(), error.to_string())]))?,
            None => find(self.config)?,
        };
        show(&if self.json { json(&status)? } else { status::table(&status) })?;
        Ok(Exit::Done)
    }
}

/// Asks where the daemon of this configuration may listen: it runs on while somebody makes mistakes in its file. A
/// configuration that this user may not read leaves the place where the unit puts the socket.
fn find(config: ConfigArguments) -> Result<Status, Failure> {
    let glimpse = load::glimpse(&config.origin());
    let state_dir = glimpse.as_ref().map(|glimpse| glimpse.state_dir.clone());
    let agent_id = glimpse.and_then(|glimpse| glimpse.agent_id);
    let directories = state_dir.into_iter().chain([PathBuf::from(SYSTEM_DIRECTORY)]);
    let mut tried = Vec::new();
    for path in directories.map(|directory| directory.join(SOCKET)) {
        match status::ask(&path) {
            Ok(status) if agent_id.as_ref().is_some_and(|id| *id != status.agent.id) => {
                tried.push((path, format!("that is the daemon of agent {}", status.agent.id)));
            }
            Ok(status) => return Ok(status),
            Err(error) => tried.push((path, error.to_string())),
        }
    }
    Err(nobody(&tried))
}

fn nobody(tried: &[(PathBuf, String)]) -> Failure {
    let places: Vec<_> = tried.iter().map(|(path, why)| format!("{}: {why}", path.display())).collect();
    let text = format!("no daemon answers ({}); is it running? systemctl status fieldpost", places.join("; "));
    Failure::new(Exit::Unavailable, text)
}
