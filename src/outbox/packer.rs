//! Entries to blocks: gives each entry its index and sequence, fills blocks up to a raw size that follows the last
//! ratio of compression, and keeps every encoded block at or below the cap of the store (`generation.rs` says why).
//!
//! No block has another whole block in its bytes, whatever somebody sends: where the one outside is damaged, a repair
//! that searches for whole blocks (repair.rs) would take the one inside for ours. A reading that holds one is cut in
//! its middle, as large readings are (docs/decisions/0227).

use std::collections::VecDeque;

use crate::config;
use crate::outbox::Packet;
use crate::record::{Reading, SourceId};

use super::block::{self, Encoder, HEAD_BYTES, Head, RAW_BYTES_MAX};
use super::entry::{Control, ENTRY_HEAD_BYTES, FIRST, Kind, LAST, SPLIT_BEGIN, SPLIT_END};
use super::reading::{self, PacketMark};

/// Raw bytes aimed at, at most: more gains no compression.
const RAW_AIM_MAX: usize = 64 * 1024;
/// A ratio is believed when the block had at least this many raw bytes.
const RATIO_FROM_BYTES: usize = 4096;

/// A block, ready to be inserted.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) first_index: u64,
    /// Index after its last entry.
    pub(super) end_index: u64,
    pub(super) raw_bytes: usize,
    pub(super) bytes: Vec<u8>,
}

/// Where one entry of the block under way ends, and whether it takes a sequence.
#[derive(Debug, Clone, Copy)]
struct EntryEnd {
    at: usize,
    counts: bool,
}

/// The block under way, and blocks that are ready.
#[derive(Debug)]
pub(super) struct Packer {
    encoder: Encoder,
    encoded_max: usize,
    raw_aim: usize,
    raw: Vec<u8>,
    ends: Vec<EntryEnd>,
    /// Of the block under way.
    first_index: u64,
    first_sequence: u64,
    next_sequence: u64,
    ready: VecDeque<Packed>,
    /// Blocks that came out too large and were cut in half.
    pub(super) halved: u64,
}

impl Packer {
    /// `encoded_max`: largest encoded block in bytes. The counters are those of the next entry.
    pub(super) fn new(
        codec: config::outbox::Compression,
        encoded_max: usize,
        next_index: u64,
        next_sequence: u64,
    ) -> Self {
        Self {
            encoder: Encoder::new(codec),
            encoded_max,
            raw_aim: encoded_max,
            raw: Vec::new(),
            ends: Vec::new(),
            first_index: next_index,
            first_sequence: next_sequence,
            next_sequence,
            ready: VecDeque::new(),
            halved: 0,
        }
    }

    /// Index of the next entry.
    pub(super) fn next_index(&self) -> u64 {
        self.first_index + self.ends.len() as u64
    }

    /// Sequence of the next reading.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Forgets everything not taken and goes on at these counters.
    pub(super) fn restart_at(&mut self, next_index: u64, next_sequence: u64) {
        self.raw.clear();
        self.ends.clear();
        self.ready.clear();
        self.first_index = next_index;
        self.first_sequence = next_sequence;
        self.next_sequence = next_sequence;
    }

    /// A whole arrival; returns the index of its commit mark.
    pub(super) fn push_arrival(&mut self, source: &SourceId, readings: &[Reading], packet: Option<&Packet>) -> u64 {
        let mark = packet.map(PacketMark::from);
        let Some((last, before)) = readings.split_last() else {
            if let Some(mark) = mark {
                self.push_control(&Control::Mark(source.clone(), mark), FIRST | LAST);
            }
            return self.next_index() - 1;
        };
        let mut marks = FIRST;
        for reading in before {
            self.push_reading(source, reading, None, marks, 0);
            marks = 0;
        }
        self.push_reading(source, last, mark, marks, LAST);
        self.next_index() - 1
    }

    /// The reading that ends an arrival begun by a control entry; returns the index of its commit mark.
    pub(super) fn push_tail(&mut self, source: &SourceId, reading: &Reading) -> u64 {
        self.push_reading(source, reading, None, 0, LAST);
        self.next_index() - 1
    }

    /// An entry that is no reading; returns its index.
    pub(super) fn push_control(&mut self, control: &Control, marks: u8) -> u64 {
        let start = self.begin(control.kind(), marks);
        control.put(&mut self.raw);
        self.finish(start, false);
        self.next_index() - 1
    }

