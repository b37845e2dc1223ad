//! Compares an open outbox with what must be in it.

use std::collections::BTreeSet;

use fieldpost::outbox::{Budget, Outbox};
use fieldpost::record::{Item, Kind, Reading, Sequence};

use super::marks::{Expectation, Fate};
use super::session::Task;
use super::workloads::Workload;

const ALL: Budget = Budget { records_max: 2000, bytes_max: 4 << 20 };
/// More faults than this say nothing new.
const FAULTS_MAX: usize = 12;

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub faults: Vec<String>,
    /// Arrivals that are there, above what is delivered, and those that are not.
    pub present: Vec<u64>,
    pub absent: Vec<u64>,
    /// Acknowledged readings that were compared.
    pub checked: u64,
    /// A generation could not be opened for want of room: nothing else is known.
    pub no_room: bool,
}

/// What was read, in order.
enum Seen {
    /// Readings of one arrival: its number, how many.
    Arrival(u64, u64),
    /// A range that the outbox says is gone.
    Hole(u64),
}

struct Check<'a> {
    workload: &'a Workload,
    expected: &'a Expectation,
    task: &'a Task,
    just_opened: bool,
    found: Found,
    seen: Vec<Seen>,
}

/// Reads everything after the committed position and compares.
pub fn check(outbox: &Outbox, workload: &Workload, expected: &Expectation, task: &Task, just_opened: bool) -> Found {
    let mut check = Check { workload, expected, task, just_opened, found: Found::default(), seen: Vec::new() };
    let committed = check.positions(outbox);
    check.identity(outbox);
    if check.read(outbox, committed) {
        check.arrivals(committed);
    }
    check.directory(outbox);
    check.found.faults.truncate(FAULTS_MAX);
    check.found
}

