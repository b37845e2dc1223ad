//! Stands between the program and a running daemon: passes on what is asked, answers itself, or hangs up in the middle.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What becomes of a question.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Play {
    Pass,
    /// 503 with this text, as a daemon that is busy says.
    Busy(&'static str),
    /// The daemon answers, and so many bytes of that arrive.
    Cut(usize),
}

/// Takes the place of the control socket. Gone when it is dropped.
pub(crate) struct Relay {
    socket: PathBuf,
    aside: PathBuf,
    play: Arc<Mutex<Option<Play>>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Stands before the daemon of this state directory.
    pub(crate) fn before(state_dir: &Path) -> Self {
        let (socket, aside) = (state_dir.join("control.sock"), state_dir.join("aside.sock"));
        std::fs::rename(&socket, &aside).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let play = Arc::new(Mutex::new(Some(Play::Pass)));
        let (rule, real) = (play.clone(), aside.clone());
        let serve = move || {
            for stream in listener.incoming() {
                let Some(play) = *rule.lock().unwrap() else { return };
                serve(stream.unwrap(), &real, play);
            }
        };
        let thread = std::thread::Builder::new().spawn(serve).unwrap();
        Self { socket, aside, play, thread: Some(thread) }
    }

    /// From now on, for everything but `/status`.
    pub(crate) fn set(&self, play: Play) {
        *self.play.lock().unwrap() = Some(play);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        *self.play.lock().unwrap() = None;
        drop(UnixStream::connect(&self.socket));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::rename(&self.aside, &self.socket);
    }
}

fn serve(mut client: UnixStream, real: &Path, play: Play) {
    let mut question = BufReader::new(client.try_clone().unwrap());
    let (mut head, mut body_len) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if question.read_line(&mut line).unwrap() == 0 {
            return;
        }
        if let Some(len) = line.strip_prefix("Content-Length: ") {
            body_len = len.trim().parse().unwrap();
        }
        head += &line;
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; body_len];
    question.read_exact(&mut body).unwrap();
    let play = if head.starts_with("GET /status ") { Play::Pass } else { play };
    let most = match play {
        Play::Busy(text) => {
            let _ = write!(client, "HTTP/1.0 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            return;
        }
        Play::Cut(bytes) => bytes,
        Play::Pass => usize::MAX,
    };
    let mut daemon = UnixStream::connect(real).unwrap();
    daemon.write_all(head.as_bytes()).unwrap();
    daemon.write_all(&body).unwrap();
    // Whoever asked may be gone before he has it all.
    let _ = std::io::copy(&mut daemon.take(most as u64), &mut client);
}
