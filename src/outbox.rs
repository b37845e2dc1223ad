//! The durable outbox: a log of arrivals on the gateway's disk, from which Kafka is fed.
//!
//! One owner thread (`outbox-writer`) gathers submissions, writes them as compressed blocks into the newest generation,
//! syncs once, then answers all. The drain reads through [`Reader`], never above what is durable.
//!
//! The log model (index and sequence, arrivals, segments, snapshots, notes) is described in `outbox/entry.rs`; the disk
//! layout in `outbox/generation.rs` and `outbox/block.rs`; opening in `outbox/recovery.rs`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::config;
use crate::metrics::OutboxMetrics;
use crate::progress::Progress;
use crate::promise::{Committed, Durable};
use crate::record::{Incarnation, Item, Nonce, Qos, Reading, Sequence, SourceId};
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
}

/// Bytes held of `held_bytes_max`; freed on drop.
#[derive(Debug)]
pub struct HeldPermit {
    _bytes: usize,
}

/// The budget `held_bytes_max`: bytes received and not yet answered, all sources together.
#[derive(Debug, Clone)]
pub struct HeldBytes {
    _inner: Arc<()>,
}

impl HeldBytes {
    /// Takes `bytes` of the budget, or nothing if they are not there.
    pub fn try_acquire(&self, bytes: usize) -> Option<HeldPermit> {
        let _ = bytes;
        todo!()
    }

    /// Bytes taken and the most that may be taken.
    pub fn used_and_max(&self) -> (usize, usize) {
        todo!()
    }
}

/// A source's way into the outbox. Submissions of one appender are stored in order.
#[derive(Debug, Clone)]
pub struct Appender {}

impl Appender {
    /// Hands arrivals over; never blocks (the bound is in the permits they carry). Answers come in order through the
    /// receiver made with this appender. After the outbox is closed submissions are dropped unanswered.
    pub fn submit(&self, arrivals: Vec<Arrival>) {
        let _ = arrivals;
        todo!()
    }

    /// Hands over what is not a reading. In order with the submissions.
    pub fn control(&self, control: Control) {
        let _ = control;
        todo!()
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

/// The drain's view of the log. Owned by the delivery thread.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// Items after `after` (exclusive), as many as fit the budget; empty if there are none. Damaged ranges come as holes
    /// (they are noted first). Removed ranges come as holes.
    pub fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError> {
        let _ = (after, budget);
        todo!()
    }
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
pub struct Outbox {}

impl Outbox {
    /// Locks, opens and repairs `state_dir/outbox` in the order of `outbox/recovery.rs`, then starts the writer thread.
    pub fn open(state_dir: &Path, options: OpenOptions) -> Result<Self, OpenError> {
        let _ = (state_dir, options);
        todo!()
    }

    /// A way in for one source, and the answers to what goes in. One per source at a time.
    pub fn appender(&self, source: &SourceId) -> (Appender, mpsc::UnboundedReceiver<Answer>) {
        let _ = source;
        todo!()
    }

    /// The budget of bytes not yet answered.
    pub fn held(&self) -> HeldBytes {
        todo!()
    }

    /// The drain's view.
    pub fn reader(&self) -> Reader {
        todo!()
    }

    /// Where the log stands.
    pub fn positions(&self) -> Positions {
        todo!()
    }

    /// Waits until something after `after` is durable, [`Self::wake`] is called, or `deadline` passes. Blocks the thread.
    pub fn wait_durable(&self, after: Sequence, deadline: Instant) -> Positions {
        let _ = (after, deadline);
        todo!()
    }

    /// Ends all running [`Self::wait_durable`].
    pub fn wake(&self) {}

    /// Sequences that a transaction with open outcome may hold: `drop_oldest` leaves their generations alone. An empty
    /// range (`from > to`) protects nothing. At open, unless the last session ended clean, the first 50,000 after the
    /// committed position are protected until the first call.
    pub fn protect(&self, from: Sequence, to: Sequence) {
        let _ = (from, to);
    }

    /// Everything through `committed` may go. Asynchronous; moves `committed`, never backwards.
    pub fn trim_through(&self, committed: Committed) {
        let _ = committed;
    }

    /// Who this outbox is.
    pub fn identity(&self) -> Identity {
        todo!()
    }

    /// Changes the identity durably: fsynced when this returns. Blocks the thread.
    pub fn change_identity(&self, change: IdentityChange) -> std::io::Result<()> {
        let _ = change;
        todo!()
    }

    /// Syncs `pos` now. Blocks the thread.
    pub fn sync_position(&self) -> std::io::Result<()> {
        todo!()
    }

    /// Directory for small files of delivery (partition hints).
    pub fn directory(&self) -> &Path {
        todo!()
    }

    /// The part of `/status`.
    pub fn status(&self) -> OutboxStatus {
        todo!()
    }

    /// The writer's loop, for health.
    pub fn progress(&self) -> Progress {
        todo!()
    }

    /// Finishes what was submitted, answers it, syncs, closes. Blocks the thread, at most until the deadline.
    pub fn close(&self, within: Duration) {
        let _ = within;
    }
}
