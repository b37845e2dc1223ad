//! A TCP proxy that behaves like a bad network: cuts, stalls, delays, limits the rate, and, in front of Kafka, holds back or
//! loses single requests by their api key.
//!
//! One thread per direction and connection. Towards the broker the stream is read as Kafka frames (length, api key, ...) if the
//! proxy was told to; everything else is bytes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Kafka api keys, from the protocol guide.
pub const API_PRODUCE: i16 = 0;
pub const API_END_TXN: i16 = 26;

/// How much is passed on at once: small enough for a slow rate to be even.
const CHUNK: usize = 512;

#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

struct Shared {
    port: u16,
    target: u16,
    kafka: bool,
    connections: Mutex<Vec<(TcpStream, TcpStream)>>,
    refusing: AtomicBool,
    stalled_up: AtomicBool,
    stalled_down: AtomicBool,
    delay_ms: AtomicU64,
    /// Bytes per second in each direction; 0: no limit.
    rate: AtomicU64,
    fault: Mutex<Option<Fault>>,
    faults_done: AtomicU64,
}

/// What happens to the next request with this api key.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub api_key: i16,
    /// The request reaches the broker this much later.
    pub delay: Duration,
    /// The client's connection is cut as soon as the request has been read.
    pub cut: bool,
}

/// A port that a proxy will listen on. Made before the cluster, which has to advertise it.
pub struct Reserved(TcpListener);

impl Reserved {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // What the kernel takes in advance would hide a slow link. Inherited by the accepted connections.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 8 << 10).unwrap();
        Self(listener)
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Begins to pass connections on to `target`; `kafka`: requests can be held.
    pub fn forward(self, target: u16, kafka: bool) -> Proxy {
        let proxy = Proxy(Arc::new(Shared {
            port: self.port(),
            target,
            kafka,
            connections: Mutex::default(),
            refusing: AtomicBool::new(false),
            stalled_up: AtomicBool::new(false),
            stalled_down: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            fault: Mutex::new(None),
            faults_done: AtomicU64::new(0),
        }));
        let shared = Arc::clone(&proxy.0);
        start("proxy", move || {
            for client in self.0.incoming().flatten() {
                shared.serve(client);
            }
        });
        proxy
    }
}

impl Proxy {
    pub fn to(target: u16) -> Self {
        Reserved::new().forward(target, false)
    }

    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Ends all connections. New ones are taken.
    pub fn cut(&self) {
        for (client, broker) in self.0.connections.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = broker.shutdown(Shutdown::Both);
        }
    }

    /// The other side is gone: connections end, new ones are closed at once. `false`: it is back.
    pub fn refuse(&self, refuse: bool) {
        self.0.refusing.store(refuse, SeqCst);
        if refuse {
            self.cut();
        }
    }

    /// Nothing passes in these directions while set, and nothing is closed.
    pub fn stall(&self, towards_broker: bool, towards_client: bool) {
        self.0.stalled_up.store(towards_broker, SeqCst);
        self.0.stalled_down.store(towards_client, SeqCst);
    }

    /// Every piece is this much later.
    pub fn delay(&self, delay: Duration) {
        self.0.delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    /// Bits per second in each direction; 0: no limit.
    pub fn limit_bits_per_second(&self, bits: u64) {
        self.0.rate.store(bits / 8, SeqCst);
    }

    /// Does this to the next request of its kind.
    pub fn inject(&self, fault: Fault) {
        *self.0.fault.lock().unwrap() = Some(fault);
    }

    /// How many faults have been done to requests.
    pub fn faults_done(&self) -> u64 {
        self.0.faults_done.load(SeqCst)
    }

    /// A good network again.
    pub fn heal(&self) {
        self.refuse(false);
        self.stall(false, false);
        self.delay(Duration::ZERO);
        self.limit_bits_per_second(0);
        *self.0.fault.lock().unwrap() = None;
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, client: TcpStream) {
        let broker =
            if self.refusing.load(SeqCst) { None } else { TcpStream::connect(("127.0.0.1", self.target)).ok() };
        let Some(broker) = broker else { return };
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&broker, 8 << 10);
        let _ = client.set_nodelay(true).and_then(|()| broker.set_nodelay(true));
        let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
        self.connections.lock().unwrap().push((clone(&client), clone(&broker)));
        let (shared, from, to) = (Arc::clone(self), clone(&client), clone(&broker));
        start("proxy-up", move || {
            let _ = if shared.kafka { shared.pass_requests(from, &to) } else { shared.pass(from, &to, true, u64::MAX) };
            let _ = to.shutdown(Shutdown::Write);
        });
        let shared = Arc::clone(self);
        start("proxy-down", move || {
            let _ = shared.pass(broker, &client, false, u64::MAX);
            let _ = client.shutdown(Shutdown::Both);
        });
    }

    /// Kafka requests: a length, then that many bytes of which the first two are the api key.
    fn pass_requests(&self, mut from: TcpStream, to: &TcpStream) -> std::io::Result<()> {
        loop {
            let mut head = [0; 6];
            from.read_exact(&mut head)?;
            let length = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
            let api_key = i16::from_be_bytes([head[4], head[5]]);
            let fault = self.fault.lock().unwrap().take_if(|fault| fault.api_key == api_key);
            let Some(fault) = fault else {
                self.put(&head, to, true)?;
                self.pass(from.try_clone()?, to, true, length.saturating_sub(2))?;
                continue;
            };
            let mut rest = vec![0; length.saturating_sub(2) as usize];
            from.read_exact(&mut rest)?;
            self.faults_done.fetch_add(1, SeqCst);
            if fault.cut {
                from.shutdown(Shutdown::Both)?;
            }
            std::thread::sleep(fault.delay);
            self.put(&head, to, true)?;
            self.put(&rest, to, true)?;
        }
    }

    /// Passes `count` bytes on, or all until the end.
    fn pass(&self, mut from: TcpStream, to: &TcpStream, up: bool, count: u64) -> std::io::Result<()> {
        let mut left = count;
        // Without a limit on the rate in big pieces: the proxy must not be what is measured.
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let most = if self.rate.load(SeqCst) > 0 { CHUNK } else { buffer.len() };
            let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = from.read(&mut buffer[..most])?;
            if got == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            left -= got as u64;
            self.put(&buffer[..got], to, up)?;
        }
        Ok(())
    }

    fn put(&self, bytes: &[u8], mut to: &TcpStream, up: bool) -> std::io::Result<()> {
        let stalled = if up { &self.stalled_up } else { &self.stalled_down };
        while stalled.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(self.delay_ms.load(SeqCst)));
        let rate = self.rate.load(SeqCst);
        let begun = Instant::now();
        to.write_all(bytes)?;
        if rate > 0 {
            let due = Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        Ok(())
    }
}

fn start(name: &str, body: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).expect("a thread can be started");
}
