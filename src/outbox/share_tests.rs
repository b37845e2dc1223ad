//! Shares and priorities: a chattering source keeps nobody else out, and nothing of it is lost in silence.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use super::tests::{read_all, readings, trim, wait_until};
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::WhenFull;
use crate::record::{Item, Kind};

const VALUE_BYTES: usize = 4000;

struct Talker {
    appender: Appender,
    answers: UnboundedReceiver<Answer>,
    outbox: Outbox,
    id: SourceId,
    sent: Vec<Reading>,
    done: Vec<(Receipt, Outcome)>,
}

impl Talker {
    fn new(outbox: &Outbox, name: &'static str, share: f64, priority: u8) -> Self {
        let id = SourceId::from(name);
        outbox.admit(&id, Terms { share, priority });
        let (appender, answers) = outbox.appender(&id);
        Self { appender, answers, outbox: outbox.clone(), id, sent: Vec::new(), done: Vec::new() }
    }

    /// In one submission.
    fn say(&mut self, count: u64) {
        let mut arrivals = Vec::new();
        for _ in 0..count {
            let n = self.sent.len() as u64;
            let mut reading = testing::reading_of(n, VALUE_BYTES, true);
            reading.device = self.id.0.clone();
            self.sent.push(reading.clone());
            // Unlike a source, it does not ask whether it may hold so much.
            let held = self.outbox.held().try_acquire(1).unwrap();
            arrivals.push(Arrival { readings: vec![reading], packet: None, receipt: Receipt(n), held });
        }
        self.appender.submit(arrivals);
    }

