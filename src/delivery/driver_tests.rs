//! The loop against a scripted cluster and a log in memory.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard};

use super::*;
use crate::delivery::machine::Limits;
use crate::delivery::sink::{Doubt, Receipt, Recovered, RecycleReason};
use crate::outbox::{Identity, Positions, ReadError};
use crate::promise::Committed;
use crate::record::{Flags, Kind, Reading, ReceiptTime, Stored};

const INC: Incarnation = Incarnation([1; 16]);

/// What the next commit does.
#[derive(Debug, Clone, Copy)]
enum Commit {
    Good,
    /// `EndTxn` went out twice.
    GoodTwice,
    Slice,
    /// An odd answer; the cluster did commit.
    UnknownCommitted,
    /// An odd answer; the cluster did not.
    UnknownAborted,
    /// A late end of transaction made only the first half visible, without the ledger record.
    HalfVisible,
    Fenced,
}

#[derive(Default)]
struct World {
    script: VecDeque<Commit>,
    /// What a consumer sees: sequence and how often.
    visible: BTreeMap<u64, u32>,
    ledger: Option<LedgerRecord>,
    open: Vec<u64>,
    open_ledger: Option<LedgerRecord>,
    poison: Vec<u64>,
    dead: Vec<u64>,
    sessions: u32,
    identity: Option<Identity>,
    positions: (u64, u64),
    transactions: u32,
    stop_at: u64,
    hole: bool,
    /// The link is slow: nothing is acknowledged while a transaction streams.
    slow: bool,
    /// A sequence that was dropped: its reading was sent before.
    dropped: Option<u64>,
    /// A commit never ends, and the daemon is to stop.
    stop_in_commit: bool,
    largest: usize,
    protected: Option<(u64, u64)>,
    doubts: Vec<Doubt>,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap()
}

struct FakeSink(Shared, Arc<AtomicBool>);

