//! What the recorder wrote (shim.c): the directory as it was, then every change, sync and mark in order.
//!
//! Files and directories are known by their number here, not by name or inode: an inode is used again after an unlink.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use super::marks::Mark;

/// Number of a file or directory.
pub type Object = usize;
/// The watched directory itself.
pub const ROOT: Object = 0;

/// How much of a file a sync covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    /// fsync or fdatasync: contents and length. Of a directory: its names.
    Whole,
    /// sync_file_range: these bytes, not the length.
    Bytes(Range<u64>),
}

/// One record.
#[derive(Debug, Clone)]
pub enum Op {
    Create { directory: Object, name: String, object: Object },
    Link { directory: Object, name: String, object: Object },
    Rename { from: (Object, String), to: (Object, String) },
    Unlink { directory: Object, name: String },
    Write { object: Object, at: u64, data: Bytes },
    Truncate { object: Object, length: u64 },
    SyncBegins { object: Object, id: u64, span: Span },
    SyncEnds { id: u64, good: bool },
    Mark(Mark),
}

/// A file or directory.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub is_directory: bool,
    /// Contents when recording began.
    pub base: Vec<u8>,
    /// Names when recording began.
    pub names: BTreeMap<String, Object>,
    /// Which records change its contents.
    pub events: Vec<usize>,
}

/// A whole recording.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    pub objects: Vec<Known>,
    pub ops: Vec<Op>,
}

struct Raw {
    kind: u8,
    a: u64,
    b: u64,
    c: u64,
    data: Bytes,
}

const HEAD_BYTES: usize = 29;

fn next(bytes: &mut Bytes) -> Option<Raw> {
    if bytes.len() < HEAD_BYTES {
        return None;
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let length = u32::from_le_bytes(bytes[25..29].try_into().unwrap()) as usize;
    // The process was ended while it wrote: that record never was.
    if bytes.len() < HEAD_BYTES + length {
        return None;
    }
    let raw = Raw {
        kind: bytes[0],
        a: number(1),
        b: number(9),
        c: number(17),
        data: bytes.slice(HEAD_BYTES..HEAD_BYTES + length),
    };
    *bytes = bytes.slice(HEAD_BYTES + length..);
    Some(raw)
}

#[derive(Default)]
struct Reader {
    journal: Journal,
    by_inode: HashMap<u64, Object>,
}

impl Journal {
    /// Reads a recording; an error says what of it cannot be believed.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut bytes = Bytes::from(std::fs::read(path).map_err(|error| format!("no recording: {error}"))?);
        let mut reader = Reader::default();
        while let Some(raw) = next(&mut bytes) {
            reader.take(raw)?;
        }
        if reader.journal.objects.is_empty() {
            return Err("an empty recording: was the recorder loaded?".to_owned());
        }
        Ok(reader.journal)
    }

    /// Marks among the first `end` records.
    pub fn marks(&self, end: usize) -> impl Iterator<Item = &Mark> {
        self.ops[..end].iter().filter_map(|op| if let Op::Mark(mark) = op { Some(mark) } else { None })
    }

    /// Where the first mark stands for which `is` holds.
    pub fn find(&self, is: impl Fn(&Mark) -> bool) -> Option<usize> {
        self.ops.iter().position(|op| matches!(op, Op::Mark(mark) if is(mark)))
    }
}

impl Journal {
    /// The first `end` records of this one, then all of `next`: a process that was killed there, and the one after it. What
    /// the first had not synced is still not synced while the second runs. `names`: paths of this one's objects at `end`.
    pub fn followed_by(&self, end: usize, names: &BTreeMap<String, Object>, next: &Self) -> Self {
        let mut joined = Self { objects: self.objects.clone(), ops: self.ops[..end].to_vec() };
        joined.objects.iter_mut().for_each(|known| known.events.retain(|at| *at < end));
        let mut same: HashMap<Object, Object> = HashMap::from([(ROOT, ROOT)]);
        let mut left = vec![(String::new(), ROOT)];
        while let Some((path, directory)) = left.pop() {
            for (name, object) in &next.objects[directory].names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                same.insert(*object, names[&path]);
                left.push((path, *object));
            }
        }
        for (at, known) in next.objects.iter().enumerate() {
            same.entry(at).or_insert_with(|| {
                joined.objects.push(Known { is_directory: known.is_directory, ..Known::default() });
                joined.objects.len() - 1
            });
        }
        let first_id = self.ops.len() as u64;
        for op in &next.ops {
            let op = op.moved(&same, first_id);
            if let Op::Write { object, .. } | Op::Truncate { object, .. } = &op {
                joined.objects[*object].events.push(joined.ops.len());
            }
            joined.ops.push(op);
        }
        joined
    }
}

