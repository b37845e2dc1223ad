//! `fieldpost outbox purge`

use clap::{ArgGroup, Args};

use super::super::{ConfigArguments, Exit, Failure, json, show};
use super::change::{Changer, Progress, confirmed, tell_before, time};
use super::text::{self, list, size};
use crate::clock;
use crate::config::Span;
use crate::outbox::{Cause, Change, Left, Purged, Selection, run};

/// Give up readings that wait, and remove delivered ones that are kept
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("which").required(true).multiple(true)
        .args(["from", "to", "source", "older_than", "before", "all"]),
    after_help = "Readings that wait for Kafka are given up for ever; a gap record in the dead-letter topic names each of them. \
Delivered readings in the range that are still kept (outbox.retain) go with them. All conditions must hold.

First it says what would go, and asks. What a transaction with open outcome may hold stays, and is named: after \
a start that was not clean these are up to 50,000 readings, until Kafka has answered.

A purge of one source gives back the space of generations that hold nothing else; the rest comes back as they are \
delivered.

While a daemon runs it does this itself, asked over its control socket, and goes on taking readings. Without one \
the outbox is opened here, which repairs and tidies it. --dry-run changes nothing either way: without a daemon it reads \
the files, copies of them where need be. Cut short at any \
moment, what was given up so far stays so, and the rest is untouched.

Exit codes: 0 all that was meant is given up; 75 a transaction may hold some of it, which stays: purge again later; 1 some of \
it stays because it cannot be read (damage), so nobody knows whose or how old it is. A purge of a range or of everything \
needs no such knowledge: it gives up what cannot be read by its sequences, and says so.

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
    /// What came before this time, by a synchronised clock, as in 2026-11-21T08:00:00Z
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
        let (json_wanted, dry_run) = (self.json, self.dry_run);
        let selection = self.selection()?;
        let changer = Changer::find(self.config.clone())?;
        let done = self.purge(selection, changer)?;
        show(&if json_wanted { json(&done)? } else { page(&done) })?;
        staying(&done.left, dry_run).map_or(Ok(Exit::Done), Err)
    }

    fn selection(&self) -> Result<Selection, Failure> {
        let age = match (self.older_than, self.before) {
            (Some(span), _) => Some(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)),
            (None, Some(before)) => Some(
                age_of(before, clock::now().wall_ns, clock::synchronised())
                    .map_err(|text| Failure::new(Exit::Usage, text))?,
            ),
            (None, None) => None,
        };
        let source = self.source.clone();
        Ok(Selection { from: self.from, to: self.to, source, older_than_ms: age, ..Selection::default() })
    }

    fn purge(self, selection: Selection, mut changer: Changer) -> Result<Purged, Failure> {
        let would = changer.would_purge(&selection)?;
        if self.dry_run || (would.readings == 0 && would.generations == 0) {
            return Ok(Purged { dry_run: self.dry_run, ..would });
        }
        changer.may_change()?;
        if !self.yes && !confirmed(&(page(&would) + &question(&would)))? {
            return Err(nothing_purged());
        }
        let changer = changer.begin()?;
        let done = Self::carry_out(selection, &would, &changer);
        changer.close();
        done
    }

    fn carry_out(selection: Selection, would: &Purged, changer: &Changer) -> Result<Purged, Failure> {
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
                "given up for certain before it failed: {} readings, through {}; one more step may follow",
                so_far.readings, so_far.reached
            ));
        }
        done
    }
}

/// What stays although it was meant is no success. What a transaction holds is free soon, and a dry run is not about that.
fn staying(left: &[Left], dry_run: bool) -> Option<Failure> {
    let count = |unreadable: bool| {
        let of = left.iter().filter(|left| (left.cause == Cause::Unreadable) == unreadable);
        of.map(Left::sequences).sum::<u64>()
    };
    match (count(true), count(false)) {
        (0, 0) => None,
        (0, _) if dry_run => None,
        (0, held) => {
            let text = format!("up to {held} readings that were meant stay: purge again later");
            Some(Failure::new(Exit::TryAgain, text))
        }
        (unreadable, held) => {
            let text = format!(
                "up to {} readings that were meant stay, for {unreadable} of them cannot be read. `fieldpost outbox verify` tells \
                 more; a purge of the range, without a source or age, needs not read them",
                unreadable + held
            );
            Some(Failure::new(Exit::Failed, text))
        }
    }
}

