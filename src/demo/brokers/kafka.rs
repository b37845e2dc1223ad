//! Apache Kafka in KRaft mode: one node, or three for fail-over, each broker and controller in one.
//!
//! Measured on two busy cores: one node is ready after about 4 s and takes about 160 MB. An open port is no sign of readiness;
//! ready means: the metadata lists every broker, a topic could be created, and a transactional producer could be initialised
//! (the first one makes the broker create its transaction log, 1-2 s).

pub mod admin;
mod jars;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::process::{Process, Signal};
use super::{BrokerError, copy_tree, free_port};

pub use jars::Jars;

/// How long a node may take to be ready, or to end after SIGTERM. Three nodes on a loaded machine took 37 s.
const LIMIT: Duration = Duration::from_secs(120);

/// A small heap and no second compiler tier: a node starts faster and leaves the processor to what is tested.
const JAVA_FLAGS: [&str; 8] = [
    "-Xms64m",
    "-Xmx256m",
    "-Xss512k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
];

/// What kind of cluster.
#[derive(Debug, Clone, Default)]
pub struct KafkaOptions {
    /// 1, or 3: replicated with min.insync.replicas 2. 0 stands for 1.
    pub nodes: usize,
    /// For each proxy in front of the cluster, the ports it listens on, one per node: the cluster tells clients that come through
    /// the proxy to go there. See [`Kafka::proxied_port`].
    pub proxies: Vec<Vec<u16>>,
    /// Settings for every node, over ours.
    pub properties: Vec<(String, String)>,
}

/// A cluster. Dropping it kills the nodes; their directory stays with the caller.
#[derive(Debug)]
pub struct Kafka {
    jars: Jars,
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    port: u16,
    proxied_ports: Vec<u16>,
    process: Option<Process>,
}

impl Kafka {
    /// Starts a new cluster with its files in `dir` (made if missing) and waits until it is ready.
    pub fn start(dir: &Path, options: &KafkaOptions) -> Result<Self, BrokerError> {
        let mut cluster = Self::prepare(dir, options)?;
        for index in 0..cluster.nodes.len() {
            cluster.start_node(index)?;
        }
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Writes the files of a new cluster and takes its ports; nothing runs yet. For those who want Kafka to come late.
    pub fn prepare(dir: &Path, options: &KafkaOptions) -> Result<Self, BrokerError> {
        let jars = Jars::find()?;
        let count = options.nodes.max(1);
        let mut controllers = Vec::new();
        let mut nodes = Vec::new();
        for index in 0..count {
            controllers.push(free_port()?);
            let proxied_ports = options.proxies.iter().map(|_| free_port()).collect::<Result<_, _>>()?;
            nodes.push(Node {
                dir: dir.join(format!("node-{}", index + 1)),
                port: free_port()?,
                proxied_ports,
                process: None,
            });
        }
        for (index, node) in nodes.iter().enumerate() {
            let io = |what: &str| BrokerError::io(format!("{what} of Kafka in {}", node.dir.display()));
            copy_tree(&jars.formatted(), &node.dir.join("data")).map_err(io("formatting the directory"))?;
            std::fs::write(node.dir.join("data/meta.properties"), meta_properties(index + 1))
                .map_err(io("the identity"))?;
            let settings = server_properties(index, &nodes, &controllers, options);
            std::fs::write(node.dir.join("server.properties"), settings).map_err(io("the settings"))?;
        }
        Ok(Self { jars, nodes })
    }

    /// `host:port` of every node, for `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect::<Vec<_>>().join(",")
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Process ids of the nodes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(Process::pid).collect()
    }

    /// Where the proxy number `proxy` has to connect to for node `node` (both from 0).
    pub fn proxied_port(&self, proxy: usize, node: usize) -> u16 {
        self.nodes[node].proxied_ports[proxy]
    }

