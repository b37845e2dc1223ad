//! Asks the daemon over its control socket. HTTP/1.0, so that an answer is the bytes up to the end of the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::super::{Exit, Failure};
use super::text::line;
use crate::outbox::look::Line;
use crate::outbox::{Change, Inspection, Purged, Replayed, Step};

/// A card may stall for long: while a generation is read, or in a sync.
const PATIENCE: Duration = Duration::from_secs(180);
/// No line is longer, in bytes: a record of 64 MiB as Base64 is far below.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// No line of a head is longer, and no text of an error.
const TEXT_BYTES_MAX: u64 = 1 << 16;

/// A daemon that answers.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: PathBuf,
}

/// An answer whose head is read.
struct Answer {
    body: BufReader<UnixStream>,
    /// Of the body in bytes, if the daemon said so.
    len: Option<u64>,
}

impl Daemon {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn inspect(&self) -> Result<Inspection, Failure> {
        self.value(self.get("/outbox/inspect", &[])?)
    }

    /// One step of a purge.
    pub(super) fn purge(&self, change: &Change) -> Result<Step<Purged>, Failure> {
        self.value(self.post("/outbox/purge", change)?)
    }

    /// One step of a replay.
    pub(super) fn replay(&self, change: &Change) -> Result<Step<Replayed>, Failure> {
        self.value(self.post("/outbox/replay", change)?)
    }

    /// Hands each line of an answer on. Whoever takes them says when the answer was whole.
    pub(super) fn lines(
        &self,
        path: &str,
        pairs: &[(&str, String)],
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut answer = self.get(path, pairs)?.body;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let len = answer.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
            if len.map_err(|error| self.broken(&error))? == 0 {
                return Ok(());
            }
            let text = std::str::from_utf8(&bytes).map_err(|error| self.broken(&io::Error::other(error)))?;
            let text = text.strip_suffix('\n').ok_or_else(|| self.broken(&io::ErrorKind::UnexpectedEof.into()))?;
            if let Ok(Some(Line::Error { fault, text })) = Line::read(text) {
                return Err(Failure::new(fault.into(), format!("the daemon says: {}", line(&text))));
            }
            take(text)?;
        }
    }

    fn get(&self, path: &str, pairs: &[(&str, String)]) -> Result<Answer, Failure> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs);
        let query = query.finish();
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        self.ask(&format!("GET {target} HTTP/1.0\r\nHost: fieldpost\r\n\r\n"))
    }

    fn post(&self, path: &str, change: &Change) -> Result<Answer, Failure> {
        let body = serde_json::to_string(change).map_err(|error| self.broken(&error.into()))?;
        let head = format!("POST {path} HTTP/1.0\r\nHost: fieldpost\r\nContent-Type: application/json\r\n");
        self.ask(&format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// The answer, if it is not a refusal.
    fn ask(&self, question: &str) -> Result<Answer, Failure> {
        let (code, answer) = self.exchange(question).map_err(|error| self.broken(&error))?;
        let exit = match code {
            200 => return Ok(answer),
            404 => {
                let text = "the daemon that runs is of a version that cannot be asked this: restart it, or stop it and try again";
                return Err(Failure::new(Exit::Unavailable, text));
            }
            400 | 422 => Exit::Usage,
            500 => Exit::InputOutput,
            501 => Exit::Configuration,
            503 => Exit::TryAgain,
            _ => Exit::Failed,
        };
        let mut text = String::new();
        answer.body.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(|error| self.broken(&error))?;
        Err(Failure::new(exit, format!("the daemon says: {}", line(text.trim()))))
    }

    fn exchange(&self, question: &str) -> io::Result<(u16, Answer)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(question.as_bytes())?;
        let mut body = BufReader::with_capacity(64 * 1024, stream);
        let first = read_line(&mut body)?;
        let mut len = None;
        loop {
            let line = read_line(&mut body)?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                len = text.trim().parse().ok();
            }
        }
        let code = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| io::Error::other("its answer is none of a daemon"))?;
        Ok((code, Answer { body, len }))
    }

    /// The one value of an answer. One that is cut short is none.
    fn value<T: DeserializeOwned>(&self, answer: Answer) -> Result<T, Failure> {
        let mut bytes = Vec::new();
        let most = answer.len.unwrap_or(LINE_BYTES_MAX);
        answer.body.take(most).read_to_end(&mut bytes).map_err(|error| self.broken(&error))?;
        if answer.len.is_some_and(|len| len != bytes.len() as u64) {
            return Err(self.broken(&io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.broken(&io::Error::other(error)))
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let why = match error.kind() {
            io::ErrorKind::UnexpectedEof => "it hung up in the middle".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(Exit::Unavailable, format!("the daemon at {} does not answer: {why}", self.socket.display()))
    }
}

/// A line of the head, without its end.
fn read_line(answer: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    answer.by_ref().take(TEXT_BYTES_MAX).read_line(&mut line)?;
    let whole = line.strip_suffix('\n').ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(whole.trim_end().to_owned())
}