    fn take(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.done.extend(answer.done);
        }
        assert!(self.done.iter().enumerate().all(|(n, (receipt, _))| receipt.0 == n as u64), "answers come in order");
    }

    fn wait_answered(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.done.len() < self.sent.len() {
            self.take();
            let (done, sent) = (self.done.len(), self.sent.len());
            assert!(Instant::now() < deadline, "{}: {done} of {sent}, {:?}", self.id, self.outbox.status());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn appended(&self) -> Vec<Reading> {
        let appended = self.done.iter().filter(|(_, outcome)| *outcome == Outcome::Appended);
        appended.map(|(receipt, _)| self.sent[receipt.0 as usize].clone()).collect()
    }

    fn status(&self) -> crate::status::SourceStatus {
        let mut sources = BTreeMap::from([(self.id.to_string(), crate::status::SourceStatus::default())]);
        self.outbox.fill_in(&mut sources);
        sources.remove(self.id.as_str()).unwrap()
    }

    /// Of `items`, the readings of this source.
    fn among(&self, items: &[Item]) -> Vec<Reading> {
        let own = |reading: &Reading| reading.kind != Kind::Gap && reading.device == *self.id.0;
        readings(items).into_iter().filter(own).collect()
    }
}

fn open(dir: &Path, when_full: WhenFull) -> Outbox {
    let mut options = tests::options(ByteSize::mib(16));
    options.config.when_full = when_full;
    options.config.held_bytes_max = ByteSize::mib(64);
    Outbox::open(dir, options).unwrap()
}

#[test]
fn under_block_a_source_above_its_share_waits_and_the_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(dir.path(), WhenFull::Block);
    let mut loud = Talker::new(&outbox, "loud", 0.25, 0);
    let mut quiet = Talker::new(&outbox, "quiet", 1.0, 0);
    // The sync of the group in which it is shut out fails: what was written in it stands before what is parked.
    for _ in 0..50 {
        std::fs::write(dir.path().join("outbox/fault-sync"), "no").unwrap();
        loud.say(60);
        let told = loud.sent.len();
        wait_until("answered or outside", || {
            loud.take();
            loud.done.len() == told || outbox.held().of(&loud.id).is_outside()
        });
    }
    wait_until("loud is outside", || loud.status().outside.as_deref() == Some("share_max"));
    let budget = outbox.held();
    assert!(budget.of(&loud.id).is_crowded(), "it is told to stop reading");
    assert!(!budget.of(&quiet.id).is_crowded());
    quiet.say(300);
    quiet.wait_answered();
    loud.take();
    let stored = loud.done.len();
    // A quarter of 16 MiB, and what one group may add; less the generations that failed.
    assert!((500..1200).contains(&stored), "{stored}");
    assert!((3_900_000..5 << 20).contains(&loud.status().queued_bytes), "{:?}", loud.status());
    assert_eq!(outbox.status().state, "ok");
    let mut reader = outbox.reader();
    let (mut after, mut items) = (0, Vec::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    while loud.done.len() < loud.sent.len() || after < outbox.positions().durable.0 {
        assert!(Instant::now() < deadline, "{} {:?}", loud.done.len(), loud.status());
        let more = read_all(&mut reader, after);
        after = more.last().map_or(after, |item| item.last().0);
        items.extend(more);
        trim(&outbox, after);
        loud.take();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(loud.among(&items) == loud.sent && quiet.among(&items) == quiet.sent);
    wait_until("loud is in", || loud.status().outside.is_none());
    assert!(!budget.of(&loud.id).is_crowded());
    assert!(outbox.shared.metrics.failed.get() > 10, "syncs failed");
    drop(reader);
    outbox.close(Duration::from_secs(30));
}

#[test]
fn under_the_other_policies_what_is_above_the_share_is_refused_and_told_and_nothing_of_others_is_dropped() {
    for when_full in [WhenFull::DropNewest, WhenFull::DropOldest] {
        let dir = tempfile::tempdir().unwrap();
        let outbox = open(dir.path(), when_full);
        let mut loud = Talker::new(&outbox, "loud", 0.25, 0);
        let mut quiet = Talker::new(&outbox, "quiet", 1.0, 0);
        quiet.say(300);
        quiet.wait_answered();
        for _ in 0..10 {
            loud.say(1000);
            loud.wait_answered();
            quiet.say(20);
            quiet.wait_answered();
        }
        let refused = (loud.sent.len() - loud.appended().len()) as u64;
        assert!(refused > 7000, "{when_full:?} {refused}");
        assert_eq!(quiet.appended().len(), quiet.sent.len());
        wait_until("loud is outside", || loud.status().outside.as_deref() == Some("share_max"));
        outbox.close(Duration::from_secs(30));

        // The shares count what an earlier process stored, also from summaries that do not know bytes per source.
        for entry in std::fs::read_dir(dir.path().join("outbox")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "end") {
                let mut summary = summary::Summary::read(&path).unwrap();
                summary.source_bytes.clear();
                summary.write(&path).unwrap();
            }
        }
        let outbox = open(dir.path(), when_full);
        let mut again = Talker::new(&outbox, "loud", 0.25, 0);
        again.say(500);
        again.wait_answered();
        let more = again.appended();
        assert!(more.len() < 250, "{} of 500 were let in", more.len());
        let refused = refused + 500 - more.len() as u64;

        // Told when the source comes in again, once, with its reason.
        let durable = outbox.positions().durable.0;
        let mut items = read_all(&mut outbox.reader(), 0);
        trim(&outbox, durable);
        wait_until("the gap is told", || outbox.positions().durable.0 == durable + 1);
        items.extend(read_all(&mut outbox.reader(), durable));
        assert!(loud.among(&items) == [loud.appended(), more].concat(), "{when_full:?}");
        assert!(quiet.among(&items) == quiet.sent, "{when_full:?}");
        let gaps: Vec<_> = readings(&items).into_iter().filter(|reading| reading.kind == Kind::Gap).collect();
        let told: Vec<serde_json::Value> = gaps.iter().map(|gap| serde_json::from_slice(&gap.value).unwrap()).collect();
        assert!(told.iter().all(|told| told["reason"] == "share_max" && told["source"] == "loud"), "{told:?}");
        assert_eq!(told.iter().map(|told| told["count"].as_u64().unwrap()).sum::<u64>(), refused);
        wait_until("all refused are counted", || outbox.status().dropped == refused);
        outbox.close(Duration::from_secs(30));
    }
}

#[test]
fn a_lower_priority_leaves_the_last_part_to_the_higher() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = open(dir.path(), WhenFull::DropNewest);
    let mut low = Talker::new(&outbox, "low", 1.0, 0);
    let mut high = Talker::new(&outbox, "high", 1.0, 5);
    low.say(6000);
    low.wait_answered();
    let stored = low.appended().len();
    assert!((1000..6000).contains(&stored), "{stored}");
    wait_until("low is outside", || low.status().outside.as_deref() == Some("priority"));
    assert_eq!(outbox.status().state, "ok", "it is not full");
    high.say(200);
    high.wait_answered();
    assert_eq!(high.appended().len(), 200, "who is refused last");
    low.say(100);
    low.wait_answered();
    assert_eq!(low.appended().len(), stored);
    // Of equal priority: the whole outbox is for both.
    outbox.admit(&low.id, Terms { share: 1.0, priority: 5 });
    wait_until("low is in", || low.status().outside.is_none());
    low.say(50);
    low.wait_answered();
    assert!(low.appended().len() == stored + 50 && outbox.positions().durable.0 as usize >= stored + 250);
    outbox.close(Duration::from_secs(30));
}
