//! The thread `signals`: TERM and INT stop in order, a second one ends the process at once, HUP reloads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals as Iterator;
use tokio::sync::mpsc;

/// What the owner wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop in order.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// Orders as they come.
pub type Signals = mpsc::Receiver<Order>;

/// Exit status after the second TERM or INT: the stop was not orderly.
const EXIT_AT_ONCE: i32 = 1;

/// Starts the thread.
pub fn start() -> io::Result<Signals> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal finds the flag down and raises it, the second finds it up.
        flag::register_conditional_shutdown(signal, EXIT_AT_ONCE, stopping.clone())?;
        flag::register(signal, stopping.clone())?;
    }
    let mut signals = Iterator::new([SIGTERM, SIGINT, SIGHUP])?;
    let (orders, receiver) = mpsc::channel(4);
    std::thread::Builder::new().name("signals".to_owned()).stack_size(128 << 10).spawn(move || {
        let mut told = false;
        for signal in signals.forever() {
            let sent = match signal {
                // A full queue holds a reload already, which has not begun.
                SIGHUP => match orders.try_send(Order::Reload) {
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                    _ => Ok(()),
                },
                // Two signals at the same instant are handled by two threads, and neither sees the other's flag.
                _ if told => signal_hook::low_level::exit(EXIT_AT_ONCE),
                _ => {
                    told = true;
                    orders.blocking_send(Order::Stop)
                }
            };
            if sent.is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
