//! Every metric: name, unit, help. A handle struct per stage, made once and passed in; nothing is global.

pub mod delivery;
pub mod intake;
pub mod outbox;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use delivery::DeliveryMetrics;
pub use intake::IntakeMetrics;
pub use outbox::OutboxMetrics;

/// All metrics of the daemon, and the registry that `/metrics` prints.
#[derive(Debug)]
pub struct Metrics {
    /// What `/metrics` prints.
    pub registry: Registry,
    /// Handles of the sources.
    pub intake: IntakeMetrics,
    /// Handles of the outbox.
    pub outbox: OutboxMetrics,
    /// Handles of the drain.
    pub delivery: DeliveryMetrics,
}

impl Metrics {
    /// Registers everything under the prefix `fieldpost`.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("fieldpost");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of the program", version);
        let intake = IntakeMetrics::register(&mut registry);
        let outbox = OutboxMetrics::register(&mut registry);
        let delivery = DeliveryMetrics::register(&mut registry);
        Self { registry, intake, outbox, delivery }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