    fn entry_body_max(&self) -> usize {
        self.encoded_max - HEAD_BYTES - ENTRY_HEAD_BYTES
    }

    /// `first`: marks of its first entry, `last`: of its last one. The packet's mark stands in the reading, or after
    /// its last part.
    fn push_reading(&mut self, source: &SourceId, reading: &Reading, packet: Option<PacketMark>, first: u8, last: u8) {
        let start = self.begin(Kind::Reading, first | last);
        reading::put(&mut self.raw, source, packet, reading);
        let body = &self.raw[start + ENTRY_HEAD_BYTES..];
        if body.len() <= self.entry_body_max() && block::find_in(body).is_none() {
            return self.finish(start, true);
        }
        self.raw.truncate(start);
        let mut whole = Vec::with_capacity(reading.value.len() + 1024);
        reading::put(&mut whole, source, None, reading);
        let parts = split(&whole, self.entry_body_max());
        for (number, part) in parts.iter().enumerate() {
            let begin = if number == 0 { first | SPLIT_BEGIN } else { 0 };
            let is_last = number + 1 == parts.len();
            let end = if is_last { SPLIT_END | if packet.is_none() { last } else { 0 } } else { 0 };
            let start = self.begin(Kind::Part, begin | end);
            self.raw.extend_from_slice(part);
            self.finish(start, is_last);
        }
        if let Some(mark) = packet {
            self.push_control(&Control::Mark(source.clone(), mark), last);
        }
    }

    fn begin(&mut self, kind: Kind, marks: u8) -> usize {
        let start = self.raw.len();
        self.raw.extend_from_slice(&[kind as u8, marks, 0, 0, 0, 0]);
        start
    }

    /// Ends the entry that began at `start`, and the block if it is large enough.
    fn finish(&mut self, start: usize, counts: bool) {
        let body = u32::try_from(self.raw.len() - start - ENTRY_HEAD_BYTES).expect("an entry fits one block");
        self.raw[start + 2..start + ENTRY_HEAD_BYTES].copy_from_slice(&body.to_le_bytes());
        self.ends.push(EntryEnd { at: self.raw.len(), counts });
        self.next_sequence += u64::from(counts);
        if self.raw.len() > self.raw_aim && self.ends.len() > 1 {
            self.encode_first(self.ends.len() - 1);
        }
        if self.raw.len() >= self.raw_aim {
            self.encode_first(self.ends.len());
        }
    }

    /// Ends the block under way.
    pub(super) fn flush(&mut self) {
        self.encode_first(self.ends.len());
    }

    /// Encoded bytes of the first block that is ready.
    pub(super) fn first_ready_bytes(&self) -> Option<usize> {
        self.ready.front().map(|block| block.bytes.len())
    }

    /// Encoded bytes of all blocks that are ready.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready.iter().map(|block| block.bytes.len()).sum()
    }

    /// Raw bytes that are not taken.
    pub(super) fn raw_bytes(&self) -> u64 {
        (self.raw.len() + self.ready.iter().map(|block| block.raw_bytes).sum::<usize>()) as u64
    }

    /// A block that is ready.
    pub(super) fn take(&mut self) -> Option<Packed> {
        self.ready.pop_front()
    }

    /// Encodes the first `count` entries of the block under way; the others begin the next one.
    fn encode_first(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let end = self.ends[count - 1].at;
        let sequences = self.ends[..count].iter().filter(|end| end.counts).count() as u32;
        let head = Head {
            first_index: self.first_index,
            first_sequence: self.first_sequence,
            entries: count as u32,
            sequences,
        };
        let bytes = self.encoder.encode(head, &self.raw[..end]);
        // No entry has a block in it. One that stands across several is cut where one of them ends.
        let is_unfit = bytes.len() > self.encoded_max || block::hides_another(&bytes);
        if is_unfit && count > 1 {
            self.halved += 1;
            let before = self.ends.len();
            self.raw_aim = (self.raw_aim / 2).max(self.encoded_max / 2);
            self.encode_first(count / 2);
            let done = before - self.ends.len();
            return self.encode_first(count - done);
        }
        self.steer(end, bytes.len());
        self.raw.drain(..end);
        self.ends.drain(..count);
        self.ends.iter_mut().for_each(|entry| entry.at -= end);
        self.first_index = head.end_index();
        self.first_sequence = head.end_sequence();
        self.ready.push_back(Packed {
            first_index: head.first_index,
            end_index: head.end_index(),
            raw_bytes: end,
            bytes,
        });
    }

    /// Aims at blocks of nine tenths of the cap by what the last one came to.
    fn steer(&mut self, raw: usize, encoded: usize) {
        if raw >= RATIO_FROM_BYTES {
            let aim = self.encoded_max * 9 / 10 * raw / encoded.max(1);
            self.raw_aim = aim.clamp(self.encoded_max / 2, RAW_AIM_MAX.min(RAW_BYTES_MAX));
        }
    }
}

