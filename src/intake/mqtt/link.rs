//! One connection to a broker. The only place that names the MQTT client library; MQTT 5 and 3.1.1 behind one interface.
//!
//! Limits and rules:
//!
//! - A link lives for exactly one connection and is thrown away with it: its queue of acknowledgements, its unread
//!   events and its packet state die together, so that nothing of an old connection can reach a new one. (The library
//!   would keep all three; an acknowledgement that survives a lost session acknowledges another message: a loss.)
//! - Nothing is acknowledged by itself; acknowledgements go through [`Sender`], which never blocks.
//! - The receiving side knows every packet identifier of QoS 2 from the start, so that any PUBREL gets its PUBCOMP as MQTT
//!   5 asks (4.3.3); what is a duplicate is decided by the outbox's durable table.
//! - Whoever owns a link calls [`Link::next`] again at once and does not drop the future unless it drops the link.

mod acks;
mod v3;
mod v5;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use rustls::ClientConfig;

use super::url::Endpoint;
use crate::record::Qos;
use acks::Acks;

/// Requests that may wait for the wire: what [`acks::Acks`] puts there, and more than we ever send besides.
const QUEUE_MAX: usize = 4096;
/// Own publications (the status topic) in flight.
const OWN_IN_FLIGHT_MAX: u16 = 16;
/// Until TCP, TLS and CONNACK must be done.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// How to connect. Holds secrets: has no `Debug`.
pub(super) struct Settings {
    pub(super) endpoint: Endpoint,
    /// 5 or 3.
    pub(super) version: u8,
    pub(super) client_id: String,
    pub(super) credentials: Option<(String, String)>,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) keep_alive: Duration,
    pub(super) session_expiry: Duration,
    pub(super) receive_maximum: u16,
    pub(super) packet_bytes_max: u32,
    /// Topic and payload of the last will, retained, QoS 1.
    pub(super) will: Option<(String, String)>,
}

/// A PUBLISH.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) topic: ByteString,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    /// 0 at QoS 0.
    pub(super) id: u16,
    pub(super) dup: bool,
    pub(super) retain: bool,
    /// MQTT 5, empty if none.
    pub(super) content_type: ByteString,
}

/// What happened on the wire, in order.
#[derive(Debug)]
pub(super) enum Event {
    /// CONNACK. `keep_alive`: the interval in force, for the broker may set its own (MQTT 5).
    Connected {
        session_present: bool,
        keep_alive: Duration,
    },
    Publish(Publish),
    /// PUBREL: the broker is done with this identifier (QoS 2).
    Released(u16),
    /// A PUBACK left.
    AckWritten(u16),
    /// A PUBREC left.
    ReceiptWritten,
    PingWritten,
    PingAnswered,
    /// SUBACK: what was granted per filter, or why not.
    Subscribed(Vec<Result<Qos, String>>),
    Unsubscribed,
    /// PUBACK of an own publication: `Err` if the broker refused it.
    OwnTaken(Result<(), String>),
    /// DISCONNECT left: the link is at its end.
    DisconnectWritten,
    /// Of no interest.
    Other,
}

/// Why a connection did not come about, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum LinkError {
    /// Nobody was reached: no CONNECT can have been sent.
    #[error("{0}")]
    Unreachable(String),
    /// The broker refused us.
    #[error("the broker refused the connection: {0}")]
    Refused(String),
    /// Another client took our session over (reason 0x8E).
    #[error("another client with the same client id took the session over")]
    TakenOver,
    /// A packet above `packet_bytes_max` was on its way; its size in bytes.
    #[error("the broker sends a packet of {0} bytes, above packet_bytes_max")]
    TooLarge(usize),
    /// The rest: the connection broke.
    #[error("{0}")]
    Broken(String),
}

/// See the module's description.
pub(super) struct Link {
    events: Events,
    sender: Sender,
}

enum Events {
    V5(Box<v5::Link>),
    V3(Box<v3::Link>),
}

/// The sending side of a link. Clones send on the same connection; after its end nothing is sent any more.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    wire: Wire,
    acks: Arc<Acks>,
}

#[derive(Debug, Clone)]
enum Wire {
    V5(v5::Sender),
    V3(v3::Sender),
}

