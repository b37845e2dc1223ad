//! One connection of an MQTT source, from CONNECT to its end. Polls the link and does nothing that waits, but for room:
//! messages go to the stage with a permit, decisions come from `session`, files are written elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::inlet::{Answers, Inlet, NoRoom};
use super::link::{Event, Link, LinkError, Publish, Sender, Settings};
use super::session::{AckBarrier, End, Ids, Subscriptions, all_held, shortfall};
use super::subscriptions::SubscriptionFile;
use crate::intake::losses::Losses;
use crate::intake::source::{Board, Input, stopped};
use crate::outbox::{Control, HeldBytes};
use crate::record::Qos;

/// For the broker's PUBACK of our farewell, and for DISCONNECT to leave.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);
/// For what is held to be stored and acknowledged before leaving for want of room. A full outbox takes longer: then the
/// source leaves all the same.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// While the sources hold much, nothing is read for this long at most (and for half a keep-alive interval); then the source
/// leaves until there is room. A disk that works makes room in milliseconds (docs/decisions/0303).
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Room is looked for this often meanwhile.
const PAUSE_TURN: Duration = Duration::from_millis(2);
/// With as many messages open as may be, the link is not read for this long after the last acknowledgement.
const CROWDED_PATIENCE: Duration = Duration::from_secs(1);
/// A refused subscription is tried again this often.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(60);
/// A session of this length ends the alarms that speak of short ones.
const LONG_SESSION: Duration = Duration::from_secs(10);

/// The status topic: who listens there sees whether this source is connected.
#[derive(Debug, Clone)]
pub(super) struct StatusTopic {
    pub(super) topic: String,
    pub(super) online: String,
    pub(super) offline: String,
}

/// What does not change from one connection of a source to the next.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) version: u8,
    pub(super) wanted: Arc<[(String, Qos)]>,
    pub(super) file: SubscriptionFile,
    pub(super) board: Board,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) held: HeldBytes,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) drop_retained: bool,
    pub(super) decoded: bool,
    /// Messages of QoS 1 and 2 that may be open at a time.
    pub(super) receive_maximum: usize,
    pub(super) status: Option<StatusTopic>,
}

/// What a connection leaves behind.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) end: End,
    /// How long the session lasted; `None` without CONNACK.
    pub(super) connected: Option<Duration>,
    /// What is known about the subscriptions now.
    pub(super) known: Subscriptions,
    /// What is not yet told.
    pub(super) losses: Losses,
}

/// One connection. See the module's description.
pub(super) struct Connection {
    plan: Plan,
    sender: Sender,
    answers: Arc<Answers>,
    barrier: AckBarrier,
    /// Identifiers of QoS 2 released on this connection and not taken again.
    released: Ids,
    known: Subscriptions,
    /// What was known before this connection.
    loaded: Subscriptions,
    inlet: Inlet,
    connected_at: Option<Instant>,
    keep_alive: Duration,
    unsubscribing: usize,
    granted: bool,
    born: bool,
    subscribe_again: Option<Instant>,
    storing: Option<JoinHandle<()>>,
    /// Counts events, to notice a link that stands still.
    events: u64,
    events_seen: (u64, Instant),
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Messages are taken.
    Taking,
    /// Nothing more is taken; waits until everything taken is answered and acknowledged.
    Draining { drained: oneshot::Receiver<()>, deadline: Option<Instant>, end: End },
    /// `offline` is on its way.
    Farewell(Instant),
    /// DISCONNECT is on its way.
    Leaving(Instant, End),
}

