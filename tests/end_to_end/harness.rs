//! What the tests are made of. Each part owns one real thing and cleans up after itself.

pub mod kafka;
pub mod workdir;

use std::time::{Duration, Instant};

/// How long a hopeless wait lasts. No test passes or fails by how fast something was within it.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Waits until `done` gives a value; panics with `what` and the last `state` after [`LIMIT`].
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
