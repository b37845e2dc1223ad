//! What the drain needs of the outbox, as a trait so that its loop can be tried without a disk.

use std::io;
use std::time::Instant;

use crate::outbox::{Batch, Budget, Identity, IdentityChange, Outbox, Positions, ReadError, Reader};
use crate::promise::Committed;
use crate::record::Sequence;

/// See the functions of the same name of [`Outbox`] and [`Reader`].
#[allow(missing_docs)]
pub(crate) trait Feed {
    fn positions(&self) -> Positions;
    fn wait_durable(&self, after: Sequence, deadline: Instant) -> Positions;
    fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError>;
    fn protect(&self, from: Sequence, to: Sequence);
    fn trim_through(&self, committed: Committed);
    fn identity(&self) -> Identity;
    fn change_identity(&self, change: IdentityChange) -> io::Result<()>;
    fn sync_position(&self) -> io::Result<()>;
}

/// The real one.
#[derive(Debug)]
pub(crate) struct OutboxFeed {
    outbox: Outbox,
    reader: Reader,
}

impl OutboxFeed {
    /// The drain's view of an outbox.
    pub(crate) fn new(outbox: Outbox) -> Self {
        let reader = outbox.reader();
        Self { outbox, reader }
    }
}

impl Feed for OutboxFeed {
    fn positions(&self) -> Positions {
        self.outbox.positions()
    }
    fn wait_durable(&self, after: Sequence, deadline: Instant) -> Positions {
        self.outbox.wait_durable(after, deadline)
    }
    fn batch_after(&mut self, after: Sequence, budget: Budget) -> Result<Batch, ReadError> {
        self.reader.batch_after(after, budget)
    }
    fn protect(&self, from: Sequence, to: Sequence) {
        self.outbox.protect(from, to);
    }
    fn trim_through(&self, committed: Committed) {
        self.outbox.trim_through(committed);
    }
    fn identity(&self) -> Identity {
        self.outbox.identity()
    }
    fn change_identity(&self, change: IdentityChange) -> io::Result<()> {
        self.outbox.change_identity(change)
    }
    fn sync_position(&self) -> io::Result<()> {
        self.outbox.sync_position()
    }
}