impl Sink for FakeSink {
    fn connect(&mut self, _limits: &Limits) -> Result<(), SinkError> {
        lock(&self.0).sessions += 1;
        Ok(())
    }
    fn recover(&mut self) -> Result<Recovered, SinkError> {
        let ledger = lock(&self.0).ledger.clone();
        let with_proof = ledger.map(|l| {
            let proof = Committed::by_kafka(l.incarnation, l.upto);
            (l, proof)
        });
        Ok(Recovered { cluster_id: Some("c".into()), ledger: with_proof })
    }
    fn suspect(&mut self, _items: &[Item]) -> Result<(), SinkError> {
        Ok(())
    }
    fn tails(&mut self, doubt: Doubt, ours: &[Incarnation], after: Sequence) -> Result<Visible, SinkError> {
        assert_eq!(ours, [INC]);
        let mut visible = Visible::default();
        lock(&self.0).doubts.push(doubt);
        for n in lock(&self.0).visible.keys().filter(|n| **n > after.0 || **n == 0) {
            visible.insert(INC, Sequence(*n), Sequence(*n));
        }
        Ok(visible)
    }
    fn prepare(&mut self, _items: &[Item], _context: &SendContext<'_>, _open: bool) -> Result<(), SinkError> {
        Ok(())
    }
    fn begin(&mut self) -> Result<(), SinkError> {
        let mut world = lock(&self.0);
        let identity = world.identity.clone().unwrap();
        assert!(identity.ever_began && !identity.clean, "identity is durable before the first begin");
        world.open.clear();
        world.open_ledger = None;
        Ok(())
    }
    fn send(&mut self, items: &[Item], context: &SendContext<'_>) -> Result<(), SinkError> {
        let mut world = lock(&self.0);
        assert!(world.open_ledger.is_none(), "the ledger record is the last");
        for item in items {
            let sequence = item.last();
            if context.condemned.iter().any(|c| c.sequence == sequence) {
                world.dead.push(sequence.0);
            } else if world.poison.contains(&sequence.0) {
                return Err(SinkError::Poison { code: "INVALID_RECORD".into(), text: String::new(), too_large: false });
            }
            world.open.push(sequence.0);
        }
        Ok(())
    }
    fn keeps_up(&mut self, _until: Instant) -> Result<bool, SinkError> {
        Ok(!lock(&self.0).slow)
    }
    fn finish(&mut self, ledger: &LedgerRecord) -> Result<(), SinkError> {
        lock(&self.0).open_ledger = Some(ledger.clone());
        Ok(())
    }
    fn commit(&mut self, _slice: Duration) -> Result<Receipt, SinkError> {
        let mut world = lock(&self.0);
        let ledger = world.open_ledger.clone().unwrap();
        assert_eq!(world.protected, Some((world.positions.0 + 1, ledger.upto.0)), "just what is under way");
        world.largest = world.largest.max(world.open.len());
        if world.stop_in_commit {
            self.1.store(true, Ordering::Release);
            drop(world);
            std::thread::sleep(Duration::from_millis(10));
            return Err(SinkError::Retry("slice".into()));
        }
        let step = world.script.pop_front().unwrap_or(Commit::Good);
        let applied: Vec<u64> = match step {
            Commit::Good | Commit::GoodTwice | Commit::UnknownCommitted => world.open.clone(),
            Commit::HalfVisible => world.open[..world.open.len() / 2].to_vec(),
            Commit::Slice | Commit::UnknownAborted | Commit::Fenced => Vec::new(),
        };
        for n in applied {
            *world.visible.entry(n).or_default() += 1;
        }
        let recycle = |reason| Err(SinkError::Recycle { reason, text: format!("{step:?}") });
        match step {
            Commit::Slice => return Err(SinkError::Retry("slice".into())),
            Commit::UnknownAborted | Commit::HalfVisible => return recycle(RecycleReason::Error),
            Commit::Fenced => return recycle(RecycleReason::Fenced),
            Commit::Good | Commit::GoodTwice | Commit::UnknownCommitted => {}
        }
        world.ledger = Some(ledger.clone());
        world.transactions += 1;
        if matches!(step, Commit::UnknownCommitted) {
            return recycle(RecycleReason::Error);
        }
        if ledger.upto.0 >= world.stop_at {
            self.1.store(true, Ordering::Release);
        }
        let end_txn_sent = if matches!(step, Commit::GoodTwice) { 2 } else { 1 };
        let committed = Committed::by_kafka(ledger.incarnation, ledger.upto);
        Ok(Receipt { committed, overhead: Duration::ZERO, end_txn_sent })
    }
    fn close(&mut self, _abort: bool) {
        lock(&self.0).open.clear();
    }
}

struct FakeFeed(Shared, Arc<AtomicBool>);

fn stored(sequence: u64) -> Item {
    Item::Reading(Stored {
        sequence: Sequence(sequence),
        incarnation: INC,
        segment: Nonce([5; 8]),
        boot_id: "".into(),
        source: "plant".into(),
        reading: Reading {
            topic: "t".into(),
            device: "d".into(),
            kind: Kind::Raw,
            flags: Flags::default(),
            received: ReceiptTime::default(),
            device_time_ns: None,
            content_type: "".into(),
            quality: "".into(),
            mqtt: None,
            replay_of: "".into(),
            value: bytes::Bytes::new(),
        },
    })
}

fn hole(sequence: u64) -> Item {
    Item::Hole(Hole {
        from: Sequence(sequence),
        to: Sequence(sequence),
        ranges: Vec::new(),
        incarnation: INC,
        segment: Nonce([5; 8]),
        boot_id: "".into(),
        noted: ReceiptTime::default(),
        reason: "drop_oldest".into(),
        bytes: 0,
        sources: vec![],
        previous: None,
    })
}

