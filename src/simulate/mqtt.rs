//! A fleet of simulated MQTT devices, spread over a few connections. Speaks MQTT 3.1.1, which every broker understands.
//!
//! A device stays on its connection, so its readings leave in order. Each connection keeps its session at the broker and
//! at most [`WINDOW`] readings open; a reading that the broker has not acknowledged is published again after a reconnect.
//! A device that must wait (window full, broker away) falls behind its plan and does not make up for it in a burst.
//! When all is over the sessions are removed from the broker.

mod connection;
mod options;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use connection::forget_session;
pub use options::{FleetOptions, OptionsError, Target};

use super::payload::Device;
use super::{Event, Observer};
use crate::clock;
use crate::simulate::flight::Sample;
use connection::Connection;

/// Readings one connection has open at most.
pub const WINDOW: usize = 100;

/// After the last reading: how long to wait for acknowledgements while none comes.
const SETTLE: Duration = Duration::from_secs(10);

/// Why a fleet ended without doing its work.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The first connection was refused or never came about.
    #[error("cannot connect to {url}: {reason}")]
    Unreachable {
        /// Where, without credentials.
        url: String,
        /// What the client said.
        reason: String,
    },
    /// Readings were issued that the broker never acknowledged.
    #[error("{0} readings were not acknowledged by the broker")]
    Unacknowledged(usize),
}

/// Runs the fleet until its count is reached or `stop` turns true, then waits for the open acknowledgements.
pub async fn run(
    options: FleetOptions,
    observer: Arc<dyn Observer>,
    stop: watch::Receiver<bool>,
) -> Result<(), FleetError> {
    let options = Arc::new(options);
    let begin = Instant::now();
    let mut lanes = JoinSet::new();
    for lane in 0..options.connections() {
        let lane = Lane::new(lane, Arc::clone(&options), Arc::clone(&observer), stop.clone());
        lanes.spawn(lane.run(begin));
    }
    let mut open = 0;
    while let Some(ended) = lanes.join_next().await {
        open += ended.map_err(|panic| FleetError::Unreachable {
            url: options.target.url_shown.clone(),
            reason: panic.to_string(),
        })??;
    }
    if open > 0 { Err(FleetError::Unacknowledged(open)) } else { Ok(()) }
}

/// One connection and its devices: every device whose index is `lane` modulo the number of connections.
struct Lane {
    lane: usize,
    options: Arc<FleetOptions>,
    devices: Vec<Device>,
    connection: Arc<Connection>,
    stop: watch::Receiver<bool>,
    observer: Arc<dyn Observer>,
}

impl Lane {
    fn new(lane: usize, options: Arc<FleetOptions>, observer: Arc<dyn Observer>, stop: watch::Receiver<bool>) -> Self {
        let devices: Vec<Device> = options.device_indices(lane).map(|index| options.device(index)).collect();
        let topics = devices.iter().map(|device| options.topic(device.name())).collect();
        let names = devices.iter().map(|device| device.name().to_owned()).collect();
        let connection = Arc::new(Connection::new(options.qos, topics, names, Arc::clone(&observer)));
        Self { lane, options, devices, connection, stop, observer }
    }

    /// Returns how many readings stayed unacknowledged.
    async fn run(mut self, begin: Instant) -> Result<usize, FleetError> {
        let url = self.options.target.url_shown.clone();
        let poller = self.connection.start(&self.options, self.lane).map_err(|reason| {
            let url = url.clone();
            FleetError::Unreachable { url, reason }
        })?;
        let outcome = match self.connection.wait_connected(&mut self.stop).await {
            Ok(()) => {
                self.issue_all(begin).await;
                Ok(self.settle().await)
            }
            Err(reason) => Err(FleetError::Unreachable { url, reason }),
        };
        poller.finish().await;
        if outcome.is_ok() {
            forget_session(&self.options, self.options.client_id(self.lane)).await;
        }
        outcome
    }

    /// Issues readings by the plan: number `k` of the fleet is due `k / rate` after the beginning.
    async fn issue_all(&mut self, mut begin: Instant) {
        let fleet = self.options.devices as u64;
        let mut order = 0;
        for counter in 1.. {
            for (slot, device) in self.devices.iter().enumerate() {
                let index = self.options.device_index(self.lane, slot);
                let number = (counter - 1) * fleet + index as u64;
                if self.options.count.is_some_and(|count| number >= count) {
                    return;
                }
                if let Some(rate) = self.options.rate {
                    let due = begin + Duration::from_secs_f64(number as f64 / rate);
                    let late = Instant::now().saturating_duration_since(due);
                    if late > Duration::from_secs(1) {
                        begin += late;
                    }
                    if !sleep_until(due, &mut self.stop).await {
                        return;
                    }
                }
                if !self.connection.wait_room(&mut self.stop).await {
                    return;
                }
                let payload = device.payload(counter, clock::now().wall_ns).into_bytes();
                let sample = Sample { order, device: slot, counter, payload };
                let event = Event::Issued { device: device.name(), counter, payload: &sample.payload };
                self.observer.on(event);
                self.connection.publish(sample);
                order += 1;
            }
        }
    }

    /// Waits for the open acknowledgements; gives up when none came for [`SETTLE`].
    async fn settle(&self) -> usize {
        let mut last = (self.connection.open(), Instant::now());
        loop {
            let open = self.connection.open();
            if open == 0 || (open == last.0 && last.1.elapsed() > SETTLE) {
                return open;
            }
            if open != last.0 {
                last = (open, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// False: told to stop.
async fn sleep_until(due: Instant, stop: &mut watch::Receiver<bool>) -> bool {
    tokio::time::timeout_at(due, stop.wait_for(|stop| *stop)).await.is_err()
}
