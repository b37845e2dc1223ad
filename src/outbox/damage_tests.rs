//! Damage of every kind: no panic, no silence; what is missing comes as holes, the rest is delivered.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::testing::{copy_tree, reading_of};
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::Item;

pub(super) const MAX: ByteSize = ByteSize::mib(32);

/// An outbox of several closed generations with these readings.
pub(super) fn filled(dir: &Path, count: u64) -> Vec<Reading> {
    let mut rig = Rig::open_with(dir, options(MAX));
    let wanted: Vec<_> = (1..=count).map(|n| reading_of(n, 1500, true)).collect();
    rig.append_all(&wanted);
    rig.outbox.sync_position().unwrap();
    rig.close();
    wanted
}

pub(super) fn databases(dir: &Path) -> Vec<PathBuf> {
    let directory = directory::Directory::new(dir.join("outbox"));
    directory.list().unwrap().iter().map(|found| directory.generation(found.id)).collect()
}

/// Reads everything; each sequence of the old readings is either itself or in a hole, and new readings still pass.
fn check(dir: &Path, wanted: &[Reading]) -> Vec<Item> {
    let mut rig = Rig::open_with(dir, options(MAX));
    rig.append(reading_of(7, 77, false), None);
    let mut reader = rig.outbox.reader();
    let items = read_all(&mut reader, 0);
    for item in &items {
        if let Item::Reading(stored) = item {
            let at = stored.sequence.0 as usize;
            if at <= wanted.len() {
                assert!(stored.reading == wanted[at - 1], "sequence {at} holds something else");
            }
        }
    }
    let Some(Item::Reading(last)) = items.last() else { panic!("the fresh reading is missing") };
    assert!(last.reading == reading_of(7, 77, false));
    // Holes are durable: they are the same after another start.
    drop(reader);
    rig.close();
    let rig = Rig::open_with(dir, options(MAX));
    let again = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(holes(&again), holes(&items));
    assert!(readings(&again) == readings(&items));
    rig.close();
    items
}

pub(super) fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_closed_generation_that_is_gone_is_one_hole() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 4500);
    let all = databases(dir.path());
    assert!(all.len() >= 3, "{}", all.len());
    fs::remove_dir_all(&all[1]).unwrap();
    let items = check(dir.path(), &wanted);
    let holes = holes(&items);
    assert_eq!(holes.len(), 1, "{holes:?}");
    assert_eq!(holes[0].2, "damage");
    assert_eq!(readings(&items).len() as u64, 4501 - (holes[0].1 - holes[0].0 + 1));
}

#[test]
fn a_closed_generation_that_does_not_open_is_set_aside_and_is_one_hole() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 4500);
    let all = databases(dir.path());
    // Nothing of its log can be read.
    let db = all[1].join("db");
    let len = fs::metadata(&db).unwrap().len();
    overwrite(&db, 0, &vec![0xee; len as usize]);
    let items = check(dir.path(), &wanted);
    let holes = holes(&items);
    assert_eq!(holes.len(), 1, "{holes:?}");
    assert!(holes[0].0 > 1 && holes[0].1 < 4500);
}

