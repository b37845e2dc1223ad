//! Where a run keeps the files of its brokers and daemons. Removed when its test passes; kept, and named, when it fails.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The directory of this run of the test program, by a short name: a link in the system's temporary directory. The name of a socket
/// in it must stay below 108 bytes, wherever the build directory is. What earlier runs that have ended left is removed.
pub fn run_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("end_to_end");
        let links = std::env::temp_dir();
        for (of, prefix) in [(&root, ""), (&links, LINK_PREFIX)] {
            for entry in std::fs::read_dir(of).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
                if pid.bytes().all(|byte| byte.is_ascii_digit()) && !Path::new("/proc").join(pid).exists() {
                    // Another user's is left alone by the system.
                    let _ = std::fs::remove_dir_all(entry.path()).or_else(|_| std::fs::remove_file(entry.path()));
                }
            }
        }
        let dir = root.join(std::process::id().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let link = links.join(format!("{LINK_PREFIX}{}", std::process::id()));
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        link
    })
}

const LINK_PREFIX: &str = "fieldpost-test-";

/// The directory of one test.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// `name` must be unique within the test program.
    pub fn new(name: &str) -> Self {
        let dir = run_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the files of the failed test are in {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
