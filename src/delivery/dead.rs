//! Dead letters that cannot even go to the dead-letter topic: kept on the gateway, one file each, in `dead/` of the outbox
//! directory.
//!
//! Limits: a sixteenth of `max_bytes`, at most 64 MiB, but always enough for one largest record; it counts inside
//! `max_bytes`. Above it delivery waits with an alarm, it never drops one. Name: epoch of the incarnation and
//! sequence, so that writing one again makes no second. Content: one line of JSON that says what it is, then the value's
//! bytes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::durable_file::write_durably;
use crate::clock;
use crate::delivery::encode::DeadReason;
use crate::record::{Hole, Stored};

/// Most bytes in all.
const BYTES_MAX: u64 = 64 << 20;
/// Of the first line.
const FORMAT: u32 = 1;
/// What a file takes beside the record.
const HEAD_BYTES: u64 = 64 << 10;

/// What may be kept below a cap of `max_bytes`, with records of at most `record_bytes_max`.
pub(crate) fn bytes_max(max_bytes: u64, record_bytes_max: u64) -> u64 {
    (max_bytes / 16).min(BYTES_MAX).max(record_bytes_max + HEAD_BYTES)
}

/// The local store.
#[derive(Debug)]
pub(crate) struct DeadStore {
    directory: PathBuf,
    bytes_max: u64,
}

/// The first line of a file.
#[derive(Debug, Serialize)]
struct Head<'a> {
    v: u32,
    agent: &'a str,
    incarnation: String,
    sequence: u64,
    kind: u8,
    flags: u8,
    source: &'a str,
    topic: &'a str,
    device: &'a str,
    content_type: &'a str,
    quality: &'a str,
    mqtt_topic: Option<&'a str>,
    received: String,
    error: &'a str,
    error_text: &'a str,
    value_bytes: usize,
}

/// The content of the file of a hole that has no topic to be told in.
#[derive(Debug, Serialize)]
struct Gap<'a> {
    v: u32,
    agent: &'a str,
    incarnation: String,
    sequence: u64,
    from: u64,
    to: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<(u64, u64)>,
    reason: &'a str,
    bytes: u64,
    noted: String,
}

impl DeadStore {
    /// Under this directory; made with the first file.
    pub(crate) fn new(outbox_directory: &Path, bytes_max: u64) -> Self {
        Self { directory: outbox_directory.join("dead"), bytes_max }
    }

    /// Keeps a reading; durable when this returns. Returns the file's name, relative to the outbox directory.
    pub(crate) fn keep(&self, agent: &str, stored: &Stored, reason: &DeadReason) -> io::Result<String> {
        let reading = &stored.reading;
        let head = Head {
            v: FORMAT,
            agent,
            incarnation: stored.incarnation.to_hex(),
            sequence: stored.sequence.0,
            kind: reading.kind as u8,
            flags: reading.flags.0,
            source: stored.source.as_str(),
            topic: &reading.topic,
            device: &reading.device,
            content_type: &reading.content_type,
            quality: &reading.quality,
            mqtt_topic: reading.mqtt.as_ref().map(|mqtt| &*mqtt.topic),
            received: clock::rfc3339(reading.received.wall_ns),
            error: &reason.code,
            error_text: &reason.text,
            value_bytes: reading.value.len(),
        };
        self.write(&format!("{}-{}", stored.incarnation.epoch(), stored.sequence), &head, &reading.value)
    }

    /// Keeps a gap record; durable when this returns.
    pub(crate) fn keep_gap(&self, agent: &str, hole: &Hole) -> io::Result<String> {
        let gap = Gap {
            v: FORMAT,
            agent,
            incarnation: hole.incarnation.to_hex(),
            sequence: hole.to.0,
            from: hole.from.0,
            to: hole.to.0,
            ranges: hole.ranges.iter().map(|(from, to)| (from.0, to.0)).collect(),
            reason: &hole.reason,
            bytes: hole.bytes,
            noted: clock::rfc3339(hole.noted.wall_ns),
        };
        self.write(&format!("{}-{}", hole.incarnation.epoch(), hole.to), &gap, &[])
    }

    fn write<T: Serialize>(&self, name: &str, head: &T, value: &[u8]) -> io::Result<String> {
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(name);
        let head = serde_json::to_vec(head).map_err(io::Error::other)?;
        let needed = (head.len() + 1 + value.len()) as u64;
        let used = self.bytes()?;
        if !path.exists() && used + needed > self.bytes_max {
            return Err(io::Error::other(format!(
                "{} holds {used} bytes of dead letters, no more than {} are kept: look at them and delete them",
                self.directory.display(),
                self.bytes_max
            )));
        }
        write_durably(&path, &[&head, b"\n", value])?;
        Ok(format!("dead/{name}"))
    }

    fn bytes(&self) -> io::Result<u64> {
        let mut sum = 0;
        for entry in fs::read_dir(&self.directory)? {
            sum += entry?.metadata()?.len();
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Flags, Incarnation, Kind, Nonce, Reading, ReceiptTime, Sequence};

    #[test]
    fn a_dead_letter_is_kept_whole_and_once_and_never_past_the_cap() {
        let directory = tempfile::tempdir().unwrap();
        let store = DeadStore::new(directory.path(), bytes_max(8 << 20, 960 << 10));
        let mut stored = Stored {
            sequence: Sequence(9),
            incarnation: Incarnation([1; 16]),
            segment: Nonce::default(),
            boot_id: "".into(),
            source: "plant".into(),
            reading: Reading {
                topic: "t".into(),
                device: "d".into(),
                kind: Kind::Raw,
                flags: Flags::default(),
                received: ReceiptTime::default(),
                device_time_ns: None,
                content_type: "".into(),
                quality: "".into(),
                mqtt: None,
                replay_of: "".into(),
                value: bytes::Bytes::from_static(b"\n\x00value"),
            },
        };
        let reason = DeadReason { code: "size".into(), text: "too large".into() };
        let name = store.keep("gw", &stored, &reason).unwrap();
        assert_eq!(store.keep("gw", &stored, &reason).unwrap(), name);
        let content = fs::read(directory.path().join(&name)).unwrap();
        assert!(content.ends_with(b"\n\n\x00value"));
        let end = content.iter().position(|b| *b == b'\n').unwrap();
        let head: serde_json::Value = serde_json::from_slice(&content[..end]).unwrap();
        assert_eq!((head["sequence"].as_u64(), head["error"].as_str()), (Some(9), Some("size")));
        assert_eq!(fs::read_dir(directory.path().join("dead")).unwrap().count(), 1);
        fs::File::create(directory.path().join("dead/big")).unwrap().set_len(1 << 20).unwrap();
        stored.sequence = Sequence(10);
        assert!(store.keep("gw", &stored, &reason).unwrap_err().to_string().contains("delete them"));
    }
}
