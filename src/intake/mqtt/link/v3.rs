//! MQTT 3.1.1.

use std::sync::OnceLock;

use bytes::Bytes;
use bytestring::ByteString;
use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event as WireEvent, EventLoop, LastWill, MqttOptions, MqttState,
    Outgoing, Packet, Publish, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
};

use super::{Event, LinkError, OWN_IN_FLIGHT_MAX, QUEUE_MAX, Settings};
use crate::record::Qos;

pub(in crate::intake::mqtt) struct Link {
    client: AsyncClient,
    events: EventLoop,
    connected: bool,
}

#[derive(Debug, Clone)]
pub(in crate::intake::mqtt) struct Sender(AsyncClient);

/// Packet state in which every identifier of QoS 2 is known. The library can be taught only by showing it a PUBLISH.
fn seeded_state() -> MqttState {
    static SEEDED: OnceLock<MqttState> = OnceLock::new();
    let make = || {
        let mut state = MqttState::new(OWN_IN_FLIGHT_MAX, true);
        for id in 1..=u16::MAX {
            know(&mut state, id);
        }
        state.events.shrink_to(16);
        state
    };
    SEEDED.get_or_init(make).clone()
}

/// Makes the state expect a PUBREL of this identifier.
fn know(state: &mut MqttState, id: u16) {
    if state.handle_incoming_packet(Packet::Publish(packet(id, QoS::ExactlyOnce))).is_ok() {
        state.events.pop_back();
    }
}

fn packet(id: u16, qos: QoS) -> Publish {
    let mut publish = Publish::from_bytes(String::new(), qos, Bytes::new());
    publish.pkid = id;
    publish
}

impl Link {
    pub(super) fn new(settings: &Settings) -> Self {
        let (host, port, transport) = super::transport(settings);
        let bytes_max = settings.packet_bytes_max as usize;
        let mut options = MqttOptions::new(settings.client_id.clone(), host, port);
        options
            .set_transport(transport)
            .set_keep_alive(settings.keep_alive)
            .set_clean_session(false)
            .set_manual_acks(true)
            .set_max_packet_size(bytes_max, bytes_max)
            .set_inflight(OWN_IN_FLIGHT_MAX);
        if let Some((user, password)) = &settings.credentials {
            options.set_credentials(user.clone(), password.clone());
        }
        if let Some((topic, payload)) = &settings.will {
            options.set_last_will(LastWill::new(topic.clone(), payload.clone(), QoS::AtLeastOnce, true));
        }
        let (client, mut events) = AsyncClient::new(options, QUEUE_MAX);
        events.set_network_options(super::network_options());
        events.state = seeded_state();
        Self { client, events, connected: false }
    }

    pub(super) fn sender(&self) -> Sender {
        Sender(self.client.clone())
    }

    pub(super) async fn next(&mut self) -> Result<Event, LinkError> {
        let event = self.events.poll().await.map_err(|error| self.error(error))?;
        Ok(match event {
            WireEvent::Incoming(Packet::Publish(publish)) => Event::Publish(message(publish)),
            WireEvent::Incoming(Packet::PubRel(release)) => {
                know(&mut self.events.state, release.pkid);
                Event::Released(release.pkid)
            }
            WireEvent::Incoming(Packet::ConnAck(ack)) => {
                self.connected = true;
                Event::Connected {
                    session_present: ack.session_present,
                    keep_alive: self.events.mqtt_options.keep_alive(),
                }
            }
            WireEvent::Incoming(Packet::SubAck(ack)) => {
                Event::Subscribed(ack.return_codes.into_iter().map(granted).collect())
            }
            WireEvent::Incoming(Packet::UnsubAck(_)) => Event::Unsubscribed,
            WireEvent::Incoming(Packet::PubAck(_)) => Event::OwnTaken(Ok(())),
            WireEvent::Incoming(Packet::PingResp) => Event::PingAnswered,
            WireEvent::Outgoing(Outgoing::PubAck(id)) => Event::AckWritten(id),
            WireEvent::Outgoing(Outgoing::PubRec(_)) => Event::ReceiptWritten,
            WireEvent::Outgoing(Outgoing::PingReq) => Event::PingWritten,
            WireEvent::Outgoing(Outgoing::Disconnect) => Event::DisconnectWritten,
            _ => Event::Other,
        })
    }

    pub(super) fn leftovers(&mut self) -> Vec<super::Publish> {
        let unread = self.events.state.events.drain(..);
        let best_effort = unread.filter_map(|event| match event {
            WireEvent::Incoming(Packet::Publish(publish)) if publish.qos == QoS::AtMostOnce => Some(message(publish)),
            _ => None,
        });
        best_effort.collect()
    }

    fn error(&self, error: ConnectionError) -> LinkError {
        match error {
            ConnectionError::ConnectionRefused(code) => {
                let hint = match code {
                    ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                        "; look at username, password and client certificate"
                    }
                    ConnectReturnCode::BadClientId => "; look at client_id",
                    _ => "",
                };
                LinkError::Refused(format!("{code:?}{hint}"))
            }
            ConnectionError::MqttState(StateError::Deserialization(CodecError::PayloadSizeLimitExceeded(size))) => {
                LinkError::TooLarge(size)
            }
            ConnectionError::Io(error) if !self.connected => super::unreachable(&error),
            ConnectionError::NetworkTimeout => LinkError::Broken("no CONNACK came in time".to_owned()),
            ConnectionError::Tls(error) => LinkError::Broken(format!("TLS failed: {error}")),
            other => LinkError::Broken(other.to_string()),
        }
    }
}

impl Sender {
    pub(super) fn acknowledge(&self, id: u16, qos: Qos) -> bool {
        self.0.try_ack(&packet(id, wire_qos(qos))).is_ok()
    }

    pub(super) fn subscribe(&self, filters: &[(String, Qos)]) -> bool {
        let filter = |(path, qos): &(String, Qos)| SubscribeFilter::new(path.clone(), wire_qos(*qos));
        self.0.try_subscribe_many(filters.iter().map(filter)).is_ok()
    }

    pub(super) fn unsubscribe(&self, filter: &str) -> bool {
        self.0.try_unsubscribe(filter).is_ok()
    }

    pub(super) fn publish_retained(&self, topic: &str, payload: &str) -> bool {
        self.0.try_publish(topic, QoS::AtLeastOnce, true, payload).is_ok()
    }

    pub(super) fn disconnect(&self) -> bool {
        self.0.try_disconnect().is_ok()
    }
}

fn message(publish: Publish) -> super::Publish {
    super::Publish {
        topic: publish.topic.into(),
        payload: publish.payload,
        qos: our_qos(publish.qos),
        id: publish.pkid,
        dup: publish.dup,
        retain: publish.retain,
        content_type: ByteString::new(),
    }
}

fn granted(code: SubscribeReasonCode) -> Result<Qos, String> {
    match code {
        SubscribeReasonCode::Success(qos) => Ok(our_qos(qos)),
        SubscribeReasonCode::Failure => Err("refused".to_owned()),
    }
}

fn wire_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn our_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}
