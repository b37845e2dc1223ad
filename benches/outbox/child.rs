//! One measurement in a process of its own: the parent starts this program again with the job in an environment
//! variable; figures come back as a line of JSON.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fieldpost::metrics::OutboxMetrics;
use fieldpost::promise::Committed;
use fieldpost::record::Reading;
use serde::{Deserialize, Serialize};

use crate::machine;
use crate::ours::{self, DrainSide, SourceSide};
use crate::plain::{PlainFile, PlainReader};
use crate::readings::{Pool, reading};

/// Figures by name.
pub(crate) type Figures = BTreeMap<String, f64>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Side {
    Outbox,
    Plain,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Groups, one after the other, for so long.
    Append { group: u64, bytes: usize, seconds: f64, codec: String },
    /// A number of groups in a given directory: for the counters of a device.
    Groups { directory: PathBuf, group: u64, groups: u64, bytes: usize },
    /// Writers, each waiting for its own reading.
    Writers { writers: usize, bytes: usize, seconds: f64 },
    /// Appending while what is durable is read.
    Beside { group: u64, bytes: usize, seconds: f64 },
    /// Reading what was appended before.
    Drain { readings: u64, bytes: usize },
    /// What is on disk, full and drained.
    Disk { readings: u64, bytes: usize },
    /// Fills a directory, tells its memory, waits to be killed.
    Fill { directory: PathBuf, readings: u64 },
    /// Opens it again and reads once.
    Reopen { directory: PathBuf, cold: bool },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) side: Side,
    pub(crate) work: Work,
}

const VARIABLE: &str = "FIELDPOST_BENCH_JOB";
/// Readings in a group where the group is not what is measured.
const FILL_GROUP: u64 = 2000;

impl Job {
    pub(crate) fn of_this_process() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        Some(serde_json::from_str(&text).expect("the parent wrote it"))
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("Linux knows it"));
        command.env(VARIABLE, serde_json::to_string(self).expect("a job is plain data"));
        command
    }
}

/// Runs a job in a child.
pub(crate) fn measure(job: &Job) -> Figures {
    figures_of(&mut job.command())
}

pub(crate) fn figures_of(command: &mut Command) -> Figures {
    let output = command.stderr(Stdio::inherit()).output().expect("a child can be started");
    assert!(output.status.success(), "the child failed: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("the child prints its figures")
}

/// Fills, kills, reopens twice: with the pages in memory, and without.
pub(crate) fn measure_backlog(readings: u64) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_owned();
    let job = Job { side: Side::Outbox, work: Work::Fill { directory: path.clone(), readings } };
    let mut child = job.command().stdout(Stdio::piped()).spawn().expect("a child can be started");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the child prints its figures");
    child.kill().expect("it still runs");
    child.wait().expect("it was ours");
    let mut figures: Figures = serde_json::from_str(&line).expect("figures");
    for (cold, name) in [(false, "warm"), (true, "cold")] {
        let job = Job { side: Side::Outbox, work: Work::Reopen { directory: path.clone(), cold } };
        figures.extend(measure(&job).into_iter().map(|(figure, number)| (format!("{figure} {name}"), number)));
    }
    figures
}

/// What a child does.
pub(crate) fn run(job: &Job) {
    let figures = match (&job.work, job.side) {
        (Work::Append { group, bytes, seconds, codec }, Side::Outbox) => append_ours(*group, *bytes, *seconds, codec),
        (Work::Append { group, bytes, seconds, .. }, Side::Plain) => append_plain(*group, *bytes, *seconds),
        (Work::Groups { directory, group, groups, bytes }, side) => {
            some_groups(side, directory, *group, *groups, *bytes)
        }
        (Work::Writers { writers, bytes, seconds }, side) => concurrent(side, *writers, *bytes, *seconds),
        (Work::Beside { group, bytes, seconds }, Side::Outbox) => beside_ours(*group, *bytes, *seconds),
        (Work::Beside { group, bytes, seconds }, Side::Plain) => beside_plain(*group, *bytes, *seconds),
        (Work::Drain { readings, bytes }, Side::Outbox) => drain_ours(*readings, *bytes),
        (Work::Drain { readings, bytes }, Side::Plain) => drain_plain(*readings, *bytes),
        (Work::Disk { readings, bytes }, _) => disk(*readings, *bytes),
        (Work::Fill { directory, readings }, _) => return fill_and_wait(directory, *readings),
        (Work::Reopen { directory, cold }, _) => reopen(directory, *cold),
    };
    println!("{}", serde_json::to_string(&figures).expect("figures are plain data"));
}