#[test]
fn a_newest_generation_that_is_gone_begins_a_new_incarnation_beyond_all_old_numbers() {
    for how in ["remove", "garbage", "truncate"] {
        let dir = tempfile::tempdir().unwrap();
        let wanted = filled(dir.path(), 2000);
        let newest = databases(dir.path()).pop().unwrap();
        match how {
            "remove" => fs::remove_dir_all(&newest).unwrap(),
            "garbage" => {
                for entry in fs::read_dir(&newest).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        overwrite(&path, 0, &vec![0x5a; fs::metadata(&path).unwrap().len() as usize]);
                    }
                }
            }
            _ => {
                let file = fs::File::options().write(true).open(newest.join("db")).unwrap();
                file.set_len(file.metadata().unwrap().len() / 4).unwrap();
            }
        }
        let items = check(dir.path(), &wanted);
        let holes = holes(&items);
        let damage = holes.iter().rev().find(|hole| hole.2 == "damage").unwrap_or_else(|| panic!("{how}: {holes:?}"));
        assert!(damage.1 <= 2000, "{how}: up to what pos says was durable");
        let born = holes.iter().find(|hole| hole.2 == "new_incarnation").unwrap_or_else(|| panic!("{how}: {holes:?}"));
        assert_eq!(born.0, 2001, "{how}");
        assert!(born.1 > 100_000, "{how}: beyond any number the old one can have given");
        let lives: Vec<_> = items.iter().map(Item::incarnation).collect();
        let (old, new) = (lives[0], *lives.last().unwrap());
        assert_ne!(old, new);
        let previous = |item: &Item| matches!(item, Item::Hole(hole) if hole.previous == Some(old));
        assert_eq!(items.iter().filter(|item| previous(item)).count(), 1, "{how}: the new one names the old one");
        let rig = Rig::open_with(dir.path(), options(MAX));
        let identity = rig.outbox.identity();
        assert_eq!((identity.incarnation, identity.known.clone()), (new, vec![old, new]));
        trim(&rig.outbox, rig.outbox.positions().durable.0);
        assert_eq!(rig.outbox.identity().known, [new]);
        rig.close();
    }
}

#[test]
fn lost_small_files_cost_nothing_that_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 1500);
    let mut life = {
        let rig = Rig::open_with(dir.path(), options(MAX));
        let life = rig.outbox.identity().incarnation;
        rig.close();
        life
    };
    for lost in [&["state"][..], &["pos"], &["pos", "state"]] {
        for name in lost {
            overwrite(&dir.path().join("outbox").join(name), 0, &[0xff; 8192]);
        }
        for entry in fs::read_dir(dir.path().join("outbox")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "end") {
                fs::remove_file(path).unwrap();
            }
        }
        let rig = Rig::open_with(dir.path(), options(MAX));
        // Without `pos` nobody knows whether the log lost its end.
        let renewed = rig.outbox.identity().incarnation != life;
        assert_eq!(renewed, lost.contains(&"pos"), "{lost:?}");
        life = rig.outbox.identity().incarnation;
        let items = read_all(&mut rig.outbox.reader(), 0);
        assert!(readings(&items) == wanted, "{lost:?}");
        assert!(holes(&items).iter().all(|hole| hole.2 == "new_incarnation"), "{lost:?}");
        rig.close();
        let rig = Rig::open_with(dir.path(), options(MAX));
        assert_eq!(rig.outbox.identity().incarnation, life, "{lost:?}: one is enough");
        rig.close();
    }
}

/// Files of a database besides `db`.
fn small_files(database: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(database).unwrap().map(|entry| entry.unwrap().path());
    let small = |path: &PathBuf| path.is_file() && !path.ends_with("db");
    all.filter(small).collect()
}

#[test]
fn small_files_of_a_database_cost_nothing_and_a_bit_costs_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 4500);
    let count = databases(dir.path()).len();
    assert!(count >= 3);
    for generation in [0, count - 1] {
        for how in ["removed", "garbage", "a bit of db"] {
            let copy = tempfile::tempdir().unwrap();
            copy_tree(&dir.path().join("outbox"), &copy.path().join("outbox"));
            let database = databases(copy.path())[generation].clone();
            match how {
                "removed" => small_files(&database).iter().for_each(|path| fs::remove_file(path).unwrap()),
                "garbage" => small_files(&database).iter().for_each(|path| fs::write(path, [0x5a; 99]).unwrap()),
                _ => overwrite(&database.join("db"), 200_000, &[0x11]),
            }
            let items = check(copy.path(), &wanted);
            let holes = holes(&items);
            let lost: u64 = holes.iter().filter(|hole| hole.2 == "damage").map(|hole| hole.1 - hole.0 + 1).sum();
            let most = if how == "a bit of db" { 20 } else { 0 };
            assert!(lost <= most, "{how} of generation {generation}: {holes:?}");
            let kept = fs::read_dir(copy.path().join("outbox/damaged")).map_or(0, Iterator::count);
            assert!(kept == 1 || how == "a bit of db", "{how} of generation {generation}: the damaged one is kept");
        }
    }
}