impl Feed for FakeFeed {
    fn positions(&self) -> Positions {
        let (committed, durable) = lock(&self.0).positions;
        Positions { committed: Sequence(committed), durable: Sequence(durable) }
    }
    fn wait_durable(&self, after: Sequence, deadline: Instant) -> Positions {
        let positions = self.positions();
        if positions.durable <= after {
            // All that ever comes is there: what it may wait for is a deadline (after the greatest sequence), or the end.
            let world = lock(&self.0);
            let delivered = |ledger: &LedgerRecord| ledger.incarnation == INC && ledger.upto.0 >= world.stop_at;
            if after.0 != u64::MAX && world.ledger.as_ref().is_some_and(delivered) {
                self.1.store(true, Ordering::Release);
            }
            drop(world);
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(2)));
        }
        positions
    }
    fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError> {
        let world = lock(&self.0);
        let first = after.0 + 1 + u64::from(world.hole && after.0 == 7);
        let item = |n| if world.dropped == Some(n) { hole(n) } else { stored(n) };
        let items: Vec<Item> = (first..=world.positions.1).take(budget.records_max).map(item).collect();
        Ok(Batch { bytes: items.len() * 100, items })
    }
    fn protect(&self, from: Sequence, to: Sequence) {
        lock(&self.0).protected = (from <= to).then_some((from.0, to.0));
    }
    fn trim_through(&self, committed: Committed) {
        let mut world = lock(&self.0);
        let (before, upto) = (world.positions.0, committed.upto().0);
        assert!(upto >= before, "never backwards");
        let held = world.protected.is_some_and(|(from, to)| from <= before + 1 && upto <= to);
        assert!(upto == before || held, "{upto} is in Kafka, and until now it could have been given up");
        world.positions.0 = committed.upto().0;
    }
    fn identity(&self) -> Identity {
        lock(&self.0).identity.clone().unwrap()
    }
    fn change_identity(&self, change: IdentityChange) -> io::Result<()> {
        let mut world = lock(&self.0);
        let identity = world.identity.as_mut().unwrap();
        match change {
            IdentityChange::SessionBegins { ledger, own } => {
                identity.session_nonces = [ledger, own];
                identity.session_number += 1;
                (identity.clean, identity.ever_began) = (false, true);
            }
            IdentityChange::CleanEnd => identity.clean = true,
            IdentityChange::Cluster(id) => identity.cluster_id = Some(id),
            IdentityChange::Previous(previous) => identity.previous = Some(previous),
        }
        Ok(())
    }
    fn sync_position(&self) -> io::Result<()> {
        Ok(())
    }
}

fn world(durable: u64) -> Shared {
    let identity = Identity {
        incarnation: INC,
        previous: None,
        known: vec![INC],
        ever_began: false,
        segment: Nonce([5; 8]),
        segments: vec![Nonce([5; 8])],
        session_nonces: Default::default(),
        session_number: 0,
        clean: false,
        cluster_id: None,
    };
    Arc::new(Mutex::new(World {
        identity: Some(identity),
        positions: (0, durable),
        stop_at: durable,
        ..World::default()
    }))
}

