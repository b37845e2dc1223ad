//! From a PUBLISH to an input of the stage, with a permit for its bytes, or a decision what becomes of it without one.

use std::sync::Arc;

use bytestring::ByteString;
use tokio::sync::mpsc;

use super::link::{Publish, Sender};
use crate::clock;
use crate::intake::losses::{Loss, Losses, Reason};
use crate::intake::mapping::Received;
use crate::intake::source::{Acknowledge, Board, Delivery, Input, held_bytes};
use crate::outbox::HeldBytes;
use crate::promise::Durable;
use crate::record::{MqttOrigin, Qos};

impl Acknowledge for Sender {
    fn acknowledge(&self, id: u16, qos: Qos, _proof: &Durable) -> bool {
        Self::acknowledge(self, id, qos)
    }
}

/// See the module's description. One per connection.
pub(super) struct Inlet {
    pub(super) board: Board,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) held: HeldBytes,
    /// Where acknowledgements go: the connection that brings the messages, and no other.
    pub(super) sender: Arc<Sender>,
    pub(super) drop_retained: bool,
    pub(super) decoded: bool,
    /// QoS 0 messages dropped and not yet told.
    pub(super) losses: Losses,
    /// Topic of the last one.
    pub(super) lost_topic: Option<ByteString>,
}

/// There is no room for a message that the broker keeps: leave.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Inlet {
    /// Hands a message on. Without room QoS 0 is dropped and counted.
    pub(super) fn message(&mut self, publish: Publish) -> Result<(), NoRoom> {
        let best_effort = publish.qos == Qos::AtMostOnce;
        self.board.metrics.received.inc();
        let bytes = held_bytes(publish.payload.len(), publish.topic.len(), self.decoded);
        let at = clock::now();
        let Some(held) = self.held.try_acquire(bytes) else {
            if !best_effort {
                return Err(NoRoom);
            }
            self.board.metrics.rejected.inc();
            self.losses.add(Reason::Qos0Dropped, Loss::at(at, publish.payload.len() as u64));
            self.lost_topic = Some(publish.topic);
            return Ok(());
        };
        self.tell_losses();
        let Publish { topic, payload, qos, id, dup, retain, content_type } = publish;
        let from = &self.sender;
        let delivery = (!best_effort).then(|| Delivery { id, qos, dup, from: from.clone() });
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