/// Connects and stays until the connection ends. `known`: what is known about the subscriptions.
pub(super) async fn run(plan: Plan, settings: Settings, known: Subscriptions, losses: Losses) -> Report {
    let mut link = Link::new(&settings);
    // Secrets are needed no longer than this.
    drop(settings);
    let now = Instant::now();
    let sender = link.sender();
    let answers = Arc::new(Answers::new(sender.clone()));
    let inlet = Inlet {
        board: plan.board.clone(),
        inputs: plan.inputs.clone(),
        held: plan.held.clone(),
        answers: answers.clone(),
        drop_retained: plan.drop_retained,
        decoded: plan.decoded,
        losses,
        lost_topic: None,
    };
    let mut connection = Connection {
        sender,
        answers,
        inlet,
        plan,
        barrier: AckBarrier::new(),
        released: Ids::new(),
        loaded: known.clone(),
        known,
        connected_at: None,
        keep_alive: Duration::ZERO,
        unsubscribing: 0,
        granted: false,
        born: false,
        subscribe_again: None,
        storing: None,
        events: 0,
        events_seen: (0, now),
        phase: Phase::Taking,
    };
    let end = connection.drive(&mut link).await;
    for publish in link.leftovers() {
        connection.message(publish);
    }
    drop(link);
    if let Some(storing) = connection.storing.take() {
        let _ = storing.await;
    }
    Report {
        end,
        connected: connection.connected_at.map(|at| at.elapsed()),
        known: connection.known,
        losses: connection.inlet.losses,
    }
}

impl Connection {
    async fn drive(&mut self, link: &mut Link) -> End {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = self.plan.stop.clone();
        loop {
            self.answers.below(self.plan.receive_maximum, CROWDED_PATIENCE).await;
            self.wait_for_room().await;
            // The future is not safe to cancel: it is polled until it is done, whatever else happens meanwhile.
            let event = {
                let mut next = std::pin::pin!(link.next());
                loop {
                    tokio::select! {
                        event = &mut next => break event,
                        _ = tick.tick() => if let Some(end) = self.tick() { return end },
                        _ = stop.wait_for(|stop| *stop), if !self.stops() => {
                            if self.connected_at.is_none() {
                                return End::Stopped;
                            }
                            self.drain(End::Stopped, None);
                        }
                        () = drained(&mut self.phase) => self.drained(),
                    }
                }
            };
            self.events += 1;
            match event {
                Ok(Event::DisconnectWritten) => {
                    return match std::mem::replace(&mut self.phase, Phase::Taking) {
                        Phase::Leaving(_, end) => end,
                        _ => End::Stopped,
                    };
                }
                Ok(event) => self.event(event),
                Err(error) => {
                    return match std::mem::replace(&mut self.phase, Phase::Taking) {
                        Phase::Taking => End::Lost(error),
                        Phase::Leaving(_, end) | Phase::Draining { end, .. } => end,
                        Phase::Farewell(_) => End::Stopped,
                    };
                }
            }
        }
    }

