//! The durable outbox: a log of arrivals on the gateway's disk, from which Kafka is fed.
//!
//! One owner thread (`outbox-writer`) gathers submissions, writes them as compressed blocks into the newest generation,
//! syncs once, then answers all. The drain reads through [`Reader`], never above what is durable.
//!
//! The log model (index and sequence, arrivals, segments, snapshots, notes) is described in `outbox/entry.rs`; the disk
//! layout in `outbox/generation.rs` and `outbox/block.rs`; opening in `outbox/recovery.rs`.

mod block;
mod change;
#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod damage_tests;
mod directory;
mod entry;
#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod fixture_write_tests;
mod format;
#[cfg(test)]
mod format_tests;
mod generation;
#[cfg(test)]
mod handle_tests;
#[cfg(test)]
mod kill_tests;
mod limits;
pub mod look;
mod memory;
#[cfg(test)]
mod model_tests;
mod note;
#[cfg(test)]
mod overlap_tests;
#[cfg(test)]
mod oversize_tests;
mod packer;
#[cfg(test)]
mod parse_tests;
#[cfg(test)]
mod policy_tests;
mod position;
mod purge;
#[cfg(test)]
mod random_damage_tests;
mod reader;
#[cfg(test)]
mod reader_tests;
mod reading;
#[cfg(test)]
mod rebuild_tests;
mod recovery;
mod redelivery;
#[cfg(test)]
mod redelivery_tests;
mod repair;
#[cfg(test)]
mod replay_tests;
mod scan;
#[cfg(test)]
mod share_tests;
mod slots;
#[cfg(test)]
mod small_disk_tests;
mod state;
mod summary;
mod survey;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod view;
mod wear;
#[cfg(test)]
mod wear_tests;
mod wire;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

pub use change::{Cause, Change, ChangeError, Left, Purged, Replayed, Report, Selection, Step, run};
pub(crate) use format::{seal, unseal};
pub use limits::{HeldBytes, HeldPermit, Terms};
pub use look::{Inspection, Look, LookError};
pub use reader::Reader;

use limits::Sizes;
use state::StateFile;
use view::{Shared, View};
use writer::{Command, Writer};

use crate::config;
use crate::metrics::OutboxMetrics;
use crate::progress::Progress;
use crate::promise::{Committed, Durable};
use crate::record::{Incarnation, Item, Nonce, Qos, Reading, ReceiptTime, Sequence, SourceId};
use crate::status::OutboxStatus;

/// What a source wants back with the outcome of an arrival: its own number, opaque to the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt(pub u64);

/// The MQTT particulars by which a redelivery is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Packet identifier, 1 to 65,535.
    pub id: u16,
    /// Quality of service, 1 or 2.
    pub qos: Qos,
    /// DUP flag of the PUBLISH.
    pub dup: bool,
    /// xxh3-64 over topic and payload.
    pub hash: u64,
    /// Whether a match may be skipped at all (`redelivery_dedup`; always at QoS 2).
    pub dedup: bool,
}

/// All readings decoded from one message or frame: stored whole or not at all.
#[derive(Debug)]
pub struct Arrival {
    /// One or more readings, in order. None: the arrival is only marked in the redelivery table.
    pub readings: Vec<Reading>,
    /// For QoS 1 and 2.
    pub packet: Option<Packet>,
    /// Given back with the outcome.
    pub receipt: Receipt,
    /// Bytes this arrival holds of `held_bytes_max`; freed when it is answered.
    pub held: HeldPermit,
}

impl Arrival {
    /// Sum of `Reading::record_bytes`.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.readings.iter().map(|reading| reading.record_bytes() as u64).sum()
    }
}

/// What a source tells the log besides readings. Not answered; durable with the next sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The broker has no session of ours: packet identifiers begin again, the redelivery table is void.
    SessionCleared,
    /// These packet identifiers are done: PUBREL seen (QoS 2), or the PUBACK is proven received (QoS 1).
    Released(Vec<u16>),
}

/// What became of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its readings are in the log.
    Appended,
    /// A redelivery of an arrival that is in the log.
    Duplicate,
    /// Refused by policy (`drop_newest`), counted in the log.
    Refused,
}

