//! The two promises as types. Acknowledging a source asks for a [`Durable`], trimming the outbox for a [`Committed`]:
//! to lose a reading one has to forge a proof. `tests/layering.rs` keeps each constructor to its one caller.

use crate::record::{Incarnation, Index, Sequence};

/// Proof that the log is on the medium (fdatasync returned) through an index, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    through: Index,
}

impl Durable {
    /// Only `outbox::writer` may call this, and only after the sync that covers `through` returned success.
    pub(crate) fn after_sync(through: Index) -> Self {
        Self { through }
    }

    /// Last index that is on the medium.
    pub fn through(&self) -> Index {
        self.through
    }
}

/// Proof that Kafka holds everything of an incarnation through a sequence, inclusive: a commit that returned success, or
/// the ledger as it was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    incarnation: Incarnation,
    upto: Sequence,
}

impl Committed {
    /// Only the Kafka sink may call this: after a successful commit, or from a ledger record read `read_committed`.
    pub(crate) fn by_kafka(incarnation: Incarnation, upto: Sequence) -> Self {
        Self { incarnation, upto }
    }

    /// For tests and benchmarks outside this crate that play Kafka; the program never calls it.
    #[doc(hidden)]
    pub fn in_test(incarnation: Incarnation, upto: Sequence) -> Self {
        Self { incarnation, upto }
    }

    /// The incarnation whose sequences are meant.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Last sequence that is committed.
    pub fn upto(&self) -> Sequence {
        self.upto
    }
}
