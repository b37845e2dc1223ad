//! Several readers at once: none disturbs another, and none has a generation taken away while it reads in it.

use std::path::PathBuf;

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::WhenFull;

const MAX: ByteSize = ByteSize::mib(32);
const ONE: Budget = Budget { records_max: 1, bytes_max: 1 };

/// A closed generation: its directory, its first sequence, the one after its last.
struct Closed {
    path: PathBuf,
    first: u64,
    end: u64,
}

/// An outbox of several closed generations, what was appended, and the generations.
fn filled(dir: &Path) -> (Rig, Vec<Reading>, Vec<Closed>) {
    let mut rig = Rig::open_with(dir, options(MAX));
    let wanted: Vec<_> = (1..=4500).map(|n| reading_of(n, 1500, true)).collect();
    rig.append_all(&wanted);
    let closed: Vec<_> = {
        let view = rig.outbox.shared.view();
        let listed = view.generations.iter().filter(|listed| listed.closed.is_some());
        let path = |id| rig.outbox.shared.directory.generation(id);
        listed.map(|l| Closed { path: path(l.id), first: l.first_sequence, end: l.end_sequence() }).collect()
    };
    assert!(closed.len() >= 3, "{}", closed.len());
    (rig, wanted, closed)
}

#[test]
fn a_generation_stays_until_its_last_reader_has_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, wanted, closed) = filled(dir.path());
    let [mut one, mut two, mut three] = [(); 3].map(|()| rig.outbox.reader());
    for (reader, at) in [(&mut one, &closed[0]), (&mut two, &closed[0]), (&mut three, &closed[1])] {
        assert_eq!(reader.batch_after(Sequence(at.first - 1), ONE).unwrap().items.len(), 1);
    }
    trim(&rig.outbox, 4500);
    wait_until("what nobody reads is removed", || !closed[2].path.exists());
    assert!(closed[0].path.exists() && closed[1].path.exists());

    // One moves on; the other still reads where it stood, to the end of the generation.
    drop(one);
    rig.outbox.shared.nudge(&rig.outbox.commands);
    let mut at = closed[0].first;
    while at + 1 < closed[0].end {
        for item in two.batch_after(Sequence(at), Budget { records_max: 100, ..SOME }).unwrap().items {
            at = item.last().0;
            assert!(readings(&[item]) == wanted[at as usize - 1..at as usize]);
            if at + 1 == closed[0].end {
                break;
            }
        }
    }
    assert!(closed[1].path.exists());
    drop(two);
    drop(three);
    rig.outbox.shared.nudge(&rig.outbox.commands);
    wait_until("everything delivered is removed", || closed.iter().all(|one| !one.path.exists()));
    rig.close();
}

#[test]
fn a_policy_drops_what_no_reader_is_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(ByteSize::mib(16));
    options.config.when_full = WhenFull::DropOldest;
    let mut rig = Rig::open_with(dir.path(), options);
    rig.outbox.protect(Sequence(1), Sequence(0));
    rig.append_all(&(1..=600).map(|n| reading_of(n, 6000, true)).collect::<Vec<_>>());
    let oldest = rig.outbox.shared.view().generations[0].clone();
    assert!(oldest.closed.is_some());
    let (mut one, mut two) = (rig.outbox.reader(), rig.outbox.reader());
    for reader in [&mut one, &mut two] {
        assert_eq!(reader.batch_after(Sequence(0), ONE).unwrap().items.len(), 1);
    }
    drop(one);
    rig.append_all(&(601..=2500).map(|n| reading_of(n, 6000, true)).collect::<Vec<_>>());
    assert!(rig.outbox.status().dropped > 0, "the outbox was full");
    assert_eq!(rig.outbox.shared.view().generations[0].id, oldest.id, "it is being read");
    let items = read_all(&mut two, 0);
    assert_eq!(readings(&items)[0], reading_of(1, 6000, true));
    assert!(!holes(&items).is_empty());
    rig.close();
}

/// Opening clears half-made snapshots away: two that open one database at once would clear away each other's.
#[test]
fn one_reader_opens_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (rig, _, closed) = filled(dir.path());
    let opening = rig.outbox.shared.opening();
    let readers = [(); 4].map(|()| {
        let mut reader = rig.outbox.reader();
        let first = Sequence(closed[0].first - 1);
        std::thread::Builder::new()
            .spawn(move || reader.batch_after(first, ONE).map(|batch| batch.items.len()))
            .unwrap()
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(readers.iter().all(|reader| !reader.is_finished()), "somebody opened beside another");
    drop(opening);
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap(), 1);
    }
    rig.close();
}
