//! A directory of a later format, with the version in each single file: named, and not a byte of it is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::tests::*;
use super::*;
use crate::config::ByteSize;

const MAX: ByteSize = ByteSize::mib(8);

/// An outbox of several generations, with a reserve, and the hints of delivery.
fn outbox() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(MAX));
    rig.append_all(&many(1, 50, 60_000));
    rig.close();
    crate::delivery::write_fixture_files(&dir.path().join("outbox"));
    assert!(generations(dir.path()) >= 3);
    dir
}

/// Every file below a directory with its bytes.
fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.insert(path.clone(), Vec::new());
                left.push(path);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Makes a copy of a directory.
fn copy(from: &tempfile::TempDir, to: &Path) {
    for (path, bytes) in bytes_of(from.path()) {
        let new = to.join(path.strip_prefix(from.path()).unwrap());
        if path.is_dir() {
            fs::create_dir_all(new).unwrap();
        } else {
            fs::create_dir_all(new.parent().unwrap()).unwrap();
            fs::write(new, bytes).unwrap();
        }
    }
}

fn refusal(dir: &Path) -> String {
    match Outbox::open(dir, options(MAX)) {
        Err(OpenError::Foreign(text)) => text,
        Err(error) => panic!("refused for another reason: {error}"),
        Ok(outbox) => {
            outbox.close(Duration::from_secs(30));
            panic!("{} was opened", dir.display())
        }
    }
}

/// The name of the first generation.
fn first_generation(outbox: &Path) -> String {
    directory::Directory::new(outbox.to_owned()).list().unwrap()[0].id.to_string()
}

