//! The redelivery table of a source: which packet identifiers stand in the log with which payload.
//!
//! Bounded by the 65,535 identifiers of a session; nothing is ever evicted. Rules (MQTT 3.1.1 and 5, section 4.3/4.4): a
//! sender sets DUP on every redelivery, so an identifier with DUP = 0 begins anew; DUP = 1 with a known identifier and
//! the same hash is the message that is in the log already.

use std::collections::HashMap;

use crate::outbox::Packet;
use crate::record::Qos;

use super::reading::PacketMark;

/// What is known of one packet identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) hash: u64,
    pub(super) qos: Qos,
    /// Index of the commit mark of its arrival: durable from there on.
    pub(super) index: u64,
}

/// Packet identifiers of one session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Table(HashMap<u16, Known>);

impl Table {
    /// Index of the arrival that `packet` repeats, if it is a redelivery that may be skipped.
    pub(super) fn duplicate_of(&self, packet: &Packet) -> Option<u64> {
        let known = self.0.get(&packet.id)?;
        (packet.dup && packet.dedup && known.hash == packet.hash && known.qos == packet.qos).then_some(known.index)
    }

    /// Enters or replaces; returns what stood there.
    pub(super) fn insert(&mut self, mark: PacketMark, index: u64) -> Option<Known> {
        self.0.insert(mark.id, Known { hash: mark.hash, qos: mark.qos, index })
    }

    /// Takes back what [`Self::insert`] or [`Self::remove`] did.
    pub(super) fn restore(&mut self, id: u16, before: Option<Known>) {
        match before {
            Some(known) => self.0.insert(id, known),
            None => self.0.remove(&id),
        };
    }

    /// Enters everything of another one.
    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn remove(&mut self, id: u16) -> Option<Known> {
        self.0.remove(&id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Everything, by identifier.
    pub(super) fn marks(&self) -> Vec<PacketMark> {
        let mut marks: Vec<_> =
            self.0.iter().map(|(id, known)| PacketMark { id: *id, qos: known.qos, hash: known.hash }).collect();
        marks.sort_unstable_by_key(|mark| mark.id);
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(id: u16, dup: bool, hash: u64) -> Packet {
        Packet { id, qos: Qos::AtLeastOnce, dup, hash, dedup: true }
    }

    #[test]
    fn only_a_marked_repeat_of_the_same_payload_is_a_duplicate() {
        let mut table = Table::default();
        table.insert(PacketMark { id: 1, qos: Qos::AtLeastOnce, hash: 10 }, 5);
        assert_eq!(table.duplicate_of(&packet(1, true, 10)), Some(5));
        assert_eq!(table.duplicate_of(&packet(1, false, 10)), None, "DUP = 0 begins anew");
        assert_eq!(table.duplicate_of(&packet(1, true, 11)), None, "another payload");
        assert_eq!(table.duplicate_of(&packet(2, true, 10)), None, "another identifier");
        let off = Packet { dedup: false, ..packet(1, true, 10) };
        assert_eq!(table.duplicate_of(&off), None, "switched off");
        let other_qos = Packet { qos: Qos::ExactlyOnce, ..packet(1, true, 10) };
        assert_eq!(table.duplicate_of(&other_qos), None, "another flow");
        table.remove(1);
        assert_eq!(table.duplicate_of(&packet(1, true, 10)), None);
    }
}
