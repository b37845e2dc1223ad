//! Where reading back may start: per partition an offset below which nothing of ours can be in doubt, and for the ledger's
//! partition the offset of our newest record.
//!
//! File `hints` in the outbox directory, sealed JSON (outbox/format.rs), replaced whole (write, sync, rename, sync). A hint is durable before the
//! first send to its partition. A hint that is too old, or lost, only makes reading back longer; one that lies outside the
//! partition's offsets is ignored (the topic was made anew).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::delivery::durable_file::write_durably;

/// Moved hints are written this often; new ones at once.
const WRITE_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Serialize, Deserialize, Clone, PartialEq, Eq)]
struct Content {
    v: u32,
    cluster: Option<String>,
    /// Every partition ever sent to is listed: one that is not listed holds nothing of ours.
    complete: bool,
    /// Partitions a topic had when it was last sent to.
    counts: BTreeMap<String, u32>,
    topics: BTreeMap<String, BTreeMap<u32, i64>>,
}

/// A hint to be added.
#[derive(Debug)]
pub(super) struct NewHint {
    pub(super) topic: String,
    pub(super) count: u32,
    pub(super) partition: u32,
    pub(super) offset: i64,
}

/// The hints of one outbox.
#[derive(Debug)]
pub(super) struct Hints {
    file: PathBuf,
    content: Content,
    moved: bool,
    written_at: Instant,
}

impl Hints {
    /// Reads the file; a missing or unreadable one is empty, and complete only if nothing was ever sent.
    pub(super) fn open(directory: &Path, ever_began: bool) -> Self {
        let file = directory.join("hints");
        let content = match fs::read(&file) {
            Ok(bytes) => parse(&bytes),
            Err(_) => None,
        };
        let content = content.unwrap_or(Content { v: 1, complete: !ever_began, ..Content::default() });
        Self { file, content, moved: false, written_at: Instant::now() }
    }

    /// The hint of a partition.
    pub(super) fn get(&self, topic: &str, partition: u32) -> Option<i64> {
        self.content.topics.get(topic)?.get(&partition).copied()
    }

    /// Whether a partition without a hint is certain to hold nothing of ours.
    pub(super) fn complete(&self) -> bool {
        self.content.complete
    }

    /// Partitions the topic had when it was last sent to.
    pub(super) fn count(&self, topic: &str) -> Option<u32> {
        self.content.counts.get(topic).copied()
    }

    /// All partitions that were ever sent to.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, u32, i64)> {
        let topics = self.content.topics.iter();
        topics.flat_map(|(topic, partitions)| partitions.iter().map(move |(p, offset)| (topic.as_str(), *p, *offset)))
    }

    /// Hints of another cluster mean nothing.
    pub(super) fn for_cluster(&mut self, cluster: Option<&str>) {
        if let (Some(old), Some(new)) = (self.content.cluster.as_deref(), cluster) {
            if old != new {
                self.content = Content { v: 1, ..Content::default() };
                self.moved = true;
            }
        }
        if let Some(new) = cluster.filter(|new| self.content.cluster.as_deref() != Some(*new)) {
            self.content.cluster = Some(new.to_owned());
            self.moved = true;
        }
    }

    /// Adds hints of partitions that are about to be sent to for the first time; durable when this returns.
    pub(super) fn add(&mut self, new: &[NewHint]) -> io::Result<()> {
        for NewHint { topic, count, partition, offset } in new {
            self.content.counts.insert(topic.clone(), *count);
            self.content.topics.entry(topic.clone()).or_default().insert(*partition, *offset);
        }
        self.write()
    }

    /// Moves a hint after a commit; written later.
    pub(super) fn advance(&mut self, topic: &str, partition: u32, offset: i64) {
        match self.content.topics.get_mut(topic).and_then(|partitions| partitions.get_mut(&partition)) {
            Some(hint) => *hint = offset,
            None => {
                self.content.topics.entry(topic.to_owned()).or_default().insert(partition, offset);
            }
        }
        self.moved = true;
    }

    /// Writes what was moved, if it is time or `now` is wanted.
    pub(super) fn write_moved(&mut self, now: bool) -> io::Result<()> {
        if self.moved && (now || self.written_at.elapsed() >= WRITE_INTERVAL) {
            return self.write();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let json = serde_json::to_string(&self.content).map_err(io::Error::other)?;
        write_durably(&self.file, &[crate::outbox::seal(&json).as_bytes()])?;
        self.moved = false;
        self.written_at = Instant::now();
        Ok(())
    }
}

/// Reads the file; before 0.1.0 was out it had no seal.
fn parse(bytes: &[u8]) -> Option<Content> {
    let text = std::str::from_utf8(bytes).ok()?;
    let json = crate::outbox::unseal(text).unwrap_or(text);
    serde_json::from_str::<Content>(json).ok().filter(|content| content.v == 1)
}

/// The file as this version writes it, for the fixtures of the outbox.
#[cfg(test)]
pub(in crate::delivery) fn write_fixture_hints(directory: &Path) {
    let mut hints = Hints::open(directory, true);
    hints.for_cluster(Some("fixture-cluster"));
    hints.add(&[NewHint { topic: "telemetry".to_owned(), count: 6, partition: 3, offset: 100 }]).expect("written");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_survive_a_reopen_and_a_damaged_file_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let mut hints = Hints::open(directory.path(), true);
        hints.for_cluster(Some("a"));
        let new = |topic: &str, partition, offset| NewHint { topic: topic.to_owned(), count: 6, partition, offset };
        hints.add(&[new("telemetry", 3, 100), new("ledger", 0, 7)]).unwrap();
        hints.advance("telemetry", 3, 150);
        let unwritten = Hints::open(directory.path(), true);
        assert_eq!(unwritten.get("telemetry", 3), Some(100), "a moved hint is written later");
        hints.write_moved(true).unwrap();
        let mut hints = Hints::open(directory.path(), true);
        assert_eq!((hints.get("telemetry", 3), hints.get("telemetry", 4)), (Some(150), None));
        assert_eq!((hints.all().count(), hints.count("telemetry")), (2, Some(6)));
        assert!(!hints.complete() && Hints::open(&directory.path().join("none"), false).complete());
        hints.for_cluster(Some("b"));
        assert_eq!(hints.all().count(), 0, "offsets of another cluster mean nothing");
        fs::write(directory.path().join("hints"), b"{\"v\":1,\"topics\":{").unwrap();
        assert_eq!(Hints::open(directory.path(), true).all().count(), 0);
    }
}
