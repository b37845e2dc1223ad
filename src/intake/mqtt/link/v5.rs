//! MQTT 5.

use std::sync::OnceLock;
use std::time::Duration;

use bytestring::ByteString;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill, Packet, PubAckReason, Publish,
    RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event as WireEvent, EventLoop, MqttOptions, MqttState, StateError};

use super::{Event, LinkError, OWN_IN_FLIGHT_MAX, QUEUE_MAX, Settings};
use crate::record::Qos;

pub(in crate::intake::mqtt) struct Link {
    client: AsyncClient,
    events: EventLoop,
    connected: bool,
    /// As configured.
    keep_alive: Duration,
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
    let publish = Publish { pkid: id, qos: QoS::ExactlyOnce, ..Publish::default() };
    if state.handle_incoming_packet(Packet::Publish(publish)).is_ok() {
        state.events.pop_back();
    }
}

impl Link {
    pub(super) fn new(settings: &Settings) -> Self {
        let (host, port, transport) = super::transport(settings);
        let mut options = MqttOptions::new(settings.client_id.clone(), host, port);
        options
            .set_transport(transport)
            .set_network_options(super::network_options())
            .set_connection_timeout(super::CONNECT_WITHIN.as_secs())
            .set_keep_alive(settings.keep_alive)
            .set_clean_start(false)
            .set_manual_acks(true)
            .set_outgoing_inflight_upper_limit(OWN_IN_FLIGHT_MAX);
        if let Some((user, password)) = &settings.credentials {
            options.set_credentials(user.clone(), password.clone());
        }
        if let Some((topic, payload)) = &settings.will {
            options.set_last_will(LastWill::new(topic.clone(), payload.clone(), QoS::AtLeastOnce, true, None));
        }
        // Topic aliases stay off: the library hands aliased messages out with an empty topic.
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX));
        properties.receive_maximum = Some(settings.receive_maximum);
        properties.max_packet_size = Some(settings.packet_bytes_max);
        options.set_connect_properties(properties);
        let (client, mut events) = AsyncClient::new(options, QUEUE_MAX);
        events.state = seeded_state();
        Self { client, events, connected: false, keep_alive: settings.keep_alive }
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
                // A broker may switch the keep-alive off (0). The library would then ping without a pause; we ping as
                // configured, which proves acknowledgements and notices a dead link.
                if self.events.options.keep_alive().is_zero() {
                    self.events.options.set_keep_alive(self.keep_alive);
                }
                Event::Connected { session_present: ack.session_present, keep_alive: self.events.options.keep_alive() }
            }
            WireEvent::Incoming(Packet::SubAck(ack)) => {
                Event::Subscribed(ack.return_codes.into_iter().map(granted).collect())
            }
            WireEvent::Incoming(Packet::UnsubAck(_)) => Event::Unsubscribed,
            WireEvent::Incoming(Packet::PubAck(ack)) => Event::OwnTaken(match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
                reason => Err(format!("{reason:?}")),
            }),
            WireEvent::Incoming(Packet::PingResp(_)) => Event::PingAnswered,
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
            ConnectionError::ConnectionRefused(code) => LinkError::Refused(refusal(code)),
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
                if reason_code == DisconnectReasonCode::SessionTakenOver {
                    return LinkError::TakenOver;
                }
                let why = reason_string.map_or_else(String::new, |text| format!(": {text}"));
                LinkError::Broken(format!("the broker ended the connection ({reason_code:?}{why})"))
            }
            ConnectionError::MqttState(StateError::Deserialization(CodecError::PayloadSizeLimitExceeded {
                pkt_size,
                ..
            })) => LinkError::TooLarge(pkt_size),
            ConnectionError::MqttState(StateError::IncomingPacketTooLarge { pkt_size, .. }) => {
                LinkError::TooLarge(pkt_size)
            }
            ConnectionError::Io(error) if !self.connected => super::unreachable(&error),
            ConnectionError::Timeout(_) => LinkError::Broken("no CONNACK came in time".to_owned()),
            ConnectionError::Tls(error) => LinkError::Broken(format!("TLS failed: {error}")),
            other => LinkError::Broken(other.to_string()),
        }
    }
}

impl Sender {
    pub(super) fn acknowledge(&self, id: u16, qos: Qos) -> bool {
        self.0.try_ack(&Publish { pkid: id, qos: wire_qos(qos), ..Publish::default() }).is_ok()
    }

    pub(super) fn subscribe(&self, filters: &[(String, Qos)]) -> bool {
        let filter = |(path, qos): &(String, Qos)| {
            let mut filter = Filter::new(path.clone(), wire_qos(*qos));
            // Shared subscriptions must not set No Local (3.8.3.1); elsewhere our own status must not come back.
            filter.nolocal = !path.starts_with("$share/");
            filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
            filter
        };
        self.0.try_subscribe_many(filters.iter().map(filter)).is_ok()
    }

    pub(super) fn unsubscribe(&self, filter: &str) -> bool {
        self.0.try_unsubscribe(filter).is_ok()
    }

    pub(super) fn publish_retained(&self, topic: &str, payload: &str) -> bool {
        self.0.try_publish(topic, QoS::AtLeastOnce, true, payload.to_owned()).is_ok()
    }

    pub(super) fn disconnect(&self) -> bool {
        self.0.try_disconnect().is_ok()
    }
}

fn refusal(code: ConnectReturnCode) -> String {
    use ConnectReturnCode as Code;
    let hint = match code {
        Code::BadUserNamePassword | Code::NotAuthorized => "; look at username, password and client certificate",
        Code::ClientIdentifierNotValid | Code::BadClientId => "; look at client_id",
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => "; try version = 3",
        Code::RetainNotSupported | Code::QoSNotSupported | Code::TopicNameInvalid => {
            "; it does not take our last will: set status_topic = \"off\" or another topic"
        }
        _ => "",
    };
    format!("{code:?}{hint}")
}

fn message(publish: Publish) -> super::Publish {
    let topic = ByteString::try_from(publish.topic).unwrap_or_else(|_| ByteString::from_static("invalid-utf-8"));
    super::Publish {
        topic,
        payload: publish.payload,
        qos: our_qos(publish.qos),
        id: publish.pkid,
        dup: publish.dup,
        retain: publish.retain,
        content_type: publish.properties.and_then(|p| p.content_type).map(ByteString::from).unwrap_or_default(),
    }
}

fn granted(code: SubscribeReasonCode) -> Result<Qos, String> {
    match code {
        SubscribeReasonCode::Success(qos) => Ok(our_qos(qos)),
        reason => Err(format!("{reason:?}")),
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
