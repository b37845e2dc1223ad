//! The status as text for people.

use std::fmt::Write;

use super::{OutboxStatus, SourceStatus, Status};

/// One line.
pub fn summary(status: &Status) -> String {
    let up = status.sources.values().filter(|source| matches!(source.state.as_str(), "up" | "held")).count();
    let mut line = format!(
        "delivery {}, {} waiting, {} of {} sources up",
        or_unknown(&status.delivery.phase),
        status.outbox.records,
        up,
        status.sources.len()
    );
    if status.outbox.state != "ok" && !status.outbox.state.is_empty() {
        let _ = write!(line, ", outbox {}", status.outbox.state);
    }
    let of_sources =
        status.sources.iter().flat_map(|(name, s)| s.alarms.iter().map(move |text| format!("{name}: {text}")));
    let alarms: Vec<_> = status.delivery.alarms.iter().cloned().chain(of_sources).collect();
    if let [first, rest @ ..] = alarms.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
        let _ = write!(line, ", ALARM: {first}{more}");
    }
    line
}

/// A page for a terminal: the three stages in the order of the flow.
pub fn table(status: &Status) -> String {
    let mut page = Page::default();
    let agent = &status.agent;
    page.title(&format!("agent {}", agent.id));
    page.row("version", &agent.version);
    page.row("started", &agent.started_at);
    page.row("incarnation", &agent.incarnation);
    page.row("guarantee", &agent.guarantee);
    sources(&mut page, status);
    outbox(&mut page, status);
    delivery(&mut page, status);
    page.text
}

