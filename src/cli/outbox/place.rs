//! Where the outbox is: with a daemon that runs, or in files that nobody uses.

use std::fs;
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

/// Who holds the lock on a state directory.
pub(super) enum Holder {
    Nobody,
    /// Its pid, if it is known.
    Somebody(Option<u32>),
    /// This user may not look.
    Hidden,
}

impl PlaceArguments {
    /// Asks the daemon if one runs, else opens the files.
    pub(super) fn open(self) -> Result<Source, Failure> {
        let glimpse = load::glimpse(&self.config.origin());
        let agent_id = glimpse.as_ref().and_then(|glimpse| glimpse.agent_id.clone());
        let named = self.state_dir.is_some();
        let state_dir = self.state_dir.or(glimpse.map(|glimpse| glimpse.state_dir));
        let state_dir = state_dir.unwrap_or_else(crate::config::Agent::default_state_dir);
        match holder(&state_dir).map_err(|error| unreadable(&state_dir, &error))? {
            Holder::Nobody => {
                stopping::listen();
                Ok(Source::Files(Box::new(Look::at_files(&state_dir, self.temp_dir.as_deref())?)))
            }
            Holder::Somebody(pid) => {
                let who = pid.map_or_else(|| "a daemon".to_owned(), |pid| format!("a daemon (pid {pid})"));
                socket(&state_dir, agent_id_of(&state_dir).or(agent_id).as_deref()).map(beside).map_err(|tried| {
                    let text = format!(
                        "{who} uses {} and does not answer at its control socket: {tried}. The files change under \
                         whoever reads them now, so they are left alone",
                        state_dir.display()
                    );
                    Failure::new(Exit::TryAgain, text)
                })
            }
            Holder::Hidden if named => Err(hidden(&state_dir, "")),
            Holder::Hidden => match socket(&state_dir, agent_id.as_deref()) {
                Ok(socket) => Ok(beside(socket)),
                Err(tried) => Err(hidden(&state_dir, &format!(", and no daemon answers: {tried}"))),
            },
        }
    }
}

fn beside(socket: PathBuf) -> Source {
    Source::Daemon(Daemon::at(socket))
}

fn unreadable(state_dir: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::InputOutput, format!("cannot read the outbox in {}: {error}", state_dir.display()))
}

fn hidden(state_dir: &Path, more: &str) -> Failure {
    let text = format!(
        "this user may not look into {}{more}. Run this as root or as the user of the daemon: \
         sudo fieldpost outbox ...",
        state_dir.display()
    );
    Failure::new(Exit::InputOutput, text)
}

pub(super) fn holder(state_dir: &Path) -> io::Result<Holder> {
    // Without the right to search the directory even a missing lock looks like a forbidden one.
    let file = match fs::File::open(state_dir.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Holder::Hidden),
        file => file?,
    };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Holder::Nobody),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let pid = fs::read_to_string(state_dir.join("lock"))
                .ok()
                .and_then(|text| text.lines().next()?.trim().parse().ok());
            Ok(Holder::Somebody(pid))
        }
        Err(error) => Err(error.into()),
    }
}

/// The agent whose directory it is.
fn agent_id_of(state_dir: &Path) -> Option<String> {
    crate::outbox::look::agent_of(state_dir)
}

/// Where the daemon listens that uses this very directory, not a copy of it; what was tried, if none answers.
pub(super) fn socket(state_dir: &Path, agent_id: Option<&str>) -> Result<PathBuf, String> {
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
