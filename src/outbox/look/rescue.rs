//! Reads a file from a failing medium: as much of it as comes, in the places where it stood.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What is read at once while nothing fails, in bytes.
const CHUNK_BYTES: usize = 256 * 1024;
/// What is given up where reading fails: a page, for the kernel reads no less.
const PAGE_BYTES: usize = 4096;

/// Hands on the first `len` bytes of a file in their order; zeros stand for what cannot be read. Returns where that was.
/// Errors are those of `take`, and of the file where they are not about a place on the medium.
pub(super) fn read(
    file: &File,
    len: u64,
    mut take: impl FnMut(u64, &[u8]) -> Result<(), Failed>,
) -> Result<Vec<Range<u64>>, Failed> {
    let mut lost: Vec<Range<u64>> = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let wanted = usize::try_from(len - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let mut read = fill(file, at, &mut chunk[..wanted]);
        if matches!(&read, Err(error) if is_of_medium(error)) {
            read = Ok(wanted);
            for start in (0..wanted).step_by(PAGE_BYTES) {
                let page = &mut chunk[start..wanted.min(start + PAGE_BYTES)];
                let from = at + start as u64;
                match fill(file, from, page) {
                    // The file has become shorter.
                    Ok(got) => page[got..].fill(0),
                    Err(error) if is_of_medium(&error) => {
                        page.fill(0);
                        lose(&mut lost, from..from + page.len() as u64);
                    }
                    Err(error) => return Err(Failed::From(error)),
                }
            }
        }
        let got = read.map_err(Failed::From)?;
        take(at, &chunk[..got])?;
        at += got as u64;
        if got < wanted {
            break;
        }
    }
    Ok(lost)
}

/// Which side a copy failed on.
#[derive(Debug)]
pub(super) enum Failed {
    /// What is copied.
    From(io::Error),
    /// Where it is copied to.
    To(io::Error),
}

/// A sector that cannot be read, as opposed to a file that is not there or not allowed.
pub(super) fn is_of_medium(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn lose(lost: &mut Vec<Range<u64>>, range: Range<u64>) {
    match lost.last_mut().filter(|last| last.end == range.start) {
        Some(last) => last.end = range.end,
        None => lost.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_becomes_zeros_and_is_named() {
        // The memory of this process reads as a medium with bad sectors does: EIO wherever nothing is mapped.
        let area = vec![7_u8; 64 * PAGE_BYTES];
        let base = (area.as_ptr() as u64).div_ceil(PAGE_BYTES as u64) * PAGE_BYTES as u64;
        let memory = File::open("/proc/self/mem").unwrap();
        let mut read_back = Vec::new();
        let take = |bytes: &[u8], into: &mut Vec<u8>| into.extend_from_slice(bytes);
        // Nothing is ever mapped at the lowest addresses.
        let lost = read(&memory, 10_000, |at, bytes| {
            assert_eq!(at, read_back.len() as u64);
            take(bytes, &mut read_back);
            Ok(())
        });
        let lost = lost.unwrap();
        assert_eq!((lost.len(), &lost[0]), (1, &(0..10_000)));
        assert_eq!(read_back, vec![0; 10_000]);
        let mut page = [0; PAGE_BYTES];
        assert_eq!(fill(&memory, base, &mut page).unwrap(), PAGE_BYTES);
        assert_eq!(page, [7; PAGE_BYTES]);
    }
}
