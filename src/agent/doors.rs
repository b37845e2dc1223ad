//! The two ways in: HTTP and the control socket.
//!
//! They are taken before the sources start, so that a daemon that cannot listen takes no readings, and served after that: who
//! asks in between waits, and nobody is told "ready" while there are no sources yet.

use std::future::Future as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::health::{self, Health};
use super::{StartError, change, look};
use crate::config::Config;

/// Name of the socket in its directory.
pub const SOCKET: &str = "control.sock";

/// An HTTP connection that says nothing for so long is closed: else the 64 that hung up unseen would shut the door. Longer
/// than scrapers usually wait. The control socket has none: a verification may take minutes, and its callers are known.
const HTTP_IDLE_MAX: Duration = Duration::from_secs(75);

/// Connections of each way in. Without a bound they could take the file handles that the outbox needs.
const CONNECTIONS_MAX: usize = 64;

/// Taken, not yet served: callers wait in the kernel's queue.
#[derive(Debug)]
pub struct Doors {
    http: Option<TcpListener>,
    socket: Option<(UnixListener, PathBuf)>,
}

impl Doors {
    /// Takes address and path. An HTTP address that is taken is an error; a control socket that cannot be made is a warning.
    pub async fn take(config: &Config) -> Result<Self, StartError> {
        let address = &config.http.listen;
        let http = match address.as_str() {
            "off" => None,
            _ => Some(TcpListener::bind(address).await.map_err(listen_error(address))?),
        };
        let path = socket_path(&config.agent.state_dir);
        let socket = listen_on(&path).map_err(|error| {
            let path = path.display();
            log::warn!("no control socket at {path}: {error}; `fieldpost status` will not find this daemon");
        });
        Ok(Self { http, socket: socket.ok().map(|listener| (listener, path)) })
    }

    /// Answers from now on.
    pub fn serve(self, health: &Health) -> Served {
        let mut servers = Vec::new();
        if let Some(listener) = self.http {
            let serve = axum::serve(Bounded::new(listener, Some(HTTP_IDLE_MAX)), health::router(health.clone()));
            servers.push(tokio::spawn(async move { report("HTTP", serve.await) }));
        }
        let path = self.socket.map(|(listener, path)| {
            let outbox = health.outbox();
            let router = health::router(health.clone()).merge(change::router(outbox.clone()));
            let serve = axum::serve(Bounded::new(listener, None), router.merge(look::router(outbox.clone())));
            servers.push(tokio::spawn(async move { report("control socket", serve.await) }));
            path
        });
        Served { servers, path }
    }
}

/// Open doors.
#[derive(Debug)]
pub struct Served {
    servers: Vec<JoinHandle<()>>,
    path: Option<PathBuf>,
}

impl Served {
    /// Closes them.
    pub fn close(self) {
        for server in &self.servers {
            server.abort();
        }
        if let Some(path) = self.path {
            if let Err(error) = std::fs::remove_file(&path) {
                log::debug!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

fn listen_error(address: &str) -> impl FnOnce(io::Error) -> StartError {
    let address = address.to_owned();
    move |source| StartError::Listen { address, source }
}

fn report(what: &str, ended: io::Result<()>) {
    if let Err(error) = ended {
        log::error!("{what} ended: {error}");
    }
}

/// Where the daemon listens: the directory that systemd hands over, else the state directory.
fn socket_path(state_dir: &Path) -> PathBuf {
    let runtime = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    runtime.unwrap_or_else(|| state_dir.to_owned()).join(SOCKET)
}

/// The lock on the state directory is ours, so a socket that lies there belongs to no one.
fn listen_on(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Has at most [`CONNECTIONS_MAX`] connections open; further ones wait in the kernel's queue.
struct Bounded<L> {
    listener: L,
    places: Arc<Semaphore>,
    idle_max: Option<Duration>,
}

impl<L> Bounded<L> {
    fn new(listener: L, idle_max: Option<Duration>) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), idle_max }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Connection<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // Never closed, so there is always a place in the end.
        let place = self.places.clone().acquire_owned().await.ok();
        let (io, address) = self.listener.accept().await;
        (Connection { io, idle: self.idle_max.map(Idle::new), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection and its place.
struct Connection<T> {
    io: T,
    idle: Option<Idle>,
    _place: Option<OwnedSemaphorePermit>,
}

/// How long nothing has come.
struct Idle {
    max: Duration,
    until: Pin<Box<Sleep>>,
}

impl Idle {
    fn new(max: Duration) -> Self {
        Self { max, until: Box::pin(tokio::time::sleep(max)) }
    }

    fn begin_again(&mut self) {
        self.until.as_mut().reset(tokio::time::Instant::now() + self.max);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        let Some(idle) = &mut this.idle else { return read };
        if read.is_ready() {
            idle.begin_again();
            return read;
        }
        idle.until.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn one_connection_too_many_waits_until_another_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
        let server = tokio::spawn(async move { axum::serve(Bounded::new(listener, None), router).await });
        let ask = async |stream: &mut TcpStream| {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
        };
        let mut inside = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            ask(&mut stream).await;
            inside.push(stream);
        }
        let mut waiting = TcpStream::connect(address).await.unwrap();
        waiting.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut byte = [0];
        let answer = tokio::time::timeout(Duration::from_millis(300), waiting.read(&mut byte)).await;
        assert!(answer.is_err(), "it was served: {answer:?}");
        inside.pop();
        assert_eq!(waiting.read(&mut byte).await.unwrap(), 1);
        server.abort();
    }

    #[tokio::test]
    async fn who_says_nothing_is_sent_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let idle_max = Some(Duration::from_millis(200));
        let server =
            tokio::spawn(async move { axum::serve(Bounded::new(listener, idle_max), axum::Router::new()).await });
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        let answer = tokio::time::timeout(Duration::from_secs(60), silent.read(&mut byte)).await;
        assert!(matches!(answer.expect("it is closed"), Ok(0) | Err(_)));
        server.abort();
    }
}