fn figures<const N: usize>(list: [(&str, f64); N]) -> Figures {
    list.into_iter().map(|(name, number)| (name.to_owned(), number)).collect()
}

/// Appends groups until the time is up, after a tenth of it to warm up; rate and CPU.
fn timed(group: u64, seconds: f64, mut append: impl FnMut(u64)) -> Figures {
    let mut at = 0;
    let mut until = |seconds: f64| {
        let (first, start, cpu) = (at, Instant::now(), machine::cpu());
        while start.elapsed().as_secs_f64() < seconds {
            append(at);
            at += group;
        }
        (at - first, start.elapsed().as_secs_f64(), machine::cpu().saturating_sub(cpu))
    };
    until(seconds / 10.0);
    let (readings, wall, cpu) = until(seconds);
    figures([
        ("readings", at as f64),
        ("readings/s", readings as f64 / wall),
        ("ns CPU/reading", cpu.as_nanos() as f64 / readings as f64),
    ])
}

fn syncs(metrics: &OutboxMetrics) -> f64 {
    metrics.syncs.get() as f64
}

fn append_ours(group: u64, bytes: usize, seconds: f64, codec: &str) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = Pool::of(bytes);
    let (outbox, metrics) = ours::open(directory.path(), codec);
    let mut source = SourceSide::new(&outbox, "plant");
    let before = machine::written_bytes();
    let mut found = timed(group, seconds, |at| source.append(pool.group(at, group)));
    found.insert("syncs".to_owned(), syncs(&metrics));
    found.insert("encoded bytes".to_owned(), metrics.written_bytes.get() as f64);
    found.insert("written bytes".to_owned(), (machine::written_bytes() - before) as f64);
    found.insert("payload bytes".to_owned(), found["readings"] * bytes as f64);
    found
}

fn append_plain(group: u64, bytes: usize, seconds: f64) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = Pool::of(bytes);
    let mut file = PlainFile::create(&directory.path().join("plain")).expect("it is made");
    let mut found = timed(group, seconds, |at| file.append(pool.group(at, group)).expect("it writes"));
    found.insert("syncs".to_owned(), file.syncs as f64);
    found
}

fn some_groups(side: Side, directory: &Path, group: u64, groups: u64, bytes: usize) -> Figures {
    let pool = Pool::of(bytes);
    let before = machine::written_bytes();
    let syncs = match side {
        Side::Outbox => {
            let (outbox, metrics) = ours::open(directory, "zstd");
            let mut source = SourceSide::new(&outbox, "plant");
            (0..groups).for_each(|n| source.append(pool.group(n * group, group)));
            outbox.close(Duration::from_secs(60));
            syncs(&metrics)
        }
        Side::Plain => {
            let mut file = PlainFile::create(&directory.join("plain")).expect("it is made");
            (0..groups).for_each(|n| file.append(pool.group(n * group, group)).expect("it writes"));
            file.syncs as f64
        }
    };
    figures([
        ("payload bytes", (group * groups * bytes as u64) as f64),
        ("written bytes", (machine::written_bytes() - before) as f64),
        ("syncs", syncs),
    ])
}

/// A reading on its way to the thread that owns the plain file, and whom to tell.
type Handed = (Reading, tokio::sync::mpsc::Sender<()>);

fn concurrent(side: Side, writers: usize, bytes: usize, seconds: f64) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = Arc::new(Pool::of(bytes));
    let stop = Arc::new(AtomicBool::new(false));
    match side {
        Side::Outbox => {
            let (outbox, metrics) = ours::open(directory.path(), "zstd");
            let run = |number: usize| {
                let mut source = SourceSide::new(&outbox, &format!("source-{number}"));
                move |reading: Reading| source.append(std::iter::once(reading))
            };
            let mut found = closed_loop(writers, seconds, &pool, &stop, run);
            found.insert("syncs".to_owned(), syncs(&metrics));
            found
        }
        Side::Plain => {
            let (hand, handed) = mpsc::sync_channel::<Handed>(writers);
            let path = directory.path().join("plain");
            let owner = std::thread::Builder::new().name("plain".to_owned());
            let owner = owner.spawn(move || own_plain(&path, &handed)).expect("a thread can be started");
            let run = |_| {
                let hand = hand.clone();
                let (done, mut answer) = tokio::sync::mpsc::channel(1);
                move |reading: Reading| {
                    hand.send((reading, done.clone())).expect("the owner lives");
                    answer.blocking_recv().expect("it answers");
                }
            };
            let mut found = closed_loop(writers, seconds, &pool, &stop, run);
            drop(hand);
            found.insert("syncs".to_owned(), owner.join().expect("it ends") as f64);
            found
        }
    }
}

