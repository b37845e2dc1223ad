//! How the process ends. The numbers are those of `sysexits.h` where it has one; systemd does not restart after 78.

use std::process::ExitCode;

use crate::agent::StartError;
use crate::config::mistake::Mistakes;
use crate::outbox::OpenError;

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1
    Failed,
    /// 2: the command line makes no sense.
    Usage,
    /// 69: a needed service or device is unavailable.
    Unavailable,
    /// 74: input or output failed.
    InputOutput,
    /// 75: try again, another instance holds the lock.
    TryAgain,
    /// 78: the configuration is wrong; a restart cannot help.
    Configuration,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unavailable => 69,
            Exit::InputOutput => 74,
            Exit::TryAgain => 75,
            Exit::Configuration => 78,
        })
    }
}

/// Why a command failed: an exit code and the text for it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    /// With this text.
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// Tells it once, and gives the code. A daemon that logs to the journal finds it there as well.
    #[must_use]
    pub fn tell(self) -> Exit {
        if log::max_level() >= log::Level::Error {
            log::error!(target: "fieldpost", "{}", self.text);
            log::logger().flush();
        } else {
            super::tell(&format!("fieldpost: {}", self.text));
        }
        self.exit
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::new(Exit::Configuration, mistakes.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let exit = match &error {
            OpenError::Locked { .. } => Exit::TryAgain,
            OpenError::Foreign(_) => Exit::Configuration,
            OpenError::Io { .. } => Exit::InputOutput,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Outbox(error) => error.into(),
            StartError::Setting(text) => Self::new(Exit::Configuration, text),
            StartError::Listen { .. } => Self::new(Exit::Unavailable, error.to_string()),
            StartError::System { .. } => Self::new(Exit::InputOutput, error.to_string()),
        }
    }
}