impl Op {
    /// The same record with other numbers for objects, and for syncs.
    fn moved(&self, to: &HashMap<Object, Object>, first_id: u64) -> Self {
        let mut op = self.clone();
        match &mut op {
            Self::Create { directory, object, .. } | Self::Link { directory, object, .. } => {
                (*directory, *object) = (to[directory], to[object]);
            }
            Self::Rename { from, to: target } => (from.0, target.0) = (to[&from.0], to[&target.0]),
            Self::Unlink { directory, .. } => *directory = to[directory],
            Self::Write { object, .. } | Self::Truncate { object, .. } => *object = to[object],
            Self::SyncBegins { object, id, .. } => (*object, *id) = (to[object], *id + first_id),
            Self::SyncEnds { id, .. } => *id += first_id,
            Self::Mark(_) => {}
        }
        op
    }
}

impl Reader {
    fn object(&self, inode: u64) -> Result<Object, String> {
        self.by_inode.get(&inode).copied().ok_or_else(|| format!("a record names inode {inode}, which nobody made"))
    }

    fn make(&mut self, inode: u64, is_directory: bool) -> Object {
        let object = self.journal.objects.len();
        self.journal.objects.push(Known { is_directory, ..Known::default() });
        self.by_inode.insert(inode, object);
        object
    }

    fn take(&mut self, raw: Raw) -> Result<(), String> {
        let text = || String::from_utf8_lossy(&raw.data).into_owned();
        let op = match raw.kind {
            1 | 2 => {
                let object = self.make(raw.b, raw.kind == 1);
                if object != ROOT {
                    let parent = self.object(raw.a)?;
                    self.journal.objects[parent].names.insert(text(), object);
                }
                return Ok(());
            }
            3 => {
                let object = self.object(raw.a)?;
                let base = &mut self.journal.objects[object].base;
                assert_eq!(base.len() as u64, raw.b, "the base comes in order");
                base.extend_from_slice(&raw.data);
                return Ok(());
            }
            4 => return Ok(()),
            10 => {
                let directory = self.object(raw.a)?;
                Op::Create { directory, name: text(), object: self.make(raw.b, raw.c == 1) }
            }
            11 => {
                let object = self.object(raw.a)?;
                self.journal.objects[object].events.push(self.journal.ops.len());
                Op::Write { object, at: raw.b, data: raw.data }
            }
            12 => {
                let object = self.object(raw.a)?;
                self.journal.objects[object].events.push(self.journal.ops.len());
                Op::Truncate { object, length: raw.b }
            }
            13 => {
                let names = text();
                let (from, to) = names.split_once('/').ok_or("a rename without names")?;
                Op::Rename { from: (self.object(raw.a)?, from.to_owned()), to: (self.object(raw.b)?, to.to_owned()) }
            }
            14 => Op::Unlink { directory: self.object(raw.a)?, name: text() },
            15 => Op::Link { directory: self.object(raw.a)?, name: text(), object: self.object(raw.b)? },
            20 => {
                let number = |at: usize| u64::from_le_bytes(raw.data[at..at + 8].try_into().unwrap());
                let span = if raw.c == 2 { Span::Bytes(number(0)..number(0) + number(8)) } else { Span::Whole };
                Op::SyncBegins { object: self.object(raw.a)?, id: raw.b, span }
            }
            21 => Op::SyncEnds { id: raw.b, good: raw.c == 1 },
            30 => {
                let mark = serde_json::from_slice(&raw.data).map_err(|error| format!("a mark: {error}: {}", text()))?;
                Op::Mark(mark)
            }
            40 => return Err(format!("the recorder does not know how to record: {}", text())),
            kind => return Err(format!("a record of unknown kind {kind}")),
        };
        self.journal.ops.push(op);
        Ok(())
    }
}