/// Milliseconds from a time to now, by the wall clock: only if that is right.
fn age_of(before: i64, now: i64, synchronised: bool) -> Result<u64, String> {
    let (time, clock) = (clock::rfc3339(before), clock::rfc3339(now));
    let age = u64::try_from(now.saturating_sub(before))
        .map_err(|_| format!("--before {time} is in the future: this machine's clock says {clock}"))?;
    if !synchronised {
        return Err(format!(
            "this machine's clock is not synchronised (it says {clock}), so nobody knows what came before {time}: choose by \
             --older-than, which counts by the time since boot, or by sequence"
        ));
    }
    Ok(age / 1_000_000)
}

fn nothing_purged() -> Failure {
    Failure::new(Exit::Failed, "nothing was purged")
}

/// What goes for ever, in one sentence.
fn question(would: &Purged) -> String {
    let mut parts = Vec::new();
    if would.readings > 0 {
        parts.push(format!("give up {} readings that wait", would.readings));
    }
    if would.generations > 0 {
        let (count, size) = (would.generations, size(would.freed_bytes));
        parts.push(format!("remove {count} generations, {size}, with what is kept in them for replay"));
    }
    let text = parts.join(" and ") + ", for ever?";
    text[..1].to_uppercase() + &text[1..]
}

/// More ranges are counted, not listed.
const RANGES_SHOWN_MAX: usize = 20;

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
    row("removed", format!("{} generations, {}", purged.generations, size(purged.freed_bytes)));
    for (name, ranges) in [("unread", &purged.unread), ("stay", &purged.left)] {
        for range in ranges.iter().take(RANGES_SHOWN_MAX) {
            row(name, format!("{} to {}: {}", range.from, range.to, range.why));
        }
        if let Some(more) = ranges.len().checked_sub(RANGES_SHOWN_MAX).filter(|more| *more > 0) {
            row(name, format!("and {more} more ranges: --json names them all"));
        }
    }
    if !purged.unread.is_empty() {
        lines.push("  What is unread is given up by its sequences, all the same.".to_owned());
    }
    text::page(&lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_only_by_a_clock_that_can_know_it() {
        let (hour, now) = (3_600_000_000_000, 1_700_000_000_000_000_000);
        assert_eq!(age_of(now - hour, now, true), Ok(3_600_000));
        assert_eq!(age_of(now, now, true), Ok(0));
        for synchronised in [true, false] {
            // The clock stands at 1970 after a start without a battery: that must not mean everything.
            assert!(age_of(now, hour, synchronised).unwrap_err().contains("1970-01-01T01:00:00Z"));
            assert!(age_of(now + 1, now, synchronised).unwrap_err().contains("is in the future"));
        }
        assert!(age_of(now - hour, now, false).unwrap_err().contains("not synchronised"));
    }

    #[test]
    fn what_stays_has_an_exit_code() {
        let left = |cause| Left { from: 1, to: 3, cause, why: String::new() };
        let code = |left: &[Left], dry_run| staying(left, dry_run).map(Failure::tell);
        for (causes, real, dry) in [
            (&[][..], None, None),
            (&[Cause::InDoubt][..], Some(Exit::TryAgain), None),
            (&[Cause::NotNow][..], Some(Exit::TryAgain), None),
            (&[Cause::Unreadable][..], Some(Exit::Failed), Some(Exit::Failed)),
            (&[Cause::InDoubt, Cause::Unreadable][..], Some(Exit::Failed), Some(Exit::Failed)),
        ] {
            let ranges: Vec<_> = causes.iter().copied().map(left).collect();
            assert_eq!((code(&ranges, false), code(&ranges, true)), (real, dry), "{causes:?}");
        }
    }

    #[test]
    fn the_question_names_all_that_goes() {
        let would = |readings, generations| Purged { readings, generations, freed_bytes: 3 << 20, ..Purged::default() };
        assert_eq!(question(&would(5, 0)), "Give up 5 readings that wait, for ever?");
        let kept = "emove 2 generations, 3.0 MiB, with what is kept in them for replay, for ever?";
        assert_eq!(question(&would(0, 2)), format!("R{kept}"));
        assert_eq!(question(&would(5, 2)), format!("Give up 5 readings that wait and r{kept}"));
    }
}
