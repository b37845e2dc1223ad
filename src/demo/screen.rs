//! What the watcher sees, on standard error: one screen that is drawn over itself on a terminal, plain lines elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The screen is drawn this often, a plain line is written this often.
const REDRAW: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The state of things, as far as it is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) devices: String,
    pub(super) issued: u64,
    pub(super) acknowledged: u64,
    pub(super) mosquitto: String,
    pub(super) daemon: String,
    /// Readings that wait, bytes on disk, age of the oldest in seconds; `None`: the daemon does not answer.
    pub(super) outbox: Option<(u64, u64, f64)>,
    pub(super) kafka: String,
    pub(super) delivered: u64,
}

impl View {
    fn waiting(&self) -> String {
        match self.outbox {
            Some((records, bytes, oldest)) => {
                let bytes = bytes as f64 / f64::from(1 << 20);
                format!("{records} readings wait, {bytes:.1} MiB on disk, the oldest is {oldest:.0} s old")
            }
            None => "no answer (what is on disk stays there)".to_owned(),
        }
    }

    fn lines(&self) -> Vec<String> {
        vec![
            format!("  devices    {}", self.devices),
            format!("             {} issued, {} acknowledged by the MQTT broker", self.issued, self.acknowledged),
            format!("  mosquitto  {}", self.mosquitto),
            format!("  fieldpost  {}", self.daemon),
            format!("  outbox     {}", self.waiting()),
            format!("  Kafka      {}", self.kafka),
            format!("  consumer   {} records seen, read_committed", self.delivered),
        ]
    }

    fn line(&self) -> String {
        let waiting = self.outbox.map_or_else(|| "?".to_owned(), |(records, ..)| records.to_string());
        let Self { issued, acknowledged, delivered, .. } = self;
        format!("issued {issued}, acknowledged {acknowledged}, waiting {waiting}, delivered {delivered}")
    }
}

/// Draws.
pub(super) struct Screen {
    terminal: bool,
    begin: Instant,
    act: String,
    act_ends: Option<Instant>,
    story: Vec<String>,
    /// The newest state; `None` before the first act.
    view: Option<View>,
    drawn_lines: usize,
    drawn_at: Option<Instant>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            begin: Instant::now(),
            act: String::new(),
            act_ends: None,
            story: Vec::new(),
            view: None,
            drawn_lines: 0,
            drawn_at: None,
        }
    }

    /// A new act begins; `length` if it is known beforehand.
    pub(super) fn act(&mut self, title: &str, length: Option<Duration>) {
        title.clone_into(&mut self.act);
        self.act_ends = length.map(|length| Instant::now() + length);
        self.tell(title);
    }

    /// Something happened.
    pub(super) fn tell(&mut self, text: &str) {
        let line = format!("{} {text}", self.clock());
        if self.terminal {
            self.story.push(line);
            self.draw();
        } else {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn clock(&self) -> String {
        let seconds = self.begin.elapsed().as_secs();
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }

    /// Shows the state of things, if it is time to.
    pub(super) fn show(&mut self, view: &View) {
        let pause = if self.terminal { REDRAW } else { LINE_EVERY };
        if self.drawn_at.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        self.drawn_at = Some(Instant::now());
        if self.terminal {
            self.view = Some(view.clone());
            self.draw();
        } else if view.issued > 0 {
            let _ = writeln!(std::io::stderr(), "{}   {}", self.clock(), view.line());
        }
    }

    fn draw(&mut self) {
        let size = rustix::termios::tcgetwinsize(std::io::stderr());
        let (width, height) = size.map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        let lines = self.frame(height.saturating_sub(1).max(14));
        let mut text = String::new();
        if self.drawn_lines > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn_lines);
        }
        for line in &lines {
            let cut: String = line.chars().take(width.max(20) - 1).collect();
            let _ = write!(text, "\r\x1b[K{cut}\n");
        }
        text.push_str("\x1b[J");
        self.drawn_lines = lines.len();
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    fn frame(&self, height: usize) -> Vec<String> {
        let left = self.act_ends.map(|end| end.saturating_duration_since(Instant::now()).as_secs());
        let left = left.map_or_else(String::new, |seconds| format!(" ({seconds} s left)"));
        let mut lines = vec![format!("Fieldpost demo  {}   {}{left}", self.clock(), self.act), String::new()];
        if let Some(view) = &self.view {
            lines.extend(view.lines());
            lines.push(String::new());
        }
        let room = height.saturating_sub(lines.len());
        lines.extend(self.story[self.story.len().saturating_sub(room)..].iter().map(|line| format!("  {line}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_the_terminal_and_keeps_the_newest_of_the_story() {
        let story = (0..50).map(|number| format!("event {number}")).collect();
        let screen = Screen { story, view: Some(View::default()), ..Screen::new() };
        let lines = screen.frame(20);
        assert_eq!(lines.len(), 20);
        assert!(lines[19].ends_with("event 49"), "{}", lines[19]);
    }
}
