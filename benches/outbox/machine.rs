//! What this process used, and on what it ran.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU of this process so far.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A line of `/proc/self/status` that counts kB (`VmRSS`, `VmHWM`), in bytes.
pub(crate) fn memory(line: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let found = status.lines().find(|l| l.starts_with(line)).expect("it has the line");
    found.split_whitespace().nth(1).expect("it has a number").parse::<u64>().expect("a number") * 1024
}

/// Bytes this process has caused to be written to a disk (`/proc/self/io`): dirtied pages, not what the journal adds.
pub(crate) fn written_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").expect("Linux with task accounting has it");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("it has the line");
    line.trim().parse().expect("a number")
}

/// Bytes on disk below a directory, without the reserve.
pub(crate) fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(directory).expect("the directory is there") {
        let entry = entry.expect("it can be listed");
        let meta = entry.metadata().expect("it is there");
        if meta.is_dir() {
            sum += disk_bytes(&entry.path());
        } else if entry.file_name() != "reserve" {
            sum += meta.blocks() * 512;
        }
    }
    sum
}

pub(crate) fn load() -> String {
    fs::read_to_string("/proc/loadavg").expect("Linux has it").trim().to_owned()
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split(':').nth(1)).map_or_else(|| "unknown".to_owned(), |value| value.trim().to_owned())
}

/// Type and options of the file system that holds a path: the longest mount point that is a prefix of it.
fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let parts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|parts| parts.len() > 3);
    let holding = parts.filter(|parts| path.starts_with(parts[1]));
    let found = holding.max_by_key(|parts| parts[1].len());
    found.map_or_else(|| "unknown".to_owned(), |parts| format!("{} ({}) on {}", parts[2], parts[3], parts[0]))
}

/// The conditions of the run.
pub(crate) fn print_conditions(directory: &Path) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("cpu:         {}, {cores} cores", field("/proc/cpuinfo", "model name"));
    println!("kernel:      {}", kernel.trim());
    println!("file system: {}", file_system(directory));
    println!("load:        {}", load());
}
