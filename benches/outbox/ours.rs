//! The outbox as a source and the drain use it.

use std::path::Path;

use fieldpost::config;
use fieldpost::metrics::OutboxMetrics;
use fieldpost::outbox::{Answer, Appender, Arrival, Budget, OpenOptions, Outbox, Reader, Receipt};
use fieldpost::record::{Reading, Sequence};
use tokio::sync::mpsc::UnboundedReceiver;

/// As the drain asks for it.
const BUDGET: Budget = Budget { records_max: 5000, bytes_max: 2 << 20 };

/// A source hands over what it has got so far, at most this much at once (`intake::source`).
const SUBMITTED_MAX: usize = 512;

pub(crate) fn open(directory: &Path, codec: &str) -> (Outbox, OutboxMetrics) {
    let compression = match codec {
        "zstd" => config::outbox::Compression::Zstd,
        "lz4" => config::outbox::Compression::Lz4,
        "none" => config::outbox::Compression::None,
        other => panic!("no codec {other}"),
    };
    let max_bytes = config::ByteSize(64 << 30);
    let config = config::Outbox { max_bytes, compression, ..config::Outbox::default() };
    let metrics = OutboxMetrics::default();
    let options = OpenOptions { config, agent_id: "bench".to_owned(), metrics: metrics.clone() };
    (Outbox::open(directory, options).expect("it opens"), metrics)
}

/// One source: hands groups over and waits until they are durable.
pub(crate) struct SourceSide {
    outbox: Outbox,
    appender: Appender,
    answers: UnboundedReceiver<Answer>,
}

impl SourceSide {
    pub(crate) fn new(outbox: &Outbox, name: &str) -> Self {
        let (appender, answers) = outbox.appender(&name.into());
        Self { outbox: outbox.clone(), appender, answers }
    }

    pub(crate) fn append(&mut self, readings: impl Iterator<Item = Reading>) {
        let held = self.outbox.held();
        let arrival = |(n, reading): (usize, Reading)| Arrival {
            packet: None,
            receipt: Receipt(n as u64),
            held: held.try_acquire(reading.value.len()).expect("the group fits the budget"),
            readings: vec![reading],
        };
        let mut arrivals = readings.enumerate().map(arrival);
        let mut left = 0;
        loop {
            let some: Vec<Arrival> = arrivals.by_ref().take(SUBMITTED_MAX).collect();
            if some.is_empty() {
                break;
            }
            left += some.len();
            self.appender.submit(some);
        }
        while left > 0 {
            left -= self.answers.blocking_recv().expect("the outbox answers").done.len();
        }
    }
}

/// The drain's side.
pub(crate) struct DrainSide {
    reader: Reader,
    pub(crate) after: Sequence,
}

impl DrainSide {
    pub(crate) fn new(outbox: &Outbox) -> Self {
        Self { reader: outbox.reader(), after: Sequence(0) }
    }

    /// Reads a batch; how many readings.
    pub(crate) fn read(&mut self) -> usize {
        let batch = self.reader.batch_after(self.after, BUDGET).expect("it reads");
        if let Some(last) = batch.items.last() {
            self.after = last.last();
        }
        batch.items.len()
    }
}
