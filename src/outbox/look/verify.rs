//! Checks everything that is on the disk, and changes nothing: small files, marks, summaries against contents, every block
//! and entry, the order of sequences within and between generations, the notes over what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::directory::{Directory, GenerationId, disk_bytes};
use super::super::generation::{Generation, StoreError};
use super::super::memory::Memory;
use super::super::position::Position;
use super::super::reader::walk::Shelf;
use super::super::scan::scan;
use super::super::slots;
use super::super::summary::Summary;
use super::super::view::Listed;
use super::blocks::{self, Checked};
use super::line::Line;
use super::live::Shelves;
use super::looker::Looker;
use super::rescue;
use super::{LookError, Out};

const SLOT_TRIES: u32 = 3;
const SLOT_WAIT: Duration = Duration::from_millis(20);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing is lost by it.
    Remark,
    /// Readings, or what is known about them, are lost.
    Damage,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where, below `outbox/`.
    pub file: String,
    /// First sequence concerned, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Last sequence concerned, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
    /// What.
    pub what: String,
}

/// What was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Generations read.
    pub generations: u64,
    /// Generations that were delivered or dropped before they were reached.
    pub gone: u64,
    /// Blocks whose checksum and contents were checked.
    pub blocks: u64,
    /// Entries decoded.
    pub entries: u64,
    /// Readings among them.
    pub readings: u64,
    /// Findings that are damage.
    pub damage: u64,
    /// Findings that are none.
    pub remarks: u64,
}

struct Verifier<'a, 'b> {
    out: &'a mut Out<'b>,
    verified: Verified,
}

pub(super) fn verify(looker: &mut Looker, out: &mut Out<'_>) -> Result<Verified, LookError> {
    let mut verifier = Verifier { out, verified: Verified::default() };
    let shelves = &mut looker.walk.shelf;
    let directory = match shelves {
        Shelves::Live(live) => live.shared().directory.clone(),
        Shelves::Files(files) => files.directory.clone(),
    };
    verifier.small_files(shelves, &directory)?;
    let all = generations(shelves);
    let of = all.len() as u64;
    let mut before: Option<(GenerationId, u64)> = None;
    for (at, id) in all.iter().enumerate() {
        verifier.tell(&Line::Progress { done: at as u64, of })?;
        let limit = all.get(at + 1).map(|next| next.first_index);
        before = verifier.generation(shelves, &directory, *id, limit, before)?;
    }
    verifier.tell(&Line::Progress { done: of, of })?;
    verifier.end(shelves, before)?;
    if let Shelves::Files(files) = shelves {
        files.still_idle()?;
    }
    verifier.tell(&Line::Verified(verifier.verified))?;
    Ok(verifier.verified)
}

fn generations(shelves: &Shelves) -> Vec<GenerationId> {
    match shelves {
        Shelves::Live(_) => shelves.all().iter().map(|listed| listed.id).collect(),
        Shelves::Files(files) => files.found.iter().map(|found| found.id).collect(),
    }
}

impl Verifier<'_, '_> {
    fn tell(&mut self, line: &Line) -> Result<(), LookError> {
        (self.out)(&line.to_json()).map_err(LookError::Output)
    }

    fn found(&mut self, level: Level, file: &str, range: Option<(u64, u64)>, what: String) -> Result<(), LookError> {
        match level {
            Level::Damage => self.verified.damage += 1,
            Level::Remark => self.verified.remarks += 1,
        }
        let (from, to) = range.unzip();
        self.tell(&Line::Finding(Finding { level, file: file.to_owned(), from, to, what }))
    }

