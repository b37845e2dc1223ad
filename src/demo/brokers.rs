//! Real brokers on this machine, for the demo and the end-to-end tests: Apache Kafka from its jars, mosquitto from the
//! distribution. Both listen on loopback only, keep their files in a directory the caller owns, and die with this process.
//!
//! What `scripts/setup` has not installed is an error that says so; nothing here downloads or installs.

pub mod kafka;
pub mod mosquitto;
pub mod process;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use kafka::{Kafka, KafkaOptions};
pub use mosquitto::{Mosquitto, MosquittoOptions};
pub use process::Process;

/// Why a broker could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// A part that `scripts/setup` installs is not there.
    #[error("{0} is missing: run `make setup`")]
    Missing(String),
    /// It ended, or did not become ready in time. The end of its log is part of the text.
    #[error("{what}\n--- the end of {log}:\n{tail}")]
    Failed {
        /// What went wrong.
        what: String,
        /// Where the whole log is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// Kafka refused an administrative request.
    #[error("{0}")]
    Refused(String),
    /// The file system or the process table failed us.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
}

impl BrokerError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

/// Where `scripts/setup` keeps what it fetches: `$XDG_CACHE_HOME/fieldpost`, or `~/.cache/fieldpost`.
pub fn cache_dir() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("fieldpost")
}

/// A TCP port of loopback that nobody listens on. Taken from below the range that the kernel gives to outgoing connections, so
/// that only another caller of this function could take it before it is used.
pub fn free_port() -> Result<u16, BrokerError> {
    const FIRST: u16 = 20_000;
    const COUNT: u32 = 12_000;
    for _ in 0..1000 {
        let random = getrandom::u32().map_err(|error| BrokerError::Refused(format!("no random number: {error}")))?;
        let port = FIRST + (random % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(BrokerError::Refused("no free port between 20000 and 32000".to_owned()))
}

/// Calls `done` every 20 ms until it is true. `false` when `limit` has passed.
fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Copies a directory tree of plain files.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
