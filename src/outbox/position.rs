//! The file `pos`: what is delivered, and how far the log certainly reaches. Two slots (slots.rs); losing it costs
//! time, not readings, for the ledger in Kafka knows better.

use std::io;
use std::path::Path;

use super::slots::Slots;
use super::wire::NUMBERS_END;

const FORMAT: u8 = 1;
const BYTES: usize = 1 + 8 * 4;

/// Where the log stood when `pos` was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Position {
    /// Number of the incarnation of `committed`.
    pub(super) incarnation_number: u64,
    /// Last sequence that Kafka has, inclusive.
    pub(super) committed: u64,
    /// Everything below was durable, perhaps acknowledged: index.
    pub(super) next_index: u64,
    /// Likewise: sequence.
    pub(super) next_sequence: u64,
}

impl Position {
    fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.push(FORMAT);
        for number in [self.incarnation_number, self.committed, self.next_index, self.next_sequence] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BYTES || bytes[0] != FORMAT {
            return None;
        }
        let number = |n: usize| {
            let number = u64::from_le_bytes(bytes[1 + n * 8..][..8].try_into().ok()?);
            (number < NUMBERS_END).then_some(number)
        };
        Some(Self {
            incarnation_number: number(0)?,
            committed: number(1)?,
            next_index: number(2)?,
            next_sequence: number(3)?,
        })
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct PositionFile {
    slots: Slots,
    written: Option<Position>,
}

impl PositionFile {
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Position>)> {
        let (slots, payload) = Slots::open(path)?;
        let written = payload.as_deref().and_then(Position::decode);
        Ok((Self { slots, written }, written))
    }

    pub(super) fn written(&self) -> Option<Position> {
        self.written
    }

    /// Writes what was written last into the other slot, too.
    pub(super) fn write_again(&mut self) -> io::Result<()> {
        self.written.map_or(Ok(()), |position| self.slots.write(&position.encode()))
    }

    /// Writes and syncs, if anything changed.
    pub(super) fn write(&mut self, position: Position) -> io::Result<()> {
        if self.written != Some(position) {
            self.slots.write(&position.encode())?;
            self.written = Some(position);
        }
        Ok(())
    }
}
