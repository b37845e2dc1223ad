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
    if flags.contains(Flags::DEAD) || size > size_max {
        return reason("size", format!("{size} bytes as Kafka counts them; outbox.record_bytes_max is {size_max}"));
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INC: Incarnation = Incarnation([1; 16]);

    /// Drives a drain of `total` records whose culprits are known, returns what was condemned and how many transactions
    /// it took.
    fn drive(total: u64, batch: usize, culprits: &[u64], dead_letters_pass: bool) -> (Vec<(u64, Treatment)>, usize) {
        let (mut bisect, mut upto, mut ended, mut transactions) = (Bisect::default(), 0, vec![], 0);
        while upto < total {
            transactions += 1;
            assert!(transactions < 1_000, "no progress at {upto}");
            let records = bisect.records_max().unwrap_or(batch).min(batch).min((total - upto) as usize);
            let span =
                Span { incarnation: INC, first: Sequence(upto + 1), last: Sequence(upto + records as u64), records };
            let treatment = |n: u64| bisect.condemned().iter().find(|c| c.sequence.0 == n).map(|c| c.treatment);
            let refused = (span.first.0..=span.last.0).any(|n| {
                culprits.contains(&n)
                    && match treatment(n) {
                        None => true,
                        Some(Treatment::LocalOnly) => false,
                        Some(_) => !dead_letters_pass,
                    }
            });
            if refused {
                bisect.refused(span, "INVALID_RECORD", "no");
            } else {
                ended.extend((span.first.0..=span.last.0).filter_map(|n| treatment(n).map(|t| (n, t))));
                upto = span.last.0;
                bisect.delivered(span.last);
            }
        }
        assert!(bisect.condemned().is_empty() && bisect.records_max().is_none());
        (ended, transactions)
    }

    #[test]
    fn one_culprit_among_many_is_found_in_few_transactions() {
        let (ended, transactions) = drive(1024, 1024, &[700], true);
        assert_eq!(ended, [(700, Treatment::DeadLetter)]);
        assert!(transactions < 40, "{transactions}");
        let (ended, transactions) = drive(5000, 5000, &[1, 2500], true);
        assert_eq!(ended.len(), 2);
        assert!(transactions < 80, "{transactions}: the rest does not go one by one");
    }

    #[test]
    fn a_dead_letter_that_is_refused_too_stays_on_the_gateway() {
        assert_eq!(drive(10, 4, &[3], false).0, [(3, Treatment::LocalOnly)]);
    }

    #[test]
    fn one_refusal_alone_is_no_proof() {
        let mut bisect = Bisect::default();
        let span = Span { incarnation: INC, first: Sequence(5), last: Sequence(5), records: 1 };
        assert_eq!(bisect.refused(span, "X", ""), None);
        bisect.delivered(Sequence(5));
        assert_eq!(bisect.refused(span, "X", ""), None, "a delivery in between clears the suspicion");
        assert_eq!(bisect.refused(span, "X", ""), Some(Sequence(5)));
    }

    #[test]
    fn refused_beforehand() {
        assert_eq!(refuse_beforehand(Flags::default(), true, 10, 10), None);
        assert_eq!(refuse_beforehand(Flags::default(), true, 11, 10).unwrap().code, "size");
        assert_eq!(refuse_beforehand(Flags::DEAD, true, 1, 10).unwrap().code, "size");
        assert_eq!(refuse_beforehand(Flags::default(), false, 1, 10).unwrap().code, "topic");
    }

    proptest! {
        #[test]
        fn exactly_the_culprits_are_condemned(
            total in 1u64..200, batch in 1usize..80, culprits in prop::collection::btree_set(1u64..200, 0..6),
        ) {
            let culprits: Vec<u64> = culprits.into_iter().filter(|n| *n <= total).collect();
            let (ended, _) = drive(total, batch, &culprits, true);
            prop_assert_eq!(ended.iter().map(|(n, _)| *n).collect::<Vec<_>>(), culprits);
        }
    }
}
