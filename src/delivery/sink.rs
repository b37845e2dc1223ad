//! What the drain asks of the cluster, and how a refusal is told: by what the caller has to do.

use std::time::{Duration, Instant};

use crate::delivery::encode::DeadReason;
use crate::delivery::ledger::LedgerRecord;
use crate::delivery::machine::Limits;
use crate::delivery::visible::Visible;
use crate::promise::Committed;
use crate::record::{Incarnation, Item, Sequence};

/// Why a client has to be replaced. Label `reason` of `fieldpost_delivery_recycles_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecycleReason {
    /// Something took longer than the message or transaction time-out.
    Time,
    /// The producer was fenced: usually by the coordinator's own time-out of the transaction, seldom by a clone.
    Fenced,
    /// `EndTxn` was sent more than once for one commit: a late copy could commit half of the next transaction.
    Hygiene,
    /// The broker refused a record for good.
    Poison,
    /// Anything else: the outcome is unknown, the ledger will tell.
    Error,
}

impl RecycleReason {
    /// The word in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Fenced => "fenced",
            Self::Hygiene => "hygiene",
            Self::Poison => "poison",
            Self::Error => "error",
        }
    }
}

/// A refusal, split by the caller's duty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SinkError {
    /// Call the same function again; there is no limit on how often.
    #[error("{0}")]
    Retry(String),
    /// Close the client, connect a new one, read the ledger: nothing else tells what became of the transaction.
    #[error("{text}")]
    Recycle {
        /// For metrics and for the size of the next batch.
        reason: RecycleReason,
        /// What was said.
        text: String,
    },
    /// The cluster refuses something in this transaction for good. Close the client and look for the record.
    #[error("{code}: {text}")]
    Poison {
        /// Name of the broker's error.
        code: String,
        /// What was said.
        text: String,
        /// The refusal is about size: a smaller request may be taken.
        too_large: bool,
    },
    /// Before a transaction: it cannot begin until the owner, or time, has cured this.
    #[error("{0}")]
    Blocked(String),
    /// No retry cures it, the owner must act; a new client is tried from time to time.
    #[error("{0}")]
    Configuration(String),
    /// Going on would risk loss or doubles.
    #[error("{0}")]
    Fatal(String),
}

/// What recovery found in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// The cluster's id, if it tells.
    pub(crate) cluster_id: Option<String>,
    /// Our newest ledger record, with the proof that goes with it.
    pub(crate) ledger: Option<(LedgerRecord, Committed)>,
}

/// Which records are in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Those handed to [`Sink::suspect`]: only their partitions are read.
    Suspects,
    /// Everything since the partition hints.
    SinceHints,
}

/// A commit that returned success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The proof.
    pub(crate) committed: Committed,
    /// Time until the first delivery report plus the commit itself: what the transaction cost beside streaming.
    pub(crate) overhead: Duration,
    /// How many `EndTxn` requests went out for it.
    pub(crate) end_txn_sent: u64,
}

/// What is sent beside the items of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendContext<'a> {
    /// Records that were refused for good, by sequence, and how far their treatment has come.
    pub(crate) condemned: &'a [Condemned],
    /// Position of the previous incarnation, for the gap record `new_incarnation`.
    pub(crate) previous_upto: Option<Sequence>,
}

/// A record that the cluster refused twice when it was alone in its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condemned {
    /// Whose sequence.
    pub(crate) incarnation: Incarnation,
    /// The record's sequence.
    pub(crate) sequence: Sequence,
    /// Why.
    pub(crate) reason: DeadReason,
    /// What is tried next.
    pub(crate) treatment: Treatment,
}

/// What becomes of a condemned record; the next one is tried when one is refused too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Treatment {
    /// Whole, to the dead-letter topic.
    DeadLetter,
    /// Its value to a local file, a dead letter without value names the file.
    LocalWithNotice,
    /// Only the local file.
    LocalOnly,
}

/// The cluster. One transaction at a time; `connect`, `recover`, then `prepare`, `begin`, `send`.., `finish`, `commit`.
pub(crate) trait Sink {
    /// Makes a client if there is none and makes it the only live one of this agent (fencing). One slice of time.
    fn connect(&mut self, limits: &Limits) -> Result<(), SinkError>;

    /// Reads what the cluster knows of us.
    fn recover(&mut self) -> Result<Recovered, SinkError>;

    /// Marks the partitions that these items would go to, for [`Self::tails`].
    fn suspect(&mut self, items: &[Item]) -> Result<(), SinkError>;

    /// Reads the ends of the partitions for records of ours above `after` that are visible.
    fn tails(&mut self, doubt: Doubt, ours: &[Incarnation], after: Sequence) -> Result<Visible, SinkError>;

    /// Everything that the items need before a transaction: topics, partitions, durable hints. With `open` a transaction
    /// is under way: nothing is fetched or written, what is missing is `Blocked`.
    fn prepare(&mut self, items: &[Item], context: &SendContext<'_>, open: bool) -> Result<(), SinkError>;

    /// Begins a transaction.
    fn begin(&mut self) -> Result<(), SinkError>;

    /// Hands over the items that were prepared last. May wait for room.
    fn send(&mut self, items: &[Item], context: &SendContext<'_>) -> Result<(), SinkError>;

    /// Waits until all but what was sent last is acknowledged; `false` if it is not by then. A transaction must not grow on
    /// a link that cannot keep up: it would outlive its time-out.
    fn keeps_up(&mut self, until: Instant) -> Result<bool, SinkError>;

    /// Hands over the ledger record, last.
    fn finish(&mut self, ledger: &LedgerRecord) -> Result<(), SinkError>;

    /// Commits; `Retry` after the slice means: call again.
    fn commit(&mut self, slice: Duration) -> Result<Receipt, SinkError>;

    /// Drops the client, whatever it is doing. `abort`: tell the cluster first that the open transaction is void.
    fn close(&mut self, abort: bool);
}