fn sources(page: &mut Page, status: &Status) {
    page.title("sources");
    if status.sources.is_empty() {
        page.row("none", "");
        return;
    }
    let head = ["name", "type", "state", "received", "accepted", "acked", "rejected", "duplicates", "last"];
    let cells = |(name, source): (&String, &SourceStatus)| {
        let numbers = [source.received, source.accepted, source.acknowledged, source.rejected, source.duplicates]
            .map(|n| n.to_string());
        let mut cells = vec![name.clone(), source.r#type.clone(), source.state.clone()];
        cells.extend(numbers);
        cells.push(source.last_at.clone().unwrap_or_else(|| "-".to_owned()));
        cells
    };
    let rows: Vec<Vec<String>> = status.sources.iter().map(cells).collect();
    page.grid(&head, &rows);
    for (name, source) in &status.sources {
        if let Some(error) = &source.last_error {
            page.row(&format!("last error of {name}"), &format!(" {error}"));
        }
        for alarm in &source.alarms {
            page.row(&format!("ALARM of {name}"), &format!(" {alarm}"));
        }
    }
}

fn outbox(page: &mut Page, status: &Status) {
    let outbox = &status.outbox;
    page.title("outbox");
    page.row("state", or_unknown(&outbox.state));
    page.row("waiting", &format!("{} readings, the oldest for {:.0} s", outbox.records, outbox.oldest_age_seconds));
    let percent = (100 * outbox.bytes).checked_div(outbox.bytes_max).unwrap_or(0);
    page.row(
        "disk",
        &format!("{} of {} ({percent}%), {} when full", bytes(outbox.bytes), bytes(outbox.bytes_max), outbox.when_full),
    );
    page.row("sequence", &format!("next {}, durable {}, committed {}", outbox.next, outbox.durable, outbox.committed));
    page.row("sync", &sync(outbox));
    if let Some(daily) = outbox.daily_write_bytes {
        let times =
            outbox.written_per_payload_byte.map(|n| format!(", {n:.1} per byte of payload")).unwrap_or_default();
        let basis = outbox.daily_write_basis.as_deref().unwrap_or("unknown basis");
        page.row("wear", &format!("about {} a day to the medium{times} ({basis})", bytes(daily)));
    }
    if outbox.dropped > 0 {
        page.row("dropped", &outbox.dropped.to_string());
    }
    if outbox.damaged > 0 {
        page.row("set aside as damaged", &outbox.damaged.to_string());
    }
}

fn sync(outbox: &OutboxStatus) -> String {
    let policy = or_unknown(&outbox.sync);
    if outbox.loss_window_seconds > 0.0 {
        let window = outbox.loss_window_seconds;
        return format!("{policy}; a power cut may take what serial lines and QoS 0 brought in the last {window} s");
    }
    policy.to_owned()
}

fn delivery(page: &mut Page, status: &Status) {
    let delivery = &status.delivery;
    page.title("delivery");
    page.row("phase", &format!("{} since {}", or_unknown(&delivery.phase), delivery.since));
    page.row("committed", &format!("{} records in {} transactions", delivery.records, delivery.transactions));
    page.row("last commit", delivery.last_commit_at.as_deref().unwrap_or("-"));
    if let Some(error) = &delivery.last_error {
        page.row("last error", error);
    }
    for alarm in &delivery.alarms {
        page.row("ALARM", alarm);
    }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

fn bytes(number: u64) -> String {
    bytesize::ByteSize(number).display().iec().to_string()
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn title(&mut self, title: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.text, "{gap}{title}");
    }

    fn row(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.text, "{}", format!("  {name:<14}{value}").trim_end());
    }

    fn grid(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let width = |at: usize| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain([head[at].len()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..head.len()).map(width).collect();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let _ = writeln!(self.text, "  {}", padded.join("  ").trim_end());
        };
        line(&mut head.iter().copied());
        for row in rows {
            line(&mut row.iter().map(String::as_str));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let mut status = Status::default();
        status.agent.id = "gw-1".to_owned();
        status.outbox.records = 12;
        status.outbox.bytes = 1 << 20;
        status.outbox.bytes_max = 4 << 20;
        status.outbox.state = "ok".to_owned();
        status.delivery.phase = "idle".to_owned();
        let source = |state: &str| SourceStatus { state: state.to_owned(), received: 3, ..SourceStatus::default() };
        status.sources.insert("plant".to_owned(), source("up"));
        status.sources.insert("a-longer-name".to_owned(), source("down"));
        status
    }

    #[test]
    fn the_summary_is_one_line_and_alarms_stand_in_it() {
        let mut status = status();
        assert_eq!(summary(&status), "delivery idle, 12 waiting, 1 of 2 sources up");
        status.outbox.state = "full".to_owned();
        status.delivery.alarms = vec!["ledger lost".to_owned(), "clone".to_owned()];
        let expected = "delivery idle, 12 waiting, 1 of 2 sources up, outbox full, ALARM: ledger lost (and 1 more)";
        assert_eq!(summary(&status), expected);
    }

    #[test]
    fn the_loss_window_and_the_wear_stand_with_what_they_rest_on() {
        let mut status = status();
        status.outbox.sync = "batch".to_owned();
        let page = table(&status);
        assert!(page.contains("sync          batch\n") && !page.contains("wear"), "{page}");
        status.outbox.sync = "interval:5s".to_owned();
        status.outbox.loss_window_seconds = 5.0;
        status.outbox.daily_write_bytes = Some(3 << 30);
        status.outbox.written_per_payload_byte = Some(2.5);
        status.outbox.daily_write_basis = Some("rate of the last 60 s".to_owned());
        let page = table(&status);
        assert!(
            page.contains("interval:5s; a power cut may take what serial lines and QoS 0 brought in the last 5 s"),
            "{page}"
        );
        let wear = "about 3.0 GiB a day to the medium, 2.5 per byte of payload (rate of the last 60 s)";
        assert!(page.contains(wear), "{page}");
    }

    #[test]
    fn columns_stand_under_their_heads() {
        let page = table(&status());
        let lines: Vec<_> = page.lines().collect();
        let head = lines.iter().position(|line| line.contains("received")).unwrap();
        let column = lines[head].find("state").unwrap();
        assert_eq!(&lines[head + 1][column..column + 4], "down");
        assert_eq!(&lines[head + 2][column..column + 2], "up");
        assert!(page.contains("1.0 MiB of 4.0 MiB (25%)"), "{page}");
    }
}
