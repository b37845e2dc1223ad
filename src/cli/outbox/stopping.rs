//! Ctrl-C while readings are copied: the copies go, then the process ends as the signal says.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::super::tell;
use crate::outbox::look::stop;

static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
/// Whether the next signal ends the process at once.
static AT_ONCE: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on the first signal ends the work in order, the second one at once.
pub(super) fn listen() {
    let (asked, which, at_once) = (stop::flag(), SIGNAL.get_or_init(Arc::default), AT_ONCE.get_or_init(Arc::default));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or_default();
        let heard = flag::register_conditional_default(signal, Arc::clone(at_once))
            .and_then(|_| flag::register(signal, Arc::clone(at_once)))
            .and_then(|_| flag::register_usize(signal, Arc::clone(which), number))
            .and_then(|_| flag::register(signal, Arc::clone(&asked)));
        if let Err(error) = heard {
            tell(&format!("fieldpost: a signal will leave temporary files behind: {error}"));
        }
    }
}

/// While somebody is asked a question: the first signal ends the process.
pub(super) fn at_once() {
    set_at_once(true);
}

/// Again as [`listen`] has it.
pub(super) fn in_order() {
    set_at_once(false);
}

fn set_at_once(at_once: bool) {
    if let Some(flag) = AT_ONCE.get() {
        flag.store(at_once, Ordering::Relaxed);
    }
}

/// Ends the process if a signal came. Everything temporary must be gone by now.
pub(super) fn end() {
    let signal = SIGNAL.get().map_or(0, |signal| signal.load(Ordering::Relaxed));
    if signal > 0 {
        // Whoever started this sees the signal, as scripts and shells expect.
        let _ = low_level::emulate_default_handler(i32::try_from(signal).unwrap_or(SIGTERM));
    }
}