#[test]
fn an_exchange_that_was_cut_short_is_finished_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 3000);
    let name = databases(dir.path())[1].file_name().unwrap().to_str().unwrap().to_owned();
    // Before the damaged one has moved away, and after.
    for moved in [false, true] {
        let copy = tempfile::tempdir().unwrap();
        let outbox = copy.path().join("outbox");
        copy_tree(&dir.path().join("outbox"), &outbox);
        copy_tree(&outbox.join(&name), &outbox.join(format!("next-{name}")));
        if moved {
            fs::create_dir(outbox.join("damaged")).unwrap();
            fs::rename(outbox.join(&name), outbox.join("damaged").join(&name)).unwrap();
        }
        let items = check(copy.path(), &wanted);
        assert_eq!(holes(&items), [], "moved away: {moved}");
        assert!(!outbox.join(format!("next-{name}")).exists());
    }
}

#[test]
fn damaged_generations_are_kept_up_to_a_cap_the_newest_ones() {
    let dir = tempfile::tempdir().unwrap();
    let max = ByteSize::mib(8);
    let cap = Sizes::of(max.0).damaged_bytes_max;
    let damaged = dir.path().join("outbox/damaged");
    let names = || {
        let entries = fs::read_dir(&damaged).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let mut newest = String::new();
    for round in 0..5 {
        let mut rig = Rig::open_with(dir.path(), options(max));
        rig.append_all(&(1..=200).map(|n| reading_of(n, 8000, true)).collect::<Vec<_>>());
        rig.close();
        let first = databases(dir.path())[0].clone();
        // Its first half is gone.
        overwrite(&first.join("db"), 0, &vec![0xee; fs::metadata(first.join("db")).unwrap().len() as usize / 2]);
        let rig = Rig::open_with(dir.path(), options(max));
        read_all(&mut rig.outbox.reader(), rig.outbox.positions().committed.0);
        assert!(rig.outbox.status().damaged > 0, "round {round}");
        newest = newest.max(first.file_name().unwrap().to_str().unwrap().to_owned());
        assert!(directory::disk_bytes(&damaged) <= cap, "round {round}: {:?}", names());
        assert!(names().contains(&newest), "round {round}: {newest} of {:?}", names());
        trim(&rig.outbox, rig.outbox.positions().durable.0);
        let outbox = dir.path().join("outbox");
        wait_until("all is trimmed", || generations(dir.path()) == 1);
        rig.outbox.sync_position().unwrap();
        let all = directory::disk_bytes(&outbox);
        assert!(rig.outbox.status().bytes >= all - (64 << 10), "damaged/ counts: {all} {:?}", rig.outbox.status());
        rig.close();
    }
    // Also after a start: somebody may have lowered the cap, and what others put there stays.
    copy_tree(&damaged.join(&newest), &damaged.join("g00000000000000000000-00000000"));
    copy_tree(&damaged.join(&newest), &damaged.join(format!("{newest}.1")));
    fs::write(damaged.join("a copy.tar"), [1; 5000]).unwrap();
    Rig::open_with(dir.path(), options(max)).close();
    assert!(directory::disk_bytes(&damaged) <= cap);
    let names = names();
    assert!(names.contains(&"a copy.tar".to_owned()) && names.contains(&format!("{newest}.1")), "{names:?}");
    assert!(!names.contains(&"g00000000000000000000-00000000".to_owned()), "the oldest goes first: {names:?}");
}

#[test]
fn kills_at_the_first_start_are_no_damage() {
    // What there is after each step of the first opening: no file, an empty `pos`, its origin, `state`.
    let dir = tempfile::tempdir().unwrap();
    Rig::open_with(dir.path(), options(MAX)).close();
    let outbox = dir.path().join("outbox");
    for kept in [&[][..], &["empty pos"], &["pos"], &["pos", "state"]] {
        let other = tempfile::tempdir().unwrap();
        let to = other.path().join("outbox");
        fs::create_dir_all(&to).unwrap();
        for name in kept.iter().filter(|name| **name == "state") {
            fs::copy(outbox.join(name), to.join(name)).unwrap();
        }
        if kept.contains(&"empty pos") {
            fs::write(to.join("pos"), [0; 8192]).unwrap();
        }
        if kept.contains(&"pos") {
            let (mut file, _) = position::PositionFile::open(&to.join("pos")).unwrap();
            let origin = position::Position { next_index: 1, next_sequence: 1, ..Default::default() };
            file.write(origin).unwrap();
        }
        let mut rig = Rig::open_with(other.path(), options(MAX));
        rig.append(reading_of(1, 10, false), None);
        assert_eq!(rig.outbox.positions().durable, Sequence(1), "{kept:?}");
        assert_eq!(rig.outbox.identity().known.len(), 1, "{kept:?}");
        rig.close();
        // Killed within the first second: `pos` says less than there is, which is no damage.
        let (mut file, _) = position::PositionFile::open(&to.join("pos")).unwrap();
        let origin = position::Position { next_index: 1, next_sequence: 1, ..Default::default() };
        file.write(origin).unwrap();
        drop(file);
        let rig = Rig::open_with(other.path(), options(MAX));
        assert_eq!((rig.outbox.positions().durable, rig.outbox.identity().known.len()), (Sequence(1), 1), "{kept:?}");
        rig.close();
    }
}

#[test]
fn what_was_never_finished_is_removed_only_when_nothing_was_acknowledged_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 300);
    // A directory made by a start that was killed at once.
    let half_made = dir.path().join("outbox").join("g00000000000000099999-00000077");
    fs::create_dir_all(&half_made).unwrap();
    fs::write(half_made.join("db"), b"xx").unwrap();
    // And a generation with acknowledged readings whose marker is lost.
    let newest = databases(dir.path()).into_iter().rev().nth(1).unwrap();
    fs::remove_file(newest.with_extension("ok")).unwrap();
    let items = check(dir.path(), &wanted);
    assert!(!half_made.exists());
    assert!(holes(&items).is_empty(), "{:?}", holes(&items));
    assert_eq!(readings(&items).len(), 301);
}

