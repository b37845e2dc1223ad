//! `fieldpost outbox export`

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::super::{Exit, Failure, tell};
use super::output::{Output, OutputArguments};
use super::place::{PlaceArguments, Source};
use super::progress::Progress;
use crate::clock;
use crate::config::units::Span;
use crate::outbox::LookError;
use crate::outbox::look::{Exported, GapLine, Line, Wanted, stop};

/// Write readings out of the outbox, without changing it
#[derive(Debug, Args)]
#[command(
    after_help = "Writes what waits for delivery, oldest first, as of the moment it begins. Nothing is delivered or removed by \
it. Beside a running daemon it is the daemon that reads; readings that Kafka gets meanwhile may be gone before their \
turn, and a line says so. Works on outboxes of any size in the same memory.

Formats:
  json    one object a line: sequence, ce_id, source, topic, device, received, value, ... A value that is JSON stays \
JSON, other text is a string, anything else is value_base64. Sequences without a reading are lines too: \
{\"gap\": {\"from\": 5, \"to\": 8, \"reason\": \"drop_oldest\"}}
  raw     the values alone, a newline after each
  frames  the values alone, before each its length in 4 bytes, big-endian

Examples:
  fieldpost outbox export | head -3
  fieldpost outbox export --source plant --since 2h --output plant.jsonl
  fieldpost outbox export --all --from 120000 --to 130000 | jq -c 'select(.device == \"line-3\") | .value'
  fieldpost outbox export --state-dir ./copy-of-gateway-7 --all --output gateway-7.jsonl
  fieldpost outbox export --format raw --output values.txt"
)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    place: PlaceArguments,
    /// From this sequence on
    #[arg(long, value_name = "SEQUENCE")]
    from: Option<u64>,
    /// Through this sequence, inclusive
    #[arg(long, value_name = "SEQUENCE")]
    to: Option<u64>,
    /// Of this source only; may be repeated
    #[arg(long, value_name = "NAME")]
    source: Vec<String>,
    /// Received at this time or later: 2026-11-21T08:00:00Z, 2026-11-21 (UTC), or an age like 2h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<i64>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<i64>,
    /// What waits for delivery (the default)
    #[arg(long, conflicts_with = "all")]
    undelivered: bool,
    /// Also what is delivered and still kept (outbox.retain)
    #[arg(long)]
    all: bool,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Raw,
    Frames,
}

/// Nanoseconds since 1970 of a time, a day, or an age.
fn moment(text: &str) -> Result<i64, String> {
    let nanoseconds = |time: jiff::Timestamp| i64::try_from(time.as_nanosecond()).ok();
    let told = text.parse::<jiff::Timestamp>().ok().and_then(nanoseconds);
    let day = || {
        let day = text.parse::<jiff::civil::Date>().ok()?;
        nanoseconds(day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    };
    let age = || {
        let age = text.parse::<Span>().ok()?;
        Some(clock::now().wall_ns.saturating_sub(i64::try_from(age.0.as_nanos()).unwrap_or(i64::MAX)))
    };
    let found = told.or_else(day).or_else(age);
    found.ok_or_else(|| "write a time like 2026-11-21T08:00:00Z, a day like 2026-11-21, or an age like 2h".to_owned())
}

impl Export {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        if let (Some(from), Some(to)) = (self.from, self.to) {
            if from > to {
                return Err(Failure::new(Exit::Usage, format!("--from {from} is above --to {to}")));
            }
        }
        let selection = Wanted {
            from: self.from,
            to: self.to,
            sources: self.source,
            since_ns: self.since,
            until_ns: self.until,
            all: self.all,
            exact: self.format != Format::Json,
        };
        let is_named = self.output.is_stdout_named();
        let is_terminal = io::IsTerminal::is_terminal(&io::stdout());
        if self.format != Format::Json && is_terminal && !is_named && !self.output.is_file() {
            let text = "values as they are may steer or upset the terminal: use --output FILE or a pipe, or --output - to \
                        have them shown all the same";
            return Err(Failure::new(Exit::Usage, text));
        }
        let source = self.place.open()?;
        let output = self.output.open()?;
        let mut export = Exporter::new(output, self.format);
        let done = export.run(source, &selection);
        export.end(done)
    }
}

/// Writes lines where they are wanted.
struct Exporter {
    output: Output,
    format: Format,
    progress: Progress,
    exported: Option<Exported>,
    /// Gaps that the format cannot hold.
    untold: Gaps,
}

/// Ranges without readings, for standard error. Bounded.
#[derive(Default)]
struct Gaps {
    ranges: Vec<GapLine>,
    more: u64,
}

/// More are counted, not listed.
const GAPS_MAX: usize = 100;

impl Gaps {
    fn add(&mut self, gap: GapLine) {
        let is_full = self.ranges.len() >= GAPS_MAX;
        match self.ranges.last_mut() {
            Some(last) if last.to + 1 == gap.from && last.reason == gap.reason => last.to = gap.to,
            _ if is_full => self.more += 1,
            _ => self.ranges.push(gap),
        }
    }

