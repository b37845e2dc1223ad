//! The files that are shipped say what the code does: `config/fieldpost.toml` names every setting with its default, and
//! every TOML example of the documents loads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fieldpost::config::Source;
use fieldpost::config::intake::{Mqtt, Serial};
use fieldpost::config::load::{self, Loaded, Origin};
use fieldpost::config::mistake::Mistakes;
use fieldpost::config::schema::{Key, ROOT, Shape};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn shipped() -> String {
    std::fs::read_to_string(root().join("config/fieldpost.toml")).unwrap()
}

/// The file with the "#" taken away from every line that shows a setting.
fn uncommented() -> String {
    let setting = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
            .map(str::to_owned)
    };
    shipped().lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

/// Loads a text as the main file. Files under `/etc/fieldpost` that it names are there: a certificate, its key, and a
/// password.
fn load(text: &str) -> Result<Loaded, Mistakes> {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for part in text.split('"').filter_map(|part| part.strip_prefix("/etc/fieldpost/")) {
        let content: &[u8] = match Path::new(part).extension().and_then(|end| end.to_str()) {
            Some("key") => include_bytes!("shipped_files/example.key"),
            Some("password") => b"secret",
            _ => include_bytes!("shipped_files/example.pem"),
        };
        std::fs::write(at(part), content).unwrap();
    }
    let path = at("fieldpost.toml");
    std::fs::write(&path, text.replace("/etc/fieldpost", directory.path().to_str().unwrap())).unwrap();
    load::load_with(&Origin { path, set: Vec::new() }, std::iter::empty())
}

fn flatten(path: &str, value: &serde_json::Value, leaves: &mut BTreeMap<String, serde_json::Value>) {
    match value {
        serde_json::Value::Object(table) => {
            leaves.insert(path.to_owned(), serde_json::Value::Null);
            for (key, value) in table {
                flatten(&format!("{path}.{key}"), value, leaves);
            }
        }
        leaf => drop(leaves.insert(path.to_owned(), leaf.clone())),
    }
}

fn leaves(value: &impl serde::Serialize) -> BTreeMap<String, serde_json::Value> {
    let mut found = BTreeMap::new();
    flatten("", &serde_json::to_value(value).unwrap(), &mut found);
    found
}

#[test]
fn the_shipped_configuration_lacks_only_what_the_owner_must_say() {
    let mistakes = load(&shipped()).unwrap_err();
    let keys: Vec<_> = mistakes.0.iter().map(|mistake| mistake.key.as_str()).collect();
    assert_eq!(keys, ["agent.id", "delivery.kafka.bootstrap_servers"], "{mistakes}");
}

#[test]
fn the_shipped_configuration_shows_the_defaults_of_the_code() {
    let config = load(&uncommented()).unwrap_or_else(|mistakes| panic!("{mistakes}")).config;
    let minimal = "[agent]\nid = \"x\"\n[delivery.kafka]\nbootstrap_servers = [\"x:1\"]\n";
    let mut defaults = load(minimal).unwrap().config;
    defaults.sources.insert("plant".to_owned(), Source::Mqtt(Mqtt::default()));
    defaults.sources.insert("meter".to_owned(), Source::Serial(Serial::default()));

    // What has no default, or none that would show anything.
    let examples = [
        ".agent.id",
        ".delivery.kafka.bootstrap_servers",
        ".delivery.kafka.properties",
        ".sources.plant.url",
        ".sources.plant.subscribe",
        ".sources.meter.path",
        ".sources.meter.body",
        ".sources.meter.decode",
    ];
    let shown = leaves(&config);
    for (key, default) in leaves(&defaults) {
        if !examples.iter().any(|example| key.starts_with(example)) {
            assert_eq!(shown.get(&key), Some(&default), "config/fieldpost.toml shows another default for {key}");
        }
    }
}

#[test]
fn the_shipped_configuration_names_every_setting() {
    let text = shipped();
    let mut missing = Vec::new();
    walk(&ROOT, "", &mut |path, name| {
        let shown = text.lines().any(|line| {
            let line = line.trim_start_matches('#').trim_start();
            line.starts_with(&format!("[{path}")) || line.contains(&format!("{name} = "))
        });
        if !shown {
            missing.push(path.to_owned());
        }
    });
    assert_eq!(missing, Vec::<String>::new(), "not in config/fieldpost.toml");
}

/// The schema and the structs know the same settings: what the structs write passes the schema (the load above), and
/// what the schema knows the structs take.
#[test]
fn every_setting_of_the_schema_is_in_the_structs() {
    let config = load(&uncommented()).unwrap().config;
    let taken = leaves(&config);
    let known = |path: &str| taken.keys().any(|key| key.ends_with(path) || key.contains(&format!("{path}.")));
    let mut unknown = Vec::new();
    walk(&ROOT, "", &mut |path, name| {
        let in_list = path.contains("subscribe.") || path.contains("metrics.");
        if !in_list && name != "password_credential" && !known(&format!(".{name}")) {
            unknown.push(path.to_owned());
        }
    });
    assert_eq!(unknown, Vec::<String>::new(), "in the schema, not in the structs of config");
}

fn walk(shape: &Shape, path: &str, visit: &mut dyn FnMut(&str, &str)) {
    let keys = |keys: &[Key], visit: &mut dyn FnMut(&str, &str)| {
        for key in keys {
            let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
            visit(&path, key.name);
            walk(&key.shape, &path, visit);
        }
    };
    match shape {
        Shape::Table(table) => keys(table, visit),
        Shape::Tagged { tag, variants } => {
            visit(&format!("{path}.{tag}"), tag);
            for list in variants.iter().flat_map(|(_, lists)| *lists) {
                keys(list, visit);
            }
        }
        Shape::Map(_, of) | Shape::List(of) => walk(of, path, visit),
        _ => {}
    }
}

/// A block is a whole configuration, or a part to which the rest is added here. A block that shows a mistake on purpose
/// is fenced as `text`.
#[test]
fn the_examples_in_the_documents_load() {
    let mut failed = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for (line, block) in toml_blocks(&text) {
            if let Err(mistakes) = load(&completed(&block)) {
                failed.push(format!("{}:{line}: {mistakes}", document.display()));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn completed(block: &str) -> String {
    let mut text = block.to_owned();
    if !block.contains("bootstrap_servers") && !block.contains("[delivery.kafka]") {
        text += "\n[delivery.kafka]\nbootstrap_servers = [\"localhost:9092\"]\n";
    }
    if !block.contains("[agent]") {
        text += "\n[agent]\nid = \"example\"\n";
    }
    text
}

fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join("docs")];
    found.extend(Some(root().join("README.md")).filter(|path| path.exists()));
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                found.push(path);
            }
        }
    }
    found
}

fn toml_blocks(text: &str) -> Vec<(usize, String)> {
    let (mut blocks, mut open): (Vec<_>, Option<(usize, String)>) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.trim()) {
            (None, "```toml") => open = Some((number + 1, String::new())),
            (Some(_), "```") => blocks.extend(open.take()),
            (Some((_, block)), _) => *block += &format!("{line}\n"),
            (None, _) => {}
        }
    }
    blocks
}

#[test]
fn examples_are_found_at_all() {
    assert_eq!(toml_blocks("a\n```toml\n[x]\n```\nb"), [(2, "[x]\n".to_owned())]);
}
