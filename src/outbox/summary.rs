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

    /// Counts a reading.
    pub(super) fn count(&mut self, source: &SourceId, reading: &Reading) {
        // A copy is as old as its copying: `max_age` is about how long a reading has waited.
        let is_copy = reading.flags.contains(Flags::REPLAY);
        let received = if is_copy { clock::now() } else { reading.received };
        if self.sources.is_empty() {
            self.first_received_wall_ns = received.wall_ns;
            self.first_received_mono_ns = received.mono_ns;
        }
        self.last_received_wall_ns = self.last_received_wall_ns.max(received.wall_ns);
        self.last_received_mono_ns = self.last_received_mono_ns.max(received.mono_ns);
        self.synchronised &= !reading.flags.contains(Flags::UNSYNCHRONISED);
        self.record_bytes += reading.record_bytes() as u64;
        self.gaps += u64::from(reading.kind == Kind::Gap);
        match self.sources.get_mut(source.as_str()) {
            Some(count) => *count += 1,
            None => {
                self.sources.insert(source.as_str().to_owned(), 1);
            }
        }
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let json = serde_json::to_string(&Content { v: FORMAT, writer: WRITER, summary: self });
        let mut file = fs::File::create(path)?;
        file.write_all(format::seal(&json.map_err(io::Error::other)?).as_bytes())?;
        file.sync_data()
    }

    /// `None`: missing, torn or senseless.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let summary: Self = serde_json::from_str(format::unseal(&fs::read_to_string(path).ok()?)?).ok()?;
        let ends = [summary.end_index, summary.end_sequence, summary.record_bytes];
        let good = ends.iter().all(|end| *end < NUMBERS_END) && summary.first_sequence <= summary.end_sequence;
        good.then_some(summary)
    }
}