/// The answer to a group of arrivals of one source, in the order of submission. Everything in it is durable.
#[derive(Debug)]
pub struct Answer {
    /// Receipts with their outcome.
    pub done: Vec<(Receipt, Outcome)>,
    /// The proof.
    pub durable: Durable,
    /// What was stored, and what it held of `held_bytes_max`: given back by the thread that took it.
    pub(crate) spent: Vec<(Vec<Reading>, HeldPermit)>,
}

/// A source's way into the outbox. Submissions of one appender are stored in order.
#[derive(Debug, Clone)]
pub struct Appender {
    source: Arc<writer::Source>,
    commands: Sender<Command>,
}

impl Appender {
    /// Hands arrivals over; never blocks (the bound is in the permits they carry). Answers come in order through the
    /// receiver made with this appender. It ends when the outbox is closed or has failed for good; submissions are
    /// then dropped unanswered.
    pub fn submit(&self, arrivals: Vec<Arrival>) {
        self.send(Command::Submit(self.source.clone(), arrivals));
    }

    /// Hands over what is not a reading. In order with the submissions.
    pub fn control(&self, control: Control) {
        self.send(Command::Control(self.source.clone(), control));
    }

    fn send(&self, command: Command) {
        if self.commands.send(command).is_err() {
            log::debug!("the outbox is closed: what source {} hands over is not stored", self.source.id);
        }
    }
}

/// How much the drain wants at once.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Most items.
    pub records_max: usize,
    /// Most bytes of `Reading::record_bytes`; at least one item is returned whatever its size.
    pub bytes_max: usize,
}

/// Consecutive items of one incarnation: `items[0].first() == after + 1`, no holes between them, all durable.
#[derive(Debug, Default)]
pub struct Batch {
    /// In order of sequence.
    pub items: Vec<Item>,
    /// Sum of `Reading::record_bytes`.
    pub bytes: usize,
}

/// Why a batch could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed in a way that another try may cure.
    #[error("cannot read the outbox: {0}")]
    Store(String),
}

/// Sequences of the log, for the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// Last sequence known to be in Kafka (from `pos`; the ledger corrects it at recovery), inclusive.
    pub committed: Sequence,
    /// Last sequence on the medium (whole arrivals), inclusive.
    pub durable: Sequence,
}

/// Who this outbox is: what delivery writes into the ledger and compares with it. Durable (`state` file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The newest incarnation.
    pub incarnation: Incarnation,
    /// The incarnation before it, ours or a foreign one found in the ledger.
    pub previous: Option<Incarnation>,
    /// All incarnations of this outbox that may still have undelivered readings, oldest first, the newest last.
    pub known: Vec<Incarnation>,
    /// Whether any delivery session of this outbox ever began a transaction.
    pub ever_began: bool,
    /// Nonce of the segment of this process.
    pub segment: Nonce,
    /// Nonces of segments that still have undelivered readings or are the newest.
    pub segments: Vec<Nonce>,
    /// Delivery session nonces: of the last ledger record read, and our own last one.
    pub session_nonces: [Nonce; 2],
    /// Delivery sessions so far.
    pub session_number: u64,
    /// Whether the last delivery session ended clean: nothing is in doubt.
    pub clean: bool,
    /// Cluster id seen last.
    pub cluster_id: Option<String>,
}

/// A durable change of [`Identity`], made by delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityChange {
    /// A session begins: clears the clean mark, counts the session, keeps both nonces.
    SessionBegins {
        /// Nonce in the ledger record that was read (ours or foreign); zero if there was none.
        ledger: Nonce,
        /// Our own for this session.
        own: Nonce,
    },
    /// `pos` is synced and nothing is in doubt.
    CleanEnd,
    /// The cluster this outbox delivers to.
    Cluster(String),
    /// A foreign incarnation was found in the ledger before ours ever began: it is our predecessor.
    Previous(Incarnation),
}

/// How to open an outbox.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// `[outbox]`
    pub config: config::Outbox,
    /// The agent's id: an outbox of another agent is refused.
    pub agent_id: String,
    /// Handles.
    pub metrics: OutboxMetrics,
}

