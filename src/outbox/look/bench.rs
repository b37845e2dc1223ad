//! A private directory in which one generation at a time is copied and opened, so that the original is left as it is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::super::directory::{Directory, GenerationId};
use super::super::generation::{Generation, SEGMENT_BYTES, StoreError};

/// A generation takes some 20 MiB at most. What is far beyond is none of ours, and is not copied.
const COPY_BYTES_MAX: u64 = 256 << 20;

/// The directory; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new(parent: Option<&Path>) -> io::Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        // Mode 0700: readings are nobody else's business.
        let directory = tempfile::Builder::new().prefix("fieldpost-").tempdir_in(parent)?;
        Ok(Self { directory })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Copies a generation here, instead of what was here before. `wanted` says which of its files.
    pub(super) fn copy(&self, from: &Path, id: GenerationId, wanted: impl Fn(&str) -> bool) -> io::Result<PathBuf> {
        self.clear()?;
        let to = self.path().join(id.to_string());
        let mut left = COPY_BYTES_MAX;
        copy_tree(from, &to, &wanted, &mut left)?;
        Ok(to)
    }

    /// Opens the copy.
    pub(super) fn open(&self, id: GenerationId) -> Result<Generation, StoreError> {
        Generation::open(&Directory::new(self.path().to_owned()), id, SEGMENT_BYTES[0])
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path())? {
            fs::remove_dir_all(entry?.path())?;
        }
        Ok(())
    }
}

/// Plain files and directories only: a link or a pipe in a directory from elsewhere leads nowhere.
fn copy_tree(from: &Path, to: &Path, wanted: &impl Fn(&str) -> bool, left: &mut u64) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if !wanted(&name.to_string_lossy()) {
            continue;
        }
        if kind.is_dir() {
            copy_tree(&entry.path(), &to.join(name), wanted, left)?;
        } else if kind.is_file() {
            let mut source = File::open(entry.path())?;
            let len = source.metadata()?.len();
            *left = left.checked_sub(len).ok_or_else(|| {
                let text = format!("{} is too large to be of a generation", entry.path().display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            io::copy(&mut source, &mut File::create(to.join(name))?)?;
        }
    }
    Ok(())
}