#[test]
fn an_arrival_without_its_commit_mark_does_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 50);
    // Half an arrival at the end, as a cut leaves it: two readings, no commit mark, and its packet.
    let rig = Rig::open_with(dir.path(), options(MAX));
    let (generation, index, sequence) = {
        let view = rig.outbox.shared.view();
        let live = view.generations.back().unwrap().live.upgrade().unwrap();
        (live, view.durable_index + 1, view.durable_sequence + 1)
    };
    let mut packer = packer::Packer::new(config::outbox::Compression::Zstd, 7000, index, sequence);
    let packet = Packet { id: 5, qos: Qos::AtLeastOnce, dup: false, hash: 5, dedup: true };
    packer.push_arrival(&"plant".into(), &[reading_of(90, 9, false), reading_of(91, 20_000, true)], Some(&packet));
    packer.flush();
    let first = packer.take().unwrap();
    generation.insert(first.first_index, &first.bytes).unwrap();
    generation.sync().unwrap();
    drop(generation);
    rig.close();

    let before = generations(dir.path());
    let mut rig = Rig::open_with(dir.path(), options(MAX));
    assert_eq!(generations(dir.path()), before + 1, "the generation is closed");
    assert_eq!(rig.outbox.positions().durable, Sequence(50));
    let again = Packet { dup: true, ..packet };
    assert_eq!(rig.append(reading_of(90, 9, false), Some(again)), Outcome::Appended, "it was never in the log");
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(items.len(), 51);
    assert!(readings(&items)[..50] == wanted && holes(&items).is_empty());
    rig.close();
    let rig = Rig::open_with(dir.path(), options(MAX));
    assert_eq!(read_all(&mut rig.outbox.reader(), 0).len(), 51);
    rig.close();
}

