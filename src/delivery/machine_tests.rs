use super::*;
use crate::record::Incarnation;

const S: Duration = Duration::from_secs(1);

fn machine() -> Machine {
    Machine::new(Limits {
        records: 5000,
        bytes: 2 << 20,
        request_bytes: 256 << 10,
        transaction_timeout: 15 * S,
        message_timeout: 10 * S,
    })
}

fn span(first: u64, records: usize) -> Span {
    Span {
        incarnation: Incarnation([1; 16]),
        first: Sequence(first),
        last: Sequence(first + records as u64 - 1),
        records,
    }
}

fn recycle(reason: RecycleReason) -> SinkError {
    SinkError::Recycle { reason, text: "as told".to_owned() }
}

/// Brings a machine to `Idle`.
fn idle(machine: &mut Machine, now: Instant) {
    assert_eq!(machine.on(Event::Tick, now), Action::Connect);
    assert_eq!(machine.on(Event::Connected, now), Action::Recover);
    assert!(matches!(machine.on(Event::Recovered, now), Action::Collect(_)));
}

fn committed(upto: u64, overhead_ms: u64, end_txn_sent: u64) -> Event {
    Event::Committed { upto: Sequence(upto), overhead: Duration::from_millis(overhead_ms), end_txn_sent }
}

/// From `Idle` through one transaction that fails at the commit, back to `Idle`. Returns the time it would go on.
fn fail(machine: &mut Machine, error: SinkError, sent: (Span, usize), now: Instant) -> Instant {
    assert_eq!(machine.on(Event::Ready, now), Action::Transact);
    assert_eq!(machine.on(Event::Sent(sent.0, sent.1), now), Action::Commit);
    assert_eq!(machine.on(Event::Failed(error, None), now), Action::Close);
    assert!(machine.unclean());
    let Action::WaitUntil(until) = machine.on(Event::Closed, now) else { panic!("waits after closing") };
    idle(machine, until);
    assert!(!machine.unclean(), "recovery has settled it");
    until
}

#[test]
fn a_good_transaction_is_followed_by_a_gap_of_several_overheads() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    for (overhead, gap) in [(1, 50), (100, 400), (5_000, 2_000)] {
        assert_eq!(m.on(Event::Ready, now), Action::Transact);
        assert_eq!(m.on(Event::Sent(span(1, 10), 100), now), Action::Commit);
        let next = m.on(committed(10, overhead, 1), now);
        assert_eq!(next, Action::Collect(now + Duration::from_millis(gap)));
        assert_eq!(m.phase(), "idle");
    }
}

#[test]
fn two_end_txn_for_one_commit_replace_the_client_at_once() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    m.on(Event::Ready, now);
    m.on(Event::Sent(span(1, 10), 100), now);
    assert_eq!(m.on(committed(10, 1, 2), now), Action::Close);
    assert_eq!(m.take_recycled(), Some(RecycleReason::Hygiene));
    assert!(!m.unclean(), "the commit itself is known to be good");
    assert_eq!(m.on(Event::Closed, now), Action::WaitUntil(now));
}

#[test]
fn a_retriable_commit_is_called_again_and_nothing_else_is() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    m.on(Event::Ready, now);
    m.on(Event::Sent(span(1, 10), 100), now);
    for _ in 0..5 {
        assert_eq!(m.on(Event::Failed(SinkError::Retry("slice over".into()), None), now), Action::Commit);
        assert_eq!(m.phase(), "committing");
    }
    assert!(matches!(m.on(committed(10, 1, 1), now), Action::Collect(_)));
    // Before anything was sent a retry begins the step again.
    m.on(Event::Ready, now);
    assert!(matches!(m.on(Event::Failed(SinkError::Retry("metadata".into()), None), now), Action::WaitUntil(_)));
    assert_eq!(m.phase(), "idle");
}

#[test]
fn a_commit_that_hangs_past_every_time_out_is_left_to_the_ledger() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    m.on(Event::Ready, now);
    m.on(Event::Sent(span(1, 10), 100), now);
    let retry = || Event::Failed(SinkError::Retry("retry call to resume".into()), None);
    assert_eq!(m.on(retry(), now + 24 * S), Action::Commit);
    assert_eq!(m.on(retry(), now + 26 * S), Action::Close);
    assert!(m.unclean());
    assert_eq!(m.limits().bytes, 2 << 20, "nothing says that the batch was too large");
}

