//! After a new client is the live one: what the ledger says, whether we are who it speaks of, and what is visible beyond it.

use super::{Driver, TRANSACTION_SEQUENCES_MAX};
use crate::delivery::feed::Feed;
use crate::delivery::ledger::{Decision, Facts, LedgerRecord, Resume, decide};
use crate::delivery::sink::{Doubt, Sink, SinkError};
use crate::delivery::visible::Visible;
use crate::outbox::Budget;
use crate::record::{Incarnation, Item, Nonce, Sequence};

impl<S: Sink, F: Feed> Driver<S, F> {
    /// Ledger, identity, tails. `Some`: do not deliver, and why.
    pub(super) fn recover(&mut self) -> Result<Option<String>, SinkError> {
        let recovered = self.sink.recover()?;
        let identity = self.feed.identity();
        let decision = decide(&Facts {
            identity: &identity,
            positions: self.feed.positions(),
            cluster_id: recovered.cluster_id.as_deref(),
            ledger: recovered.ledger.as_ref().map(|(record, _)| record),
            unclean_here: self.machine.unclean(),
            on_cluster_change: self.timing.on_cluster_change,
        });
        let resume = match decision {
            Decision::Hold(alarm) => return Ok(Some(alarm)),
            Decision::Resume(resume) => resume,
        };
        if let Some((record, _)) = &recovered.ledger {
            if let Some(alarm) = self.numbers_taken_twice(record, &identity.known)? {
                return Ok(Some(alarm));
            }
        }
        let visible = if resume.in_doubt { self.read_tails(&resume, &identity.known) } else { Ok(Visible::default()) };
        let visible = match visible {
            Ok(visible) => visible,
            Err(error) => {
                self.protect_nothing();
                return Err(error);
            }
        };
        for change in &resume.changes {
            self.change_identity(change.clone())?;
        }
        if let Some((record, committed)) = recovered.ledger {
            self.ledger_nonce = record.nonce;
            self.previous_upto = Some(record.upto);
            if resume.after == record.upto && resume.introduce.is_none() && identity.known.contains(&record.incarnation)
            {
                self.feed.trim_through(committed);
            }
        }
        // Not before the outbox knows what is delivered: else a purge might give that up.
        self.protect_nothing();
        self.report.set_alarm("identity", resume.alarm.clone());
        self.position = resume.after;
        self.visible = visible;
        self.introduce = resume.introduce;
        self.recovered = true;
        log::info!("delivery goes on after sequence {}", self.position);
        Ok(None)
    }

    /// A log that lost its end and then grew past it again has other readings under the numbers that Kafka has. The
    /// ledger names the segment (process start) of its last reading: ours must be of the same.
    fn numbers_taken_twice(
        &mut self,
        ledger: &LedgerRecord,
        ours: &[Incarnation],
    ) -> Result<Option<String>, SinkError> {
        let positions = self.feed.positions();
        if !ours.contains(&ledger.incarnation) || ledger.upto <= positions.committed || ledger.upto > positions.durable
        {
            return Ok(None);
        }
        let one = Budget { records_max: 1, bytes_max: 1 };
        let before = Sequence(ledger.upto.0 - 1);
        let batch = self.feed.batch_after(before, one).map_err(|error| SinkError::Blocked(error.to_string()))?;
        let Some(Item::Reading(stored)) = batch.items.first() else { return Ok(None) };
        // A daemon that started very often has merged its segments: then nobody knows.
        let same = stored.segment == ledger.segment || stored.segment == Nonce::default();
        if stored.incarnation != ledger.incarnation || same {
            return Ok(None);
        }
        Ok(Some(format!(
            "fork: reading {} was delivered by one process start and lies here under another: this outbox was rolled back (an \
             old image, a snapshot, a disk that lost writes) and has gone on since. Readings are kept; its numbers through \
             {} are taken by others",
            ledger.upto, ledger.upto
        )))
    }

    fn read_tails(&mut self, resume: &Resume, ours: &[Incarnation]) -> Result<Visible, SinkError> {
        let mut doubt = if resume.all_partitions { Doubt::SinceHints } else { Doubt::Suspects };
        let last = Sequence(resume.after.0.saturating_add(TRANSACTION_SEQUENCES_MAX));
        // From what the outbox counts as delivered: until it learns more, it could give up what Kafka has.
        self.feed.protect(self.feed.positions().committed.min(resume.after).next(), last);
        let mut after = resume.after;
        while after < last {
            self.progress.beat();
            let limits = self.machine.limits();
            let budget = Budget { records_max: limits.records.max(1), bytes_max: limits.bytes };
            let batch = self.feed.batch_after(after, budget).map_err(|error| SinkError::Blocked(error.to_string()))?;
            let Some(item) = batch.items.last() else { break };
            after = item.last();
            if batch.items.iter().any(|item| matches!(item, Item::Hole(_))) {
                // What was dropped may have been sent before: nothing tells any more to which partition.
                doubt = Doubt::SinceHints;
            }
            self.sink.suspect(&batch.items)?;
        }
        let visible = self.sink.tails(doubt, ours, resume.after)?;
        if !visible.is_empty() {
            log::warn!(
                "{} records beyond the ledger's position {} are visible already (a late end of transaction); they are not \
                 sent again",
                visible.len(),
                resume.after
            );
            self.metrics.already_visible.inc_by(visible.len());
        }
        Ok(visible)
    }
}
