//! Logging: journald when standard error is connected to it, else standard error with time and target.
//!
//! The filter (`agent.log`) can be changed while running. Chatty targets are limited to [`LINES_MAX`] lines in
//! [`WINDOW`]; one line then says how many were left out, so that silence is never mistaken for health.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use env_filter::Filter;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Targets that repeat themselves for as long as a peer is away (librdkafka: the same lines many times a minute).
const CHATTY: [&str; 3] = ["fieldpost::kafka", "librdkafka", "rdkafka"];
/// Lines of one chatty target in a window.
pub const LINES_MAX: u32 = 20;
/// Length of a window.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The running logger. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    shared: Arc<Shared>,
}

struct Shared {
    output: Box<dyn Log>,
    filter: RwLock<Filter>,
    windows: [Mutex<Window>; CHATTY.len()],
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Not a filter.
    #[error("agent.log: {0}")]
    Filter(String),
    /// Called twice.
    #[error("there is a logger already")]
    Twice,
}

impl Telemetry {
    /// Installs the logger of the process and the panic hook.
    pub fn start(filter: &str) -> Result<Self, TelemetryError> {
        let (output, trouble) = match journal() {
            Some(Ok(journal)) => (journal, None),
            Some(Err(error)) => (stderr(), Some(error)),
            None => (stderr(), None),
        };
        let filter = parse(filter)?;
        let level = filter.filter();
        let shared = Shared { output, filter: RwLock::new(filter), windows: Default::default() };
        let telemetry = Self { shared: Arc::new(shared) };
        log::set_boxed_logger(Box::new(telemetry.clone())).map_err(|_| TelemetryError::Twice)?;
        log::set_max_level(level);
        log_panics();
        if let Some(error) = trouble {
            log::warn!("cannot log to the journal, standard error is used instead: {error}");
        }
        Ok(telemetry)
    }

    /// Another filter from now on.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        let filter = parse(filter)?;
        log::set_max_level(filter.filter());
        *self.shared.filter.write().unwrap_or_else(PoisonError::into_inner) = filter;
        Ok(())
    }

    /// Says what chatty targets left out; call it every second or so.
    pub fn tick(&self) {
        for (target, window) in CHATTY.iter().zip(&self.shared.windows) {
            let left_out = window.lock().unwrap_or_else(PoisonError::into_inner).end(Instant::now());
            self.say_left_out(target, left_out);
        }
    }

    fn say_left_out(&self, target: &str, left_out: u32) {
        if left_out > 0 {
            let seconds = WINDOW.as_secs();
            let text = format!("{left_out} more lines like these within {seconds} s were left out");
            let mut record = Record::builder();
            record.level(Level::Warn).target(target);
            self.shared.output.log(&record.args(format_args!("{text}")).build());
        }
    }
}

impl Log for Telemetry {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.shared.filter.read().unwrap_or_else(PoisonError::into_inner).enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.shared.filter.read().unwrap_or_else(PoisonError::into_inner).matches(record) {
            return;
        }
        if let Some(at) = CHATTY.iter().position(|target| record.target().starts_with(target)) {
            let verdict = self.shared.windows[at].lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
            match verdict {
                Verdict::Write { left_out } => self.say_left_out(CHATTY[at], left_out),
                Verdict::LeaveOut => return,
            }
        }
        self.shared.output.log(record);
    }

    fn flush(&self) {
        self.shared.output.flush();
    }
}

/// The journal, when standard error is connected to it.
fn journal() -> Option<std::io::Result<Box<dyn Log>>> {
    systemd_journal_logger::connected_to_journal().then(|| {
        let journal = systemd_journal_logger::JournalLog::new()?;
        let version = [("VERSION", env!("CARGO_PKG_VERSION"))];
        let journal = journal.with_extra_fields(version).with_syslog_identifier("fieldpost".to_owned());
        Ok(Box::new(journal) as Box<dyn Log>)
    })
}

fn stderr() -> Box<dyn Log> {
    Box::new(env_logger::Builder::new().filter_level(LevelFilter::Trace).format_timestamp_millis().build())
}

fn parse(filter: &str) -> Result<Filter, TelemetryError> {
    let mut builder = env_filter::Builder::new();
    builder.try_parse(filter).map_err(|error| TelemetryError::Filter(error.to_string()))?;
    Ok(builder.build())
}

/// A panic is a bug; the line names the thread, since each thread is one part of the daemon.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let place = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        let payload = panic.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no text");
        log::error!(target: "fieldpost::panic", "thread {name} panicked at {place}: {text}");
    }));
}

/// Lines of one chatty target within the current window.
#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    written: u32,
    left_out: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Write it, after saying how many the last window left out.
    Write {
        left_out: u32,
    },
    LeaveOut,
}

impl Window {
    fn admit(&mut self, now: Instant) -> Verdict {
        let left_out = self.end(now);
        self.since.get_or_insert(now);
        if self.written < LINES_MAX {
            self.written += 1;
            Verdict::Write { left_out }
        } else {
            self.left_out += 1;
            Verdict::LeaveOut
        }
    }

    /// Ends the window if its time is over; how many lines it left out.
    fn end(&mut self, now: Instant) -> u32 {
        match self.since {
            Some(since) if now.duration_since(since) >= WINDOW => std::mem::take(self).left_out,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_target_is_cut_off_and_what_was_left_out_is_told_once() {
        let (mut window, start) = (Window::default(), Instant::now());
        for _ in 0..LINES_MAX {
            assert_eq!(window.admit(start), Verdict::Write { left_out: 0 });
        }
        assert_eq!(window.admit(start), Verdict::LeaveOut);
        assert_eq!(window.admit(start), Verdict::LeaveOut);
        assert_eq!(window.end(start + WINDOW / 2), 0);
        assert_eq!(window.admit(start + WINDOW), Verdict::Write { left_out: 2 });
        assert_eq!(window.end(start + WINDOW * 2), 0);
    }
}
