//! The documents keep to the truth where a machine can tell: the tests they name exist, the files they link to are there, and
//! the script they offer counts right. Their TOML examples are loaded in `shipped_files.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(below: &str, end: &str) -> Vec<PathBuf> {
    let (mut found, mut directories) = (Vec::new(), vec![root().join(below)]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == end) {
                found.push(path);
            }
        }
    }
    found
}

fn documents() -> Vec<(PathBuf, String)> {
    let mut paths = files("docs", "md");
    paths.extend(["README.md", "CHANGELOG.md"].map(|name| root().join(name)));
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// `module::name` in a document is the name of a test, as cargo prints it.
fn named_tests(text: &str) -> Vec<&str> {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|token| token.contains("::") && token.split("::").all(word) && !token.starts_with("fieldpost::"))
        .collect()
}

#[test]
fn the_tests_that_documents_name_exist() {
    let sources: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|below| files(below, "rs"))
        .map(|p| std::fs::read_to_string(p).unwrap())
        .collect();
    let mut unknown = BTreeSet::new();
    let mut count = 0;
    for (path, text) in
        documents().iter().filter(|(path, _)| !path.components().any(|part| part.as_os_str() == "decisions"))
    {
        for token in named_tests(text) {
            count += 1;
            let name = token.rsplit("::").next().unwrap();
            if !sources.iter().any(|source| source.contains(&format!("fn {name}("))) {
                unknown.insert(format!("{}: {token}", path.display()));
            }
        }
    }
    assert!(count >= 10, "the promise table names its tests");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn links_lead_to_files() {
    let mut broken = Vec::new();
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            let local = !file.is_empty() && !file.contains("://");
            if local && !path.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A line as `kcat -J` prints it; the binary header is no UTF-8.
fn line(agent: &str, sequence: u64, kind: &str, payload: &str) -> Vec<u8> {
    let mut line = br#"{"topic":"telemetry","partition":0,"offset":7,"headers":["fp",""#.to_vec();
    line.extend([0xff, 0xfe, b'x']);
    let payload = serde_json::to_string(payload).unwrap();
    let rest = format!(
        r#"","ce_id","{agent}/3f9c2a7e10b4d8f2/{sequence}","ce_type","io.fieldpost.{kind}.v1"],"key":"k","payload":{payload}}}"#
    );
    line.extend(rest.as_bytes());
    line.push(b'\n');
    line
}

fn check(lines: &[Vec<u8>]) -> (bool, String) {
    let mut child = Command::new("python3")
        .arg(root().join("docs/check_sequences.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 runs the script of docs/consumers.md: make setup installs it");
    child.stdin.take().unwrap().write_all(&lines.concat()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_offered_script_counts_sequences() {
    let whole: Vec<_> = [1, 2, 3, 4, 9]
        .into_iter()
        .map(|sequence| line("gw-1", sequence, "raw", "21.5"))
        .chain([line("gw-1", 8, "gap", r#"{"from":5,"to":8,"reason":"drop_oldest"}"#)])
        .chain([line("gw/2", 1, "gap", r#"{"reason":"unplugged","count":1}"#), line("gw/2", 2, "reading", "{}")])
        .collect();
    let (good, text) = check(&whole);
    assert!(good, "{text}");
    assert!(
        text.contains("gw-1 3f9c2a7e10b4d8f2: 1..9, 6 records, 1 gap over 4 numbers, 0 missing, 0 doubled"),
        "{text}"
    );

    let (good, text) = check(&[&whole[..1], &whole[2..]].concat());
    assert!(!good && text.contains("missing 2..2"), "{text}");

    let (good, text) = check(&[&whole[..], &whole[1..2]].concat());
    assert!(!good && text.contains("doubled 2..2"), "{text}");

    let parts = line("gw-1", 12, "gap", r#"{"from":10,"to":12,"ranges":[[10,10],[12,12]],"reason":"purge"}"#);
    let (good, text) = check(&[&whole[..], std::slice::from_ref(&parts)].concat());
    assert!(!good && text.contains("missing 11..11"), "{text}");
    let (good, text) = check(&[&whole[..], &[parts, line("gw-1", 11, "raw", "21.5")]].concat());
    assert!(good && text.contains("1..12, 8 records, 2 gaps over 6 numbers, 0 missing"), "{text}");

    assert!(!check(&[]).0, "nothing read is not good news");
}
