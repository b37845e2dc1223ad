//! The demonstration: real brokers, simulated devices, the real daemon, and a tally at the end.

pub mod brokers;
