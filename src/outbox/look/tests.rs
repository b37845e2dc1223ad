//! Looking changes nothing, sees everything, and tells what is wrong. Salvage gets back what is whole, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::testing::reading_of;
use super::super::tests as tests_of_outbox;
use super::super::tests::{Rig, options, trim, wait_until};
use super::super::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::WhenFull;

mod salvage;
mod verify;

const MAX: ByteSize = ByteSize::mib(32);

/// Options under which several generations are made.
fn small() -> OpenOptions {
    options(MAX)
}

/// An outbox of several generations: `count` readings, some of them larger than a block.
fn filled(dir: &Path, count: u64) -> Vec<Reading> {
    let mut rig = Rig::open_with(dir, small());
    let wanted: Vec<_> = (1..=count).map(reading).collect();
    rig.append_all(&wanted);
    rig.outbox.sync_position().unwrap();
    rig.close();
    wanted
}

fn reading(n: u64) -> Reading {
    let bytes = if n % 300 == 0 { 40_000 } else { 1500 };
    reading_of(n, bytes, true)
}

/// Every name below a directory, with what is in it and its time of change.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![dir.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            let bytes = if meta.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            if meta.is_dir() {
                directories.push(path.clone());
            }
            found.insert(path, (bytes, meta.modified().unwrap()));
        }
    }
    found
}

/// The lines of an export: readings by sequence (value in Base64), gaps.
#[derive(Debug, Default, PartialEq)]
struct Lines {
    readings: BTreeMap<u64, Vec<u8>>,
    gaps: Vec<(u64, u64, String)>,
}

impl Lines {
    fn take(&mut self, text: &str) {
        match Line::read(text).unwrap() {
            None => {
                let value: Value = serde_json::from_str(text).unwrap();
                let bytes = match (&value["value_base64"], &value["value"]) {
                    (Value::String(text), _) => data_encoding::BASE64.decode(text.as_bytes()).unwrap(),
                    (_, Value::String(text)) => text.clone().into_bytes(),
                    (_, json) => json.to_string().into_bytes(),
                };
                let old = self.readings.insert(value["sequence"].as_u64().unwrap(), bytes);
                assert_eq!(old, None, "told twice");
            }
            Some(Line::Gap(gap)) => self.gaps.push((gap.from, gap.to, gap.reason)),
            Some(_) => {}
        }
    }
}

fn export(look: &mut Look, selection: &Wanted) -> (Lines, Exported) {
    let mut lines = Lines::default();
    let exported = look.export(selection, &mut |line| {
        lines.take(line);
        Ok(())
    });
    (lines, exported.unwrap())
}

fn everything() -> Wanted {
    Wanted { all: true, exact: true, ..Wanted::default() }
}

fn findings(look: &mut Look) -> (Vec<Finding>, Verified) {
    let mut findings = Vec::new();
    let verified = look.verify(&mut |line| {
        if let Some(Line::Finding(finding)) = Line::read(line).unwrap() {
            findings.push(finding);
        }
        Ok(())
    });
    (findings, verified.unwrap())
}

fn values(wanted: &[Reading]) -> BTreeMap<u64, Vec<u8>> {
    wanted.iter().zip(1..).map(|(reading, sequence)| (sequence, reading.value.to_vec())).collect()
}

fn databases(dir: &Path) -> Vec<PathBuf> {
    let directory = directory::Directory::new(dir.join("outbox"));
    directory.list().unwrap().iter().map(|found| directory.generation(found.id)).collect()
}

#[test]
fn looking_at_files_sees_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 4500);
    assert!(databases(dir.path()).len() >= 3);
    let before = tree(dir.path());

    let mut look = Look::at_files(dir.path(), None).unwrap();
    let inspection = look.inspect().unwrap();
    assert_eq!((inspection.committed, inspection.durable, inspection.next, inspection.waiting), (0, 4500, 4501, 4500));
    assert_eq!(inspection.running, None);
    assert_eq!(inspection.agent.as_deref(), Some("gw-1"));
    assert_eq!(inspection.sources["plant"].readings, 4500);
    let bytes: usize = wanted.iter().map(Reading::record_bytes).sum();
    assert_eq!(inspection.sources["plant"].record_bytes, bytes as u64);
    assert_eq!(inspection.remarks, Vec::<String>::new());
    let (found, verified) = findings(&mut look);
    assert_eq!(found, []);
    assert_eq!((verified.readings, verified.damage), (4500, 0));
    assert_eq!(verified.generations, inspection.generations.len() as u64);
    let (lines, exported) = export(&mut look, &everything());
    assert!(lines.readings == values(&wanted));
    assert_eq!((exported.readings, exported.gaps), (4500, 0));
    assert_eq!(lines.gaps, []);

    assert!(tree(dir.path()) == before, "something changed");
}

