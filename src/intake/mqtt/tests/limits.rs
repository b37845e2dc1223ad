//! What has no room, is too large, or is not wanted.

use super::broker::{Broker, Packet};
use super::{bench, expect, settings};
use crate::config::intake::{Mqtt, Retained};
use crate::config::{ByteSize, Source, Span};
use crate::intake::testing::Bench;
use crate::record::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_that_is_too_large_becomes_a_named_alarm() {
    for version in [5, 3] {
        let broker = Broker::start().await;
        let bench = bench(Mqtt { packet_bytes_max: ByteSize::kib(4), ..settings(&broker, version, 1) });
        for round in 0..3 {
            let mut client = broker.welcome(true, version == 5 || round == 0).await;
            client.publish(1, 1, false, &"x".repeat(8192)).await;
            while client.next().await != Packet::End {}
        }
        let large = |alarm: &String| alarm.contains("packet_bytes_max") && alarm.contains("82");
        bench.status("the alarm", |status| status.alarms.iter().any(large)).await;
        assert_eq!(bench.values(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_switches_the_keep_alive_off_is_served_on_one_connection() {
    let broker = Broker::start().await;
    let _bench = bench(settings(&broker, 5, 1));
    let mut client = broker.accept().await;
    // CONNACK with Server Keep Alive 0 (MQTT 5, 3.2.2.3.14).
    client.send(0x20, &[0, 0, 3, 0x13, 0, 0]).await;
    client.grant().await;
    client.birth().await;
    let mut pings = 0;
    for id in 1..=20 {
        client.publish(id, 1, false, "x").await;
        loop {
            match client.next_raw().await {
                Packet::PingReq => pings += 1,
                packet => {
                    assert_eq!(packet, Packet::PubAck(id));
                    break;
                }
            }
            client.pong().await;
        }
    }
    // The library sends the first one at once.
    assert!(pings <= 1, "{pings} pings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_the_source_leaves_and_comes_back_with_nothing_missing() {
    let broker = Broker::start().await;
    // Half a keep-alive interval is shorter than the outbox takes.
    let settings = Mqtt { keep_alive: Span::secs(5), ..settings(&broker, 5, 1) };
    let bench = Bench::new(Source::Mqtt(settings), |outbox| {
        outbox.held_bytes_max = ByteSize::kib(128);
    });
    bench.slow_down(3500);
    let mut client = broker.welcome(false, true).await;
    let payload = |id: u16| format!("{id:02}{}", "x".repeat(1000));
    for id in 1..=40 {
        client.publish(id, 1, false, &payload(id)).await;
    }
    let mut acked = std::collections::BTreeSet::new();
    let mut note = |packet: Packet| match packet {
        Packet::PubAck(id) => acked.insert(id),
        _ => false,
    };
    let mut left = false;
    while !left {
        let packet = client.next().await;
        left = matches!(packet, Packet::Disconnect);
        note(packet);
    }
    // What was held is acknowledged before the source leaves: else it would never get beyond the first ones.
    assert!(!acked.is_empty());
    let mut connections = 0;
    while acked.len() < 40 {
        connections += 1;
        let mut client = broker.welcome(true, true).await;
        for id in (1..=40).filter(|id| !acked.contains(id)).collect::<Vec<_>>() {
            client.publish(id, 1, true, &payload(id)).await;
        }
        while acked.len() < 40 {
            match client.next().await {
                Packet::PubAck(id) => acked.insert(id),
                Packet::End => break,
                _ => false,
            };
        }
    }
    assert!(connections >= 1);
    let expected: Vec<_> = (1..=40).map(payload).collect();
    assert_eq!(bench.values(), expected);
}

/// Packet identifiers that a broker gives twice cannot be told apart after a reconnect (docs/decisions/0303).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_that_the_outbox_can_take_makes_the_source_pause_not_leave() {
    let broker = Broker::start().await;
    let bench = Bench::new(Source::Mqtt(settings(&broker, 5, 1)), |outbox| {
        outbox.held_bytes_max = ByteSize::kib(128);
        outbox.gather = Span::millis(100);
    });
    let mut client = broker.welcome(false, true).await;
    let payload = |id: u16| format!("{id:03}{}", "x".repeat(1000));
    for id in 1..=300 {
        client.publish(id, 1, false, &payload(id)).await;
    }
    let mut acked = 0;
    while acked < 300 {
        match client.next().await {
            Packet::PubAck(id) => {
                acked += 1;
                assert_eq!(id, acked);
            }
            packet => assert!(!matches!(packet, Packet::Disconnect | Packet::End), "{packet:?} after {acked}"),
        }
    }
    assert_eq!(bench.values(), (1..=300).map(payload).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_0_without_room_is_counted_and_told_in_a_gap_record() {
    let broker = Broker::start().await;
    let bench = Bench::new(Source::Mqtt(settings(&broker, 5, 0)), |outbox| {
        outbox.held_bytes_max = ByteSize::kib(16);
        outbox.gather = Span::millis(300);
    });
    let mut client = broker.welcome(false, true).await;
    for number in 0..40 {
        client.publish(0, 0, false, &format!("{number:02}{}", "x".repeat(1000))).await;
    }
    let status = bench.status("all of them", |status| status.received == 40).await;
    assert!(status.rejected > 0, "{status:?}");
    let lost = |bench: &Bench| bench.stored().into_iter().find(|stored| stored.reading.kind == Kind::Gap);
    bench.until("the gap record", |bench| lost(bench).is_some()).await;
    let gap = lost(&bench).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&gap.reading.value).unwrap();
    assert_eq!((&value["reason"], &value["source"]), (&"qos0_dropped".into(), &"plant".into()));
    assert_eq!((&*gap.reading.topic, &*gap.reading.device), ("telemetry", "plant"));
    let kept = bench.stored().len() as u64 - 1;
    assert_eq!(value["count"].as_u64().unwrap() + kept, 40);
    assert_eq!(bench.source.status().rejected + kept, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_can_be_dropped_and_are_acknowledged_all_the_same() {
    let broker = Broker::start().await;
    let bench = bench(Mqtt { retained: Retained::Drop, ..settings(&broker, 5, 1) });
    let mut client = broker.welcome(false, true).await;
    client.publish_to("plant/a/b/c", 1, 1, false, true, "stale").await;
    client.publish_to("plant/a/b/c", 0, 0, false, true, "stale").await;
    client.publish(2, 1, false, "").await;
    expect(&mut client, &[Packet::PubAck(1), Packet::PubAck(2)]).await;
    let stored = bench.stored();
    assert_eq!((stored.len(), stored[0].reading.value.len()), (1, 0));
    assert_eq!(bench.source.status().rejected, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_window_is_enough() {
    let broker = Broker::start().await;
    let bench = bench(Mqtt { receive_maximum: 2, ..settings(&broker, 5, 1) });
    let mut client = broker.welcome(false, true).await;
    let (mut sent, mut acked) = (0u16, 0u16);
    while acked < 50 {
        while sent < 50 && sent - acked < 2 {
            sent += 1;
            client.publish(sent, 1, false, &format!("{sent}")).await;
        }
        acked += 1;
        assert_eq!(client.next().await, Packet::PubAck(acked));
    }
    assert_eq!(bench.values(), (1..=50).map(|number| number.to_string()).collect::<Vec<_>>());
}
