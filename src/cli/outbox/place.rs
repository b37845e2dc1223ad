//! Where the outbox is: with a daemon that runs, or in files that nobody uses.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::status::SYSTEM_DIRECTORY;
use super::super::{ConfigArguments, Exit, Failure};
use super::ask::Daemon;
use super::stopping;
use crate::agent::doors::SOCKET;
use crate::config::load;
use crate::outbox::Look;
use crate::outbox::look::running;
use crate::status::{self, AgentStatus};

/// Where to look: arguments of every command that reads the outbox.
#[derive(Debug, Args)]
pub(super) struct PlaceArguments {
    #[command(flatten)]
    config: ConfigArguments,
    /// Look into this state directory (also a copy from another machine) instead of the configured one
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where files are copied to while they are read, when no daemon runs: some 30 MiB [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

/// What answers.
#[derive(Debug)]
pub(super) enum Source {
    Daemon(Daemon),
    Files(Box<Look>),
}

impl PlaceArguments {
    /// Asks the daemon if one runs, else opens the files.
    pub(super) fn open(self) -> Result<Source, Failure> {
        let configured = || load::glimpse(&self.config.origin()).map(|glimpse| glimpse.state_dir);
        let state_dir = self.state_dir.or_else(configured).unwrap_or_else(crate::config::Agent::default_state_dir);
        if let Some(daemon) = find(&state_dir, None)? {
            return Ok(Source::Daemon(daemon));
        }
        stopping::listen();
        Ok(Source::Files(Box::new(Look::at_files(&state_dir, self.temp_dir.as_deref())?)))
    }
}

/// The daemon that uses this very directory, not a copy of it; `None`: nobody uses it. Fails if somebody does who does not
/// answer, or is the daemon of another agent than `agent_id`.
pub(super) fn find(state_dir: &Path, agent_id: Option<&str>) -> Result<Option<Daemon>, Failure> {
    let running = match running(state_dir) {
        Ok(None) => return Ok(None),
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            let text = format!("cannot read the outbox in {}: {error}", state_dir.display());
            return Err(Failure::new(Exit::InputOutput, text));
        }
        running => running.ok().flatten(),
    };
    let tried = match socket(state_dir, agent_id) {
        Ok(socket) => return Ok(Some(Daemon::at(socket))),
        Err(tried) => tried,
    };
    Err(match running {
        Some(pid) => {
            let pid = if pid > 0 { format!(" (pid {pid})") } else { String::new() };
            let text = format!(
                "a daemon{pid} uses {} and does not answer at its control socket: {tried}. The files change under whoever \
                 reads them now, so they are left alone. If it is just starting or stopping, try again in a moment; else run \
                 this as a user who may open the socket, or stop the daemon first: systemctl stop fieldpost",
                state_dir.display()
            );
            Failure::new(Exit::TryAgain, text)
        }
        None => {
            let text = format!(
                "this user may not look into {}, and no daemon of it answers: {tried}. Run this as root or as the user of the \
                 daemon: sudo fieldpost outbox ...",
                state_dir.display()
            );
            Failure::new(Exit::InputOutput, text)
        }
    })
}

/// Where the daemon of this directory listens; what was tried, if none answers.
fn socket(state_dir: &Path, agent_id: Option<&str>) -> Result<PathBuf, String> {
    let mut tried = Vec::new();
    for path in [state_dir, Path::new(SYSTEM_DIRECTORY)].map(|directory| directory.join(SOCKET)) {
        let why = match status::ask(&path) {
            Ok(status) => match stranger(state_dir, agent_id, &status.agent) {
                None => return Ok(path),
                Some(why) => why,
            },
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "this user may not open it: run this as root or as a member of its group".to_owned()
            }
            Err(error) => error.to_string(),
        };
        tried.push(format!("{}: {why}", path.display()));
    }
    Err(tried.join("; "))
}

/// Why a daemon is not that of this directory.
fn stranger(state_dir: &Path, agent_id: Option<&str>, daemon: &AgentStatus) -> Option<String> {
    if agent_id.is_some_and(|id| *id != daemon.id) {
        return Some(format!("that is the daemon of agent {}", daemon.id));
    }
    let Some(theirs) = &daemon.state_dir_id else {
        return Some(format!(
            "that daemon (version {}) does not tell which directory it uses: restart it",
            daemon.version
        ));
    };
    match status::directory_id(state_dir) {
        Ok(id) if id == *theirs => None,
        Ok(_) => Some("that daemon uses another directory".to_owned()),
        Err(error) => Some(format!("whether that daemon uses this directory cannot be told: {error}")),
    }
}
