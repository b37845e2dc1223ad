//! What the devices issued, and what is owed for it.
//!
//! MQTT: a reading that the MQTT broker acknowledged is owed. A serial line acknowledges nothing and repeats nothing, so
//! what is owed there follows from the wire itself:
//!
//! - what the meter wrote while the port was closed was heard by no one: not owed;
//! - the first line after an opening may be cut, and the daemon discards it: not owed;
//! - before a SIGKILL the daemon said how many readings of the line it had on disk ([`Book::agent_killed`]); a line is a
//!   queue, so these are the first ones since the opening: owed. What was under way behind them at that moment: not owed.
//! - everything else is owed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::simulate::payload::Identity;
use crate::simulate::{Event, Observer};

/// One reading, in the place of its counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// [`Identity::fingerprint`].
    pub(super) fingerprint: u64,
    pub(super) acknowledged: bool,
    /// Published twice by the device.
    pub(super) resent: bool,
    pub(super) written: bool,
    pub(super) first: bool,
}

/// All readings, by device; counter `n` is at index `n - 1`.
#[derive(Debug, Default)]
pub struct Book {
    pages: Mutex<Pages>,
}

/// What the book holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    pub(super) mqtt: BTreeMap<String, Vec<Entry>>,
    pub(super) meter: Meter,
}

/// The serial line.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter {
    pub(super) device: String,
    pub(super) entries: Vec<Entry>,
    /// Counter of the first line since the port was opened last.
    opened_at: Option<u64>,
    /// Ranges of counters for which nothing is owed, from SIGKILL to the first line after it.
    pub(super) cuts: Vec<Cut>,
}

/// What a SIGKILL excuses on the line: counters above `durable_through` and below the next opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) durable_through: u64,
    /// `None`: the port was not opened again.
    pub(super) reopened_at: Option<u64>,
}

/// Numbers for the screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Issued over MQTT.
    pub mqtt_issued: u64,
    /// Of these, acknowledged by the broker.
    pub mqtt_acknowledged: u64,
    /// Issued by the meter.
    pub meter_issued: u64,
    /// Of these, written while someone had the port open.
    pub meter_written: u64,
}

impl Book {
    /// For a meter of this name; every other device is an MQTT one.
    pub fn new(meter: &str) -> Self {
        let meter = Meter { device: meter.to_owned(), ..Meter::default() };
        Self { pages: Mutex::new(Pages { meter, ..Pages::default() }) }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon is about to be killed and has said that it holds `accepted` readings of the line since it was opened.
    pub fn agent_killed(&self, accepted: u64) {
        let meter = &mut self.pages().meter;
        let begin = meter.opened_at.take().unwrap_or(meter.entries.len() as u64 + 1);
        // The first line is not among the accepted ones if it was discarded; counting from it owes one too few, not too many.
        let durable_through = begin + accepted.max(1) - 1;
        meter.cuts.push(Cut { durable_through, reopened_at: None });
    }

    /// Whether the meter has seen that no one reads.
    pub fn meter_is_unheard(&self) -> bool {
        self.pages().meter.entries.last().is_some_and(|entry| !entry.written)
    }

    /// A copy to reckon with.
    pub(super) fn snapshot(&self) -> Pages {
        self.pages().clone()
    }

    /// For the screen.
    pub fn figures(&self) -> Figures {
        let pages = self.pages();
        let count = |entries: &[Entry], which: fn(&Entry) -> bool| entries.iter().filter(|e| which(e)).count() as u64;
        Figures {
            mqtt_issued: pages.mqtt.values().map(|entries| entries.len() as u64).sum(),
            mqtt_acknowledged: pages.mqtt.values().map(|entries| count(entries, |entry| entry.acknowledged)).sum(),
            meter_issued: pages.meter.entries.len() as u64,
            meter_written: count(&pages.meter.entries, |entry| entry.written),
        }
    }
}

impl Meter {
    /// Whether this reading must arrive. `slack`: how many of the accepted entries may have been gap records.
    pub(super) fn owed(&self, counter: u64, slack: u64) -> bool {
        let Some(entry) = counter.checked_sub(1).and_then(|index| self.entries.get(index as usize)) else {
            return false;
        };
        let excused = |cut: &Cut| {
            counter > cut.durable_through.saturating_sub(slack) && cut.reopened_at.is_none_or(|end| counter < end)
        };
        entry.written && !entry.first && !self.cuts.iter().any(excused)
    }
}

impl Pages {
    fn entry(&mut self, device: &str, counter: u64) -> Option<&mut Entry> {
        let meter = self.meter.device == device;
        let entries = if meter { &mut self.meter.entries } else { self.mqtt.get_mut(device)? };
        entries.get_mut(usize::try_from(counter).ok()?.checked_sub(1)?)
    }

