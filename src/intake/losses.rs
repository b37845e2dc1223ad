//! What a source lost, until there is room to say so in a gap record.
//!
//! Limits: one entry per reason; entries of one reason merge, so that a source without room holds a handful of them
//! however long it lasts.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::clock;
use crate::record::ReceiptTime;

/// Why something is missing. The word stands in the gap record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// The device went away: what it sent meanwhile never arrived.
    Unplugged,
    /// A frame longer than `frame_bytes_max`, or a message above a quarter of `outbox.max_bytes`.
    Oversize,
    /// `held_bytes_max` was used up: a serial frame could not be kept.
    HeldDropped,
    /// `held_bytes_max` was used up: a QoS 0 message could not be kept.
    Qos0Dropped,
    /// The UART or the kernel's buffer overran.
    Overrun,
    /// Framing or parity errors on the line: the kernel removes such bytes.
    LineErrors,
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unplugged => "unplugged",
            Self::Oversize => "oversize",
            Self::HeldDropped => "held_dropped",
            Self::Qos0Dropped => "qos0_dropped",
            Self::Overrun => "overrun",
            Self::LineErrors => "line_errors",
        }
    }
}

/// One loss, or several of one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loss {
    /// When the first may have begun.
    pub(super) since: ReceiptTime,
    /// When the last was noticed.
    pub(super) until: ReceiptTime,
    /// How many (frames, messages, unplugs).
    pub(super) count: u64,
    /// Bytes known to be lost, 0 if unknown.
    pub(super) bytes: u64,
    /// Further numbers, by name.
    pub(super) counters: BTreeMap<&'static str, u64>,
}

impl Loss {
    /// One loss at one time.
    pub(super) fn at(at: ReceiptTime, bytes: u64) -> Self {
        Self { since: at, until: at, count: 1, bytes, counters: BTreeMap::new() }
    }

    fn merge(&mut self, other: Self) {
        self.until = other.until;
        self.count += other.count;
        self.bytes += other.bytes;
        for (name, count) in other.counters {
            *self.counters.entry(name).or_default() += count;
        }
    }

    /// The value of the gap record.
    pub(super) fn to_json(&self, reason: Reason, source: &str) -> Vec<u8> {
        let mut object = Map::new();
        object.insert("reason".to_owned(), reason.as_str().into());
        object.insert("source".to_owned(), source.into());
        object.insert("since".to_owned(), clock::rfc3339(self.since.wall_ns).into());
        object.insert("until".to_owned(), clock::rfc3339(self.until.wall_ns).into());
        object.insert("count".to_owned(), self.count.into());
        object.insert("bytes".to_owned(), self.bytes.into());
        if !self.counters.is_empty() {
            object.insert("counters".to_owned(), json!(self.counters));
        }
        Value::Object(object).to_string().into_bytes()
    }
}

/// Losses that are not yet told.
#[derive(Debug, Default)]
pub(super) struct Losses(BTreeMap<Reason, Loss>);

impl Losses {
    /// Bytes of `held_bytes_max` that a gap record takes.
    pub(super) const GAP_BYTES: usize = 1024;

    /// Notes a loss.
    pub(super) fn add(&mut self, reason: Reason, loss: Loss) {
        match self.0.get_mut(&reason) {
            Some(known) => known.merge(loss),
            None => {
                self.0.insert(reason, loss);
            }
        }
    }

    /// Whether everything is told.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The source ends and there was no room for a gap record: what is left is told in the log, in words; `None`: nothing is.
    pub(super) fn untold(&self) -> Option<String> {
        let words = |(reason, loss): (&Reason, &Loss)| {
            let since = clock::rfc3339(loss.since.wall_ns);
            format!("{} {} ({} bytes) since {since}", loss.count, reason.as_str(), loss.bytes)
        };
        let told: Vec<_> = self.0.iter().map(words).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// Takes one loss that is to be told now.
    pub(super) fn take(&mut self) -> Option<(Reason, Loss)> {
        self.0.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_record_can_tell_any_more_is_told_in_words() {
        let mut losses = Losses::default();
        assert_eq!(losses.untold(), None);
        losses.add(Reason::HeldDropped, Loss { count: 3, ..Loss::at(ReceiptTime::default(), 120) });
        assert_eq!(losses.untold().unwrap(), "3 held_dropped (120 bytes) since 1970-01-01T00:00:00Z");
    }

    #[test]
    fn losses_of_one_reason_become_one_record() {
        let mut losses = Losses::default();
        let at = |seconds: i64| ReceiptTime { wall_ns: seconds * 1_000_000_000, mono_ns: 0 };
        losses.add(Reason::Oversize, Loss::at(at(1), 70_000));
        losses.add(Reason::Oversize, Loss::at(at(3), 5));
        losses.add(Reason::Overrun, Loss { counters: [("overrun", 2)].into(), ..Loss::at(at(2), 0) });
        losses.add(Reason::Overrun, Loss { counters: [("overrun", 3)].into(), ..Loss::at(at(4), 0) });
        let (reason, loss) = losses.take().unwrap();
        let text = String::from_utf8(loss.to_json(reason, "meter")).unwrap();
        assert_eq!(
            text,
            r#"{"bytes":70005,"count":2,"reason":"oversize","since":"1970-01-01T00:00:01Z","source":"meter","until":"1970-01-01T00:00:03Z"}"#
        );
        let (_, loss) = losses.take().unwrap();
        assert_eq!(loss.counters["overrun"], 5);
        assert!(losses.is_empty());
    }
}
