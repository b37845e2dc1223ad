//! `fieldpost outbox` as its users see it: with the real program, on files and beside a running daemon.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod changing;
mod looking;
mod place;
mod relay;
mod trouble;
