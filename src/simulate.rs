//! Simulated devices: MQTT meters against any broker, and a smart meter on a pseudo terminal. For trials, for
//! `fieldpost demo`, and for anyone who wants to see what arrives.
//!
//! Limits first: an acknowledgement here is the *broker's* (PUBACK, PUBCOMP), not the agent's. A device keeps a reading
//! until the broker has acknowledged it and publishes it again after a reconnect, so at QoS 1 one reading may be published
//! twice; that is told ([`Event::Resent`]). On a serial line nothing is ever acknowledged or repeated: what is written
//! while no one has the port open is gone ([`Event::Unheard`]).
//!
//! Every reading is known by device and counter, counters begin at 1 and have no holes: a tally needs no more.

pub mod flight;
pub mod meter;
pub mod mqtt;
pub mod payload;

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened to one reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// It came into being.
    Issued {
        /// Device id.
        device: &'a str,
        /// Its number on this device, from 1.
        counter: u64,
        /// The bytes that go out (without any delimiter).
        payload: &'a [u8],
    },
    /// The broker took responsibility for it: PUBACK at QoS 1, PUBCOMP at QoS 2. QoS 0 has none.
    Acknowledged {
        /// Device id.
        device: &'a str,
        /// Its number.
        counter: u64,
    },
    /// It was published a second time, because the connection broke before the acknowledgement came.
    Resent {
        /// Device id.
        device: &'a str,
        /// Its number.
        counter: u64,
    },
    /// It went over a serial line that someone has open.
    Written {
        /// Device id.
        device: &'a str,
        /// Its number.
        counter: u64,
        /// Whether it is the first line since the port was opened (a reader cannot know that it is whole).
        first: bool,
    },
    /// No one had the serial port open, or the reader let the line's buffer fill up: gone for good.
    Unheard {
        /// Device id.
        device: &'a str,
        /// Its number.
        counter: u64,
    },
}

/// Who wants to know. Called on the simulators' own threads and under their locks: return soon, never call back.
pub trait Observer: Send + Sync {
    /// One thing happened.
    fn on(&self, event: Event<'_>);
}

/// Counts and nothing else: memory does not grow with the readings.
#[derive(Debug, Default)]
pub struct Counts {
    issued: AtomicU64,
    acknowledged: AtomicU64,
    resent: AtomicU64,
    written: AtomicU64,
    unheard: AtomicU64,
}

/// The numbers of [`Counts`] at one moment, in readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Came into being.
    pub issued: u64,
    /// Acknowledged by the broker.
    pub acknowledged: u64,
    /// Published once more after a reconnect.
    pub resent: u64,
    /// Written to an open serial line.
    pub written: u64,
    /// Written to a serial line that no one read.
    pub unheard: u64,
}

impl Counts {
    /// The numbers now.
    pub fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            issued: get(&self.issued),
            acknowledged: get(&self.acknowledged),
            resent: get(&self.resent),
            written: get(&self.written),
            unheard: get(&self.unheard),
        }
    }
}

impl Observer for Counts {
    fn on(&self, event: Event<'_>) {
        let counter = match event {
            Event::Issued { .. } => &self.issued,
            Event::Acknowledged { .. } => &self.acknowledged,
            Event::Resent { .. } => &self.resent,
            Event::Written { .. } => &self.written,
            Event::Unheard { .. } => &self.unheard,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