    fn small_files(&mut self, shelves: &Shelves, directory: &Directory) -> Result<(), LookError> {
        for name in ["pos", "state"] {
            self.slots(directory, name)?;
        }
        if let Shelves::Files(files) = shelves {
            if files.position.is_none() {
                self.found(Level::Remark, "pos", None, "lost: the ledger in Kafka knows what is delivered".to_owned())?;
            }
            if files.state.is_none() {
                self.found(Level::Remark, "state", None, "lost: the identity is taken from the log".to_owned())?;
            }
        }
        let known: BTreeSet<_> = generations(shelves).iter().map(GenerationId::to_string).collect();
        let path = directory.path();
        for entry in fs::read_dir(path).map_err(LookError::io("read", path))? {
            let entry = entry.map_err(LookError::io("read", path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name.strip_suffix(".ok").or_else(|| name.strip_suffix(".end"));
            let what = if name == "damaged" {
                let bytes = disk_bytes(&entry.path());
                (bytes > 16 << 10).then(|| {
                    format!(
                        "{bytes} bytes of generations set aside: fieldpost outbox salvage may recover what is in them"
                    )
                })
            } else if name.starts_with("next-") {
                Some("a rebuilt generation; the next start puts it in its place".to_owned())
            } else if name.starts_with("dead-") {
                Some("left by a removal; the next start removes it".to_owned())
            } else if stem.is_some_and(|stem| GenerationId::parse(stem).is_some() && !known.contains(stem)) {
                // Beside a daemon the generation may be a newer one, or just gone.
                matches!(shelves, Shelves::Files(_)).then(|| "its generation is gone".to_owned())
            } else {
                None
            };
            if let Some(what) = what {
                self.found(Level::Remark, &name, None, what)?;
            }
        }
        Ok(())
    }

    fn slots(&mut self, directory: &Directory, name: &str) -> Result<(), LookError> {
        let path = directory.file(name);
        // Beside a daemon one of them may be just being written.
        let mut looked = slots::look(&path);
        for _ in 0..SLOT_TRIES {
            if !looked.as_ref().is_ok_and(|slots| slots.contains(&slots::Slot::Torn)) {
                break;
            }
            std::thread::sleep(SLOT_WAIT);
            looked = slots::look(&path);
        }
        match looked {
            Ok(slots) if slots.contains(&slots::Slot::Torn) && !slots.contains(&slots::Slot::Valid) => {
                self.found(Level::Damage, name, None, "neither of its two slots is valid".to_owned())
            }
            Ok(slots) if slots.contains(&slots::Slot::Torn) => {
                self.found(Level::Remark, name, None, "one of its two slots is torn; the other one holds".to_owned())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if rescue::is_of_medium(&error) => {
                self.found(Level::Damage, name, None, format!("cannot be read from the medium: {error}"))
            }
            Err(error) => Err(LookError::io("read", &path)(error)),
        }
    }

    /// Checks one generation; its name and the sequence after its last one.
    fn generation(
        &mut self,
        shelves: &mut Shelves,
        directory: &Directory,
        id: GenerationId,
        limit: Option<u64>,
        before: Option<(GenerationId, u64)>,
    ) -> Result<Option<(GenerationId, u64)>, LookError> {
        let name = id.to_string();
        // Held only while it is read; what it shows is told afterwards.
        let Some(opened) = shelves.hold(id) else {
            self.verified.gone += 1;
            return Ok(None);
        };
        let durable_end = shelves.sight().durable_index + 1;
        let limit = limit.unwrap_or(u64::MAX).min(durable_end.max(id.first_index));
        let listed = shelves.all().into_iter().find(|listed| listed.id == id);
        let read = opened.and_then(|generation| read(&generation, limit, listed.as_ref()));
        let files = Files::of(directory, id, listed.as_ref());
        shelves.leave();
        let (checked, summary, complete) = match read {
            Ok(read) => read,
            Err(StoreError::Closed) => {
                self.verified.gone += 1;
                return Ok(None);
            }
            Err(StoreError::Damaged(why)) => {
                // What it held its summary says.
                let held =
                    listed.and_then(|listed| listed.closed).filter(|held| held.first_sequence < held.end_sequence);
                let range = held.map(|held| (held.first_sequence, held.end_sequence - 1));
                self.found(Level::Damage, &name, range, format!("cannot be opened or read: {why}"))?;
                return Ok(None);
            }
            Err(error) => {
                return Err(match (shelves, error) {
                    (Shelves::Files(files), error) => files.failure(id, error),
                    (Shelves::Live(_), error @ StoreError::Later(_)) => LookError::Foreign(format!("{id}: {error}")),
                    (Shelves::Live(_), StoreError::Busy(text)) => LookError::Busy(format!("{id}: {text}")),
                    (Shelves::Live(_), error) => LookError::Store(format!("{id}: {error}")),
                });
            }
        };
        self.verified.generations += 1;
        self.verified.blocks += checked.blocks;
        self.verified.entries += checked.entries;
        self.verified.readings += checked.readings;
        for flaw in checked.flaws {
            let noted = flaw.range.is_some_and(|range| is_accounted_for(shelves, range));
            let level = if noted { Level::Remark } else { Level::Damage };
            self.found(level, &name, flaw.range, flaw.what)?;
        }
        if !complete {
            self.found(Level::Damage, &name, None, "the snapshot at its head is not complete".to_owned())?;
        }
        let (first, end) = self.ends(&name, &summary, listed.as_ref())?;
        for (file, what) in files.flaws(&name, &summary) {
            self.found(Level::Remark, &file, None, what)?;
        }
        self.between(shelves, before, id, first)?;
        Ok(Some((id, end)))
    }

    /// A generation reaches from where to where it did when it was closed: the store drops the rest of its file silently
    /// where it finds damage. Its first sequence and the one after its last, as they should be.
    fn ends(&mut self, name: &str, found: &Summary, listed: Option<&Listed>) -> Result<(u64, u64), LookError> {
        let (mut first, mut end) = (found.first_sequence, found.end_sequence);
        let Some(closed) = listed.and_then(|listed| listed.closed.as_ref()) else { return Ok((first, end)) };
        if closed.first_sequence < first {
            let what = "begins later than it did when it was closed".to_owned();
            self.found(Level::Damage, name, Some((closed.first_sequence, first - 1)), what)?;
            first = closed.first_sequence;
        }
        if end < closed.end_sequence {
            let what = "ends earlier than it did when it was closed".to_owned();
            self.found(Level::Damage, name, Some((end, closed.end_sequence - 1)), what)?;
            end = closed.end_sequence;
        } else if found.end_index < closed.end_index {
            let what = "the last entries it had when it was closed are missing".to_owned();
            self.found(Level::Damage, name, None, what)?;
        }
        Ok((first, end))
    }

    /// A generation begins where the one before it ended.
    fn between(
        &mut self,
        shelves: &Shelves,
        before: Option<(GenerationId, u64)>,
        id: GenerationId,
        first: u64,
    ) -> Result<(), LookError> {
        let Some((earlier, end)) = before else { return Ok(()) };
        if end < first && !is_accounted_for(shelves, (end, first - 1)) {
            let what = format!("readings between {earlier} and {id} are missing, and no note says why");
            self.found(Level::Damage, &id.to_string(), Some((end, first - 1)), what)?;
        }
        if end > first {
            let what = format!("begins at sequence {first}, but {earlier} reaches {}", end - 1);
            self.found(Level::Damage, &id.to_string(), Some((first, end - 1)), what)?;
        }
        Ok(())
    }

    /// The log reaches what `pos` says was acknowledged.
    fn end(&mut self, shelves: &Shelves, newest: Option<(GenerationId, u64)>) -> Result<(), LookError> {
        let Shelves::Files(files) = shelves else { return Ok(()) };
        let Some(Position { next_index, next_sequence, .. }) = files.position else { return Ok(()) };
        let sequence = newest.map_or(files.end.1, |(_, end)| end.max(files.end.1));
        if files.end.0 < next_index || sequence < next_sequence {
            let range = (sequence < next_sequence).then(|| (sequence, next_sequence - 1));
            let what = format!(
                "the log ends at index {}, but what was acknowledged reaches index {}",
                files.end.0 - 1,
                next_index - 1
            );
            self.found(Level::Damage, "pos", range, what)?;
        }
        Ok(())
    }
}

/// Whether each sequence of a range is delivered or noted.
fn is_accounted_for(shelves: &Shelves, (from, to): (u64, u64)) -> bool {
    let from = from.max(shelves.committed() + 1);
    from > to || shelves.sight().notes.uncovered(from, to).is_empty()
}

/// Contents of a generation below `limit`: what is wrong, its summary, whether its snapshot is whole.
fn read(generation: &Generation, limit: u64, listed: Option<&Listed>) -> Result<(Checked, Summary, bool), StoreError> {
    let end = listed.and_then(|listed| listed.closed.as_ref()).map_or(u64::MAX, |summary| summary.end_index);
    let limit = limit.min(end);
    let checked = blocks::check(generation, limit)?;
    let mut memory = Memory::default();
    let scan = scan(generation, Some(limit), &mut memory)?;
    Ok((checked, scan.summary, memory.complete))
}

/// What stands beside a generation.
struct Files {
    marked: bool,
    /// As written; `None`: missing or torn.
    summary: Option<Summary>,
    summary_exists: bool,
    closed: bool,
    blobs: u64,
}

impl Files {
    fn of(directory: &Directory, id: GenerationId, listed: Option<&Listed>) -> Self {
        let path = directory.summary(id);
        Self {
            marked: directory.marker(id).exists(),
            summary: Summary::read(&path),
            summary_exists: path.exists(),
            closed: listed.is_some_and(|listed| listed.closed.is_some()),
            blobs: count_files(&directory.generation(id).join("blobs")),
        }
    }

    fn flaws(&self, name: &str, found: &Summary) -> Vec<(String, String)> {
        let mut flaws = Vec::new();
        if !self.marked {
            flaws.push((format!("{name}.ok"), "missing: the generation was never finished".to_owned()));
        }
        if self.closed && self.summary_exists && self.summary.is_none() {
            flaws.push((format!("{name}.end"), "torn: the next start reads the generation instead".to_owned()));
        }
        if let Some(written) = &self.summary {
            // Where the generation holds less, that is told of the generation.
            let same = written.first_sequence <= found.first_sequence
                && written.end_sequence >= found.end_sequence
                && written.end_index >= found.end_index
                && (written.end_sequence > found.end_sequence || written.sources == found.sources);
            if !same {
                flaws.push((format!("{name}.end"), "does not agree with what the generation holds".to_owned()));
            }
        }
        if self.blobs > 0 {
            let what = format!("{} blocks stand in files of their own, which a power cut may lose", self.blobs);
            flaws.push((format!("{name}/blobs"), what));
        }
        flaws
    }
}

fn count_files(path: &Path) -> u64 {
    fs::read_dir(path).map_or(0, |entries| entries.count() as u64)
}
