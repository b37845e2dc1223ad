//! What a purge gives up, generation by generation: what is noted, what is named by its source, what is removed whole, what
//! stays and why.

use std::time::Duration;

use crate::outbox::{Cause, Change, Left, Purged, Selection};
use crate::record::SourceId;

use super::super::reader::walk::{Shelf, Walk};
use super::super::view::Listed;
use super::{Count, Hold, Range, Survey};

/// Generations of one step, if what they hold is known without reading them.
const STEP_GENERATIONS_MAX: usize = 16;
/// Generations of one step that are read to be counted: intake waits for it.
const STEP_READ_MAX: usize = 2;
const IN_DOUBT: &str = "a transaction whose outcome is open may hold them";

/// What is to be done with one generation.
#[derive(Debug)]
pub(in crate::outbox) struct Plan {
    pub(in crate::outbox) listed: Listed,
    /// Undelivered ranges to give up, of all sources.
    pub(in crate::outbox) notes: Vec<(u64, u64)>,
    /// Undelivered ranges to give up, of the one source.
    pub(in crate::outbox) purges: Vec<(u64, u64)>,
    /// Nothing of it is wanted any more, once these are noted.
    pub(in crate::outbox) goes: bool,
    pub(in crate::outbox) count: Count,
    /// What is meant, and stays.
    left: Vec<Left>,
    /// What is given up though nobody can read it.
    pub(in crate::outbox) unread: Vec<Left>,
}

/// One step of a purge.
#[derive(Debug)]
pub(in crate::outbox) struct Plans {
    pub(in crate::outbox) plans: Vec<Plan>,
    /// What it does when it is carried out.
    pub(in crate::outbox) report: Purged,
    /// Where the next step begins.
    pub(in crate::outbox) next: Option<u64>,
}

impl Survey {
    /// Plans one step. `claim` is told first and last sequence it may touch, and says what of them is held from then on.
    pub(in crate::outbox) fn purge<S: Shelf>(
        &mut self,
        walk: &mut Walk<S>,
        change: &Change,
        claim: impl FnOnce(Range) -> Hold,
    ) -> Plans {
        let selection = &change.selection;
        let source = selection.source.as_deref().map(SourceId::from);
        let from = selection.from.unwrap_or(1).max(1);
        let (to, of_unknown_age) = self.end_of(walk, selection, from);
        let mut report = Purged { dry_run: change.dry_run, from, to, reached: to, ..Purged::default() };
        let listed = self.within(from, to);
        let (mut plans, mut next) = (Vec::new(), None);
        if let Some(last) = listed.last() {
            self.hold = claim((from, self.last_of(last).min(to)));
        }
        for (at, listed) in listed.iter().enumerate() {
            let read = plans.iter().filter(|plan: &&Plan| plan.count.was_read).count();
            if at >= STEP_GENERATIONS_MAX || read >= STEP_READ_MAX {
                next = Some(listed.first_sequence.max(from));
                break;
            }
            let plan = self.plan(walk, listed, (from, to), source.as_ref());
            plan.tell(&mut report);
            plans.push(plan);
        }
        report.left.extend(of_unknown_age);
        report.reached = next.map_or(to, |next| next - 1);
        Plans { plans, report, next }
    }

    /// Last sequence of the selection, and what follows if nobody can tell whether it is as old as is asked for.
    fn end_of<S: Shelf>(&self, walk: &mut Walk<S>, selection: &Selection, from: u64) -> (u64, Option<Left>) {
        let to = selection.to.map_or(self.durable, |to| to.min(self.durable));
        let Some(age) = selection.older_than_ms else { return (to, None) };
        let (through, unknown) = self.older_through(walk, Duration::from_millis(age));
        let unknown = unknown.map(|left| Left { from: left.from.max(from), to: left.to.min(to), ..left });
        (to.min(through), unknown.filter(|left| left.from <= left.to))
    }