/// Why an outbox did not open. Damage is not among them: it is set aside.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock on the state directory.
    #[error("{path} is in use by another process{holder}")]
    Locked {
        /// The state directory.
        path: String,
        /// ` (pid N)` if known.
        holder: String,
    },
    /// The directory belongs to something else (another agent, another version).
    #[error("{0}")]
    Foreign(String),
    /// The file system said no.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// Verb, as in `create`.
        what: &'static str,
        /// On what.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A handle of the outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    sizes: Sizes,
    when_full: config::outbox::WhenFull,
    sync: config::outbox::Sync,
    /// How long a reading may wait for its sync to begin.
    loss_window: Duration,
    segment: Nonce,
}

impl Outbox {
    /// Locks, opens and repairs `state_dir/outbox` in the order of `outbox/recovery.rs`, then starts the writer thread.
    pub fn open(state_dir: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let OpenOptions { config, agent_id, metrics } = options;
        let sizes = Sizes::of(config.max_bytes.0).on_disk_of(directory::disk_size(state_dir));
        let (opened, state) = recovery::open(state_dir, &agent_id, sizes)?;
        let (when_full, sync, loss_window) = (config.when_full, config.sync, writer::gather(&config));
        tell_loss_window(sync, loss_window);
        let segment = opened.segment.nonce;
        let shared = Arc::new(share(&opened, state, metrics, &config));
        // Bounded by the permits of `held_bytes_max` and by the packet identifiers of the sessions.
        #[allow(clippy::disallowed_methods)]
        let (commands, receiver) = std::sync::mpsc::channel();
        let path = shared.directory.path().display().to_string();
        let fail = |what| move |source| OpenError::Io { what, path, source };
        let writer = Writer::start(opened, shared.clone(), receiver, sizes, config).map_err(fail("open"))?;
        let spawned = std::thread::Builder::new().name("outbox-writer".to_owned()).spawn(move || writer.run());
        let path = shared.directory.path().display().to_string();
        spawned.map_err(|source| OpenError::Io { what: "start the writer of", path, source })?;
        Ok(Self { shared, commands, sizes, when_full, sync, loss_window, segment })
    }

    /// Eyes on this outbox: for its owner, beside the drain.
    pub fn look(&self) -> Look {
        Look::live(self)
    }

    /// What only the writer knows.
    fn counts(&self) -> Result<look::Counts, String> {
        let (done, answer) = std::sync::mpsc::sync_channel(1);
        let closed = "the outbox is closed";
        self.commands.send(Command::Count(done)).map_err(|_| closed.to_owned())?;
        answer.recv_timeout(COUNTS_WAIT).map_err(|_| "the writer is busy with the disk; try again".to_owned())
    }

    /// A way in for one source, and the answers to what goes in. One per source at a time.
    pub fn appender(&self, source: &SourceId) -> (Appender, mpsc::UnboundedReceiver<Answer>) {
        // Bounded by what was submitted, which holds permits until it is answered; an answer is small.
        #[allow(clippy::disallowed_methods)]
        let (answers, receiver) = mpsc::unbounded_channel();
        let source = Arc::new(writer::Source::new(source.clone(), answers));
        self.shared.sources.add(&source);
        (Appender { source, commands: self.commands.clone() }, receiver)
    }

    /// The budget of bytes not yet answered.
    pub fn held(&self) -> HeldBytes {
        self.shared.held.clone()
    }

    /// Most record bytes of one arrival. Who takes a larger one tells its loss instead of submitting it.
    pub fn arrival_bytes_max(&self) -> u64 {
        self.sizes.arrival_bytes_max()
    }

    /// What a source may have of the outbox. A source nobody speaks of may have all of it.
    pub fn admit(&self, source: &SourceId, terms: Terms) {
        self.shared.terms().insert(source.clone(), terms);
        self.shared.nudge(&self.commands);
    }

    /// A source is gone: its priority counts no more.
    pub fn dismiss(&self, source: &SourceId) {
        self.shared.terms().remove(source);
    }

