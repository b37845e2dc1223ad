//! What a recorded process says of itself, and what follows from it: which arrivals must be there after a cut.

use std::fs::File;
use std::io::Write;

use serde::{Deserialize, Serialize};

/// One thing said, at the place in the recording where it became true. Arrivals are numbered from 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Mark {
    /// The outbox is open, as this incarnation, and was found to be right.
    Opened {
        incarnation: String,
    },
    /// Arrivals below this number are about to be handed over.
    Submitting {
        upto: u64,
    },
    /// Handed over again with DUP, for it was not found.
    Repeating {
        arrival: u64,
    },
    /// Answers, each with its outcome.
    Answered(Vec<(u64, Answered)>),
    /// The drain has these: an item that was read must never go away.
    Read {
        present: Vec<u64>,
        absent: Vec<u64>,
    },
    /// The drain has read through this sequence, whose last arrival is that.
    Delivered {
        sequence: u64,
        arrival: u64,
    },
    /// The outbox is about to be told that it may trim through this sequence.
    Trimming {
        sequence: u64,
    },
    /// `sync_position` has returned after that.
    PositionSynced {
        sequence: u64,
    },
    /// The packet identifiers of these arrivals are about to be released.
    Releasing {
        arrivals: Vec<u64>,
    },
    /// The cluster's name is about to get this number, then has it.
    Naming {
        number: u64,
    },
    Named {
        number: u64,
    },
    /// These sequences were given up, and nothing of them was left.
    Purged {
        from: u64,
        to: u64,
    },
    /// Copies of delivered readings stand in the log through this sequence.
    Copied {
        through: u64,
    },
    /// The disk was too full to open: it must open where there is room.
    NoRoom,
    /// All files at the end: path, length, CRC-32.
    End {
        files: Vec<(String, u64, u32)>,
    },
}

/// An outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answered {
    Stored,
    Refused,
}

/// What may have become of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Handed over, not answered: there, or not.
    Open,
    /// There, once.
    Stored,
    /// Not there, for good.
    Gone,
}

/// What is known at some place of a recording.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Expectation {
    /// By arrival.
    pub fates: Vec<Fate>,
    /// Arrivals acknowledged as refused.
    pub refused: u64,
    /// Sequences the drain has read through, each with its last arrival.
    pub delivered: Vec<(u64, u64)>,
    /// Sequences of trims.
    pub trims: Vec<u64>,
    /// `committed` cannot be lower.
    pub committed_min: u64,
    /// Arrivals whose packet identifier may have been released.
    pub released: Vec<u64>,
    /// Ranges of sequences that were given up.
    pub purged: Vec<(u64, u64)>,
    /// `durable` cannot be lower.
    pub durable_min: u64,
    pub named_min: u64,
    pub named_max: u64,
    pub incarnation: Option<String>,
}

impl Expectation {
    /// Takes in one mark.
    pub fn apply(&mut self, mark: &Mark) {
        match mark {
            Mark::Opened { incarnation } => self.incarnation = Some(incarnation.clone()),
            Mark::Submitting { upto } => self.fates.resize(self.fates.len().max(*upto as usize), Fate::Open),
            Mark::Repeating { arrival } => self.fates[*arrival as usize] = Fate::Open,
            Mark::Answered(answers) => {
                for (arrival, outcome) in answers {
                    let refused = *outcome == Answered::Refused;
                    self.fates[*arrival as usize] = if refused { Fate::Gone } else { Fate::Stored };
                    self.refused += u64::from(refused);
                }
            }
            Mark::Read { present, absent } => {
                present.iter().for_each(|arrival| self.fates[*arrival as usize] = Fate::Stored);
                absent.iter().for_each(|arrival| self.fates[*arrival as usize] = Fate::Gone);
            }
            Mark::Delivered { sequence, arrival } => self.delivered.push((*sequence, *arrival)),
            Mark::Trimming { sequence } => self.trims.push(*sequence),
            Mark::PositionSynced { sequence } => self.committed_min = *sequence,
            Mark::Releasing { arrivals } => self.released.extend(arrivals),
            Mark::Naming { number } => self.named_max = *number,
            Mark::Named { number } => self.named_min = *number,
            Mark::Purged { from, to } => self.purged.push((*from, *to)),
            Mark::Copied { through } => self.durable_min = self.durable_min.max(*through),
            Mark::NoRoom | Mark::End { .. } => {}
        }
    }

    /// The last arrival that was delivered through `sequence`.
    pub fn delivered_through(&self, sequence: u64) -> Option<u64> {
        self.delivered.iter().rev().find(|(at, _)| *at <= sequence).map(|(_, arrival)| *arrival)
    }
}

/// Where marks go, and the expectation that follows from them.
pub struct Marks {
    file: File,
    pub expected: Expectation,
}

impl Marks {
    pub fn new(file: File, expected: Expectation) -> Self {
        Self { file, expected }
    }

    /// Says it: one write, one record.
    pub fn say(&mut self, mark: Mark) {
        self.expected.apply(&mark);
        self.file.write_all(&serde_json::to_vec(&mark).unwrap()).unwrap();
    }
}
