//! One connection of a fleet: the poll loop, and the open publishes behind one lock.
//!
//! The client's own bookkeeping is not enough: it forgets everything queued when the broker does not know the session any
//! more. So after every break its events are taken out before anything new is published, and if the session is lost all
//! that is open is published again from [`Flight`]. While the connection is down nothing is handed to the client.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rumqttc::{AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, Outgoing, Packet};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::WINDOW;
use super::options::{self, FleetOptions};
use crate::backoff::Backoff;
use crate::record::Qos;
use crate::simulate::flight::{Flight, Sample};
use crate::simulate::{Event, Observer};

/// How long the first connection may take.
const FIRST_CONNECT: Duration = Duration::from_secs(15);

/// Room in the client's channel: the window, and the goodbye.
const CHANNEL: usize = WINDOW + 8;

pub(super) struct Connection {
    qos: Qos,
    topics: Vec<String>,
    names: Vec<String>,
    observer: Arc<dyn Observer>,
    state: Mutex<State>,
    changed: Notify,
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Connecting,
    Connected,
    /// Broken before it was ever whole; why.
    Failed(String),
}

#[derive(Default)]
struct State {
    client: Option<AsyncClient>,
    connected: bool,
    flight: Flight,
    /// Given back by a lost session, or not yet handed over because the connection is down.
    waiting: VecDeque<Sample>,
}

/// The poll task.
pub(super) struct Poller {
    task: JoinHandle<()>,
    client: AsyncClient,
}

impl Poller {
    /// Says goodbye and ends the task.
    pub(super) async fn finish(mut self) {
        if self.client.try_disconnect().is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(2), &mut self.task).await;
        }
        self.task.abort();
    }
}

impl Connection {
    pub(super) fn new(qos: Qos, topics: Vec<String>, names: Vec<String>, observer: Arc<dyn Observer>) -> Self {
        let phase = watch::channel(Phase::Connecting).0;
        Self { qos, topics, names, observer, state: Mutex::default(), changed: Notify::new(), phase }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn start(self: &Arc<Self>, options: &FleetOptions, lane: usize) -> Result<Poller, String> {
        let (client, mut eventloop) = AsyncClient::new(options.mqtt(options.client_id(lane), false), CHANNEL);
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        eventloop.set_network_options(network);
        self.state().client = Some(client.clone());
        let task = tokio::spawn(Arc::clone(self).poll(eventloop));
        Ok(Poller { task, client })
    }

    /// Readings not yet acknowledged.
    pub(super) fn open(&self) -> usize {
        let state = self.state();
        state.flight.len() + state.waiting.len()
    }

    /// Waits for the first connection; `Err` says why there is none. Being told to stop is no error.
    pub(super) async fn wait_connected(&self, stop: &mut watch::Receiver<bool>) -> Result<(), String> {
        let mut phase = self.phase.subscribe();
        let outcome = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            outcome = tokio::time::timeout(FIRST_CONNECT, phase.wait_for(|phase| *phase != Phase::Connecting)) => outcome,
        };
        match outcome {
            Ok(Ok(phase)) => match &*phase {
                Phase::Failed(reason) => Err(reason.clone()),
                _ => Ok(()),
            },
            _ => Err(format!("no answer within {} s", FIRST_CONNECT.as_secs())),
        }
    }

    /// Waits until one more reading may be open. False: told to stop.
    pub(super) async fn wait_room(&self, stop: &mut watch::Receiver<bool>) -> bool {
        loop {
            if *stop.borrow() {
                return false;
            }
            if self.open() < WINDOW && self.state().connected {
                return true;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                _ = stop.wait_for(|stop| *stop) => return false,
            }
        }
    }

    /// Publishes, or keeps it for the next connection. Call [`Connection::wait_room`] first.
    pub(super) fn publish(&self, sample: Sample) {
        let mut state = self.state();
        state.waiting.push_back(sample);
        self.hand_over(&mut state);
    }

    /// Gives the client all that waits. The channel has room for the whole window, so it cannot be full.
    fn hand_over(&self, state: &mut State) {
        if !state.connected {
            return;
        }
        let Some(client) = state.client.clone() else { return };
        while let Some(sample) = state.waiting.pop_front() {
            let topic = &self.topics[sample.device];
            if client.try_publish(topic, options::qos(self.qos), false, sample.payload.clone()).is_err() {
                state.waiting.push_front(sample);
                return;
            }
            state.flight.queue(sample);
        }
    }