/// The plain file with one owner: what is there is one group.
fn own_plain(path: &Path, handed: &mpsc::Receiver<Handed>) -> u64 {
    let mut file = PlainFile::create(path).expect("it is made");
    while let Ok(first) = handed.recv() {
        let mut group = vec![first];
        group.extend(handed.try_iter());
        let (readings, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        file.append(readings.into_iter()).expect("it writes");
        for answer in answers {
            answer.try_send(()).expect("the writer waits");
        }
    }
    file.syncs
}

/// So many threads, each handing over its next reading when the last is durable.
fn closed_loop<W: FnMut(Reading) + Send + 'static>(
    writers: usize,
    seconds: f64,
    pool: &Arc<Pool>,
    stop: &Arc<AtomicBool>,
    writer: impl Fn(usize) -> W,
) -> Figures {
    let start = Instant::now();
    let threads: Vec<_> = (0..writers)
        .map(|number| {
            let (mut append, pool, stop) = (writer(number), pool.clone(), stop.clone());
            let work = move || {
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    append(pool.group((latencies.len() * 64 + number) as u64, 1).next().expect("one"));
                    latencies.push(started.elapsed());
                }
                latencies
            };
            let thread = std::thread::Builder::new().stack_size(256 * 1024);
            thread.spawn(work).expect("a thread can be started")
        })
        .collect();
    std::thread::sleep(Duration::from_secs_f64(seconds));
    stop.store(true, Ordering::Relaxed);
    let wall = start.elapsed().as_secs_f64();
    let mut all: Vec<Duration> = threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect();
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    figures([("readings/s", all.len() as f64 / wall), ("p50 us", at(0.5)), ("p99 us", at(0.99))])
}

fn beside_ours(group: u64, bytes: usize, seconds: f64) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = Pool::of(bytes);
    let (outbox, metrics) = ours::open(directory.path(), "zstd");
    let (stop, drained) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (ended, counted, mut drain) = (stop.clone(), drained.clone(), DrainSide::new(&outbox));
    let handle = outbox.clone();
    let work = move || {
        while !ended.load(Ordering::Relaxed) {
            handle.wait_durable(drain.after, Instant::now() + Duration::from_millis(100));
            counted.fetch_add(drain.read() as u64, Ordering::Relaxed);
        }
    };
    let thread = std::thread::Builder::new().name("drain".to_owned()).spawn(work).expect("a thread can be started");
    let mut source = SourceSide::new(&outbox, "plant");
    let mut found = timed(group, seconds, |at| source.append(pool.group(at, group)));
    // The last group became durable just now.
    let read = drained.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("it ends");
    found.insert("drained share".to_owned(), read as f64 / found["readings"]);
    found.insert("syncs".to_owned(), syncs(&metrics));
    found
}

fn beside_plain(group: u64, bytes: usize, seconds: f64) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("plain");
    let pool = Pool::of(bytes);
    let mut file = PlainFile::create(&path).expect("it is made");
    let (durable, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (reached, ended) = (durable.clone(), stop.clone());
    let mut reader = PlainReader::open(&path).expect("it opens");
    let work = move || {
        while !ended.load(Ordering::Relaxed) {
            let end = reached.load(Ordering::Acquire);
            while !reader.next_block(end).expect("it reads").is_empty() {}
            std::thread::park_timeout(Duration::from_millis(100));
        }
    };
    let thread = std::thread::Builder::new().name("drain".to_owned()).spawn(work).expect("a thread can be started");
    let mut found = timed(group, seconds, |at| {
        file.append(pool.group(at, group)).expect("it writes");
        durable.store(file.length, Ordering::Release);
        thread.thread().unpark();
    });
    stop.store(true, Ordering::Relaxed);
    thread.thread().unpark();
    thread.join().expect("it ends");
    found.insert("syncs".to_owned(), file.syncs as f64);
    found
}

fn rate(readings: u64, work: impl FnOnce()) -> Figures {
    let (start, cpu) = (Instant::now(), machine::cpu());
    work();
    let (wall, cpu) = (start.elapsed().as_secs_f64(), machine::cpu().saturating_sub(cpu));
    figures([
        ("readings/s", readings as f64 / wall),
        ("ns CPU/reading", cpu.as_nanos() as f64 / readings as f64),
        ("syncs", 0.0),
    ])
}

