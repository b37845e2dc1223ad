//! Where a run keeps the files of its brokers and daemons. Removed when its test passes; kept, and named, when it fails.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The directory of this run of the test program. Those of earlier runs that have ended are removed.
pub fn run_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("end_to_end");
        for entry in std::fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !Path::new("/proc").join(&name).exists() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let dir = root.join(std::process::id().to_string());
        std::fs::create_dir_all(&dir).unwrap();
        dir
    })
}

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
