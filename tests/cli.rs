//! The command line as a user and as systemd see it: texts, streams, exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

const GOOD: &str = "[agent]\nid = \"gw-1\"\n[delivery.kafka]\nbootstrap_servers = [\"localhost:9092\"]\n";

struct Run {
    code: Option<i32>,
    out: String,
    err: String,
}

fn fieldpost(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldpost"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FIELDPOST_") || name.ends_with("_DIRECTORY"))
    {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } =
        command.current_dir(directory).args(arguments).envs(variables.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// `check-config` of one file `f.toml`; its code and its lines on standard error.
fn check(text: &str) -> (Option<i32>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f.toml"), text).unwrap();
    let run = fieldpost(directory.path(), &["check-config", "--config", "f.toml"], &[]);
    (run.code, run.err.lines().map(|line| line.trim().to_owned()).collect())
}

/// One mistake, at this line, with this text.
fn refused(text: &str, expected: &str) {
    let (code, lines) = check(text);
    assert_eq!(code, Some(78), "{text}\n{lines:#?}");
    assert_eq!((lines.len(), lines[0].as_str()), (2, "fieldpost: 1 mistake in the configuration"), "{lines:#?}");
    // A text that ends with a colon leaves the rest to the tests of the stage that says it.
    assert!(
        lines[1] == expected || expected.ends_with(": ") && lines[1].starts_with(expected),
        "{lines:#?}\n{expected}"
    );
}

fn with(extra: &str) -> String {
    format!("{GOOD}{extra}")
}

#[test]
fn a_good_configuration_is_good() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f.toml"), GOOD).unwrap();
    let run = fieldpost(directory.path(), &["check-config", "--config", "f.toml"], &[]);
    assert_eq!((run.code, run.out.as_str()), (Some(0), "good: agent gw-1, sources: none\n"));
    assert_eq!(run.err, "warning: f.toml: sources: there is no source: nothing will be read\n");
}

