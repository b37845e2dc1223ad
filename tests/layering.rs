//! Who may know whom (`docs`: src/lib.rs), who may forge a promise, who may name which library, where `unsafe` may
//! stand. Reads the source text, so that a breach is found without running anything.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};

/// A source file of the crate: its path below `src/`, and its code without comments and unit tests.
struct File {
    path: String,
    code: String,
    lines: usize,
}

/// Modules that a stage or layer may use. `config`, `metrics`, `status`, `progress` and `clock` are handles and plain
/// data for everyone.
const PLAIN: &[&str] = &["backoff", "clock", "config", "metrics", "progress", "promise", "record", "status"];

/// Path prefix below `src/`, and what files there may use besides themselves. The first match counts.
const RULES: &[(&str, &[&str])] = &[
    ("record", &[]),
    ("promise", &["record"]),
    ("progress", &[]),
    ("backoff", &[]),
    ("clock", &["record"]),
    ("status", &[]),
    ("metrics", &[]),
    // Values are checked where they are used: the configuration asks the stages for what they would refuse.
    ("config", &["intake", "delivery"]),
    ("telemetry", &[]),
    // Pure parts: no other stage; see also `PURE`.
    ("intake/framing", &["config", "record"]),
    ("intake/decode", &["config", "record"]),
    ("delivery/machine", &["backoff", "record"]),
    ("delivery/encode", &["clock", "config", "record"]),
    ("outbox/block", &["config", "record"]),
    ("intake", &["outbox", "backoff", "clock", "config", "metrics", "progress", "promise", "record", "status"]),
    ("delivery", &["outbox", "backoff", "clock", "config", "metrics", "progress", "promise", "record", "status"]),
    ("outbox", PLAIN),
];

/// Parts that decide or translate: what they need to know comes in, what they decide goes out.
const PURE: &[&str] = &["intake/framing", "intake/decode", "outbox/block", "delivery/machine", "delivery/encode"];

/// What pure parts do without: runtime, clock, files, network.
const IMPURE: &[&str] =
    &["tokio::", "clock::now", "Instant::now", "SystemTime", "std::fs", "std::net", "std::thread", "rustix::"];

/// Text, and the path prefixes where it may stand.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("Durable::after_sync(", &["outbox/writer", "promise"], "only the writer knows that a sync returned"),
    ("Committed::by_kafka(", &["delivery/kafka", "promise"], "only the Kafka sink knows what is committed"),
    ("Committed::in_test(", &["promise"], "only tests and benchmarks play Kafka"),
    ("sled::", &["outbox/generation"], "the store has one owner"),
    ("rumqttc", &["intake/mqtt"], "the MQTT client has one owner"),
    ("tokio_serial", &["intake/serial"], "the serial port has one owner"),
    ("rdkafka_sys", &["delivery/kafka"], "the Kafka client has one owner"),
    ("unsafe {", &["delivery/kafka/client", "intake/serial", "clock", "memory"], "unsafe stays where it is reviewed"),
    ("unsafe fn", &["delivery/kafka/client", "intake/serial"], "unsafe stays where it is reviewed"),
    ("unsafe extern", &["delivery/kafka/client", "intake/serial"], "unsafe stays where it is reviewed"),
    ("unsafe impl", &["delivery/kafka/client", "intake/serial"], "unsafe stays where it is reviewed"),
];

/// A file past this length most often hides a seam between deciding and doing: such files are listed.
const LINES_SOFT_MAX: usize = 400;
/// Past this length the test fails.
const LINES_MAX: usize = 650;

/// Tools beside the daemon: they play devices and consumers, and may use any library.
const TOOLS: &[&str] = &["cli/", "cli.rs", "demo", "simulate", "main.rs", "lib.rs"];

fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut directories) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push(File { path, code: code(&text), lines: text.lines().count() });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// Without comments, and without what follows `#[cfg(test)]` (unit tests close a file).
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let plain = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(plain).map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Files of unit tests only may forge what they need.
fn is_test(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/") || path.contains("testing")
}

