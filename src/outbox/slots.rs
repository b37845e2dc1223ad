//! A small file that is never torn: two slots 4 KiB apart, written in turn, each `counter u64, length u32, payload,
//! crc32`. The valid slot with the higher counter holds. A write that is cut short leaves the other slot.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const SLOT_BYTES: usize = 4096;
const HEAD_BYTES: usize = 12;
/// Fills a slot that was never written: no counter, no length, and nothing that a file system stores as a hole.
const FILLER: u8 = 0xa5;
/// Longest payload.
pub(super) const PAYLOAD_BYTES_MAX: usize = SLOT_BYTES - HEAD_BYTES - 4;

/// The open file.
#[derive(Debug)]
pub(super) struct Slots {
    file: File,
    counter: u64,
}

impl Slots {
    /// Opens or makes the file; the payload that holds, if there is one. It is on the medium when this returns: who was
    /// killed between a write and its sync left it unsynced, and nobody would write it again. The caller syncs the directory.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Vec<u8>>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        take_room(&file)?;
        file.sync_all()?;
        let newest = read_newest(&file)?;
        let (counter, payload) = newest.map_or((0, None), |(counter, payload)| (counter, Some(payload)));
        Ok((Self { file, counter }, payload))
    }

    /// Writes and syncs.
    pub(super) fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "does not fit its slot"));
        }
        let counter = self.counter + 1;
        let mut slot = Vec::with_capacity(SLOT_BYTES);
        slot.extend_from_slice(&counter.to_le_bytes());
        slot.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        slot.extend_from_slice(payload);
        let sum = crc32fast::hash(&slot);
        slot.extend_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&slot, counter % 2 * SLOT_BYTES as u64)?;
        self.file.sync_data()?;
        self.counter = counter;
        Ok(())
    }
}

/// Has the blocks of both slots written once, so that a full disk does not keep `pos` from being written: what is
/// delivered could not be removed then, and there would never be room again.
fn take_room(file: &File) -> io::Result<()> {
    let all = 2 * SLOT_BYTES as u64;
    let meta = file.metadata()?;
    if meta.len() >= all && meta.blocks() * 512 >= all {
        return Ok(());
    }
    for number in 0..2 {
        if read_slot(file, number)?.is_none() {
            file.write_all_at(&[FILLER; SLOT_BYTES], number * SLOT_BYTES as u64)?;
        } else if meta.len() < all {
            file.set_len(all)?;
        }
    }
    Ok(())
}

/// The payload that holds, without changing the file.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    Ok(read_newest(&File::open(path)?)?.map(|(_, payload)| payload))
}

/// What one slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Never written.
    Empty,
    Valid,
    /// Something is there that is not whole.
    Torn,
}

/// Both slots, without changing the file.
pub(super) fn look(path: &Path) -> io::Result<[Slot; 2]> {
    let file = File::open(path)?;
    let slot = |number: u64| -> io::Result<Slot> {
        let mut counter = [0; 8];
        let there = file.read_at(&mut counter, number * SLOT_BYTES as u64)? == counter.len();
        Ok(match read_slot(&file, number)? {
            Some(_) => Slot::Valid,
            None if !there || counter == [0; 8] || counter == [FILLER; 8] => Slot::Empty,
            None => Slot::Torn,
        })
    };
    Ok([slot(0)?, slot(1)?])
}

fn read_newest(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    let first = read_slot(file, 0)?;
    let second = read_slot(file, 1)?;
    Ok(first.into_iter().chain(second).max_by_key(|(counter, _)| *counter))
}

fn read_slot(file: &File, number: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut slot = [0; SLOT_BYTES];
    let mut read = 0;
    while read < SLOT_BYTES {
        match file.read_at(&mut slot[read..], number * SLOT_BYTES as u64 + read as u64)? {
            0 => break,
            count => read += count,
        }
    }
    let counter = u64::from_le_bytes(slot[..8].try_into().expect("eight bytes"));
    let len = u32::from_le_bytes(slot[8..12].try_into().expect("four bytes")) as usize;
    if len > PAYLOAD_BYTES_MAX {
        return Ok(None);
    }
    let end = HEAD_BYTES + len;
    let valid = crc32fast::hash(&slot[..end]).to_le_bytes() == slot[end..end + 4] && counter > 0;
    Ok(valid.then(|| (counter, slot[HEAD_BYTES..end].to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_slots_have_their_blocks_from_the_start_and_lose_nothing_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
        let (_, none) = Slots::open(&path).unwrap();
        assert_eq!(none, None);
        assert!(blocks() >= 2 * SLOT_BYTES as u64, "{}", blocks());
        // One of an earlier version: a hole, and one slot written.
        std::fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(2 * SLOT_BYTES as u64).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut slots = Slots { file, counter: 0 };
        slots.write(b"one").unwrap();
        let (mut slots, payload) = Slots::open(&path).unwrap();
        assert_eq!(payload.unwrap(), b"one");
        assert!(blocks() >= 2 * SLOT_BYTES as u64, "{}", blocks());
        slots.write(b"two").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"two");
    }

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slots");
        let (mut slots, none) = Slots::open(&path).unwrap();
        assert_eq!(none, None);
        for text in ["one", "two", "three"] {
            slots.write(text.as_bytes()).unwrap();
        }
        assert_eq!(read(&path).unwrap().unwrap(), b"three");
        // The third write went to slot 1: tear it.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"xx", SLOT_BYTES as u64 + 13).unwrap();
        let (mut slots, payload) = Slots::open(&path).unwrap();
        assert_eq!(payload.unwrap(), b"two");
        slots.write(b"four").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"four");
        file.write_all_at(&[9; 20], 0).unwrap();
        file.write_all_at(&[9; 20], SLOT_BYTES as u64).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
