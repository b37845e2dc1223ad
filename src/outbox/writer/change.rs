//! Gives up what the owner does not want any more. One command is one step: a bounded part of the work, durable when it is
//! answered.

use std::time::Duration;

use crate::clock;
use crate::outbox::{Cause, Change, ChangeError, Left, Purged, Selection, Step};
use crate::record::SourceId;

use super::super::note::Note;
use super::super::purge::{PURGES_MAX, Purge, REASON};
use super::super::recovery::note;
use super::super::view::Listed;
use super::count::Count;
use super::queue::Work;
use super::{SYNC_STALL, Writer};

/// Generations of one step, if what they hold is known without reading them.
const STEP_GENERATIONS_MAX: usize = 16;
/// Generations of one step that are read to be counted: intake waits for it.
const STEP_READ_MAX: usize = 2;
/// Open notes, at most: each costs some hundred bytes in every snapshot.
const NOTES_MAX: usize = 4096;
const IN_DOUBT: &str = "a transaction whose outcome is open may hold them";

/// First and last sequence, inclusive.
type Range = (u64, u64);

/// What is to be done with one generation.
struct Plan {
    listed: Listed,
    /// Undelivered ranges to give up, of all sources.
    notes: Vec<(u64, u64)>,
    /// Undelivered ranges to give up, of the one source.
    purges: Vec<(u64, u64)>,
    /// Nothing of it is wanted any more, once these are noted.
    goes: bool,
    count: Count,
    /// What is meant, and stays.
    left: Vec<Left>,
    /// What is given up though nobody can read it.
    unread: Vec<Left>,
}

impl Writer {
    /// One step of a purge. Nothing may be under way.
    pub(super) fn purge(&mut self, change: &Change) -> Result<Step<Purged>, ChangeError> {
        debug_assert!(self.flights.is_empty());
        self.shared.progress.phase("purging", SYNC_STALL);
        let selection = &change.selection;
        let source = selection.source.as_deref().map(SourceId::from);
        let from = selection.from.unwrap_or(1).max(1);
        let (to, of_unknown_age) = self.end_of(selection, from);
        let mut purged = Purged { dry_run: change.dry_run, from, to, reached: to, ..Purged::default() };
        let listed = self.within(from, to);
        let Some(hull) = listed.last().map(|last| (from, self.last_of(last).min(to))) else {
            purged.left.extend(of_unknown_age);
            return Ok(Step { report: purged, to, next: None });
        };
        let held = self.claim_range(hull, change.dry_run);
        let mut plans = Vec::new();
        let mut next = None;
        for (at, listed) in listed.iter().enumerate() {
            if at >= STEP_GENERATIONS_MAX
                || plans.iter().filter(|plan: &&Plan| plan.count.was_read).count() >= STEP_READ_MAX
            {
                next = Some(listed.first_sequence.max(from));
                break;
            }
            plans.push(self.plan(listed, (from, to), source.as_ref(), held));
        }
        let done = if change.dry_run { Ok(()) } else { self.carry_out(&plans, source.as_ref()) };
        self.shared.publish(|view| view.purging = None);
        done?;
        for plan in plans {
            plan.count.tell(&mut purged);
            purged.generations += u64::from(plan.goes);
            purged.freed_bytes += if plan.goes { plan.listed.disk_bytes } else { 0 };
            purged.left.extend(plan.left);
            purged.unread.extend(plan.unread);
        }
        purged.left.extend(of_unknown_age);
        purged.reached = next.map_or(to, |next| next - 1);
        if purged.readings > 0 && !change.dry_run {
            let of = selection.source.as_ref().map_or(String::new(), |source| format!(" of source {source}"));
            log::info!(
                "purged on request: {} readings{of} between {from} and {}; gap records will say so",
                purged.readings,
                purged.reached
            );
        }
        Ok(Step { report: purged, to, next })
    }

    /// Last sequence of the selection, and what follows if nobody can tell whether it is as old as is asked for.
    fn end_of(&self, selection: &Selection, from: u64) -> (u64, Option<Left>) {
        let durable = self.tail.durable_end_sequence.saturating_sub(1);
        let to = selection.to.map_or(durable, |to| to.min(durable));
        let Some(age) = selection.older_than_ms else { return (to, None) };
        let (through, unknown) = self.older_through(Duration::from_millis(age));
        let unknown = unknown.map(|left| Left { from: left.from.max(from), to: left.to.min(to), ..left });
        (to.min(through), unknown.filter(|left| left.from <= left.to))
    }

    /// Generations with readings in this range, oldest first.
    pub(super) fn within(&self, from: u64, to: u64) -> Vec<Listed> {
        let view = self.shared.view();
        let holds = |listed: &&Listed| {
            let first = listed.first_sequence;
            first <= to && self.last_of(listed) >= from.max(first)
        };
        view.generations.iter().filter(holds).cloned().collect()
    }

    /// Last durable sequence of a generation; below its first if it holds none.
    pub(super) fn last_of(&self, listed: &Listed) -> u64 {
        listed.end_sequence().min(self.tail.durable_end_sequence).saturating_sub(1)
    }

