//! The outbox on small real file systems: full, full of somebody else's files, without inodes, read-only. Each test
//! runs in a mount namespace of its own (tests/small_disk/disk.rs).

#[path = "../../tests/small_disk/disk.rs"]
mod disk;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use self::disk::{Disk, alone, ext4, tmpfs};
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::WhenFull;
use crate::record::{Flags, Item, Kind};

/// How long anything may take. Nothing depends on it but how long a failure takes.
const PATIENCE: Duration = Duration::from_secs(60);
const VALUE_BYTES: usize = 4000;
const SOME: Budget = Budget { records_max: 100, bytes_max: 1 << 20 };

fn options(max: ByteSize, floor: ByteSize, when_full: WhenFull) -> OpenOptions {
    let config = config::Outbox {
        max_bytes: max,
        free_space_floor: floor,
        when_full,
        held_bytes_max: ByteSize::mib(256),
        ..config::Outbox::default()
    };
    OpenOptions { config, agent_id: "gw-1".to_owned(), metrics: OutboxMetrics::default() }
}

/// A reading that does not compress and says its number.
fn reading(n: u64) -> Reading {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(VALUE_BYTES)
    .collect();
    value[..8].copy_from_slice(&n.to_le_bytes());
    Reading {
        topic: "t".into(),
        device: "d".into(),
        kind: Kind::Raw,
        flags: Flags::default(),
        received: ReceiptTime { wall_ns: 1_795_000_000_000_000_000, mono_ns: n },
        device_time_ns: None,
        content_type: "".into(),
        quality: "".into(),
        mqtt: None,
        replay_of: "".into(),
        value: Bytes::from(value),
    }
}

struct Rig {
    outbox: Outbox,
    appender: Appender,
    answers: UnboundedReceiver<Answer>,
    reader: Reader,
    submitted: u64,
    /// Answered with "on the medium", and with "refused and counted".
    appended: u64,
    refused: u64,
    /// Read and trimmed through this sequence.
    delivered: u64,
}

impl Rig {
    fn open(dir: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let outbox = Outbox::open(dir, options)?;
        let (appender, answers) = outbox.appender(&"plant".into());
        let (reader, durable) = (outbox.reader(), outbox.positions().durable.0);
        let delivered = outbox.positions().committed.0;
        Ok(Self { outbox, appender, answers, reader, submitted: durable, appended: durable, refused: 0, delivered })
    }

    fn submit(&mut self, count: u64) {
        for _ in 0..count {
            self.submitted += 1;
            let held = self.outbox.held().try_acquire(1).unwrap();
            let readings = vec![reading(self.submitted)];
            self.appender.submit(vec![Arrival { readings, packet: None, receipt: Receipt(self.submitted), held }]);
        }
    }

