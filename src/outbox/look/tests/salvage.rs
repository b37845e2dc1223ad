//! Salvage gets back what is whole, and nothing else.

use super::*;

fn salvaged(path: &Path) -> (Lines, Salvaged) {
    let mut lines = Lines::default();
    let salvaged = salvage(path, None, &mut |_, _| {}, &mut |line| {
        lines.take(line);
        Ok(())
    });
    (lines, salvaged.unwrap())
}

/// Sequences of the blocks of a generation, with the offsets at which each stands whole in its file.
fn blocks_and_places(database: &Path) -> Vec<(u64, u64, Vec<usize>)> {
    let id = directory::GenerationId::parse(database.file_name().unwrap().to_str().unwrap()).unwrap();
    let directory = directory::Directory::new(database.parent().unwrap().to_owned());
    let bytes = fs::read(database.join("db")).unwrap();
    let store = generation::Generation::open(&directory, id, generation::SEGMENT_BYTES[0]).unwrap();
    let mut at = 0;
    let mut found = Vec::new();
    while let Some((key, block)) = store.block_from(at).unwrap() {
        at = key + 1;
        let head = block::check(&block).unwrap();
        let places = memchr::memmem::find_iter(&bytes, &*block).collect();
        found.push((head.first_sequence, head.end_sequence(), places));
    }
    store.close();
    found
}

#[test]
fn salvage_gets_back_every_reading_whose_blocks_are_whole_and_nothing_else() {
    let seed: u64 = std::env::var("TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("TEST_SEED={seed}");
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let whole = tempfile::tempdir().unwrap();
    let wanted = filled(whole.path(), 1500);
    let database = databases(whole.path())[0].clone();
    let name = database.file_name().unwrap().to_owned();
    let original = fs::read(database.join("db")).unwrap();
    let blocks = blocks_and_places(&database);
    let last = blocks.last().unwrap().1 - 1;
    let all: BTreeMap<_, _> = values(&wanted).into_iter().filter(|(sequence, _)| *sequence <= last).collect();

    for round in 0..18 {
        let mut bytes = original.clone();
        let len = bytes.len();
        let what = match round % 3 {
            0 => {
                let cut = len / 8 + random() as usize % (len * 7 / 8);
                bytes.truncate(cut);
                format!("cut at {cut}")
            }
            1 => {
                let flips: Vec<_> = (0..1 + random() % 40).map(|_| random() as usize % len).collect();
                flips.iter().for_each(|at| bytes[*at] ^= 1 << (at % 8));
                format!("flipped at {flips:?}")
            }
            _ => {
                let (from, count) = (random() as usize % len, 1 + random() as usize % (len / 3));
                let to = (from + count).min(len);
                bytes[from..to].fill(0);
                format!("zeroed {from}..{to}")
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let damaged = dir.path().join("damaged").join(&name);
        fs::create_dir_all(&damaged).unwrap();
        for entry in fs::read_dir(&database).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() && entry.file_name() != "db" {
                fs::copy(entry.path(), damaged.join(entry.file_name())).unwrap();
            }
        }
        fs::write(damaged.join("db"), &bytes).unwrap();
        let before = tree(dir.path());
        let (lines, told) = salvaged(&dir.path().join("damaged"));
        assert!(tree(dir.path()) == before, "something changed: {what}");
        for (sequence, value) in &lines.readings {
            assert!(all.get(sequence) == Some(value), "garbage at {sequence}: {what}");
        }
        // Blocks of which one copy in the file is as it was. A split reading needs all of its blocks.
        let stands = |at: &usize, len: usize| bytes.get(*at..at + len) == Some(&original[*at..at + len]);
        let mut torn_before = false;
        for (first, end, places) in &blocks {
            let len = block_len(&original, places);
            let intact = places.iter().any(|at| stands(at, len));
            if intact && !torn_before {
                for sequence in *first..*end {
                    assert!(
                        lines.readings.contains_key(&sequence),
                        "{sequence} of {first}..{end} is lost: {what} {told:?}"
                    );
                }
            }
            // Parts of a split reading come before its sequence counts.
            torn_before = if intact { torn_before && first == end } else { true };
        }
        assert_eq!(told.readings, lines.readings.len() as u64);
        if let (Some((low, _)), Some((high, _))) = (lines.readings.first_key_value(), lines.readings.last_key_value()) {
            let missing: u64 = lines.gaps.iter().map(|(from, to, _)| to - from + 1).sum();
            assert_eq!(lines.readings.len() as u64 + missing, high - low + 1, "{what}");
        }
    }
    // Without any damage everything comes from the database; a whole state directory is taken as well.
    let (lines, told) = salvaged(whole.path());
    assert!(lines.readings == values(&wanted));
    assert!(told.missing.is_empty() && told.generations.iter().all(|one| one.from_bytes == 0), "{told:?}");
}

/// Length of the block at the first of these places.
fn block_len(file: &[u8], places: &[usize]) -> usize {
    let at = places[0];
    let mut decoder = block::Decoder::default();
    (block::HEAD_BYTES..20_000).find(|len| decoder.decode(&file[at..at + len]).is_ok()).unwrap()
}

#[test]
fn a_lost_snapshot_and_a_file_without_any_store_are_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 1200);
    // Opened once more, so that the store leaves a snapshot.
    Rig::open_with(dir.path(), small()).close();
    let database = databases(dir.path())[0].clone();
    let snapshots = || {
        fs::read_dir(&database)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap."))
    };
    assert!(snapshots().count() > 0);
    for path in snapshots() {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(path, bytes).unwrap();
    }
    let (lines, told) = salvaged(&database);
    let last = *lines.readings.keys().next_back().unwrap();
    assert!(lines.readings == values(&wanted[..last as usize]));
    assert!(told.generations[0].fault.is_some() && told.generations[0].from_log > 0, "{told:?}");

    // Only the log, under any name.
    let other = dir.path().join("found");
    fs::create_dir(&other).unwrap();
    fs::copy(database.join("db"), other.join("db")).unwrap();
    let (lines, _) = salvaged(&other);
    assert!(lines.readings == values(&wanted[..last as usize]));
}

