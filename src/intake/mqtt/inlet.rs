//! From a PUBLISH to an input of the stage, with a permit for its bytes, or a decision what becomes of it without one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::{Notify, mpsc};

use super::link::{Publish, Sender};
use crate::clock;
use crate::intake::losses::{Loss, Losses, Reason};
use crate::intake::mapping::Received;
use crate::intake::source::{Acknowledge, Board, Delivery, Input, held_bytes};
use crate::outbox::HeldBytes;
use crate::promise::Durable;
use crate::record::{MqttOrigin, Qos};

/// The way back for the acknowledgements of one connection; counts what is handed on and not yet acknowledged.
#[derive(Debug)]
pub(super) struct Answers {
    sender: Sender,
    open: AtomicUsize,
    acknowledged: Notify,
    /// Nothing was acknowledged for a while.
    stalled: AtomicBool,
}

impl Answers {
    pub(super) fn new(sender: Sender) -> Self {
        Self { sender, open: AtomicUsize::new(0), acknowledged: Notify::new(), stalled: AtomicBool::new(false) }
    }

    /// Waits until fewer than `limit` messages are open, or nothing has been acknowledged for `patience`.
    ///
    /// A broker may send more than our receive maximum: mosquitto 2.0.11 (Debian 12) sends a whole backlog once the first of
    /// it are acknowledged, more than 65,535 messages if it has them, and so takes packet identifiers again that are still
    /// in use. A redelivery under such an identifier cannot be recognised. What is not read stays in the socket, and the
    /// broker waits.
    ///
    /// While the outbox takes nothing the link is read all the same: PINGRESP and SUBACK may be behind the messages, and
    /// `held_bytes_max` is the limit then.
    pub(super) async fn below(&self, limit: usize, patience: Duration) {
        while self.open.load(Ordering::SeqCst) >= limit && !self.stalled.load(Ordering::SeqCst) {
            // `notify_one` leaves a permit if it comes before this.
            if tokio::time::timeout(patience, self.acknowledged.notified()).await.is_err() {
                self.stalled.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl Acknowledge for Answers {
    fn acknowledge(&self, id: u16, qos: Qos, _proof: &Durable) -> bool {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.stalled.store(false, Ordering::SeqCst);
        self.acknowledged.notify_one();
        self.sender.acknowledge(id, qos)
    }
}

/// See the module's description. One per connection.
pub(super) struct Inlet {
    pub(super) board: Board,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) held: HeldBytes,
    /// Where acknowledgements go: the connection that brings the messages, and no other.
    pub(super) answers: Arc<Answers>,
    pub(super) drop_retained: bool,
    pub(super) decoded: bool,
    /// QoS 0 messages dropped and not yet told.
    pub(super) losses: Losses,
    /// Topic of the last one.
    pub(super) lost_topic: Option<ByteString>,
}

/// There is no room for this message, which the broker keeps: leave.
#[derive(Debug)]
pub(super) struct NoRoom(pub(super) Publish);

impl Inlet {
    /// Hands a message on. Without room QoS 0 is dropped and counted.
    pub(super) fn message(&mut self, publish: Publish) -> Result<(), NoRoom> {
        let best_effort = publish.qos == Qos::AtMostOnce;
        self.board.metrics.received.inc();
        let bytes = held_bytes(publish.payload.len(), publish.topic.len(), self.decoded);
        let at = clock::now();
        let Some(held) = self.held.try_acquire(bytes) else {
            if !best_effort {
                return Err(NoRoom(publish));
            }
            self.board.metrics.rejected.inc();
            self.losses.add(Reason::Qos0Dropped, Loss::at(at, publish.payload.len() as u64));
            self.lost_topic = Some(publish.topic);
            return Ok(());
        };
        self.tell_losses();
        let Publish { topic, payload, qos, id, dup, retain, content_type } = publish;
        let delivery = (!best_effort).then(|| {
            self.answers.open.fetch_add(1, Ordering::SeqCst);
            Delivery { id, qos, dup, from: self.answers.clone() }
        });
        let received = Received { payload, at, mqtt: Some(MqttOrigin { topic, qos, retain, dup }), content_type };
        self.send(if retain && self.drop_retained {
            Input::Unwanted { received, delivery, held }
        } else {
            Input::Message { received, delivery, held }
        });
        Ok(())
    }

    /// Writes a gap record for what was dropped, as soon as there is room for it.
    pub(super) fn tell_losses(&mut self) {
        while !self.losses.is_empty() {
            let Some(held) = self.held.try_acquire(Losses::GAP_BYTES) else { return };
            if let Some((reason, loss)) = self.losses.take() {
                log::warn!(
                    "source {}: {} QoS 0 message(s) were dropped for want of room; a gap record says so",
                    self.board.name,
                    loss.count
                );
                self.send(Input::Lost { reason, loss, topic: self.lost_topic.clone(), held });
            }
        }
    }

    /// Hands anything on.
    pub(super) fn send(&self, input: Input) {
        // The stage ends before us only when the outbox is closed; then nothing can be stored or acknowledged.
        let _ = self.inputs.send(input);
    }
}
