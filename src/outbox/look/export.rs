//! Readings of a selection as lines, batch by batch: memory does not grow with what is exported.

use serde::{Deserialize, Serialize};

use super::super::reader::walk::Shelf;
use super::line::{GapLine, Line, reading_line};
use super::looker::{Looker, Seen};
use super::{LookError, Out};
use crate::record::{Flags, Stored};

/// Which readings, and how. All conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// From this sequence on.
    pub from: Option<u64>,
    /// Through this sequence, inclusive.
    pub to: Option<u64>,
    /// Of these sources; empty: of all.
    pub sources: Vec<String>,
    /// Received at this time or later, nanoseconds since 1970.
    pub since_ns: Option<i64>,
    /// Received before this time, nanoseconds since 1970.
    pub until_ns: Option<i64>,
    /// Also what is delivered and still kept.
    pub all: bool,
    /// Values as Base64, whatever they are.
    pub exact: bool,
}

impl Wanted {
    /// As `name=value` pairs, for the query of the daemon.
    pub fn to_pairs(&self) -> Vec<(&'static str, String)> {
        let number = |name, value: Option<u64>| value.map(|value| (name, value.to_string()));
        let time = |name, value: Option<i64>| value.map(|value| (name, value.to_string()));
        let flag = |name, value: bool| value.then(|| (name, "true".to_owned()));
        let mut pairs: Vec<_> = self.sources.iter().map(|source| ("source", source.clone())).collect();
        pairs.extend(number("from", self.from).into_iter().chain(number("to", self.to)));
        pairs.extend(time("since_ns", self.since_ns).into_iter().chain(time("until_ns", self.until_ns)));
        pairs.extend(flag("all", self.all).into_iter().chain(flag("exact", self.exact)));
        pairs
    }

    /// Reads pairs back; the error names the pair that makes no sense.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut selection = Self::default();
        for (name, value) in pairs {
            let bad = || format!("{name}={value} makes no sense");
            let unsigned = || value.parse().map_err(|_| bad());
            let signed = || value.parse().map_err(|_| bad());
            let flag = || value.parse().map_err(|_| bad());
            match name {
                "from" => selection.from = Some(unsigned()?),
                "to" => selection.to = Some(unsigned()?),
                "source" => selection.sources.push(value.to_owned()),
                "since_ns" => selection.since_ns = Some(signed()?),
                "until_ns" => selection.until_ns = Some(signed()?),
                "all" => selection.all = flag()?,
                "exact" => selection.exact = flag()?,
                _ => {
                    return Err(format!(
                        "unknown parameter {name}; known: from, to, source, since_ns, until_ns, all, exact"
                    ));
                }
            }
        }
        Ok(selection)
    }

    fn takes(&self, stored: &Stored) -> bool {
        self.takes_source(stored) && self.takes_time(stored)
    }

    fn takes_source(&self, stored: &Stored) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|source| source == stored.source.as_str())
    }

    fn takes_time(&self, stored: &Stored) -> bool {
        let received = stored.reading.received.wall_ns;
        self.since_ns.is_none_or(|since| received >= since) && self.until_ns.is_none_or(|until| received < until)
    }

    /// A gap is told unless it is known to be of other sources.
    fn takes_gap(&self, gap: &GapLine) -> bool {
        self.sources.is_empty()
            || gap.sources.is_empty()
            || self.sources.iter().any(|source| gap.sources.contains_key(source))
    }
}

/// What an export told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exported {
    /// Readings written.
    pub readings: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// Gaps written.
    pub gaps: u64,
    /// Sequences they name.
    pub missing: u64,
    /// Sequences they name that Kafka has: no loss.
    pub delivered: u64,
    /// Readings left out by `since` or `until` though their time of receipt is not synchronised: it may be wrong.
    #[serde(default)]
    pub untimed: u64,
    /// Sequences left out, for Kafka has them, though the outbox keeps them and the range would take them (`all`).
    #[serde(default)]
    pub kept: u64,
}

pub(super) fn export(looker: &mut Looker, selection: &Wanted, out: &mut Out<'_>) -> Result<Exported, LookError> {
    let agent = looker.shelves().agent();
    let (first, last, kept) = range(looker, selection);
    let mut tell = |text: &str| out(text).map_err(LookError::Output);
    tell(&Line::Begin { first, last }.to_json())?;
    let mut exported = Exported { kept, ..Exported::default() };
    let mut next = first;
    loop {
        let seen = looker.batch(&mut next, last)?;
        if seen.is_empty() {
            break;
        }
        for seen in seen {
            match seen {
                Seen::Reading(stored) if selection.takes(&stored) => {
                    exported.readings += 1;
                    exported.value_bytes += stored.reading.value.len() as u64;
                    tell(&reading_line(&stored, agent.as_deref(), selection.exact))?;
                }
                Seen::Reading(stored) => {
                    let is_untimed = stored.reading.flags.contains(Flags::UNSYNCHRONISED);
                    exported.untimed += u64::from(is_untimed && selection.takes_source(&stored));
                }
                Seen::Gap(gap) if selection.takes_gap(&gap) => {
                    exported.gaps += 1;
                    exported.missing += gap.to - gap.from + 1;
                    if gap.reason == "delivered" {
                        exported.delivered += gap.to - gap.from + 1;
                    }
                    tell(&Line::Gap(gap).to_json())?;
                }
                Seen::Gap(_) => {}
            }
        }
        tell(&Line::Progress { done: next - first, of: (last + 1).saturating_sub(first) }.to_json())?;
    }
    tell(&Line::Exported(exported).to_json())?;
    Ok(exported)
}

/// First and last sequence that are looked at, and how many that are kept below stay out. The end is fixed when it begins: what comes meanwhile is for the next one.
fn range(looker: &Looker, selection: &Wanted) -> (u64, u64, u64) {
    let shelves = looker.shelves();
    let undelivered = shelves.committed() + 1;
    // What is gone below the oldest that is kept is delivered and of no interest.
    let oldest = shelves.all().first().map_or(undelivered, |oldest| oldest.first_sequence.max(1).min(undelivered));
    let begin = if selection.all { oldest } else { undelivered };
    let first = selection.from.map_or(begin, |from| from.max(begin));
    let durable = shelves.sight().durable_sequence;
    let last = selection.to.map_or(durable, |to| to.min(durable));
    let oldest = selection.from.map_or(oldest, |from| from.max(oldest));
    (first, last, begin.min(last.saturating_add(1)).saturating_sub(oldest))
}