#[test]
fn salvage_goes_on_after_a_generation_that_gives_nothing_and_names_what_stood_there() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = filled(dir.path(), 4500);
    let all = databases(dir.path());
    assert!(all.len() >= 3);
    let (_, told) = salvaged(dir.path());
    assert!(told.is_whole(), "{told:?}");

    // The oldest goes while it is looked at, as when room is made in damaged/; of the newest nothing is left.
    fs::write(all[all.len() - 1].join("db"), vec![0; 100_000]).unwrap();
    let mut lines = Lines::default();
    let mut remove = |done, _| {
        if done == 0 {
            fs::remove_dir_all(&all[0]).unwrap();
        }
    };
    let told = salvage(dir.path(), None, &mut remove, &mut |line| {
        lines.take(line);
        Ok(())
    });
    let told = told.unwrap();
    assert!(!told.is_whole());
    let faults: Vec<_> = told.generations.iter().map(|generation| generation.fault.is_some()).collect();
    assert!(faults[0] && faults[faults.len() - 1] && !faults[1], "{told:?}");
    let missing: Vec<_> = told.missing.iter().map(|gap| (gap.from, gap.to, &*gap.reason)).collect();
    let (first, last) = (told.generations[1].first.unwrap(), told.generations[faults.len() - 2].last.unwrap());
    assert_eq!(missing, [(1, first - 1, NOT_RECOVERED), (last + 1, 4500, NOT_RECOVERED)]);
    assert!(lines.readings.keys().copied().eq(first..=last));
    let values = values(&wanted);
    assert!(lines.readings.iter().all(|(sequence, value)| values.get(sequence) == Some(value)));
}

#[test]
fn salvage_keeps_away_from_files_in_use_whatever_a_directory_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("damaged");
    filled(&state_dir, 100);
    let set_aside = state_dir.join("outbox/damaged/one");
    fs::create_dir_all(&set_aside).unwrap();
    fs::copy(databases(&state_dir)[0].join("db"), set_aside.join("db")).unwrap();
    let rig = Rig::open_with(&state_dir, small());
    let ask = |path: &Path| salvage(path, None, &mut |_, _| {}, &mut |_| Ok(()));
    for path in [state_dir.clone(), state_dir.join("outbox"), databases(&state_dir)[0].clone()] {
        assert!(matches!(ask(&path), Err(LookError::InUse(_))), "{}", path.display());
    }
    assert_eq!(ask(&set_aside).unwrap().generations.len(), 1);

    rig.close();
}

#[test]
fn what_stood_in_a_generation_that_was_set_aside_is_known() {
    // The end of its log is lost, or all of it.
    for part in [2, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let wanted = filled(dir.path(), 3000);
        let hurt = &databases(dir.path())[1];
        let held = summary::Summary::read(&hurt.with_extension("end")).unwrap();
        let (first, last) = (held.first_sequence, held.end_sequence - 1);
        let bytes = fs::read(hurt.join("db")).unwrap();
        fs::write(hurt.join("db"), &bytes[..bytes.len() / part]).unwrap();
        let rig = Rig::open_with(dir.path(), small());
        let items = tests_of_outbox::read_all(&mut rig.outbox.reader(), 0);
        assert!(!tests_of_outbox::holes(&items).is_empty());
        rig.close();
        // Away from its outbox, which tells what stood there for as long as it is not delivered.
        let copy = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("outbox/damaged"), copy.path().join("damaged"));
        testing::copy_tree(&from, &to);
        let (lines, told) = salvaged(&to);
        let missing: Vec<_> = told.missing.iter().map(|gap| (gap.from, gap.to)).collect();
        let next = lines.readings.keys().next_back().map_or(first, |got| got + 1);
        assert_eq!(missing, [(next, last)], "{told:?}");
        assert!(lines.readings.keys().copied().eq(first..next));
        let values = values(&wanted);
        assert!(lines.readings.iter().all(|(sequence, value)| values.get(sequence) == Some(value)));
    }
}
