//! Whose directory it is: one process at a time, and only an outbox of this agent and format.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::outbox::OpenError;

use super::super::state::{self, FORMAT, Loaded};
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
            let mut pid = String::new();
            let known = file.read_to_string(&mut pid).is_ok_and(|_| pid.trim().parse::<u32>().is_ok());
            let holder = if known { format!(" (pid {})", pid.trim()) } else { String::new() };
            return Err(OpenError::Locked { path: state_dir.display().to_string(), holder });
        }
        Err(error) => return Err(io_error("lock", &path)(error.into())),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(io_error("write", &path))?;
    Ok(file)
}

/// Refuses what is not ours, before anything is changed.
pub(super) fn refuse_foreign(path: &Path, agent: &str) -> Result<(), OpenError> {
    let dir = path.display();
    match state::read(&path.join("state")).map_err(io_error("read", &path.join("state")))? {
        Loaded::State(state) if state.v != FORMAT => Err(OpenError::Foreign(format!(
            "{dir} has format {}, this program knows format {FORMAT}: use the version of fieldpost that wrote it",
            state.v
        ))),
        Loaded::State(state) if state.agent != agent => Err(OpenError::Foreign(format!(
            "{dir} is the outbox of agent \"{}\", not of \"{agent}\": set agent.id back, or give this agent a state_dir of its own",
            state.agent
        ))),
        Loaded::Unknown => Err(OpenError::Foreign(format!(
            "{dir}/state was written by an unknown version: use the version of fieldpost that wrote it"
        ))),
        _ => Ok(()),
    }
}