fn stamp_of_7() -> String {
    let text = "fieldpost 7.0.0, format 2";
    format!("{text}, {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// Writes a payload into a two-slot file.
fn write_slot(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let (mut slots, payload) = slots::Slots::open(path).unwrap();
    slots.write(&change(payload.unwrap())).unwrap();
}

/// Gives one file a later format. Every file that carries a version stands here once.
fn make_later(outbox: &Path, name: &str) {
    let path = outbox.join(name);
    match name {
        // A later program may have other fields as well.
        "state" => write_slot(&path, |_| br#"{"v":2,"writer":"7.0.0","lives":7}"#.to_vec()),
        "pos" => write_slot(&path, |_| vec![2, 1, 2, 3]),
        "hints" => fs::write(path, seal(r#"{"v":2,"writer":"7.0.0","trees":[]}"#)).unwrap(),
        "reserve" => {
            let mut bytes = fs::read(&path).unwrap();
            bytes[..stamp_of_7().len()].copy_from_slice(stamp_of_7().as_bytes());
            fs::write(path, bytes).unwrap();
        }
        name if name.ends_with(".ok") => fs::write(path, stamp_of_7()).unwrap(),
        name if name.ends_with(".end") => {
            fs::write(path, seal(r#"{"v":2,"writer":"7.0.0","from":1}"#)).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_later_format_in_any_single_file_is_named_and_nothing_is_changed() {
    let whole = outbox();
    let first = first_generation(&whole.path().join("outbox"));
    for name in ["state", "pos", "hints", "reserve", &format!("{first}.ok"), &format!("{first}.end")] {
        let dir = tempfile::tempdir().unwrap();
        copy(&whole, dir.path());
        make_later(&dir.path().join("outbox"), name);
        let before = bytes_of(dir.path());
        let text = refusal(dir.path());
        assert!(text.contains(&format!("outbox/{name} was written by")), "{name}: {text}");
        assert!(text.contains("format 2") && text.contains("knows up to 1"), "{name}: {text}");
        assert!(name == "pos" || text.contains("fieldpost 7.0.0"), "{name}: {text}");
        assert!(bytes_of(dir.path()) == before, "{name}: something was changed");
        // Nor is it guessed at by whoever only looks.
        let told = Look::at_files(dir.path(), None).unwrap_err();
        assert!(matches!(&told, LookError::Foreign(text) if text.contains("format 2")), "{name}: {told}");
    }
}

#[test]
fn damage_is_not_taken_for_a_version() {
    let whole = outbox();
    let first = first_generation(&whole.path().join("outbox"));
    for name in ["state", "pos", "hints", "reserve", &format!("{first}.ok"), &format!("{first}.end")] {
        let dir = tempfile::tempdir().unwrap();
        copy(&whole, dir.path());
        let path = dir.path().join("outbox").join(name);
        make_later(&dir.path().join("outbox"), name);
        let mut bytes = fs::read(&path).unwrap();
        // Wherever the checksum covers: in both slots, or in the only line.
        for at in [13, 4096 + 13] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x10;
            }
        }
        fs::write(&path, bytes).unwrap();
        let rig = Rig::open_with(dir.path(), options(MAX));
        assert_eq!(readings(&read_all(&mut rig.outbox.reader(), 0)).len(), 50, "{name}");
        rig.close();
    }
}

/// Opens a generation that was closed just now: sled lets go of its lock a little later.
pub(super) fn open_generation(directory: &directory::Directory, id: directory::GenerationId) -> generation::Generation {
    for _ in 0..500 {
        match generation::Generation::open(directory, id, generation::SEGMENT_BYTES[1]) {
            Err(generation::StoreError::Busy(_)) => std::thread::sleep(Duration::from_millis(20)),
            other => return other.unwrap(),
        }
    }
    panic!("{id} stays in use");
}

/// All blocks of a generation.
fn blocks(outbox: &Path, id: directory::GenerationId) -> Vec<(u64, Vec<u8>)> {
    let directory = directory::Directory::new(outbox.to_owned());
    let generation = open_generation(&directory, id);
    let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
    while let Some((key, block)) = generation.block_from(found.last().map_or(0, |(key, _)| key + 1)).unwrap() {
        found.push((key, block.to_vec()));
    }
    generation.close();
    found
}

/// Puts a block in the place of the last one.
fn replace_last(outbox: &Path, id: directory::GenerationId, change: impl FnOnce(&mut Vec<u8>)) {
    let (key, mut block) = blocks(outbox, id).pop().unwrap();
    change(&mut block);
    let directory = directory::Directory::new(outbox.to_owned());
    let generation = open_generation(&directory, id);
    generation.insert(key, &block).unwrap();
    generation.sync().unwrap();
    generation.close();
}

/// Another first byte, under a good checksum.
fn with_first_byte(block: &mut [u8], first: u8) {
    block[0] = first;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..1]);
    hasher.update(&block[5..]);
    block[1..5].copy_from_slice(&hasher.finalize().to_le_bytes());
}

#[test]
fn a_block_or_entry_of_a_later_format_is_no_damage() {
    type Change = fn(&mut Vec<u8>);
    let version: Change = |block| with_first_byte(block, 0x21);
    let codec: Change = |block| with_first_byte(block, 0x1e);
    // A later block may be shorter than the head of ours.
    let short: Change = |block| {
        block.truncate(9);
        with_first_byte(block, 0x20);
    };
    let entry: Change = |block| {
        let head = block::check(block).unwrap();
        let head = block::Head { entries: 1, sequences: 0, ..head };
        *block = block::Encoder::new(config::outbox::Compression::None).encode(head, &[200, 3, 0, 0, 0, 0]);
    };
    let whole = outbox();
    let list = directory::Directory::new(whole.path().join("outbox")).list().unwrap();
    for (what, change) in [("version", version), ("codec", codec), ("short", short), ("entry", entry)] {
        // In the newest generation, and in an older one that is read at opening for want of its summary.
        for (id, summary) in [(list.last().unwrap().id, true), (list[0].id, false)] {
            let dir = tempfile::tempdir().unwrap();
            copy(&whole, dir.path());
            let outbox = dir.path().join("outbox");
            if !summary {
                fs::remove_file(outbox.join(format!("{id}.end"))).unwrap();
            }
            replace_last(&outbox, id, change);
            let before: Vec<_> = list.iter().map(|found| blocks(&outbox, found.id)).collect();
            let text = refusal(dir.path());
            assert!(text.contains(&id.to_string()) && text.contains("a later fieldpost wrote it"), "{what}: {text}");
            let after: Vec<_> = list.iter().map(|found| blocks(&outbox, found.id)).collect();
            assert!(before == after && !outbox.join("damaged").exists(), "{what}: {text}");
        }
    }
}

#[test]
fn a_later_block_that_shows_only_while_running_stops_the_drain_and_loses_nothing() {
    let dir = outbox();
    let outbox = dir.path().join("outbox");
    let id = directory::Directory::new(outbox.clone()).list().unwrap()[0].id;
    replace_last(&outbox, id, |block| with_first_byte(block, 0x21));
    let rig = Rig::open_with(dir.path(), options(MAX));
    let mut reader = rig.outbox.reader();
    let mut last = 0;
    let error = loop {
        match reader.batch_after(Sequence(last), SOME) {
            Ok(batch) => last = batch.items.last().expect("it ends with an error").last().0,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("a later fieldpost wrote it"), "{error}");
    assert!(reader.batch_after(Sequence(last), SOME).is_err(), "and again");
    assert_eq!(rig.outbox.status().damaged, 0);
    assert_eq!(rig.outbox.shared.view().notes.iter().count(), 0);
    drop(reader);
    rig.close();
}
