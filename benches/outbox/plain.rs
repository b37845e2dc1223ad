//! The measure: an append-only file. Blocks of readings, each with its length and a checksum; a group is one write and
//! one `fdatasync`. No index, no positions, no repair: less than anybody could ship.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use bytestring::ByteString;
use fieldpost::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime};

/// Raw bytes of a block: as large as the outbox makes them at most.
const BLOCK_RAW_BYTES: usize = 60 * 1024;
const ZSTD_LEVEL: i32 = 1;

pub(crate) struct PlainFile {
    file: File,
    zstd: zstd::bulk::Compressor<'static>,
    raw: Vec<u8>,
    packed: Vec<u8>,
    out: Vec<u8>,
    pub(crate) length: u64,
    pub(crate) syncs: u64,
}

impl PlainFile {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        let file = File::create(path)?;
        // The name is synced, too, once.
        file.sync_all()?;
        Ok(Self { file, zstd, raw: Vec::new(), packed: Vec::new(), out: Vec::new(), length: 0, syncs: 0 })
    }

    /// A group of readings: encoded, written at once, synced.
    pub(crate) fn append(&mut self, readings: impl Iterator<Item = Reading>) -> io::Result<()> {
        for reading in readings {
            put(&mut self.raw, &reading);
            if self.raw.len() >= BLOCK_RAW_BYTES {
                self.end_block()?;
            }
        }
        self.end_block()?;
        self.file.write_all(&self.out)?;
        self.length += self.out.len() as u64;
        self.out.clear();
        self.syncs += 1;
        self.file.sync_data()
    }

    fn end_block(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.raw.len()));
        self.zstd.compress_to_buffer(&self.raw, &mut self.packed)?;
        self.out.extend_from_slice(&(self.packed.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&(self.raw.len() as u32).to_le_bytes());
        self.out.extend_from_slice(&crc32fast::hash(&self.packed).to_le_bytes());
        self.out.extend_from_slice(&self.packed);
        self.raw.clear();
        Ok(())
    }
}

/// Reads the file from the start, block by block.
pub(crate) struct PlainReader {
    file: File,
    at: u64,
    zstd: zstd::bulk::Decompressor<'static>,
    packed: Vec<u8>,
}

impl PlainReader {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let zstd = zstd::bulk::Decompressor::new()?;
        Ok(Self { file: File::open(path)?, at: 0, zstd, packed: Vec::new() })
    }

    /// The readings of the next block below `end`, checked and decoded; none at the end.
    pub(crate) fn next_block(&mut self, end: u64) -> io::Result<Vec<Reading>> {
        if self.at >= end {
            return Ok(Vec::new());
        }
        let mut head = [0; 12];
        self.file.read_exact_at(&mut head, self.at)?;
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        self.packed.resize(number(0) as usize, 0);
        self.file.read_exact_at(&mut self.packed, self.at + 12)?;
        self.at += 12 + u64::from(number(0));
        if crc32fast::hash(&self.packed) != number(8) {
            return Err(io::Error::other("checksum"));
        }
        let raw = Bytes::from(self.zstd.decompress(&self.packed, number(4) as usize)?);
        let mut readings = Vec::new();
        let mut at = 0;
        while at < raw.len() {
            readings.push(get(&raw, &mut at).ok_or_else(|| io::Error::other("a reading"))?);
        }
        Ok(readings)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(crate) fn put(out: &mut Vec<u8>, reading: &Reading) {
    out.extend_from_slice(&reading.received.wall_ns.to_le_bytes());
    out.extend_from_slice(&reading.received.mono_ns.to_le_bytes());
    for text in [&reading.topic, &reading.device, &reading.content_type, &reading.mqtt.as_ref().expect("set").topic] {
        put_bytes(out, text.as_bytes());
    }
    put_bytes(out, &reading.value);
}

fn get_bytes(raw: &Bytes, at: &mut usize) -> Option<Bytes> {
    let length = u32::from_le_bytes(raw.get(*at..*at + 4)?.try_into().ok()?) as usize;
    let from = *at + 4;
    *at = from + length;
    (*at <= raw.len()).then(|| raw.slice(from..*at))
}

fn get(raw: &Bytes, at: &mut usize) -> Option<Reading> {
    let wall_ns = i64::from_le_bytes(raw.get(*at..*at + 8)?.try_into().ok()?);
    let mono_ns = u64::from_le_bytes(raw.get(*at + 8..*at + 16)?.try_into().ok()?);
    *at += 16;
    let mut text = || ByteString::try_from(get_bytes(raw, at)?).ok();
    let (topic, device, content_type, mqtt) = (text()?, text()?, text()?, text()?);
    let value = get_bytes(raw, at)?;
    let mqtt = Some(MqttOrigin { topic: mqtt, qos: Qos::AtLeastOnce, retain: false, dup: false });
    Some(Reading {
        topic,
        device,
        kind: Kind::Raw,
        flags: Flags::default(),
        received: ReceiptTime { wall_ns, mono_ns },
        device_time_ns: None,
        content_type,
        quality: "".into(),
        mqtt,
        replay_of: "".into(),
        value,
    })
}
