//! Bytes that reach the medium, journal of the file system included: an ext4 on a loop device of its own, and the
//! device's counters. Needs root; without it the rows are left out, and that is said.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::{self, Job, Side, Work};
use crate::table::{Aim, Table};

/// A loop device over a file, with a fresh ext4. Detached when dropped.
struct Loop {
    device: String,
    directory: tempfile::TempDir,
}

fn sh(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Loop {
    fn new() -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(512 << 20).map_err(|error| error.to_string())?;
        let image = image.to_str().expect("a temporary path is text");
        sh("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image])?;
        let device = sh("losetup", &["--find", "--show", image])?;
        std::fs::create_dir(directory.path().join("mount")).map_err(|error| error.to_string())?;
        Ok(Self { device, directory })
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    /// Bytes written and flushes of the device so far.
    fn counters(&self) -> (u64, u64) {
        let name = Path::new(&self.device).file_name().expect("a device has a name").to_string_lossy();
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).expect("a block device has counters");
        let numbers: Vec<u64> = stat.split_whitespace().map(|n| n.parse().expect("a number")).collect();
        (numbers[6] * 512, numbers.get(15).copied().unwrap_or(0))
    }

    /// Runs a job with the file system mounted in a namespace of its own; device bytes and flushes are added.
    fn run(&self, side: Side, group: u64, groups: u64, bytes: usize) -> child::Figures {
        let directory = self.mount_point();
        let job = Job { side, work: Work::Groups { directory: directory.clone(), group, groups, bytes } };
        let inner = job.command();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
        // The unmounting is part of it: what is dirty goes to the device.
        command.arg(r#"mount "$1" "$2"; "$3"; umount "$2""#).arg("sh");
        command.arg(&self.device).arg(&directory).arg(inner.get_program());
        command.envs(inner.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        let before = self.counters();
        let mut figures = child::figures_of(&mut command);
        let after = self.counters();
        figures.insert("device bytes".to_owned(), (after.0 - before.0) as f64);
        figures.insert("flushes".to_owned(), (after.1 - before.1) as f64);
        figures
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = sh("losetup", &["--detach", &self.device]) {
            eprintln!("{} stays attached: {error}", self.device);
        }
    }
}

/// What the groups cost above opening and closing an empty store, each on a fresh device.
fn above_empty(side: Side, group: u64, groups: u64, bytes: usize) -> Result<child::Figures, String> {
    let empty = Loop::new()?.run(side, group, 0, bytes);
    let mut figures = Loop::new()?.run(side, group, groups, bytes);
    for (name, number) in &mut figures {
        *number -= empty[name];
    }
    Ok(figures)
}

pub(crate) fn rows(table: &mut Table, quick: bool) {
    let scale = if quick { 10 } else { 1 };
    for bytes in [60, 200, 1000] {
        let name = format!("device, group 1, {bytes} B");
        if table.wants(&name) {
            match above_empty(Side::Outbox, 1, 2000 / scale, bytes) {
                Ok(run) => table.note(&name, &format!("{:.0} device bytes a sync", run["device bytes"] / run["syncs"])),
                Err(error) => table.note(&name, &format!("not measured: it needs root and a loop device ({error})")),
            }
        }
    }
    for (group, groups) in [(1, 2000 / scale), (100, 1000 / scale), (1000, 500 / scale)] {
        let name = format!("device, group {group}");
        if !table.wants(&name) {
            continue;
        }
        let run = |side| above_empty(side, group, groups, 200);
        match (run(Side::Outbox), run(Side::Plain)) {
            (Ok(ours), Ok(plain)) => {
                let per_byte = |run: &child::Figures, figure: &str| run[figure] / run["payload bytes"];
                let beside = format!(
                    "device bytes {:.2} against {:.2} per byte of payload; {:.2} and {:.2} flushes, {:.0} and {:.0} bytes a sync; process wrote {:.2} and {:.2} per byte",
                    per_byte(&ours, "device bytes"),
                    per_byte(&plain, "device bytes"),
                    ours["flushes"] / ours["syncs"],
                    plain["flushes"] / plain["syncs"],
                    ours["device bytes"] / ours["syncs"],
                    plain["device bytes"] / plain["syncs"],
                    per_byte(&ours, "written bytes"),
                    per_byte(&plain, "written bytes"),
                );
                if group == 1000 {
                    let ratio = per_byte(&ours, "device bytes") / per_byte(&plain, "device bytes");
                    table.add(&format!("{name}: bytes written"), ratio, "x", Aim::AtMost(3.0, 3.0), &beside);
                } else {
                    table.note(&name, &beside);
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                table.note(&name, &format!("not measured: it needs root and a loop device ({error})"));
            }
        }
    }
}