/// Cuts a reading into parts of at most `part_max` bytes, none of which has a whole block in it.
fn split(whole: &[u8], part_max: usize) -> Vec<&[u8]> {
    let (mut parts, mut left) = (Vec::new(), whole);
    while !left.is_empty() {
        let mut part = &left[..left.len().min(part_max)];
        while let Some(inside) = block::find_in(part) {
            part = &part[..inside.start + inside.len() / 2];
        }
        parts.push(part);
        left = &left[part.len()..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::block::Decoder;
    use crate::outbox::entry::{Entry, Framed};
    use crate::outbox::testing::reading_of;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn drain(packer: &mut Packer) -> Vec<Packed> {
        packer.flush();
        std::iter::from_fn(|| packer.take()).collect()
    }

    /// Readings out of blocks, split ones joined, as the reader does it.
    fn read_back(blocks: &[Packed]) -> Vec<Reading> {
        let mut decoder = Decoder::default();
        let (mut readings, mut parts) = (Vec::new(), Vec::new());
        for block in blocks {
            let (head, raw) = decoder.decode(&block.bytes).unwrap();
            let (mut at, mut entries, mut sequences) = (0, 0, 0);
            while let Some(framed) = Framed::at(&raw, at) {
                entries += 1;
                sequences += u32::from(framed.counts());
                match framed.decode(&raw).unwrap() {
                    Entry::Reading(entry) => readings.push(entry.reading),
                    Entry::Part(part) => {
                        parts.extend_from_slice(&part);
                        if framed.counts() {
                            let whole = Bytes::from(std::mem::take(&mut parts));
                            let cursor = super::super::wire::Cursor::whole(&whole);
                            readings.push(reading::get(cursor).unwrap().reading);
                        }
                    }
                    Entry::Control(_) => {}
                }
                at = framed.next;
            }
            assert_eq!((at, entries, sequences), (raw.len(), head.entries, head.sequences));
        }
        readings
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn any_readings_come_back_in_blocks_below_the_cap(
            sizes in proptest::collection::vec(0usize..40_000, 1..40), incompressible in any::<bool>(), seed in any::<u64>(),
        ) {
            let mut packer = Packer::new(config::outbox::Compression::Zstd, 7_400, 11, 4);
            let source = SourceId::from("plant");
            let readings: Vec<_> =
                sizes.iter().enumerate().map(|(n, size)| reading_of(seed ^ n as u64, *size, incompressible)).collect();
            for reading in &readings {
                packer.push_arrival(&source, std::slice::from_ref(reading), None);
            }
            let blocks = drain(&mut packer);
            let mut index = 11;
            for block in &blocks {
                prop_assert!(block.bytes.len() <= 7_400, "{} bytes", block.bytes.len());
                prop_assert_eq!(block.first_index, index);
                index = block.end_index;
            }
            prop_assert_eq!(index, packer.next_index());
            prop_assert_eq!(packer.next_sequence(), 4 + readings.len() as u64);
            prop_assert!(read_back(&blocks) == readings);
        }
    }

    /// Telemetry of several devices, a few payloads to a reading.
    fn telemetry(n: u64, bytes: usize) -> Reading {
        let mut reading = reading_of(n, 0, false);
        let device = crate::simulate::payload::Device::new(format!("line-{}", n % 40), 1);
        let mut value = String::new();
        for at in 0.. {
            let payload = device.payload(n * 50 + at, n as i64 * 1_000_000_000);
            if !value.is_empty() && value.len() + payload.len() > bytes {
                break;
            }
            value += &payload;
        }
        reading.value = Bytes::from(value);
        reading
    }

    /// Somebody sends blocks: as they are, one after the other, across two readings, and so that their pieces stand
    /// together only when what is between them is compressed away.
    #[test]
    fn no_block_has_another_one_in_its_bytes() {
        use config::outbox::Compression::{Lz4, None, Zstd};
        for (codec, of) in [Zstd, Lz4, None].into_iter().flat_map(|codec| [Zstd, Lz4, None].map(|of| (codec, of))) {
            // With no text in it that its carrier has, too: a codec leaves it in one piece.
            let bare = Reading { topic: "".into(), device: "".into(), mqtt: Option::None, ..reading_of(9, 400, true) };
            let bare = Reading { content_type: "".into(), quality: "".into(), ..bare };
            let mut other = Packer::new(of, 7_400, 15, 7);
            other.push_arrival(&SourceId::from("q"), &[bare], Option::None);
            let sent = drain(&mut other).remove(0).bytes;
            assert_eq!(block::find_in(&sent), Some(0..sent.len()));
            let noise = |n: u64, bytes: usize| reading_of(n, bytes, true).value.to_vec();
            let (half, filler) = (sent.len() / 2, noise(1, 200));
            let values = [
                sent.clone(),
                [&noise(2, 3000)[..], &sent, &noise(3, 300)].concat(),
                sent.repeat(30),
                [&filler[..], &sent[..half], &filler, &sent[half..], &noise(4, 50)].concat(),
                [&noise(5, 7_000 - half)[..], &sent, &noise(6, 9_000)].concat(),
            ];
            let readings: Vec<_> = values
                .into_iter()
                .map(|value| {
                    let mut reading = reading_of(8, 0, true);
                    reading.value = Bytes::from(value);
                    reading
                })
                .collect();
            let mut packer = Packer::new(codec, 7_400, 11, 4);
            for group in [&readings[..], &readings[3..4], &readings[..1]] {
                packer.push_arrival(&SourceId::from("plant"), group, Option::None);
            }
            let blocks = drain(&mut packer);
            for block in &blocks {
                assert!(block.bytes.len() <= 7_400);
                assert_eq!(block::find_in(&block.bytes[1..]), Option::None, "{codec:?} with {of:?} inside");
            }
            assert!(read_back(&blocks) == [&readings[..], &readings[3..4], &readings[..1]].concat());
        }
    }

    #[test]
    fn hardly_a_block_is_encoded_twice_and_blocks_are_full() {
        for (cap, bytes) in [(15_000, 200), (15_000, 1000), (15_000, 4000), (7_400, 200), (7_400, 1000)] {
            let mut packer = Packer::new(config::outbox::Compression::Zstd, cap, 1, 1);
            let source = SourceId::from("plant");
            for n in 0..(8 << 20) / bytes as u64 {
                packer.push_arrival(&source, &[telemetry(n, bytes)], None);
            }
            let blocks = drain(&mut packer);
            let (count, halved) = (blocks.len() as u64, packer.halved);
            assert!(
                count > 50 && halved * 100 <= count * 2,
                "{bytes} B: {halved} of {count} blocks were encoded twice"
            );
            let encoded: usize = blocks.iter().map(|block| block.bytes.len()).sum();
            let raw_largest = blocks.iter().map(|block| block.raw_bytes).max().unwrap_or(0);
            let full = encoded as f64 / count as f64 / cap as f64;
            assert!(full > 0.7 || raw_largest > RAW_AIM_MAX * 9 / 10, "{bytes} B: blocks are {full:.2} full");
        }
    }

    #[test]
    fn blocks_grow_towards_the_cap_when_readings_compress_well() {
        let mut packer = Packer::new(config::outbox::Compression::Zstd, 15_000, 1, 1);
        let source = SourceId::from("plant");
        for n in 0..20_000 {
            packer.push_arrival(&source, &[reading_of(n, 200, false)], None);
        }
        let blocks = drain(&mut packer);
        let largest = blocks.iter().map(|block| block.raw_bytes).max().unwrap();
        assert!(largest > 30_000, "{largest}");
        assert!(packer.halved <= 2, "{} of {} blocks were encoded twice", packer.halved, blocks.len());
    }
}
