//! `fieldpost outbox`: `purge.rs` and `replay.rs` change it, with `change.rs` in common.

mod change;
mod purge;
mod replay;

use std::io;
use std::path::Path;

use clap::{Args, Subcommand};

use super::{ConfigArguments, Exit, Failure, json, show};
use crate::outbox::{Inspection, Outbox};

/// Look into the outbox on disk, and change it
#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// Say what the outbox holds, without changing it
    Inspect(Inspect),
    /// Give up readings that wait, and remove delivered ones that are kept
    Purge(purge::Purge),
    /// Send delivered readings again that are still kept
    Replay(replay::Replay),
}

/// Say what the outbox holds, without changing it
#[derive(Debug, Args)]
#[command(
    after_help = "Reads files and their names only, so it may run beside the daemon; the newest generation is then at most a \
second behind. `fieldpost status` knows more of a daemon that runs.

Examples:
  fieldpost outbox inspect
  fieldpost outbox inspect --json | jq .generations"
)]
pub(super) struct Inspect {
    #[command(flatten)]
    config: ConfigArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl OutboxCommand {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        match self {
            Self::Inspect(command) => command.run(),
            Self::Purge(command) => command.run(),
            Self::Replay(command) => command.run(),
        }
    }
}

impl Inspect {
    fn run(self) -> Result<Exit, Failure> {
        let command = self;
        let state_dir = command.config.load()?.config.agent.state_dir;
        let inspection = Outbox::inspect(&state_dir).map_err(|error| unreadable(&state_dir, &error))?;
        show(&if command.json { json(&inspection)? } else { page(&inspection) })?;
        Ok(Exit::Done)
    }
}

fn unreadable(state_dir: &Path, error: &io::Error) -> Failure {
    let place = state_dir.display();
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(Exit::InputOutput, format!("there is no outbox in {place}")),
        _ => Failure::new(Exit::InputOutput, format!("cannot read the outbox in {place}: {error}")),
    }
}

fn page(found: &Inspection) -> String {
    let unknown = || "unknown".to_owned();
    let number = |number: Option<u64>| number.map_or_else(unknown, |number| number.to_string());
    let size = |bytes: u64| bytesize::ByteSize(bytes).display().iec().to_string();
    let clean = match found.clean {
        Some(true) => "clean",
        Some(false) => "not clean: the next start reads back what was under way",
        None => "unknown",
    };
    let mut lines = vec![
        format!("outbox {}", found.path),
        format!("  {:<14}{}", "agent", found.agent.clone().unwrap_or_else(unknown)),
        format!("  {:<14}{}", "incarnation", found.incarnation.clone().unwrap_or_else(unknown)),
        format!(
            "  {:<14}{}",
            "daemon",
            found.running.map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"))
        ),
        format!("  {:<14}{}, next {}", "committed", number(found.committed), number(found.next)),
        format!("  {:<14}{clean}", "last session"),
        format!("  {:<14}{}, set aside as damaged {}", "disk", size(found.bytes), size(found.damaged_bytes)),
        String::new(),
        format!("generations ({})", found.generations.len()),
    ];
    for generation in &found.generations {
        let range = match (generation.first_sequence, generation.last_sequence) {
            (Some(first), Some(last)) => format!("sequences {first} to {last}"),
            (Some(_), None) => "no readings".to_owned(),
            _ => "in use".to_owned(),
        };
        let sources: Vec<_> = generation.sources.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let line = format!("  {}  {:>10}  {range}  {}", generation.name, size(generation.bytes), sources.join(", "));
        lines.push(line.trim_end().to_owned());
    }
    if !found.remarks.is_empty() {
        lines.extend([String::new(), "remarks".to_owned()]);
        lines.extend(found.remarks.iter().map(|remark| format!("  {remark}")));
    }
    lines.join("\n") + "\n"
}
