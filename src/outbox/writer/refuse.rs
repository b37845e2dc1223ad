//! Readings that are refused: counted in the log at once, told in a gap record when there is room for it.

use bytes::Bytes;
use bytestring::ByteString;

use crate::clock;
use crate::record::{Flags, Kind, Reading, SourceId};

use super::super::entry::{Refusal, Why};
use super::Writer;
use super::queue::Work;

impl Writer {
    /// Counts readings refused; the count is written with the group.
    pub(super) fn refuse(&mut self, source: &SourceId, why: Why, readings: &[Reading]) {
        let key = (source.clone(), why);
        let mut refusal = self.memory.refusals.get(&key).cloned().unwrap_or_default();
        refusal.why = why;
        refusal.total += readings.len() as u64;
        refusal.bytes += readings.iter().map(|reading| reading.record_bytes() as u64).sum::<u64>();
        if let Some(last) = readings.last() {
            refusal.topic = ByteString::from(&*last.topic);
        }
        let undo = self.memory.set_refusal(source, refusal);
        self.flights.push_refusal(&key, undo);
        self.shared.metrics.dropped(why.as_str()).inc_by(readings.len() as u64);
    }

    /// Queues a gap record for each source with refusals that none has told, once there is room.
    pub(super) fn tell_refused(&mut self) {
        if self.room.is_full() {
            return;
        }
        self.is_untold = false;
        let untold: Vec<_> = self
            .memory
            .refusals
            .iter()
            .filter(|(_, refusal)| refusal.told < refusal.total)
            .filter(|((source, why), _)| !self.is_still_refused(source, *why))
            .map(|((source, _), refusal)| (source.clone(), refusal.clone()))
            .collect();
        for (source, mut refusal) in untold {
            if self.queue.tells_of(&source, refusal.why) {
                continue;
            }
            let (count, bytes) = (refusal.total - refusal.told, refusal.bytes - refusal.told_bytes);
            (refusal.told, refusal.told_bytes) = (refusal.total, refusal.bytes);
            let reading = gap_of_refused(&source, &refusal, count, bytes);
            self.queue.push_front(Work::Told(source, Box::new(reading), refusal));
        }
    }
}

/// The gap record for readings of a source that were refused. It takes a fresh sequence, for those had none.
fn gap_of_refused(source: &SourceId, refusal: &Refusal, count: u64, bytes: u64) -> Reading {
    let value = serde_json::json!({
        "reason": refusal.why.as_str(), "source": source.as_str(), "count": count, "bytes": bytes,
    });
    let unsynchronised = if clock::synchronised() { Flags::default() } else { Flags::UNSYNCHRONISED };
    Reading {
        topic: refusal.topic.clone(),
        device: source.0.clone(),
        kind: Kind::Gap,
        flags: unsynchronised,
        received: clock::now(),
        device_time_ns: None,
        content_type: ByteString::from_static("application/json"),
        quality: ByteString::new(),
        mqtt: None,
        replay_of: ByteString::new(),
        value: Bytes::from(value.to_string()),
    }
}
