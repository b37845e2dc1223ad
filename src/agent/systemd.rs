//! What systemd is told over its notification socket; without systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// More time for opening the outbox, asked for every 10 s.
const OPENING_EXTENSION_US: u32 = 60_000_000;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify systemd: {error}");
    }
}

/// Opening takes long; it goes on.
pub fn opening() {
    tell(&[NotifyState::ExtendTimeoutUsec(OPENING_EXTENSION_US), NotifyState::Status("opening the outbox")]);
}

/// All stages run.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is read again.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("cannot read the clock for systemd: {error}"),
    }
}

/// The stages are being stopped.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// The line of `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Every loop turns.
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] is to be called, if systemd watches: a third of its limit.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}
