//! Fieldpost takes readings from serial lines and MQTT, keeps them in a durable outbox on the gateway's own disk, and
//! drains them into Kafka so that a `read_committed` consumer sees every accepted reading exactly once.
//!
//! Three stages and nothing else; data moves one way:
//!
//! ```text
//! source -> frame -> decode -> append (fsynced) -> acknowledge the source        intake,   ends at the outbox
//! drain  -> encode -> transaction (records + ledger record) -> commit -> trim    delivery, begins at the outbox
//! ```
//!
//! Who may know whom (kept by `tests/layering.rs`):
//!
//! - [`record`], [`promise`], [`status`] and [`progress`] know no stage.
//! - [`intake`] and [`delivery`] know [`outbox`]; `outbox` knows neither, and they never know each other.
//! - [`agent`] knows all, and no one but the command line knows `agent`.
//!
//! Begin reading at [`agent`], then follow a reading: [`intake`], [`outbox`], [`delivery`].

pub mod agent;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod demo;
pub mod intake;
pub mod memory;
pub mod metrics;
pub mod outbox;
pub mod progress;
pub mod promise;
pub mod record;
pub mod simulate;
pub mod status;
pub mod telemetry;