    /// Adds what is stored of each source to its part of `/status`.
    pub fn fill_in(&self, sources: &mut BTreeMap<String, crate::status::SourceStatus>) {
        let view = self.shared.view();
        for (name, status) in sources {
            let queued = view.queued.get(&SourceId::from(name.as_str())).cloned().unwrap_or_default();
            (status.queued_records, status.queued_bytes) = (queued.records, queued.bytes);
            status.outside = queued.outside.map(|why| why.as_str().to_owned());
        }
    }

    /// The drain's view.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.clone(), self.commands.clone())
    }

    /// Where the log stands.
    pub fn positions(&self) -> Positions {
        self.shared.view().positions()
    }

    /// Waits until something after `after` is durable, [`Self::wake`] is called, or `deadline` passes. Blocks the thread.
    pub fn wait_durable(&self, after: Sequence, deadline: Instant) -> Positions {
        self.shared.wait(deadline, |view| view.durable_sequence > after.0).positions()
    }

    /// Ends all running [`Self::wait_durable`].
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Sequences that a transaction with open outcome may hold: `drop_oldest` leaves their generations alone. An empty
    /// range (`from > to`) protects nothing. At open, unless the last session ended clean, the first 50,000 after the
    /// committed position are protected until the first call.
    pub fn protect(&self, from: Sequence, to: Sequence) {
        self.shared.view().protected = (from <= to).then_some((from.0, to.0));
    }

    /// Everything through `committed` may go. Asynchronous; moves `committed`, never backwards.
    pub fn trim_through(&self, committed: Committed) {
        let upto = committed.upto().0;
        {
            let life = committed.incarnation();
            let segments = self.shared.view().segments.clone();
            let queued = segments.iter().any(|segment| segment.incarnation == life);
            if !queued && self.shared.state().state.lives.iter().all(|known| known.incarnation() != Some(life)) {
                log::error!(
                    "asked to trim through {upto} of an incarnation that is not of this outbox: nothing is trimmed"
                );
                return;
            }
            let mut view = self.shared.view();
            if upto > view.durable_sequence {
                log::error!(
                    "asked to trim through {upto}, but the outbox reaches only {}: trimming that far",
                    view.durable_sequence
                );
            }
            let upto = upto.min(view.durable_sequence);
            if upto <= view.committed {
                return;
            }
            view.committed = upto;
        }
        self.shared.nudge(&self.commands);
    }

    /// Who this outbox is.
    pub fn identity(&self) -> Identity {
        let (segments, undelivered) = {
            let view = self.shared.view();
            (view.segments.clone(), view.committed + 1)
        };
        self.shared.state().state.identity(self.segment, &segments, undelivered)
    }

    /// Changes the identity durably: fsynced when this returns. Blocks the thread.
    pub fn change_identity(&self, change: IdentityChange) -> std::io::Result<()> {
        self.shared.state().update(|state| state.change(&change))
    }

    /// Syncs `pos` now. Blocks the thread.
    pub fn sync_position(&self) -> std::io::Result<()> {
        let (done, answer) = std::sync::mpsc::sync_channel(1);
        let closed = || std::io::Error::other("the outbox is closed");
        self.commands.send(Command::SyncPosition(done)).map_err(|_| closed())?;
        answer.recv().map_err(|_| closed())?
    }

    /// The cap on everything below the state directory.
    pub fn max_bytes(&self) -> u64 {
        self.sizes.max_bytes
    }

    /// Directory for small files of delivery (partition hints).
    pub fn directory(&self) -> &Path {
        self.shared.directory.path()
    }

    /// The part of `/status`.
    pub fn status(&self) -> OutboxStatus {
        let counts = self.shared.wear_counts();
        let mut view = self.shared.view();
        let wear = view.wear.estimate(Instant::now(), counts);
        let records = view.durable_sequence.saturating_sub(view.committed);
        let committed = view.committed;
        let age = if records == 0 { 0.0 } else { view.ages.oldest_seconds(committed, crate::clock::now()) };
        OutboxStatus {
            records,
            bytes: view.bytes,
            bytes_max: self.sizes.max_bytes,
            next: view.durable_sequence + 1,
            durable: view.durable_sequence,
            committed: view.committed,
            oldest_age_seconds: age,
            when_full: self.when_full.as_str().to_owned(),
            state: view.state.clone(),
            dropped: view.dropped,
            damaged: view.damaged,
            sync: self.sync.to_string(),
            loss_window_seconds: self.loss_window.as_secs_f64(),
            syncs: counts.syncs,
            payload_bytes: counts.payload_bytes,
            daily_write_bytes: wear.map(|wear| wear.daily_bytes),
            written_per_payload_byte: wear.and_then(|wear| wear.per_payload_byte),
            daily_write_basis: wear.map(|wear| basis(wear.over)),
        }
    }

    /// The writer's loop, for health.
    pub fn progress(&self) -> Progress {
        self.shared.progress.clone()
    }

    /// Finishes what was submitted, answers it, syncs, closes. Blocks the thread, at most until the deadline.
    pub fn close(&self, within: Duration) {
        if self.commands.send(Command::Close).is_err() {
            return;
        }
        let deadline = Instant::now() + within;
        while !self.shared.wait(deadline, |view| view.closed).closed {
            if Instant::now() >= deadline {
                log::warn!("the outbox did not close within {within:?}; what was not answered will be sent again");
                return;
            }
        }
    }
}

