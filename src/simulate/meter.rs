//! A simulated smart meter on a pseudo terminal: one JSON line per reading, at its own pace, whether or not anyone reads.
//!
//! It behaves like a meter on a wire: it never repeats and never waits. While no one has the port open it does not write at
//! all and counts the reading as unheard, and it throws away what a reader left unread (a pseudo terminal would keep some
//! 17 KB for the next one, a wire keeps nothing).
//! A line that the port's buffer does not take is lost whole, never cut; what of it went in is finished later.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

use super::payload::Device;
use super::{Event, Observer};
use crate::clock;

/// The meter's end of the line.
#[derive(Debug)]
pub struct Meter {
    master: OwnedFd,
    path: PathBuf,
    link: Option<PathBuf>,
}

/// How the meter speaks.
#[derive(Debug, Clone)]
pub struct MeterOptions {
    /// Device id.
    pub device: String,
    /// Readings per second, above 0.
    pub rate: f64,
    /// Readings in all. `None`: until stopped.
    pub count: Option<u64>,
    /// The same seed gives the same values.
    pub seed: u64,
}

impl Meter {
    /// Makes the pseudo terminal; `link` becomes a symbolic link to it and goes away with the meter. An existing link is
    /// replaced, any other file is an error.
    pub fn open(link: Option<&Path>) -> io::Result<Self> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let path = PathBuf::from(name.into_string().map_err(io::Error::other)?);
        // No echo and no line editing; and a port that was opened and closed once reports from then on whether it is open.
        let slave = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        let mut termios = tcgetattr(&slave)?;
        termios.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &termios)?;
        drop(slave);
        if let Some(link) = link {
            replace_link(&path, link)?;
        }
        Ok(Self { master, path, link: link.map(Path::to_owned) })
    }

    /// The path to put into a configuration.
    pub fn path(&self) -> &Path {
        self.link.as_deref().unwrap_or(&self.path)
    }

    /// Speaks until the count is reached or `stop` is set. Call it on a thread of its own.
    pub fn run(&self, options: &MeterOptions, observer: &dyn Observer, stop: &AtomicBool) -> io::Result<()> {
        let device = Device::new(options.device.clone(), options.seed);
        let pause = Duration::from_secs_f64(1.0 / options.rate);
        let mut due = Instant::now();
        let mut was_open = false;
        let mut rest = Vec::new();
        for counter in 1..=options.count.unwrap_or(u64::MAX) {
            if !sleep_until(due, stop) {
                return Ok(());
            }
            due += pause;
            let payload = device.payload(counter, clock::now().wall_ns);
            let name = device.name();
            observer.on(Event::Issued { device: name, counter, payload: payload.as_bytes() });
            let open = self.is_open()?;
            if !open {
                rest.clear();
                if was_open {
                    self.discard_unread()?;
                }
            }
            if open && self.write_line(&payload, &mut rest)? {
                observer.on(Event::Written { device: name, counter, first: !was_open });
                was_open = true;
            } else {
                observer.on(Event::Unheard { device: name, counter });
                was_open = was_open && open;
            }
        }
        self.write_rest(&mut rest)
    }

    /// Whether someone has the port open.
    fn is_open(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.master, PollFlags::OUT)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(!fds[0].revents().contains(PollFlags::HUP))
    }

    /// What was written and not read goes away with the reader, as it does on a real port.
    fn discard_unread(&self) -> io::Result<()> {
        match rustix::fs::open(&self.path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(port) => Ok(tcflush(&port, QueueSelector::IFlush)?),
            // The next reader was quicker: it has the port for itself.
            Err(rustix::io::Errno::BUSY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the port takes; what is left of a line that has begun stays in `rest` and goes out before the next one.
    /// False: the port took nothing of this line.
    fn write_line(&self, payload: &str, rest: &mut Vec<u8>) -> io::Result<bool> {
        self.write_rest(rest)?;
        if !rest.is_empty() {
            return Ok(false);
        }
        rest.extend_from_slice(payload.as_bytes());
        rest.push(b'\n');
        let whole = rest.len();
        self.write_rest(rest)?;
        if rest.len() == whole {
            rest.clear();
            return Ok(false);
        }
        Ok(true)
    }

    fn write_rest(&self, rest: &mut Vec<u8>) -> io::Result<()> {
        while !rest.is_empty() {
            match rustix::io::write(&self.master, rest) {
                Ok(written) => drop(rest.drain(..written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            if std::fs::read_link(link).is_ok_and(|target| target == self.path) {
                let _ = std::fs::remove_file(link);
            }
        }
    }
}

fn replace_link(target: &Path, link: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(link) {
        Ok(found) if found.file_type().is_symlink() => std::fs::remove_file(link)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no link", link.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::os::unix::fs::symlink(target, link)
}

/// False: told to stop.
fn sleep_until(due: Instant, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let rest = due.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return true;
        }
        std::thread::sleep(rest.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::payload::Identity;
    use std::io::{BufRead, BufReader};
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl Observer for Log {
        fn on(&self, event: Event<'_>) {
            let line = match event {
                Event::Written { counter, first, .. } => {
                    format!("written {counter}{}", if first { " first" } else { "" })
                }
                Event::Unheard { counter, .. } => format!("unheard {counter}"),
                _ => return,
            };
            self.0.lock().unwrap().push(line);
        }
    }

    fn options(count: u64) -> MeterOptions {
        MeterOptions { device: "meter-1".to_owned(), rate: 1000.0, count: Some(count), seed: 1 }
    }

    #[test]
    fn what_is_written_to_an_open_port_arrives_whole_and_what_no_one_hears_is_told() {
        let meter = Meter::open(None).unwrap();
        let (log, stop) = (Log::default(), AtomicBool::new(false));
        meter.run(&options(2), &log, &stop).unwrap();

        let port = std::fs::File::open(meter.path()).unwrap();
        meter.run(&options(2), &log, &stop).unwrap();
        let counters: Vec<_> = BufReader::new(&port)
            .lines()
            .take(2)
            .map(|line| Identity::of(line.unwrap().as_bytes()).unwrap().counter)
            .collect();
        drop(port);
        meter.run(&options(1), &log, &stop).unwrap();

        assert_eq!(counters, [1, 2]);
        let told = log.0.lock().unwrap().clone();
        assert_eq!(told, ["unheard 1", "unheard 2", "written 1 first", "written 2", "unheard 1"]);
    }

    #[test]
    fn a_reader_that_does_not_read_loses_whole_lines_and_never_stalls_the_meter() {
        let meter = Meter::open(None).unwrap();
        let (log, stop) = (Log::default(), AtomicBool::new(false));
        let _port = std::fs::File::open(meter.path()).unwrap();
        meter.run(&MeterOptions { rate: 1e6, ..options(2000) }, &log, &stop).unwrap();
        let told = log.0.lock().unwrap();
        assert_eq!(told.len(), 2000);
        assert!(told.iter().any(|line| line.starts_with("unheard")));
    }

    #[test]
    fn what_a_reader_left_unread_is_not_kept_for_the_next_one() {
        let meter = Meter::open(None).unwrap();
        let (log, stop) = (Log::default(), AtomicBool::new(false));
        let slow = MeterOptions { rate: 50.0, ..options(100_000) };
        std::thread::scope(|scope| {
            let first = std::fs::File::open(meter.path()).unwrap();
            let thread = scope.spawn(|| meter.run(&slow, &log, &stop));
            let wait_for = |text: &str| {
                while !log.0.lock().unwrap().iter().any(|line| line.starts_with(text)) && !thread.is_finished() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            wait_for("written");
            drop(first);
            wait_for("unheard");
            let second = std::fs::File::open(meter.path()).unwrap();
            let mut line = String::new();
            BufReader::new(&second).read_line(&mut line).unwrap();
            let heard = Identity::of(line.as_bytes()).unwrap().counter;
            // The line may be read before the meter has told that it was written; the next one is told after it.
            wait_for(&format!("written {}", heard + 1));
            stop.store(true, Ordering::Relaxed);
            assert!(log.0.lock().unwrap().contains(&format!("written {heard} first")), "{heard}");
        });
    }

    #[test]
    fn a_link_names_the_port_and_goes_away_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("meter");
        let meter = Meter::open(Some(&link)).unwrap();
        assert_eq!(meter.path(), link);
        drop(Meter::open(Some(&link)).unwrap());
        assert!(!link.exists(), "the newer meter took the link over and removed it");
        drop(meter);
        std::fs::write(&link, "a file").unwrap();
        assert!(Meter::open(Some(&link)).is_err());
    }
}
