//! What the tests are made of. Each part owns one real thing and cleans up after itself.

pub mod agent;
pub mod kafka;
pub mod meter;
pub mod oracle;
pub mod payload;
pub mod proxy;
pub mod publisher;
pub mod rig;
pub mod serial;
pub mod tls;
pub mod workdir;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use meter::Meter;
use publisher::Publisher;

/// How long a hopeless wait lasts. No test passes or fails by how fast something was within it.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until `done` gives a value; panics with `what` after [`LIMIT`].
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The seed of all random choices of this run: `TEST_SEED`, or a fresh one. Printed, so that a failed run can be replayed.
pub fn seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = std::env::var("TEST_SEED").ok().map(|text| text.parse().expect("TEST_SEED is a number"));
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap() >> 16);
        eprintln!("TEST_SEED={seed}");
        seed
    })
}

/// A stream of random numbers of the run's seed, one per `name`.
pub struct Random(u64);

impl Random {
    pub fn new(name: &str) -> Self {
        Self(name.bytes().fold(seed() | 1, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// splitmix64 (Steele, Lea, Flood 2014).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `from` up to and without `to`.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.within(from, to))
    }
}

/// Something that goes on beside a test: `step` again and again on a thread of its own until it is told to stop.
pub struct Background<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Background<T> {
    pub fn start(mut worker: T, mut step: impl FnMut(&mut T) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let body = move || {
            while !told.load(SeqCst) {
                step(&mut worker);
            }
            worker
        };
        let thread = std::thread::Builder::new().name("background".to_owned()).spawn(body).unwrap();
        Self { stop, thread }
    }

    /// Gives back what it worked with. A panic over there is a panic here.
    pub fn stop(self) -> T {
        self.stop.store(true, SeqCst);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Readings at a moderate rate until it is stopped.
pub fn publish_in_background(publisher: Publisher, devices: Vec<String>, qos: u8) -> Background<Publisher> {
    Background::start(publisher, move |publisher| {
        publisher.publish(&devices, qos, 25);
        std::thread::sleep(Duration::from_millis(20));
    })
}

/// Readings on a serial line until it is stopped.
pub fn meter_in_background(meter: Meter) -> Background<Meter> {
    Background::start(meter, |meter| {
        meter.send(20);
        std::thread::sleep(Duration::from_millis(20));
    })
}
