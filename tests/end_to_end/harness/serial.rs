//! A serial device on a pseudo terminal, found through a symbolic link as under `/dev/serial/by-id`. It can be unplugged and
//! plugged in again.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

pub struct SerialLine {
    link: PathBuf,
    plugged: Option<Plugged>,
    times_plugged: u64,
}

struct Plugged {
    ours: OwnedFd,
    /// Kept open: with no one on the other end the kernel would throw away what was written.
    _theirs: OwnedFd,
}

impl SerialLine {
    /// A device that is plugged in, at the path `link`.
    pub fn new(link: &Path) -> Self {
        let mut line = Self { link: link.to_owned(), plugged: None, times_plugged: 0 };
        line.plug_in();
        line
    }

    pub fn path(&self) -> &Path {
        &self.link
    }

    pub fn times_plugged(&self) -> u64 {
        self.times_plugged
    }

    /// Gives the device back, as another terminal behind the same link.
    pub fn plug_in(&mut self) {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let theirs = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        // Until the daemon sets the line up, nothing may be echoed or held back for a line end.
        let mut settings = tcgetattr(&theirs).unwrap();
        settings.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &settings).unwrap();
        std::os::unix::fs::symlink(&name, &self.link).unwrap();
        self.times_plugged += 1;
        self.plugged = Some(Plugged { ours, _theirs: theirs });
    }

    /// Takes the device away: the link goes, the daemon's end hangs up.
    pub fn unplug(&mut self) {
        std::fs::remove_file(&self.link).unwrap();
        self.plugged = None;
    }

    /// Sends bytes; waits while the terminal's buffer (4 KiB) is full. `false` if nothing is plugged in.
    pub fn write(&self, mut bytes: &[u8]) -> bool {
        let Some(plugged) = &self.plugged else { return false };
        while !bytes.is_empty() {
            match rustix::io::write(&plugged.ours, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("writing to a pseudo terminal: {error}"),
            }
        }
        true
    }
}