/// Writes nonsense over the block at this place of a generation.
fn spoil_block(dir: &Path, id: directory::GenerationId, number: usize) {
    let directory = directory::Directory::new(dir.join("outbox"));
    let generation = generation::Generation::open(&directory, id, generation::SEGMENT_BYTES[0]).unwrap();
    let mut at = 0;
    for _ in 0..number {
        at = generation.block_from(at).unwrap().unwrap().0 + 1;
    }
    let key = generation.block_from(at).unwrap().unwrap().0;
    generation.insert(key, b"nonsense").unwrap();
    generation.sync().unwrap();
    generation.close();
}

#[test]
fn a_snapshot_with_a_piece_missing_is_not_taken_for_a_whole_one() {
    for number in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let packet = |id: u16, dup| Packet { id, qos: Qos::ExactlyOnce, dup, hash: u64::from(id) << 20, dedup: true };
        let mut rig = Rig::open_with(dir.path(), options(MAX));
        for id in 1..=4000 {
            rig.submit(vec![reading_of(1, 50, false)], Some(packet(id, false)));
        }
        rig.outcomes(4000);
        rig.append_all(&(1..=1800).map(|n| reading_of(n, 1500, true)).collect::<Vec<_>>());
        let newest = rig.outbox.shared.view().generations.back().unwrap().id;
        assert!(newest.number > 1);
        let segment = rig.outbox.identity().segment;
        rig.close();
        spoil_block(dir.path(), newest, number);

        let mut rig = Rig::open_with(dir.path(), options(MAX));
        for id in 1..=4000 {
            rig.submit(vec![reading_of(1, 50, false)], Some(packet(id, true)));
        }
        let outcomes = rig.outcomes(4000);
        let again = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Duplicate).count();
        assert_eq!(again, 0, "the generation before knows all redeliveries; block {number}");
        for item in read_all(&mut rig.outbox.reader(), 0) {
            let Item::Reading(stored) = item else { panic!("{item:?}") };
            assert_eq!(stored.segment, segment, "block {number}");
        }
        rig.close();
    }
}

#[test]
fn a_start_that_has_no_room_to_rebuild_the_newest_generation_gives_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 600);
    let newest = databases(dir.path()).pop().unwrap();
    let len = fs::metadata(newest.join("db")).unwrap().len();
    overwrite(&newest.join("db"), len / 3, &[0x5a; 64]);
    // sled sees the damage, wipes what stands behind it, and then nothing more can be written.
    let fault = dir.path().join("outbox/fault-insert");
    fs::write(&fault, "always full").unwrap();
    for _ in 0..2 {
        let opened = Outbox::open(dir.path(), options(MAX));
        assert!(matches!(opened, Err(OpenError::Io { .. })), "{opened:?}");
    }
    fs::remove_file(fault).unwrap();
    let items = check(dir.path(), &wanted);
    let there = readings(&items).len();
    assert!(there > 560, "{there} of 600 readings, {:?}", holes(&items));
}

#[test]
fn a_rebuilding_that_finds_no_room_or_cannot_be_written_is_tried_again() {
    for how in ["always full", "eio where one is rebuilt"] {
        rebuilding_is_tried_again(how);
    }
}

fn rebuilding_is_tried_again(how: &str) {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 4500);
    let oldest = databases(dir.path()).remove(0);
    let len = fs::metadata(oldest.join("db")).unwrap().len();
    overwrite(&oldest.join("db"), len / 3, &[0x5a; 64]);
    let rig = Rig::open_with(dir.path(), options(MAX));
    let fault = dir.path().join("outbox/fault-insert");
    fs::write(&fault, how).unwrap();
    let mut reader = rig.outbox.reader();
    let mut after = Sequence(0);
    let error = loop {
        match reader.batch_after(after, Budget { records_max: 100, bytes_max: 1 << 20 }) {
            Ok(batch) => after = batch.items.last().expect("the damage comes before the end").last(),
            Err(error) => break error,
        }
    };
    assert!(rig.outbox.shared.view().notes.iter().next().is_none(), "{error}: nothing is given up");
    fs::remove_file(fault).unwrap();
    drop(reader);
    rig.close();
    let items = check(dir.path(), &wanted);
    assert!(readings(&items).len() > 4450, "{:?}", holes(&items));
}