    fn take_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            for (_, outcome) in answer.done {
                match outcome {
                    Outcome::Appended => self.appended += 1,
                    Outcome::Refused => self.refused += 1,
                    Outcome::Duplicate => panic!("nothing was sent twice"),
                }
            }
        }
    }

    fn state(&self) -> String {
        self.outbox.status().state
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            self.take_answers();
            assert!(
                Instant::now() < deadline,
                "{what}: {:?}, {} of {}",
                self.outbox.status(),
                self.appended,
                self.submitted
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait_answered(&mut self) {
        self.wait("all is answered", |rig| rig.appended + rig.refused == rig.submitted);
    }

    /// Submits until the outbox says why it takes no more.
    fn fill(&mut self) {
        loop {
            self.submit(50);
            let since = Instant::now();
            while self.appended + self.refused < self.submitted {
                self.take_answers();
                if self.state().starts_with("full") && since.elapsed() > Duration::from_millis(500) {
                    return;
                }
                assert!(since.elapsed() < PATIENCE, "{:?}", self.outbox.status());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Reads through `upto` and trims as Kafka's commits would allow; the numbers of the readings, and ranges of holes.
    fn drain(&mut self, upto: u64) -> (Vec<u64>, Vec<(u64, u64, String)>) {
        let (mut numbers, mut holes) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + PATIENCE;
        let mut trouble = String::new();
        while self.delivered < upto {
            assert!(Instant::now() < deadline, "the drain stands at {} of {upto}: {trouble}", self.delivered);
            let batch = match self.reader.batch_after(Sequence(self.delivered), SOME) {
                Ok(batch) => batch,
                Err(error) => {
                    trouble = error.to_string();
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            for item in &batch.items {
                match item {
                    Item::Reading(stored) if stored.reading.kind == Kind::Raw => {
                        let n = u64::from_le_bytes(stored.reading.value[..8].try_into().unwrap());
                        assert!(stored.reading.value == reading(n).value, "reading {n} is what was submitted");
                        numbers.push(n);
                    }
                    Item::Reading(_) => {}
                    Item::Hole(hole) => holes.push((hole.from.0, hole.to.0, hole.reason.to_string())),
                }
                self.delivered = item.last().0;
            }
            if batch.items.is_empty() {
                self.take_answers();
                std::thread::sleep(Duration::from_millis(2));
            }
            tests::trim(&self.outbox, self.delivered);
        }
        (numbers, holes)
    }

    fn close(self) {
        drop(self.reader);
        self.outbox.close(PATIENCE);
    }
}

const LARGE: ByteSize = ByteSize::mib(1024);
const NO_FLOOR: ByteSize = ByteSize(0);

fn all(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

/// The name under which the test binary knows a test of this file.
fn name(test: &str) -> String {
    format!("outbox::small_disk_tests::{test}")
}

#[test]
fn a_full_disk_stops_intake_loses_nothing_and_intake_resumes_by_itself() {
    alone(&name("a_full_disk_stops_intake_loses_nothing_and_intake_resumes_by_itself"), false, |dir| {
        let disk = tmpfs(dir, "size=40m");
        let mut rig = Rig::open(&disk.state_dir(), options(LARGE, NO_FLOOR, WhenFull::Block)).unwrap();
        let reserve = disk.state_dir().join("outbox/reserve");
        rig.fill();
        assert!(rig.state().contains("free_space_floor"), "{}", rig.state());
        assert!(reserve.exists() && disk.free() > 0, "it stops before a write fails");
        assert_eq!(rig.outbox.shared.metrics.failed.get(), 0);
        let stored = rig.outbox.positions().durable.0;
        assert!(stored >= rig.appended && stored > 3000, "{stored}");

        // Somebody else takes the very last byte. `pos` is written in place, the drain reads, the reserve is lent to it.
        disk.take_until(0);
        rig.outbox.sync_position().unwrap();
        let half = rig.appended / 2;
        let (numbers, holes) = rig.drain(half);
        assert!(numbers == all(1, rig.delivered) && holes.is_empty());
        rig.outbox.sync_position().unwrap();

        // What is trimmed makes room: what waits is taken without anybody's help.
        let submitted = rig.submitted;
        let (more, holes) = rig.drain(submitted);
        assert!(more == all(half_end(&numbers) + 1, submitted) && holes.is_empty());
        rig.wait_answered();
        disk.give_back();
        rig.submit(1);
        rig.wait_answered();
        rig.wait("the reserve is back", |_| directory::disk_bytes(&reserve) >= 16 << 20);
        assert_eq!(rig.state(), "ok");
        rig.close();
    });
}

fn half_end(numbers: &[u64]) -> u64 {
    numbers.last().copied().unwrap_or(0)
}

#[test]
fn the_free_space_floor_is_left_to_others() {
    alone(&name("the_free_space_floor_is_left_to_others"), false, |dir| {
        let floor = 12 << 20;
        let disk = tmpfs(dir, "size=48m");
        let mut rig = Rig::open(&disk.state_dir(), options(LARGE, ByteSize(floor), WhenFull::Block)).unwrap();
        rig.submit(500);
        rig.wait_answered();
        // Somebody else comes to the floor: we stop though we hold little, he can go on.
        disk.take_until(floor - (1 << 20));
        rig.submit(10);
        rig.wait("full", |rig| rig.state().starts_with("full: the file system has less than"));
        assert_eq!(rig.outbox.positions().durable.0, 500);
        disk.take_until(floor / 2);
        assert_eq!(rig.outbox.shared.metrics.failed.get(), 0);
        disk.give_back();
        rig.wait_answered();
        assert_eq!((rig.appended, rig.state().as_str()), (510, "ok"));
        rig.fill();
        assert!(disk.free() >= floor - (2 << 20), "{} bytes are left", disk.free());
        rig.close();
    });
}

#[test]
fn drop_oldest_makes_room_on_a_full_disk_but_not_for_what_others_took() {
    alone(&name("drop_oldest_makes_room_on_a_full_disk_but_not_for_what_others_took"), false, |dir| {
        let disk = tmpfs(dir, "size=40m");
        let mut rig = Rig::open(&disk.state_dir(), options(LARGE, NO_FLOOR, WhenFull::DropOldest)).unwrap();
        rig.submit(8000);
        rig.wait_answered();
        assert_eq!(rig.appended, 8000);
        let (numbers, holes) = rig.drain(8000);
        let dropped: u64 = holes.iter().map(|(from, to, _)| to - from + 1).sum();
        assert!(dropped > 0 && numbers.len() as u64 + dropped == 8000, "{} {holes:?}", numbers.len());
        assert!(holes.iter().all(|(.., why)| why == "drop_oldest") && numbers.last() == Some(&8000));

        let before = rig.outbox.status().dropped;
        rig.close();
        let floor = ByteSize::mib(12);
        let mut rig = Rig::open(&disk.state_dir(), options(LARGE, floor, WhenFull::DropOldest)).unwrap();
        rig.submit(1000);
        rig.wait_answered();
        // What we hold could not make up for this, so nothing of it is thrown away.
        disk.take_until(1 << 20);
        rig.submit(100);
        rig.wait("full", |rig| rig.state().starts_with("full"));
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!((before > 0, rig.outbox.status().dropped), (true, 0));
        disk.give_back();
        rig.wait_answered();
        assert!(rig.drain(9100).0 == all(8001, 9100));
        rig.close();
    });
}

#[test]
fn drop_newest_counts_what_a_full_disk_refuses() {
    alone(&name("drop_newest_counts_what_a_full_disk_refuses"), false, |dir| {
        let disk = tmpfs(dir, "size=40m");
        let mut rig = Rig::open(&disk.state_dir(), options(LARGE, NO_FLOOR, WhenFull::DropNewest)).unwrap();
        rig.submit(8000);
        rig.wait_answered();
        assert!(rig.refused > 500 && rig.appended + rig.refused == 8000);
        let appended = rig.appended;
        assert!(rig.drain(appended).0 == all(1, appended));
        rig.wait("the gap is told", |rig| rig.outbox.positions().durable.0 > appended);
        rig.close();
    });
}

#[test]
fn without_inodes_nothing_is_taken_until_there_are_some() {
    alone(&name("without_inodes_nothing_is_taken_until_there_are_some"), false, |dir| {
        let disk = tmpfs(dir, "size=64m,nr_inodes=160");
        let mut rig = Rig::open(&disk.state_dir(), options(ByteSize::mib(16), NO_FLOOR, WhenFull::Block)).unwrap();
        rig.submit(100);
        rig.wait_answered();
        let mut files = 0;
        while std::fs::write(disk.mount.join(format!("n{files}")), "").is_ok() {
            files += 1;
        }
        rig.submit(10);
        rig.wait("full", |rig| rig.state() == "full: the file system has no inodes free");
        assert!(rig.drain(100).0 == all(1, 100), "the drain goes on");
        for n in 0..files {
            std::fs::remove_file(disk.mount.join(format!("n{n}"))).unwrap();
        }
        rig.wait_answered();
        assert_eq!(rig.appended, 110);
        rig.close();
    });
}

/// What the child of the next test does: fills the outbox, says what was answered.
const FILLER: &str = "TEST_SMALL_DISK_FILL";

#[test]
fn a_kill_on_a_full_disk_and_a_start_on_it_lose_nothing() {
    alone(&name("a_kill_on_a_full_disk_and_a_start_on_it_lose_nothing"), false, |dir| {
        let full = || options(LARGE, NO_FLOOR, WhenFull::Block);
        if let Some(state_dir) = std::env::var_os(FILLER) {
            let mut rig = Rig::open(Path::new(&state_dir), full()).unwrap();
            rig.fill();
            rig.take_answers();
            eprintln!("answered {}", rig.appended);
            std::thread::sleep(PATIENCE);
            return;
        }
        let disk = tmpfs(dir, "size=40m");
        let answered = fill_and_kill(&disk);
        disk.take_until(0);
        // The reserve is what a start on a full disk lives on.
        let mut rig = Rig::open(&disk.state_dir(), full()).unwrap();
        assert!(rig.state().starts_with("full"), "{}", rig.state());
        assert!(rig.outbox.positions().durable.0 >= answered);
        let (numbers, holes) = rig.drain(answered);
        assert!(numbers[..answered as usize] == all(1, answered) && holes.is_empty());
        let durable = rig.outbox.positions().durable.0;
        let delivered = rig.delivered;
        rig.close();

        // Without a reserve, and without a byte: it says so, and all is there once there is room.
        disk.take_until(0);
        let reserve = disk.state_dir().join("outbox/reserve");
        if reserve.exists() {
            std::fs::remove_file(&reserve).unwrap();
            disk.take_until(0);
        }
        match Rig::open(&disk.state_dir(), full()) {
            Ok(rig) => rig.close(),
            Err(error) => assert!(error.to_string().contains("o space left"), "{error}"),
        }
        disk.give_back();
        let mut rig = Rig::open(&disk.state_dir(), full()).unwrap();
        assert_eq!(rig.outbox.positions().durable.0, durable);
        assert!(rig.drain(durable).0 == all(delivered + 1, durable));
        rig.submitted = durable;
        rig.submit(1);
        rig.wait("it goes on", |rig| rig.outbox.positions().durable.0 == durable + 1);
        rig.close();
    });
}

/// A child fills the outbox until it takes no more, and is killed; how many readings were answered.
fn fill_and_kill(disk: &Disk) -> u64 {
    let test = name("a_kill_on_a_full_disk_and_a_start_on_it_lose_nothing");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--nocapture"]).env(FILLER, disk.state_dir()).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = None;
    for line in lines {
        if let Some(count) = line.strip_prefix("answered ") {
            said = Some(count.parse().unwrap());
            break;
        }
        eprintln!("child: {line}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    said.expect("the child says what was answered")
}

#[test]
fn a_file_system_that_turns_read_only_is_said_and_what_was_answered_is_there_afterwards() {
    alone(&name("a_file_system_that_turns_read_only_is_said_and_what_was_answered_is_there_afterwards"), true, |dir| {
        let disk = ext4(dir, 64);
        let settings = || options(ByteSize::mib(16), NO_FLOOR, WhenFull::Block);
        let mut rig = Rig::open(&disk.state_dir(), settings()).unwrap();
        rig.submit(500);
        rig.wait_answered();
        // As ext4 does it itself after an error of the medium.
        disk.remount("abort");
        rig.submit(10);
        rig.wait("failing", |rig| rig.state().starts_with("failing"));
        assert_eq!(rig.appended, 500);
        rig.close();
        disk.unmount();
        disk.mount_image(&dir.join("image"));
        let mut rig = Rig::open(&disk.state_dir(), settings()).unwrap();
        assert!(rig.drain(500).0 == all(1, 500));
        rig.submit(1);
        rig.wait_answered();
        rig.close();
    });
}

#[test]
fn when_the_right_to_write_is_lost_and_comes_back_it_goes_on_by_itself() {
    alone(&name("when_the_right_to_write_is_lost_and_comes_back_it_goes_on_by_itself"), true, |dir| {
        let disk = ext4(dir, 64);
        let settings = || options(ByteSize::mib(16), NO_FLOOR, WhenFull::Block);
        let mut rig = Rig::open(&disk.state_dir(), settings()).unwrap();
        rig.submit(1000);
        rig.wait_answered();
        let outbox = disk.state_dir().join("outbox");
        let before = damage_tests::databases(&disk.state_dir()).len();
        assert!(before > 2, "{before}");
        // Immutable files refuse root, too, and handles that are open: what a file system that turned read-only does. (It cannot
        // be turned so while files are open to be written.)
        let turn = |how: &str| disk::run("chattr", &["-R", how, outbox.to_str().unwrap()]);
        for round in 1..=2 {
            turn("+i");
            rig.submit(10);
            rig.wait("failing", |rig| rig.state().starts_with("failing"));
            assert_eq!(rig.appended + 10, rig.submitted, "nothing is answered that is not on the disk");
            // Whoever reads waits, or gets what is there; it is no damage.
            for after in [0, rig.appended / 2, rig.appended - 1] {
                match rig.outbox.reader().batch_after(Sequence(after), SOME) {
                    Ok(batch) => assert!(tests::holes(&batch.items).is_empty()),
                    Err(error) => assert!(error.to_string().contains("not permitted"), "{error}"),
                }
            }
            turn("-i");
            rig.wait_answered();
            rig.wait("well again", |rig| rig.state() == "ok");
            let made = damage_tests::databases(&disk.state_dir()).len();
            assert!(made >= before + round, "a failed generation is never written again: {before} to {made}");
        }
        let submitted = rig.submitted;
        let (numbers, holes) = rig.drain(submitted);
        assert!(numbers == all(1, submitted) && holes.is_empty());
        assert_eq!((rig.outbox.status().damaged, outbox.join("damaged").exists()), (0, false));
        rig.close();
        let mut rig = Rig::open(&disk.state_dir(), settings()).unwrap();
        assert_eq!(rig.outbox.positions().durable.0, submitted);
        rig.submit(1);
        rig.wait_answered();
        rig.close();
    });
}

#[test]
fn an_ext4_that_is_full_is_no_different() {
    alone(&name("an_ext4_that_is_full_is_no_different"), true, |dir| {
        let disk = ext4(dir, 48);
        let mut rig = Rig::open(&disk.state_dir(), options(LARGE, NO_FLOOR, WhenFull::Block)).unwrap();
        rig.fill();
        disk.take_until(0);
        let submitted = rig.submitted;
        let (numbers, holes) = rig.drain(submitted);
        assert!(numbers == all(1, submitted) && holes.is_empty());
        rig.wait_answered();
        rig.close();
    });
}

/// The most that is used of a disk at any moment while `work` runs.
fn most_used<T>(disk: &Disk, work: impl FnOnce() -> T) -> (u64, T) {
    let all = {
        let stat = rustix::fs::statvfs(&disk.mount).unwrap();
        stat.f_blocks * stat.f_frsize
    };
    let over = AtomicBool::new(false);
    let (work, least) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut least = u64::MAX;
            while !over.load(Ordering::Acquire) {
                least = least.min(disk.free());
                std::thread::sleep(Duration::from_micros(50));
            }
            least
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Release);
        (result, watcher.join().unwrap())
    });
    (all - least, work.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[test]
fn rebuilding_keeps_below_the_cap_at_any_moment() {
    alone(&name("rebuilding_keeps_below_the_cap_at_any_moment"), false, |dir| {
        const MAX: ByteSize = ByteSize::mib(32);
        let settings = || options(MAX, NO_FLOOR, WhenFull::Block);
        let full = dir.join("full");
        std::fs::create_dir(&full).unwrap();
        let mut rig = Rig::open(&full, settings()).unwrap();
        rig.fill();
        rig.close();
        let disk = tmpfs(dir, "size=64m");
        for at_start in [false, true] {
            let state_dir = disk.state_dir();
            testing::copy_tree(&full, &state_dir);
            for database in damage_tests::databases(&state_dir).into_iter().take(4) {
                let len = std::fs::metadata(database.join("db")).unwrap().len();
                damage_tests::overwrite(&database.join("db"), len / 2, &[0xee; 64]);
                if at_start {
                    // Then it is read at the start, and the damage found there.
                    std::fs::remove_file(database.with_extension("end")).unwrap();
                }
            }
            let (most, stored) = most_used(&disk, || {
                let mut rig = Rig::open(&state_dir, settings()).unwrap();
                let items = tests::read_all(&mut rig.reader, 0);
                let stored = rig.outbox.positions().durable.0;
                assert_eq!(rig.outbox.status().damaged, 4);
                let lost = tests::holes(&items);
                assert!(tests::readings(&items).len() as u64 >= stored - 16, "{lost:?}");
                rig.close();
                stored
            });
            println!("at a start: {at_start}; {most} of {} bytes, {stored} readings", MAX.0);
            assert!(most <= MAX.0 && most > MAX.0 * 8 / 10, "at a start: {at_start}; {most} of {} bytes", MAX.0);
            std::fs::remove_dir_all(state_dir).unwrap();
        }
    });
}