    /// Starts a node (from 0) that does not run. Does not wait for it.
    pub fn start_node(&mut self, index: usize) -> Result<(), BrokerError> {
        let node = &mut self.nodes[index];
        let mut arguments: Vec<String> = JAVA_FLAGS.map(str::to_owned).into();
        arguments.extend(["-cp".to_owned(), self.jars.class_path(), "kafka.Kafka".to_owned()]);
        arguments.push(node.dir.join("server.properties").display().to_string());
        let name = format!("Kafka node {}", index + 1);
        node.process = Some(Process::start(name, self.jars.java(), arguments, &[], &node.dir.join("log"))?);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill_node(&mut self, index: usize) -> Result<(), BrokerError> {
        self.nodes[index].process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// SIGTERM, and waits for the orderly end.
    pub fn stop_node(&mut self, index: usize) -> Result<(), BrokerError> {
        self.nodes[index].process.take().map_or(Ok(()), |mut process| process.stop(LIMIT).map(drop))
    }

    /// SIGSTOP: the node keeps its connections and answers nothing.
    pub fn freeze_node(&mut self, index: usize) -> Result<(), BrokerError> {
        self.nodes[index].process.as_mut().map_or(Ok(()), |process| process.signal(Signal::STOP))
    }

    /// SIGCONT.
    pub fn thaw_node(&mut self, index: usize) -> Result<(), BrokerError> {
        self.nodes[index].process.as_mut().map_or(Ok(()), |process| process.signal(Signal::CONT))
    }

    /// Waits until all nodes that were started serve transactions. A node that ended meanwhile is an error at once.
    pub fn wait_ready(&mut self) -> Result<(), BrokerError> {
        let deadline = Instant::now() + LIMIT;
        let running = self.nodes.iter().filter(|node| node.process.is_some()).count();
        let bootstrap = self.bootstrap();
        loop {
            let last = match admin::probe(&bootstrap, running) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
                if let Some(status) = process.ended() {
                    return Err(process.failed(format!("Kafka ended while starting ({status})")));
                }
            }
            if Instant::now() >= deadline {
                let what = format!("Kafka was not ready within {} s: {last}", LIMIT.as_secs());
                let process = self.nodes.iter().find_map(|node| node.process.as_ref());
                return Err(process.map_or_else(|| BrokerError::Refused(what.clone()), |one| one.failed(what.clone())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// All nodes carry the cluster id of the formatted directory, each has its own directory id.
fn meta_properties(node_id: usize) -> String {
    let cluster = include_str!("../../../scripts/kafka/cluster-id").trim();
    // 16 bytes in base64; the values below 2 are Kafka's own.
    let directory = format!("fieldpostTestDir{node_id:05}Q");
    format!("version=1\nnode.id={node_id}\ncluster.id={cluster}\ndirectory.id={directory}\n")
}

fn server_properties(index: usize, nodes: &[Node], controllers: &[u16], options: &KafkaOptions) -> String {
    let (node, replicas) = (&nodes[index], nodes.len().min(3));
    let voters: Vec<_> =
        controllers.iter().enumerate().map(|(i, port)| format!("{}@127.0.0.1:{port}", i + 1)).collect();
    let mut listeners = format!("PLAINTEXT://127.0.0.1:{}", node.port);
    let (mut advertised, mut protocols) = (listeners.clone(), "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned());
    let _ = write!(listeners, ",CONTROLLER://127.0.0.1:{}", controllers[index]);
    for (number, (own, proxy)) in node.proxied_ports.iter().zip(&options.proxies).enumerate() {
        let _ = write!(listeners, ",PROXY{number}://127.0.0.1:{own}");
        let _ = write!(advertised, ",PROXY{number}://127.0.0.1:{}", proxy[index]);
        let _ = write!(protocols, ",PROXY{number}:PLAINTEXT");
    }
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id={}\n\
         controller.quorum.voters={}\n\
         listeners={listeners}\n\
         advertised.listeners={advertised}\n\
         listener.security.protocol.map={protocols}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         auto.create.topics.enable=false\n\
         default.replication.factor={replicas}\n\
         min.insync.replicas={}\n\
         offsets.topic.replication.factor={replicas}\n\
         transaction.state.log.replication.factor={replicas}\n\
         transaction.state.log.min.isr={}\n",
        index + 1,
        voters.join(","),
        node.dir.join("data").display(),
        replicas.div_ceil(2),
        replicas.div_ceil(2),
    );
    // Small and quick: few partitions of Kafka's own, few threads, a dead broker noticed soon.
    text.push_str(
        "offsets.topic.num.partitions=1\n\
         transaction.state.log.num.partitions=3\n\
         group.initial.rebalance.delay.ms=0\n\
         broker.session.timeout.ms=4000\n\
         broker.heartbeat.interval.ms=500\n\
         initial.broker.registration.timeout.ms=60000\n\
         controller.quorum.election.timeout.ms=500\n\
         controller.quorum.fetch.timeout.ms=1000\n\
         log.cleaner.dedupe.buffer.size=8388608\n\
         log.cleaner.threads=1\n\
         num.network.threads=1\n\
         num.io.threads=4\n\
         background.threads=2\n",
    );
    for (key, value) in &options.properties {
        let _ = writeln!(text, "{key}={value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_listener_that_advertises_the_port_of_the_proxy() {
        let node = |port| Node { dir: "/x".into(), port, proxied_ports: vec![port + 1], process: None };
        let options = KafkaOptions { proxies: vec![vec![7001, 7002]], ..KafkaOptions::default() };
        let text = server_properties(1, &[node(100), node(200)], &[11, 12], &options);
        assert!(
            text.contains("listeners=PLAINTEXT://127.0.0.1:200,CONTROLLER://127.0.0.1:12,PROXY0://127.0.0.1:201\n")
        );
        assert!(text.contains("advertised.listeners=PLAINTEXT://127.0.0.1:200,PROXY0://127.0.0.1:7002\n"));
        assert!(text.contains("controller.quorum.voters=1@127.0.0.1:11,2@127.0.0.1:12\n"));
    }
}
