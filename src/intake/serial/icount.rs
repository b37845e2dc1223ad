//! What the kernel counted on a line: `TIOCGICOUNT` (Linux, `drivers/tty`). Many drivers, and every pseudo terminal, do
//! not have it: that is "unsupported", not 0.

use std::os::fd::AsRawFd;

/// `struct serial_icounter_struct` of `<linux/serial.h>`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct RawCounters {
    cts: libc::c_int,
    dsr: libc::c_int,
    rng: libc::c_int,
    dcd: libc::c_int,
    rx: libc::c_int,
    tx: libc::c_int,
    frame: libc::c_int,
    overrun: libc::c_int,
    parity: libc::c_int,
    brk: libc::c_int,
    buf_overrun: libc::c_int,
    reserved: [libc::c_int; 9],
}

/// Errors that the kernel counted since the driver was loaded. They wrap around.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) frame: u32,
    pub(super) overrun: u32,
    pub(super) parity: u32,
    pub(super) brk: u32,
    pub(super) buf_overrun: u32,
}

impl Counters {
    /// What was added since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            frame: self.frame.wrapping_sub(before.frame),
            overrun: self.overrun.wrapping_sub(before.overrun),
            parity: self.parity.wrapping_sub(before.parity),
            brk: self.brk.wrapping_sub(before.brk),
            buf_overrun: self.buf_overrun.wrapping_sub(before.buf_overrun),
        }
    }

    /// By name, those that are not 0.
    pub(super) fn named(self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = [
            ("frame", self.frame),
            ("overrun", self.overrun),
            ("parity", self.parity),
            ("brk", self.brk),
            ("buf_overrun", self.buf_overrun),
        ];
        all.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name, u64::from(count)))
    }
}

/// The counters of an open port; `None` if its driver does not count.
#[allow(unsafe_code)]
pub(super) fn read(port: &impl AsRawFd) -> Option<Counters> {
    let mut raw = RawCounters::default();
    // SAFETY: TIOCGICOUNT writes one serial_icounter_struct to the pointer; `raw` has that layout (repr(C), 11 named and 9
    // reserved ints) and lives through the call; the descriptor belongs to `port`, which is borrowed, so it is open.
    let result = unsafe { libc::ioctl(port.as_raw_fd(), libc::TIOCGICOUNT, &raw mut raw) };
    // The kernel counts in an unsigned 32-bit number and hands it out as int.
    let count = |value: libc::c_int| value as u32;
    (result == 0).then(|| Counters {
        frame: count(raw.frame),
        overrun: count(raw.overrun),
        parity: count(raw.parity),
        brk: count(raw.brk),
        buf_overrun: count(raw.buf_overrun),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_count_is_unsupported() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(read(&file), None);
    }

    #[test]
    fn differences_survive_a_wrap() {
        let before = Counters { overrun: u32::MAX, ..Counters::default() };
        let now = Counters { overrun: 1, parity: 3, ..Counters::default() };
        let named: Vec<_> = now.since(before).named().collect();
        assert_eq!(named, [("overrun", 2), ("parity", 3)]);
    }
}
