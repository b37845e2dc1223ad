//! What all sources share: the board that shows how they are, and the stage between their input task and the outbox.
//!
//! A source is two tasks. The input task (MQTT link, serial reader) waits for nothing but its wire and hands on what it
//! got; the bytes it may hand on are bounded by `held_bytes_max`, by a permit in each message. The stage turns messages
//! into arrivals, submits them in groups, and acknowledges with the proof in hand, in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytestring::ByteString;
use tokio::sync::{mpsc, oneshot, watch};

use super::losses::{Loss, Reason};
use super::mapping::{Mapper, Received};
use crate::clock;
use crate::metrics::intake::SourceMetrics;
use crate::outbox::{Answer, Appender, Arrival, Control, HeldPermit, Outcome, Packet, Receipt};
use crate::progress::Progress;
use crate::promise::Durable;
use crate::record::{Qos, Reading, ReceiptTime};
use crate::status::SourceStatus;

/// Most inputs that become one submission.
const GROUP_MAX: usize = 512;
/// A message unanswered for this long makes the source show as `held`.
const HELD_AFTER: Duration = Duration::from_secs(5);
/// Bad payloads are told in the log at most this often.
const BAD_LOG_EVERY: Duration = Duration::from_secs(60);
/// Bytes of memory that a message takes besides payload and topic.
const MESSAGE_OVERHEAD_BYTES: usize = 384;

/// Bytes of `held_bytes_max` that a message takes: with a decoder its readings may be several times its size.
pub(super) fn held_bytes(payload: usize, topic: usize, decoded: bool) -> usize {
    MESSAGE_OVERHEAD_BYTES + topic + if decoded { payload * 4 } else { payload }
}

/// Whether the source shall stop: it was told so, or its handle is gone.
pub(super) fn stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Takes acknowledgements back to where a message came from.
pub(super) trait Acknowledge: std::fmt::Debug + Send + Sync {
    /// Acknowledges one message, for which there is a proof that it is on the medium. `false`: the connection that
    /// brought it is gone, and the sender will send it again.
    fn acknowledge(&self, id: u16, qos: Qos, proof: &Durable) -> bool;
}

/// Where a message of QoS 1 or 2 came from.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) id: u16,
    pub(super) qos: Qos,
    pub(super) dup: bool,
    pub(super) from: Arc<dyn Acknowledge>,
}

/// What an input task hands to its stage, in order.
#[derive(Debug)]
pub(super) enum Input {
    /// A message or frame.
    Message { received: Received, delivery: Option<Delivery>, held: HeldPermit },
    /// A message that policy drops: counted; marked in the log if it has to be acknowledged.
    Unwanted { received: Received, delivery: Option<Delivery>, held: HeldPermit },
    /// Something is missing: becomes a gap record. `topic`: the MQTT topic it belongs to.
    Lost { reason: Reason, loss: Loss, topic: Option<ByteString>, held: HeldPermit },
    /// What the log must know besides readings.
    Control(Control),
    /// Answered when everything before it is.
    Flush(oneshot::Sender<()>),
}

/// How a source is: for `/status`, health and metrics. Clones show the same.
#[derive(Debug, Clone)]
pub(super) struct Board {
    pub(super) name: Arc<str>,
    pub(super) metrics: SourceMetrics,
    type_name: &'static str,
    inner: Arc<Mutex<Face>>,
}

#[derive(Debug)]
struct Face {
    state: &'static str,
    since_ns: i64,
    held: bool,
    last_ns: Option<i64>,
    last_error: Option<String>,
    alarms: BTreeMap<&'static str, String>,
}

impl Board {
    pub(super) fn new(name: &str, type_name: &'static str, metrics: SourceMetrics) -> Self {
        let since_ns = clock::now().wall_ns;
        let face = Face {
            state: "connecting",
            since_ns,
            held: false,
            last_ns: None,
            last_error: None,
            alarms: BTreeMap::new(),
        };
        Self { name: name.into(), metrics, type_name, inner: Arc::new(Mutex::new(face)) }
    }

