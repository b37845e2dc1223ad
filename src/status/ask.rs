//! Asks a running daemon for its status, over its control socket or its port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::Status;

/// A daemon that is alive answers at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// No status is larger, in bytes.
const ANSWER_MAX: u64 = 16 << 20;

/// `/status` of the daemon that listens at this socket.
pub fn ask(path: &Path) -> io::Result<Status> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    exchange(stream)
}

/// `/status` of the daemon on this machine that has `http.listen` at this port.
pub fn ask_port(port: u16) -> io::Result<Status> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    exchange(stream)
}

fn exchange(mut stream: impl Read + Write) -> io::Result<Status> {
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: fieldpost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let split = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let Some(split) = split.filter(|_| answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200"))
    else {
        return Err(io::Error::other("the answer is not a status"));
    };
    serde_json::from_slice(&answer[split + 4..]).map_err(io::Error::other)
}
