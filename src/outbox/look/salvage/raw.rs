//! Finds blocks by their bytes, wherever they stand in a file, without the store.
//!
//! sled keeps values as they are, so every block stands in its file whole, often several times, for a page is written again
//! when it grows. A block begins with its version and codec and a head whose numbers must make sense; its payload says
//! how long it is, and the checksum must come out right; what it unpacks to must be as many entries as it says. Of two that disagree
//! about an entry the one in the younger segment of the file is taken: a segment begins with its log number.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::super::super::block::{self, Decoder, HEAD_BYTES, RAW_BYTES_MAX};
use super::super::super::entry::{ENTRY_HEAD_BYTES, Framed};
use super::super::super::generation::SEGMENT_BYTES;
use super::super::rescue::{self, Failed};
use super::super::stop;
use super::Block;

/// A file beyond this is none of ours.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Blocks in the files of a generation, youngest first, and what is wrong with its files. Fails only if it was told to stop:
/// a file full of what looks like blocks takes long.
pub(super) fn blocks_in(generation: &Path) -> io::Result<(Vec<Block>, Vec<String>)> {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for path in files(generation) {
        match read(&path) {
            Ok(bytes) => found.extend(scan(&bytes)?),
            Err(error) => faults.push(format!("cannot read {}: {error}", path.display())),
        }
    }
    found.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    Ok((found.into_iter().map(|(_, block)| block).collect(), faults))
}

/// A file, zeros where the medium does not give it (which the copy has told); nothing, if it is none of ours.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_file() || meta.len() > FILE_BYTES_MAX {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    let read = rescue::read(&File::open(path)?, meta.len(), |_, chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    });
    match read {
        Ok(_) => Ok(bytes),
        Err(Failed::From(error) | Failed::To(error)) => Err(error),
    }
}

/// The log, and large values that stand beside it.
fn files(generation: &Path) -> Vec<PathBuf> {
    let blobs = fs::read_dir(generation.join("blobs")).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(generation.join("db")).chain(blobs).collect()
}

/// Log number of the segment, offset in the file: the larger, the younger.
type Rank = (i64, usize);

fn scan(bytes: &[u8]) -> io::Result<Vec<(Rank, Block)>> {
    let mut found = Vec::new();
    let mut decoder = Decoder::default();
    let mut at = 0;
    while at + HEAD_BYTES <= bytes.len() {
        if !is_plausible(&bytes[at..]) {
            at += 1;
            continue;
        }
        stop::check()?;
        // No block has another one in its bytes (docs/decisions/0227): what is within a whole one is a reading's.
        let measured = block::measure(&bytes[at..]).map(|(_, len)| len);
        match measured.and_then(|len| Some((proven(&bytes[at..at + len], &mut decoder)?, len))) {
            Some((block, len)) => {
                found.push(((log_number(bytes, at), at), block));
                at += len;
            }
            None => at += 1,
        }
    }
    Ok(found)
}

/// Whether a head stands here whose numbers make sense.
fn is_plausible(bytes: &[u8]) -> bool {
    if !block::may_begin(bytes[0]) {
        return false;
    }
    let half = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let (entries, sequences, raw_len) = (half(21), half(25), half(29));
    entries > 0
        && sequences <= entries
        && raw_len <= RAW_BYTES_MAX
        && entries.saturating_mul(ENTRY_HEAD_BYTES) <= raw_len
}

/// The block, if it holds what it says.
fn proven(bytes: &[u8], decoder: &mut Decoder) -> Option<Block> {
    let (head, raw) = decoder.decode(bytes).ok()?;
    holds_what_it_says(head.entries, head.sequences, &raw).then_some(Block { head, raw })
}

fn holds_what_it_says(entries: u32, sequences: u32, raw: &Bytes) -> bool {
    let (mut at, mut found, mut counting) = (0, 0, 0);
    while let Some(framed) = Framed::at(raw, at) {
        if framed.decode(raw).is_none() {
            return false;
        }
        at = framed.next;
        found += 1;
        counting += u32::from(framed.counts());
    }
    at == raw.len() && (found, counting) == (entries, sequences)
}

/// Log number of the segment in which `at` stands: head of 20 bytes, checksum (inverted), log number (all but the sign
/// inverted), another number. -1: no valid head.
fn log_number(bytes: &[u8], at: usize) -> i64 {
    let mut sizes = SEGMENT_BYTES;
    sizes.sort_unstable();
    for size in sizes {
        let Some(head) = bytes.get(at / size * size..).and_then(|rest| rest.get(..20)) else { continue };
        let sum = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
        if crc32fast::hash(&head[4..]) == !sum {
            return i64::from_le_bytes(head[4..12].try_into().expect("eight bytes")) ^ i64::MAX;
        }
    }
    -1
}
