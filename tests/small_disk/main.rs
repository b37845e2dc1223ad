//! The daemon on a disk that is full, read-only or not ours: what it says, and how it ends. (What the outbox itself does on
//! a small disk: src/outbox/small_disk_tests.rs.)
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "the tests of the outbox use the rest")]
mod disk;

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use disk::{alone, run, tmpfs};

const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65534;

/// A daemon whose peers are all away, with its state below `dir`; its binary may be run by anybody.
fn daemon(dir: &Path, state_dir: &Path, uid: Option<u32>) -> Child {
    let text = format!(
        "[agent]\nid = \"gw-1\"\nstate_dir = {state_dir:?}\n[http]\nlisten = \"off\"\n[outbox]\nmax_bytes = \"8MiB\"\n\
         free_space_floor = \"0B\"\n[delivery.kafka]\nbootstrap_servers = [\"127.0.0.1:1\"]\n"
    );
    let (config, program) = (dir.join("f.toml"), dir.join("fieldpost"));
    std::fs::write(&config, text).unwrap();
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_fieldpost"), &program).unwrap();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = match uid {
        None => Command::new(&program),
        Some(uid) => {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]).arg(&program);
            command
        }
    };
    command.args(["run", "--config"]).arg(&config).env_remove("RUNTIME_DIRECTORY");
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for its end: exit code and what it said.
fn end(mut daemon: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + PATIENCE;
    while daemon.try_wait().unwrap().is_none() {
        if Instant::now() >= deadline {
            daemon.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut said = String::new();
    daemon.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (daemon.wait().unwrap().code(), said)
}

/// Starts it, lets it become ready, stops it in order.
fn runs(dir: &Path, state_dir: &Path, uid: Option<u32>) -> String {
    let daemon = daemon(dir, state_dir, uid);
    let socket = state_dir.join("control.sock");
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    // The socket is there a moment before the daemon obeys signals in order.
    std::thread::sleep(Duration::from_millis(300));
    run("kill", &[&daemon.id().to_string()]);
    let (code, said) = end(daemon);
    assert_eq!(code, Some(0), "{said}");
    said
}

#[test]
fn a_read_only_disk_at_start_ends_with_74_and_says_so() {
    alone("a_read_only_disk_at_start_ends_with_74_and_says_so", false, |dir| {
        let disk = tmpfs(dir, "size=32m");
        runs(dir, &disk.state_dir(), None);
        disk.remount("ro");
        let (code, said) = end(daemon(dir, &disk.state_dir(), None));
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("Read-only file system") && said.contains("/state"), "{said}");
        disk.remount("rw");
        runs(dir, &disk.state_dir(), None);
    });
}

#[test]
fn a_directory_that_is_not_ours_ends_with_74_and_says_so() {
    alone("a_directory_that_is_not_ours_ends_with_74_and_says_so", true, |dir| {
        let disk = tmpfs(dir, "size=32m,mode=755");
        let state_dir = disk.state_dir();
        let (code, said) = end(daemon(dir, &state_dir, Some(NOBODY)));
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("Permission denied") && said.contains("/state"), "{said}");
        chown(&state_dir, Some(NOBODY), Some(NOBODY)).unwrap();
        runs(dir, &state_dir, Some(NOBODY));
        // Somebody ran it as root once, or restored a backup as root.
        for file in ["outbox/pos", "outbox/state"] {
            chown(state_dir.join(file), Some(0), Some(0)).unwrap();
            std::fs::set_permissions(state_dir.join(file), PermissionsExt::from_mode(0o600)).unwrap();
            let (code, said) = end(daemon(dir, &state_dir, Some(NOBODY)));
            assert_eq!(code, Some(74), "{said}");
            assert!(said.contains("Permission denied") && said.contains("state/outbox"), "{said}");
            chown(state_dir.join(file), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        runs(dir, &state_dir, Some(NOBODY));
    });
}

#[test]
fn a_full_disk_at_the_first_start_ends_with_74_and_at_a_later_one_it_starts_on_its_reserve() {
    let name = "a_full_disk_at_the_first_start_ends_with_74_and_at_a_later_one_it_starts_on_its_reserve";
    alone(name, false, |dir| {
        let disk = tmpfs(dir, "size=32m");
        let state_dir = disk.state_dir();
        disk.take_until(0);
        let (code, said) = end(daemon(dir, &state_dir, None));
        assert_eq!(code, Some(74), "{said}");
        assert!(said.contains("No space left"), "{said}");
        disk.give_back();
        runs(dir, &state_dir, None);
        assert!(state_dir.join("outbox/reserve").exists());
        disk.take_until(0);
        let said = runs(dir, &state_dir, None);
        assert!(said.contains("the outbox is full"), "{said}");
        disk.give_back();
        let said = runs(dir, &state_dir, None);
        assert!(!said.contains("full"), "{said}");
        assert!(state_dir.join("outbox/reserve").exists(), "the reserve is back: {said}");
    });
}