fn drain_ours(readings: u64, bytes: usize) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = Pool::of(bytes);
    let (outbox, _) = ours::open(directory.path(), "zstd");
    let mut source = SourceSide::new(&outbox, "plant");
    (0..readings / FILL_GROUP).for_each(|n| source.append(pool.group(n * FILL_GROUP, FILL_GROUP)));
    let mut drain = DrainSide::new(&outbox);
    rate(readings, || {
        let mut left = readings / FILL_GROUP * FILL_GROUP;
        while left > 0 {
            left -= drain.read() as u64;
        }
    })
}

fn drain_plain(readings: u64, bytes: usize) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("plain");
    let pool = Pool::of(bytes);
    let mut file = PlainFile::create(&path).expect("it is made");
    (0..readings / FILL_GROUP).for_each(|n| file.append(pool.group(n * FILL_GROUP, FILL_GROUP)).expect("it writes"));
    let mut reader = PlainReader::open(&path).expect("it opens");
    rate(readings, || {
        let mut left = readings / FILL_GROUP * FILL_GROUP;
        while left > 0 {
            left -= reader.next_block(file.length).expect("it reads").len() as u64;
        }
    })
}

/// Disk full of undelivered readings, and after all are delivered.
fn disk(readings: u64, bytes: usize) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let pool = Pool::of(bytes);
    let (outbox, metrics) = ours::open(directory.path(), "zstd");
    let mut source = SourceSide::new(&outbox, "plant");
    (0..readings / FILL_GROUP).for_each(|n| source.append(pool.group(n * FILL_GROUP, FILL_GROUP)));
    let generations = outbox.look().inspect().expect("it can be looked at");
    let of_one = generations.generations.iter().map(|generation| generation.bytes).max().unwrap_or(0);
    let mut found = figures([
        ("disk bytes", machine::disk_bytes(directory.path()) as f64),
        ("encoded bytes", metrics.written_bytes.get() as f64),
        ("payload bytes", (readings * bytes as u64) as f64),
        ("bytes of a generation", of_one as f64),
    ]);
    let mut drain = DrainSide::new(&outbox);
    while drain.read() > 0 {}
    outbox.trim_through(Committed::in_test(outbox.identity().incarnation, drain.after));
    drop(drain);
    let deadline = Instant::now() + Duration::from_secs(20);
    let left = || outbox.look().inspect().expect("it can be looked at").generations;
    while left().len() > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    found.insert("bytes after drain".to_owned(), machine::disk_bytes(directory.path()) as f64);
    outbox.close(Duration::from_secs(60));
    found
}

fn fill_and_wait(directory: &Path, readings: u64) {
    let (outbox, _) = ours::open(directory, "zstd");
    let mut source = SourceSide::new(&outbox, "plant");
    let fill = |from: u64| (from..from + FILL_GROUP).map(|n| reading(n, 200));
    // Whatever is allocated once is there before.
    source.append(fill(0));
    let before = machine::memory("VmRSS");
    (1..readings / FILL_GROUP).for_each(|n| source.append(fill(n * FILL_GROUP)));
    let growth = |line| machine::memory(line) as f64 - before as f64;
    let found = figures([("rss growth", growth("VmRSS")), ("peak growth", growth("VmHWM"))]);
    println!("{}", serde_json::to_string(&found).expect("figures are plain data"));
    std::io::stdout().flush().expect("the parent reads");
    std::thread::sleep(Duration::from_secs(600));
}

/// Tells the kernel to forget the pages of every file below a directory.
fn forget_pages(directory: &Path) {
    use rustix::fs::{Advice, fadvise};
    for entry in std::fs::read_dir(directory).expect("the directory is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            forget_pages(&path);
        } else {
            let file = std::fs::File::open(&path).expect("it opens");
            file.sync_all().expect("it syncs: dirty pages cannot be forgotten");
            fadvise(&file, 0, None, Advice::DontNeed).expect("Linux takes the advice");
        }
    }
}

fn reopen(directory: &Path, cold: bool) -> Figures {
    if cold {
        forget_pages(directory);
    }
    let start = Instant::now();
    let (outbox, _) = ours::open(directory, "zstd");
    let reopened = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let mut drain = DrainSide::new(&outbox);
    assert!(drain.read() > 0, "the backlog is there");
    let read = start.elapsed().as_secs_f64();
    figures([("reopen", reopened), ("first read", read), ("rss", machine::memory("VmRSS") as f64)])
}
