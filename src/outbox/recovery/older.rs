//! Closed generations: by their summaries, or by reading them where those are lost; and which one goes on.

use std::sync::Arc;

use crate::outbox::OpenError;

use super::super::directory::{Found, GenerationId};
use super::super::generation::Opening;
use super::super::position::Position;
use super::super::summary::Summary;
use super::newest::Tried;
use super::{Closed, Continued, Recovery};

impl Recovery {
    /// Generations before those that were opened, by their summaries.
    pub(super) fn older(
        &mut self,
        older: &[Found],
        first_tried: Option<GenerationId>,
    ) -> Result<Vec<Closed>, OpenError> {
        let mut closed = Vec::new();
        for (at, found) in older.iter().enumerate() {
            let limit = older.get(at + 1).map(|next| next.id.first_index).or(first_tried.map(|id| id.first_index));
            let summary = Summary::read(&self.directory.summary(found.id));
            let summary = match summary.filter(|summary| summary.fits(found.id.first_index, limit)) {
                Some(summary) => summary,
                None => match self.summarise(found.id, limit)? {
                    Some(summary) => summary,
                    None => {
                        self.set_aside.push(found.id);
                        continue;
                    }
                },
            };
            let disk_bytes = self.directory.generation_bytes(found.id);
            closed.push(Closed { id: found.id, summary: Arc::new(summary), disk_bytes });
        }
        Ok(closed)
    }

    /// Reads a generation whose summary is lost.
    fn summarise(&mut self, id: GenerationId, limit: Option<u64>) -> Result<Option<Summary>, OpenError> {
        let read = self.read(id, limit, Position::default(), Opening::ToRead)?;
        Ok(read.map(|(_, scan, _)| {
            self.write_summary(id, &scan.summary);
            scan.summary
        }))
    }

    fn write_summary(&self, id: GenerationId, summary: &Summary) {
        if let Err(error) = summary.write(&self.directory.summary(id)) {
            log::warn!("cannot write the summary of {id} ({error}): the next start reads it again");
        }
    }

    /// The newest one goes on if it is whole; the others are closed.
    pub(super) fn sort_tried(
        &self,
        mut tried: Vec<Tried>,
        closed: &mut Vec<Closed>,
        repaired: bool,
    ) -> Option<Continued> {
        let newest = tried.pop()?;
        for tried in tried {
            self.push_closed(tried.found.id, tried.scan.summary, closed);
        }
        let Tried { found, generation, scan } = newest;
        if let Some(why) = &scan.damage {
            log::error!("{} is damaged ({why}); what is missing will be told by gap records", found.id);
        }
        let ended = self.directory.summary(found.id).exists() || scan.raw_bytes >= self.sizes.generation_raw_bytes;
        let small = generation.segment_bytes() != self.sizes.segment_bytes;
        if repaired || ended || small || !found.marked || scan.torn || scan.damage.is_some() {
            drop(generation);
            self.push_closed(found.id, scan.summary, closed);
            return None;
        }
        Some(Continued { generation: Arc::new(generation), summary: scan.summary, raw_bytes: scan.raw_bytes })
    }

    fn push_closed(&self, id: GenerationId, summary: Summary, closed: &mut Vec<Closed>) {
        self.write_summary(id, &summary);
        let disk_bytes = self.directory.generation_bytes(id);
        closed.push(Closed { id, summary: Arc::new(summary), disk_bytes });
    }

    pub(super) fn close(&self, current: Option<Continued>, closed: &mut Vec<Closed>) -> Option<Continued> {
        let current = current?;
        current.generation.close();
        self.push_closed(current.generation.id(), current.summary, closed);
        None
    }
}
