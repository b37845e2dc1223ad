//! Runs a session under the recorder: builds the shim, starts this program again with it loaded, reads what it recorded.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::journal::{Journal, Op};
use super::marks::{Expectation, Mark};
use super::replay::{Mode, Replay};
use super::session::{TASK, Task, Verdict};
use super::workloads::{Place, Workload};

/// A session that takes longer hangs.
const SESSION_MAX: Duration = Duration::from_secs(180);

/// What of the outbox's care is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    Nothing,
    Fdatasync,
    /// fsync of sled's `conf` and of the directories of generations.
    Opening,
}

/// A directory for one run, removed at the end.
pub struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    pub fn new() -> Self {
        // In memory where that is possible: what is durable is computed here, not asked of the device.
        let memory = Path::new("/dev/shm");
        let chosen = std::env::var_os("TMPDIR").map(PathBuf::from);
        let root = chosen.unwrap_or_else(|| if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() });
        let dir = tempfile::Builder::new().prefix("fieldpost-power-loss-").tempdir_in(root.canonicalize().unwrap());
        Self { dir: dir.unwrap() }
    }

    /// An empty directory in it.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
        std::fs::create_dir_all(path.join("state")).unwrap();
        path
    }
}

/// How a session is run.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    pub workload: &'a Workload,
    pub expected: Expectation,
    pub arrivals: u64,
    pub seed: u64,
    pub damaged: bool,
    pub closes: bool,
    pub skip: Skip,
    pub full: Option<&'static str>,
    pub place: Place,
}

/// A session that was recorded.
pub struct Recorded {
    pub journal: Journal,
    pub verdict: Verdict,
    pub expected: Expectation,
    /// End of what the process logged.
    pub log: String,
}

/// The compiled shim; built once for each version of its source.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power_loss/shim.c");
        let version = crc32fast::hash(&std::fs::read(&source).unwrap());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let to = directory.join(format!("power-loss-shim-{version:08x}.so"));
        if to.exists() {
            return to;
        }
        let half = directory.join(format!("power-loss-shim-{version:08x}-{}", std::process::id()));
        let cc = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let built = Command::new(&cc)
            .args(["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-Werror", "-o"])
            .args([&half, &source])
            .args(["-ldl", "-lpthread"])
            .output()
            .unwrap_or_else(|error| panic!("a C compiler is needed for the recorder ({cc:?}: {error}): make setup"));
        assert!(built.status.success(), "the recorder does not build:\n{}", String::from_utf8_lossy(&built.stderr));
        std::fs::rename(half, &to).unwrap();
        to
    })
}

/// Runs a session in `dir/state`. `Err`: it hung, died, or its recording cannot be believed.
pub fn run(dir: &Path, run: &Run<'_>) -> Result<Recorded, String> {
    let path = |name: &str| dir.join(name);
    // Nothing of an earlier session may be taken for what this one says.
    for name in ["journal", "verdict.json", "marks"] {
        if path(name).exists() {
            std::fs::remove_file(path(name)).unwrap();
        }
    }
    let task = Task {
        workload: run.workload.name.to_owned(),
        directory: path("state"),
        marks: path("marks"),
        verdict: path("verdict.json"),
        expected: run.expected.clone(),
        arrivals: run.arrivals,
        seed: run.seed,
        damaged: run.damaged,
        closes: run.closes,
    };
    std::fs::write(path("task.json"), serde_json::to_vec(&task).unwrap()).unwrap();
    let skip = match run.skip {
        Skip::Nothing => "",
        Skip::Fdatasync => "fdatasync",
        Skip::Opening => "opening",
    };
    let mut command = command(dir, run.place);
    let log = std::fs::File::create(path("log")).unwrap();
    command
        .env(TASK, path("task.json"))
        .env("TEST_SHIM", shim())
        .env("TEST_SHIM_ROOT", path("state"))
        .env("TEST_SHIM_JOURNAL", path("journal"))
        .env("TEST_SHIM_MARKS", path("marks"))
        .env("TEST_SHIM_SKIP", skip)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    match run.full {
        Some(full) => command.env("TEST_SHIM_FULL", full),
        None => command.env_remove("TEST_SHIM_FULL"),
    };
    let ended = wait(&mut command);
    let log = tail(&path("log"));
    let status = ended.map_err(|what| format!("{what}\n{log}"))?;
    if !status.success() {
        return Err(format!("the process failed, {status}\n{log}"));
    }
    let verdict = std::fs::read(path("verdict.json")).map_err(|_| format!("no verdict, {status}\n{log}"))?;
    let verdict: Verdict = serde_json::from_slice(&verdict).unwrap();
    let journal = Journal::read(&path("journal")).map_err(|error| format!("{error}\n{log}"))?;
    complete(&journal)?;
    Ok(Recorded { journal, verdict, expected: run.expected.clone(), log })
}

/// This program again. On a file system of its own it first mounts it, in a mount namespace that ends with it.
fn command(dir: &Path, place: Place) -> Command {
    let itself = std::env::current_exe().unwrap();
    // For the test harness; the other program takes no arguments.
    let arguments = ["--exact", "recorded_process", "--nocapture", "--test-threads=1"];
    match place {
        Place::Anywhere => {
            let mut command = Command::new(itself);
            command.args(arguments).env("LD_PRELOAD", shim());
            command
        }
        Place::Tmpfs(bytes) => {
            let script = r#"set -e
                rm -rf "$1/before"
                cp -a "$1/state" "$1/before"
                mount -t tmpfs -o size="$2" tmpfs "$1/state"
                cp -a "$1/before/." "$1/state/"
                shift 2
                exec env LD_PRELOAD="$TEST_SHIM" "$@""#;
            let mut command = Command::new("unshare");
            if !rustix::process::geteuid().is_root() {
                command.arg("--map-root-user");
            }
            command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir).arg(bytes.to_string());
            command.arg(itself).args(arguments);
            command
        }
    }
}

fn wait(command: &mut Command) -> Result<std::process::ExitStatus, String> {
    let mut child = command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Ok(status);
        }
        if began.elapsed() > SESSION_MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err(format!("no end after {SESSION_MAX:?}: it hangs"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn tail(path: &Path) -> String {
    const BYTES: usize = 4000;
    let mut text = Vec::new();
    std::fs::File::open(path).unwrap().read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text[text.len().saturating_sub(BYTES)..]).into_owned()
}

/// The recorder has seen everything: applied in order, the recording gives the files that are there at the end.
fn complete(journal: &Journal) -> Result<(), String> {
    let Some(end) = journal.find(|mark| matches!(mark, Mark::End { .. })) else { return Ok(()) };
    let Op::Mark(Mark::End { files }) = &journal.ops[end] else { unreachable!("just found") };
    let told: BTreeMap<&str, (u64, u32)> =
        files.iter().map(|(name, length, sum)| (name.as_str(), (*length, *sum))).collect();
    let whole = Replay::new(journal, end, Mode::Strict).whole();
    let replayed: BTreeMap<&str, (u64, u32)> = whole
        .iter()
        .filter_map(|(name, content)| Some((name.as_str(), content.as_ref()?)))
        .map(|(name, content)| (name, (content.len() as u64, crc32fast::hash(content))))
        .collect();
    if told == replayed {
        return Ok(());
    }
    let differ: Vec<_> = told.iter().filter(|(name, is)| replayed.get(*name) != Some(is)).collect();
    let extra: Vec<_> = replayed.keys().filter(|name| !told.contains_key(*name)).collect();
    Err(format!("the recorder has missed something: on disk {differ:?}, only in the recording {extra:?}"))
}
