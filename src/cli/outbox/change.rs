//! What `purge` and `replay` have in common: who makes the change (the daemon over its control socket, or this process when
//! none runs), arguments, questions, progress.

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::super::{ConfigArguments, Exit, Failure, tell};
use super::ask::Daemon;
use super::place;
use crate::config::{Config, load};
use crate::metrics::OutboxMetrics;
use crate::outbox::{Change, ChangeError, OpenError, OpenOptions, Outbox, Purged, Replayed, Step};

/// The outbox of this process gets this long to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(60);

/// Who makes the change.
pub(super) enum Changer {
    /// The daemon that has it open.
    Daemon(Daemon),
    /// This process, which has opened the outbox.
    Own(Outbox),
}

impl Changer {
    /// The daemon that uses the configured directory; if there is none, the outbox itself. `may_open` is asked first: a start
    /// repairs and tidies an outbox, so that opening it changes it.
    pub(super) fn find(
        config: ConfigArguments,
        may_open: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let target = load::target(&config.clone().origin())?;
        match place::find(&target.state_dir, target.agent_id.as_deref())? {
            Some(daemon) => Ok(Self::Daemon(daemon)),
            None => Self::open(config.load()?.config, may_open),
        }
    }

    fn open(config: Config, may_open: impl FnOnce(&Path) -> Result<(), Failure>) -> Result<Self, Failure> {
        let state_dir = config.agent.state_dir;
        let outbox = state_dir.join("outbox");
        let owner = match std::fs::metadata(&outbox) {
            Ok(found) => found.uid(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::new(Exit::InputOutput, format!("there is no outbox in {}", state_dir.display())));
            }
            Err(error) => {
                return Err(Failure::new(Exit::InputOutput, format!("cannot read {}: {error}", outbox.display())));
            }
        };
        // What another user makes in it, the daemon cannot write on.
        if owner != rustix::process::geteuid().as_raw() {
            let text = format!(
                "no daemon runs, and {} belongs to the user with id {owner}: do this as that user (sudo -u '#{owner}' \
                 fieldpost ...), or start the daemon",
                outbox.display()
            );
            return Err(Failure::new(Exit::InputOutput, text));
        }
        may_open(&state_dir)?;
        let options =
            OpenOptions { config: config.outbox, agent_id: config.agent.id, metrics: OutboxMetrics::default() };
        match Outbox::open(&state_dir, options) {
            Ok(outbox) => Ok(Self::Own(outbox)),
            Err(error @ OpenError::Locked { .. }) => {
                Err(Failure::new(Exit::TryAgain, format!("{error}: it began to use the outbox just now, try again")))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn purge(&self, change: &Change) -> Result<Step<Purged>, Failure> {
        match self {
            Self::Daemon(daemon) => daemon.purge(change),
            Self::Own(outbox) => outbox.purge(change).map_err(Failure::from),
        }
    }

    pub(super) fn replay(&self, change: &Change) -> Result<Step<Replayed>, Failure> {
        match self {
            Self::Daemon(daemon) => daemon.replay(change),
            Self::Own(outbox) => outbox.replay(change).map_err(Failure::from),
        }
    }

    /// Ends what this process has opened.
    pub(super) fn close(self) {
        if let Self::Own(outbox) = self {
            outbox.close(CLOSE_WITHIN);
        }
    }
}

/// A dry run is dry: what would repair the outbox before it looks is not done for it.
pub(super) fn no_dry_run(state_dir: &Path) -> Failure {
    let text = format!(
        "no daemon uses {}, and only a running one can say what would be done: without one the outbox has to be opened, which \
         repairs and tidies it. Look with `fieldpost outbox inspect` and `fieldpost outbox export`, which change nothing",
        state_dir.display()
    );
    Failure::new(Exit::Unavailable, text)
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        let exit = match &error {
            ChangeError::Selection(_) => Exit::Usage,
            ChangeError::Refused(_) => Exit::Failed,
            ChangeError::Closed | ChangeError::Unwanted => Exit::TryAgain,
        };
        Self::new(exit, error.to_string())
    }
}

/// A time as it is given on the command line, nanoseconds since 1970-01-01 UTC.
pub(super) fn time(text: &str) -> Result<i64, String> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| "expected a time with its zone, as in 2026-11-21T08:00:00Z".to_owned())?;
    i64::try_from(time.as_nanosecond()).map_err(|_| "too far from now".to_owned())
}

/// Whether the owner says yes. Without a terminal nobody can be asked.
pub(super) fn confirmed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "there is no terminal to ask on: add --yes if you are sure, or --dry-run",
        ));
    }
    // Nobody is left to ask when the terminal is gone: then the answer is no.
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    Ok(read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// How far it is, on a terminal.
pub(super) struct Progress {
    shown: bool,
    from: u64,
    to: u64,
}

impl Progress {
    pub(super) fn over(from: u64, to: u64) -> Self {
        Self { shown: io::stderr().is_terminal(), from, to }
    }

    pub(super) fn reached(&self, sequence: u64, what: &str) {
        if self.shown {
            let (done, all) = ((sequence + 1).saturating_sub(self.from), (self.to + 1).saturating_sub(self.from));
            let percent = (100 * done).checked_div(all).unwrap_or(100);
            let _ = write!(io::stderr(), "\r\x1b[K{percent:>3} %  through {sequence}, {what}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Says on standard error what stands before a failure.
pub(super) fn tell_before(text: &str) {
    tell(&format!("fieldpost: {text}"));
}
