//! The loop of the thread `delivery`: asks the machine, does it, tells the machine.
//!
//! What it guards itself:
//!
//! - every sequence in (old upto, new upto] is accounted for by exactly one item; it stops rather than advance over a hole;
//! - a batch never spans two incarnations, a transaction never more than 50,000 sequences (the window of consumers'
//!   filters);
//! - the ledger record is the last record of a transaction;
//! - identity is durable before the first begin, and called clean only when nothing is in doubt and `pos` is synced.

mod recovery;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::clock;
use crate::config::delivery::OnClusterChange;
use crate::delivery::feed::Feed;
use crate::delivery::ledger::LedgerRecord;
use crate::delivery::machine::{Action, Event, Machine, State};
use crate::delivery::merge::merge;
use crate::delivery::poison::Span;
use crate::delivery::report::Report;
use crate::delivery::sink::{SendContext, Sink, SinkError};
use crate::delivery::visible::Visible;
use crate::metrics::DeliveryMetrics;
use crate::outbox::{Batch, Budget, IdentityChange};
use crate::progress::Progress;
use crate::record::{Hole, Incarnation, Item, Nonce, Sequence};

/// Nothing that may be sent again spans more than this (`docs`: the consumers' window is 65,536).
pub(super) const TRANSACTION_SEQUENCES_MAX: u64 = 50_000;
/// In catch-up a transaction streams for about this long.
const STREAM_FOR: Duration = Duration::from_secs(1);
/// An idle loop turns at least this often.
const IDLE_TURN: Duration = Duration::from_secs(1);
/// A commit under way gets this long when the daemon stops; the next start learns from the ledger what came of it.
const STOP_COMMIT_WITHIN: Duration = Duration::from_secs(4);
/// One slice of a commit.
const COMMIT_SLICE: Duration = Duration::from_secs(2);
/// No single step but those of librdkafka may take longer without a beat.
const STALL_AFTER: Duration = Duration::from_secs(120);

/// Settings of the loop.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    /// A waiting batch goes after this.
    pub(crate) max_wait: Duration,
    /// What to do when the cluster is another one.
    pub(crate) on_cluster_change: OnClusterChange,
}

/// The loop and what it remembers between steps.
pub(crate) struct Driver<S, F> {
    sink: S,
    feed: F,
    machine: Machine,
    timing: Timing,
    stop: Arc<AtomicBool>,
    progress: Progress,
    report: Arc<Report>,
    metrics: DeliveryMetrics,
    /// Nonce of this process' delivery sessions.
    own_nonce: Nonce,
    /// Nonce in the ledger record read last.
    ledger_nonce: Nonce,
    /// Everything through here is delivered.
    position: Sequence,
    /// Recovery has succeeded in this process.
    recovered: bool,
    /// Sequences beyond `position` that are visible all the same.
    visible: Visible,
    introduce: Option<(Incarnation, Sequence)>,
    /// Where the previous incarnation stopped, for its successor's first gap record.
    previous_upto: Option<Sequence>,
    first_waiting: Option<Instant>,
    /// Records handed over in the transaction under way.
    sending: u64,
    stopping_since: Option<Instant>,
}

/// What one transaction holds so far.
struct Open {
    span: Span,
    bytes: usize,
    segment: Nonce,
    sent: u64,
}

