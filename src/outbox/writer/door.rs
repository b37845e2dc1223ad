//! The door: which sources may come in. A source whose undelivered readings take more of the disk than its `share_max` stays
//! outside, and while the outbox is nearly full so do those of the lower priorities. What others have stored is never
//! touched for it.
//!
//! Under `block` the works of a source that is outside are parked, in order, and the source is told to stop reading; under
//! the other policies its readings are refused, counted, and told by gap records.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::config::outbox::WhenFull;
use crate::outbox::Arrival;
use crate::record::SourceId;

use super::super::entry::Why;
use super::super::limits::Terms;
use super::super::view::Queued;
use super::queue::Work;
use super::{ROOM_EVERY, Writer};

/// What a lower priority leaves to the next higher one, as a part of the outbox; all together leave at most half.
const PRIORITY_STEP: f64 = 0.1;
const PRIORITY_STEPS_MAX: f64 = 0.5;
/// A source comes in again when so much of what it may have is free, so that it is not shut at every reading.
const COME_IN_BELOW: f64 = 0.95;

/// What each source has stored, and who is outside.
#[derive(Debug)]
pub(super) struct Door {
    terms: BTreeMap<SourceId, Terms>,
    /// What each source may have, worked out when the terms change.
    limits: HashMap<SourceId, Limits>,
    queued: HashMap<SourceId, Queued>,
    outside: HashMap<SourceId, Why>,
    /// Bytes on disk that cannot be taken back, all sources.
    used_bytes: u64,
    /// Bytes on disk for one byte of record, as far as is known.
    disk_per_byte: f64,
    counted_at: Option<Instant>,
}

/// Up to where a source may come in, as parts of the outbox. 1: all of it.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// By what it has stored itself.
    share: f64,
    /// By what all have stored.
    priority: f64,
}

impl Door {
    pub(super) fn new() -> Self {
        Self {
            terms: BTreeMap::new(),
            limits: HashMap::new(),
            queued: HashMap::new(),
            outside: HashMap::new(),
            used_bytes: 0,
            disk_per_byte: 1.0,
            counted_at: None,
        }
    }

    /// Sources that somebody spoke of.
    pub(super) fn known(&self) -> impl Iterator<Item = &SourceId> {
        self.terms.keys()
    }

    fn is_due(&self) -> bool {
        self.counted_at.is_none_or(|at| at.elapsed() >= ROOM_EVERY)
    }

    fn set_terms(&mut self, terms: BTreeMap<SourceId, Terms>) {
        self.terms = terms;
        let limits = self.terms.iter().map(|(source, terms)| {
            (source.clone(), Limits { share: terms.share, priority: self.part_of(terms.priority) })
        });
        self.limits = limits.filter(|(_, limits)| limits.share < 1.0 || limits.priority < 1.0).collect();
    }

    /// A reading is written; exact counts come with the next counting.
    fn add(&mut self, source: &SourceId, record_bytes: u64, readings: u64) {
        let bytes = (record_bytes as f64 * self.disk_per_byte) as u64;
        self.used_bytes += bytes;
        match self.queued.get_mut(source) {
            Some(queued) => {
                queued.bytes += bytes;
                queued.records += readings;
            }
            None => {
                self.queued.insert(source.clone(), Queued { records: readings, bytes, outside: None });
            }
        }
    }

    /// Why a source stays outside now, if it does.
    fn judge(&self, source: &SourceId, max_bytes: u64, readings_bytes_max: u64) -> Option<Why> {
        let limits = self.limits.get(source)?;
        let factor = if self.is_outside(source) { COME_IN_BELOW } else { 1.0 };
        let own = self.queued.get(source).map_or(0, |queued| queued.bytes) as f64;
        if limits.share < 1.0 && own >= limits.share * max_bytes as f64 * factor {
            return Some(Why::ShareMax);
        }
        let part = limits.priority;
        (part < 1.0 && self.used_bytes as f64 >= part * readings_bytes_max as f64 * factor).then_some(Why::Priority)
    }

    fn is_outside(&self, source: &SourceId) -> bool {
        !self.outside.is_empty() && self.outside.contains_key(source)
    }

    /// The part of the outbox up to which a priority may fill it: all of it for the highest in use.
    fn part_of(&self, priority: u8) -> f64 {
        let mut levels: Vec<u8> = self.terms.values().map(|terms| terms.priority).collect();
        levels.sort_unstable();
        levels.dedup();
        let above = levels.iter().filter(|level| **level > priority).count() as f64;
        let step = PRIORITY_STEP.min(PRIORITY_STEPS_MAX / (levels.len().max(2) - 1) as f64);
        1.0 - above * step
    }
}

impl Writer {
    /// Counts anew what each source has stored, and lets in who may come in again. Nothing may be under way.
    pub(super) fn watch_door(&mut self) {
        // New terms count at once: a source that has just started must not slip in.
        let terms = {
            let terms = self.shared.terms();
            (*terms != self.door.terms).then(|| terms.clone())
        };
        if terms.is_none() && !self.door.is_due() {
            return;
        }
        self.door.counted_at = Some(Instant::now());
        if let Some(terms) = terms {
            self.door.set_terms(terms);
        }
        self.count_queued();
        let outside: Vec<SourceId> = self.door.outside.keys().cloned().collect();
        let entered = outside.iter().filter(|source| self.may_enter(source)).count();
        if entered > 0 {
            // What they lost meanwhile is told before what they send now.
            self.tell_refused();
        }
        let mut view = self.shared.view();
        view.queued = self.door.queued.clone();
        for (source, queued) in &mut view.queued {
            queued.outside = self.door.outside.get(source).copied();
        }
    }

