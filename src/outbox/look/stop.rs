//! Whether whoever looks has been told to stop: copies of readings must not stay behind in a temporary directory.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The flag that ends looking, for a handler of signals to set. Only a process that does nothing else may set it.
pub fn flag() -> Arc<AtomicBool> {
    ASKED.get_or_init(Arc::default).clone()
}

/// Whether it was set.
pub fn is_asked() -> bool {
    ASKED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails if it was.
pub fn check() -> io::Result<()> {
    // Not `Interrupted`, which is tried again.
    if is_asked() { Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it was told to stop")) } else { Ok(()) }
}
