//! Acknowledgements that wait for the wire, in order.
//!
//! The library writes one acknowledgement for up to nine messages it reads. A broker that keeps to our receive maximum is held
//! back by that; mosquitto before 2.0.13 is not, while it drains a backlog, and then tens of thousands wait. In the library's
//! queue each takes over 400 bytes, here four. So the library gets a few at a time, and the next one for each that was
//! written.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Wire;
use crate::record::Qos;

/// In the library's queue at a time.
const IN_LIBRARY_MAX: usize = 512;
/// Waiting here; what is beyond is not acknowledged, and comes again with the next connection.
const WAITING_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Acks {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    in_library: usize,
    waiting: VecDeque<(u16, Qos)>,
    /// DISCONNECT follows the last one.
    leaves: bool,
    /// The connection is gone.
    closed: bool,
}

impl Acks {
    /// `false`: the connection is gone, or far too many wait.
    pub(super) fn push(&self, wire: &Wire, id: u16, qos: Qos) -> bool {
        let mut queue = self.queue();
        if queue.closed || queue.waiting.len() >= WAITING_MAX {
            return false;
        }
        queue.waiting.push_back((id, qos));
        queue.fill(wire)
    }

    /// One was written.
    pub(super) fn written(&self, wire: &Wire) {
        let mut queue = self.queue();
        queue.in_library = queue.in_library.saturating_sub(1);
        queue.fill(wire);
        if queue.leaves && queue.waiting.is_empty() {
            queue.leaves = false;
            wire.disconnect();
        }
    }

    /// Sends DISCONNECT behind everything that waits. `false`: the connection is gone.
    pub(super) fn leave(&self, wire: &Wire) -> bool {
        let mut queue = self.queue();
        if queue.waiting.is_empty() {
            return wire.disconnect();
        }
        queue.leaves = true;
        !queue.closed
    }

    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.waiting = VecDeque::new();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// `false`: the library takes no more, the connection is gone.
    fn fill(&mut self, wire: &Wire) -> bool {
        while self.in_library < IN_LIBRARY_MAX {
            let Some((id, qos)) = self.waiting.pop_front() else { break };
            if !wire.acknowledge(id, qos) {
                self.closed = true;
                self.waiting = VecDeque::new();
                return false;
            }
            self.in_library += 1;
        }
        true
    }
}
