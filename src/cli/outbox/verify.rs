//! `fieldpost outbox verify`

use std::io::{self, IsTerminal};

use clap::Args;

use super::super::{Exit, Failure, json, show};
use super::place::{PlaceArguments, Source};
use super::progress::Progress;
use super::text;
use crate::outbox::look::{Finding, Level, Line, Verified, stop};

/// Check everything in the outbox, without changing it
#[derive(Debug, Args)]
#[command(
    after_help = "Reads every block of every generation: checksum, place, contents, whole arrivals, sequences without holes, \
notes over what is missing, summaries against contents, and both slots of pos and state. Beside a running daemon it is \
the daemon that reads. Only without one it is checked whether the log reaches what was acknowledged, whether pos and \
state are there, and whether files are left of generations that are gone: all of this changes while a daemon works.

Not checked: the reserve, hints, and what is in damaged/ or dead-*; of these two it says that they are there.

Damage is what costs readings, or what is known about them; a remark costs nothing.

Exit codes: 0 nothing is damaged, 1 something is; 69, 74, 75 and 78 as everywhere: it could not be checked.

Examples:
  fieldpost outbox verify
  fieldpost outbox verify --json | jq '.findings[] | select(.level == \"damage\")'
  fieldpost outbox verify --state-dir ./copy-of-gateway-7"
)]
pub(in crate::cli) struct Verify {
    #[command(flatten)]
    place: PlaceArguments,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, serde::Serialize)]
struct Report {
    result: &'static str,
    #[serde(flatten)]
    verified: Verified,
    findings: Vec<Finding>,
}

#[derive(Default)]
struct Collected {
    findings: Vec<Finding>,
    verified: Option<Verified>,
}

/// More findings are counted, not listed.
const FINDINGS_MAX: usize = 1000;

impl Verify {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let progress = Progress::new("generations", false);
        let mut collected = Collected::default();
        let mut take = |text: &str| -> io::Result<()> {
            stop::check()?;
            match Line::read(text)? {
                Some(Line::Progress { done, of }) => progress.set(done, of),
                Some(Line::Finding(finding)) if collected.findings.len() < FINDINGS_MAX => {
                    collected.findings.push(finding);
                }
                Some(Line::Verified(verified)) => collected.verified = Some(verified),
                _ => {}
            }
            Ok(())
        };
        match self.place.open()? {
            Source::Files(mut look) => {
                look.verify(&mut take)?;
            }
            Source::Daemon(daemon) => daemon.lines("/outbox/verify", &[], |text| {
                take(text)
                    .map_err(|error| Failure::new(Exit::Unavailable, format!("the daemon says {text:?}: {error}")))
            })?,
        }
        drop(progress);
        let Collected { findings, verified } = collected;
        let Some(verified) = verified else {
            return Err(Failure::new(Exit::Unavailable, "the daemon ended before everything was checked"));
        };
        let result = if verified.damage == 0 { "good" } else { "damaged" };
        if self.json {
            show(&json(&Report { result, verified, findings })?)?;
        } else {
            show(&page(result, &verified, &findings, io::stdout().is_terminal()))?;
        }
        Ok(if verified.damage == 0 { Exit::Done } else { Exit::Failed })
    }
}

fn page(result: &str, verified: &Verified, findings: &[Finding], terminal: bool) -> String {
    let mut lines: Vec<String> = findings.iter().map(line).collect();
    let all = verified.damage + verified.remarks;
    if all > findings.len() as u64 {
        lines.push(format!("... and {} more", all - findings.len() as u64));
    }
    let wrong = match (verified.damage, verified.remarks) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, remarks) => format!("no damage, {remarks} remarks"),
        (damage, remarks) => format!("{damage} damaged, {remarks} remarks"),
    };
    let gone = if verified.gone > 0 {
        format!(", {} generations were delivered or dropped meanwhile", verified.gone)
    } else {
        String::new()
    };
    let Verified { generations, blocks, readings, .. } = verified;
    let counts = format!("{generations} generations, {blocks} blocks, {readings} readings checked: {wrong}{gone}");
    let result = match (terminal, verified.damage) {
        (true, 0) => format!("\x1b[32m{result}\x1b[0m"),
        (true, _) => format!("\x1b[31m{result}\x1b[0m"),
        (false, _) => result.to_owned(),
    };
    // The line with the colours is ours alone.
    text::page(&lines) + &format!("{result}: {counts}\n")
}

fn line(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Damage => "damage",
        Level::Remark => "remark",
    };
    let range = match (finding.from, finding.to) {
        (Some(from), Some(to)) if from == to => format!(", sequence {from}"),
        (Some(from), Some(to)) => format!(", sequences {from} to {to}"),
        _ => String::new(),
    };
    format!("{level}  {}{range}: {}", finding.file, finding.what)
}
