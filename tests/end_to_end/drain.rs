//! The drain alone, in this process: a real outbox in a directory, real Kafka, and a `read_committed` consumer that counts.

use std::collections::BTreeMap;
use std::time::Duration;

use fieldpost::config::{self, ByteSize, Span};
use fieldpost::delivery::{self, DeliveryHandle, DeliveryOptions};
use fieldpost::metrics::{DeliveryMetrics, OutboxMetrics};
use fieldpost::outbox::{Answer, Appender, Arrival, OpenOptions, Outbox, Receipt};
use fieldpost::record::{Flags, Kind, Reading, Sequence};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::harness::kafka::{Record, create_topic, proxy_to_shared, read_all, shared};
use crate::harness::proxy::{API_END_TXN, Fault, Proxy};
use crate::harness::wait_for;
use crate::harness::workdir::WorkDir;

/// An outbox and its way to a topic of its own.
struct Drain {
    dir: WorkDir,
    agent: String,
    topic: String,
    ledger_topic: String,
    bootstrap: String,
    outbox: Option<(Outbox, Appender, UnboundedReceiver<Answer>)>,
    delivery: Option<DeliveryHandle>,
    metrics: DeliveryMetrics,
    appended: u64,
    change: fn(&mut config::Delivery),
}

impl Drain {
    fn new(name: &str) -> Self {
        // RUST_LOG shows what the drain says.
        let environment = env_logger::Env::default().default_filter_or("off");
        let _ = env_logger::Builder::from_env(environment).try_init();
        let unique = format!("{name}-{:08x}", getrandom::u32().unwrap());
        create_topic(shared(), &format!("{unique}.data"), 3);
        let mut drain = Self {
            dir: WorkDir::new(&unique),
            agent: unique.clone(),
            topic: format!("{unique}.data"),
            ledger_topic: format!("{unique}.ledger"),
            bootstrap: shared().to_owned(),
            outbox: None,
            delivery: None,
            metrics: DeliveryMetrics::default(),
            appended: 0,
            change: |_| {},
        };
        drain.open();
        drain
    }

    fn through(mut self, proxy: &Proxy) -> Self {
        self.bootstrap = format!("127.0.0.1:{}", proxy.port());
        self
    }

    fn open(&mut self) {
        let config = config::Outbox { max_bytes: ByteSize::mib(64), ..config::Outbox::default() };
        let options = OpenOptions { config, agent_id: self.agent.clone(), metrics: OutboxMetrics::default() };
        let outbox = Outbox::open(self.dir.path(), options).unwrap();
        let (appender, answers) = outbox.appender(&"test".into());
        self.outbox = Some((outbox, appender, answers));
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox.as_ref().unwrap().0
    }

    fn config(&self) -> config::Delivery {
        let mut config = config::Delivery {
            // A ledger and dead letters of its own: tests must not wait for each other's transactions.
            ledger_topic: self.ledger_topic.clone(),
            dead_letter_topic: format!("{}.dead", self.agent),
            transaction_timeout: Span::secs(8),
            message_timeout: Span::secs(4),
            ..config::Delivery::default()
        };
        config.kafka.bootstrap_servers = vec![self.bootstrap.clone()];
        (self.change)(&mut config);
        config
    }

    fn start(&mut self) {
        let options = DeliveryOptions {
            config: self.config(),
            agent_id: self.agent.clone(),
            record_bytes_max: 960 << 10,
            metrics: self.metrics.clone(),
        };
        self.delivery = Some(delivery::start(self.outbox().clone(), options).unwrap());
    }

    fn stop(&mut self) {
        self.delivery.take().unwrap().stop(Duration::from_secs(20));
    }

    fn append(&mut self, count: u64) {
        let topic = self.topic.clone();
        self.append_with(count, |number| reading(&topic, number, 40));
    }

    fn append_with(&mut self, count: u64, make: impl Fn(u64) -> Reading) {
        let numbers: Vec<u64> = (self.appended + 1..=self.appended + count).collect();
        self.appended += count;
        for chunk in numbers.chunks(500) {
            let (outbox, appender, answers) = self.outbox.as_mut().unwrap();
            let readings: Vec<Reading> = chunk.iter().map(|number| make(*number)).collect();
            let held = wait_for("room in the outbox", || outbox.held().try_acquire(1000));
            appender.submit(vec![Arrival { readings, packet: None, receipt: Receipt(chunk[0]), held }]);
            answers.blocking_recv().expect("an answer");
        }
    }

    /// Waits until everything that was appended is committed.
    fn delivered(&self) {
        let outbox = self.outbox();
        wait_for("everything to be committed", || {
            (outbox.positions().committed >= Sequence(self.appended)).then_some(())
        });
    }

    fn records(&self) -> Vec<Record> {
        read_all(shared(), &self.topic)
    }

