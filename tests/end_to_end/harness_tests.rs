//! The harness itself: a fault that it cannot make, or a loss that it cannot see, would let every other test pass.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fieldpost::demo::brokers::MosquittoOptions;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::harness::oracle::Oracle;
use crate::harness::proxy::{Fault, Proxy, Reserved};
use crate::harness::rig::{Rig, devices};

fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        for mut stream in listener.incoming().flatten() {
            let body = move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).map(drop);
            std::thread::Builder::new().spawn(body).unwrap();
        }
    };
    std::thread::Builder::new().spawn(serve).unwrap();
    port
}

#[test]
fn the_proxy_passes_cuts_and_refuses() {
    let proxy = Proxy::to(echo_server());
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let mut answer = [0; 5];
    client.write_all(b"hello").unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    proxy.cut();
    assert_eq!(client.read(&mut answer).unwrap_or(0), 0);
    proxy.refuse(true);
    let mut refused = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    assert_eq!(refused.read(&mut answer).unwrap_or(0), 0);
    proxy.heal();
    let mut again = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    again.write_all(b"again").unwrap();
    again.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"again");
}

#[test]
fn the_proxy_holds_one_kafka_request_by_its_key() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Reserved::new().forward(listener.local_addr().unwrap().port(), true);
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let (mut broker, _) = listener.accept().unwrap();
    let request = |api_key: u8, text: &[u8]| [&[0, 0, 0, 2 + text.len() as u8, 0, api_key], text].concat();
    proxy.inject(Fault { api_key: 26, delay: Duration::from_millis(50), cut: true });
    client.write_all(&request(3, b"metadata")).unwrap();
    client.write_all(&request(26, b"end")).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0, "the client is cut off");
    let mut got = Vec::new();
    broker.read_to_end(&mut got).unwrap();
    assert_eq!(got, [request(3, b"metadata"), request(26, b"end")].concat(), "and the request arrives all the same");
    assert_eq!(proxy.faults_done(), 1);
}

#[test]
fn the_publisher_knows_what_its_broker_acknowledged() {
    let rig = Rig::at("publisher", "unused:1");
    let mut mosquitto = rig.mosquitto(&MosquittoOptions::default());
    let mut publisher = rig.publisher("p", mosquitto.port());
    for qos in 0..3 {
        publisher.publish(&devices(3), qos, 1000);
    }
    mosquitto.kill().unwrap();
    mosquitto.start_again().unwrap();
    publisher.publish(&devices(3), 1, 100);
    assert_eq!(rig.oracle.issued(), 3100);
}

fn fp(sequence: u64, kind: u8) -> Vec<u8> {
    [&[7; 16][..], &sequence.to_be_bytes(), &[0; 8], &[kind, 0]].concat()
}

/// The oracle sees a loss, a duplicate, a changed byte, a wrong order and a hole, and what was aborted is not there.
#[test]
fn the_oracle_sees_every_kind_of_fault() {
    let rig = Rig::new("oracle");
    let (topic, oracle) = (&rig.topics.data[0], Oracle::default());
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &rig.direct).set("transactional.id", "oracle");
    let producer: BaseProducer = config.create().unwrap();
    let limit = Duration::from_secs(60);
    producer.init_transactions(limit).unwrap();
    let send = |topic: &str, key: &str, value: &[u8], sequence: u64, kind: u8| {
        let fp = fp(sequence, kind);
        let headers = OwnedHeaders::new().insert(Header { key: "fp", value: Some(&fp) });
        let record = BaseRecord::to(topic).key(key).payload(value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    };
    let transaction = |body: &dyn Fn()| {
        producer.begin_transaction().unwrap();
        body();
        producer.commit_transaction(limit).unwrap();
    };
    let readings: Vec<_> = (0..6).map(|_| oracle.issue("d", 100).1).collect();
    let oblige = |number| oracle.oblige("d", number);
    let tally = || oracle.tally(&rig.direct, "oracle", &rig.topics);
    let ledger = |upto: u64| format!("{{\"upto\":{upto},\"incarnation\":\"{}\"}}", "07".repeat(16));
    crate::harness::kafka::create_topic(&rig.direct, &rig.topics.ledger, 1);

    transaction(&|| {
        send(topic, "d", &readings[0], 1, 0);
        send(&rig.topics.ledger, "oracle", ledger(1).as_bytes(), 0, 0);
    });
    oblige(0);
    tally().assert_clean();

    oblige(1);
    assert_eq!(tally().lost, ["d/1"]);

    producer.begin_transaction().unwrap();
    send(topic, "d", &readings[1], 2, 0);
    producer.flush(limit).unwrap();
    producer.abort_transaction(limit).unwrap();
    assert_eq!(tally().lost, ["d/1"], "an aborted record does not count");

    transaction(&|| {
        send(topic, "d", &readings[1], 2, 0);
        send(topic, "d", &readings[1], 3, 0);
    });
    let one = tally();
    assert_eq!((one.duplicated.len(), one.delivered), (1, 2), "{one}");
    assert!(one.faults.iter().any(|fault| fault.contains("the ledger says")), "{one}");

    transaction(&|| {
        send(topic, "d", &readings[4], 4, 0);
        send(topic, "d", &readings[3], 5, 0);
        let mut changed = readings[5].clone();
        changed[60] ^= 1;
        send(topic, "d", &changed, 6, 0);
        send(&rig.topics.dead_letters, "oracle", br#"{"from":8,"to":9,"reason":"drop_oldest"}"#, 9, 2);
    });
    let two = tally();
    assert_eq!((two.reordered.len(), two.foreign.len(), two.gap_readings("drop_oldest")), (1, 1, 2), "{two}");
    assert!(two.faults.iter().any(|fault| fault.contains("nothing accounts for 7..=7")), "{two}");
}

#[test]
fn a_slow_proxy_is_slow_and_loses_nothing() {
    let proxy = Proxy::to(echo_server());
    proxy.limit_bits_per_second(800_000);
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let sent: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
    let (mut writer, copy) = (client.try_clone().unwrap(), Arc::new(sent.clone()));
    let body = move || writer.write_all(&copy).unwrap();
    let thread = std::thread::Builder::new().spawn(body).unwrap();
    let mut got = vec![0; sent.len()];
    client.read_exact(&mut got).unwrap();
    thread.join().unwrap();
    assert!(got == sent);
}