    async fn poll(self: Arc<Self>, mut eventloop: EventLoop) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut ever = false;
        loop {
            match eventloop.poll().await {
                Ok(rumqttc::Event::Incoming(Packet::ConnAck(connack))) => {
                    ever = true;
                    backoff.reset();
                    self.connected(connack.session_present);
                }
                Ok(rumqttc::Event::Outgoing(Outgoing::Disconnect)) => return,
                Ok(event) => self.handle(&event),
                Err(error) => {
                    self.broken(&mut eventloop);
                    if !ever && is_final(&error) {
                        self.phase.send_replace(Phase::Failed(error.to_string()));
                        return;
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    fn connected(&self, session_present: bool) {
        let mut state = self.state();
        state.connected = true;
        if !session_present {
            self.publish_again(&mut state);
        }
        self.hand_over(&mut state);
        drop(state);
        self.phase.send_replace(Phase::Connected);
        self.changed.notify_one();
    }

    fn publish_again(&self, state: &mut State) {
        let lost = state.flight.session_lost();
        for sample in &lost.owned {
            self.tell_acknowledged(sample);
        }
        for (sample, was_sent) in lost.again.into_iter().rev() {
            if was_sent {
                self.tell_resent(&sample);
            }
            state.waiting.push_front(sample);
        }
    }

    /// The connection broke: takes what the client still holds, so that nothing of it is mixed with what comes next.
    fn broken(&self, eventloop: &mut EventLoop) {
        let mut state = self.state();
        state.connected = false;
        eventloop.clean();
        let late: Vec<_> = eventloop.state.events.drain(..).collect();
        drop(state);
        late.iter().for_each(|event| self.handle(event));
    }

    fn handle(&self, event: &rumqttc::Event) {
        let mut state = self.state();
        match event {
            rumqttc::Event::Outgoing(Outgoing::Publish(packet)) => {
                if let Some(sample) = state.flight.sent(*packet) {
                    self.tell_resent(sample);
                }
            }
            rumqttc::Event::Incoming(Packet::PubRec(pubrec)) => state.flight.owned(pubrec.pkid),
            rumqttc::Event::Incoming(Packet::PubAck(ack)) => self.done(&mut state, ack.pkid),
            rumqttc::Event::Incoming(Packet::PubComp(comp)) => self.done(&mut state, comp.pkid),
            _ => return,
        }
        drop(state);
        self.changed.notify_one();
    }

    fn done(&self, state: &mut State, packet: u16) {
        if let Some(sample) = state.flight.acknowledged(packet) {
            self.tell_acknowledged(&sample);
        }
    }

    fn tell_acknowledged(&self, sample: &Sample) {
        self.observer.on(Event::Acknowledged { device: &self.names[sample.device], counter: sample.counter });
    }

    fn tell_resent(&self, sample: &Sample) {
        self.observer.on(Event::Resent { device: &self.names[sample.device], counter: sample.counter });
    }
}

/// Errors that waiting does not cure, and a broker that is not there at the very first try.
fn is_final(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::ConnectionRefused(code) => *code != ConnectReturnCode::ServiceUnavailable,
        ConnectionError::Io(_) | ConnectionError::Tls(_) | ConnectionError::NetworkTimeout => true,
        _ => false,
    }
}

/// Connects as `client_id` with a clean session, which removes the kept one from the broker. Best effort: a session that
/// stays costs the broker a few bytes and is empty.
pub async fn forget_session(options: &FleetOptions, client_id: String) {
    let (client, mut eventloop) = AsyncClient::new(options.mqtt(client_id.clone(), true), 2);
    let goodbye = async {
        while let Ok(event) = eventloop.poll().await {
            match event {
                rumqttc::Event::Incoming(Packet::ConnAck(_)) if client.try_disconnect().is_err() => return,
                rumqttc::Event::Outgoing(Outgoing::Disconnect) => return,
                _ => {}
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(2), goodbye).await.is_err() {
        log::debug!("the session of {client_id} was not removed: no answer");
    }
}