    /// The source is `connecting`, `up`, `held`, `down` or `stopped`.
    pub(super) fn state(&self, state: &'static str) {
        self.metrics.up.set(i64::from(state == "up"));
        let mut face = self.lock();
        if face.state != state {
            face.state = state;
            face.since_ns = clock::now().wall_ns;
        }
    }

    /// What went wrong last. Logging it is the caller's.
    pub(super) fn error(&self, text: impl Into<String>) {
        self.lock().last_error = Some(text.into());
    }

    /// Raises an alarm, or with `None` ends it. Says whether that was news.
    pub(super) fn alarm(&self, name: &'static str, text: Option<String>) -> bool {
        let mut face = self.lock();
        match text {
            Some(text) => {
                let news = face.alarms.get(name) != Some(&text);
                face.last_error = Some(text.clone());
                face.alarms.insert(name, text);
                news
            }
            None => face.alarms.remove(name).is_some(),
        }
    }

    /// Messages or frames arrived, the last one just now.
    fn arrived(&self, wall_ns: i64) {
        self.lock().last_ns = Some(wall_ns);
    }

    fn held(&self, held: bool) {
        self.lock().held = held;
    }

    /// The part of `/status`.
    pub(super) fn status(&self) -> SourceStatus {
        let face = self.lock();
        let m = &self.metrics;
        SourceStatus {
            r#type: self.type_name.to_owned(),
            state: if face.held && face.state == "up" { "held" } else { face.state }.to_owned(),
            since: clock::rfc3339(face.since_ns),
            received: m.received.get(),
            accepted: m.accepted.get(),
            acknowledged: m.acknowledged.get(),
            rejected: m.rejected.get(),
            duplicates: m.duplicates.get(),
            last_at: face.last_ns.map(clock::rfc3339),
            last_error: face.last_error.clone(),
            alarms: face.alarms.values().cloned().collect(),
            // The outbox fills these in.
            queued_records: 0,
            queued_bytes: 0,
            outside: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Face> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What waits for its answer, in the order of submission.
#[derive(Debug)]
enum Waiting {
    Arrival { receipt: Receipt, readings: u64, delivery: Option<Delivery> },
    Flush(oneshot::Sender<()>),
}

/// The second task of a source. See the module's description.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) mapper: Mapper,
    pub(super) appender: Appender,
    pub(super) answers: mpsc::UnboundedReceiver<Answer>,
    pub(super) inputs: mpsc::UnboundedReceiver<Input>,
    pub(super) board: Board,
    pub(super) progress: Progress,
    limits: Limits,
    memory: Memory,
}

/// What a stage goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Whether a redelivery at QoS 1 may be recognised.
    pub(super) dedup: bool,
    /// Most record bytes of one message: what is larger would take the disk from all others.
    pub(super) arrival_bytes_max: u64,
}

/// What a stage remembers from one turn to the next.
#[derive(Debug)]
struct Memory {
    waiting: VecDeque<Waiting>,
    next_receipt: u64,
    group: Vec<Arrival>,
    released: Vec<u16>,
    synchronised: bool,
    answered_at: Instant,
    bad_logged: Option<Instant>,
    bad_unlogged: u64,
    oversize_logged: Option<Instant>,
}

impl Stage {
    pub(super) fn new(
        mapper: Mapper,
        (appender, answers): (Appender, mpsc::UnboundedReceiver<Answer>),
        inputs: mpsc::UnboundedReceiver<Input>,
        board: Board,
        progress: Progress,
        limits: Limits,
    ) -> Self {
        let memory = Memory {
            waiting: VecDeque::new(),
            next_receipt: 0,
            group: Vec::new(),
            released: Vec::new(),
            synchronised: clock::synchronised(),
            answered_at: Instant::now(),
            bad_logged: None,
            bad_unlogged: 0,
            oversize_logged: None,
        };
        Self { mapper, appender, answers, inputs, board, progress, limits, memory }
    }

