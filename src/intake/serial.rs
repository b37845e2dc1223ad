//! A serial source: opens the port, reads, cuts into frames, and opens it again whenever it went away.
//!
//! There is no redelivery on a serial line. What this task cannot keep, or never got, is counted and told in gap records:
//! `unplugged` (the device went away), `oversize` (a frame above `frame_bytes_max`), `held_dropped` (no room in
//! `held_bytes_max`), `overrun` and `line_errors` (counted by the kernel). The reading task waits for nothing but the port.

mod icount;
pub(super) mod line;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio_serial::SerialStream;

use self::icount::Counters;
use self::line::Line;
use super::framing::{FrameError, Framer, framer};
use super::losses::{Loss, Losses, Reason};
use super::mapping::Received;
use super::source::{Board, Input, held_bytes, stopped};
use crate::backoff::Backoff;
use crate::clock;
use crate::config::Limit;
use crate::config::intake::{Decode, Serial};
use crate::outbox::HeldBytes;
use crate::record::ReceiptTime;

/// Bytes asked for in one read; more gains nothing (measured on ptys: 64 KiB is no faster).
const READ_BYTES: usize = 4096;
/// Pauses between tries to open a port.
const REOPEN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Counters of the kernel are read, and alarms looked after, this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What one serial source needs.
#[derive(Debug)]
pub(super) struct Reader {
    config: Serial,
    line: Line,
    board: Board,
    inputs: mpsc::UnboundedSender<Input>,
    held: HeldBytes,
    stop: watch::Receiver<bool>,
    framer: Box<dyn Framer>,
    losses: Losses,
    /// When the port went away, if it is away.
    away_since: Option<ReceiptTime>,
    last_byte: Instant,
    counters: Option<Counters>,
    oversize_logged: Option<Instant>,
}

/// Frames that are too long are told in the log at most this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Why reading ended.
enum End {
    Stopped,
    HungUp(String),
}

impl Reader {
    /// `line` is checked before. Nothing happens until [`Reader::run`].
    pub(super) fn new(
        config: Serial,
        board: Board,
        inputs: mpsc::UnboundedSender<Input>,
        held: HeldBytes,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, String> {
        let line = Line::parse(&config.line)?;
        let framer = framer(&config.framing, config.frame_bytes_max.bytes(), config.keep_first_partial);
        let losses = Losses::default();
        let last_byte = Instant::now();
        Ok(Self {
            config,
            line,
            board,
            inputs,
            held,
            stop,
            framer,
            losses,
            away_since: None,
            last_byte,
            counters: None,
            oversize_logged: None,
        })
    }

    /// Runs until the source is stopped.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(REOPEN.0, REOPEN.1);
        let mut told = None;
        while !stopped(&self.stop) {
            self.board.state("connecting");
            let trouble = match self.open() {
                Ok(port) => {
                    told = None;
                    let opened = Instant::now();
                    let end = self.read(port).await;
                    if opened.elapsed() >= Duration::from_secs(1) {
                        backoff.reset();
                    }
                    match end {
                        End::Stopped => break,
                        End::HungUp(why) => why,
                    }
                }
                Err(why) => why,
            };
            self.board.state("down");
            self.board.error(trouble.clone());
            if told.as_ref() != Some(&trouble) {
                log::warn!(
                    "source {}: {}: {trouble}; trying to open it until it is back",
                    self.board.name,
                    self.config.path.display()
                );
                told = Some(trouble);
            }
            self.watch_silence();
            let _ = tokio::time::timeout(backoff.next_delay(), self.stop.wait_for(|stop| *stop)).await;
        }
        self.away_since = None;
        self.tell_losses();
        if let Some(text) = self.losses.untold() {
            let name = &self.board.name;
            log::error!("source {name}: it stops, and there is no room for a gap record of what was lost: {text}");
        }
        self.board.state("stopped");
    }

    fn open(&mut self) -> Result<SerialStream, String> {
        let port = SerialStream::open(&self.line.builder(&self.config)).map_err(|error| told(&error))?;
        if let Some(text) = self.line.not_taken(&port, self.config.baud) {
            let text = format!("the driver did not take over the settings: {text}; what is received may be garbled");
            if self.board.alarm("line_settings", Some(text.clone())) {
                log::warn!("source {}: {text}", self.board.name);
            }
        } else {
            self.board.alarm("line_settings", None);
        }
        self.board.metrics.connects.inc();
        self.board.state("up");
        log::info!("source {}: {} is open", self.board.name, self.config.path.display());
        self.last_byte = Instant::now();
        self.counters = icount::read(&port);
        if let Some(since) = self.away_since.take() {
            self.losses.add(Reason::Unplugged, Loss { since, ..Loss::at(clock::now(), 0) });
            self.tell_losses();
        }
        Ok(port)
    }

