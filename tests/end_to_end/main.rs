//! The real daemon between a real mosquitto, pseudo terminals and a real Kafka. Every test ends by asking the oracle
//! (`harness/oracle.rs`): nothing acknowledged is lost, nothing comes twice, order is kept per device.
//!
//! Tests wait for conditions, never for a time; a limit is only there to end a hopeless wait. `TEST_KAFKA=host:port` points the
//! suite at another cluster, `TEST_SEED=n` replays the random choices of a run.

#![allow(missing_docs, unreachable_pub, reason = "a test program has no outside")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed test may panic and tell")]

mod harness;

mod bad_input;
mod brokers;
mod change;
mod crash;
mod delivery;
mod drain;
mod full;
mod harness_tests;
mod outage;
mod soak;