    /// Every number once and in order, and every sequence once, over data and dead letters.
    fn assert_exact(&self) -> Vec<Record> {
        let records = self.records();
        let mut last: BTreeMap<(Vec<u8>, i32), u64> = BTreeMap::new();
        let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
        for record in &records {
            let text = String::from_utf8_lossy(&record.value);
            let number: u64 = text.trim_start_matches("n=").split(' ').next().unwrap().parse().unwrap();
            *seen.entry(number).or_default() += 1;
            let before = last.insert((record.key.clone(), record.partition), number);
            assert!(before.is_none_or(|before| before < number), "out of order: {before:?} before {number}");
        }
        let twice: Vec<_> = seen.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "twice: {twice:?}");
        let missing: Vec<u64> = (1..=self.appended).filter(|number| !seen.contains_key(number)).collect();
        assert!(missing.is_empty(), "missing: {} of {}, first {:?}", missing.len(), self.appended, missing.first());
        records
    }

    fn ledger(&self) -> serde_json::Value {
        let records = read_all(shared(), &self.ledger_topic);
        let newest = records.iter().rfind(|record| record.key == self.agent.as_bytes());
        serde_json::from_slice(&newest.expect("a ledger record").value).unwrap()
    }

    /// Ends the drain in the middle of a transaction whose outcome it cannot learn.
    fn stop_unclean(&mut self, proxy: &Proxy) {
        let done = proxy.faults_done();
        proxy.inject(Fault { api_key: API_END_TXN, delay: Duration::from_secs(600), cut: false });
        self.append(50);
        wait_for("a commit to hang", || (proxy.faults_done() > done).then_some(()));
        proxy.refuse(true);
        self.stop();
        proxy.heal();
        assert!(!self.outbox().identity().clean, "an open outcome is not clean");
    }
}

fn reading(topic: &str, number: u64, bytes: usize) -> Reading {
    let value = format!("n={number} {}", "x".repeat(bytes));
    Reading {
        topic: topic.into(),
        device: format!("device-{}", number % 5).into(),
        kind: Kind::Raw,
        flags: Flags::default(),
        received: fieldpost::clock::now(),
        device_time_ns: None,
        content_type: "text/plain".into(),
        quality: "".into(),
        mqtt: None,
        replay_of: "".into(),
        value: value.into_bytes().into(),
    }
}

#[test]
fn five_thousand_readings_arrive_once_and_the_ledger_shows_it() {
    let mut drain = Drain::new("drain-plain");
    drain.append(5000);
    drain.start();
    drain.delivered();
    drain.stop();
    let records = drain.assert_exact();
    assert_eq!(records[0].header("ce_type").unwrap(), "io.fieldpost.raw.v1");
    let ledger = drain.ledger();
    assert_eq!(ledger["upto"], 5000);
    assert_eq!(ledger["incarnation"], drain.outbox().identity().incarnation.to_hex());
    let identity = drain.outbox().identity();
    assert!(identity.clean && identity.ever_began, "an orderly stop leaves nothing in doubt: {identity:?}");
    // A second session of the same outbox goes on where the first stopped.
    drain.append(100);
    drain.start();
    drain.delivered();
    drain.stop();
    drain.assert_exact();
    assert_eq!(drain.ledger()["upto"], 5100);
}

#[test]
fn a_late_end_of_transaction_doubles_nothing() {
    let proxy = proxy_to_shared();
    let mut drain = Drain::new("drain-late").through(&proxy);
    drain.append(500);
    drain.start();
    drain.delivered();
    for _ in 0..6 {
        // The connection is cut with EndTxn in flight, and the request reaches the broker during the next transaction.
        let done = proxy.faults_done();
        proxy.inject(Fault { api_key: API_END_TXN, delay: Duration::from_millis(300), cut: true });
        drain.append(300);
        wait_for("the fault to be done", || (proxy.faults_done() > done).then_some(()));
        drain.append(300);
        drain.delivered();
    }
    let recycled = drain
        .metrics
        .recycles
        .get_or_create(&fieldpost::metrics::delivery::ReasonLabel { reason: "hygiene".to_owned() });
    assert!(recycled.get() > 0, "EndTxn was counted");
    drop(recycled);
    drain.stop();
    drain.assert_exact();
}

#[test]
fn an_unclean_stop_loses_and_doubles_nothing() {
    let proxy = proxy_to_shared();
    let mut drain = Drain::new("drain-unclean").through(&proxy);
    for _ in 0..2 {
        drain.append(500);
        drain.start();
        drain.delivered();
        drain.stop_unclean(&proxy);
    }
    drain.start();
    drain.delivered();
    drain.stop();
    drain.assert_exact();
    assert!(drain.outbox().identity().clean);
}

