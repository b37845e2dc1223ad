//! Rebuilding a damaged generation: beside somebody who is opening it, within the cap, and whatever somebody sent.

use std::fs;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::damage_tests::{MAX, databases, filled, overwrite};
use super::generation::{Generation, StoreError};
use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::outbox::Compression;

#[test]
fn a_generation_is_not_exchanged_while_somebody_is_just_opening_it() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 3000);
    let rig = Rig::open_with(dir.path(), options(MAX));
    let shared = rig.outbox.shared.clone();
    let id = shared.view().generations[0].id;
    // Somebody is in the middle of opening it, as `Live::open` does; somebody else has found damage in it.
    let opening = shared.opening();
    let generation = Arc::new(Generation::open_closed(&shared.directory, id).unwrap());
    let (done, answer) = mpsc::sync_channel(1);
    rig.outbox.commands.send(Command::SetAside(id, "a test".to_owned(), done)).unwrap();
    let early = answer.recv_timeout(Duration::from_secs(1));
    shared.view().generations[0].live = Arc::downgrade(&generation);
    drop(opening);
    assert!(early.is_err(), "it was exchanged under him");
    assert_eq!(answer.recv_timeout(Duration::from_secs(60)), Ok(true));
    let found = generation.block_from(0);
    assert!(matches!(found, Err(StoreError::Closed)), "his handle is that of what was moved away: {found:?}");
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert!(readings(&items) == wanted && holes(&items).is_empty(), "{:?}", holes(&items));
    rig.close();
}

/// Somebody sends a block, under the very numbers of the reading that carries it; then that reading is damaged.
#[test]
fn a_block_inside_a_reading_never_becomes_readings_of_ours() {
    for codec in [Compression::Zstd, Compression::Lz4, Compression::None] {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = options(MAX);
        settings.config.compression = codec;
        let mut rig = Rig::open_with(dir.path(), settings.clone());
        rig.append_all(&many(1, 20, 300));
        let (index, sequence) = {
            let view = rig.outbox.shared.view();
            (view.durable_index + 1, view.durable_sequence + 1)
        };
        let forged = reading_of(666, 300, true);
        let mut packer = packer::Packer::new(codec, 7_000, index, sequence);
        packer.push_arrival(&"other".into(), std::slice::from_ref(&forged), None);
        packer.flush();
        let block = packer.take().unwrap().bytes;
        let mut carrier = reading_of(21, 0, true);
        let (before, after) = (reading_of(22, 1000, true).value, reading_of(23, 2000, true).value);
        carrier.value = [&before[..], &block, &after].concat().into();
        rig.append_all(&[carrier]);
        rig.append_all(&many(22, 20, 300));
        rig.close();

        let db = databases(dir.path()).pop().unwrap().join("db");
        let bytes = fs::read(&db).unwrap();
        let mut hurt = 0;
        for at in memchr::memmem::find_iter(&bytes, &before[500..600]) {
            overwrite(&db, at as u64, &[0xee; 50]);
            hurt += 1;
        }
        assert!(hurt > 0, "{codec:?}: what is sent stands there as it is");
        let rig = Rig::open_with(dir.path(), settings);
        let items = read_all(&mut rig.outbox.reader(), 0);
        let found = readings(&items);
        assert!(!found.contains(&forged), "{codec:?}: the forged reading is delivered");
        assert_eq!(found.len(), 40, "{codec:?}: all but the one that was hurt: {:?}", holes(&items));
        assert!(holes(&items).iter().any(|hole| (hole.0, hole.1, &*hole.2) == (sequence, sequence, "damage")));
        rig.close();
    }
}
