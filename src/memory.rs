//! The allocator's one setting that matters to a daemon that runs for years.

/// Keeps large blocks apart from the heap: each is mapped when it is asked for and given back when it is freed.
///
/// glibc raises its threshold for that with every large block freed. Each generation of the outbox that is opened asks for
/// some 20 MiB of zeros it hardly touches; taken from the heap they have to be written, and stay. Measured: a drain of
/// 300,000 readings peaked at 74 MiB, with this at 48 MiB (docs/decisions/0404). Other C libraries do no such thing.
pub fn keep_large_blocks_apart() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    // SAFETY: `mallopt` takes two numbers and is called before the process has a second thread.
    unsafe {
        const LARGE_BYTES: libc::c_int = 128 << 10;
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}