#[test]
fn two_agents_share_a_ledger_while_one_holds_a_transaction_open() {
    let proxy = proxy_to_shared();
    let mut first = Drain::new("drain-share");
    let ledger = format!("{}.ledger", first.agent);
    create_topic(shared(), &ledger, 1);
    let mut second = Drain::new("drain-share").through(&proxy);
    second.ledger_topic.clone_from(&ledger);
    for drain in [&mut first, &mut second] {
        drain.append(200);
        drain.start();
        drain.delivered();
    }
    // The second one hangs with its transaction open, the first commits behind it, restarts and must find its record.
    proxy.inject(Fault { api_key: API_END_TXN, delay: Duration::from_secs(600), cut: false });
    second.append(200);
    wait_for("the transaction to hang", || (proxy.faults_done() > 0).then_some(()));
    proxy.refuse(true);
    first.append(200);
    first.delivered();
    first.stop();
    first.append(200);
    first.start();
    first.delivered();
    first.stop();
    first.assert_exact();
    proxy.heal();
    second.delivered();
    second.stop();
    second.assert_exact();
}

#[test]
fn a_record_that_the_broker_refuses_becomes_a_dead_letter_and_blocks_nothing() {
    let mut drain = Drain::new("drain-poison");
    drain.change = |config| config.kafka.compression = config::delivery::KafkaCompression::None;
    let small = format!("{}.small", drain.agent);
    fieldpost::demo::brokers::kafka::admin::create_topic(shared(), &small, 1, &[("max.message.bytes", "3000")])
        .unwrap_or_else(|error| panic!("{error}"));
    let topic = drain.topic.clone();
    // Number 40 is too large for its topic, 60 is too large for any.
    drain.append_with(100, |number| match number {
        40 => reading(&small, number, 10_000),
        60 => reading(&topic, number, (1 << 20) + 10_000),
        _ => reading(&topic, number, 40),
    });
    drain.start();
    drain.delivered();
    drain.stop();
    let dead = read_all(shared(), &format!("{}.dead", drain.agent));
    let errors: Vec<_> = dead.iter().map(|record| record.header("fp_error").unwrap()).collect();
    assert_eq!(errors, ["MSG_SIZE_TOO_LARGE", "size"]);
    assert_eq!(dead[0].header("fp_origin_topic").unwrap(), small);
    assert!(dead[0].value.starts_with(b"n=40 "));
    let file = drain.outbox().directory().join(dead[1].header("fp_local_file").unwrap());
    let kept = std::fs::read(file).unwrap();
    assert!(kept.ends_with(reading(&topic, 60, (1 << 20) + 10_000).value.as_ref()), "kept whole on the gateway");
    assert_eq!(drain.records().len(), 98);
    assert!(read_all(shared(), &small).is_empty());
}

#[test]
fn a_missing_topic_is_an_alarm_that_names_the_command_and_ends_by_itself() {
    let mut drain = Drain::new("drain-missing");
    let topic = format!("{}.later", drain.agent);
    drain.append(10);
    drain.append_with(10, |number| reading(&topic, number, 10));
    drain.start();
    let alarm = wait_for("the alarm", || drain.delivery.as_ref().unwrap().status().alarms.first().cloned());
    assert!(alarm.contains("kafka-topics.sh") && alarm.contains(&topic), "{alarm}");
    create_topic(shared(), &topic, 1);
    drain.delivered();
    drain.stop();
    assert_eq!((drain.records().len(), read_all(shared(), &topic).len()), (10, 10));
}

#[test]
fn a_slow_link_drains() {
    let proxy = proxy_to_shared();
    proxy.limit_bits_per_second(64_000);
    let mut drain = Drain::new("drain-slow").through(&proxy);
    drain.change = |config| config.kafka.compression = config::delivery::KafkaCompression::None;
    let topic = drain.topic.clone();
    drain.append_with(100, |number| reading(&topic, number, 500));
    drain.start();
    drain.delivered();
    proxy.heal();
    drain.stop();
    drain.assert_exact();
}

#[test]
fn what_became_visible_behind_the_ledger_is_found_and_not_sent_again() {
    let proxy = proxy_to_shared();
    let mut drain = Drain::new("drain-tails").through(&proxy);
    drain.append(100);
    drain.start();
    drain.delivered();
    drain.stop_unclean(&proxy);
    // What a late end of transaction does: some of the records in doubt are visible, their ledger record is not.
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", shared()).set("partitioner", "murmur2_random");
    let producer: BaseProducer = config.create().unwrap();
    for number in 101..=120_u64 {
        let reading = reading(&drain.topic, number, 40);
        let mut fp = drain.outbox().identity().incarnation.0.to_vec();
        fp.extend(number.to_be_bytes());
        fp.extend([0; 10]);
        let headers = OwnedHeaders::new().insert(Header { key: "fp", value: Some(&fp) });
        let record = BaseRecord::to(&drain.topic).key(&*reading.device).payload(&*reading.value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    drain.start();
    drain.delivered();
    drain.stop();
    drain.assert_exact();
    assert_eq!(drain.metrics.already_visible.get(), 20);
}
