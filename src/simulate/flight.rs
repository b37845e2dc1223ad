//! What one publisher has given to its MQTT client and does not yet know to be safe. Plain data: no client, no clock.
//!
//! The client numbers a publish only when it leaves, so a reading waits in `queued` until [`Flight::sent`] tells its packet
//! identifier. With a kept session the client itself repeats what is open (same identifier, told again by `sent`); when
//! the broker lost the session, [`Flight::session_lost`] gives everything back for a fresh start.

use std::collections::{BTreeMap, VecDeque};

/// One reading under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Place in the order of this publisher.
    pub order: u64,
    /// Index of the device in its fleet.
    pub device: usize,
    /// Its number on the device, from 1.
    pub counter: u64,
    /// The message.
    pub payload: Vec<u8>,
}

#[derive(Debug)]
struct Flying {
    sample: Sample,
    /// PUBREC came: the broker owns it, only the goodbye is open.
    owned: bool,
}

/// The open publishes of one connection.
#[derive(Debug, Default)]
pub struct Flight {
    queued: VecDeque<Sample>,
    flying: BTreeMap<u16, Flying>,
}

impl Flight {
    /// How many readings are open.
    pub fn len(&self) -> usize {
        self.queued.len() + self.flying.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A reading was handed to the client.
    pub fn queue(&mut self, sample: Sample) {
        self.queued.push_back(sample);
    }

    /// The client wrote a publish with this identifier. Returns the reading if it is a repetition.
    pub fn sent(&mut self, packet: u16) -> Option<&Sample> {
        if packet == 0 {
            self.queued.pop_front(); // QoS 0: nothing will ever answer
            return None;
        }
        if self.flying.contains_key(&packet) {
            return self.flying.get(&packet).map(|flying| &flying.sample);
        }
        let sample = self.queued.pop_front()?;
        self.flying.insert(packet, Flying { sample, owned: false });
        None
    }

    /// PUBREC: the broker owns the reading, PUBCOMP is still to come.
    pub fn owned(&mut self, packet: u16) {
        if let Some(flying) = self.flying.get_mut(&packet) {
            flying.owned = true;
        }
    }

    /// PUBACK or PUBCOMP. `None` for an identifier that is not open.
    pub fn acknowledged(&mut self, packet: u16) -> Option<Sample> {
        self.flying.remove(&packet).map(|flying| flying.sample)
    }

    /// The broker knows no session: forgets all identifiers. Returns what the broker owns already, and what has to be
    /// published again, each in order; `was_sent` says whether a copy may have reached the broker.
    pub fn session_lost(&mut self) -> SessionLost {
        let mut lost = SessionLost::default();
        for flying in std::mem::take(&mut self.flying).into_values() {
            if flying.owned { lost.owned.push(flying.sample) } else { lost.again.push((flying.sample, true)) }
        }
        lost.again.extend(self.queued.drain(..).map(|sample| (sample, false)));
        lost.again.sort_by_key(|(sample, _)| sample.order);
        lost.owned.sort_by_key(|sample| sample.order);
        lost
    }
}

/// What [`Flight::session_lost`] gives back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SessionLost {
    /// The broker said PUBREC: as good as acknowledged.
    pub owned: Vec<Sample>,
    /// To be published again; `true`: a first copy may have arrived.
    pub again: Vec<(Sample, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(order: u64) -> Sample {
        Sample { order, device: 0, counter: order + 1, payload: Vec::new() }
    }

    #[test]
    fn identifiers_belong_to_readings_in_the_order_they_left() {
        let mut flight = Flight::default();
        (0..3).for_each(|order| flight.queue(sample(order)));
        assert!(flight.sent(1).is_none() && flight.sent(2).is_none());
        assert_eq!(flight.acknowledged(2), Some(sample(1)));
        assert_eq!(flight.acknowledged(2), None, "an acknowledgement counts once");
        assert_eq!(flight.sent(1), Some(&sample(0)), "a second time: repeated by the client");
        assert!(flight.sent(2).is_none(), "an identifier that is free again");
        assert_eq!(flight.acknowledged(2), Some(sample(2)));
        assert_eq!(flight.acknowledged(1), Some(sample(0)));
        assert!(flight.is_empty());
    }

    #[test]
    fn a_lost_session_gives_back_all_that_the_broker_does_not_own_in_order() {
        let mut flight = Flight::default();
        (0..5).for_each(|order| flight.queue(sample(order)));
        for packet in [9, 3, 5] {
            assert!(flight.sent(packet).is_none());
        }
        flight.owned(3);
        let lost = flight.session_lost();
        assert_eq!(lost.owned, [sample(1)]);
        assert_eq!(lost.again, [(sample(0), true), (sample(2), true), (sample(3), false), (sample(4), false)]);
        assert!(flight.is_empty());
    }
}