    fn issued(&mut self, device: &str, payload: &[u8]) {
        let fingerprint = Identity::of(payload).map_or(0, |identity| identity.fingerprint);
        let entries = if self.meter.device == device {
            &mut self.meter.entries
        } else {
            self.mqtt.entry(device.to_owned()).or_default()
        };
        entries.push(Entry { fingerprint, ..Entry::default() });
    }

    fn written(&mut self, counter: u64, first: bool) {
        if first {
            self.meter.opened_at = Some(counter);
            for cut in self.meter.cuts.iter_mut().filter(|cut| cut.reopened_at.is_none()) {
                cut.reopened_at = Some(counter);
            }
        }
    }
}

impl Observer for Book {
    fn on(&self, event: Event<'_>) {
        let mut pages = self.pages();
        match event {
            Event::Issued { device, payload, .. } => pages.issued(device, payload),
            Event::Acknowledged { device, counter } => {
                if let Some(entry) = pages.entry(device, counter) {
                    entry.acknowledged = true;
                }
            }
            Event::Resent { device, counter } => {
                if let Some(entry) = pages.entry(device, counter) {
                    entry.resent = true;
                }
            }
            Event::Written { device, counter, first } => {
                if let Some(entry) = pages.entry(device, counter) {
                    (entry.written, entry.first) = (true, first);
                }
                pages.written(counter, first);
            }
            Event::Unheard { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(book: &Book, counter: u64, first: bool) {
        book.on(Event::Issued { device: "meter", counter, payload: b"" });
        book.on(Event::Written { device: "meter", counter, first });
    }

    fn unheard(book: &Book, counter: u64) {
        book.on(Event::Issued { device: "meter", counter, payload: b"" });
        book.on(Event::Unheard { device: "meter", counter });
    }

    #[test]
    fn on_a_line_what_was_on_disk_before_the_kill_is_owed_and_what_was_under_way_is_not() {
        let book = Book::new("meter");
        unheard(&book, 1);
        (2..=9).for_each(|counter| write(&book, counter, counter == 2));
        book.agent_killed(5); // 2..=6, or 3..=7 if the first was discarded: 3..=6 for certain
        write(&book, 10, false); // into the buffer of a dead reader
        unheard(&book, 11);
        (12..=14).for_each(|counter| write(&book, counter, counter == 12));

        let meter = book.snapshot().meter;
        let owed: Vec<u64> = (0..=15).filter(|counter| meter.owed(*counter, 0)).collect();
        assert_eq!(owed, [3, 4, 5, 6, 13, 14]);
        assert!(!meter.owed(6, 1), "one of the accepted entries was a gap record");
        assert!(meter.owed(5, 1));
    }

    #[test]
    fn a_port_that_is_not_opened_again_owes_nothing_more() {
        let book = Book::new("meter");
        write(&book, 1, true);
        write(&book, 2, false);
        book.agent_killed(0);
        unheard(&book, 3);
        let meter = book.snapshot().meter;
        assert!((1..=3).all(|counter| !meter.owed(counter, 0)));
        assert!(book.meter_is_unheard());
    }
}
