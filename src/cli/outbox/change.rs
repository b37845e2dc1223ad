//! What `purge` and `replay` have in common: who makes the change (the daemon over its control socket, or this process when
//! none runs), arguments, questions, progress.

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::super::{ConfigArguments, Exit, Failure, tell};
use super::ask::Daemon;
use super::{place, stopping};
use crate::config::{Config, load};
use crate::metrics::OutboxMetrics;
use crate::outbox::look::{WouldError, stop};
use crate::outbox::{
    Change, ChangeError, Look, OpenError, OpenOptions, Outbox, Purged, Replayed, Selection, Step, run,
};

/// The outbox of this process gets this long to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(60);

/// Who makes the change.
pub(super) enum Changer {
    /// The daemon that has it open.
    Daemon(Daemon),
    /// Nobody has: its files tell what would be done.
    Files(Box<Files>),
    /// This process, which has opened the outbox.
    Own(Outbox),
}

/// An outbox that nobody uses.
pub(super) struct Files {
    look: Look,
    config: Config,
}

impl Changer {
    /// The daemon that uses the configured directory; if there is none, its files. Changes nothing.
    pub(super) fn find(config: ConfigArguments) -> Result<Self, Failure> {
        let target = load::target(&config.clone().origin())?;
        if let Some(daemon) = place::find(&target.state_dir, target.agent_id.as_deref())? {
            return Ok(Self::Daemon(daemon));
        }
        let config = config.load()?.config;
        stopping::listen();
        let look = Look::at_files(&config.agent.state_dir, None)?;
        Ok(Self::Files(Box::new(Files { look, config })))
    }

    /// What a purge would give up.
    pub(super) fn would_purge(&mut self, selection: &Selection) -> Result<Purged, Failure> {
        let change = Change { selection: selection.clone(), dry_run: true };
        match self {
            Self::Files(files) => Ok(files.look.purge(selection)?),
            _ => run(change, |change| self.purge(change), |_: &Purged| ()),
        }
    }

    /// What a replay would copy.
    pub(super) fn would_replay(&mut self, selection: &Selection) -> Result<Replayed, Failure> {
        let change = Change { selection: selection.clone(), dry_run: true };
        match self {
            Self::Files(files) => Ok(files.look.replay(selection, &files.config.outbox)?),
            _ => run(change, |change| self.replay(change), |_: &Replayed| ()),
        }
    }

    /// Fails if this user must not make the change: what he makes in files of another one, the daemon cannot write on.
    pub(super) fn may_change(&self) -> Result<(), Failure> {
        let Self::Files(files) = self else { return Ok(()) };
        let outbox = files.config.agent.state_dir.join("outbox");
        let owner = std::fs::metadata(&outbox)
            .map(|meta| meta.uid())
            .map_err(|error| Failure::new(Exit::InputOutput, format!("cannot read {}: {error}", outbox.display())))?;
        if owner == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let text = format!(
            "no daemon runs, and {} belongs to the user with id {owner}: do this as that user (sudo -u '#{owner}' fieldpost ...), \
             or start the daemon",
            outbox.display()
        );
        Err(Failure::new(Exit::InputOutput, text))
    }

    /// Ready to make the change: without a daemon the outbox is opened, which repairs and tidies it.
    pub(super) fn begin(self) -> Result<Self, Failure> {
        let Self::Files(files) = self else { return Ok(self) };
        files.begin()
    }

    pub(super) fn purge(&self, change: &Change) -> Result<Step<Purged>, Failure> {
        match self {
            Self::Daemon(daemon) => daemon.purge(change),
            Self::Own(outbox) => not_stopped().and_then(|()| Ok(outbox.purge(change)?)),
            Self::Files(_) => unreachable!("begin() comes first"),
        }
    }

    pub(super) fn replay(&self, change: &Change) -> Result<Step<Replayed>, Failure> {
        match self {
            Self::Daemon(daemon) => daemon.replay(change),
            Self::Own(outbox) => not_stopped().and_then(|()| Ok(outbox.replay(change)?)),
            Self::Files(_) => unreachable!("begin() comes first"),
        }
    }

    /// Ends what this process has opened.
    pub(super) fn close(self) {
        if let Self::Own(outbox) = self {
            outbox.close(CLOSE_WITHIN);
        }
    }
}

impl Files {
    fn begin(self) -> Result<Changer, Failure> {
        let Self { look, config } = self;
        // Its copies are not needed any more.
        drop(look);
        let options =
            OpenOptions { config: config.outbox, agent_id: config.agent.id, metrics: OutboxMetrics::default() };
        match Outbox::open(&config.agent.state_dir, options) {
            Ok(outbox) => Ok(Changer::Own(outbox)),
            Err(error @ OpenError::Locked { .. }) => {
                Err(Failure::new(Exit::TryAgain, format!("{error}: it began to use the outbox just now, try again")))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Ctrl-C ends it between two steps, so that the outbox is closed in order.
fn not_stopped() -> Result<(), Failure> {
    stop::check().map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

impl From<WouldError> for Failure {
    fn from(error: WouldError) -> Self {
        match error {
            WouldError::Look(error) => error.into(),
            WouldError::Change(error) => error.into(),
        }
    }
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
    // Nothing is open: whoever does not answer but stops it is not kept waiting for a line.
    stopping::at_once();
    // Nobody is left to ask when the terminal is gone: then the answer is no.
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    stopping::in_order();
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
