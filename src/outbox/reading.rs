//! A reading as bytes: `kind u8, flags u8, presence u8, wall i64, mono u64, source, topic, device`, then what presence
//! names, then the value up to the end. Texts have a 4-byte length before them. Decoding slices the shared buffer.

use crate::outbox::Packet;
use crate::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime, SourceId};

use super::wire::{Cursor, put_text};

const HAS_PACKET: u8 = 1;
const HAS_DEVICE_TIME: u8 = 2;
const HAS_CONTENT_TYPE: u8 = 4;
const HAS_QUALITY: u8 = 8;
const HAS_MQTT: u8 = 16;
const HAS_REPLAY_OF: u8 = 32;

const MQTT_RETAIN: u8 = 4;
const MQTT_DUP: u8 = 8;

/// What the redelivery table keeps of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PacketMark {
    pub(super) id: u16,
    pub(super) qos: Qos,
    pub(super) hash: u64,
}

impl From<&Packet> for PacketMark {
    fn from(packet: &Packet) -> Self {
        Self { id: packet.id, qos: packet.qos, hash: packet.hash }
    }
}

impl PacketMark {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.to_le_bytes());
        out.push(self.qos as u8);
        out.extend_from_slice(&self.hash.to_le_bytes());
    }

    pub(super) fn get(cursor: &mut Cursor<'_>) -> Option<Self> {
        Some(Self { id: cursor.u16()?, qos: Qos::from_number(cursor.u8()?)?, hash: cursor.u64()? })
    }
}

/// A reading with its source and, if it ends its arrival, the mark of the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReadingEntry {
    pub(super) source: SourceId,
    pub(super) packet: Option<PacketMark>,
    pub(super) reading: Reading,
}

/// Appends the bytes of a reading.
pub(super) fn put(out: &mut Vec<u8>, source: &SourceId, packet: Option<PacketMark>, reading: &Reading) {
    let presence = presence_of(packet.is_some(), reading);
    out.extend_from_slice(&[reading.kind as u8, reading.flags.0, presence]);
    out.extend_from_slice(&reading.received.wall_ns.to_le_bytes());
    out.extend_from_slice(&reading.received.mono_ns.to_le_bytes());
    put_text(out, source.as_str());
    put_text(out, &reading.topic);
    put_text(out, &reading.device);
    if let Some(packet) = packet {
        packet.put(out);
    }
    if let Some(time) = reading.device_time_ns {
        out.extend_from_slice(&time.to_le_bytes());
    }
    if presence & HAS_CONTENT_TYPE != 0 {
        put_text(out, &reading.content_type);
    }
    if presence & HAS_QUALITY != 0 {
        put_text(out, &reading.quality);
    }
    if let Some(mqtt) = &reading.mqtt {
        let retain = if mqtt.retain { MQTT_RETAIN } else { 0 };
        let dup = if mqtt.dup { MQTT_DUP } else { 0 };
        out.push(mqtt.qos as u8 | retain | dup);
        put_text(out, &mqtt.topic);
    }
    if presence & HAS_REPLAY_OF != 0 {
        put_text(out, &reading.replay_of);
    }
    out.extend_from_slice(&reading.value);
}

fn presence_of(packet: bool, reading: &Reading) -> u8 {
    let bit = |present: bool, bit: u8| if present { bit } else { 0 };
    bit(packet, HAS_PACKET)
        | bit(reading.device_time_ns.is_some(), HAS_DEVICE_TIME)
        | bit(!reading.content_type.is_empty(), HAS_CONTENT_TYPE)
        | bit(!reading.quality.is_empty(), HAS_QUALITY)
        | bit(reading.mqtt.is_some(), HAS_MQTT)
        | bit(!reading.replay_of.is_empty(), HAS_REPLAY_OF)
}

/// Reads a reading back; `None` if the bytes are not one.
pub(super) fn get(mut cursor: Cursor<'_>) -> Option<ReadingEntry> {
    let kind = Kind::from_number(cursor.u8()?)?;
    let flags = Flags(cursor.u8()?);
    let presence = cursor.u8()?;
    let has = |bit: u8| presence & bit != 0;
    let received = ReceiptTime { wall_ns: cursor.i64()?, mono_ns: cursor.u64()? };
    let source = SourceId(cursor.text()?);
    let topic = cursor.text()?;
    let device = cursor.text()?;
    let packet = if has(HAS_PACKET) { Some(PacketMark::get(&mut cursor)?) } else { None };
    let device_time_ns = if has(HAS_DEVICE_TIME) { Some(cursor.i64()?) } else { None };
    let content_type = if has(HAS_CONTENT_TYPE) { cursor.text()? } else { Default::default() };
    let quality = if has(HAS_QUALITY) { cursor.text()? } else { Default::default() };
    let mqtt = if has(HAS_MQTT) { Some(get_mqtt(&mut cursor)?) } else { None };
    let replay_of = if has(HAS_REPLAY_OF) { cursor.text()? } else { Default::default() };
    let value = cursor.rest();
    let reading =
        Reading { topic, device, kind, flags, received, device_time_ns, content_type, quality, mqtt, replay_of, value };
    Some(ReadingEntry { source, packet, reading })
}

fn get_mqtt(cursor: &mut Cursor<'_>) -> Option<MqttOrigin> {
    let bits = cursor.u8()?;
    let qos = Qos::from_number(bits & 3)?;
    Some(MqttOrigin { topic: cursor.text()?, qos, retain: bits & MQTT_RETAIN != 0, dup: bits & MQTT_DUP != 0 })
}