#[test]
fn a_selection_takes_what_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), small());
    let (other, mut answers) = rig.outbox.appender(&"other".into());
    for n in 1..=20 {
        rig.append_all(&[reading(n)]);
        let held = rig.outbox.held().try_acquire(1).unwrap();
        other.submit(vec![Arrival { readings: vec![reading(100 + n)], packet: None, receipt: Receipt(n), held }]);
        wait_until("answered", || rig.outbox.positions().durable.0 == 2 * n);
        answers.try_recv().ok();
    }
    trim(&rig.outbox, 10);
    let mut look = rig.outbox.look();
    let mut sequences = |selection: Wanted| {
        let (lines, _) = export(&mut look, &Wanted { exact: true, ..selection });
        assert_eq!(lines.gaps, []);
        lines.readings.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(sequences(Wanted::default()), (11..=40).collect::<Vec<_>>());
    let all = Wanted { all: true, ..Wanted::default() };
    assert_eq!(sequences(all.clone()), (1..=40).collect::<Vec<_>>());
    let of = |name: &str| Wanted { sources: vec![name.to_owned()], ..all.clone() };
    assert_eq!(sequences(of("other")), (1..=20).map(|n| 2 * n).collect::<Vec<_>>());
    assert_eq!(sequences(of("nobody")), Vec::<u64>::new());
    assert_eq!(sequences(Wanted { from: Some(38), ..all.clone() }), [38, 39, 40]);
    assert_eq!(sequences(Wanted { from: Some(2), to: Some(3), ..all.clone() }), [2, 3]);
    assert_eq!(sequences(Wanted { from: Some(90), to: Some(99), ..all.clone() }), Vec::<u64>::new());
    let time = |n: u64| reading(n).received.wall_ns;
    let span = Wanted { since_ns: Some(time(3)), until_ns: Some(time(5)), ..of("plant") };
    assert_eq!(sequences(span), [5, 7]);
    rig.close();
}

#[test]
fn lines_show_values_in_the_form_that_reads_best() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let with = |value: &[u8], content_type: &str| Reading {
        value: value.to_vec().into(),
        content_type: content_type.into(),
        kind: crate::record::Kind::Raw,
        ..reading_of(8, 10, false)
    };
    let readings = [
        with(b"{\"a\": 1.50,\n \"b\": 12345678901234567890}", ""),
        with(b"21.5", ""),
        with(b"21.5", "application/json"),
        with(b"{broken", "application/json"),
        with(b"\xff\x00", ""),
        with(b"", ""),
    ];
    rig.append_all(&readings);
    let mut values = Vec::new();
    let told = rig.outbox.look().export(&Wanted::default(), &mut |line| {
        if Line::read(line).unwrap().is_none() {
            values.push(line[line.find("\"value").unwrap()..].to_owned());
            let read: Value = serde_json::from_str(line).unwrap();
            let ce_id = format!("gw-1/{}/{}", rig.outbox.identity().incarnation.epoch(), values.len());
            assert_eq!(read["ce_id"], ce_id);
        }
        Ok(())
    });
    assert_eq!(told.unwrap().readings, 6);
    let wanted = [
        "\"value\":{\"a\": 1.50,  \"b\": 12345678901234567890}}",
        "\"value\":\"21.5\"}",
        "\"value\":21.5}",
        "\"value\":\"{broken\"}",
        "\"value_base64\":\"/wA=\"}",
        "\"value\":\"\"}",
    ];
    assert_eq!(values, wanted);
    rig.close();
}