impl<S: Sink, F: Feed> Driver<S, F> {
    /// A loop that has not begun.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        sink: S,
        feed: F,
        machine: Machine,
        timing: Timing,
        stop: Arc<AtomicBool>,
        progress: Progress,
        report: Arc<Report>,
        metrics: DeliveryMetrics,
    ) -> Self {
        let mut nonce = [0; 8];
        // Without randomness two sessions could not be told apart; the address of a local differs at least.
        if getrandom::fill(&mut nonce).is_err() {
            nonce = clock::now().wall_ns.to_be_bytes();
        }
        Self {
            sink,
            feed,
            machine,
            timing,
            stop,
            progress,
            report,
            metrics,
            own_nonce: Nonce(nonce),
            ledger_nonce: Nonce::default(),
            position: Sequence(0),
            recovered: false,
            visible: Visible::default(),
            introduce: None,
            previous_upto: None,
            first_waiting: None,
            sending: 0,
            stopping_since: None,
        }
    }

    /// Runs until asked to stop.
    pub(crate) fn run(mut self) {
        let mut event = Event::Tick;
        loop {
            self.note_failure(&event);
            let action = self.machine.on(event, Instant::now());
            self.publish();
            if self.should_end(action) {
                break;
            }
            event = self.perform(action);
        }
        self.end();
    }

    /// A transaction under way is finished first, if the cluster answers in time.
    fn should_end(&mut self, action: Action) -> bool {
        if !self.stop.load(Ordering::Acquire) {
            return false;
        }
        let since = *self.stopping_since.get_or_insert_with(Instant::now);
        !matches!(action, Action::Transact | Action::Commit) || since.elapsed() >= STOP_COMMIT_WITHIN
    }

    fn perform(&mut self, action: Action) -> Event {
        match action {
            Action::Connect => match self.sink.connect(&self.machine.limits()) {
                Ok(()) => Event::Connected,
                Err(error) => Event::Failed(error, None),
            },
            Action::Recover => match self.recover() {
                Ok(Some(alarm)) => Event::Held(alarm),
                Ok(None) => Event::Recovered,
                Err(error) => Event::Failed(error, None),
            },
            Action::Collect(not_before) => self.collect(not_before),
            Action::Transact => self.transact(),
            Action::Commit => self.commit(),
            Action::Close => {
                self.sink.close(false);
                Event::Closed
            }
            Action::WaitUntil(until) => self.wait_until(until),
            Action::Rest => self.wait_until(Instant::now() + IDLE_TURN),
        }
    }

    fn wait_until(&self, until: Instant) -> Event {
        while Instant::now() < until && !self.stop.load(Ordering::Acquire) {
            self.progress.beat();
            let turn = until.min(Instant::now() + IDLE_TURN);
            // Nothing lies after the greatest sequence: this ends by `wake` or at the end of the turn.
            self.feed.wait_durable(Sequence(u64::MAX), turn);
        }
        Event::Tick
    }

    fn change_identity(&self, change: IdentityChange) -> Result<(), SinkError> {
        self.feed
            .change_identity(change)
            .map_err(|error| SinkError::Blocked(format!("cannot write the identity to disk: {error}")))
    }

    /// Waits until a batch may go.
    fn collect(&mut self, not_before: Instant) -> Event {
        self.progress.phase("idle", STALL_AFTER);
        let records_max = self.machine.limits().records as u64;
        loop {
            self.progress.beat();
            if self.stop.load(Ordering::Acquire) {
                return Event::Tick;
            }
            let now = Instant::now();
            let durable = self.feed.positions().durable;
            if durable <= self.position {
                self.first_waiting = None;
                self.feed.wait_durable(self.position, now + IDLE_TURN);
                if self.feed.positions().durable > self.position {
                    self.first_waiting = Some(Instant::now());
                }
                continue;
            }
            let first = *self.first_waiting.get_or_insert(now);
            let full = durable.0 - self.position.0 >= records_max;
            let ready_at = if full { not_before } else { not_before.max(first + self.timing.max_wait) };
            if now >= ready_at {
                return Event::Ready;
            }
            let enough = Sequence(self.position.0 + records_max - 1);
            let wait_for = if full { Sequence(u64::MAX) } else { enough };
            self.feed.wait_durable(wait_for, ready_at.min(now + IDLE_TURN));
        }
    }

    /// One transaction, up to and with the ledger record.
    fn transact(&mut self) -> Event {
        self.progress.phase("sending", STALL_AFTER);
        let mut open = None;
        let filled = self.fill(&mut open);
        // From here on only what was sent: the cluster may be away for days, and `drop_oldest` needs the rest.
        match filled.as_ref().ok().and_then(Option::as_ref).or(open.as_ref()) {
            Some(open) => self.feed.protect(open.span.first, open.span.last),
            None => self.protect_nothing(),
        }
        match filled {
            Ok(Some(open)) => {
                self.sending = open.sent;
                Event::Sent(open.span, open.bytes)
            }
            // The outbox withdrew what it had announced; looked at again like anything that blocks.
            Ok(None) => Event::Failed(SinkError::Blocked("the outbox hands out nothing".to_owned()), None),
            Err(error) => Event::Failed(error, open.map(|open| (open.span, open.bytes))),
        }
    }

    fn protect_nothing(&self) {
        self.feed.protect(Sequence(1), Sequence(0));
    }

    fn fill(&mut self, open: &mut Option<Open>) -> Result<Option<Open>, SinkError> {
        let since = Instant::now();
        let limits = self.machine.limits();
        let budget = Budget { records_max: limits.records, bytes_max: limits.bytes };
        let may_stream = self.machine.may_stream();
        let first = self.position.next();
        self.feed.protect(first, Sequence(self.position.0 + TRANSACTION_SEQUENCES_MAX));
        let mut batch = self.read(self.position, budget)?;
        while let Some(span) = span_of(&batch.items) {
            let mut items = merge(self.visible.subtract(std::mem::take(&mut batch.items)));
            if open.is_none() {
                items.splice(0..0, self.introduction(span.incarnation, &batch));
            }
            let is_begun = open.is_some();
            let context = SendContext { condemned: self.machine.condemned(), previous_upto: self.previous_upto };
            match self.sink.prepare(&items, &context, is_begun) {
                // What is missing waits for the next transaction.
                Err(SinkError::Blocked(_)) if is_begun => break,
                prepared => prepared?,
            }
            if !is_begun {
                self.begin_session()?;
                self.sink.begin()?;
                self.report.set_alarm("blocked", None);
            }
            let segment = batch.segment;
            let so_far = open.get_or_insert(Open { span: Span { records: 0, ..span }, bytes: 0, segment, sent: 0 });
            so_far.span.last = span.last;
            so_far.span.records += span.records;
            so_far.bytes += batch.bytes;
            so_far.segment = segment;
            so_far.sent += items.len() as u64;
            let context = SendContext { condemned: self.machine.condemned(), previous_upto: self.previous_upto };
            self.sink.send(&items, &context)?;
            self.progress.beat();
            let last = so_far.span.last;
            let may_go_on = may_stream && since.elapsed() < STREAM_FOR && !self.stop.load(Ordering::Acquire);
            if !may_go_on || !self.sink.keeps_up(since + STREAM_FOR)? {
                break;
            }
            batch = self.read(last, budget)?;
            let next = span_of(&batch.items);
            let fits = next.is_some_and(|next| {
                next.incarnation == span.incarnation && next.last.0 - self.position.0 <= TRANSACTION_SEQUENCES_MAX
            });
            if !fits {
                break;
            }
        }
        let Some(done) = open.as_ref() else { return Ok(None) };
        let ledger = self.ledger_record(done);
        self.sink.finish(&ledger)?;
        Ok(open.take())
    }

    /// Reads a batch and checks that it leaves nothing out.
    fn read(&mut self, after: Sequence, budget: Budget) -> Result<Checked, SinkError> {
        let batch = self.feed.batch_after(after, budget).map_err(|error| SinkError::Blocked(error.to_string()))?;
        check_accounts(after, &batch)
            .map_err(|text| SinkError::Fatal(format!("the outbox handed out a batch that is not whole: {text}")))?;
        let segment = batch.items.last().map(segment_of).unwrap_or_default();
        let mut checked = Checked { items: batch.items, bytes: batch.bytes, segment };
        // A wide hole may pass the bound on sequences only when it is alone.
        let bound = self.position.0 + TRANSACTION_SEQUENCES_MAX;
        let fitting = checked.items.iter().take_while(|item| item.last().0 <= bound).count();
        let keep = if after == self.position { fitting.max(1) } else { fitting };
        checked.items.truncate(keep);
        checked.segment = checked.items.last().map(segment_of).unwrap_or_default();
        Ok(checked)
    }

    /// The gap record by which a new incarnation says whom it follows; sequence 0, once.
    fn introduction(&self, incarnation: Incarnation, batch: &Checked) -> Option<Item> {
        let (previous, upto) = self.introduce?;
        let hole = Hole {
            from: Sequence(0),
            to: Sequence(0),
            ranges: Vec::new(),
            incarnation,
            segment: batch.segment,
            boot_id: bytestring::ByteString::from(clock::boot_id()),
            noted: clock::now(),
            reason: "new_incarnation".into(),
            bytes: 0,
            sources: Vec::new(),
            previous: Some(previous),
        };
        debug_assert_eq!(Some(upto), self.previous_upto);
        (!self.visible.contains(incarnation, Sequence(0))).then_some(Item::Hole(hole))
    }

    /// Stores both nonces durably before the first begin after a recovery, if they are not stored.
    fn begin_session(&mut self) -> Result<(), SinkError> {
        let identity = self.feed.identity();
        let nonces = [self.ledger_nonce, self.own_nonce];
        if identity.clean || !identity.ever_began || identity.session_nonces != nonces {
            self.change_identity(IdentityChange::SessionBegins { ledger: self.ledger_nonce, own: self.own_nonce })?;
        }
        Ok(())
    }

    fn ledger_record(&self, open: &Open) -> LedgerRecord {
        let identity = self.feed.identity();
        LedgerRecord {
            incarnation: open.span.incarnation,
            previous: identity.previous.filter(|previous| *previous != open.span.incarnation),
            session: identity.session_number,
            nonce: self.own_nonce,
            segment: open.segment,
            upto: open.span.last,
            count: open.sent,
            parked: Default::default(),
            at: clock::rfc3339(clock::now().wall_ns),
        }
    }

    fn commit(&mut self) -> Event {
        self.progress.phase("committing", STALL_AFTER);
        let receipt = match self.sink.commit(COMMIT_SLICE) {
            Ok(receipt) => receipt,
            Err(error) => return Event::Failed(error, None),
        };
        let upto = receipt.committed.upto();
        self.feed.trim_through(receipt.committed);
        self.protect_nothing();
        self.visible.forget_through(receipt.committed.incarnation(), upto);
        self.position = upto;
        self.previous_upto = Some(upto);
        self.introduce = None;
        self.ledger_nonce = self.own_nonce;
        self.first_waiting = None;
        self.metrics.transactions.inc();
        self.metrics.committed.inc_by(self.sending);
        self.report.committed(self.sending);
        Event::Committed { upto, overhead: receipt.overhead, end_txn_sent: receipt.end_txn_sent }
    }

    /// Logs and shows a failure where it is decided about.
    fn note_failure(&self, event: &Event) {
        match event {
            // A step that was cut short in order to stop is no failure.
            Event::Failed(SinkError::Retry(_), _) if self.stop.load(Ordering::Acquire) => {}
            Event::Failed(error, _) => self.report.failed(error, self.machine.phase()),
            Event::Held(alarm) => {
                log::error!("delivery is held: {alarm}");
                self.report.set_alarm("held", Some(alarm.clone()));
            }
            Event::Connected | Event::Recovered => self.report.set_alarm("configuration", None),
            _ => {}
        }
        if matches!(event, Event::Recovered | Event::Committed { .. }) {
            self.report.set_alarm("blocked", None);
            let waiting = self.feed.positions().durable.0.saturating_sub(self.position.0);
            self.report.answered(waiting);
        }
    }

    fn publish(&mut self) {
        if let Some(reason) = self.machine.take_recycled() {
            self.metrics.recycled(reason.as_str());
        }
        let halted = matches!(self.machine.state(), State::Halted { .. });
        self.metrics.halted.set(i64::from(halted));
        if let State::Halted { reason } = self.machine.state() {
            self.report.set_alarm("held", Some(reason.clone()));
        }
        self.report.phase(self.machine.phase());
        if !matches!(self.machine.state(), State::Committing { .. } | State::Idle) {
            self.progress.phase(self.machine.phase(), STALL_AFTER);
        }
    }

    /// The orderly end: clean only if nothing is in doubt and the position is on the medium.
    fn end(mut self) {
        let clean = self.recovered
            && !self.machine.unclean()
            && self.visible.is_empty()
            && matches!(self.machine.state(), State::Idle | State::Recycling { .. });
        self.sink.close(!clean);
        if clean {
            let marked = self.feed.sync_position().and_then(|()| self.feed.change_identity(IdentityChange::CleanEnd));
            match marked {
                Ok(()) => log::info!("delivery ended clean after sequence {}", self.position),
                Err(error) => log::warn!("delivery ended, but the clean mark could not be written: {error}"),
            }
        } else {
            log::info!("delivery ended with an open outcome; the next start reads it back");
        }
        self.report.phase("offline");
    }
}

/// A batch whose accounts are in order.
struct Checked {
    items: Vec<Item>,
    bytes: usize,
    /// Of the last item.
    segment: Nonce,
}

fn segment_of(item: &Item) -> Nonce {
    match item {
        Item::Reading(stored) => stored.segment,
        Item::Hole(hole) => hole.segment,
    }
}

fn span_of(items: &[Item]) -> Option<Span> {
    let (first, last) = (items.first()?, items.last()?);
    Some(Span { incarnation: first.incarnation(), first: first.first(), last: last.last(), records: items.len() })
}

/// Every sequence after `after` is accounted for once, all by one incarnation.
fn check_accounts(after: Sequence, batch: &Batch) -> Result<(), String> {
    let mut expected = after.next();
    let incarnation = batch.items.first().map(Item::incarnation);
    for item in &batch.items {
        if item.first() != expected || item.last() < item.first() {
            return Err(format!("sequence {expected} was expected, {} to {} came", item.first(), item.last()));
        }
        if Some(item.incarnation()) != incarnation {
            return Err(format!("sequence {} belongs to another incarnation", item.first()));
        }
        expected = item.last().next();
    }
    Ok(())
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
