//! A private directory in which one generation at a time is copied and opened, so that the original is left as it is.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::directory::{Directory, GenerationId};
use super::super::generation::{Generation, SEGMENT_BYTES, StoreError};
use super::rescue::{self, Failed};
use super::stop;

/// A generation takes some 20 MiB at most. What is far beyond is none of ours, and is not copied.
const COPY_BYTES_MAX: u64 = 256 << 20;

/// The directory; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Bench {
    directory: tempfile::TempDir,
}

/// Places that could not be read, by file.
pub(super) type Unread = Vec<(PathBuf, Vec<Range<u64>>)>;

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

    /// Copies a generation here, instead of what was here before. `wanted` says which of its files. Where it cannot be
    /// read there are zeros, and the place is named.
    pub(super) fn copy(&self, from: &Path, id: GenerationId, wanted: impl Fn(&str) -> bool) -> Result<Unread, Failed> {
        self.clear().map_err(Failed::To)?;
        let to = self.path().join(id.to_string());
        let mut copy = Copy { wanted, left: COPY_BYTES_MAX, unread: Vec::new() };
        copy.tree(from, &to)?;
        Ok(copy.unread)
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

/// As a text for humans.
pub(super) fn tell(unread: &Unread) -> Option<String> {
    let bytes: u64 = unread.iter().flat_map(|(_, ranges)| ranges).map(|range| range.end - range.start).sum();
    let (path, ranges) = unread.first()?;
    Some(format!(
        "{bytes} bytes cannot be read from the medium, the first at {} of {}",
        ranges.first()?.start,
        path.display()
    ))
}

struct Copy<W> {
    wanted: W,
    left: u64,
    unread: Unread,
}

impl<W: Fn(&str) -> bool> Copy<W> {
    /// Plain files and directories only: a link or a pipe in a directory from elsewhere leads nowhere.
    fn tree(&mut self, from: &Path, to: &Path) -> Result<(), Failed> {
        fs::create_dir(to).map_err(Failed::To)?;
        for entry in fs::read_dir(from).map_err(Failed::From)? {
            let entry = entry.map_err(Failed::From)?;
            let name = entry.file_name();
            let kind = entry.file_type().map_err(Failed::From)?;
            if !(self.wanted)(&name.to_string_lossy()) {
                continue;
            }
            if kind.is_dir() {
                self.tree(&entry.path(), &to.join(name))?;
            } else if kind.is_file() {
                self.file(&entry.path(), &to.join(name))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, from: &Path, to: &Path) -> Result<(), Failed> {
        let source = File::open(from).map_err(Failed::From)?;
        let len = source.metadata().map_err(Failed::From)?.len();
        self.left = self.left.checked_sub(len).ok_or_else(|| {
            let text = format!("{} is too large to be of a generation", from.display());
            Failed::From(io::Error::new(io::ErrorKind::InvalidData, text))
        })?;
        let target = File::create(to).map_err(Failed::To)?;
        let lost = rescue::read(&source, len, |at, bytes| {
            stop::check().map_err(Failed::To)?;
            target.write_all_at(bytes, at).map_err(Failed::To)
        })?;
        if !lost.is_empty() {
            self.unread.push((from.to_owned(), lost));
        }
        Ok(())
    }
}