#[test]
fn each_mistake_names_file_line_key_and_what_is_allowed() {
    for (text, expected) in [
        (
            with("[outbox]\nmax_byte = \"1GiB\"\n"),
            "f.toml:6: outbox.max_byte: unknown setting; did you mean outbox.max_bytes?",
        ),
        (
            with("[storage]\nx = 1\n"),
            "f.toml:5: storage: unknown setting; known here: agent, http, outbox, delivery, sources",
        ),
        (
            with("[outbox]\nmax_bytes = \"64MB\"\n"),
            "f.toml:6: outbox.max_bytes: \"64MB\" is not a size: write a number and one of B, KiB, MiB, GiB, as in \"64MiB\"",
        ),
        (with("[outbox]\nmax_bytes = \"1MiB\"\n"), "f.toml:6: outbox.max_bytes: found \"1MiB\"; allowed: 8MiB and up"),
        (
            with("[outbox]\ngather = 5\n"),
            "f.toml:6: outbox.gather: found the number 5; allowed: a duration up to 10s, as in \"50ms\"",
        ),
        (
            with("[outbox]\nwhen_full = \"drop_odlest\"\n"),
            "f.toml:6: outbox.when_full: found the text \"drop_odlest\"; allowed: \"block\", \"drop_oldest\", \
             \"drop_newest\"; did you mean \"drop_oldest\"?",
        ),
        (
            with("[delivery]\nmessage_timeout = \"15s\"\n"),
            "f.toml:6: delivery.message_timeout: 15s is not below delivery.transaction_timeout (15s)",
        ),
        (
            with("[delivery]\nmode = \"idempotent\"\n"),
            "f.toml:6: delivery.mode: \"idempotent\" is not in this version; allowed: \"txn\"",
        ),
        (
            with("[delivery]\nposition = \"group\"\n"),
            "f.toml:6: delivery.position: \"group\" is not in this version; allowed: \"ledger\"",
        ),
        (
            with("[delivery]\ncreate_topics = 1\n"),
            "f.toml:6: delivery.create_topics: found the number 1; allowed: true or false",
        ),
        (
            with("[delivery]\nwindows = [\n  \"Mon 1:00\",\n]\n"),
            "f.toml:7: delivery.windows[0]: found \"Mon 1:00\"; allowed: days and times, as in \"Mon-Fri 22:00-06:00\"",
        ),
        (
            with("http = \"off\"\n"),
            "f.toml:5: delivery.kafka.http: unknown setting; known here: bootstrap_servers, tls, sasl, compression, properties",
        ),
        (
            with("[sources.a]\ntype = \"mqtt\"\nurl = \"mqtt://h\"\nsubscribe = [{ topic = \"#\" }]\nbaud = 9600\n"),
            "f.toml:9: sources.a.baud: only for type = \"serial\", and this is type = \"mqtt\"",
        ),
        (with("[sources.a]\ntype = \"serial\"\n"), "f.toml:5: sources.a.path: missing; allowed: a path, as text"),
        (
            with("[sources.\"a b\"]\ntype = \"serial\"\npath = \"/dev/x\"\n"),
            "f.toml:5: sources.\"a b\": found \"a b\"; allowed: names of sources are [A-Za-z0-9_-]{1,64}",
        ),
        (
            with(
                "[sources.a]\ntype = \"serial\"\npath = \"/dev/x\"\n[sources.b]\ntype = \"serial\"\npath = \"/dev/x\"\n",
            ),
            "f.toml:10: sources.b.path: /dev/x is already read by sources.a",
        ),
        (
            with("sasl = { mechanism = \"PLAIN\", username = \"u\" }\n"),
            "f.toml:5: delivery.kafka.sasl: no password: set password_file or password_credential",
        ),
        (
            with(
                "[sources.a]\ntype = \"mqtt\"\nurl = \"mqtt://h\"\nsubscribe = [\n  { topic = \"a\" },\n  { topic = \"a\" },\n]\n",
            ),
            "f.toml:10: sources.a.subscribe[1].topic: \"a\" is there twice",
        ),
        (
            with(
                "[sources.a]\ntype = \"mqtt\"\nurl = \"mqtt://h\"\nsubscribe = [{ topic = \"a\" }]\ndevice = \"{mqtt.topik}\"\n",
            ),
            "f.toml:9: sources.a.device: ",
        ),
        (
            GOOD.replace("gw-1", "gw 1"),
            "f.toml:2: agent.id: found \"gw 1\"; allowed: [A-Za-z0-9._-]{1,64}, unique in the fleet",
        ),
        (GOOD.replace("id = ", "# "), "f.toml:1: agent.id: missing; allowed: text, [A-Za-z0-9._-]{1,64}"),
        (
            GOOD.replace("localhost:9092", "localhost"),
            "f.toml:4: delivery.kafka.bootstrap_servers[0]: found \"localhost\"; allowed: host:port, as in \"kafka-1:9093\"",
        ),
    ] {
        refused(&text, expected);
    }
}

