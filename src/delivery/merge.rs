//! Many small holes with one reason become one gap record with ranges.
//!
//! A source that was purged leaves a hole at each of its readings, with readings of others between. One gap record each
//! would send as many records as were purged; a merged one names up to [`RANGES_MAX`] ranges. Its own sequence is the last
//! one it names, so every sequence of a transaction is still accounted for once.

use crate::record::{Hole, Item, SourceId};

/// Ranges of one gap record, at most: some 20 KiB of JSON, which every topic takes.
const RANGES_MAX: usize = 1000;
/// Sources that a gap record counts one by one, at most; the others are only in `bytes`.
const SOURCES_MAX: usize = 64;
/// The only reason that comes in pieces. Others are told as they were noted: parts of one note share its counts.
const MERGED_REASON: &str = "purge";

/// Merges holes of one batch: consecutive items of one incarnation. A merged hole stands where the last of its parts stood.
pub(super) fn merge(items: Vec<Item>) -> Vec<Item> {
    if items.iter().filter(|item| may_merge(item)).count() < 2 {
        return items;
    }
    let mut merged = Vec::with_capacity(items.len());
    let mut open: Option<Hole> = None;
    // From the end: a hole is put out where its last part stands, once all earlier parts are in it.
    for item in items.into_iter().rev() {
        match item {
            Item::Hole(hole) if hole.reason == MERGED_REASON => match &mut open {
                Some(later) if later.ranges.len() < RANGES_MAX && later.incarnation == hole.incarnation => {
                    put_before(later, hole);
                }
                _ => {
                    close(&mut merged, open.take());
                    merged.push(None);
                    open = Some(Hole { ranges: vec![(hole.from, hole.to)], ..hole });
                }
            },
            item => merged.push(Some(item)),
        }
    }
    close(&mut merged, open);
    merged.reverse();
    merged.into_iter().flatten().collect()
}

fn may_merge(item: &Item) -> bool {
    matches!(item, Item::Hole(hole) if hole.reason == MERGED_REASON)
}

/// Puts a finished hole into the place that was kept for it.
fn close(merged: &mut [Option<Item>], hole: Option<Hole>) {
    let Some(mut hole) = hole else { return };
    match hole.ranges.len() {
        1 => hole.ranges.clear(),
        _ => hole.ranges.reverse(),
    }
    let place = merged.iter_mut().rev().find(|place| place.is_none());
    *place.expect("a place was kept when the hole was begun") = Some(Item::Hole(hole));
}

/// `later.ranges` stand in descending order while it grows.
fn put_before(later: &mut Hole, hole: Hole) {
    match later.ranges.last_mut() {
        Some(first) if hole.to.next() == first.0 => first.0 = hole.from,
        _ => later.ranges.push((hole.from, hole.to)),
    }
    later.from = hole.from;
    later.bytes += hole.bytes;
    for (source, count) in hole.sources {
        count_in(&mut later.sources, source, count);
    }
}

fn count_in(sources: &mut Vec<(SourceId, u64)>, source: SourceId, count: u64) {
    match sources.iter().position(|(known, _)| *known == source) {
        Some(at) => sources[at].1 += count,
        None if sources.len() < SOURCES_MAX => sources.push((source, count)),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Incarnation, Nonce, ReceiptTime, Sequence};
    use proptest::prelude::*;

    fn hole(from: u64, to: u64, reason: &'static str) -> Item {
        Item::Hole(Hole {
            from: Sequence(from),
            to: Sequence(to),
            ranges: Vec::new(),
            incarnation: Incarnation([1; 16]),
            segment: Nonce::default(),
            boot_id: "".into(),
            noted: ReceiptTime::default(),
            reason: reason.into(),
            bytes: 10 * (to - from + 1),
            sources: vec![("plant".into(), to - from + 1)],
            previous: None,
        })
    }

    fn named(item: &Item) -> Vec<(u64, u64)> {
        let Item::Hole(hole) = item else { panic!("{item:?}") };
        let ranges = hole.ranges.iter().map(|(from, to)| (from.0, to.0)).collect::<Vec<_>>();
        if ranges.is_empty() { vec![(hole.from.0, hole.to.0)] } else { ranges }
    }

    #[test]
    fn others_stand_where_they_stood_and_the_merged_one_where_its_last_part_was() {
        let items = vec![hole(1, 1, "purge"), hole(2, 3, "damage"), hole(4, 5, "purge"), hole(6, 6, "purge")];
        let merged = merge([items, vec![hole(7, 7, "damage")]].concat());
        assert_eq!(merged.iter().map(|item| item.last().0).collect::<Vec<_>>(), [3, 6, 7]);
        assert_eq!(named(&merged[1]), [(1, 1), (4, 6)]);
        let Item::Hole(hole) = &merged[1] else { panic!() };
        assert_eq!((hole.from.0, hole.bytes, &hole.sources[..]), (1, 40, &[("plant".into(), 4)][..]));
    }

    proptest! {
        #[test]
        fn every_sequence_stays_named_once_and_records_ascend(kinds in prop::collection::vec(0u8..4, 0..40), copies in 1usize..80) {
            let mut items = Vec::new();
            let mut next = 1;
            for kind in kinds.iter().cycle().take(kinds.len() * copies) {
                let to = next + u64::from(*kind);
                items.push(hole(next, to, if kind % 2 == 0 { "purge" } else { "damage" }));
                next = to + 1;
            }
            let bytes = |items: &[Item]| -> u64 { items.iter().map(|i| if let Item::Hole(h) = i { h.bytes } else { 0 }).sum() };
            let before = bytes(&items);
            let purged = items.iter().filter(|item| may_merge(item)).count();
            let merged = merge(items);
            prop_assert_eq!(bytes(&merged), before);
            prop_assert!(merged.windows(2).all(|pair| pair[0].last() < pair[1].last()));
            let mut all: Vec<_> = merged.iter().flat_map(named).collect();
            all.sort_unstable();
            let mut expected = 1;
            for (from, to) in all {
                prop_assert_eq!(from, expected);
                expected = to + 1;
            }
            prop_assert_eq!(expected, next);
            let records = merged.iter().filter(|item| may_merge(item)).count();
            prop_assert!(records <= purged.div_ceil(RANGES_MAX), "{} records for {} holes", records, purged);
            prop_assert!(merged.iter().all(|item| named(item).len() <= RANGES_MAX));
        }
    }
}
