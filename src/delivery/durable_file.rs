//! Small files that are replaced whole.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file whole (write, sync, rename, sync the directory): after a power cut it is the old or the new one.
pub(super) fn write_durably(file: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let temporary = file.with_extension("new");
    let mut out = fs::File::create(&temporary)?;
    for part in parts {
        out.write_all(part)?;
    }
    out.sync_all()?;
    drop(out);
    fs::rename(&temporary, file)?;
    match file.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
