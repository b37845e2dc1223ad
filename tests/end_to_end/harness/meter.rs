//! Sends readings down a serial line as fast as the daemon takes them, and finds out from the daemon's status what it has
//! accepted. It lives through restarts of the daemon and through being unplugged; each begins a new *life* of the line.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::agent::status;
use super::oracle::Oracle;
use super::serial::SerialLine;
use super::wait_for;

/// Frames sent before the daemon has to show that it took them: all that a kill can cost.
const BURST: u64 = 100;

pub struct Meter {
    line: Arc<Mutex<SerialLine>>,
    source: String,
    http_port: u16,
    oracle: Arc<Oracle>,
    /// Length of each payload.
    pub bytes: usize,
    life: Option<Life>,
    /// Whether a life has ended: part of its last burst may still be in a buffer, and is counted as accepted in the next one.
    leftovers: bool,
}

struct Life {
    id: (Value, u64),
    accepted_before: u64,
    sent: u64,
    /// Numbers of the last burst.
    last_burst: Vec<u64>,
}

impl Meter {
    /// Device and source have the same name.
    pub fn new(line: &Arc<Mutex<SerialLine>>, source: &str, http_port: u16, oracle: &Arc<Oracle>) -> Self {
        let (line, oracle, source) = (Arc::clone(line), Arc::clone(oracle), source.to_owned());
        Self { line, source, http_port, oracle, bytes: 200, life: None, leftovers: false }
    }

    /// Sends `count` readings, and waits until the daemon has accepted what it got. Those that were under way when a life
    /// ended may be lost and carry no obligation.
    pub fn send(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let burst = left.min(BURST);
            left -= burst;
            self.ensure_alive();
            self.send_burst(burst);
        }
    }

    fn observe(&self) -> Option<((Value, u64), u64)> {
        let status = status(self.http_port)?;
        let source = &status["sources"][&self.source];
        if source["state"] != "up" && source["state"] != "held" {
            return None;
        }
        let plugged = self.line.lock().unwrap_or_else(PoisonError::into_inner).times_plugged();
        Some(((status["agent"]["started_at"].clone(), plugged), source["accepted"].as_u64()?))
    }

    fn ensure_alive(&mut self) {
        let (id, accepted_before) = wait_for("the serial source to be up", || self.observe());
        if self.life.as_ref().is_none_or(|life| life.id != id) {
            self.leftovers |= self.life.is_some();
            self.life = Some(Life { id, accepted_before, sent: 0, last_burst: Vec::new() });
            // A daemon that has just opened the line discards what comes before the first delimiter.
            self.line.lock().unwrap_or_else(PoisonError::into_inner).write(b"\n");
        }
    }

    fn send_burst(&mut self, count: u64) {
        let life = self.life.as_mut().expect("ensured before");
        let (mut frames, mut numbers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (number, frame) = self.oracle.issue(&self.source, self.bytes);
            frames.extend(frame);
            frames.push(b'\n');
            numbers.push(number);
        }
        life.sent += count;
        let before = std::mem::replace(&mut life.last_burst, numbers);
        self.line.lock().unwrap_or_else(PoisonError::into_inner).write(&frames);
        if self.wait_accepted() {
            // With leftovers of an earlier life in the count, the last burst may not all be in; the one before is.
            let life = self.life.as_ref().expect("still the same");
            let certain = if self.leftovers { &before } else { &life.last_burst };
            certain.iter().for_each(|number| self.oracle.oblige(&self.source, *number));
        }
    }

    /// Whether all that was sent in this life is accepted; `false` if the life has ended.
    fn wait_accepted(&mut self) -> bool {
        let life = self.life.as_ref().expect("ensured before");
        wait_for("the daemon to accept what the serial line sent", || match self.observe() {
            Some((id, _)) if id != life.id => Some(false),
            Some((_, accepted)) if accepted >= life.accepted_before + life.sent => Some(true),
            _ => None,
        })
    }
}