impl Check<'_> {
    fn fault(&mut self, text: String) {
        self.found.faults.push(text);
    }

    /// `committed` is where a trim put it, not below what was synced, not above what is durable.
    fn positions(&mut self, outbox: &Outbox) -> u64 {
        let positions = outbox.positions();
        let committed = positions.committed.0;
        let trimmed = committed == 0 || self.expected.trims.contains(&committed);
        if !trimmed && !self.task.damaged {
            let newest = self.expected.trims.last();
            self.fault(format!("committed is {committed}, where nothing was trimmed (newest trim: {newest:?})"));
        }
        if committed < self.expected.committed_min {
            let least = self.expected.committed_min;
            self.fault(format!("committed is {committed}, although {least} was synced"));
        }
        if committed > positions.durable.0 {
            self.fault(format!("committed is {committed}, durable only {}", positions.durable));
        }
        if positions.durable.0 < self.expected.durable_min {
            self.fault(format!("durable is {}, although {} was", positions.durable, self.expected.durable_min));
        }
        committed
    }

    fn identity(&mut self, outbox: &Outbox) {
        let identity = outbox.identity();
        let now = identity.incarnation.to_hex();
        if self.expected.incarnation.as_ref().is_some_and(|before| *before != now) && !self.task.damaged {
            self.fault(format!("a new incarnation, {now}, although nothing was damaged"));
        }
        let named = identity.cluster_id.as_deref().map_or(Some(0), |name| name.strip_prefix("cluster-")?.parse().ok());
        let (least, most) = (self.expected.named_min, self.expected.named_max);
        if named.is_none_or(|named: u64| named < least || named > most) {
            self.fault(format!("the cluster's name is {:?}, not {least}..={most}", identity.cluster_id));
        }
        let status = outbox.status();
        if status.damaged > 0 && !self.task.damaged {
            self.fault(format!("{} generations were set aside as damaged", status.damaged));
        }
        // While it runs this number is brought up to date twice a second.
        if self.just_opened && status.dropped < self.expected.refused {
            self.fault(format!("{} dropped, although {} were refused", status.dropped, self.expected.refused));
        }
    }

    /// Reads all; whether that worked.
    fn read(&mut self, outbox: &Outbox, committed: u64) -> bool {
        let mut reader = outbox.reader();
        let mut last = committed;
        loop {
            let batch = match reader.batch_after(Sequence(last), ALL) {
                Ok(batch) => batch,
                Err(error) => {
                    // On a full disk a generation cannot be opened; delivery tries again later.
                    self.found.no_room = error.to_string().contains("no space left");
                    if !self.found.no_room {
                        self.fault(format!("reading after {last}: {error}"));
                    }
                    return false;
                }
            };
            if batch.items.is_empty() {
                break;
            }
            for item in &batch.items {
                if item.first().0 != last + 1 {
                    self.fault(format!("after sequence {last} comes {}", item.first()));
                    return false;
                }
                last = item.last().0;
                let purged = self.expected.purged.iter().any(|(from, to)| (*from..=*to).contains(&last));
                if purged && matches!(item, Item::Reading(_)) {
                    self.fault(format!("sequence {last} was given up, and is there again"));
                }
                self.item(item);
            }
        }
        if last != outbox.positions().durable.0 {
            self.fault(format!("durable through {}, read through {last}", outbox.positions().durable));
        }
        true
    }

    fn item(&mut self, item: &Item) {
        match item {
            Item::Hole(hole) => {
                let reason: &str = &hole.reason;
                let policy = self.workload.config.when_full.as_str() == "drop_oldest" && reason == "drop_oldest";
                let purge = self.workload.changes && reason == "purge";
                let damage = self.task.damaged && ["damage", "new_incarnation"].contains(&reason);
                if !policy && !purge && !damage {
                    self.fault(format!("a hole {}..={} for {reason}", hole.from, hole.to));
                }
                // What a new incarnation skips was never given out.
                let lost = if reason == "new_incarnation" { 0 } else { hole.to.0 - hole.from.0 + 1 };
                self.seen.push(Seen::Hole(lost));
            }
            Item::Reading(stored) if stored.reading.kind == Kind::Gap => {}
            Item::Reading(stored) if !stored.reading.replay_of.is_empty() => self.copy(&stored.reading),
            Item::Reading(stored) => match Workload::number_of(&stored.reading) {
                Some((arrival, number)) => {
                    let wanted = self.workload.readings(arrival);
                    if wanted.get(number as usize) != Some(&stored.reading) {
                        self.fault(format!("reading {number} of arrival {arrival} is not what was handed over"));
                    }
                    self.place(arrival, number);
                }
                None => self.fault(format!("sequence {} is no reading of ours", stored.sequence)),
            },
        }
    }

    /// A copy of what was delivered: the same contents.
    fn copy(&mut self, copy: &Reading) {
        let original = Workload::number_of(copy).and_then(|(arrival, number)| {
            self.workload.readings(arrival).into_iter().nth(usize::try_from(number).ok()?)
        });
        if !self.workload.changes || original.is_none_or(|original| original.value != copy.value) {
            self.fault(format!("a copy of {} that is none", copy.replay_of));
        }
    }

    /// Readings of an arrival follow each other, whole.
    fn place(&mut self, arrival: u64, number: u64) {
        if let Some(Seen::Arrival(same, count)) = self.seen.last_mut() {
            if *same == arrival && *count == number {
                *count += 1;
                return;
            }
        }
        if number != 0 {
            // The first one may have been delivered in part.
            let first = self.seen.is_empty();
            if !first {
                self.fault(format!("arrival {arrival} begins with its reading {number}"));
            }
        }
        self.seen.push(Seen::Arrival(arrival, number + 1));
    }

    fn arrivals(&mut self, committed: u64) {
        let delivered = self.expected.delivered_through(committed);
        let mut next = delivered.map_or(0, |arrival| arrival + 1);
        let mut holes = 0;
        let mut present = BTreeSet::new();
        for seen in std::mem::take(&mut self.seen) {
            match seen {
                Seen::Hole(count) => holes += count,
                Seen::Arrival(arrival, count) => {
                    // The rest of one that was delivered in part.
                    let rest = Some(arrival) == delivered && present.is_empty();
                    if arrival < next && !rest {
                        self.fault(format!("arrival {arrival} comes twice or out of order: {next} was next"));
                        continue;
                    }
                    self.missing(next..arrival, holes);
                    holes = 0;
                    next = arrival + 1;
                    present.insert(arrival);
                    self.present(arrival, count);
                }
            }
        }
        let end = self.expected.fates.len() as u64;
        self.missing(next..end, holes);
        let first = delivered.map_or(0, |arrival| arrival + 1);
        self.found.absent = (first..end).filter(|arrival| !present.contains(arrival)).collect();
        self.found.present = present.into_iter().collect();
    }

    fn present(&mut self, arrival: u64, count: u64) {
        let wanted = self.workload.readings(arrival).len() as u64;
        if count != wanted {
            self.fault(format!("arrival {arrival} has {count} of its {wanted} readings"));
        }
        match self.expected.fates.get(arrival as usize) {
            None => self.fault(format!("arrival {arrival} was never handed over")),
            Some(Fate::Gone) => self.fault(format!("arrival {arrival} was refused or gone before")),
            Some(Fate::Stored) => self.found.checked += count,
            Some(Fate::Open) => {}
        }
    }

    /// Arrivals between two that are there: none acknowledged, or named by a hole.
    fn missing(&mut self, arrivals: std::ops::Range<u64>, holes: u64) {
        let fate = |arrival: &u64| self.expected.fates.get(*arrival as usize) == Some(&Fate::Stored);
        let lost: Vec<u64> = arrivals.filter(fate).collect();
        let readings: u64 = lost.iter().map(|arrival| self.workload.readings(*arrival).len() as u64).sum();
        if readings > holes {
            let (from, to) = (lost[0], lost[lost.len() - 1]);
            self.fault(format!(
                "{readings} acknowledged readings are lost (arrivals {from} to {to}), holes name {holes}"
            ));
        }
    }

    /// Nothing is left lying about.
    fn directory(&mut self, outbox: &Outbox) {
        for entry in std::fs::read_dir(outbox.directory()).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = ["pos", "state", "reserve"].contains(&name.as_str())
                || (name == "damaged" && self.task.damaged)
                || name.starts_with('g');
            // A removal under way while this is looked at is in order.
            if !known && !name.starts_with("dead-") {
                self.fault(format!("the outbox holds {name}, which nobody knows"));
            }
        }
    }
}