    /// Runs until the input task is gone and everything it handed over is answered, or the outbox is closed.
    pub(super) async fn run(mut self) {
        let mut inputs = Vec::with_capacity(GROUP_MAX);
        let mut open = true;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while open || !self.memory.waiting.is_empty() {
            tokio::select! {
                biased;
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.answered(answer),
                    None => break,
                },
                count = self.inputs.recv_many(&mut inputs, GROUP_MAX), if open => {
                    open = count > 0;
                    self.take(&mut inputs);
                }
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        self.progress.beat();
        self.memory.synchronised = clock::synchronised();
        let stuck = !self.memory.waiting.is_empty() && self.memory.answered_at.elapsed() > HELD_AFTER;
        self.board.held(stuck);
    }

    fn take(&mut self, inputs: &mut Vec<Input>) {
        if self.memory.waiting.is_empty() {
            self.memory.answered_at = Instant::now();
        }
        let mut last = None;
        for input in inputs.drain(..) {
            match input {
                Input::Message { received, delivery, held } => {
                    last = Some(received.at.wall_ns);
                    let packet = delivery.as_ref().map(|delivery| self.packet(&received, delivery));
                    let (at, topic) = (received.at, received.mqtt.as_ref().map(|mqtt| mqtt.topic.clone()));
                    let mapped = self.mapper.map(received, self.memory.synchronised);
                    if let Some(error) = mapped.bad {
                        self.tell_bad(&error.detail, error.quality);
                    }
                    let readings = self.fitting(mapped.readings, at, topic.as_deref());
                    self.add(readings, packet, delivery, held);
                }
                Input::Unwanted { received, delivery, held } => {
                    self.board.metrics.rejected.inc();
                    if let Some(delivery) = delivery {
                        let packet = self.packet(&received, &delivery);
                        self.add(Vec::new(), Some(packet), Some(delivery), held);
                    }
                }
                Input::Lost { reason, loss, topic, held } => {
                    let value = loss.to_json(reason, &self.board.name);
                    let gap = self.mapper.gap(value, loss.until, topic.as_deref(), self.memory.synchronised);
                    self.add(vec![gap], None, None, held);
                }
                Input::Control(Control::Released(ids)) => self.memory.released.extend(ids),
                Input::Control(control) => {
                    self.submit();
                    self.appender.control(control);
                }
                Input::Flush(done) => {
                    self.submit();
                    self.memory.waiting.push_back(Waiting::Flush(done));
                }
            }
        }
        self.submit();
        self.answer_flushes();
        if let Some(wall_ns) = last {
            self.board.arrived(wall_ns);
        }
    }

    /// The readings, or a gap record in their place if no outbox of this size should take them: it is acknowledged as they
    /// would be, and says what is missing.
    fn fitting(&mut self, readings: Vec<Reading>, at: ReceiptTime, topic: Option<&str>) -> Vec<Reading> {
        let bytes: u64 = readings.iter().map(|reading| reading.record_bytes() as u64).sum();
        let max = self.limits.arrival_bytes_max;
        if bytes <= max {
            return readings;
        }
        self.board.metrics.rejected.inc();
        let text = format!(
            "a message of {bytes} bytes is above a quarter of outbox.max_bytes ({max}) and was dropped; a gap record says so"
        );
        if self.memory.oversize_logged.is_none_or(|at| at.elapsed() >= BAD_LOG_EVERY) {
            log::warn!("source {}: {text}", self.board.name);
            self.memory.oversize_logged = Some(Instant::now());
        }
        self.board.error(text);
        let value = Loss::at(at, bytes).to_json(Reason::Oversize, &self.board.name);
        vec![self.mapper.gap(value, at, topic, self.memory.synchronised)]
    }

    fn packet(&self, received: &Received, delivery: &Delivery) -> Packet {
        let topic = received.mqtt.as_ref().map_or(&[][..], |mqtt| mqtt.topic.as_bytes());
        let seed = xxhash_rust::xxh3::xxh3_64(topic);
        Packet {
            id: delivery.id,
            qos: delivery.qos,
            dup: delivery.dup,
            hash: xxhash_rust::xxh3::xxh3_64_with_seed(&received.payload, seed),
            dedup: self.limits.dedup || delivery.qos == Qos::ExactlyOnce,
        }
    }

    fn add(&mut self, readings: Vec<Reading>, packet: Option<Packet>, delivery: Option<Delivery>, held: HeldPermit) {
        // A release may wait for the end of the group, but not pass a new message with its identifier.
        if packet.is_some_and(|packet| self.memory.released.contains(&packet.id)) {
            self.submit();
        }
        let receipt = Receipt(self.memory.next_receipt);
        self.memory.next_receipt += 1;
        let waiting = Waiting::Arrival { receipt, readings: readings.len() as u64, delivery };
        self.memory.waiting.push_back(waiting);
        self.memory.group.push(Arrival { readings, packet, receipt, held });
    }

    fn submit(&mut self) {
        if !self.memory.group.is_empty() {
            self.appender.submit(std::mem::take(&mut self.memory.group));
        }
        if !self.memory.released.is_empty() {
            self.appender.control(Control::Released(std::mem::take(&mut self.memory.released)));
        }
    }

    fn answered(&mut self, answer: Answer) {
        let metrics = &self.board.metrics;
        let mut acknowledged = 0;
        for (receipt, outcome) in answer.done {
            let Some((readings, delivery)) = take_waiting(&mut self.memory.waiting, receipt) else {
                log::error!(
                    "source {}: the outbox answered {receipt:?}, which was not asked; please report this",
                    self.board.name
                );
                continue;
            };
            match outcome {
                Outcome::Appended => metrics.accepted.inc_by(readings),
                Outcome::Duplicate => metrics.duplicates.inc(),
                Outcome::Refused => metrics.rejected.inc(),
            };
            if let Some(delivery) = delivery {
                acknowledged += u64::from(delivery.from.acknowledge(delivery.id, delivery.qos, &answer.durable));
            }
        }
        metrics.acknowledged.inc_by(acknowledged);
        self.memory.answered_at = Instant::now();
        self.answer_flushes();
    }

    fn answer_flushes(&mut self) {
        while matches!(self.memory.waiting.front(), Some(Waiting::Flush(_))) {
            if let Some(Waiting::Flush(done)) = self.memory.waiting.pop_front() {
                // Who asked may have given up waiting.
                let _ = done.send(());
            }
        }
    }

    fn tell_bad(&mut self, detail: &str, quality: &str) {
        self.board.metrics.bad.inc();
        self.memory.bad_unlogged += 1;
        if self.memory.bad_logged.is_none_or(|at| at.elapsed() >= BAD_LOG_EVERY) {
            log::warn!(
                "source {}: {} payload(s) could not be decoded and are kept as raw bytes, marked \"{quality}\"; the last: {detail}",
                self.board.name,
                self.memory.bad_unlogged
            );
            self.memory.bad_logged = Some(Instant::now());
            self.memory.bad_unlogged = 0;
        }
    }
}

/// Takes the arrival with this receipt out; it is the first one unless the outbox broke its promise to answer in order.
fn take_waiting(waiting: &mut VecDeque<Waiting>, wanted: Receipt) -> Option<(u64, Option<Delivery>)> {
    let is = |entry: &Waiting| matches!(entry, Waiting::Arrival { receipt, .. } if *receipt == wanted);
    let at = if waiting.front().is_some_and(is) { 0 } else { waiting.iter().position(is)? };
    match waiting.remove(at)? {
        Waiting::Arrival { readings, delivery, .. } => Some((readings, delivery)),
        Waiting::Flush(_) => None,
    }
}
