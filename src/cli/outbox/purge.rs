//! `fieldpost outbox purge`

use std::time::Duration;

use clap::{ArgGroup, Args};

use super::super::{ConfigArguments, Exit, Failure, json, show};
use super::change::{Changer, Progress, confirmed, list, size, tell_before, time};
use crate::clock;
use crate::config::Span;
use crate::outbox::{Change, Purged, Selection, run};

/// Give up readings that wait, and remove delivered ones that are kept
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("which").required(true).multiple(true)
        .args(["from", "to", "source", "older_than", "before", "all"]),
    after_help = "Readings that wait for Kafka are given up for ever; a gap record in the dead-letter topic names each of them. \
Delivered readings in the range that are still kept (outbox.retain) go with them. All conditions must hold.

First it says what would go, and asks. What a transaction with open outcome may hold stays, and is named: after \
a start that was not clean these are up to 50,000 readings, until Kafka has answered.

A purge of one source gives back the space of databases that hold nothing else; the rest comes back as they are \
delivered.

While a daemon runs it does this itself, asked over its control socket, and goes on taking readings. Cut short \
at any moment, what was given up so far stays so, and the rest is untouched.

Examples:
  fieldpost outbox purge --source chatterbox              what this source has waiting
  fieldpost outbox purge --older-than 3d                  what came more than three days ago
  fieldpost outbox purge --from 1000 --to 2000 --dry-run  only say what would go
  fieldpost outbox purge --all --yes                      everything, without a question"
)]
pub(in crate::cli) struct Purge {
    #[command(flatten)]
    config: ConfigArguments,
    /// From this sequence on
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Through this sequence
    #[arg(long, value_name = "SEQUENCE")]
    to: Option<u64>,
    /// Readings of this source only
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// What came longer ago than this, as in 3d, 12h
    #[arg(long, value_name = "DURATION", conflicts_with = "before")]
    older_than: Option<Span>,
    /// What came before this time, as in 2026-11-21T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    before: Option<i64>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

impl Purge {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let (changer, json_wanted) = (Changer::find(self.config.clone())?, self.json);
        let done = self.purge(&changer);
        changer.close();
        let done = done?;
        show(&if json_wanted { json(&done)? } else { page(&done) })?;
        Ok(Exit::Done)
    }

    fn purge(self, changer: &Changer) -> Result<Purged, Failure> {
        let selection = Selection {
            from: self.from,
            to: self.to,
            source: self.source,
            older_than_ms: age(self.older_than, self.before),
            ..Selection::default()
        };
        let would = run(Change { selection: selection.clone(), dry_run: true }, |c| changer.purge(c), |_: &Purged| ())?;
        if self.dry_run || (would.readings == 0 && would.generations == 0) {
            return Ok(would);
        }
        if !self.yes {
            let question = format!("{}Give up {} readings for ever?", page(&would), would.readings);
            if !confirmed(&question)? {
                return Err(Failure::new(Exit::Failed, "nothing was purged"));
            }
        }
        // What was shown is what goes: not what came while the question stood.
        let selection = Selection { to: Some(would.to), older_than_ms: None, ..selection };
        let progress = Progress::over(would.from, would.to);
        let mut so_far = Purged::default();
        let done = run(
            Change { selection, dry_run: false },
            |c| changer.purge(c),
            |sum: &Purged| {
                progress.reached(sum.reached, &format!("{} readings given up", sum.readings));
                so_far.clone_from(sum);
            },
        );
        drop(progress);
        if done.is_err() {
            tell_before(&format!(
                "given up before it failed: {} readings, through {}",
                so_far.readings, so_far.reached
            ));
        }
        done
    }
}

/// Milliseconds since what is meant came.
fn age(older_than: Option<Span>, before: Option<i64>) -> Option<u64> {
    let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let since = |time: i64| u64::try_from(clock::now().wall_ns.saturating_sub(time) / 1_000_000).unwrap_or(0);
    older_than.map(|span| ms(span.0)).or(before.map(since))
}

fn page(purged: &Purged) -> String {
    let mut lines = vec![if purged.dry_run { "would be given up".to_owned() } else { "given up".to_owned() }];
    let mut row = |name: &str, value: String| lines.push(format!("  {name:<12}{value}"));
    row("readings", format!("{} ({})", purged.readings, size(purged.bytes)));
    if !purged.sources.is_empty() {
        row("sources", list(&purged.sources));
    }
    if let (Some(oldest), Some(newest)) = (&purged.oldest, &purged.newest) {
        row("received", format!("{oldest} to {newest}"));
    }
    row("looked at", format!("sequences {} to {}", purged.from, purged.to));
    row("removed", format!("{} databases, {}", purged.generations, size(purged.freed_bytes)));
    for left in &purged.left {
        row("stay", format!("{} to {}: {}", left.from, left.to, left.why));
    }
    lines.join("\n") + "\n"
}
