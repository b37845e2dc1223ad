//! The log model: what stands in the outbox, entry by entry.
//!
//! Limits first: an entry fits one block (larger readings are split into parts); an arrival never crosses generations.
//!
//! - Two counters. The *index* counts every entry and is the key of a block; the *sequence* counts readings only (a
//!   split one at its last part) and is what Kafka sees.
//! - The unit is the *arrival*: all readings of one message or frame, under one commit mark ([`LAST`] on its last
//!   entry). An arrival without its mark does not exist.
//! - A *segment* is one process start that appends. It says under which incarnation the readings after it stand.
//! - A *snapshot* opens every generation: it repeats the segments, notes, purges, refusal counts and redelivery tables that are
//!   still needed, between a begin and an end. What stands before a complete snapshot is not needed for opening.
//!
//! On disk an entry is `kind u8, marks u8, length u32, body`. Numbers are little-endian.

use bytes::Bytes;
use bytestring::ByteString;

use crate::record::{Incarnation, Nonce, ReceiptTime, SourceId};

use super::note::Note;
use super::purge::Purge;
use super::reading::{self, PacketMark, ReadingEntry};
use super::wire::{Cursor, put_text};

/// Mark of the first entry of an arrival.
pub(super) const FIRST: u8 = 1;
/// Mark of the last entry of an arrival: the commit mark.
pub(super) const LAST: u8 = 2;
/// Mark of the first part of a split reading.
pub(super) const SPLIT_BEGIN: u8 = 4;
/// Mark of the last part of a split reading: here its sequence counts.
pub(super) const SPLIT_END: u8 = 8;
/// An entry that is an arrival of its own.
pub(super) const ALONE: u8 = FIRST | LAST;

/// Bytes before the body of an entry.
pub(super) const ENTRY_HEAD_BYTES: usize = 6;
/// Most marks of a redelivery table in one entry, so that it stays far below the size of a block.
pub(super) const TABLE_MARKS_MAX: usize = 400;

/// Kinds on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Reading = 1,
    Part = 2,
    Mark = 3,
    Released = 4,
    SessionCleared = 5,
    Segment = 6,
    Refused = 7,
    Note = 8,
    SnapshotBegin = 9,
    Table = 10,
    SnapshotEnd = 11,
    Purged = 12,
}

impl Kind {
    fn from_number(number: u8) -> Option<Self> {
        const ALL: [Kind; 12] = [
            Kind::Reading,
            Kind::Part,
            Kind::Mark,
            Kind::Released,
            Kind::SessionCleared,
            Kind::Segment,
            Kind::Refused,
            Kind::Note,
            Kind::SnapshotBegin,
            Kind::Table,
            Kind::SnapshotEnd,
            Kind::Purged,
        ];
        ALL.get(usize::from(number).wrapping_sub(1)).copied()
    }

    /// Whether an entry of this kind with these marks takes a sequence.
    pub(super) fn counts(self, marks: u8) -> bool {
        match self {
            Self::Reading => true,
            Self::Part => marks & SPLIT_END != 0,
            _ => false,
        }
    }
}

/// One process start that appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// Index from which it appends.
    pub(super) first_index: u64,
    /// Sequence from which it appends.
    pub(super) first_sequence: u64,
    /// Counts the incarnations of this outbox, from 1.
    pub(super) incarnation_number: u64,
    pub(super) incarnation: Incarnation,
    pub(super) nonce: Nonce,
    pub(super) boot_id: ByteString,
}

/// Why readings are refused. The word stands in the gap record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) enum Why {
    #[default]
    DropNewest,
    ShareMax,
    Priority,
    /// It would not even fit an empty outbox.
    TooLarge,
}

impl Why {
    const ALL: [Self; 4] = [Self::DropNewest, Self::ShareMax, Self::Priority, Self::TooLarge];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::DropNewest => "drop_newest",
            Self::ShareMax => "share_max",
            Self::Priority => "priority",
            Self::TooLarge => "too_large",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.as_str() == word)
    }
}

/// Readings of a source refused for one reason, since the outbox was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Refusal {
    pub(super) why: Why,
    /// Readings refused.
    pub(super) total: u64,
    /// Their record bytes.
    pub(super) bytes: u64,
    /// How many of `total` a gap record has told.
    pub(super) told: u64,
    /// How many of `bytes` a gap record has told.
    pub(super) told_bytes: u64,
    /// Kafka topic of the newest one: where the gap record goes.
    pub(super) topic: ByteString,
}

/// An entry that is neither a reading nor a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    /// An arrival without readings, or the mark of one that ends with a split reading.
    Mark(SourceId, PacketMark),
    Released(SourceId, Vec<u16>),
    SessionCleared(SourceId),
    Segment(Segment),
    /// Counts so far.
    Refused(SourceId, Refusal),
    Note(Note),
    Purged(Purge),
    /// Next generation number is implied by the directory; the body is empty.
    SnapshotBegin,
    /// A piece of a redelivery table.
    Table(SourceId, Vec<PacketMark>),
    SnapshotEnd,
}

/// An entry as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Reading(ReadingEntry),
    /// A piece of the bytes of a reading.
    Part(Bytes),
    Control(Control),
}

/// Where an entry begins and what it is, without its body decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framed {
    pub(super) kind: Kind,
    pub(super) marks: u8,
    body: usize,
    /// Offset of the entry that follows.
    pub(super) next: usize,
}

/// The kind of the first entry that this program does not know. In a block whose checksum is good it is no damage: a
/// later program wrote it.
pub(super) fn unknown_kind(raw: &Bytes) -> Option<u8> {
    let mut at = 0;
    while let Some(framed) = Framed::at(raw, at) {
        at = framed.next;
    }
    raw.get(at).copied().filter(|kind| Kind::from_number(*kind).is_none())
}