    /// From now on nobody begins to read in this range. What delivery holds already is given back: its end, inclusive.
    fn claim_range(&self, hull: (u64, u64), dry_run: bool) -> Option<(u64, u64)> {
        let mut view = self.shared.view();
        view.purging = (!dry_run).then_some(hull);
        view.protected
    }

    fn plan(&self, listed: &Listed, selected: (u64, u64), source: Option<&SourceId>, held: Option<(u64, u64)>) -> Plan {
        let (first, last) = (listed.first_sequence, self.last_of(listed));
        let (committed, is_read, newest) = {
            let view = self.shared.view();
            let newest = view.generations.back().map(|newest| newest.id);
            (view.committed, view.marks.holds(listed.id.number), newest)
        };
        let undelivered = (first.max(selected.0).max(committed + 1), last.min(selected.1));
        let (free, in_doubt) = split(undelivered.0, undelivered.1, held);
        let mut left: Vec<_> = in_doubt.map(in_doubt_left).into_iter().collect();
        let of_one = source.is_some_and(|source| !listed.holds_only(source));
        let mut count = self.count_readings(listed, &free, source);
        let mut unread = std::mem::take(&mut count.unread);
        let (mut notes, mut purges) = (Vec::new(), Vec::new());
        if of_one {
            // Whose they are nobody knows: they stay.
            if count.readings > 0 {
                purges = without(&free, &unread);
            }
            left.append(&mut unread);
        } else {
            notes = free.iter().flat_map(|(from, to)| self.memory.notes.uncovered(*from, *to)).collect();
            count.add_unread(&unread, source);
        }
        let closed = listed.closed.is_some() && newest != Some(listed.id) && !is_read;
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

    /// First the notes, durable; then what they cover whole is removed.
    fn carry_out(&mut self, plans: &[Plan], source: Option<&SourceId>) -> Result<(), ChangeError> {
        let notes: Vec<_> = plans.iter().flat_map(|plan| self.notes_of(plan)).collect();
        let purges: Vec<_> = source.into_iter().flat_map(|source| self.purges_of(plans, source)).collect();
        if !notes.is_empty() && self.memory.notes.iter().count() + notes.len() > NOTES_MAX {
            return Err(ChangeError::Refused(format!(
                "more than {NOTES_MAX} ranges wait for their gap records already: purge one wide range, or wait until they \
                 are delivered"
            )));
        }
        let mut open = self.memory.purges.clone();
        purges.iter().for_each(|purge| open.add(purge.clone()));
        if !purges.is_empty() && open.len() > PURGES_MAX {
            return Err(ChangeError::Refused(format!(
                "{PURGES_MAX} purges of single sources are remembered until the readings among them are gone: purge a range \
                 of all sources, or wait until they are delivered"
            )));
        }
        let works = notes.len() + purges.len();
        // The last one pushed stands first.
        purges.into_iter().rev().for_each(|purge| self.queue.push_front(Work::Purge(Box::new(purge))));
        notes.into_iter().rev().for_each(|note| self.queue.push_front(Work::Note(Box::new(note))));
        if works > 0 && !self.write_front_notes(works) {
            let state = self.shared.view().state.clone();
            return Err(ChangeError::Refused(format!(
                "the outbox cannot be written now ({state}): nothing more is purged"
            )));
        }
        self.account(plans);
        let gone: Vec<_> = plans.iter().filter(|plan| plan.goes).map(|plan| plan.listed.id).collect();
        // What cannot be removed now is by the next start: its note is durable.
        self.remove_delivered(&gone);
        Ok(())
    }

    fn notes_of(&self, plan: &Plan) -> Vec<Note> {
        let one = |range: &(u64, u64)| {
            let incarnation = self.memory.segment_of(range.0).unwrap_or(&self.tail.segment).incarnation;
            let mut note = note(*range, incarnation, REASON, &self.tail.segment);
            // Counts that are too low say less than none.
            if plan.notes.len() == 1 && plan.unread.is_empty() {
                note.bytes = plan.count.bytes;
                note.sources = plan.count.sources.iter().map(|(name, count)| (name.as_str().into(), *count)).collect();
            }
            note
        };
        plan.notes.iter().map(one).collect()
    }

    fn purges_of(&self, plans: &[Plan], source: &SourceId) -> Vec<Purge> {
        let one = |(from, to): &(u64, u64)| Purge {
            source: source.clone(),
            from: *from,
            to: *to,
            segment: self.tail.segment.nonce,
            boot_id: self.tail.segment.boot_id.clone(),
            noted: clock::now(),
        };
        plans.iter().flat_map(|plan| &plan.purges).map(one).collect()
    }

    fn account(&mut self, plans: &[Plan]) {
        let readings: u64 = plans.iter().map(|plan| plan.count.readings).sum();
        if readings == 0 {
            return;
        }
        self.dropped += readings;
        self.shared.metrics.dropped(REASON).inc_by(readings);
        self.shared.view().dropped = self.dropped + self.memory.refused_total();
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