#[test]
fn every_failure_inside_a_transaction_replaces_the_client_and_is_unclean() {
    for reason in [RecycleReason::Time, RecycleReason::Fenced, RecycleReason::Error] {
        let (mut m, now) = (machine(), Instant::now());
        idle(&mut m, now);
        let until = fail(&mut m, recycle(reason), (span(1, 10), 100), now);
        assert!(until > now, "{reason:?} backs off");
        assert_eq!(m.take_recycled(), Some(reason));
    }
}

#[test]
fn fencing_after_most_of_the_time_out_was_the_clock() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    m.on(Event::Ready, now);
    m.on(Event::Sent(span(1, 10), 1000), now);
    m.on(Event::Failed(recycle(RecycleReason::Fenced), None), now + 14 * S);
    assert_eq!(m.take_recycled(), Some(RecycleReason::Time));
    assert_eq!(m.limits().bytes, 500);
}

#[test]
fn failures_by_time_shrink_the_batch_to_one_record_then_raise_the_time_outs() {
    let (mut m, mut now) = (machine(), Instant::now());
    idle(&mut m, now);
    let mut bytes = 2 << 20;
    while bytes > 1 {
        now = fail(&mut m, recycle(RecycleReason::Time), (span(1, 1000), bytes), now);
        assert!(m.limits().bytes <= bytes / 2 && !m.may_stream());
        bytes = m.limits().bytes;
        assert!(m.limits().request_bytes <= 256 << 10);
    }
    assert_eq!(m.limits().message_timeout, 10 * S, "a smaller batch comes before a longer time");
    for _ in 0..12 {
        now = fail(&mut m, recycle(RecycleReason::Time), (span(1, 1), 960 << 10), now);
        assert!(m.limits().message_timeout < m.limits().transaction_timeout);
    }
    assert_eq!(m.limits().transaction_timeout, 900 * S, "the broker's maximum");
}

#[test]
fn quick_transactions_grow_the_batch_back_and_slow_ones_do_not() {
    let (mut m, mut now) = (machine(), Instant::now());
    idle(&mut m, now);
    now = fail(&mut m, recycle(RecycleReason::Time), (span(1, 1000), 1 << 20), now);
    let mut good = |m: &mut Machine, took: Duration| {
        m.on(Event::Ready, now);
        m.on(Event::Sent(span(1, 10), 100), now);
        now += took;
        m.on(committed(10, 1, 1), now);
        m.limits().bytes
    };
    assert_eq!(good(&mut m, 9 * S), 512 << 10);
    let mut turns = 0;
    while !m.may_stream() {
        good(&mut m, S / 10);
        turns += 1;
        assert!(turns < 50);
    }
    assert!(turns > 3, "slowly");
    assert_eq!(m.limits().bytes, 2 << 20);
}

#[test]
fn poison_is_halved_without_waiting_and_a_size_refusal_shrinks_requests() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    let poison = |too_large| SinkError::Poison { code: "X".into(), text: String::new(), too_large };
    let until = fail(&mut m, poison(false), (span(1, 8), 100), now);
    assert_eq!((until, m.limits().records, m.may_stream()), (now, 4, false));
    fail(&mut m, poison(true), (span(1, 4), 100), now);
    assert_eq!((m.limits().records, m.limits().request_bytes), (2, 64 << 10));
    fail(&mut m, poison(false), (span(1, 1), 100), now);
    assert!(m.condemned().is_empty());
    fail(&mut m, poison(false), (span(1, 1), 100), now);
    assert_eq!(m.condemned()[0].sequence, Sequence(1));
    let last = (0..12).map(|_| fail(&mut m, poison(false), (span(1, 1), 100), now)).last().unwrap();
    assert!(last >= now + 10 * S, "when nothing helps, not in a hot loop");
}

#[test]
fn the_owner_s_business_is_tried_again_every_minute_and_what_is_fatal_never() {
    let (mut m, now) = (machine(), Instant::now());
    m.on(Event::Tick, now);
    m.on(Event::Failed(SinkError::Configuration("forbidden".into()), None), now);
    assert_eq!(m.on(Event::Closed, now), Action::WaitUntil(now + 60 * S));
    idle(&mut m, now + 60 * S);
    assert_eq!(m.on(Event::Held("identity_conflict".into()), now), Action::Close);
    for event in [Event::Closed, Event::Tick, Event::Connected, Event::Ready] {
        assert_eq!(m.on(event, now + 3600 * S), Action::Rest);
    }
    assert_eq!(m.phase(), "halted");
}

