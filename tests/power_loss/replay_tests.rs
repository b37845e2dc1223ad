//! The replay by itself: what it may take away and what not.

use bytes::Bytes;

use super::dice::Dice;
use super::journal::{Journal, Known, Op, ROOT, Span};
use super::replay::{Mode, Replay};

fn directory() -> Known {
    Known { is_directory: true, ..Known::default() }
}

/// A journal over the root and files (objects from 1).
fn journal(files: usize, ops: Vec<Op>) -> Journal {
    let mut objects = vec![directory()];
    objects.resize(files + 1, Known::default());
    for (at, op) in ops.iter().enumerate() {
        if let Op::Write { object, .. } | Op::Truncate { object, .. } = op {
            objects[*object].events.push(at);
        }
    }
    Journal { objects, ops }
}

fn create(name: &str, object: usize) -> Op {
    Op::Create { directory: ROOT, name: name.to_owned(), object }
}

fn write(object: usize, at: u64, byte: u8, bytes: usize) -> Op {
    Op::Write { object, at, data: Bytes::from(vec![byte; bytes]) }
}

fn sync(object: usize, id: u64) -> [Op; 2] {
    [Op::SyncBegins { object, id, span: Span::Whole }, Op::SyncEnds { id, good: true }]
}

fn cuts(journal: &Journal, end: usize) -> Vec<Vec<(String, Option<Vec<u8>>)>> {
    let replay = Replay::new(journal, end, Mode::Strict);
    (0..300).map(|seed| replay.cut(&mut Dice::new(seed)).into_iter().collect()).collect()
}

#[test]
fn what_is_synced_stays_and_what_is_not_may_go_or_be_torn() {
    let mut ops = vec![create("a", 1), write(1, 0, 1, 8192)];
    ops.extend(sync(1, 0));
    ops.extend(sync(ROOT, 1));
    let synced = ops.len();
    ops.push(write(1, 4096, 2, 8192));
    let journal = journal(1, ops);
    for state in cuts(&journal, synced) {
        assert_eq!(state, [("a".to_owned(), Some(vec![1; 8192]))]);
    }
    let states = cuts(&journal, synced + 1);
    let file = |state: &[(String, Option<Vec<u8>>)]| state[0].1.clone().unwrap();
    let files: Vec<_> = states.iter().map(|state| file(state)).collect();
    assert!(files.iter().all(|file| file[..4096] == [1; 4096] && (8192..=12288).contains(&file.len())));
    assert!(files.iter().any(|file| file[4096..] == [1; 4096]), "nothing of the write");
    assert!(files.iter().any(|file| file[4096..] == [2; 8192]), "all of it");
    assert!(files.iter().any(|file| file[4096..8192].contains(&1) && file[4096..8192].contains(&2)), "a torn page");
    assert!(files.iter().any(|file| file.len() == 12288 && file[8192..].contains(&0)), "longer than what was written");
}

#[test]
fn a_sync_covers_only_what_came_before_it_began() {
    let ops = vec![
        create("a", 1),
        write(1, 0, 1, 100),
        Op::SyncBegins { object: 1, id: 0, span: Span::Whole },
        write(1, 0, 2, 100),
        Op::SyncEnds { id: 0, good: true },
        Op::SyncBegins { object: ROOT, id: 1, span: Span::Whole },
        Op::SyncEnds { id: 1, good: true },
    ];
    let journal = journal(1, ops);
    let files: Vec<_> = cuts(&journal, 7).into_iter().map(|state| state[0].1.clone().unwrap()).collect();
    assert!(files.iter().any(|file| file[0] == 1) && files.iter().any(|file| file[0] == 2));
    assert!(files.iter().all(|file| file.len() == 100 && file[0] != 0));
}

#[test]
fn names_are_durable_by_the_directory_alone_and_a_rename_is_one_change() {
    let rename = Op::Rename { from: (ROOT, "a".to_owned()), to: (ROOT, "b".to_owned()) };
    let mut ops = vec![create("a", 1), write(1, 0, 1, 10)];
    ops.extend(sync(1, 0));
    let unnamed = ops.len();
    ops.extend(sync(ROOT, 1));
    ops.extend([rename, create("c", 2)]);
    let journal = journal(2, ops);
    assert!(cuts(&journal, unnamed).iter().any(Vec::is_empty), "a synced file without a synced name may be gone");
    let mut seen = std::collections::BTreeSet::new();
    for state in cuts(&journal, journal.ops.len()) {
        let names: Vec<_> = state.iter().map(|(name, _)| name.as_str()).collect();
        seen.insert(names.join(" "));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["a", "a c", "b", "b c"]);
}

#[test]
fn sync_file_range_counts_in_its_mode_only() {
    let ops = vec![
        create("a", 1),
        write(1, 0, 1, 4096),
        Op::SyncBegins { object: ROOT, id: 1, span: Span::Whole },
        Op::SyncEnds { id: 1, good: true },
        Op::SyncBegins { object: 1, id: 0, span: Span::Whole },
        Op::SyncEnds { id: 0, good: true },
        write(1, 0, 2, 4096),
        Op::SyncBegins { object: 1, id: 2, span: Span::Bytes(0..4096) },
        Op::SyncEnds { id: 2, good: true },
    ];
    let journal = journal(1, ops);
    let first = |mode| {
        let replay = Replay::new(&journal, 9, mode);
        let byte = |seed| replay.cut(&mut Dice::new(seed)).into_values().next().unwrap().unwrap()[0];
        (0..300).map(byte).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(first(Mode::Strict), [1, 2].into());
    assert_eq!(first(Mode::Range), [2].into());
}
