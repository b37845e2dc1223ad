//! The whole way of MQTT, against a scripted broker and a real outbox.

mod broker;
mod limits;
mod mosquitto;
mod soak;

use self::broker::{Broker, Client, Packet};
use crate::config::intake::{Mqtt, Subscription};
use crate::config::{Source, Span};
use crate::intake::testing::Bench;
use crate::record::Qos;

fn settings(broker: &Broker, version: u8, qos: u8) -> Mqtt {
    let subscribe = vec![Subscription { topic: "plant/#".to_owned(), qos }];
    let mut config = Mqtt { url: broker.url(), version, subscribe, ..Mqtt::default() };
    config.mapping.device = "{mqtt.topic[2]}".to_owned();
    config
}

fn bench(config: Mqtt) -> Bench {
    Bench::new(Source::Mqtt(config), |_| {})
}

/// An outbox that answers late: acknowledgements take about this long.
fn slow_bench(config: Mqtt, gather: Span) -> Bench {
    Bench::new(Source::Mqtt(config), |outbox| outbox.gather = gather)
}

async fn expect(client: &mut Client, packets: &[Packet]) {
    for packet in packets {
        assert_eq!(&client.next().await, packet);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_1_is_acknowledged_and_stored_in_order() {
    for version in [5, 3] {
        let broker = Broker::start().await;
        let bench = bench(settings(&broker, version, 1));
        let mut client = broker.welcome(false, true).await;
        assert_eq!((client.client_id.as_str(), client.clean), ("fieldpost-gw-1-plant", false));
        for id in 1..=3 {
            client.publish(id, 1, false, &format!("reading {id}")).await;
        }
        expect(&mut client, &[Packet::PubAck(1), Packet::PubAck(2), Packet::PubAck(3)]).await;
        assert_eq!(bench.values(), ["reading 1", "reading 2", "reading 3"]);
        let first = &bench.stored()[0];
        assert_eq!(
            (&*first.reading.device, &*first.reading.topic, first.source.as_str()),
            ("line-1", "telemetry", "plant")
        );
        let mqtt = first.reading.mqtt.as_ref().unwrap();
        assert_eq!((&*mqtt.topic, mqtt.qos, mqtt.dup), ("plant/a/line-1/telemetry", Qos::AtLeastOnce, false));
        let status = bench.status("all counted", |status| status.acknowledged == 3).await;
        assert_eq!((status.state.as_str(), status.received, status.accepted), ("up", 3, 3));
        assert!(status.last_at.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_asks_for_a_lasting_session_with_a_window_and_a_limit() {
    let broker = Broker::start().await;
    let bench = bench(settings(&broker, 5, 1));
    let client = broker.accept().await;
    let has = |property: &[u8]| client.properties.windows(property.len()).any(|window| window == property);
    assert!(has(&[0x11, 0x00, 0x09, 0x3a, 0x80]), "session expiry 7 days: {:x?}", client.properties);
    assert!(has(&[0x21, 0x03, 0xe8]), "receive maximum 1000: {:x?}", client.properties);
    assert!(has(&[0x27, 0x00, 0x10, 0x00, 0x00]), "maximum packet size 1 MiB: {:x?}", client.properties);
    let rest = String::from_utf8_lossy(&client.rest).into_owned();
    assert!(rest.contains("fieldpost/gw-1/status") && rest.contains("offline"), "last will: {rest}");
    drop(bench);
}

/// Without the rule that a link dies with its connection, the acknowledgement of `old` would acknowledge `new`, which has
/// the same identifier in the new session, before it is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_never_crosses_to_another_session() {
    for version in [5, 3] {
        let broker = Broker::start().await;
        let bench = slow_bench(settings(&broker, version, 1), Span::millis(700));
        let mut client = broker.welcome(false, true).await;
        client.publish(1, 1, false, "old").await;
        bench.status("the first message", |status| status.received == 1).await;
        drop(client);
        let mut client = broker.welcome(false, true).await;
        client.publish(1, 1, false, "new").await;
        client.publish(2, 1, false, "newer").await;
        expect(&mut client, &[Packet::PubAck(1), Packet::PubAck(2)]).await;
        assert_eq!(bench.values(), ["old", "new", "newer"]);
        let status = bench.status("counted", |status| status.acknowledged >= 2).await;
        assert_eq!((status.acknowledged, status.accepted), (2, 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_2_survives_every_cut_without_a_duplicate() {
    for version in [5, 3] {
        let broker = Broker::start().await;
        let bench = bench(settings(&broker, version, 2));
        let mut client = broker.welcome(false, true).await;
        client.publish(5, 2, false, "once").await;
        assert_eq!(client.next().await, Packet::PubRec(5));
        // The PUBREC is lost.
        drop(client);
        let mut client = broker.welcome(true, version == 5).await;
        client.publish(5, 2, true, "once").await;
        assert_eq!(client.next().await, Packet::PubRec(5));
        // Cut after PUBREC: the next connection begins with PUBREL for an identifier the link never saw.
        drop(client);
        let mut client = broker.welcome(true, version == 5).await;
        client.pubrel(5).await;
        assert_eq!(client.next().await, Packet::PubComp(5));
        // The PUBCOMP is lost as well: PUBREL again, on the same connection even.
        client.pubrel(5).await;
        assert_eq!(client.next().await, Packet::PubComp(5));
        assert_eq!(bench.values(), ["once"]);
        // The identifier is free: the same text under it is another message.
        client.publish(5, 2, false, "once").await;
        assert_eq!(client.next().await, Packet::PubRec(5));
        assert_eq!(bench.values(), ["once", "once"]);
        assert_eq!(bench.source.status().duplicates, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_identifier_is_forgotten_durably() {
    let broker = Broker::start().await;
    let bench = bench(settings(&broker, 5, 2));
    let mut client = broker.welcome(false, true).await;
    client.publish(5, 2, false, "same").await;
    assert_eq!(client.next().await, Packet::PubRec(5));
    client.pubrel(5).await;
    assert_eq!(client.next().await, Packet::PubComp(5));
    // A broker that says DUP without having sent it since the PUBREL: nothing is known to match.
    client.publish(5, 2, true, "same").await;
    assert_eq!(client.next().await, Packet::PubRec(5));
    assert_eq!(bench.values(), ["same", "same"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_1_half_acknowledged_is_redelivered_and_stored_once() {
    for version in [5, 3] {
        let broker = Broker::start().await;
        let bench = bench(settings(&broker, version, 1));
        let mut client = broker.welcome(false, true).await;
        for id in 1..=4 {
            client.publish(id, 1, false, &format!("reading {id}")).await;
        }
        expect(&mut client, &[Packet::PubAck(1), Packet::PubAck(2)]).await;
        drop(client);
        let mut client = broker.welcome(true, version == 5).await;
        for id in 3..=4 {
            client.publish(id, 1, true, &format!("reading {id}")).await;
        }
        client.publish(5, 1, false, "reading 5").await;
        expect(&mut client, &[Packet::PubAck(3), Packet::PubAck(4), Packet::PubAck(5)]).await;
        let expected: Vec<_> = (1..=5).map(|number| format!("reading {number}")).collect();
        assert_eq!(bench.values(), expected);
        assert_eq!(bench.source.status().duplicates, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_dedup_a_redelivery_is_stored_again() {
    let broker = Broker::start().await;
    let bench = bench(Mqtt { redelivery_dedup: false, ..settings(&broker, 5, 1) });
    let mut client = broker.welcome(false, true).await;
    client.publish(1, 1, false, "twice").await;
    assert_eq!(client.next().await, Packet::PubAck(1));
    client.publish(1, 1, true, "twice").await;
    assert_eq!(client.next().await, Packet::PubAck(1));
    assert_eq!(bench.values(), ["twice", "twice"]);
}

async fn acknowledged_unproven(client: &mut Client, pinged: &mut bool) {
    loop {
        match client.next_raw().await {
            Packet::PingReq => *pinged = true,
            packet => return assert_eq!(packet, Packet::PubAck(1)),
        }
    }
}

/// A PINGRESP proves that the broker has our PUBACK: what comes under the identifier afterwards is another message, even if
/// it looks the same. Waits for one keep-alive interval.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_proves_acknowledgements() {
    let broker = Broker::start().await;
    let bench = bench(Mqtt { keep_alive: Span::secs(5), ..settings(&broker, 5, 1) });
    let mut client = broker.welcome(false, true).await;
    // On a busy machine the ping may come early; it stays unanswered until the end.
    let mut pinged = false;
    client.publish(1, 1, false, "21.5").await;
    acknowledged_unproven(&mut client, &mut pinged).await;
    client.publish(1, 1, true, "21.5").await;
    acknowledged_unproven(&mut client, &mut pinged).await;
    assert_eq!(bench.values().len(), 1);
    if !pinged {
        assert_eq!(client.next_raw().await, Packet::PingReq);
    }
    client.pong().await;
    client.publish(1, 1, true, "21.5").await;
    assert_eq!(client.next().await, Packet::PubAck(1));
    assert_eq!(bench.values().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_clears_the_table_and_is_told() {
    let broker = Broker::start().await;
    let bench = bench(settings(&broker, 5, 1));
    let mut client = broker.welcome(false, true).await;
    client.publish(1, 1, false, "a").await;
    assert_eq!(client.next().await, Packet::PubAck(1));
    assert_eq!(bench.source.status().last_error, None);
    drop(client);
    let mut client = broker.welcome(false, true).await;
    client.publish(1, 1, true, "a").await;
    assert_eq!(client.next().await, Packet::PubAck(1));
    assert_eq!(bench.values(), ["a", "a"]);
    assert!(bench.source.status().last_error.unwrap().contains("lost our session"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_3_1_1_a_certain_session_is_not_subscribed_again_but_a_doubtful_one_is() {
    let broker = Broker::start().await;
    let bench = bench(settings(&broker, 3, 1));
    drop(broker.welcome(false, true).await);
    // Session present and certain: the first packet is the birth, not SUBSCRIBE.
    drop(broker.welcome(true, false).await);
    // CONNECT without an answer: the broker may have made a new, empty session.
    drop(broker.accept().await);
    drop(broker.welcome(true, true).await);
    drop(bench);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_that_is_gone_is_unsubscribed_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start().await;
    let outbox = crate::intake::testing::outbox(directory.path(), |_| {});
    let mut config = settings(&broker, 5, 1);
    config.subscribe.push(Subscription { topic: "old/+".to_owned(), qos: 0 });
    let source = crate::intake::testing::source(&outbox, Source::Mqtt(config));
    let mut client = broker.welcome(false, true).await;
    let (_, ()) = tokio::join!(source.stop(), async { while client.next().await != Packet::End {} });
    let source = crate::intake::testing::source(&outbox, Source::Mqtt(settings(&broker, 5, 1)));
    let mut client = broker.accept().await;
    client.connack(true).await;
    client.grant().await;
    let Packet::Unsubscribe { id, filter } = client.next().await else { panic!("UNSUBSCRIBE expected") };
    assert_eq!(filter, "old/+");
    client.unsuback(id).await;
    drop(source);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_not_granted_is_an_alarm() {
    let broker = Broker::start().await;
    let bench = bench(settings(&broker, 5, 2));
    for (code, told) in [(0x87, "NotAuthorized"), (1, "QoS 1 instead of 2")] {
        let mut client = broker.accept().await;
        client.connack(true).await;
        let Packet::Subscribe { id, .. } = client.next().await else { panic!("SUBSCRIBE expected") };
        client.suback(id, &[code]).await;
        bench.status(told, |status| status.alarms.iter().any(|alarm| alarm.contains(told))).await;
    }
    let mut client = broker.accept().await;
    client.connack(true).await;
    client.grant().await;
    bench.status("the end of the alarm", |status| status.alarms.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_acknowledges_says_goodbye_and_keeps_the_session() {
    for version in [5, 3] {
        let broker = Broker::start().await;
        let bench = slow_bench(settings(&broker, version, 1), Span::millis(300));
        let mut client = broker.welcome(false, true).await;
        client.publish(1, 1, false, "last").await;
        bench.status("the message", |status| status.received == 1).await;
        let said = async {
            let mut said = Vec::new();
            loop {
                match client.next().await {
                    Packet::End => return said,
                    packet => said.push(packet),
                }
            }
        };
        let ((), said) = tokio::join!(bench.source.stop(), said);
        assert_eq!(said[0], Packet::PubAck(1));
        assert!(matches!(&said[1], Packet::Publish { payload, .. } if payload.contains("offline")), "{said:?}");
        assert_eq!(said[2..], [Packet::Disconnect]);
        assert_eq!(bench.source.status().state, "stopped");
        assert_eq!(bench.values(), ["last"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_take_over_names_the_client_id() {
    let broker = Broker::start().await;
    let bench = bench(settings(&broker, 5, 1));
    let mut client = broker.welcome(false, true).await;
    client.send(0xe0, &[0x8e, 0x00]).await;
    let rival = |alarm: &String| alarm.contains("fieldpost-gw-1-plant");
    bench.status("the alarm", |status| status.alarms.iter().any(rival)).await;
}