#[test]
fn what_has_no_effect_or_cannot_be_checked_is_a_warning() {
    let source = "[sources.a]\ntype = \"mqtt\"\nurl = \"mqtt://h\"\nsubscribe = [{ topic = \"a\" }]\n\
                  share_max = \"50%\"\nusername = \"u\"\npassword_credential = \"p\"\n";
    let rest = "[http]\nlisten = \"0.0.0.0:9464\"\n[outbox]\nsync = \"interval:1s\"\n";
    let (code, lines) = check(&with(&format!("{source}{rest}")));
    assert_eq!(code, Some(0), "{lines:#?}");
    let expected = [
        "f.toml:13: http.listen: 0.0.0.0:9464 can be reached from other machines, without any login",
        "f.toml:15: outbox.sync: a power cut or a killed process may lose serial and QoS 0 readings of the last 1s",
        "f.toml:11: sources.a.password_credential: cannot be checked here: only the service sees $CREDENTIALS_DIRECTORY",
    ];
    for warning in expected {
        assert!(lines.contains(&format!("warning: {warning}")), "{warning}\n{lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    let (code, lines) = check("[agent\nid = 1\n");
    assert_eq!(code, Some(78));
    assert!(lines[1].starts_with("f.toml:1: not TOML: "), "{lines:#?}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let run = fieldpost(directory.path(), &["run", "--config", "none.toml"], &[]);
    assert_eq!(run.code, Some(78));
    assert!(run.err.contains("none.toml: cannot be read: No such file or directory"), "{}", run.err);
}

#[test]
fn all_mistakes_of_all_places_come_in_one_run_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("conf.d")).unwrap();
    std::fs::write(at("f.toml"), with("[outbox]\nmax_byte = \"1GiB\"\nretain = 7\n")).unwrap();
    std::fs::write(at("conf.d/10.toml"), "[agent]\nlog = \"inof\"\n").unwrap();
    std::fs::write(at("conf.d/20.toml"), "[delivery]\nmax_wait = \"20s\"\n").unwrap();
    std::fs::write(at("conf.d/ignored.conf"), "not a setting").unwrap();
    let variables = [("FIELDPOST_CONFIG", "x"), ("FIELDPOST_HTTP__LISTEN", "9464")];
    let arguments = ["check-config", "--config", "f.toml", "--set", "outbox.gather=1h", "--set", "nothing"];
    let run = fieldpost(directory.path(), &arguments, &variables);
    assert_eq!((run.code, run.out.as_str()), (Some(78), ""));
    let expected = "fieldpost: 8 mistakes in the configuration
  f.toml:6: outbox.max_byte: unknown setting; did you mean outbox.max_bytes?
  f.toml:7: outbox.retain: found the number 7; allowed: a size, as in \"64MiB\"
  conf.d/10.toml:2: agent.log: found \"inof\"; allowed: off, error, warn, info, debug, trace, also by target, as in \
                    \"info,fieldpost::delivery=debug\"
  conf.d/20.toml:2: delivery.max_wait: 20s is not below delivery.transaction_timeout (15s)
  variable FIELDPOST_CONFIG: not a setting: settings are FIELDPOST_SECTION__KEY, as in FIELDPOST_OUTBOX__MAX_BYTES
  variable FIELDPOST_HTTP__LISTEN: http.listen: found \"9464\"; allowed: an IP address and port, as in \
                    \"127.0.0.1:9464\" or \"[::1]:9464\", or \"off\"
  argument --set nothing: write section.key=value, as in outbox.max_bytes=64MiB
  argument --set outbox.gather: outbox.gather: found \"1h\"; allowed: 0ms to 10s
";
    assert_eq!(run.err, expected);
}

#[test]
fn later_places_win() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("conf.d")).unwrap();
    let main = "[sources.line-3]\ntype = \"serial\"\npath = \"/dev/a\"\nbaud = 300\n[outbox]\nmax_bytes = \"16MiB\"\nretain = \"1B\"\ngather = \"1ms\"\n";
    std::fs::write(at("f.toml"), with(main)).unwrap();
    std::fs::write(at("conf.d/b.toml"), "[outbox]\nretain = \"3B\"\n").unwrap();
    std::fs::write(at("conf.d/a.toml"), "[outbox]\nretain = \"2B\"\ngather = \"2ms\"\n").unwrap();
    let variables = [
        ("FIELDPOST_OUTBOX__GATHER", "3ms"),
        ("FIELDPOST_AGENT__ID", "0017"),
        ("FIELDPOST_SOURCES__LINE_3__BAUD", "9600"),
        ("FIELDPOST_DELIVERY__KAFKA__BOOTSTRAP_SERVERS", "a:1, b:2"),
        ("FIELDPOST_DELIVERY__CREATE_TOPICS", "true"),
    ];
    let arguments =
        ["config", "show", "--json", "--config", "f.toml", "--set", "agent.id=\"x\"", "--set", "outbox.gather=4ms"];
    let run = fieldpost(directory.path(), &arguments, &variables);
    assert_eq!(run.code, Some(0), "{}", run.err);
    let config: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(config["outbox"]["max_bytes"], "16MiB");
    assert_eq!(config["outbox"]["retain"], "3B");
    assert_eq!(config["outbox"]["gather"], "4ms");
    assert_eq!(config["agent"]["id"], "x");
    assert_eq!(config["sources"]["line-3"]["baud"], 9600);
    assert_eq!(config["delivery"]["kafka"]["bootstrap_servers"], serde_json::json!(["a:1", "b:2"]));
    assert_eq!(config["delivery"]["create_topics"], true);
}