#[test]
fn what_blocks_is_looked_at_again_in_the_state_it_came_up_in() {
    let (mut m, now) = (machine(), Instant::now());
    m.on(Event::Tick, now);
    m.on(Event::Connected, now);
    let blocked = || Event::Failed(SinkError::Blocked("no ledger topic".into()), None);
    assert_eq!(m.on(blocked(), now), Action::WaitUntil(now + 3 * S));
    assert_eq!(m.on(Event::Tick, now + 3 * S), Action::Recover);
    m.on(Event::Recovered, now);
    m.on(Event::Ready, now);
    assert_eq!(m.on(blocked(), now), Action::WaitUntil(now + 3 * S));
    assert!(matches!(m.on(Event::Tick, now + 3 * S), Action::Collect(_)));
}

#[test]
fn back_off_grows_while_nothing_is_committed_and_connecting_is_repeated_for_ever() {
    let (mut m, mut now) = (machine(), Instant::now());
    idle(&mut m, now);
    let mut longest = Duration::ZERO;
    for _ in 0..15 {
        let until = fail(&mut m, recycle(RecycleReason::Error), (span(1, 1), 10), now);
        longest = longest.max(until - now);
        now = until;
    }
    assert!(longest >= 15 * S && longest <= 30 * S, "{longest:?}");
    let mut fresh = machine();
    fresh.on(Event::Tick, now);
    for _ in 0..1000 {
        assert!(matches!(fresh.on(Event::Failed(SinkError::Retry("down".into()), None), now), Action::WaitUntil(_)));
        assert_eq!(fresh.on(Event::Tick, now), Action::Connect);
    }
}

#[test]
fn what_was_sent_without_its_ledger_record_is_never_committed() {
    for error in [SinkError::Retry("asked to repeat".into()), SinkError::Blocked("no disk".into())] {
        let (mut m, now) = (machine(), Instant::now());
        idle(&mut m, now);
        assert_eq!(m.on(Event::Ready, now), Action::Transact);
        assert_eq!(m.on(Event::Failed(error.clone(), Some((span(1, 10), 100))), now), Action::Close, "{error:?}");
        assert!(m.unclean(), "{error:?}");
        // Before anything was sent the same errors only wait.
        idle_again(&mut m, now);
        assert_eq!(m.on(Event::Ready, now), Action::Transact);
        assert!(matches!(m.on(Event::Failed(error, None), now), Action::WaitUntil(_)));
        assert_eq!((m.phase(), m.unclean()), ("idle", false));
    }
}

fn idle_again(machine: &mut Machine, now: Instant) {
    assert!(matches!(machine.on(Event::Closed, now), Action::WaitUntil(_)));
    idle(machine, now);
}

#[test]
fn a_time_out_that_the_broker_refuses_is_not_tried_again() {
    let (mut m, now) = (machine(), Instant::now());
    idle(&mut m, now);
    let refuse = |m: &mut Machine| {
        // The next client is refused: the broker takes no more than 60 s.
        m.on(Event::Failed(SinkError::Configuration("INVALID_TRANSACTION_TIMEOUT".into()), None), now);
        m.on(Event::Closed, now);
        m.on(Event::Tick, now);
    };
    let mut refused = 0;
    for _ in 0..8 {
        m.on(Event::Ready, now);
        m.on(Event::Sent(span(1, 1), 900_000), now);
        m.on(Event::Failed(recycle(RecycleReason::Time), None), now);
        m.on(Event::Closed, now);
        assert_eq!(m.on(Event::Tick, now), Action::Connect);
        while m.limits().transaction_timeout > 60 * S {
            refuse(&mut m);
            refused += 1;
        }
        assert!(m.limits().message_timeout < m.limits().transaction_timeout);
        m.on(Event::Connected, now);
        m.on(Event::Recovered, now);
    }
    assert_eq!(refused, 1);
    assert!(m.limits().message_timeout >= 40 * S, "what it takes is used: {:?}", m.limits());
}