    /// Reads nothing while many bytes are held, so that the sender feels it. Between two polls, so nothing is cancelled. Not at
    /// QoS 0: a broker that is made to wait drops such messages unseen, we count them.
    async fn wait_for_room(&mut self) {
        if self.plan.wanted.iter().all(|(_, qos)| *qos == Qos::AtMostOnce) {
            return;
        }
        let mut patience = PAUSE_MAX;
        if !self.keep_alive.is_zero() {
            patience = patience.min(self.keep_alive / 2);
        }
        let since = Instant::now();
        while matches!(self.phase, Phase::Taking) && self.plan.held.is_crowded() && !stopped(&self.plan.stop) {
            if since.elapsed() >= patience {
                self.leave_for_room();
            } else {
                tokio::time::sleep(PAUSE_TURN).await;
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Publish(publish) => {
                match publish.qos {
                    Qos::AtMostOnce => {}
                    Qos::AtLeastOnce => self.barrier.publish(publish.id),
                    Qos::ExactlyOnce => self.released.remove(publish.id),
                }
                self.message(publish);
            }
            // Once is enough until a message takes the identifier again: a broker cannot fill the queue with PUBRELs.
            Event::Released(id) if self.released.insert(id) => {
                self.inlet.send(Input::Control(Control::Released(vec![id])));
            }
            Event::Released(_) => {}
            Event::AckWritten(id) => self.barrier.ack_written(id),
            Event::PingWritten => self.barrier.ping_written(),
            Event::PingAnswered => {
                let done = self.barrier.ping_answered();
                if !done.is_empty() {
                    self.inlet.send(Input::Control(Control::Released(done)));
                }
            }
            Event::Connected { session_present, keep_alive } => {
                self.keep_alive = keep_alive;
                self.connected(session_present);
            }
            Event::Subscribed(granted) => self.subscribed(&granted),
            Event::Unsubscribed => {
                self.unsubscribing = self.unsubscribing.saturating_sub(1);
                self.settle();
            }
            Event::OwnTaken(outcome) => self.own_taken(outcome),
            Event::ReceiptWritten | Event::DisconnectWritten | Event::Other => {}
        }
    }

    fn connected(&mut self, session_present: bool) {
        let board = &self.plan.board;
        self.connected_at = Some(Instant::now());
        board.metrics.connects.inc();
        log::info!("source {}: connected, session {}", board.name, if session_present { "resumed" } else { "new" });
        if !session_present {
            if !self.known.filters.is_empty() {
                board.metrics.sessions_lost.inc();
                let text = "the broker has lost our session: messages it held for us may be gone, and nobody downstream can repair that; look at the broker's persistence and session expiry";
                log::warn!("source {}: {text}", board.name);
                board.error(text);
            }
            self.inlet.send(Input::Control(Control::SessionCleared));
        }
        if self.known.must_subscribe(self.plan.version, session_present, &self.plan.wanted) {
            self.known = self.known.before_connect(&self.plan.wanted);
            self.sender.subscribe(&self.plan.wanted);
        } else {
            self.granted = true;
            board.state("up");
            self.birth();
        }
        if session_present {
            for filter in self.known.unwanted(&self.plan.wanted) {
                log::info!(
                    "source {}: unsubscribing from {filter}, which is no longer configured",
                    self.plan.board.name
                );
                self.unsubscribing += usize::from(self.sender.unsubscribe(&filter));
            }
        }
        self.settle();
    }

    fn subscribed(&mut self, granted: &[Result<Qos, String>]) {
        let text = shortfall(&self.plan.wanted, granted);
        if self.plan.board.alarm("subscription", text.clone()) {
            match text {
                Some(text) => log::error!("source {}: {text}", self.plan.board.name),
                None => log::info!("source {}: all subscriptions are granted now", self.plan.board.name),
            }
        }
        // Not before: what is published to a new session without subscriptions reaches nobody.
        self.plan.board.state("up");
        self.granted = all_held(&self.plan.wanted, granted);
        self.subscribe_again = (!self.granted).then(Instant::now);
        self.birth();
        self.settle();
    }

    /// Remembers the subscriptions once the broker confirmed all of them.
    fn settle(&mut self) {
        if !self.granted || self.unsubscribing > 0 {
            return;
        }
        let now = Subscriptions::granted(&self.plan.wanted);
        self.known = now.clone();
        if self.plan.version != 3 && self.loaded == now {
            return;
        }
        let (file, name, before) = (self.plan.file.clone(), self.plan.board.name.clone(), self.storing.take());
        self.storing = Some(tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            super::store(file, now, &name).await;
        }));
    }

    fn birth(&mut self) {
        if let (Some(status), false) = (&self.plan.status, self.born) {
            self.born = self.sender.publish_retained(&status.topic, &status.online);
        }
    }

    fn own_taken(&mut self, outcome: Result<(), String>) {
        let text = outcome.err().map(|why| {
            let topic = self.plan.status.as_ref().map_or("", |status| &status.topic);
            format!("the broker refused our status on {topic} ({why}): allow it, or set status_topic = \"off\"")
        });
        let is_new = self.plan.board.alarm("status_topic", text.clone());
        if let Some(text) = text.filter(|_| is_new) {
            log::warn!("source {}: {text}", self.plan.board.name);
        }
        if matches!(self.phase, Phase::Farewell(_)) {
            self.leave(End::Stopped);
        }
    }

    fn message(&mut self, publish: Publish) {
        if !matches!(self.phase, Phase::Taking) && publish.qos != Qos::AtMostOnce {
            // Unacknowledged: the broker sends it again on the next connection.
            self.forget(&publish);
            return;
        }
        if let Err(NoRoom(publish)) = self.inlet.message(publish) {
            self.forget(&publish);
            self.leave_for_room();
        }
    }

    fn leave_for_room(&mut self) {
        let why = if self.plan.held.is_outside() {
            "the outbox does not let it in (its share_max, or its priority)"
        } else {
            "the outbox takes nothing and what may be held of held_bytes_max is used up"
        };
        let name = &self.plan.board.name;
        log::warn!("source {name}: {why}; disconnecting until there is room, the broker keeps the rest");
        self.plan.board.state("held");
        // Leaving at once would leave all that is held unacknowledged: the broker would begin with the same messages
        // again, and if they alone fill the room, never get further.
        self.drain(End::Held, Some(Instant::now() + DRAIN_WITHIN));
    }

    /// A message that is not taken, but whose DUP = 0 says that its identifier begins anew: what the log knows under it is
    /// over. Else its redelivery could be taken for one of an older message with the same payload.
    fn forget(&self, publish: &Publish) {
        if !publish.dup {
            self.inlet.send(Input::Control(Control::Released(vec![publish.id])));
        }
    }

    fn tick(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.events != self.events_seen.0 {
            self.events_seen = (self.events, now);
        }
        match &self.phase {
            Phase::Farewell(deadline) if now >= *deadline => self.leave(End::Stopped),
            Phase::Leaving(deadline, end) if now >= *deadline => return Some(end.clone()),
            Phase::Draining { deadline: Some(deadline), end, .. } if now >= *deadline => self.leave(end.clone()),
            _ => {}
        }
        let lasted = self.connected_at?.elapsed();
        if lasted >= LONG_SESSION {
            self.plan.board.alarm("take_over", None);
        }
        if self.subscribe_again.is_some_and(|at| at.elapsed() >= SUBSCRIBE_AGAIN) {
            self.subscribe_again = Some(now);
            self.sender.subscribe(&self.plan.wanted);
        }
        self.inlet.tell_losses();
        // A ping leaves at every keep-alive interval, so silence means that not even a write gets through.
        let silence = now.duration_since(self.events_seen.1);
        (silence > self.keep_alive * 2 + Duration::from_secs(5))
            .then(|| End::Lost(LinkError::Broken(format!("the connection stood still for {} s", silence.as_secs()))))
    }

    /// Takes nothing more and waits for what was taken.
    fn drain(&mut self, end: End, deadline: Option<Instant>) {
        let (done, drained) = oneshot::channel();
        self.inlet.send(Input::Flush(done));
        self.phase = Phase::Draining { drained, deadline, end };
    }

    /// Whether this connection is about to end because the source stops.
    fn stops(&self) -> bool {
        match &self.phase {
            Phase::Taking => false,
            Phase::Draining { end, .. } | Phase::Leaving(_, end) => *end == End::Stopped,
            Phase::Farewell(_) => true,
        }
    }

    /// Everything taken is acknowledged.
    fn drained(&mut self) {
        match &self.phase {
            Phase::Draining { end: End::Stopped, .. } => self.farewell(),
            Phase::Draining { end, .. } => self.leave(end.clone()),
            _ => {}
        }
    }

    fn farewell(&mut self) {
        match &self.plan.status {
            Some(status) if self.born => {
                self.sender.publish_retained(&status.topic, &status.offline);
                self.phase = Phase::Farewell(Instant::now() + FAREWELL_WITHIN);
            }
            _ => self.leave(End::Stopped),
        }
    }

    /// Sends DISCONNECT behind the acknowledgements that wait; the session stays at the broker.
    fn leave(&mut self, end: End) {
        self.sender.disconnect();
        self.phase = Phase::Leaving(Instant::now() + FAREWELL_WITHIN, end);
    }
}

/// Resolves once everything taken is answered (or never will be, because the outbox is closed).
async fn drained(phase: &mut Phase) {
    match phase {
        Phase::Draining { drained, .. } => {
            let _ = drained.await;
        }
        _ => std::future::pending().await,
    }
}
