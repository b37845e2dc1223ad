//! Asks the daemon over its control socket. HTTP/1.0, so that an answer is the bytes up to the end of the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::super::{Exit, Failure};
use crate::outbox::Inspection;
use crate::outbox::look::Line;

/// A card may stall for long while a generation is read.
const PATIENCE: Duration = Duration::from_secs(180);
/// No line is longer, in bytes: a record of 64 MiB as Base64 is far below.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// A daemon that answers.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn inspect(&self) -> Result<Inspection, Failure> {
        let mut text = String::new();
        self.get("/outbox/inspect", &[])?.read_to_string(&mut text).map_err(|error| self.broken(&error))?;
        serde_json::from_str(&text).map_err(|error| self.broken(&io::Error::other(error)))
    }

    /// Hands each line of an answer on. Whoever takes them says when the answer was whole.
    pub(super) fn lines(
        &self,
        path: &str,
        pairs: &[(&str, String)],
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut answer = self.get(path, pairs)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let len = answer.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if len.map_err(|error| self.broken(&error))? == 0 {
                return Ok(());
            }
            let text = std::str::from_utf8(&line).map_err(|error| self.broken(&io::Error::other(error)))?;
            let text = text.strip_suffix('\n').ok_or_else(|| self.broken(&io::ErrorKind::UnexpectedEof.into()))?;
            if let Ok(Some(Line::Error(text))) = Line::read(text) {
                return Err(Failure::new(Exit::InputOutput, format!("the daemon says: {text}")));
            }
            take(text)?;
        }
    }

    fn get(&self, path: &str, pairs: &[(&str, String)]) -> Result<BufReader<UnixStream>, Failure> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(pairs);
        let query = query.finish();
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let mut answer = self.exchange(&target).map_err(|error| self.broken(&error))?;
        let (code, mut line) = (read_line(&mut answer), String::from("-"));
        while !line.is_empty() {
            line = read_line(&mut answer).map_err(|error| self.broken(&error))?;
        }
        let code = code.map_err(|error| self.broken(&error))?;
        match code.split(' ').nth(1) {
            Some("200") => Ok(answer),
            Some("404") => Err(Failure::new(
                Exit::Unavailable,
                "the daemon that runs is of a version that cannot be asked this: restart it, or stop it and try again",
            )),
            code => {
                let mut text = String::new();
                answer.take(1 << 16).read_to_string(&mut text).map_err(|error| self.broken(&error))?;
                let exit = if code == Some("503") { Exit::TryAgain } else { Exit::Failed };
                Err(Failure::new(exit, format!("the daemon says: {}", text.trim())))
            }
        }
    }

    fn exchange(&self, target: &str) -> io::Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET {target} HTTP/1.0\r\nHost: fieldpost\r\n\r\n")?;
        Ok(BufReader::with_capacity(64 * 1024, stream))
    }

    fn broken(&self, error: &io::Error) -> Failure {
        Failure::new(Exit::Unavailable, format!("the daemon at {} does not answer: {error}", self.socket.display()))
    }
}

/// A line of the head, without its end.
fn read_line(answer: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    answer.by_ref().take(1 << 16).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