/// Top-level modules named as `crate::NAME` or `crate::{NAME, ...}`.
fn used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (offset, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && c.is_alphabetic() => {
                            names.push(word(&group[offset..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => names.push(word(rest)),
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Whether a file is the module of this prefix or below it.
fn below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['.', '/', '_']) || rest.is_empty())
}

fn breach_of_layers(file: &File) -> Vec<String> {
    let top = file.path.split(['/', '.']).next().unwrap_or_default();
    let Some((_, allowed)) = RULES.iter().find(|(prefix, _)| below(&file.path, prefix)) else { return Vec::new() };
    let breaches = used(&file.code).into_iter().filter(|name| name != top && !allowed.contains(&name.as_str()));
    breaches.map(|name| format!("src/{} uses crate::{name}", file.path)).collect()
}

#[test]
fn every_module_keeps_to_its_layer() {
    let breaches: Vec<_> = files().iter().filter(|file| !is_test(&file.path)).flat_map(breach_of_layers).collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn only_the_agent_and_the_tools_know_the_agent() {
    let outside = |file: &&File| !below(&file.path, "agent") && !TOOLS.iter().any(|tool| file.path.starts_with(tool));
    for file in files().iter().filter(outside) {
        assert!(!used(&file.code).contains(&"agent".to_owned()), "src/{} uses crate::agent", file.path);
        assert!(!used(&file.code).contains(&"cli".to_owned()), "src/{} uses crate::cli", file.path);
    }
}

#[test]
fn promises_libraries_and_unsafe_stay_with_their_owners() {
    let mut breaches = Vec::new();
    for file in files().iter().filter(|file| !is_test(&file.path)) {
        for (text, places, why) in ONLY_IN {
            let tool = !text.contains("::") && TOOLS.iter().any(|tool| file.path.starts_with(tool));
            let allowed = tool || places.iter().any(|place| below(&file.path, place));
            if !allowed && file.code.contains(text) {
                breaches.push(format!("src/{}: {text}: {why}", file.path));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn pure_parts_read_no_clock_and_do_no_input_or_output() {
    for file in
        files().iter().filter(|file| PURE.iter().any(|prefix| below(&file.path, prefix)) && !is_test(&file.path))
    {
        for text in IMPURE {
            assert!(!file.code.contains(text), "src/{}: {text}", file.path);
        }
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in files().iter().filter(|file| file.code.contains("unsafe {")) {
        let text = std::fs::read_to_string(root.join(&file.path)).unwrap();
        let (blocks, reasons) = (text.matches("unsafe {").count(), text.matches("SAFETY:").count());
        assert!(reasons >= blocks, "src/{}: {blocks} unsafe blocks, {reasons} reasons", file.path);
    }
}

#[test]
fn files_stay_short_enough_to_read() {
    let longer = |limit: usize| {
        let long = files().into_iter().filter(|file| file.lines > limit);
        long.map(|file| format!("src/{}: {} lines", file.path, file.lines)).collect::<Vec<_>>()
    };
    println!("longer than {LINES_SOFT_MAX} lines, look for the seam:\n{}", longer(LINES_SOFT_MAX).join("\n"));
    let found = longer(LINES_MAX);
    assert!(found.is_empty(), "longer than {LINES_MAX} lines, split at a seam:\n{}", found.join("\n"));
}

#[test]
fn breaches_are_seen() {
    let file = |path: &str, text: &str| File { path: path.to_owned(), code: code(text), lines: 1 };
    assert_eq!(used("use crate::{a, b::{c, d}, e};\ncrate::f::g()"), ["a", "b", "e", "f"]);
    assert_eq!(breach_of_layers(&file("intake/mqtt.rs", "use crate::delivery::X;")).len(), 1);
    assert_eq!(breach_of_layers(&file("outbox/writer.rs", "use crate::{config, intake};")).len(), 1);
    assert_eq!(breach_of_layers(&file("delivery/machine.rs", "use crate::clock;")).len(), 1);
    assert!(breach_of_layers(&file("intake.rs", "// crate::delivery\nuse crate::outbox::Outbox;")).is_empty());
    assert!(below("outbox/writer.rs", "outbox/writer") && below("outbox/writer/x.rs", "outbox/writer"));
    assert!(!below("outboxes.rs", "outbox"));
}