    fn plan<S: Shelf>(&self, walk: &mut Walk<S>, listed: &Listed, selected: Range, source: Option<&SourceId>) -> Plan {
        let (first, last) = (listed.first_sequence, self.last_of(listed));
        let newest = self.generations.last().map(|newest| newest.id);
        let Hold { committed, protected, read } = &self.hold;
        let undelivered = (first.max(selected.0).max(*committed + 1), last.min(selected.1));
        let (free, in_doubt) = split(undelivered.0, undelivered.1, *protected);
        let mut left: Vec<_> = in_doubt.map(in_doubt_left).into_iter().collect();
        let of_one = source.is_some_and(|source| !listed.holds_only(source));
        let mut count = self.count_readings(walk, listed, &free, source);
        let mut unread = std::mem::take(&mut count.unread);
        let (mut notes, mut purges) = (Vec::new(), Vec::new());
        if of_one {
            // Whose they are nobody knows: they stay.
            if count.readings > 0 {
                purges = without(&free, &unread);
            }
            left.append(&mut unread);
        } else {
            notes = free.iter().flat_map(|(from, to)| self.notes.uncovered(*from, *to)).collect();
            count.add_unread(&unread, source);
        }
        let closed = listed.closed.is_some() && newest != Some(listed.id) && !read.contains(&listed.id.number);
        Plan {
            listed: listed.clone(),
            goes: closed && !of_one && in_doubt.is_none() && selected.0 <= first && last <= selected.1,
            notes,
            purges,
            count,
            left,
            unread,
        }
    }
}

impl Plan {
    /// Adds what it does to a report.
    fn tell(&self, report: &mut Purged) {
        self.count.tell(report);
        report.generations += u64::from(self.goes);
        report.freed_bytes += if self.goes { self.listed.disk_bytes } else { 0 };
        report.left.extend(self.left.iter().cloned());
        report.unread.extend(self.unread.iter().cloned());
    }
}

fn in_doubt_left((from, to): Range) -> Left {
    Left { from, to, cause: Cause::InDoubt, why: IN_DOUBT.to_owned() }
}

/// The parts of a range that are free, and the part that is held.
fn split(from: u64, to: u64, held: Option<Range>) -> (Vec<Range>, Option<Range>) {
    if from > to {
        return (Vec::new(), None);
    }
    let Some((first, last)) = held.filter(|(first, last)| *first <= to && from <= *last) else {
        return (vec![(from, to)], None);
    };
    let mut free = Vec::new();
    if from < first {
        free.push((from, first - 1));
    }
    if last < to {
        free.push((last + 1, to));
    }
    (free, Some((first.max(from), last.min(to))))
}

/// What is left of some ranges without others.
fn without(ranges: &[Range], others: &[Left]) -> Vec<Range> {
    let cut = |ranges: Vec<Range>, other: &Left| {
        ranges.into_iter().flat_map(|(from, to)| split(from, to, Some((other.from, other.to))).0).collect()
    };
    others.iter().fold(ranges.to_vec(), cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_cut_out() {
        assert_eq!(split(1, 10, None), (vec![(1, 10)], None));
        assert_eq!(split(1, 10, Some((11, 20))), (vec![(1, 10)], None));
        assert_eq!(split(1, 10, Some((1, 4))), (vec![(5, 10)], Some((1, 4))));
        assert_eq!(split(1, 10, Some((3, 4))), (vec![(1, 2), (5, 10)], Some((3, 4))));
        assert_eq!(split(1, 10, Some((0, 50))), (vec![], Some((1, 10))));
        let unread = |from, to| Left { from, to, cause: Cause::Unreadable, why: String::new() };
        assert_eq!(without(&[(1, 10), (20, 30)], &[unread(5, 6), unread(9, 22)]), [(1, 4), (7, 8), (23, 30)]);
        assert_eq!(without(&[(1, 10)], &[unread(1, 10)]), []);
    }

    #[test]
    fn of_an_empty_range_nothing_is_free_and_nothing_held() {
        for held in [None, Some((3, 20)), Some((5, 10)), Some((11, 11))] {
            assert_eq!(split(11, 10, held), (vec![], None), "{held:?}");
        }
        assert_eq!(split(10, 5, Some((3, 20))), (vec![], None));
    }
}