#[test]
fn a_number_where_text_is_wanted_stays_text_in_a_variable() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f.toml"), GOOD).unwrap();
    let run =
        fieldpost(directory.path(), &["config", "show", "--config", "f.toml"], &[("FIELDPOST_AGENT__ID", "0017")]);
    assert!(run.out.contains("id = \"0017\""), "{}{}", run.out, run.err);
}

#[test]
fn secrets_are_neither_shown_nor_repeated_in_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let text = with(
        "properties = { \"ssl.key.password\" = \"hush1\" }\n[sources.a]\ntype = \"mqtt\"\nurl = \"mqtt://u:hush2@h\"\n\
         subscribe = [{ topic = \"#\" }]\n",
    );
    std::fs::write(directory.path().join("f.toml"), text).unwrap();
    let run = fieldpost(directory.path(), &["config", "show", "--config", "f.toml"], &[]);
    assert!(!run.out.contains("hush") && !run.err.contains("hush"), "{}{}", run.out, run.err);
    for wrong in
        ["sasl = \"hush\"\n", "properties = { \"sasl.password\" = \"hush\", x = 1 }\n", "password = \"hush\"\n"]
    {
        let (code, lines) = check(&with(wrong));
        assert_eq!(code, Some(78));
        assert!(!lines.concat().contains("hush"), "{lines:#?}");
    }
}

#[test]
fn the_version_is_told_to_people_and_to_scripts() {
    let directory = tempfile::tempdir().unwrap();
    let run = fieldpost(directory.path(), &["version"], &[]);
    assert!(run.out.starts_with(concat!("fieldpost ", env!("CARGO_PKG_VERSION"), " (librdkafka ")), "{}", run.out);
    let run = fieldpost(directory.path(), &["version", "--json"], &[]);
    let versions: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!((run.code, versions["version"].as_str()), (Some(0), Some(env!("CARGO_PKG_VERSION"))));
}

#[test]
fn completions_know_the_commands() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let run = fieldpost(directory.path(), &["completions", shell], &[]);
        assert_eq!(run.code, Some(0));
        assert!(run.out.contains("check-config") && run.out.contains("status"), "{shell}");
    }
}

#[test]
fn status_without_a_daemon_is_unavailable() {
    let directory = tempfile::tempdir().unwrap();
    let text = GOOD.replace("id =", "state_dir = \"state\"\nid =");
    std::fs::write(directory.path().join("f.toml"), text).unwrap();
    for arguments in [&["status", "--config", "f.toml"][..], &["status", "--json", "--socket", "none.sock"]] {
        let run = fieldpost(directory.path(), arguments, &[]);
        assert_eq!((run.code, run.out.as_str()), (Some(69), ""));
        assert!(run.err.starts_with("fieldpost: no daemon answers ("), "{}", run.err);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_usage() {
    let directory = tempfile::tempdir().unwrap();
    let run = fieldpost(directory.path(), &["statsu"], &[]);
    assert_eq!((run.code, run.out.as_str()), (Some(2), ""));
    assert!(run.err.contains("similar subcommand") && run.err.contains("'status'"), "{}", run.err);
    let run = fieldpost(directory.path(), &["--help"], &[]);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    assert!(run.out.contains("Exit codes:") && !run.out.contains('\u{1b}'), "{}", run.out);
}
