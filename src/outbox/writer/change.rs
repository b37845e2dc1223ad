//! Gives up what the owner does not want any more. One command is one step: a bounded part of the work, durable when it is
//! answered.

use crate::clock;
use crate::outbox::{Change, ChangeError, Purged, Step};
use crate::record::SourceId;

use super::super::note::Note;
use super::super::purge::{PURGES_MAX, Purge, REASON};
use super::super::reader::live::Live;
use super::super::reader::walk::Walk;
use super::super::recovery::note;
use super::super::survey::{Hold, Plan, Plans, Survey};
use super::queue::Work;
use super::{SYNC_STALL, Writer};

impl Writer {
    /// One step of a purge. Nothing may be under way.
    pub(super) fn purge(&mut self, change: &Change) -> Result<Step<Purged>, ChangeError> {
        debug_assert!(self.flights.is_empty());
        self.shared.progress.phase("purging", SYNC_STALL);
        let source = change.selection.source.as_deref().map(SourceId::from);
        // Its mark and what it has open are gone before anything is removed.
        let Plans { plans, report, next } = {
            let mut walk = Walk::new(Live::new(self.shared.clone()));
            self.survey().purge(&mut walk, change, |hull| self.claim_range(hull, change.dry_run))
        };
        let done = if change.dry_run { Ok(()) } else { self.carry_out(&plans, source.as_ref()) };
        self.shared.publish(|view| view.purging = None);
        done?;
        if report.readings > 0 && !change.dry_run {
            let of = source.map_or(String::new(), |source| format!(" of source {source}"));
            let (readings, from, reached) = (report.readings, report.from, report.reached);
            log::info!(
                "purged on request: {readings} readings{of} between {from} and {reached}; gap records will say so"
            );
        }
        let to = report.to;
        Ok(Step { report, to, next })
    }

    /// The log as it stands now.
    pub(super) fn survey(&self) -> Survey {
        let durable = self.tail.durable_end_sequence.saturating_sub(1);
        let state = self.shared.state();
        Survey::of(&self.shared.view(), &state.state, &self.tail.segment.boot_id, durable)
    }

    /// From now on nobody begins to read in this range. What delivery holds of it already is given back.
    fn claim_range(&self, hull: (u64, u64), dry_run: bool) -> Hold {
        let mut view = self.shared.view();
        view.purging = (!dry_run).then_some(hull);
        Hold::of(&view)
    }

    /// First the notes, durable; then what they cover whole is removed.
    fn carry_out(&mut self, plans: &[Plan], source: Option<&SourceId>) -> Result<(), ChangeError> {
        let notes: Vec<_> = plans.iter().flat_map(|plan| self.notes_of(plan)).collect();
        let purges: Vec<_> = source.into_iter().flat_map(|source| self.purges_of(plans, source)).collect();
        let notes_bytes: u64 = self.memory.notes.iter().chain(&notes).map(Note::encoded_bytes).sum();
        if !notes.is_empty() && notes_bytes > self.sizes.notes_bytes_max() {
            return Err(ChangeError::Refused(format!(
                "what waits to be told by gap records would take more than {} bytes: purge one wide range, or wait until \
                 they are delivered",
                self.sizes.notes_bytes_max()
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
