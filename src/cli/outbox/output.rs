//! Where a result goes: standard output, or a file that has its name only when it is whole and on the medium.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::{Exit, Failure};

/// Arguments of commands that write readings.
#[derive(Debug, Args)]
pub(super) struct OutputArguments {
    /// Write to this file (as FILE.*.partial until it is whole and synced); - is standard output, also if it is a terminal
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite FILE if it is there
    #[arg(long, requires = "output")]
    force: bool,
}

/// An open output.
#[derive(Debug)]
pub(super) enum Output {
    Stdout(BufWriter<io::Stdout>),
    File { to: PathBuf, partial: PathBuf, force: bool, file: BufWriter<File> },
}

/// Larger writes are easier on flash.
const BUFFER_BYTES: usize = 256 * 1024;

impl OutputArguments {
    /// Whether it goes to a file.
    pub(super) fn is_file(&self) -> bool {
        self.output.is_some() && !self.is_stdout_named()
    }

    /// Whether standard output was named, so that even a terminal gets what may harm it.
    pub(super) fn is_stdout_named(&self) -> bool {
        self.output.as_deref() == Some(Path::new("-"))
    }

    pub(super) fn open(self) -> Result<Output, Failure> {
        let Some(to) = self.output.filter(|to| to.as_os_str() != "-") else {
            return Ok(Output::Stdout(BufWriter::with_capacity(BUFFER_BYTES, io::stdout())));
        };
        check(&to, self.force)?;
        let name = to.file_name().ok_or_else(|| failed("write", &to, &io::ErrorKind::IsADirectory.into()))?;
        let mut prefix = name.to_owned();
        prefix.push(".");
        // A new file under a name that nobody can know before: not another export's, no link. Mode 0600: readings are
        // nobody else's business.
        let made = tempfile::Builder::new().prefix(&prefix).suffix(".partial").tempfile_in(parent_of(&to));
        let (file, partial) = made
            .and_then(|made| made.keep().map_err(|kept| kept.error))
            .map_err(|error| failed("write", &to, &error))?;
        Ok(Output::File { to, partial, force: self.force, file: BufWriter::with_capacity(BUFFER_BYTES, file) })
    }
}

/// Fails if something stands at `to` that may not be replaced.
fn check(to: &Path, force: bool) -> Result<(), Failure> {
    match fs::symlink_metadata(to) {
        Ok(_) if !force => Err(there(to)),
        Ok(meta) if !meta.is_file() => {
            let text = format!("{} is not a regular file, so it is not replaced", to.display());
            Err(Failure::new(Exit::InputOutput, text))
        }
        _ => Ok(()),
    }
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn there(path: &Path) -> Failure {
    Failure::new(Exit::InputOutput, format!("{} is there already: --force overwrites it", path.display()))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::InputOutput, format!("cannot {what} {}: {error}", path.display()))
}

impl Output {
    /// Whether it goes to the eyes of somebody.
    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Stdout(_)) && io::stdout().is_terminal()
    }

    /// Whether standard output is still free for something else.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File { .. })
    }

    /// Ends it: everything is written; a file is synced and gets its name.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(mut out) => match out.flush() {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(Failure::new(Exit::InputOutput, format!("cannot write to standard output: {error}")))
                }
                _ => Ok(()),
            },
            Self::File { to, partial, force, file } => {
                let synced = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
                synced.map_err(|error| failed("write", &partial, &error))?;
                rename(&partial, &to, force)?;
                let parent = parent_of(&to);
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| failed("sync", parent, &error))
            }
        }
    }

    /// What stays of it when it was not finished.
    pub(super) fn remains(&self) -> Option<&Path> {
        match self {
            Self::Stdout(_) => None,
            Self::File { partial, .. } => Some(partial),
        }
    }
}

/// Gives a file its name; never over another one unless that was asked for.
fn rename(from: &Path, to: &Path, force: bool) -> Result<(), Failure> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    if !force {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => return Err(there(to)),
            // A file system that does not know how: look, then rename.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if fs::symlink_metadata(to).is_ok() => {
                return Err(there(to));
            }
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(failed("write", to, &error.into())),
        }
    }
    check(to, true)?;
    fs::rename(from, to).map_err(|error| failed("write", to, &error))
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}