#[test]
fn looking_beside_the_drain_disturbs_neither() {
    let dir = tempfile::tempdir().unwrap();
    let mut with_retain = small();
    with_retain.config.retain = ByteSize::mib(32);
    let mut rig = Rig::open_with(dir.path(), with_retain);
    let wanted: Vec<_> = (1..=6000).map(reading).collect();
    rig.append_all(&wanted[..2000]);
    let outbox = rig.outbox.clone();
    let drain = std::thread::Builder::new().spawn(move || {
        let (mut reader, mut at, mut got) = (outbox.reader(), 0, Vec::new());
        while at < 6000 {
            outbox.wait_durable(Sequence(at), Instant::now() + Duration::from_secs(20));
            let batch = reader.batch_after(Sequence(at), Budget { records_max: 500, bytes_max: 1 << 20 }).unwrap();
            for item in batch.items {
                at = item.last().0;
                got.extend(tests_of_outbox::readings(&[item]));
            }
            trim(&outbox, at);
        }
        got
    });
    let drain = drain.unwrap();
    let outbox = rig.outbox.clone();
    let looks = std::thread::Builder::new().spawn(move || {
        let (mut most, mut rounds) = (0, 0);
        while most < 6000 {
            let (lines, exported) = export(&mut outbox.look(), &everything());
            assert_eq!(exported.missing, exported.delivered, "{:?}", lines.gaps);
            for (sequence, value) in &lines.readings {
                assert!(*value == reading(*sequence).value, "{sequence}");
            }
            most = lines.readings.keys().next_back().copied().unwrap_or(0);
            let (found, verified) = findings(&mut outbox.look());
            assert!(found.is_empty() && verified.damage == 0, "{found:?}");
            rounds += 1;
        }
        rounds
    });
    for part in wanted[2000..].chunks(500) {
        rig.append_all(part);
    }
    assert!(drain.join().unwrap() == wanted);
    assert!(looks.unwrap().join().unwrap() >= 1);
    assert_eq!(rig.outbox.status().damaged, 0);
    let inspection = rig.outbox.look().inspect().unwrap();
    assert_eq!((inspection.committed, inspection.durable), (6000, 6000));
    rig.close();
}

#[test]
fn who_looks_and_stops_taking_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), small());
    rig.append_all(&(1..=4500).map(reading).collect::<Vec<_>>());
    let first = databases(dir.path())[0].clone();
    let outbox = rig.outbox.clone();
    let mut hung = false;
    let mut look = rig.outbox.look();
    let mut lines = Lines::default();
    let exported = look.export(&everything(), &mut |line| {
        // The first reading arrives; then nothing is taken until everything is delivered and gone.
        if !hung && Line::read(line).unwrap().is_none() {
            hung = true;
            trim(&outbox, 4500);
            wait_until("the generation is removed under the export", || !first.exists());
        }
        lines.take(line);
        Ok(())
    });
    let exported = exported.unwrap();
    let told: u64 = lines.gaps.iter().map(|(from, to, _)| to - from + 1).sum();
    assert_eq!(lines.readings.len() as u64 + told, 4500, "everything is accounted for: {:?}", lines.gaps);
    assert!(lines.gaps.iter().all(|(.., reason)| reason == "delivered"), "{:?}", lines.gaps);
    assert_eq!(exported.missing, exported.delivered);
    for (sequence, value) in &lines.readings {
        assert!(*value == reading(*sequence).value);
    }
    assert_eq!(rig.outbox.status().damaged, 0);
    rig.close();
}

#[test]
fn retained_readings_keep_their_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut with_retain = small();
    with_retain.config.retain = ByteSize::mib(32);
    let mut rig = Rig::open_with(dir.path(), with_retain.clone());
    rig.append_all(&(1..=4500).map(reading).collect::<Vec<_>>());
    let old = rig.outbox.identity().incarnation.epoch();
    trim(&rig.outbox, 4500);
    rig.outbox.sync_position().unwrap();
    rig.close();
    // Without its newest generation the outbox goes on as a new incarnation; the old one is delivered and forgotten.
    fs::remove_dir_all(databases(dir.path()).last().unwrap()).unwrap();
    let mut rig = Rig::open_with(dir.path(), with_retain);
    let new = rig.outbox.identity().incarnation.epoch();
    assert_ne!(old, new);
    rig.append_all(&(1..=3000).map(reading).collect::<Vec<_>>());
    let durable = rig.outbox.positions().durable.0;
    trim(&rig.outbox, durable);
    rig.outbox.sync_position().unwrap();
    wait_until("forgotten", || rig.outbox.shared.view().segments.len() == 1);
    let mut seen = BTreeMap::new();
    rig.outbox
        .look()
        .export(&everything(), &mut |line| {
            if Line::read(line).unwrap().is_none() {
                let read: Value = serde_json::from_str(line).unwrap();
                let epoch = if read["sequence"].as_u64().unwrap() <= 4500 { &old } else { &new };
                assert_eq!(read["ce_id"], format!("gw-1/{epoch}/{}", read["sequence"]));
                *seen.entry(epoch.clone()).or_insert(0) += 1;
            }
            Ok(())
        })
        .unwrap();
    assert!(seen[&old] > 1000 && seen[&new] == 3000, "{seen:?}");
    let inspection = rig.outbox.look().inspect().unwrap();
    assert!(inspection.retained_bytes > 0 && inspection.waiting == 0);
    rig.close();
}

