//! `fieldpost outbox inspect`

use clap::Args;

use super::super::{Exit, Failure, json, show};
use super::place::{PlaceArguments, Source};
use super::text::{self, list, size};
use crate::outbox::Inspection;
use crate::outbox::look::InspectedGeneration;

/// Say what the outbox holds, without changing it
#[derive(Debug, Args)]
#[command(
    after_help = "Beside a running daemon the daemon answers, so every number is as of now. Without one the files are read: the \
newest generation is copied to a private directory for that.

Examples:
  fieldpost outbox inspect
  fieldpost outbox inspect --json | jq .sources
  fieldpost outbox inspect --state-dir ./copy-of-gateway-7"
)]
pub(in crate::cli) struct Inspect {
    #[command(flatten)]
    place: PlaceArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let inspection = match self.place.open()? {
            Source::Files(mut look) => look.inspect()?,
            Source::Daemon(daemon) => daemon.inspect()?,
        };
        show(&if self.json { json(&inspection)? } else { page(&inspection) })?;
        Ok(Exit::Done)
    }
}

fn page(found: &Inspection) -> String {
    let unknown = || "unknown".to_owned();
    let clean = match found.clean {
        Some(true) => "clean",
        Some(false) => "not clean: a start reads back what was under way",
        None => "unknown",
    };
    let daemon = found.running.map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
    let oldest = found.oldest_waiting_at.as_ref().filter(|_| found.waiting > 0);
    let oldest = oldest.map_or_else(String::new, |time| format!(", the oldest since {time}"));
    let field = |name: &str, text: String| format!("  {name:<14}{text}");
    let mut lines = vec![
        format!("outbox {} (format {})", found.path, found.format),
        field("agent", found.agent.clone().unwrap_or_else(unknown)),
        field("incarnation", found.incarnation.clone().unwrap_or_else(unknown)),
        field("cluster", found.cluster.clone().unwrap_or_else(unknown)),
        field("daemon", daemon),
        field("positions", format!("committed {}, durable {}, next {}", found.committed, found.durable, found.next)),
        field("waiting", format!("{} sequences{oldest}", found.waiting)),
        field("last session", clean.to_owned()),
        field(
            "disk",
            format!(
                "{}, of it kept for replay {}, set aside as damaged {}",
                size(found.bytes),
                size(found.retained_bytes),
                size(found.damaged_bytes)
            ),
        ),
    ];
    section(&mut lines, "sources", found.sources.len());
    for (name, source) in &found.sources {
        lines.push(format!("  {name:<24}{:>12} readings  {:>10}", source.readings, size(source.record_bytes)));
    }
    section(&mut lines, "generations", found.generations.len());
    lines.extend(found.generations.iter().map(generation));
    if !found.notes.is_empty() {
        section(&mut lines, "ranges that gap records will tell", found.notes.len());
        let note = |note: &crate::outbox::look::InspectedNote| {
            format!("  {} to {}  {}  noted {}", note.from, note.to, note.reason, note.noted_at)
        };
        lines.extend(found.notes.iter().map(note));
    }
    if !found.refusals.is_empty() {
        section(&mut lines, "refused since the outbox was made", found.refusals.len());
        for (name, refused) in &found.refusals {
            let reasons = refused.reasons.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let (readings, bytes) = (refused.readings, size(refused.record_bytes));
            lines.push(format!("  {name:<24}{readings:>12} readings  {bytes:>10}  {reasons}"));
        }
    }
    if !found.damaged.is_empty() {
        section(&mut lines, "set aside in damaged/ (fieldpost outbox salvage)", found.damaged.len());
        lines.extend(found.damaged.iter().map(|name| format!("  {name}")));
    }
    if !found.remarks.is_empty() {
        lines.extend([String::new(), "remarks".to_owned()]);
        lines.extend(found.remarks.iter().map(|remark| format!("  {remark}")));
    }
    text::page(&lines)
}

fn section(lines: &mut Vec<String>, title: &str, count: usize) {
    lines.extend([String::new(), format!("{title} ({count})")]);
}

fn generation(generation: &InspectedGeneration) -> String {
    let range = match (generation.first_sequence, generation.last_sequence) {
        (Some(first), Some(last)) => format!("sequences {first} to {last}"),
        _ => "no readings".to_owned(),
    };
    let state = if generation.closed { generation.state.clone() } else { format!("{}, in use", generation.state) };
    let since = generation.oldest_at.as_ref().map_or_else(String::new, |time| format!("  from {time}"));
    let line = format!(
        "  {}  {:>10}  {state:<10}  {range}{since}  {}",
        generation.name,
        size(generation.bytes),
        list(&generation.sources)
    );
    line.trim_end().to_owned()
}
