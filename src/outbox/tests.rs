//! The outbox as its users see it: append, read, trim, reopen.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use super::testing::reading_of;
use super::*;
use crate::config::ByteSize;
use crate::record::Item;

pub(super) const AGENT: &str = "gw-1";

/// An open outbox with one source and its answers.
pub(super) struct Rig {
    pub(super) outbox: Outbox,
    pub(super) appender: Appender,
    pub(super) answers: UnboundedReceiver<Answer>,
    pub(super) next_receipt: u64,
}

pub(super) fn options(max: ByteSize) -> OpenOptions {
    let config = config::Outbox { max_bytes: max, free_space_floor: ByteSize(0), ..config::Outbox::default() };
    OpenOptions { config, agent_id: AGENT.to_owned(), metrics: OutboxMetrics::default() }
}

impl Rig {
    pub(super) fn open(dir: &Path) -> Self {
        Self::open_with(dir, options(ByteSize::mib(64)))
    }

    pub(super) fn open_with(dir: &Path, options: OpenOptions) -> Self {
        let outbox = Outbox::open(dir, options).unwrap();
        let (appender, answers) = outbox.appender(&"plant".into());
        Self { outbox, appender, answers, next_receipt: 1 }
    }

    pub(super) fn submit(&mut self, readings: Vec<Reading>, packet: Option<Packet>) -> Receipt {
        let receipt = Receipt(self.next_receipt);
        self.next_receipt += 1;
        let held = self.outbox.held().try_acquire(1).unwrap();
        self.appender.submit(vec![Arrival { readings, packet, receipt, held }]);
        receipt
    }

    /// The next outcomes, as many as asked for.
    pub(super) fn outcomes(&mut self, count: usize) -> Vec<(Receipt, Outcome)> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut done = Vec::new();
        while done.len() < count {
            match self.answers.try_recv() {
                Ok(answer) => {
                    let durable = self.outbox.shared.view().durable_index;
                    assert!(answer.durable.through().0 <= durable);
                    done.extend(answer.done);
                }
                Err(_) => {
                    assert!(
                        Instant::now() < deadline,
                        "only {} of {count} were answered: {:?} {:#?}",
                        done.len(),
                        self.outbox.status(),
                        self.outbox.shared.view()
                    );
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        assert_eq!(done.len(), count);
        done
    }

    /// Submits one reading and waits for its outcome.
    pub(super) fn append(&mut self, reading: Reading, packet: Option<Packet>) -> Outcome {
        let receipt = self.submit(vec![reading], packet);
        let done = self.outcomes(1);
        assert_eq!(done[0].0, receipt);
        done[0].1
    }

    pub(super) fn append_all(&mut self, readings: &[Reading]) {
        for reading in readings {
            self.submit(vec![reading.clone()], None);
        }
        let outcomes = self.outcomes(readings.len());
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Appended));
        assert!(outcomes.windows(2).all(|pair| pair[0].0.0 < pair[1].0.0), "answers come in order");
    }

    pub(super) fn close(self) {
        self.outbox.close(Duration::from_secs(30));
    }
}

pub(super) const SOME: Budget = Budget { records_max: 700, bytes_max: 200_000 };

/// Everything after `after`, checked for contiguity.
pub(super) fn read_all(reader: &mut Reader, after: u64) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut last = after;
    loop {
        let batch = reader.batch_after(Sequence(last), SOME).unwrap();
        if batch.items.is_empty() {
            return items;
        }
        let life = batch.items[0].incarnation();
        for item in batch.items {
            assert_eq!(item.first().0, last + 1);
            assert_eq!(item.incarnation(), life, "one incarnation per batch");
            last = item.last().0;
            items.push(item);
        }
    }
}

pub(super) fn readings(items: &[Item]) -> Vec<Reading> {
    let reading = |item: &Item| match item {
        Item::Reading(stored) => Some(stored.reading.clone()),
        Item::Hole(_) => None,
    };
    items.iter().filter_map(reading).collect()
}

pub(super) fn holes(items: &[Item]) -> Vec<(u64, u64, String)> {
    let hole = |item: &Item| match item {
        Item::Hole(hole) => Some((hole.from.0, hole.to.0, hole.reason.to_string())),
        Item::Reading(_) => None,
    };
    items.iter().filter_map(hole).collect()
}

pub(super) fn many(from: u64, count: u64, bytes: usize) -> Vec<Reading> {
    (from..from + count).map(|n| reading_of(n, bytes, false)).collect()
}

pub(super) fn trim(outbox: &Outbox, upto: u64) {
    outbox.trim_through(Committed::by_kafka(outbox.identity().incarnation, Sequence(upto)));
}

pub(super) fn generations(dir: &Path) -> usize {
    directory::Directory::new(dir.join("outbox")).list().unwrap().len()
}

pub(super) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_appended_is_read_in_order_now_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = many(1, 3000, 200);
    let mut rig = Rig::open(dir.path());
    rig.append_all(&wanted[..2000]);
    let mut reader = rig.outbox.reader();
    let items = read_all(&mut reader, 0);
    assert_eq!(readings(&items), wanted[..2000]);
    let first = rig.outbox.identity();
    drop(reader);
    rig.close();

    let mut rig = Rig::open(dir.path());
    let again = rig.outbox.identity();
    assert_eq!(again.incarnation, first.incarnation, "an outbox that lives keeps its incarnation");
    assert_ne!(again.segment, first.segment, "a process start is a segment");
    rig.append_all(&wanted[2000..]);
    let items = read_all(&mut rig.outbox.reader(), 0);
    assert_eq!(readings(&items), wanted);
    assert_eq!(holes(&items), [], "a new outbox has nothing before it");
    let segments: Vec<_> = items
        .iter()
        .map(|item| match item {
            Item::Reading(stored) => stored.segment,
            Item::Hole(_) => unreachable!(),
        })
        .collect();
    assert_eq!((segments[1999], segments[2000]), (first.segment, again.segment));
    rig.close();
}