#[test]
fn dropped_ranges_are_told_with_their_reason_by_daemon_and_by_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut dropping = options(ByteSize::mib(16));
    dropping.config.when_full = WhenFull::DropOldest;
    let mut rig = Rig::open_with(dir.path(), dropping);
    rig.outbox.protect(Sequence(1), Sequence(0));
    rig.append_all(&(1..=2500).map(|n| reading_of(n, 6000, true)).collect::<Vec<_>>());
    rig.outbox.sync_position().unwrap();
    let (live, _) = export(&mut rig.outbox.look(), &Wanted { exact: true, ..Wanted::default() });
    let inspected = rig.outbox.look().inspect().unwrap();
    rig.close();
    let mut look = Look::at_files(dir.path(), None).unwrap();
    let (files, exported) = export(&mut look, &Wanted { exact: true, ..Wanted::default() });
    assert!(live == files);
    assert_eq!(live.gaps.len(), 1);
    assert_eq!((live.gaps[0].0, live.gaps[0].2.as_str()), (1, "drop_oldest"));
    assert_eq!(exported.readings + exported.missing, 2500);
    assert_eq!(inspected.notes.len(), 1);
    assert_eq!((inspected.notes[0].from, inspected.notes[0].to), (1, live.gaps[0].1));
    assert_eq!(look.inspect().unwrap().notes, inspected.notes);
    // What is noted is no damage.
    assert_eq!(findings(&mut look).1.damage, 0);
}

#[test]
fn a_block_that_is_not_what_it_says_is_named_with_its_range() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 300);
    let id = directory::Directory::new(dir.path().join("outbox")).list().unwrap()[0].id;
    // Made again through the store with one block that is not whole, so that the store itself sees no damage.
    let directory = directory::Directory::new(dir.path().join("outbox"));
    let open = || generation::Generation::open(&directory, id, generation::SEGMENT_BYTES[0]).unwrap();
    let store = open();
    let mut blocks: Vec<(u64, Vec<u8>)> = Vec::new();
    while let Some((key, block)) = store.block_from(blocks.last().map_or(0, |(key, _)| key + 1)).unwrap() {
        blocks.push((key, block.to_vec()));
    }
    store.close();
    fs::remove_dir_all(directory.generation(id)).unwrap();
    let hurt = blocks.len() / 2;
    let head = block::check(&blocks[hurt].1).unwrap();
    blocks[hurt].1[60] ^= 1;
    let store = open();
    for (key, block) in &blocks {
        store.insert(*key, block).unwrap();
        store.sync().unwrap();
    }
    store.close();
    let mut look = Look::at_files(dir.path(), None).unwrap();
    let (found, _) = findings(&mut look);
    let flaw = found.iter().find(|one| one.what.contains("checksum")).unwrap();
    assert_eq!((flaw.from, flaw.to), (Some(head.first_sequence), Some(head.end_sequence() - 1)), "{found:?}");
    // An export tells the same range as a gap, and gives the rest.
    let (lines, _) = export(&mut look, &everything());
    let missing: u64 = lines.gaps.iter().map(|(from, to, _)| to - from + 1).sum();
    assert!(missing >= u64::from(head.sequences));
    assert_eq!(lines.readings.len() as u64 + missing, 300);
    assert!(lines.gaps.iter().all(|gap| gap.2 == "damage"), "{:?}", lines.gaps);
}

#[test]
fn a_directory_that_may_not_be_written_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 50);
    let mut all = vec![dir.path().to_owned()];
    all.extend(tree(dir.path()).into_keys());
    let modes: Vec<_> = all.iter().map(|path| (path.clone(), fs::metadata(path).unwrap().permissions())).collect();
    for path in &all {
        let mode = if path.is_dir() { 0o500 } else { 0o400 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut look = Look::at_files(dir.path(), None).unwrap();
    assert_eq!(export(&mut look, &everything()).1.readings, 50);
    assert_eq!(findings(&mut look).1.damage, 0);
    for (path, mode) in modes {
        fs::set_permissions(path, mode).unwrap();
    }
}
