//! No file handles left (EMFILE): what cannot be opened for that is tried again, and nothing of it counts as damage. The
//! limit is that of a process, so the test starts itself again.

use std::fs;
use std::process;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::damage_tests::{MAX, databases, filled};
use super::testing::reading_of;
use super::tests::*;
use super::*;

const NAME: &str = "outbox::handle_tests::without_file_handles_nothing_counts_as_damage";
const INSIDE: &str = "TEST_OUTBOX_FEW_HANDLES";

/// Leaves this process so many file handles more.
fn leave(spare: usize) -> Rlimit {
    let is_taken = |number: &u64| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    let free = (0..).filter(|number| !is_taken(number)).nth(spare).unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(free), ..before }).unwrap();
    before
}

#[test]
fn without_file_handles_nothing_counts_as_damage() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let mut again = process::Command::new(std::env::current_exe().unwrap());
    let status = again.args(["--exact", NAME, "--nocapture", "--test-threads=1"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{status}");
}

fn inside() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = filled(dir.path(), 3000);
    let damaged = dir.path().join("outbox/damaged");
    let mut rig = Rig::open_with(dir.path(), options(MAX));

    // Who reads, with a handle more each time.
    let mut failed = 0;
    for spare in 0..14 {
        let mut reader = rig.outbox.reader();
        let before = leave(spare);
        let mut after = Sequence(0);
        let result = loop {
            match reader.batch_after(after, SOME) {
                Ok(batch) => match batch.items.last() {
                    Some(last) => after = last.last(),
                    None => break Ok(()),
                },
                Err(error) => break Err(error.to_string()),
            }
        };
        setrlimit(Resource::Nofile, before).unwrap();
        println!("{spare} handles: {result:?}");
        failed += u32::from(result.is_err());
        let items = read_all(&mut reader, 0);
        assert!(readings(&items) == wanted && holes(&items).is_empty(), "{spare} handles: {:?}", holes(&items));
    }
    assert!((2..14).contains(&failed), "{failed}");

    // Who finds real damage then: it is rebuilt when there are handles again, and not given up before.
    let first = rig.outbox.shared.view().generations[0].id;
    let before = leave(0);
    let (done, answer) = std::sync::mpsc::sync_channel(1);
    rig.outbox.commands.send(Command::SetAside(first, "a test".to_owned(), done)).unwrap();
    let over = answer.recv_timeout(Duration::from_secs(60));
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(over, Ok(false), "it cannot be rebuilt now");
    assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == wanted);

    // Who writes, and must begin a new generation.
    let before = leave(0);
    let more: Vec<_> = (0..2000).map(|n| reading_of(1 << 20 | n, 1500, true)).collect();
    for reading in &more {
        rig.submit(vec![reading.clone()], None);
    }
    wait_until("failing", || rig.outbox.status().state.starts_with("failing"));
    setrlimit(Resource::Nofile, before).unwrap();
    rig.outcomes(more.len());
    wanted.extend(more);
    assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == wanted);
    assert_eq!((rig.outbox.status().damaged, damaged.exists()), (0, false));
    rig.close();

    // Who starts, and must read all generations.
    let mut failed = 0;
    for spare in 0..14 {
        for database in databases(dir.path()) {
            let _ = fs::remove_file(database.with_extension("end"));
        }
        let before = leave(spare);
        let opened = Outbox::open(dir.path(), options(MAX));
        setrlimit(Resource::Nofile, before).unwrap();
        println!("a start with {spare} handles: {:?}", opened.as_ref().map(|_| ()));
        match opened {
            Ok(outbox) => outbox.close(Duration::from_secs(30)),
            Err(_) => failed += 1,
        }
        assert!(!damaged.exists(), "{spare} handles");
    }
    assert!((2..14).contains(&failed), "{failed}");
    let rig = Rig::open_with(dir.path(), options(MAX));
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert!(readings(&items) == wanted && holes(&items).is_empty(), "{:?}", holes(&items));
    rig.close();
}
