//! The clocks of the gateway: wall clock with its synchronisation flag, boot-time clock, boot id.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::record::ReceiptTime;

/// Now, on both clocks.
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> ReceiptTime {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    ReceiptTime {
        wall_ns: wall_ns(SystemTime::now()),
        mono_ns: boot.tv_sec as u64 * 1_000_000_000 + boot.tv_nsec as u64,
    }
}

/// Nanoseconds since 1970-01-01 UTC; negative before.
pub fn wall_ns(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// RFC 3339 in UTC with nanoseconds as needed.
pub fn rfc3339(wall_ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(wall_ns)).map_or_else(|_| "invalid".to_owned(), |t| t.to_string())
}

/// Whether the kernel says that the wall clock is synchronised (`STA_UNSYNC` of `adjtimex(2)` not set).
#[allow(unsafe_code)]
pub fn synchronised() -> bool {
    // SAFETY: a zeroed timex with modes = 0 only reads; the kernel fills the struct we own.
    unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        let state = libc::adjtimex(&mut timex);
        state >= 0 && timex.status & libc::STA_UNSYNC == 0
    }
}

/// Kernel boot id, 36 characters; `unknown` where `/proc` does not show it.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