impl Link {
    /// Makes ready; connects with the first [`Link::next`].
    pub(super) fn new(settings: &Settings) -> Self {
        let events = match settings.version {
            3 => Events::V3(Box::new(v3::Link::new(settings))),
            _ => Events::V5(Box::new(v5::Link::new(settings))),
        };
        let wire = match &events {
            Events::V5(link) => Wire::V5(link.sender()),
            Events::V3(link) => Wire::V3(link.sender()),
        };
        Self { events, sender: Sender { wire, acks: Arc::default() } }
    }

    /// The sending side.
    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// What happens next. After an error the link is dead. Not safe to cancel.
    pub(super) async fn next(&mut self) -> Result<Event, LinkError> {
        let event = match &mut self.events {
            Events::V5(link) => link.next().await,
            Events::V3(link) => link.next().await,
        };
        if matches!(event, Ok(Event::AckWritten(_) | Event::ReceiptWritten)) {
            self.sender.acks.written(&self.sender.wire);
        }
        event
    }

    /// QoS 0 messages that were received but not yet handed out when the connection broke.
    pub(super) fn leftovers(&mut self) -> Vec<Publish> {
        match &mut self.events {
            Events::V5(link) => link.leftovers(),
            Events::V3(link) => link.leftovers(),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.sender.acks.close();
    }
}

impl Sender {
    /// Sends PUBACK (QoS 1) or PUBREC (QoS 2), in the order of the calls. `false`: the connection is gone.
    pub(super) fn acknowledge(&self, id: u16, qos: Qos) -> bool {
        self.acks.push(&self.wire, id, qos)
    }

    /// Sends one SUBSCRIBE. `false`: the connection is gone.
    pub(super) fn subscribe(&self, filters: &[(String, Qos)]) -> bool {
        match &self.wire {
            Wire::V5(sender) => sender.subscribe(filters),
            Wire::V3(sender) => sender.subscribe(filters),
        }
    }

    /// Sends one UNSUBSCRIBE. `false`: the connection is gone.
    pub(super) fn unsubscribe(&self, filter: &str) -> bool {
        match &self.wire {
            Wire::V5(sender) => sender.unsubscribe(filter),
            Wire::V3(sender) => sender.unsubscribe(filter),
        }
    }

    /// Publishes, QoS 1, retained. `false`: the connection is gone.
    pub(super) fn publish_retained(&self, topic: &str, payload: &str) -> bool {
        match &self.wire {
            Wire::V5(sender) => sender.publish_retained(topic, payload),
            Wire::V3(sender) => sender.publish_retained(topic, payload),
        }
    }

    /// Sends DISCONNECT after everything acknowledged or sent so far. `false`: the connection is gone.
    pub(super) fn disconnect(&self) -> bool {
        self.acks.leave(&self.wire)
    }
}

impl Wire {
    fn acknowledge(&self, id: u16, qos: Qos) -> bool {
        match self {
            Self::V5(sender) => sender.acknowledge(id, qos),
            Self::V3(sender) => sender.acknowledge(id, qos),
        }
    }

    fn disconnect(&self) -> bool {
        match self {
            Self::V5(sender) => sender.disconnect(),
            Self::V3(sender) => sender.disconnect(),
        }
    }
}

/// Host (or socket, or URL) and port as the library wants them, and its transport.
fn transport(settings: &Settings) -> (String, u16, rumqttc::Transport) {
    use rumqttc::{TlsConfiguration, Transport};
    let tls = || {
        let config = settings.tls.clone().expect("an encrypted endpoint comes with a TLS configuration");
        TlsConfiguration::Rustls(config)
    };
    match &settings.endpoint {
        Endpoint::Tcp { host, port, tls: false } => (host.clone(), *port, Transport::Tcp),
        Endpoint::Tcp { host, port, tls: true } => (host.clone(), *port, Transport::tls_with_config(tls())),
        Endpoint::WebSocket { url, tls: false } => (url.clone(), 0, Transport::Ws),
        Endpoint::WebSocket { url, tls: true } => (url.clone(), 0, Transport::wss_with_config(tls())),
        Endpoint::Unix { path } => (path.clone(), 0, Transport::Unix),
    }
}

/// TCP_NODELAY: an acknowledgement must not wait for the one before it.
fn network_options() -> rumqttc::NetworkOptions {
    let mut options = rumqttc::NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(CONNECT_WITHIN.as_secs());
    options
}

/// An I/O error before the connection stood, in words for the owner.
fn unreachable(error: &std::io::Error) -> LinkError {
    LinkError::Unreachable(format!("cannot reach the broker: {error}"))
}