#[test]
fn delivered_generations_leave_the_disk_and_are_not_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    let wanted = many(1, 4000, 1000);
    rig.append_all(&wanted);
    assert!(generations(dir.path()) > 3, "{}", generations(dir.path()));
    let mut reader = rig.outbox.reader();
    assert_eq!(readings(&read_all(&mut reader, 0)), wanted);
    trim(&rig.outbox, 4000);
    wait_until("trimmed", || generations(dir.path()) == 1);
    assert_eq!(rig.outbox.positions(), Positions { committed: Sequence(4000), durable: Sequence(4000) });
    drop(reader);
    rig.close();
    let rig = Rig::open_with(dir.path(), options(ByteSize::mib(16)));
    assert_eq!(rig.outbox.positions(), Positions { committed: Sequence(4000), durable: Sequence(4000) });
    rig.close();
}

#[test]
fn a_record_larger_than_a_block_is_split_and_joined() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let sizes = [10, 14_900, 15_001, 40_000, 960 * 1024, 5];
    let wanted: Vec<_> = sizes.iter().enumerate().map(|(n, size)| reading_of(n as u64, *size, n % 2 == 1)).collect();
    rig.append_all(&wanted);
    let mut reader = rig.outbox.reader();
    assert!(readings(&read_all(&mut reader, 0)) == wanted);
    assert!(readings(&read_all(&mut reader, 3)) == wanted[3..], "from the middle, too");
    drop(reader);
    rig.close();
    let rig = Rig::open(dir.path());
    assert!(readings(&read_all(&mut rig.outbox.reader(), 0)) == wanted);
    rig.close();
}

#[test]
fn the_readings_of_one_arrival_stand_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let wanted = many(1, 5, 100);
    rig.submit(wanted.clone(), None);
    rig.submit(Vec::new(), None);
    assert_eq!(rig.outcomes(2).len(), 2);
    assert_eq!(readings(&read_all(&mut rig.outbox.reader(), 0)), wanted);
    assert_eq!(rig.outbox.held().used_and_max().0, 0, "permits are freed with the answer");
    rig.close();
}

#[test]
fn waiting_ends_when_something_is_durable_or_when_woken() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let outbox = rig.outbox.clone();
    let waiter = std::thread::Builder::new()
        .spawn(move || outbox.wait_durable(Sequence(0), Instant::now() + Duration::from_secs(30)).durable)
        .unwrap();
    rig.append(reading_of(1, 10, false), None);
    assert_eq!(waiter.join().unwrap(), Sequence(1));
    let outbox = rig.outbox.clone();
    let waiter = std::thread::Builder::new()
        .spawn(move || {
            let far = Instant::now() + Duration::from_secs(30);
            outbox.wait_durable(Sequence(1), far);
            assert!(Instant::now() < far);
        })
        .unwrap();
    while !waiter.is_finished() {
        rig.outbox.wake();
        std::thread::sleep(Duration::from_millis(2));
    }
    waiter.join().unwrap();
    rig.close();
}

#[test]
fn a_second_process_is_refused_and_told_who_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(dir.path());
    match Outbox::open(dir.path(), options(ByteSize::mib(64))) {
        Err(error @ OpenError::Locked { .. }) => {
            assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // Nor are its files read under it.
    assert!(matches!(Look::at_files(dir.path(), None), Err(LookError::InUse(_))));
    rig.close();
}

#[test]
fn the_outbox_of_another_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Rig::open(dir.path()).close();
    let other = OpenOptions { agent_id: "gw-2".to_owned(), ..options(ByteSize::mib(64)) };
    match Outbox::open(dir.path(), other) {
        Err(OpenError::Foreign(text)) => assert!(text.contains("gw-1") && text.contains("gw-2"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn identity_changes_survive() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(dir.path());
    let fresh = rig.outbox.identity();
    assert!(!fresh.ever_began && fresh.clean && fresh.previous.is_none());
    let (ledger, own) = (Nonce([1; 8]), Nonce([2; 8]));
    let change = |change| rig.outbox.change_identity(change).unwrap();
    change(IdentityChange::Previous(Incarnation([7; 16])));
    change(IdentityChange::SessionBegins { ledger, own });
    change(IdentityChange::Cluster("abc".to_owned()));
    let before = rig.outbox.identity();
    rig.close();
    let rig = Rig::open(dir.path());
    let after = rig.outbox.identity();
    assert_eq!(after.session_nonces, [ledger, own]);
    assert_eq!(after.previous, Some(Incarnation([7; 16])));
    assert_eq!((after.ever_began, after.clean, after.session_number), (true, false, 1));
    assert_eq!((&after.cluster_id, &after.known), (&before.cluster_id, &before.known));
    rig.outbox.change_identity(IdentityChange::CleanEnd).unwrap();
    assert!(rig.outbox.identity().clean);
    rig.close();
}

#[test]
fn an_empty_value_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open(dir.path());
    let mut reading = reading_of(1, 0, false);
    reading.value = Bytes::new();
    rig.append(reading.clone(), None);
    assert_eq!(readings(&read_all(&mut rig.outbox.reader(), 0)), [reading], "an empty value stays an empty value");
    rig.close();
}