    async fn read(&mut self, mut port: SerialStream) -> End {
        let mut buffer = [0; READ_BYTES];
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = self.stop.clone();
        let why = loop {
            tokio::select! {
                count = port.read(&mut buffer) => match count {
                    // A device that went away reads as an end of file.
                    Ok(0) => break "the device hung up (unplugged?)".to_owned(),
                    Ok(count) => self.received(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => break format!("reading failed: {error}"),
                },
                _ = look.tick() => self.look(&port),
                _ = stop.wait_for(|stop| *stop) => {
                    self.look(&port);
                    self.board.metrics.partial_bytes.inc_by(self.framer.restart());
                    return End::Stopped;
                }
            }
        };
        let now = clock::now();
        let lost = self.framer.restart();
        if lost > 0 {
            self.board.metrics.partial_bytes.inc_by(lost);
        }
        self.away_since = Some(now);
        // The unfinished frame is part of what the unplugging cost.
        self.losses.add(Reason::Unplugged, Loss { count: 0, ..Loss::at(now, lost) });
        End::HungUp(why)
    }

    fn received(&mut self, bytes: &[u8]) {
        let now = clock::now();
        self.last_byte = Instant::now();
        self.board.metrics.bytes.inc_by(bytes.len() as u64);
        self.framer.push(bytes);
        while let Some(frame) = self.framer.next_frame() {
            match frame {
                Ok(frame) => self.frame(frame, now),
                Err(FrameError::FirstPartial(length)) => {
                    self.board.metrics.partial_bytes.inc_by(length);
                    log::info!(
                        "source {}: {length} bytes before the first frame boundary were discarded (keep_first_partial = true keeps them)",
                        self.board.name
                    );
                }
                Err(FrameError::Oversize(length)) => {
                    self.board.metrics.received.inc();
                    self.board.metrics.rejected.inc();
                    self.losses.add(Reason::Oversize, Loss::at(now, length));
                    let text = format!("a frame of {length} bytes is above frame_bytes_max and was dropped");
                    if self.oversize_logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                        log::warn!("source {}: {text}", self.board.name);
                        self.oversize_logged = Some(Instant::now());
                    }
                    self.board.error(text);
                }
            }
        }
        self.tell_losses();
    }

    fn frame(&mut self, payload: Bytes, at: ReceiptTime) {
        self.board.metrics.received.inc();
        self.tell_losses();
        let bytes = held_bytes(payload.len(), 0, self.config.mapping.decode != Decode::None);
        match self.held.try_acquire(bytes) {
            Some(held) => {
                let received = Received { payload, at, mqtt: None, content_type: ByteString::new() };
                self.send(Input::Message { received, delivery: None, held });
            }
            None => {
                self.board.metrics.rejected.inc();
                self.losses.add(Reason::HeldDropped, Loss::at(at, payload.len() as u64));
                let text = "held_bytes_max is used up: frames are dropped, a gap record will say how many".to_owned();
                if self.board.alarm("held", Some(text.clone())) {
                    log::error!("source {}: {text}", self.board.name);
                }
            }
        }
    }

    /// Writes gap records as far as there is room for them, so that they stand before the frames that follow.
    fn tell_losses(&mut self) {
        while !self.losses.is_empty() && self.away_since.is_none() {
            let Some(held) = self.held.try_acquire(Losses::GAP_BYTES) else { return };
            if let Some((reason, loss)) = self.losses.take() {
                if reason == Reason::HeldDropped {
                    self.board.alarm("held", None);
                }
                self.send(Input::Lost { reason, loss, topic: None, held });
            }
        }
    }

    fn send(&self, input: Input) {
        // The stage ends before us only when the outbox is closed; then nothing can be stored.
        let _ = self.inputs.send(input);
    }

    /// What the kernel counted, and whether the line is silent.
    fn look(&mut self, port: &SerialStream) {
        self.watch_silence();
        let counted = icount::read(port);
        if let (Some(before), Some(now)) = (self.counters, counted) {
            let added = now.since(before);
            if added.frame + added.overrun + added.parity + added.buf_overrun > 0 {
                self.count_errors(added);
            }
        }
        self.board.metrics.line_counters.set(i64::from(counted.is_some()));
        self.counters = counted;
        self.tell_losses();
    }

    fn count_errors(&mut self, added: Counters) {
        let overrun = added.overrun > 0 || added.buf_overrun > 0;
        let reason = if overrun { Reason::Overrun } else { Reason::LineErrors };
        let counters: std::collections::BTreeMap<_, _> = added.named().collect();
        self.board.metrics.line_errors.inc_by(counters.values().sum());
        let text = format!("bytes were lost on the line: {counters:?}");
        log::warn!("source {}: {text}; look at baud, parity, cable, load", self.board.name);
        self.board.error(text);
        let count = counters.values().sum();
        self.losses.add(reason, Loss { count, counters, ..Loss::at(clock::now(), 0) });
    }

    fn watch_silence(&mut self) {
        let Limit::At(limit) = self.config.silent_after else { return };
        let silent = self.last_byte.elapsed();
        let text = (silent >= limit.0).then(|| format!("nothing was received for more than {limit}"));
        if self.board.alarm("silent", text.clone()) {
            match text {
                Some(text) => log::warn!("source {}: {text}; is the device alive?", self.board.name),
                None => log::info!("source {}: the device sends again", self.board.name),
            }
        }
    }
}

/// An error of the port in words for the owner. The library says "no device" for a port that someone else holds.
fn told(error: &tokio_serial::Error) -> String {
    let text = error.to_string();
    if text.contains("exclusive lock") || text.contains("busy") {
        "the port is in use by another program".to_owned()
    } else {
        text
    }
}
