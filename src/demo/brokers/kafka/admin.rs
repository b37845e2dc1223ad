//! Topics and readiness of a cluster, through librdkafka. Every call blocks and may be made from any thread.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, Producer};

use super::super::BrokerError;

const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// A client configuration for `bootstrap` that does not log what is expected here: brokers that are not up yet.
fn client_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set_log_level(RDKafkaLogLevel::Critical);
    config
}

/// Creates a topic with the cluster's default replication and the given settings. One that exists is left as it is.
pub fn create_topic(
    bootstrap: &str,
    name: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<(), BrokerError> {
    let refused = |error: String| BrokerError::Refused(format!("creating the topic {name} at {bootstrap}: {error}"));
    let admin: AdminClient<DefaultClientContext> =
        client_config(bootstrap).create().map_err(|error| refused(error.to_string()))?;
    let topic =
        settings.iter().fold(NewTopic::new(name, partitions, TopicReplication::Fixed(-1)), |topic, (key, value)| {
            topic.set(key, value)
        });
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_LIMIT)).request_timeout(Some(REQUEST_LIMIT));
    let results = block_on(admin.create_topics([&topic], &options)).map_err(|error| refused(error.to_string()))?;
    match results.into_iter().next() {
        Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(refused(code.to_string())),
        None => Err(refused("no answer".to_owned())),
    }
}

/// Whether `nodes` brokers are listed, a topic can be created and a transactional producer initialised.
pub fn probe(bootstrap: &str, nodes: usize) -> Result<(), BrokerError> {
    let refused = |error: rdkafka::error::KafkaError| BrokerError::Refused(format!("{bootstrap}: {error}"));
    let mut config = client_config(bootstrap);
    config.set("transactional.id", "fieldpost-readiness").set("transaction.timeout.ms", "10000");
    let producer: BaseProducer = config.create().map_err(refused)?;
    let metadata = producer.client().fetch_metadata(None, Duration::from_secs(2)).map_err(refused)?;
    let listed = metadata.brokers().len();
    if listed < nodes {
        return Err(BrokerError::Refused(format!("{listed} of {nodes} brokers are registered")));
    }
    create_topic(bootstrap, "fieldpost-readiness", 1, &[])?;
    producer.init_transactions(REQUEST_LIMIT).map_err(refused)
}

/// Waits for a future on this thread; also inside an async runtime, where a second `block_on` of tokio would panic.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
