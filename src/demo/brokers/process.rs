//! A child process that cannot outlive us, with its output in a file.
//!
//! The kernel kills the child when its parent *thread* ends (`PR_SET_PDEATHSIG`, set by `setpriv`), so all children are spawned
//! by one thread that lives as long as the process does.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use super::{BrokerError, wait_until};

/// A running (or ended) child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with `arguments` and extra environment variables; what it prints is appended to the file `log`.
    pub fn start(
        name: impl Into<String>,
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self, BrokerError> {
        let name = name.into();
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(BrokerError::io(format!("the log {}", log.display())))?;
        let errors = output.try_clone().map_err(BrokerError::io(format!("the log {}", log.display())))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program.into()).args(arguments.into_iter().map(Into::into));
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = spawn_from_keeper(command).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BrokerError::Missing("setpriv (package util-linux)".to_owned()),
            _ => BrokerError::Io(format!("starting {name}"), error),
        })?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Its process id (`setpriv` has made way for the program).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal, unless the process has ended (its number may belong to another by now).
    pub fn signal(&mut self, signal: Signal) -> Result<(), BrokerError> {
        if self.ended().is_some() {
            return Err(self.failed(format!("{} had already ended", self.name)));
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| self.failed("no such process id".to_owned()))?;
        kill_process(pid, signal).map_err(|error| BrokerError::Io(format!("signalling {}", self.name), error.into()))
    }

    /// SIGKILL, and waits for the end. Nothing happens if it has ended before.
    pub fn kill(&mut self) -> Result<(), BrokerError> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(BrokerError::io("killing a process"))
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, limit: Duration) -> Result<ExitStatus, BrokerError> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// Waits for the end. A process that does not end in time is an error, and still runs.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, BrokerError> {
        let mut status = None;
        wait_until(limit, || {
            status = self.ended();
            status.is_some()
        });
        status.ok_or_else(|| self.failed(format!("{} did not end within {} s", self.name, limit.as_secs())))
    }

    /// An error about this process, with the end of its log.
    pub fn failed(&self, what: String) -> BrokerError {
        BrokerError::Failed { what, log: self.log.clone(), tail: tail(&self.log, 30) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            log::warn!("{} may be left running as process {}: {error}", self.name, self.pid());
        }
    }
}

/// The last lines of a file.
fn tail(path: &Path, lines_max: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].join("\n")
}

type Answer = SyncSender<io::Result<Child>>;

fn spawn_from_keeper(command: Command) -> io::Result<Child> {
    static KEEPER: OnceLock<SyncSender<(Command, Answer)>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<(Command, Answer)>(1);
        std::thread::Builder::new()
            .name("child-keeper".to_owned())
            .spawn(move || {
                for (mut command, answer) in receiver {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread can be started at the beginning of a run");
        sender
    });
    let (answer, child) = sync_channel(1);
    let gone = || io::Error::other("the thread that starts processes is gone");
    keeper.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_ends_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let start = move || Process::start("sleep", "sh", ["-c", "echo up; exec sleep 600"], &[], &log).unwrap();
        let mut child = std::thread::Builder::new().spawn(start).unwrap().join().unwrap();
        assert!(wait_until(Duration::from_secs(60), || tail(child.log(), 1) == "up"));
        assert_eq!(child.ended(), None);
        let stat = PathBuf::from(format!("/proc/{}/stat", child.pid()));
        assert!(stat.exists());
        child.signal(Signal::STOP).unwrap();
        drop(child);
        assert!(!stat.exists());
    }

    #[test]
    fn the_end_of_the_log_is_part_of_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo bad things; exit 3";
        let mut child = Process::start("script", "sh", ["-c", script], &[], &dir.path().join("log")).unwrap();
        assert_eq!(child.wait(Duration::from_secs(60)).unwrap().code(), Some(3));
        assert!(child.signal(Signal::TERM).unwrap_err().to_string().contains("bad things"));
    }
}