/// What the estimate of daily writes rests on.
fn basis(over: Duration) -> String {
    format!(
        "rate of the last {:.0} s, file pages of this process and {} KiB of journal per sync",
        over.as_secs_f64(),
        wear::JOURNAL_BYTES_PER_SYNC >> 10
    )
}

/// The owner must know at the start what a later sync risks.
fn tell_loss_window(sync: config::outbox::Sync, window: Duration) {
    if !window.is_zero() {
        log::warn!(
            "a reading waits up to {window:?} for its sync (outbox.sync = {sync}): a power cut or a killed process loses \
             what serial lines and QoS 0 brought in that time; QoS 1 and 2 are acknowledged after the sync, and are not lost"
        );
    }
}

/// A sync may be under way, and cards stall.
const COUNTS_WAIT: Duration = Duration::from_secs(30);

/// Sequences after the committed position that a transaction of the last process may hold.
const IN_DOUBT_MAX: u64 = 50_000;

/// What a transaction of the last process may hold, unless it ended clean. What comes from now on none can have sent: it is
/// nobody's but the policy's.
fn in_doubt_at_start(clean: bool, committed: u64, durable: u64) -> Option<(u64, u64)> {
    let last = (committed + IN_DOUBT_MAX).min(durable);
    (!clean && last > committed).then_some((committed + 1, last))
}

/// What all handles share, as recovery found it.
fn share(opened: &recovery::Opened, state: StateFile, metrics: OutboxMetrics, config: &config::Outbox) -> Shared {
    let mut view = View::new(opened.committed, opened.next_sequence - 1, opened.next_index - 1);
    for closed in &opened.closed {
        if closed.summary.end_sequence > closed.summary.first_sequence {
            let received = ReceiptTime { wall_ns: closed.summary.first_received_wall_ns, mono_ns: 0 };
            view.ages.push(closed.summary.first_sequence, received);
        }
        view.generations.push_back(Writer::listed(closed.id, closed.summary.clone(), closed.disk_bytes));
    }
    if let Some(current) = &opened.current {
        let received = ReceiptTime { wall_ns: current.summary.first_received_wall_ns, mono_ns: 0 };
        if current.summary.end_sequence > current.summary.first_sequence {
            view.ages.push(current.summary.first_sequence, received);
        }
        view.generations.push_back(Writer::listed_current(&current.generation, current.summary.first_sequence));
    }
    view.protected = in_doubt_at_start(state.state.clean, opened.committed, opened.next_sequence - 1);
    let held = HeldBytes::new(config.held_bytes_max.bytes());
    let progress = Progress::new("outbox-writer", Duration::from_secs(120));
    Shared::new(view, state, opened.directory.clone(), metrics, progress, held)
}
