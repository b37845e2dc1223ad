//! What a closed generation holds: the file `g....end` beside it, sealed JSON (format.rs). It spares opening all
//! generations at start; a missing or torn one is rebuilt by reading the generation.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::record::{Flags, Kind, Reading, SourceId};

use super::format::{self, FORMAT, WRITER};
use super::wire::NUMBERS_END;

/// Name of a summary that is being written.
pub(super) const NEW: &str = "end-new";

/// Contents of a generation. Ends are exclusive.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) first_sequence: u64,
    pub(super) end_index: u64,
    pub(super) end_sequence: u64,
    /// Record bytes of its readings.
    pub(super) record_bytes: u64,
    /// Readings per source.
    pub(super) sources: BTreeMap<String, u64>,
    /// How many of its readings are gap records, in which sources tell of their own losses.
    #[serde(default)]
    pub(super) gaps: u64,
    /// Record bytes per source; none in files of the first versions.
    #[serde(default)]
    pub(super) source_bytes: BTreeMap<String, u64>,
    /// When its first reading came: wall clock, and boot clock with the boot id.
    pub(super) first_received_wall_ns: i64,
    pub(super) first_received_mono_ns: u64,
    /// When its last one came.
    pub(super) last_received_wall_ns: i64,
    pub(super) last_received_mono_ns: u64,
    /// Boot in which its last reading came.
    pub(super) boot_id: String,
    /// Whether all of its readings have a synchronised wall time.
    pub(super) synchronised: bool,
}

/// What is written: the format first.
#[derive(Serialize)]
struct Content<'a> {
    v: u32,
    writer: &'static str,
    #[serde(flatten)]
    summary: &'a Summary,
}

fn add(counts: &mut BTreeMap<String, u64>, source: &SourceId, more: u64) {
    match counts.get_mut(source.as_str()) {
        Some(count) => *count += more,
        None => {
            counts.insert(source.as_str().to_owned(), more);
        }
    }
}

impl Summary {
    pub(super) fn starting_at(first_index: u64, first_sequence: u64) -> Self {
        Self {
            first_sequence,
            end_index: first_index,
            end_sequence: first_sequence,
            synchronised: true,
            ..Self::default()
        }
    }

    /// Whether its last reading came at least this long ago, by a clock that can be trusted: that of this boot (`boot_id`), or a
    /// synchronised one.
    pub(super) fn is_older(&self, age_ns: u64, boot_id: &str) -> bool {
        let now = clock::now();
        if self.boot_id == boot_id {
            return self.last_received_mono_ns.saturating_add(age_ns) < now.mono_ns;
        }
        let age = now.wall_ns.saturating_sub(self.last_received_wall_ns);
        self.synchronised && clock::synchronised() && u64::try_from(age).is_ok_and(|age| age > age_ns)
    }

    /// Counts a reading.
    pub(super) fn count(&mut self, source: &SourceId, reading: &Reading) {
        self.count_all(source, std::iter::once(reading));
    }

    /// Counts readings of one source.
    pub(super) fn count_all<'a>(&mut self, source: &SourceId, readings: impl Iterator<Item = &'a Reading>) {
        let mut is_first = self.sources.is_empty();
        let (mut count, mut bytes) = (0, 0);
        for reading in readings {
            // A copy is as old as its copying: `max_age` is about how long a reading has waited.
            let is_copy = reading.flags.contains(Flags::REPLAY);
            let received = if is_copy { clock::now() } else { reading.received };
            if std::mem::take(&mut is_first) {
                self.first_received_wall_ns = received.wall_ns;
                self.first_received_mono_ns = received.mono_ns;
            }
            self.last_received_wall_ns = self.last_received_wall_ns.max(received.wall_ns);
            self.last_received_mono_ns = self.last_received_mono_ns.max(received.mono_ns);
            self.synchronised &= !reading.flags.contains(Flags::UNSYNCHRONISED);
            self.gaps += u64::from(reading.kind == Kind::Gap);
            count += 1;
            bytes += reading.record_bytes() as u64;
        }
        if count > 0 {
            self.record_bytes += bytes;
            add(&mut self.sources, source, count);
            add(&mut self.source_bytes, source, bytes);
        }
    }

    /// Record bytes of a source; by its part of the readings where they were not counted.
    pub(super) fn bytes_of(&self, source: &str) -> u64 {
        self.source_bytes.get(source).copied().unwrap_or_else(|| {
            let (own, all) = (self.sources.get(source).copied().unwrap_or(0), self.sources.values().sum::<u64>());
            (self.record_bytes as f64 * own as f64 / all.max(1) as f64) as u64
        })
    }

    /// Writes the file, whole or not at all. If that fails, an older one goes: none is read anew, a wrong one is believed.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let result = self.replace(path);
        if result.is_err() {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::error!("cannot remove {}, which is out of date: {error}", path.display());
                }
                _ => {}
            }
        }
        result
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let json = serde_json::to_string(&Content { v: FORMAT, writer: WRITER, summary: self });
        let text = format::seal(&json.map_err(io::Error::other)?);
        let new = path.with_extension(NEW);
        let mut file = fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(new, path)
    }

    /// Whether it can be that of a generation that begins at `first_index` and is followed by one that begins at `limit`.
    pub(super) fn fits(&self, first_index: u64, limit: Option<u64>) -> bool {
        first_index <= self.end_index
            && self.first_sequence <= self.end_sequence
            && limit.is_none_or(|limit| self.end_index <= limit)
    }

    /// `None`: missing, torn or senseless.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let summary: Self = serde_json::from_str(format::unseal(&fs::read_to_string(path).ok()?)?).ok()?;
        let ends = [summary.end_index, summary.end_sequence, summary.record_bytes];
        let good = ends.iter().all(|end| *end < NUMBERS_END) && summary.first_sequence <= summary.end_sequence;
        good.then_some(summary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_that_cannot_be_written_leaves_no_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g1-1.end");
        Summary::starting_at(1, 1).write(&path).unwrap();
        assert_eq!(Summary::read(&path), Some(Summary::starting_at(1, 1)));
        // Its place is taken: the new one cannot be made.
        fs::create_dir(path.with_extension(NEW)).unwrap();
        assert!(Summary::starting_at(1, 2).write(&path).is_err());
        assert_eq!(Summary::read(&path), None, "what is out of date must not be believed");
    }
}
