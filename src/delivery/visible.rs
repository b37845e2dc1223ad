//! Which sequences a consumer can already see, beyond the ledger's position: found in the tails of the partitions, by
//! incarnation, as merged ranges.

use std::collections::{BTreeMap, HashMap};

use crate::record::{Hole, Incarnation, Item, Sequence};

/// Ranges of sequences per incarnation. Grows with the number of ranges, not of sequences.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Visible {
    ranges: HashMap<Incarnation, BTreeMap<u64, u64>>,
}

impl Visible {
    /// Adds a range, inclusive.
    pub(crate) fn insert(&mut self, incarnation: Incarnation, from: Sequence, to: Sequence) {
        let ranges = self.ranges.entry(incarnation).or_default();
        let (mut from, mut to) = (from.0, to.0);
        // Swallow every range that touches this one; the last that starts at or below `to + 1` is looked at first.
        while let Some((&start, &end)) = ranges.range(..=to.saturating_add(1)).next_back() {
            if end.saturating_add(1) < from {
                break;
            }
            ranges.remove(&start);
            from = from.min(start);
            to = to.max(end);
        }
        ranges.insert(from, to);
    }

    /// Whether this sequence is visible.
    pub(crate) fn contains(&self, incarnation: Incarnation, sequence: Sequence) -> bool {
        self.ranges
            .get(&incarnation)
            .and_then(|ranges| ranges.range(..=sequence.0).next_back())
            .is_some_and(|(_, end)| *end >= sequence.0)
    }

    /// How many sequences are in it.
    pub(crate) fn len(&self) -> u64 {
        self.ranges.values().flatten().map(|(from, to)| to - from + 1).sum()
    }

    /// Whether it is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many separate ranges it takes: the measure of its memory.
    pub(crate) fn range_count(&self) -> usize {
        self.ranges.values().map(BTreeMap::len).sum()
    }

    /// Forgets what lies at or below `upto`: the ledger covers it.
    pub(crate) fn forget_through(&mut self, incarnation: Incarnation, upto: Sequence) {
        if let Some(ranges) = self.ranges.get_mut(&incarnation) {
            ranges.retain(|_, end| *end > upto.0);
            if ranges.is_empty() {
                self.ranges.remove(&incarnation);
            }
        }
    }

    /// Takes out of `items` what is visible. A hole is cut down to the parts that are not.
    pub(crate) fn subtract(&self, items: Vec<Item>) -> Vec<Item> {
        let mut left = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Item::Reading(stored) if self.contains(stored.incarnation, stored.sequence) => {}
                Item::Reading(_) => left.push(item),
                Item::Hole(hole) => left.extend(self.subtract_hole(hole).into_iter().map(Item::Hole)),
            }
        }
        left
    }

    fn subtract_hole(&self, hole: Hole) -> Vec<Hole> {
        let Some(ranges) = self.ranges.get(&hole.incarnation) else { return vec![hole] };
        let mut parts = Vec::new();
        let mut next = hole.from.0;
        let before = ranges.range(..hole.from.0).next_back().filter(|(_, end)| **end >= hole.from.0);
        for (start, end) in before.into_iter().chain(ranges.range(hole.from.0..=hole.to.0)) {
            if *start > next {
                parts.push(Hole { from: Sequence(next), to: Sequence(start - 1), ..hole.clone() });
            }
            next = end.saturating_add(1);
        }
        if next <= hole.to.0 {
            parts.push(Hole { from: Sequence(next), ..hole });
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Nonce, ReceiptTime};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const INC: Incarnation = Incarnation([1; 16]);

    fn hole(from: u64, to: u64) -> Hole {
        Hole {
            from: Sequence(from),
            to: Sequence(to),
            ranges: Vec::new(),
            incarnation: INC,
            segment: Nonce::default(),
            boot_id: "".into(),
            noted: ReceiptTime::default(),
            reason: "drop_oldest".into(),
            bytes: 0,
            sources: vec![],
            previous: None,
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(ranges in prop::collection::vec((0u64..60, 0u64..8), 0..20), from in 0u64..60, length in 0u64..30, upto in 0u64..60) {
            let mut visible = Visible::default();
            let mut set = BTreeSet::new();
            for (from, length) in ranges {
                visible.insert(INC, Sequence(from), Sequence(from + length));
                set.extend(from..=from + length);
            }
            prop_assert_eq!(visible.len(), set.len() as u64);
            for n in 0..80 {
                prop_assert_eq!(visible.contains(INC, Sequence(n)), set.contains(&n));
                prop_assert!(!visible.contains(Incarnation([2; 16]), Sequence(n)));
            }
            let left: BTreeSet<u64> = visible
                .subtract(vec![Item::Hole(hole(from, from + length))])
                .iter()
                .flat_map(|item| item.first().0..=item.last().0)
                .collect();
            let expected: BTreeSet<u64> = (from..=from + length).filter(|n| !set.contains(n)).collect();
            prop_assert_eq!(left, expected);
            visible.forget_through(INC, Sequence(upto));
            for n in upto + 1..80 {
                prop_assert_eq!(visible.contains(INC, Sequence(n)), set.contains(&n));
            }
        }
    }
}
