//! Records that can never be delivered as they are. Pure.
//!
//! The broker refuses a whole request with one code and names no record in it, so the culprit is found by halving: every
//! half is a transaction of its own. Only a record that was refused twice while it was alone is condemned.

use crate::delivery::encode::DeadReason;
use crate::delivery::sink::{Condemned, Treatment};
use crate::record::{Flags, Incarnation, Sequence};

/// Refusals of a lone record that prove it.
const PROOFS: u32 = 2;

/// Why a record does not even go out: known before the transaction.
pub(crate) fn refuse_beforehand(
    flags: Flags,
    topic_is_legal: bool,
    size: usize,
    size_max: usize,
) -> Option<DeadReason> {
    let reason = |code: &str, text: String| Some(DeadReason { code: code.to_owned(), text });
    if size > size_max {
        return reason("size", format!("{size} bytes as Kafka counts them; outbox.record_bytes_max is {size_max}"));
    }
    if flags.contains(Flags::DEAD) {
        let text =
            format!("above outbox.record_bytes_max when it came; now that is {size_max}, and these are {size} bytes");
        return reason("size", text);
    }
    if !topic_is_legal {
        return reason("topic", "the topic is empty, longer than 249 characters or otherwise illegal".to_owned());
    }
    None
}

/// What was in a transaction that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Whose sequences.
    pub(crate) incarnation: Incarnation,
    /// First sequence.
    pub(crate) first: Sequence,
    /// Last sequence, inclusive.
    pub(crate) last: Sequence,
    /// Items.
    pub(crate) records: usize,
}

/// The search for a culprit.
#[derive(Debug, Default)]
pub(crate) struct Bisect {
    /// Transactions hold at most this many records while the search is on.
    records_max: Option<usize>,
    /// The search ends when this is delivered.
    until: Sequence,
    alone: Option<(Sequence, u32)>,
    /// The culprit that was looked for is out of the way: sizes may grow again.
    found: bool,
    condemned: Vec<Condemned>,
}

impl Bisect {
    /// Most records in the next transaction, if the search is on.
    pub(crate) fn records_max(&self) -> Option<usize> {
        self.records_max
    }

    /// Records that are dead letters now.
    pub(crate) fn condemned(&self) -> &[Condemned] {
        &self.condemned
    }

    /// A transaction was refused for good. Returns the sequence that is condemned by it, if any.
    pub(crate) fn refused(&mut self, span: Span, code: &str, text: &str) -> Option<Sequence> {
        self.until = self.until.max(span.last);
        self.found = false;
        if span.records > 1 {
            self.records_max = Some((span.records / 2).max(1));
            return None;
        }
        self.records_max = Some(1);
        if let Some(condemned) = self.condemned.iter_mut().find(|c| c.sequence == span.last) {
            condemned.treatment = match condemned.treatment {
                Treatment::DeadLetter => Treatment::LocalWithNotice,
                Treatment::LocalWithNotice | Treatment::LocalOnly => Treatment::LocalOnly,
            };
            return Some(span.last);
        }
        let proofs = match self.alone {
            Some((sequence, proofs)) if sequence == span.last => proofs + 1,
            _ => 1,
        };
        self.alone = Some((span.last, proofs));
        if proofs < PROOFS {
            return None;
        }
        self.condemned.push(Condemned {
            incarnation: span.incarnation,
            sequence: span.last,
            reason: DeadReason { code: code.to_owned(), text: text.to_owned() },
            treatment: Treatment::DeadLetter,
        });
        Some(span.last)
    }

    /// Everything through `upto` is delivered.
    pub(crate) fn delivered(&mut self, upto: Sequence) {
        let suspects = self.condemned.len();
        self.condemned.retain(|c| c.sequence > upto);
        self.found |= self.condemned.len() < suspects;
        if upto >= self.until {
            self.records_max = None;
            self.alone = None;
        } else if self.found {
            self.records_max = self.records_max.map(|records| records.saturating_mul(2));
        }
    }
}

#[cfg(test)]
#[path = "poison_tests.rs"]
mod tests;