    fn tell(&self) {
        for gap in &self.ranges {
            tell(&format!("no readings: sequences {} to {} ({})", gap.from, gap.to, gap.reason.escape_debug()));
        }
        if self.more > 0 {
            tell(&format!("... and {} more ranges: --format json names them all", self.more));
        }
    }
}

/// A reading whose value is Base64.
#[derive(Deserialize)]
struct Exact {
    value_base64: String,
}

impl Exporter {
    fn new(output: Output, format: Format) -> Self {
        let progress = Progress::new("sequences", output.is_terminal());
        Self { output, format, progress, exported: None, untold: Gaps::default() }
    }

    /// The inner error ends it quietly or not; see [`Self::end`].
    fn run(&mut self, source: Source, selection: &Wanted) -> Result<io::Result<()>, Failure> {
        match source {
            Source::Files(mut look) => match look.export(selection, &mut |line| self.line(line)) {
                Err(LookError::Output(error)) => Ok(Err(error)),
                done => done.map(|_| Ok(())).map_err(Failure::from),
            },
            Source::Daemon(daemon) => {
                let mut ended = Ok(());
                let asked = daemon.lines("/outbox/export", &selection.to_pairs(), |line| {
                    ended = self.line(line);
                    // The text is never shown: the error itself is.
                    ended.as_ref().map_err(|error| Failure::new(Exit::InputOutput, error.to_string())).copied()
                });
                if ended.is_err() { Ok(ended) } else { asked.map(Ok) }
            }
        }
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        stop::check()?;
        match Line::read(text)? {
            None => self.reading(text),
            Some(Line::Gap(_)) if self.format == Format::Json => self.write(text.as_bytes(), b"\n"),
            Some(Line::Gap(gap)) => {
                self.untold.add(gap);
                Ok(())
            }
            Some(Line::Progress { done, of }) => {
                self.progress.set(done, of);
                Ok(())
            }
            Some(Line::Exported(exported)) => {
                self.exported = Some(exported);
                Ok(())
            }
            Some(_) => Ok(()),
        }
    }

    fn reading(&mut self, text: &str) -> io::Result<()> {
        if self.format == Format::Json {
            return self.write(text.as_bytes(), b"\n");
        }
        let exact: Exact = serde_json::from_str(text)?;
        let value = data_encoding::BASE64.decode(exact.value_base64.as_bytes()).map_err(io::Error::other)?;
        if self.format == Format::Raw {
            return self.write(&value, b"\n");
        }
        let len = u32::try_from(value.len()).map_err(io::Error::other)?;
        self.write(&len.to_be_bytes(), &value)
    }

    fn write(&mut self, first: &[u8], second: &[u8]) -> io::Result<()> {
        self.output.write_all(first)?;
        self.output.write_all(second)
    }

    fn end(self, done: Result<io::Result<()>, Failure>) -> Result<Exit, Failure> {
        let Self { output, progress, exported, untold, format } = self;
        drop(progress);
        let remains = output.remains().map(|path| format!("what was written until then is in {}", path.display()));
        let left = remains.as_ref().map_or_else(String::new, |text| format!("; {text}"));
        let done = match done {
            Err(failure) => {
                remains.iter().for_each(|text| tell(text));
                return Err(failure);
            }
            Ok(done) => done,
        };
        match done {
            // `| head` has what it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            Err(error) => {
                return Err(Failure::new(Exit::InputOutput, format!("cannot write the export: {error}{left}")));
            }
            Ok(()) => {}
        }
        let Some(exported) = exported else {
            return Err(Failure::new(Exit::Unavailable, format!("the daemon ended before the export was whole{left}")));
        };
        output.finish()?;
        untold.tell();
        tell(&summary(&exported, format == Format::Json));
        Ok(Exit::Done)
    }
}

fn summary(exported: &Exported, has_gap_lines: bool) -> String {
    let size = bytesize::ByteSize(exported.value_bytes).display().iec().to_string();
    let mut text = format!("{} readings, {size} of values", exported.readings);
    let lost = exported.missing - exported.delivered;
    if lost > 0 {
        let hint = if has_gap_lines { " (see the gap lines)" } else { "" };
        text += &format!(", {lost} sequences without a reading{hint}");
    }
    if exported.delivered > 0 {
        text += &format!(", {} delivered and not kept", exported.delivered);
    }
    if exported.untimed > 0 {
        text += &format!(
            "\n{} readings are left out by --since or --until though the clock was not synchronised when they came, so their \
             time may be wrong: select them by --from and --to",
            exported.untimed
        );
    }
    if exported.kept > 0 {
        text +=
            &format!("\n{} sequences are left out that are delivered and still kept: --all takes them", exported.kept);
    }
    text
}
