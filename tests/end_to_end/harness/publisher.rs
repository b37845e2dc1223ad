//! A device that publishes over MQTT 3.1.1 and knows what its broker has acknowledged.
//!
//! The packets are rumqttc's; the session is ours: a client library would send again after a reconnect, and a message that the
//! *publisher* doubled could not be told from one that the daemon doubled. What was under way when a connection broke stays
//! without an obligation and is never sent again.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubRel, Publish};
use rumqttc::mqttbytes::{self, QoS};

use super::oracle::Oracle;
use super::{LIMIT, wait_for};

const UNDER_WAY_MAX: usize = 200;
const PACKET_BYTES_MAX: usize = 4 << 20;

pub struct Publisher {
    port: u16,
    client_id: String,
    oracle: Arc<Oracle>,
    /// Length of each payload.
    pub bytes: usize,
    /// User name and password.
    pub login: Option<(String, String)>,
    connection: Option<Connection>,
}

struct Connection {
    stream: TcpStream,
    received: BytesMut,
    /// What each packet identifier in use carries; `None` for what the oracle does not know.
    under_way: HashMap<u16, Option<(String, u64)>>,
    packet_id: u16,
    oracle: Arc<Oracle>,
}

impl Publisher {
    pub fn new(port: u16, client_id: &str, oracle: &Arc<Oracle>) -> Self {
        let (client_id, oracle) = (client_id.to_owned(), Arc::clone(oracle));
        Self { port, client_id, oracle, bytes: 200, login: None, connection: None }
    }

    /// One reading of each device in turn, `count` in all, on `plant/DEVICE/telemetry`; waits for all acknowledgements. At
    /// QoS 0 everything that was written is taken for an obligation: only for tests without faults.
    ///
    /// After a broken connection it connects again and goes on with the next reading.
    pub fn publish(&mut self, devices: &[String], qos: u8, count: usize) {
        for number in 0..count {
            let device = &devices[number % devices.len()];
            let (number, value) = self.oracle.issue(device, self.bytes);
            let topic = format!("plant/{device}/telemetry");
            let sent = self.attempt(|connection| {
                connection.write(&topic, value, qos, Some((device.clone(), number)))?;
                connection.take_answers(UNDER_WAY_MAX)
            });
            if sent && qos == 0 {
                self.oracle.oblige(device, number);
            }
        }
        self.attempt(|connection| connection.take_answers(0));
    }

    /// One reading on a fresh connection, which must be acknowledged: an old one may have ended unseen.
    pub fn publish_fresh(&mut self, device: &str) {
        self.connection = None;
        let before = self.oracle.obliged();
        self.publish(&[device.to_owned()], 1, 1);
        assert_eq!(self.oracle.obliged(), before + 1, "the MQTT broker did not take a fresh reading");
    }

    /// Any payload on any topic, at QoS 1; waits for the acknowledgement. Unknown to the oracle.
    pub fn publish_raw(&mut self, topic: &str, payload: &[u8]) {
        let sent = self.attempt(|connection| {
            connection.write(topic, payload.to_vec(), 1, None)?;
            connection.take_answers(0)
        });
        assert!(sent, "the MQTT broker ended the connection");
    }

    /// Whether it worked. If not, the connection is given up.
    fn attempt(&mut self, action: impl FnOnce(&mut Connection) -> std::io::Result<()>) -> bool {
        let open = || Connection::open(self.port, &self.client_id, self.login.as_ref(), &self.oracle).ok();
        let mut connection =
            self.connection.take().unwrap_or_else(|| wait_for("the MQTT broker to take the publisher", open));
        let worked = action(&mut connection).is_ok();
        self.connection = worked.then_some(connection);
        worked
    }
}

impl Connection {
    fn open(
        port: u16,
        client_id: &str,
        login: Option<&(String, String)>,
        oracle: &Arc<Oracle>,
    ) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let (received, oracle) = (BytesMut::new(), Arc::clone(oracle));
        let mut new = Self { stream, received, under_way: HashMap::new(), packet_id: 0, oracle };
        let mut connect = Connect::new(client_id);
        connect.keep_alive = 0;
        if let Some((user, password)) = login {
            connect.set_login(user, password);
        }
        new.put(&Packet::Connect(connect))?;
        match new.take()? {
            Packet::ConnAck(answer) if answer.code == ConnectReturnCode::Success => Ok(new),
            other => Err(Error::other(format!("refused: {other:?}"))),
        }
    }

    fn write(&mut self, topic: &str, value: Vec<u8>, qos: u8, what: Option<(String, u64)>) -> std::io::Result<()> {
        let level = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(qos)];
        let mut publish = Publish::new(topic, level, value);
        if qos > 0 {
            // Never one that is in use: at most UNDER_WAY_MAX are.
            while self.packet_id == 0 || self.under_way.contains_key(&self.packet_id) {
                self.packet_id = self.packet_id.wrapping_add(1);
            }
            publish.pkid = self.packet_id;
            self.under_way.insert(self.packet_id, what);
            self.packet_id = self.packet_id.wrapping_add(1);
        }
        self.put(&Packet::Publish(publish))
    }

    /// Reads acknowledgements until no more than `left_max` messages are under way.
    fn take_answers(&mut self, left_max: usize) -> std::io::Result<()> {
        while self.under_way.len() > left_max {
            let done = match self.take()? {
                Packet::PubAck(ack) => ack.pkid,
                Packet::PubComp(done) => done.pkid,
                Packet::PubRec(received) => {
                    // Not yet an obligation: a broker may forget an unreleased message when this connection ends.
                    self.put(&Packet::PubRel(PubRel::new(received.pkid)))?;
                    continue;
                }
                other => return Err(Error::other(format!("unexpected: {other:?}"))),
            };
            if let Some(Some((device, number))) = self.under_way.remove(&done) {
                self.oracle.oblige(&device, number);
            }
        }
        Ok(())
    }

    fn put(&mut self, packet: &Packet) -> std::io::Result<()> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, PACKET_BYTES_MAX).map_err(Error::other)?;
        self.stream.write_all(&bytes)
    }

    fn take(&mut self) -> std::io::Result<Packet> {
        loop {
            match Packet::read(&mut self.received, PACKET_BYTES_MAX) {
                Ok(packet) => return Ok(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(Error::other(error)),
            }
            let mut chunk = [0; 16 << 10];
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&chunk[..count]);
        }
    }
}