    fn count_queued(&mut self) {
        let mut queued: HashMap<SourceId, Queued> = HashMap::new();
        let (mut retained, mut records, mut on_disk) = (0, 0, 0);
        let view = self.shared.view();
        let current = self.current.as_ref().map(|current| (current.generation.disk_bytes(), &current.summary));
        let closed = view.generations.iter().filter_map(|g| Some((g.disk_bytes, &**g.closed.as_ref()?)));
        for (disk_bytes, summary) in closed.chain(current) {
            let held = summary.end_sequence.saturating_sub(summary.first_sequence);
            let left = summary.end_sequence.saturating_sub(summary.first_sequence.max(view.committed + 1));
            if held == 0 {
                continue;
            }
            if left == 0 {
                retained += disk_bytes;
            }
            records += summary.record_bytes;
            on_disk += disk_bytes;
            let part = left as f64 / held as f64;
            let per_byte = disk_bytes as f64 / summary.record_bytes.max(1) as f64;
            for (name, count) in &summary.sources {
                let own = queued.entry(SourceId::from(name.as_str())).or_default();
                own.records += (*count as f64 * part) as u64;
                own.bytes += (summary.bytes_of(name) as f64 * per_byte * part) as u64;
            }
        }
        let used = view.bytes.saturating_sub(retained);
        drop(view);
        self.door.used_bytes = used + self.missing_reserve_bytes();
        self.door.disk_per_byte = if records == 0 { 1.0 } else { on_disk as f64 / records as f64 };
        queued.retain(|_, own| own.records > 0);
        self.door.queued = queued;
    }

    /// Whether this source may come in now; says so when that changes.
    fn may_enter(&mut self, source: &SourceId) -> bool {
        let why = self.door.judge(source, self.sizes.max_bytes, self.sizes.readings_bytes_max());
        match (why, self.door.is_outside(source)) {
            (None, true) => {
                self.door.outside.remove(source);
                self.shared.held.of(source).set_outside(false);
                self.queue.unpark(source);
                log::info!("source {source}: there is room for it in the outbox again");
            }
            (Some(why), false) => {
                self.door.outside.insert(source.clone(), why);
                let blocks = self.config.when_full == WhenFull::Block;
                self.shared.held.of(source).set_outside(blocks);
                let means = if blocks {
                    "it waits until readings are delivered"
                } else {
                    "its readings are refused and counted"
                };
                log::warn!("source {source}: {}; {means}", self.told_of(why, source));
            }
            _ => {}
        }
        why.is_none()
    }

    fn told_of(&self, why: Why, source: &SourceId) -> String {
        let terms = self.door.terms.get(source).copied().unwrap_or_default();
        match why {
            Why::Priority => format!(
                "the outbox is filled to {:.0}%, what is left is for sources of a higher priority",
                self.door.part_of(terms.priority) * 100.0
            ),
            _ => format!("it has used up its share_max of {}% of max_bytes", terms.share * 100.0),
        }
    }

    /// The next work of a source that may come in. Those of others are parked, or come back to be refused.
    pub(super) fn next_admitted(&mut self) -> Option<Work> {
        loop {
            let work = self.queue.pop()?;
            let Work::Arrival(source, arrival) = &work else { return Some(work) };
            let parks = self.config.when_full == WhenFull::Block && !arrival.readings.is_empty();
            if parks && !self.may_enter(&source.id) {
                self.queue.park(work);
                continue;
            }
            return Some(work);
        }
    }

    /// Why the readings of an arrival are refused, if they are.
    pub(super) fn refusal_of(&mut self, source: &SourceId, arrival: &Arrival) -> Option<Why> {
        if arrival.readings.is_empty() {
            return None;
        }
        if self.fits_never(arrival.record_bytes()) {
            return Some(Why::TooLarge);
        }
        if self.room.is_full() {
            return Some(Why::DropNewest);
        }
        // Under `block` it is in already.
        if self.config.when_full != WhenFull::Block && !self.may_enter(source) {
            return self.door.outside.get(source).copied();
        }
        self.door.add(source, arrival.record_bytes(), arrival.readings.len() as u64);
        None
    }

    /// Whether refusals of this kind still go on, so that they are told together later.
    pub(super) fn is_still_refused(&self, source: &SourceId, why: Why) -> bool {
        self.door.outside.get(source) == Some(&why)
    }

    /// When parked works are looked at again.
    pub(super) fn door_due(&self) -> Option<Instant> {
        let at = self.door.counted_at.unwrap_or_else(Instant::now);
        (!self.door.outside.is_empty()).then(|| at + ROOM_EVERY.max(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_priority_in_use_has_the_whole_outbox_and_equal_ones_all_of_it() {
        let mut door = Door::new();
        let mut of = |terms: &[u8]| {
            let named = terms.iter().enumerate();
            door.terms = named
                .map(|(n, p)| (SourceId::from(format!("s{n}").as_str()), Terms { share: 1.0, priority: *p }))
                .collect();
            terms.iter().map(|p| (door.part_of(*p) * 100.0).round() as u32).collect::<Vec<_>>()
        };
        assert_eq!(of(&[3, 3]), [100, 100]);
        assert_eq!(of(&[0, 9]), [90, 100]);
        assert_eq!(of(&[0, 1, 2]), [80, 90, 100]);
        assert_eq!(of(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[0], 50);
    }
}
