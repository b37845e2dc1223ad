//! A small real file system in a mount namespace of its own. A test starts itself again in there, so nothing it mounts is
//! seen outside or outlives it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const INSIDE: &str = "TEST_SMALL_DISK_INSIDE";

/// Runs the body of the test `name` in a mount namespace of its own. Needs the right to mount: root, or a user
/// namespace; tests that mount a block device (`as_root`) need root.
pub(crate) fn alone(name: &str, as_root: bool, body: impl FnOnce(&Path)) {
    if std::env::var_os(INSIDE).is_some() {
        return body(&PathBuf::from(std::env::var_os(INSIDE).unwrap()));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = match (rustix::process::geteuid().is_root(), may_sudo()) {
        (true, _) => Command::new("unshare"),
        (false, true) => {
            let mut command = Command::new("sudo");
            command.args(["-n", "--preserve-env", "unshare"]);
            command
        }
        (false, false) => {
            assert!(!as_root, "{name} mounts a block device: run the tests of this target as root, or allow sudo");
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user"]);
            command
        }
    };
    command.args(["--mount", "--propagation", "private"]);
    command.arg("--").arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let status = command.env(INSIDE, dir.path()).status();
    let status = status.expect("unshare(1) of util-linux is needed: apt-get install util-linux");
    assert!(
        status.success(),
        "{name} failed in its namespace; if unshare said \"Operation not permitted\": run as root"
    );
}

fn may_sudo() -> bool {
    Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success())
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Mounts a tmpfs and gives the state directory on it.
pub(crate) fn tmpfs(dir: &Path, options: &str) -> Disk {
    let mount = dir.join("disk");
    std::fs::create_dir_all(&mount).unwrap();
    run("mount", &["-t", "tmpfs", "-o", options, "none", mount.to_str().unwrap()]);
    Disk { mount }
}

/// Mounts an ext4 in a file.
pub(crate) fn ext4(dir: &Path, mib: u64) -> Disk {
    let (mount, image) = (dir.join("disk"), dir.join("image"));
    std::fs::create_dir_all(&mount).unwrap();
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-m", "0", image.to_str().unwrap()]);
    let disk = Disk { mount };
    disk.mount_image(&image);
    disk
}

pub(crate) struct Disk {
    pub(crate) mount: PathBuf,
}

impl Disk {
    pub(crate) fn mount_image(&self, image: &Path) {
        run("mount", &["-o", "loop", image.to_str().unwrap(), self.mount.to_str().unwrap()]);
    }

    pub(crate) fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), self.mount.to_str().unwrap()]);
    }

    pub(crate) fn unmount(&self) {
        run("umount", &[self.mount.to_str().unwrap()]);
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        let path = self.mount.join("state");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    fn other(&self) -> PathBuf {
        self.mount.join("somebody-elses-file")
    }

    /// Somebody else takes space until so much is left. What he writes is real.
    pub(crate) fn take_until(&self, left: u64) {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        assert!(stat.f_blocks * stat.f_frsize <= 64 << 20, "this is the small disk and no other");
        let mut file = File::options().create(true).append(true).open(self.other()).unwrap();
        while self.free() > left {
            let chunk = vec![0x5a; (self.free() - left).min(64 << 10) as usize];
            if file.write_all(&chunk).is_err() {
                break;
            }
        }
        // What a file system still finds when it says that nothing is free.
        while left == 0 && file.write_all(&[0x5a; 512]).is_ok() {}
    }

    /// And gives it back.
    pub(crate) fn give_back(&self) {
        std::fs::remove_file(self.other()).unwrap();
    }
}
