//! A broker that does what a test tells it, packet by packet: MQTT 5 and 3.1.1, as far as a subscriber sees them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest wait for anything: only a failed test waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Broker {
    listener: TcpListener,
}

/// What the client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    Subscribe {
        id: u16,
        filters: Vec<(String, u8)>,
    },
    Unsubscribe {
        id: u16,
        filter: String,
    },
    Publish {
        topic: String,
        payload: String,
        retain: bool,
    },
    PubAck(u16),
    PubRec(u16),
    PubComp(u16),
    PingReq,
    Disconnect,
    /// The connection is closed.
    End,
}

/// One connection, seen from the broker.
pub(super) struct Client {
    stream: TcpStream,
    v5: bool,
    pub(super) client_id: String,
    pub(super) clean: bool,
    /// MQTT 5 properties of CONNECT as bytes.
    pub(super) properties: Vec<u8>,
    /// Bytes after the client id: will, user, password.
    pub(super) rest: Vec<u8>,
}

impl Broker {
    pub(super) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(super) fn url(&self) -> String {
        format!("mqtt://{}", self.listener.local_addr().unwrap())
    }

    /// The next client, up to its CONNECT.
    pub(super) async fn accept(&self) -> Client {
        let accepted = tokio::time::timeout(PATIENCE, self.listener.accept()).await.expect("nobody connects");
        let mut stream = accepted.unwrap().0;
        stream.set_nodelay(true).unwrap();
        let (kind, body) = read_packet(&mut stream).await.expect("CONNECT");
        assert_eq!(kind, 0x10, "CONNECT comes first");
        let v5 = body[6] == 5;
        let mut at = 10;
        let mut properties = Vec::new();
        if v5 {
            let length = usize::from(body[at]);
            properties = body[at + 1..at + 1 + length].to_vec();
            at += 1 + length;
        }
        let (client_id, rest) = text(&body[at..]);
        Client { stream, v5, client_id, clean: body[7] & 2 != 0, properties, rest: rest.to_vec() }
    }

    /// Accepts, answers CONNACK, grants the SUBSCRIBE if one must come, takes the birth message.
    pub(super) async fn welcome(&self, session_present: bool, subscribes: bool) -> Client {
        let mut client = self.accept().await;
        client.connack(session_present).await;
        if subscribes {
            client.grant().await;
        }
        client.birth().await;
        client
    }
}

impl Client {
    pub(super) async fn connack(&mut self, session_present: bool) {
        let flags = u8::from(session_present);
        if self.v5 { self.send(0x20, &[flags, 0, 0]).await } else { self.send(0x20, &[flags, 0]).await }
    }

    /// Answers SUBSCRIBE with what was asked.
    pub(super) async fn grant(&mut self) {
        let Packet::Subscribe { id, filters } = self.next().await else { panic!("SUBSCRIBE expected") };
        let codes: Vec<u8> = filters.iter().map(|(_, qos)| *qos).collect();
        self.suback(id, &codes).await;
    }

    pub(super) async fn suback(&mut self, id: u16, codes: &[u8]) {
        let mut body = id.to_be_bytes().to_vec();
        if self.v5 {
            body.push(0);
        }
        body.extend_from_slice(codes);
        self.send(0x90, &body).await;
    }

    pub(super) async fn birth(&mut self) {
        let Packet::Publish { payload, retain, .. } = self.next().await else { panic!("birth expected") };
        assert!(payload.contains("online") && retain, "{payload}");
    }

    pub(super) async fn publish(&mut self, id: u16, qos: u8, dup: bool, payload: &str) {
        self.publish_to("plant/a/line-1/telemetry", id, qos, dup, false, payload).await;
    }

    pub(super) async fn publish_to(&mut self, topic: &str, id: u16, qos: u8, dup: bool, retain: bool, payload: &str) {
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        if qos > 0 {
            body.extend_from_slice(&id.to_be_bytes());
        }
        if self.v5 {
            body.push(0);
        }
        body.extend_from_slice(payload.as_bytes());
        self.send(0x30 | u8::from(dup) << 3 | qos << 1 | u8::from(retain), &body).await;
    }

    pub(super) async fn pubrel(&mut self, id: u16) {
        self.send(0x62, &id.to_be_bytes()).await;
    }

    /// The next packet; PINGREQ and own publications are answered on the way, and pings are not shown.
    pub(super) async fn next(&mut self) -> Packet {
        loop {
            match self.next_raw().await {
                Packet::PingReq => self.send(0xd0, &[]).await,
                packet => return packet,
            }
        }
    }

    /// The next packet, pings unanswered.
    pub(super) async fn next_raw(&mut self) -> Packet {
        let read = tokio::time::timeout(PATIENCE, read_packet(&mut self.stream)).await.expect("nothing comes");
        let Some((kind, body)) = read else { return Packet::End };
        let id = |body: &[u8]| u16::from_be_bytes([body[0], body[1]]);
        match kind & 0xf0 {
            0x30 => self.own_publish(kind, &body).await,
            0x40 => Packet::PubAck(id(&body)),
            0x50 => Packet::PubRec(id(&body)),
            0x70 => Packet::PubComp(id(&body)),
            0x80 => {
                let mut rest = &body[if self.v5 { 3 } else { 2 }..];
                let mut filters = Vec::new();
                while !rest.is_empty() {
                    let (filter, after) = text(rest);
                    filters.push((filter, after[0] & 3));
                    rest = &after[1..];
                }
                Packet::Subscribe { id: id(&body), filters }
            }
            0xa0 => {
                let filter = text(&body[if self.v5 { 3 } else { 2 }..]).0;
                Packet::Unsubscribe { id: id(&body), filter }
            }
            0xc0 => Packet::PingReq,
            0xe0 => Packet::Disconnect,
            other => panic!("packet {other:#x} is not expected"),
        }
    }

    pub(super) async fn pong(&mut self) {
        self.send(0xd0, &[]).await;
    }

    pub(super) async fn unsuback(&mut self, id: u16) {
        let mut body = id.to_be_bytes().to_vec();
        if self.v5 {
            body.extend_from_slice(&[0, 0]);
        }
        self.send(0xb0, &body).await;
    }

    async fn own_publish(&mut self, kind: u8, body: &[u8]) -> Packet {
        let (topic, rest) = text(body);
        let id = [rest[0], rest[1]];
        let payload = &rest[if self.v5 { 3 } else { 2 }..];
        self.send(0x40, &id).await;
        Packet::Publish { topic, payload: String::from_utf8(payload.to_vec()).unwrap(), retain: kind & 1 == 1 }
    }

    pub(super) async fn send(&mut self, kind: u8, body: &[u8]) {
        let mut packet = vec![kind];
        let mut length = body.len();
        loop {
            let more = if length > 127 { 0x80 } else { 0 };
            packet.push((length & 127) as u8 | more);
            length >>= 7;
            if length == 0 {
                break;
            }
        }
        packet.extend_from_slice(body);
        // The client may have gone: what it does then is what the test is about.
        let _ = self.stream.write_all(&packet).await;
    }
}

fn text(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (String::from_utf8(bytes[2..2 + length].to_vec()).unwrap(), &bytes[2 + length..])
}

async fn read_packet(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await.ok()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.ok()?;
        length |= usize::from(byte & 127) << shift;
        shift += 7;
        if byte & 128 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((kind, body))
}
