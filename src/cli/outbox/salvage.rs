//! `fieldpost outbox salvage`

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::super::{Exit, Failure, json, show, tell};
use super::output::OutputArguments;
use super::progress::Progress;
use super::{stopping, text};
use crate::outbox::LookError;
use crate::outbox::look::{self, Salvaged, stop};

/// Recover what can be read from damaged generations
#[derive(Debug, Args)]
#[command(
    after_help = "DIR is a generation that was set aside, the directory damaged/ that holds them, or a copy of a whole state \
directory. It is copied before anything is opened, so nothing in it changes. Every reading that comes back was proven by \
the checksum of its block. Readings that Kafka has already may be among them: compare by ce_id.

Writes lines as `fieldpost outbox export` does. Sequences that did not come back are lines too: \
{\"gap\": {..., \"reason\": \"not_recovered\"}}. Says at the end what came from where.

What cannot be read from the medium becomes zeros in the copy and is told; the rest is recovered.

Exit codes: 0 nothing is wrong with any generation, and every sequence came back or is noted; 1 something did not come \
back or may not have: a generation is damaged, gave nothing, or ends before the place where it should. What stood \
before the first and after the last reading is known where files of the outbox beside them tell.

Examples:
  fieldpost outbox salvage /var/lib/fieldpost/outbox/damaged --output recovered.jsonl
  fieldpost outbox salvage ./copy-of-gateway-7 --output recovered.jsonl --json | jq .missing"
)]
pub(in crate::cli) struct Salvage {
    /// What to recover from
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    output: OutputArguments,
    /// Where generations are copied to, one at a time: some 30 MiB [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    /// The summary as JSON, on standard output
    #[arg(long, requires = "output")]
    json: bool,
}

impl Salvage {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        if self.json && !self.output.is_file() {
            return Err(Failure::new(
                Exit::Usage,
                "--json needs standard output for itself: name a file with --output",
            ));
        }
        stopping::listen();
        let mut output = self.output.open()?;
        let progress = Progress::new("generations", output.is_terminal());
        let is_file = output.is_file();
        let salvaged = look::salvage(
            &self.directory,
            self.temp_dir.as_deref(),
            &mut |done, of| progress.set(done, of),
            &mut |line| {
                stop::check()?;
                output.write_all(line.as_bytes()).and_then(|()| output.write_all(b"\n"))
            },
        );
        drop(progress);
        let salvaged = match salvaged {
            Err(LookError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            Err(error) => {
                if let Some(path) = output.remains() {
                    tell(&format!("what was written until then is in {}", path.display()));
                }
                return Err(error.into());
            }
            Ok(salvaged) => salvaged,
        };
        output.finish()?;
        match (self.json, is_file) {
            (true, _) => show(&json(&salvaged)?)?,
            (false, true) => show(&page(&salvaged))?,
            (false, false) => tell(page(&salvaged).trim_end()),
        }
        Ok(if salvaged.is_whole() { Exit::Done } else { Exit::Failed })
    }
}

fn page(salvaged: &Salvaged) -> String {
    let mut lines = Vec::new();
    for generation in &salvaged.generations {
        let range = match (generation.first, generation.last) {
            (Some(first), Some(last)) => format!("{} readings, sequences {first} to {last}", generation.readings),
            _ => "no readings".to_owned(),
        };
        let sources = [
            (generation.from_database, "from the database"),
            (generation.from_log, "from its log"),
            (generation.from_bytes, "from its bytes"),
        ];
        let blocks: Vec<_> =
            sources.iter().filter(|(count, _)| *count > 0).map(|(count, from)| format!("{count} {from}")).collect();
        let blocks = if blocks.is_empty() { "none".to_owned() } else { blocks.join(", ") };
        lines.push(format!("{}: {range}; blocks: {blocks}", generation.path));
        lines.extend(generation.fault.iter().map(|fault| format!("  {fault}")));
    }
    for gap in &salvaged.missing {
        lines.push(format!("missing: sequences {} to {} ({})", gap.from, gap.to, gap.reason));
    }
    let missing: u64 = salvaged.missing.iter().map(|gap| gap.to - gap.from + 1).sum();
    lines.push(format!("recovered {} readings; {missing} sequences are missing", salvaged.readings));
    text::page(&lines)
}
