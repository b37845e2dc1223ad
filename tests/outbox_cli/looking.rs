//! `inspect`, `verify`, `export` and `salvage`, also while a daemon appends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::*;

#[test]
fn without_a_daemon_files_are_read_and_left_as_they_are() {
    let place = Place::new();
    place.fill(3000, 1500);
    let before = tree(&place.path("state"));

    let run = place.run(&["outbox", "inspect"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    for text in ["agent         gw-1", "committed 0, durable 3000, next 3001", "not running", "plant", "format "] {
        assert!(run.text().contains(text), "{text:?} is not in\n{}", run.text());
    }
    let inspection = place.run(&["outbox", "inspect", "--json"]).json();
    assert_eq!(inspection["waiting"], 3000);
    assert_eq!(inspection["running"], Value::Null);

    let run = place.run(&["outbox", "verify"]);
    assert_eq!(run.code, Some(0), "{}{}", run.text(), run.err);
    assert!(run.text().starts_with("good: ") && run.text().contains(" 3000 readings checked: nothing is wrong"));

    let run = place.run(&["outbox", "export"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.starts_with("3000 readings, "), "{}", run.err);
    let (readings, gaps) = run.lines();
    assert_eq!((readings.len(), gaps.len()), (3000, 0));
    for (line, n) in readings.iter().zip(1..) {
        assert_eq!(line["sequence"], n);
        assert_eq!(line["value"]["n"], n);
    }
    assert!(tree(&place.path("state")) == before, "something changed");
}

#[test]
fn a_read_only_file_system_is_no_obstacle() {
    let place = Place::new();
    place.fill(100, 100);
    // A mount namespace of its own: gone with the command.
    let script = "mount --bind state state && mount -o remount,bind,ro state && ! touch state/x 2>/dev/null && \
                  \"$0\" outbox export --config f.toml && \"$0\" outbox verify --config f.toml >&2";
    let mut command = place.command(&[]);
    command = {
        let mut shell = Command::new("unshare");
        let user = if rustix::process::geteuid().is_root() { "--mount" } else { "-rm" };
        shell.current_dir(command.get_current_dir().unwrap()).args([user, "sh", "-c", script]);
        shell.arg(env!("CARGO_BIN_EXE_fieldpost"));
        shell
    };
    let output = command.output().expect("unshare is in util-linux");
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{err}");
    assert_eq!(output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count(), 100);
    assert!(err.contains("good: "), "{err}");
}

#[test]
fn a_copy_from_elsewhere_needs_no_configuration() {
    let place = Place::new();
    place.fill(20, 10);
    let other = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-a").arg(place.path("state")).arg(other.path().join("copy")).status();
    assert!(copied.unwrap().success());
    let run = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.current_dir(other.path()).args(["--state-dir", "copy"]).output().unwrap()
    };
    assert_eq!(run(&["outbox", "verify"]).status.code(), Some(0));
    let output = run(&["outbox", "export", "--from", "5", "--to", "7"]);
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 3);
    let output = place.command(&["outbox", "inspect", "--state-dir", "nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(String::from_utf8(output.stderr).unwrap().contains("there is no outbox in nowhere"));
}

#[test]
fn an_export_goes_to_a_file_that_has_its_name_only_when_it_is_whole() {
    let place = Place::new();
    place.fill(50, 10);
    let out = place.path("out.jsonl");
    let run = place.run(&["outbox", "export", "--output", "out.jsonl"]);
    assert_eq!((run.code, run.text()), (Some(0), ""), "{}", run.err);
    let first = std::fs::read(&out).unwrap();
    assert_eq!(first.iter().filter(|byte| **byte == b'\n').count(), 50);
    assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let partials = || {
        let names = std::fs::read_dir(place.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".partial")).count()
    };
    assert_eq!(partials(), 0);
    // A link is neither followed nor replaced, and nothing that waits under a name that can be known is written to.
    for name in ["link.jsonl", "new.jsonl.partial"] {
        std::os::unix::fs::symlink("out.jsonl", place.path(name)).unwrap();
    }
    let run = place.run(&["outbox", "export", "--to", "3", "--output", "link.jsonl", "--force"]);
    assert_eq!(run.code, Some(74), "{}", run.err);
    assert!(run.err.contains("link.jsonl is not a regular file"), "{}", run.err);
    assert_eq!(place.run(&["outbox", "export", "--to", "3", "--output", "new.jsonl"]).code, Some(0));
    std::fs::remove_file(place.path("new.jsonl.partial")).unwrap();
    assert!(std::fs::read(&out).unwrap() == first, "it was not touched");
    assert_eq!(partials(), 0);

    let run = place.run(&["outbox", "export", "--to", "3", "--output", "out.jsonl"]);
    assert_eq!(run.code, Some(74));
    assert!(run.err.contains("out.jsonl is there already: --force overwrites it"), "{}", run.err);
    assert!(std::fs::read(&out).unwrap() == first, "it was not touched");
    let run = place.run(&["outbox", "export", "--to", "3", "--output", "out.jsonl", "--force"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(std::fs::read(&out).unwrap().iter().filter(|byte| **byte == b'\n').count(), 3);

    let run = place.run(&["outbox", "export", "--output", "no/such/directory/x"]);
    assert_eq!(run.code, Some(74));
    let run = place.run(&["outbox", "export", "--from", "9", "--to", "3"]);
    assert_eq!(run.code, Some(2), "{}", run.err);
    let run = place.run(&["outbox", "export", "--since", "yesterday"]);
    assert_eq!(run.code, Some(2), "{}", run.err);
}

#[test]
fn values_come_alone_with_a_newline_or_a_length() {
    let place = Place::new();
    place.fill(5, 30);
    let values: Vec<_> = (1..=5).map(|n| reading(n, 30).value).collect();
    let run = place.run(&["outbox", "export", "--format", "raw"]);
    let lines: Vec<_> = values.iter().flat_map(|value| [&value[..], b"\n"].concat()).collect();
    assert!(run.out == lines, "{}", run.text());
    let run = place.run(&["outbox", "export", "--format", "frames"]);
    let frames: Vec<_> =
        values.iter().flat_map(|value| [&(value.len() as u32).to_be_bytes()[..], &value[..]].concat()).collect();
    assert!(run.out == frames);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let place = Place::new();
    place.fill(3000, 1500);
    for daemon in [false, true] {
        let _daemon = daemon.then(|| place.daemon());
        let mut command = place.command(&["outbox", "export", "--config", "f.toml"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(100, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("{\"sequence\":1,"));
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
    }
}

#[test]
fn beside_a_running_daemon_the_daemon_answers() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Place::new();
    let text = std::fs::read_to_string(place.path("f.toml")).unwrap();
    std::fs::write(place.path("f.toml"), text.replace("\"off\"", &format!("\"127.0.0.1:{port}\""))).unwrap();
    place.fill(3000, 1500);
    let daemon = place.daemon();

    let inspection = place.run(&["outbox", "inspect", "--json"]).json();
    assert_eq!(inspection["running"], daemon.0.id());
    assert_eq!((&inspection["durable"], &inspection["waiting"]), (&3000.into(), &3000.into()));
    assert_eq!(inspection["sources"]["plant"]["readings"], 3000);
    let run = place.run(&["outbox", "inspect"]);
    assert!(run.text().contains(&format!("pid {}", daemon.0.id())) && run.text().contains("in use"), "{}", run.text());

    let run = place.run(&["outbox", "verify", "--json"]);
    assert_eq!(run.code, Some(0), "{}{}", run.text(), run.err);
    let verified = run.json();
    assert_eq!((&verified["result"], &verified["readings"]), (&"good".into(), &3000.into()));

    let run = place.run(&["outbox", "export", "--source", "plant", "--from", "10", "--to", "2000"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let (readings, gaps) = run.lines();
    assert_eq!((readings.len(), gaps.len()), (1991, 0));
    assert_eq!(readings[0]["value"]["n"], 10);
    let raw = place.run(&["outbox", "export", "--format", "raw", "--to", "1"]);
    assert!(raw.out == [&reading(1, 1500).value[..], b"\n"].concat());

    // Readings are not for everybody who reaches the port.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /outbox/export HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 404 "), "{answer}");
    // What makes no sense is said.
    let mut stream = UnixStream::connect(place.path("state/control.sock")).unwrap();
    write!(stream, "GET /outbox/export?form=1 HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 400 ") && answer.contains("unknown parameter form"), "{answer}");
}

#[test]
fn those_who_read_at_once_are_bounded_and_a_hung_one_disturbs_nobody() {
    let place = Place::new();
    place.fill(6000, 1500);
    let mut daemon = place.daemon();
    let hang = || {
        let mut stream = UnixStream::connect(place.path("state/control.sock")).unwrap();
        write!(stream, "GET /outbox/export HTTP/1.0\r\n\r\n").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.0 200");
        stream
    };
    let one = hang();
    let run = place.run(&["outbox", "verify"]);
    assert_eq!(run.code, Some(0), "there is room for a second one: {}{}", run.text(), run.err);
    let two = hang();
    let run = place.run(&["outbox", "verify"]);
    assert_eq!(run.code, Some(75), "{}", run.err);
    assert_eq!(place.run(&["outbox", "inspect"]).code, Some(0), "it has a place of its own");
    assert!(run.err.contains("2 others are looking into the outbox"), "{}", run.err);
    assert_eq!(place.run(&["status"]).code, Some(0));
    drop(one);
    let deadline = Instant::now() + PATIENCE;
    while place.run(&["outbox", "verify"]).code != Some(0) {
        assert!(Instant::now() < deadline);
    }
    // The one that still hangs does not keep the daemon from stopping in order.
    assert!(Command::new("kill").args(["-TERM", &daemon.0.id().to_string()]).status().unwrap().success());
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    assert!(std::fs::read_to_string(place.path("log")).unwrap().trim_end().ends_with("stopped"));
    drop(two);
    assert_eq!(place.run(&["outbox", "verify"]).code, Some(0));
}

#[test]
fn what_a_daemon_takes_while_it_is_read_is_read_whole_the_next_time() {
    // A daemon in this process: what matters is the one beside it that asks. Files must not be read under it.
    let place = Place::new();
    let mut filler = place.open();
    filler.append(10, 10);
    let run = place.run(&["outbox", "export"]);
    assert_eq!(run.code, Some(75), "{}", run.err);
    let pid = std::process::id();
    assert!(run.err.contains(&format!("a daemon (pid {pid}) uses state")), "{}", run.err);
    assert!(run.err.contains("does not answer at its control socket"), "{}", run.err);
    assert_eq!(run.text(), "");
    filler.outbox.close(PATIENCE);
    assert_eq!(place.run(&["outbox", "export"]).lines().0.len(), 10);
}

#[test]
fn a_user_without_rights_is_told_what_to_do() {
    if !rustix::process::geteuid().is_root() {
        panic!("this test plays another user: run it as root");
    }
    let place = Place::new();
    place.fill(10, 10);
    // Anybody may go to the directory and read the configuration, but the state is the daemon's.
    std::fs::set_permissions(place.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path("fieldpost");
    std::fs::copy(env!("CARGO_BIN_EXE_fieldpost"), &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.current_dir(place.directory.path()).args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        let output = command.arg(&program).args(arguments).args(["--config", "f.toml"]).output();
        let output = output.expect("setpriv is in util-linux");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let mode = |name: &str, mode| {
        std::fs::set_permissions(place.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("state", 0o750);
    let (code, err) = as_nobody(&["outbox", "export"]);
    assert_eq!(code, Some(74), "{err}");
    assert!(err.contains("this user may not look into state") && err.contains("Run this as root"), "{err}");

    let _daemon = place.daemon();
    mode("state", 0o755);
    mode("state/lock", 0o644);
    let (code, err) = as_nobody(&["outbox", "export"]);
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("control.sock: this user may not open it: run this as root or as a member of its group"));
}

#[test]
fn damage_has_an_exit_code_and_salvage_gets_the_rest() {
    let place = Place::new();
    place.fill(3000, 1500);
    let mut databases: Vec<_> = std::fs::read_dir(place.path("state/outbox"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("db").exists())
        .collect();
    databases.sort();
    let path = databases[0].join("db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4_000].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let before = tree(&place.path("state"));

    let run = place.run(&["outbox", "verify"]);
    assert_eq!(run.code, Some(1), "{}{}", run.text(), run.err);
    let name = databases[0].file_name().unwrap().to_str().unwrap();
    assert!(run.text().contains(&format!("damage  {name}, sequences ")), "{}", run.text());
    assert!(run.text().lines().last().unwrap().starts_with("damaged: "), "{}", run.text());
    assert!(!run.err.contains("panicked"), "{}", run.err);
    let run = place.run(&["outbox", "verify", "--json"]);
    assert_eq!((run.code, &run.json()["result"]), (Some(1), &"damaged".into()));

    let salvage = |arguments: &[&str]| {
        let output = place.command(&["outbox", "salvage"]).args(arguments).output().unwrap();
        Run { code: output.status.code(), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
    };
    let run = salvage(&["state", "--output", "back.jsonl", "--json"]);
    let told = run.json();
    assert!(!run.err.contains("panicked"), "{}", run.err);
    let text = std::fs::read_to_string(place.path("back.jsonl")).unwrap();
    let mut seen = 0;
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if line.get("gap").is_none() {
            seen += 1;
            let n = line["sequence"].as_u64().unwrap();
            assert_eq!(line["value"], serde_json::from_slice::<Value>(&reading(n, 1500).value).unwrap());
        }
    }
    assert_eq!(told["readings"], seen);
    let missing: u64 = told["missing"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| gap["to"].as_u64().unwrap() - gap["from"].as_u64().unwrap() + 1)
        .sum();
    assert_eq!(seen + missing, 3000, "{told:#}");
    assert!(seen > 2800, "only what stood in 4 kB is lost: {told:#}");
    assert_eq!(run.code, Some(1), "even when all came back, in another way: {told:#}");
    assert!(tree(&place.path("state")) == before, "something changed");
    let run = salvage(&["f.toml"]);
    assert_eq!(run.code, Some(74), "{}", run.err);
}

/// A serial device on a pseudo terminal: our end, theirs (kept open), and its name.
fn serial_device() -> (std::os::fd::OwnedFd, std::os::fd::OwnedFd, String) {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    let theirs = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut settings = tcgetattr(&theirs).unwrap();
    settings.make_raw();
    tcsetattr(&theirs, OptionalActions::Now, &settings).unwrap();
    (ours, theirs, name)
}

#[test]
fn it_is_exact_while_the_daemon_appends() {
    let (ours, _theirs, name) = serial_device();
    let place =
        Place::with(&format!("[sources.meter]\ntype = \"serial\"\npath = \"{name}\"\nkeep_first_partial = true\n"));
    place.fill(500, 1500);
    let daemon = place.daemon();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let device = std::thread::Builder::new().spawn(move || {
        let mut sent = 0;
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            sent += 1;
            let text = format!("frame {sent}\n");
            // Always under way, and yet an export is soon done.
            std::thread::sleep(Duration::from_millis(1));
            let mut bytes = text.as_bytes();
            while !bytes.is_empty() {
                bytes = &bytes[rustix::io::write(&ours, bytes).unwrap()..];
            }
        }
        (sent, ours)
    });
    let device = device.unwrap();
    let (mut last, mut rounds) = (0, 0);
    while last < 1000 || rounds < 3 {
        rounds += 1;
        let before = place.run(&["outbox", "inspect", "--json"]).json()["durable"].as_u64().unwrap();
        let run = place.run(&["outbox", "export"]);
        assert_eq!(run.code, Some(0), "{}", run.err);
        let (readings, gaps) = run.lines();
        assert_eq!(gaps, Vec::<Value>::new());
        for (line, sequence) in readings.iter().zip(1..) {
            assert_eq!(line["sequence"], sequence);
            if sequence > 500 {
                assert_eq!(line["value"], format!("frame {}", sequence - 500));
            }
        }
        last = readings.len() as u64;
        assert!(last >= before, "{last} of at least {before}");
        let run = place.run(&["outbox", "verify"]);
        assert_eq!(run.code, Some(0), "{}{}", run.text(), run.err);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (sent, _ours) = device.join().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while place.run(&["outbox", "inspect", "--json"]).json()["durable"] != 500 + sent {
        assert!(Instant::now() < deadline, "everything sent was stored while it was looked at");
    }
    let inspection = place.run(&["outbox", "inspect", "--json"]).json();
    assert_eq!(
        (&inspection["sources"]["meter"]["readings"], &inspection["waiting"]),
        (&sent.into(), &(500 + sent).into())
    );
    drop(daemon);
}

#[test]
fn an_export_of_any_size_takes_the_same_memory() {
    let place = Place::new();
    // They compress well: little on disk, 180 MB of text.
    let mut filler = place.open();
    (0..36).for_each(|_| filler.append(50, 100_000));
    filler.outbox.close(PATIENCE);
    // Address space in KiB: the whole process, its libraries included, may take less than what it writes.
    let script = "ulimit -v 160000 && exec \"$0\" outbox export --config f.toml";
    let mut shell = Command::new("sh");
    let mut child = shell
        .current_dir(place.directory.path())
        .args(["-c", script, env!("CARGO_BIN_EXE_fieldpost")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(bytes > 170_000_000, "{bytes}");
}

/// Lines of the fenced blocks of one language in a section of a page.
fn examples(section: &str, language: &str) -> Vec<String> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/outbox.md")).unwrap();
    let section = page.split("\n## ").find(|part| part.starts_with(section)).unwrap();
    let blocks = section.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix(language));
    blocks.flat_map(|block| block.lines().filter(|line| !line.is_empty()).map(str::to_owned)).collect()
}

#[test]
fn the_examples_of_the_page_work() {
    let place = Place::new();
    place.fill(20, 10);
    let copied = Command::new("cp").arg("-a").arg(place.path("state")).arg(place.path("copy-of-gateway-7")).status();
    assert!(copied.unwrap().success());
    let commands = examples("Looking into it", "sh\n");
    assert!(commands.len() >= 8, "{commands:?}");
    for text in commands {
        let command =
            text.split(" | ").next().unwrap().replace("/var/lib/fieldpost/outbox/damaged", "copy-of-gateway-7");
        let mut words: Vec<_> = command.split(' ').collect();
        assert_eq!(words.remove(0), "fieldpost");
        let run = if words[1] == "salvage" {
            let output = place.command(&words).output().unwrap();
            Run { code: output.status.code(), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
        } else {
            place.run(&words)
        };
        assert_eq!(run.code, Some(0), "{text}: {}{}", run.text(), run.err);
    }
    // The lines that are shown have the fields of real ones.
    let real = place.run(&["outbox", "export", "--to", "1"]).lines().0.remove(0);
    let shown: Vec<Value> =
        examples("Looking into it", "json\n").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&shown[0]), names(&real));
    let gap = fieldpost::outbox::look::Line::read(&shown[1].to_string()).unwrap();
    assert!(matches!(gap, Some(fieldpost::outbox::look::Line::Gap(_))), "{gap:?}");
}

#[test]
fn help_teaches_with_examples() {
    let place = Place::new();
    for (name, example) in [
        ("inspect", "fieldpost outbox inspect --json | jq .sources"),
        ("verify", "fieldpost outbox verify --state-dir ./copy-of-gateway-7"),
        ("export", "fieldpost outbox export --source plant --since 2h --output plant.jsonl"),
        ("salvage", "fieldpost outbox salvage /var/lib/fieldpost/outbox/damaged --output recovered.jsonl"),
    ] {
        let output = place.command(&["outbox", name, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(example), "{text}");
    }
}

#[test]
fn names_from_elsewhere_steer_no_terminal() {
    let place = Place::new();
    let mut filler = place.open();
    filler.append(5, 10);
    filler.append_of("x\u{1b}[2J\u{9b}31m\u{202e}\ny");
    filler.outbox.close(PATIENCE);
    let steers = |text: &str| text.chars().any(|char| char != '\n' && (char.is_control() || char == '\u{202e}'));
    for daemon in [false, true] {
        let _daemon = daemon.then(|| place.daemon());
        let run = place.run(&["outbox", "inspect"]);
        assert!(run.text().contains(r"x\u{1b}[2J\u{9b}31m\u{202e}\u{a}y"), "{:?}", run.text());
        assert!(!steers(run.text()), "{:?}", run.text());
        let run = place.run(&["outbox", "inspect", "--json"]);
        assert!(!steers(run.text()), "{:?}", run.text());
        assert_eq!(run.json()["sources"]["x\u{1b}[2J\u{9b}31m\u{202e}\ny"]["readings"], 1, "{}", run.text());
    }
    std::os::unix::fs::symlink("state", place.path("a\u{1b}b")).unwrap();
    let output = place.command(&["outbox", "salvage", "a\u{1b}b", "--output", "out.jsonl"]).output().unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.contains(r"a\u{1b}b/") && !steers(&page), "{page:?}");
}

#[test]
fn salvage_can_be_stopped_while_it_searches_the_bytes() {
    use std::os::unix::process::ExitStatusExt;
    let place = Place::new();
    let directory = place.path("g00000000000000000001-00000001");
    std::fs::create_dir(&directory).unwrap();
    // Everywhere a block seems to begin (of one entry, as long as blocks may be), and none has its checksum: a long search.
    let mut head = [0; 48];
    head[0] = 0x10;
    head[21] = 1;
    head[29..33].copy_from_slice(&(96_u32 << 10).to_le_bytes());
    std::fs::write(directory.join("db"), head.repeat((96 << 20) / head.len())).unwrap();
    let name = directory.file_name().unwrap().to_str().unwrap();
    let mut child = place.command(&["outbox", "salvage", name]).stderr(Stdio::null()).spawn().unwrap();
    // Copying and opening take much less of a processor than this.
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.split(' ').nth(13).unwrap().parse::<u64>().unwrap()
    };
    let deadline = Instant::now() + PATIENCE;
    while ticks() < 300 {
        assert!(Instant::now() < deadline, "it did not come to the search");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it searches on");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.signal(), Some(2), "{ended}");
}