impl Framed {
    /// Looks at the entry at `at`; `None` if there is none that could be.
    pub(super) fn at(raw: &Bytes, at: usize) -> Option<Self> {
        let mut cursor = Cursor::new(raw, at, raw.len());
        let kind = Kind::from_number(cursor.u8()?)?;
        let marks = cursor.u8()?;
        let len = cursor.u32()? as usize;
        let body = at + ENTRY_HEAD_BYTES;
        let next = body.checked_add(len).filter(|next| *next <= raw.len())?;
        Some(Self { kind, marks, body, next })
    }

    pub(super) fn counts(self) -> bool {
        self.kind.counts(self.marks)
    }

    /// Decodes the body.
    pub(super) fn decode(self, raw: &Bytes) -> Option<Entry> {
        let mut cursor = Cursor::new(raw, self.body, self.next);
        let entry = match self.kind {
            Kind::Reading => return reading::get(cursor).map(Entry::Reading),
            Kind::Part => return Some(Entry::Part(cursor.rest())),
            Kind::Mark => Control::Mark(SourceId(cursor.text()?), PacketMark::get(&mut cursor)?),
            Kind::Released => Control::Released(SourceId(cursor.text()?), get_list(&mut cursor, Cursor::u16)?),
            Kind::SessionCleared => Control::SessionCleared(SourceId(cursor.text()?)),
            Kind::Segment => Control::Segment(get_segment(&mut cursor)?),
            Kind::Refused => Control::Refused(SourceId(cursor.text()?), get_refusal(&mut cursor)?),
            Kind::Note => Control::Note(Note::get(&mut cursor)?),
            Kind::Purged => Control::Purged(Purge::get(&mut cursor)?),
            Kind::SnapshotBegin => Control::SnapshotBegin,
            Kind::Table => Control::Table(SourceId(cursor.text()?), get_list(&mut cursor, PacketMark::get)?),
            Kind::SnapshotEnd => Control::SnapshotEnd,
        };
        cursor.is_empty().then_some(Entry::Control(entry))
    }
}

/// Reads items until the body ends.
fn get_list<'a, T>(cursor: &mut Cursor<'a>, get: impl Fn(&mut Cursor<'a>) -> Option<T>) -> Option<Vec<T>> {
    let mut list = Vec::new();
    while !cursor.is_empty() {
        list.push(get(cursor)?);
    }
    Some(list)
}

fn get_segment(cursor: &mut Cursor<'_>) -> Option<Segment> {
    Some(Segment {
        first_index: cursor.number()?,
        first_sequence: cursor.number()?,
        incarnation_number: cursor.number()?,
        incarnation: Incarnation(cursor.array()?),
        nonce: Nonce(cursor.array()?),
        boot_id: own(&cursor.text()?),
    })
}

fn get_refusal(cursor: &mut Cursor<'_>) -> Option<Refusal> {
    let mut refusal = Refusal {
        why: Why::DropNewest,
        total: cursor.number()?,
        bytes: cursor.number()?,
        told: cursor.number()?,
        told_bytes: cursor.number()?,
        topic: own(&cursor.text()?),
    };
    // Not written for `drop_newest`, as in the first outboxes.
    if !cursor.is_empty() {
        refusal.why = Why::parse(&cursor.text()?)?;
    }
    (refusal.told <= refusal.total && refusal.told_bytes <= refusal.bytes).then_some(refusal)
}

/// A copy of a text, so that what lives long does not hold the block it came from.
pub(super) fn own(text: &ByteString) -> ByteString {
    ByteString::from(&**text)
}

impl Control {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Mark(..) => Kind::Mark,
            Self::Released(..) => Kind::Released,
            Self::SessionCleared(_) => Kind::SessionCleared,
            Self::Segment(_) => Kind::Segment,
            Self::Refused(..) => Kind::Refused,
            Self::Note(_) => Kind::Note,
            Self::Purged(_) => Kind::Purged,
            Self::SnapshotBegin => Kind::SnapshotBegin,
            Self::Table(..) => Kind::Table,
            Self::SnapshotEnd => Kind::SnapshotEnd,
        }
    }

    /// Appends the body.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::SnapshotBegin | Self::SnapshotEnd => {}
            Self::SessionCleared(source) => put_text(out, source.as_str()),
            Self::Mark(source, mark) => {
                put_text(out, source.as_str());
                mark.put(out);
            }
            Self::Released(source, ids) => {
                put_text(out, source.as_str());
                ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
            }
            Self::Table(source, marks) => {
                put_text(out, source.as_str());
                marks.iter().for_each(|mark| mark.put(out));
            }
            Self::Segment(segment) => {
                for number in [segment.first_index, segment.first_sequence, segment.incarnation_number] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                out.extend_from_slice(&segment.incarnation.0);
                out.extend_from_slice(&segment.nonce.0);
                put_text(out, &segment.boot_id);
            }
            Self::Refused(source, refusal) => {
                put_text(out, source.as_str());
                for number in [refusal.total, refusal.bytes, refusal.told, refusal.told_bytes] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
                put_text(out, &refusal.topic);
                if refusal.why != Why::DropNewest {
                    put_text(out, refusal.why.as_str());
                }
            }
            Self::Note(note) => note.put(out),
            Self::Purged(purge) => purge.put(out),
        }
    }
}

/// When something was noted, as bytes.
pub(super) fn put_time(out: &mut Vec<u8>, time: ReceiptTime) {
    out.extend_from_slice(&time.wall_ns.to_le_bytes());
    out.extend_from_slice(&time.mono_ns.to_le_bytes());
}
