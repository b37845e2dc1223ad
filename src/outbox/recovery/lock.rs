//! Whose directory it is: one process at a time, and only an outbox of this agent and format.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::Path;

use crate::outbox::OpenError;

use super::super::directory::{Directory, pid_of};
use super::super::format;
use super::io_error;

/// Locks the state directory; the lock lives as long as the file.
pub(super) fn lock(state_dir: &Path) -> Result<File, OpenError> {
    let path = state_dir.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid = file.read_to_string(&mut text).ok().and_then(|_| pid_of(&text));
            let holder = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            return Err(OpenError::Locked { path: state_dir.display().to_string(), holder });
        }
        Err(error) => return Err(io_error("lock", &path)(error.into())),
    }
    Ok(file)
}

/// Writes whose lock it is: the pid, and for people the program. In place, so that a full disk has room for it; if it has
/// none, the lock tells who holds it, not what stands in the file.
pub(super) fn sign(file: &mut File) -> io::Result<()> {
    let text = format!("{}\n{}", std::process::id(), format::stamp());
    file.rewind()?;
    match file.write_all(text.as_bytes()) {
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            log::warn!("cannot write our process id into the lock file: {error}");
            Ok(())
        }
        written => written.and_then(|()| file.set_len(text.len() as u64)),
    }
}

/// Refuses what is not ours, before anything is changed.
pub(super) fn refuse_foreign(directory: &Directory, agent: &str) -> Result<(), OpenError> {
    if !directory.path().exists() {
        return Ok(());
    }
    match format::foreign(directory, agent) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(OpenError::Foreign(why)),
        Err(error) => Err(io_error("read", directory.path())(error)),
    }
}