/// Runs a drain until everything is delivered (or it halts), and returns what it reported.
fn run(world: &Shared) -> crate::status::DeliveryStatus {
    let stop = Arc::new(AtomicBool::new(false));
    let limits = Limits {
        records: 10,
        bytes: 1 << 20,
        request_bytes: 1 << 18,
        transaction_timeout: Duration::from_secs(15),
        message_timeout: Duration::from_secs(10),
    };
    let report = Arc::new(Report::new("exactly once"));
    let timing = Timing { max_wait: Duration::from_millis(1), on_cluster_change: OnClusterChange::Hold };
    let driver = Driver::new(
        FakeSink(world.clone(), stop.clone()),
        FakeFeed(world.clone(), stop.clone()),
        Machine::new(limits),
        timing,
        stop.clone(),
        Progress::new("delivery", STALL_AFTER),
        report.clone(),
        DeliveryMetrics::default(),
    );
    let (watched, ender) = (report.clone(), stop);
    let halted = std::thread::Builder::new().spawn(move || {
        while !ender.load(Ordering::Acquire) {
            if watched.status().phase == "halted" {
                ender.store(true, Ordering::Release);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    driver.run();
    halted.unwrap().join().unwrap();
    report.status()
}

/// Everything once, whatever the commits did.
fn exact(script: &[Commit]) -> Shared {
    let world = world(25);
    lock(&world).script.extend(script);
    run(&world);
    {
        let world = lock(&world);
        assert_eq!(world.visible.keys().copied().collect::<Vec<_>>(), (1..=25).collect::<Vec<_>>(), "{script:?}");
        assert!(world.visible.values().all(|times| *times == 1), "{script:?}: {:?}", world.visible);
        assert_eq!(world.ledger.as_ref().unwrap().upto, Sequence(25));
        assert!(world.identity.as_ref().unwrap().clean, "{script:?}");
    }
    world
}

#[test]
fn whatever_a_commit_answers_everything_arrives_once() {
    exact(&[]);
    exact(&[Commit::Slice, Commit::Slice, Commit::Good]);
    exact(&[Commit::UnknownCommitted]);
    exact(&[Commit::UnknownAborted]);
    exact(&[Commit::Fenced, Commit::Good]);
    exact(&[Commit::HalfVisible]);
    exact(&[Commit::HalfVisible, Commit::HalfVisible, Commit::UnknownAborted]);
    exact(&[Commit::Slice, Commit::UnknownCommitted, Commit::HalfVisible]);
}

#[test]
fn a_second_end_of_transaction_brings_a_new_client_and_nothing_else() {
    assert_eq!(lock(&exact(&[Commit::Good])).sessions, 1);
    // The batch in between must not be the last: the end would come before the new client.
    let world = world(25);
    lock(&world).script.extend([Commit::GoodTwice]);
    lock(&world).positions.1 = 10;
    lock(&world).stop_at = 25;
    let growing = world.clone();
    let grow = std::thread::Builder::new().spawn(move || {
        while lock(&growing).transactions == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        lock(&growing).positions.1 = 25;
    });
    run(&world);
    grow.unwrap().join().unwrap();
    assert_eq!(lock(&world).sessions, 2);
    assert!(lock(&world).visible.values().all(|times| *times == 1));
}

#[test]
fn a_poison_record_ends_as_a_dead_letter_and_the_others_pass() {
    let world = world(25);
    lock(&world).poison = vec![13];
    run(&world);
    assert_eq!(lock(&world).visible.len(), 25);
    assert_eq!(lock(&world).dead, [13]);
}

#[test]
fn a_hole_in_the_accounts_stops_the_drain_instead_of_passing() {
    let world = world(25);
    {
        let mut world = lock(&world);
        world.hole = true;
        // The position stands right before the missing sequence.
        world.ledger = Some(LedgerRecord {
            incarnation: INC,
            previous: None,
            session: 1,
            nonce: Nonce([8; 8]),
            segment: Nonce([5; 8]),
            upto: Sequence(7),
            count: 7,
            parked: Default::default(),
            at: String::new(),
        });
        let identity = world.identity.as_mut().unwrap();
        (identity.ever_began, identity.session_nonces) = (true, [Nonce::default(), Nonce([8; 8])]);
    }
    let status = run(&world);
    assert!(status.alarms.iter().any(|alarm| alarm.contains("sequence 8 was expected")), "{status:?}");
    assert!(lock(&world).visible.is_empty());
}

#[test]
fn a_conflict_of_identity_delivers_nothing_and_says_so() {
    let world = world(25);
    {
        let mut world = lock(&world);
        world.identity.as_mut().unwrap().ever_began = true;
        world.ledger = Some(LedgerRecord {
            incarnation: Incarnation([9; 16]),
            previous: None,
            session: 1,
            nonce: Nonce([8; 8]),
            segment: Nonce([7; 8]),
            upto: Sequence(7),
            count: 7,
            parked: Default::default(),
            at: String::new(),
        });
    }
    let status = run(&world);
    assert!(status.alarms.iter().any(|alarm| alarm.starts_with("identity_conflict")), "{status:?}");
    assert!(lock(&world).visible.is_empty() && lock(&world).transactions == 0);
}

#[test]
fn a_wiped_outbox_introduces_itself_once() {
    let world = world(25);
    lock(&world).ledger = Some(LedgerRecord {
        incarnation: Incarnation([9; 16]),
        previous: None,
        session: 1,
        nonce: Nonce([8; 8]),
        segment: Nonce([7; 8]),
        upto: Sequence(900),
        count: 7,
        parked: Default::default(),
        at: String::new(),
    });
    lock(&world).script.extend([Commit::HalfVisible, Commit::UnknownAborted]);
    run(&world);
    let world = lock(&world);
    assert_eq!(world.visible.len(), 26, "sequence 0 is the introduction");
    assert!(world.visible.values().all(|times| *times == 1), "{:?}", world.visible);
    let ledger = world.ledger.as_ref().unwrap();
    assert_eq!((ledger.incarnation, ledger.previous), (INC, Some(Incarnation([9; 16]))));
}

#[test]
fn a_transaction_streams_only_as_fast_as_the_link_takes_it() {
    let world = world(200);
    run(&world);
    assert!(lock(&world).largest > 10, "streams past the batch");
    let world = self::world(200);
    lock(&world).slow = true;
    run(&world);
    assert_eq!(lock(&world).largest, 10, "the batch size is what slow links shrink: nothing may go past it");
    assert_eq!(lock(&world).visible.len(), 200);
}

#[test]
fn nothing_is_kept_from_dropping_while_no_transaction_is_open() {
    // Held (by an identity conflict after reading back) or at rest: the outbox may be full for days.
    let world = exact(&[Commit::HalfVisible, Commit::UnknownAborted]);
    assert_eq!(lock(&world).protected, None);
}

#[test]
fn a_reading_that_was_dropped_while_in_doubt_is_looked_for_everywhere() {
    let world = world(25);
    lock(&world).script.extend([Commit::UnknownAborted]);
    run(&world);
    assert_eq!(lock(&world).doubts, [Doubt::Suspects]);
    let world = self::world(25);
    lock(&world).dropped = Some(4);
    lock(&world).script.extend([Commit::UnknownAborted]);
    run(&world);
    assert_eq!(lock(&world).doubts, [Doubt::SinceHints]);
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_commit_and_is_not_clean_then() {
    let world = world(25);
    lock(&world).stop_in_commit = true;
    run(&world);
    let world = lock(&world);
    assert!(!world.identity.as_ref().unwrap().clean && world.visible.is_empty());
}

#[test]
fn a_log_that_was_rolled_back_and_grew_again_is_held() {
    for (segment, is_fork) in [(Nonce([5; 8]), false), (Nonce([6; 8]), true)] {
        let world = world(25);
        {
            let mut world = lock(&world);
            // Through 7 Kafka has what this log lost; other readings have these numbers now.
            world.ledger = Some(LedgerRecord {
                incarnation: INC,
                previous: None,
                session: 1,
                nonce: Nonce([8; 8]),
                segment,
                upto: Sequence(7),
                count: 7,
                parked: Default::default(),
                at: String::new(),
            });
            let identity = world.identity.as_mut().unwrap();
            (identity.ever_began, identity.session_nonces) = (true, [Nonce::default(), Nonce([8; 8])]);
        }
        let status = run(&world);
        assert_eq!(status.alarms.iter().any(|alarm| alarm.starts_with("fork")), is_fork, "{status:?}");
        assert_eq!(lock(&world).visible.is_empty(), is_fork);
    }
}
