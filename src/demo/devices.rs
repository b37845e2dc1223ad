//! The devices of the demonstration: a fleet on a runtime of its own and a meter on a thread of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::DemoError;
use super::book::Book;
use crate::simulate::meter::{Meter, MeterOptions};
use crate::simulate::mqtt::{self, FleetError, FleetOptions};

/// Readings per second of the meter: as many as a chatty meter sends.
const METER_RATE: f64 = 20.0;

/// All devices, speaking.
#[derive(Debug)]
pub(super) struct Devices {
    runtime: Runtime,
    fleet: Option<tokio::task::JoinHandle<Result<(), FleetError>>>,
    stop_fleet: watch::Sender<bool>,
    meter: Option<JoinHandle<std::io::Result<()>>>,
    stop_meter: Arc<AtomicBool>,
}

impl Devices {
    /// They begin at once.
    pub(super) fn start(
        fleet: FleetOptions,
        meter: Meter,
        meter_device: &str,
        book: &Arc<Book>,
    ) -> Result<Self, DemoError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("fleet").enable_all().build();
        let runtime = runtime.map_err(|error| DemoError::io("starting the fleet", error))?;
        let (stop_fleet, stopped) = watch::channel(false);
        let options = MeterOptions { device: meter_device.to_owned(), rate: METER_RATE, count: None, seed: fleet.seed };
        let fleet = runtime.spawn(mqtt::run(fleet, Arc::clone(book) as _, stopped));
        let stop_meter = Arc::new(AtomicBool::new(false));
        let (flag, book) = (Arc::clone(&stop_meter), Arc::clone(book));
        let meter = std::thread::Builder::new()
            .name("meter".to_owned())
            .spawn(move || meter.run(&options, book.as_ref(), &flag))
            .map_err(|error| DemoError::io("starting the meter", error))?;
        Ok(Self { runtime, fleet: Some(fleet), stop_fleet, meter: Some(meter), stop_meter })
    }

    /// An error if one of them has given up.
    pub(super) fn check(&mut self) -> Result<(), DemoError> {
        if self.fleet.as_ref().is_some_and(tokio::task::JoinHandle::is_finished)
            || self.meter.as_ref().is_some_and(JoinHandle::is_finished)
        {
            self.stop()?;
            return Err(DemoError::Failed("a simulated device stopped by itself".to_owned()));
        }
        Ok(())
    }

    /// No new readings; waits until the broker has acknowledged the last ones.
    pub(super) fn stop(&mut self) -> Result<(), DemoError> {
        self.stop_meter.store(true, Ordering::Relaxed);
        self.stop_fleet.send_replace(true);
        if let Some(meter) = self.meter.take() {
            let outcome = meter.join().map_err(|_| DemoError::Failed("the meter's thread panicked".to_owned()))?;
            outcome.map_err(|error| DemoError::io("the meter's pseudo terminal", error))?;
        }
        if let Some(fleet) = self.fleet.take() {
            let outcome = self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), fleet).await });
            match outcome {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => return Err(DemoError::Failed(error.to_string())),
                Ok(Err(panic)) => return Err(DemoError::Failed(format!("the fleet panicked: {panic}"))),
                Err(_) => return Err(DemoError::Failed("the fleet did not stop within 60 s".to_owned())),
            }
        }
        Ok(())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.stop_meter.store(true, Ordering::Relaxed);
        // The fleet ends with its runtime.
        if let Some(meter) = self.meter.take() {
            let _ = meter.join();
        }
    }
}

/// The meter's line, before anyone speaks.
pub(super) fn open_line(dir: &Path) -> Result<Meter, DemoError> {
    Meter::open(Some(&dir.join("meter"))).map_err(|error| DemoError::io("making a pseudo terminal", error))
}
