//! `fieldpost outbox replay`

use clap::{ArgGroup, Args};

use super::super::{ConfigArguments, Exit, Failure, json, show};
use super::change::{Changer, Progress, tell_before, time};
use super::text::{self, list, size};
use crate::outbox::{Change, Replayed, Selection, run};

/// Send delivered readings again that are still kept
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("which").required(true).multiple(true).args(["from", "to", "source", "since", "until", "all"]),
    after_help = "Delivered readings are kept up to outbox.retain. A replay copies them to the end of the queue as new readings, \
in order: with a new ce_id, the flag replay, and fp_replay_of, the ce_id of the original. Their times are those \
of the original.

It needs room: copies count towards outbox.max_bytes, and it stops before they would push out what is kept. \
Records of losses are not sent again, they are counted.

While a daemon runs it does this itself, asked over its control socket; without one the outbox is opened here, \
which repairs and tidies it. --dry-run changes nothing either way: without a daemon it reads the files. Cut short, what was copied stays copied. \
It says how far it came: go on with --from, for running it again as it was would send the first part twice.

Examples:
  fieldpost outbox replay --from 1000 --to 2000
  fieldpost outbox replay --since 2026-11-21T08:00:00Z --until 2026-11-21T09:00:00Z --source plant
  fieldpost outbox replay --all --dry-run                 what is kept, and whether it would fit"
)]
pub(in crate::cli) struct Replay {
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
    /// Received at this time or later
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,
    /// Received before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
    /// Everything that is kept
    #[arg(long)]
    all: bool,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let json_wanted = self.json;
        let changer = Changer::find(self.config.clone())?;
        let done = self.replay(changer)?;
        show(&if json_wanted { json(&done)? } else { page(&done) })?;
        let Some(why) = &done.stopped else { return Ok(Exit::Done) };
        Err(Failure::new(Exit::Failed, format!("{why}; go on later with --from {}", done.reached + 1)))
    }

    fn replay(self, mut changer: Changer) -> Result<Replayed, Failure> {
        let selection = Selection {
            from: self.from,
            to: self.to,
            source: self.source,
            since_ns: self.since,
            until_ns: self.until,
            ..Selection::default()
        };
        let would = changer.would_replay(&selection)?;
        if self.dry_run || would.readings == 0 {
            return Ok(Replayed { dry_run: self.dry_run, ..would });
        }
        if would.disk_bytes > would.room_bytes {
            let text = format!(
                "{} readings need about {} on disk, there is room for {}: choose fewer (--to, --source), wait until more is \
                 delivered, or raise outbox.max_bytes",
                would.readings,
                size(would.disk_bytes),
                size(would.room_bytes)
            );
            return Err(Failure::new(Exit::Failed, text));
        }
        changer.may_change()?;
        let changer = changer.begin()?;
        let done = Self::carry_out(selection, &would, &changer);
        changer.close();
        done
    }

    fn carry_out(selection: Selection, would: &Replayed, changer: &Changer) -> Result<Replayed, Failure> {
        // What is delivered meanwhile was not meant, least of all the copies.
        let selection = Selection { to: Some(would.reached), ..selection };
        let progress = Progress::over(would.from, would.reached);
        let mut so_far = None;
        let done = run(
            Change { selection, dry_run: false },
            |c| changer.replay(c),
            |sum: &Replayed| {
                progress.reached(sum.reached, &format!("{} readings copied", sum.readings));
                so_far = Some((sum.readings, sum.reached));
            },
        );
        drop(progress);
        if done.is_err() {
            let text = match so_far {
                Some((readings, reached)) => format!(
                    "copied for certain: {readings} readings, through {reached}; the next few may be copied too. Look at the \
                     newest readings with fp_replay_of, and go on with --from after them, at {} or later",
                    reached + 1
                ),
                None => "nothing was copied for certain; the first few may be: look at the newest readings".to_owned(),
            };
            tell_before(&text);
        }
        done
    }
}

fn page(replayed: &Replayed) -> String {
    let mut lines = vec![if replayed.dry_run { "would be sent again".to_owned() } else { "copied".to_owned() }];
    let mut row = |name: &str, value: String| lines.push(format!("  {name:<12}{value}"));
    row("readings", format!("{} ({})", replayed.readings, size(replayed.bytes)));
    if !replayed.sources.is_empty() {
        row("sources", list(&replayed.sources));
    }
    row("looked at", format!("sequences {} to {}", replayed.from, replayed.reached));
    row("disk", format!("about {}, room for {}", size(replayed.disk_bytes), size(replayed.room_bytes)));
    if let (Some(first), Some(last)) = (replayed.first_copy, replayed.last_copy) {
        row("copies", format!("sequences {first} to {last}"));
    }
    for (name, count, why) in [
        ("gap records", replayed.gaps, "not sent again"),
        ("not there", replayed.missing, "dropped, purged or damaged"),
        ("untimed", replayed.untimed, "received before the clock was right; choose them by sequence"),
    ] {
        if count > 0 {
            row(name, format!("{count} ({why})"));
        }
    }
    text::page(&lines)
}
