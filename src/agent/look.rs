//! What the control socket serves beside the daemon's state: a look into the outbox. Not on the HTTP port, for readings
//! are nobody else's business: the socket has the rights of a file.
//!
//! Answers are lines of JSON (`outbox/look/line.rs`), sent as they come, so that an export of gibibytes takes no more
//! memory than one batch. Somebody who does not read on holds a place here and nothing in the outbox
//! (docs/decisions/0231).

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::outbox::look::{Fault, Line, Out, Wanted};
use crate::outbox::{Look, LookError, Outbox};

/// As many may look at once. Each takes a thread and some memory of a small machine.
const LOOKS_MAX: usize = 2;
/// Bytes sent at once, and chunks that wait for a slow reader.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_WAITING: usize = 2;
/// A stream of which nothing is taken for this long ends: its place is for others.
const TAKEN_WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone)]
struct Looks {
    outbox: Outbox,
    places: Arc<Semaphore>,
    /// For what ends by itself: those who do not read on must not keep the owner from it.
    inspections: Arc<Semaphore>,
}

/// Routes for the control socket only.
pub(super) fn router(outbox: Outbox) -> Router {
    let looks = Looks { outbox, places: Arc::new(Semaphore::new(LOOKS_MAX)), inspections: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/outbox/inspect", get(inspect))
        .route("/outbox/verify", get(verify))
        .route("/outbox/export", get(export))
        .with_state(looks)
}

async fn inspect(State(looks): State<Looks>) -> Response {
    // It ends by itself, so the next one waits for it.
    let Ok(place) = looks.inspections.acquire_owned().await else { return crowded() };
    let outbox = looks.outbox;
    let inspection = tokio::task::spawn_blocking(move || {
        let _place = place;
        outbox.look().inspect()
    });
    match inspection.await {
        Ok(Ok(inspection)) => axum::Json(inspection).into_response(),
        Ok(Err(error)) => (status_of(error.fault()), format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn status_of(fault: Fault) -> StatusCode {
    match fault {
        Fault::Foreign => StatusCode::NOT_IMPLEMENTED,
        Fault::Busy => StatusCode::SERVICE_UNAVAILABLE,
        Fault::InputOutput => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn verify(State(looks): State<Looks>) -> Response {
    stream(looks, |look, out| look.verify(out).map(|_| ()))
}

async fn export(State(looks): State<Looks>, RawQuery(query): RawQuery) -> Response {
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_deref().unwrap_or("").as_bytes()).collect();
    match Wanted::from_pairs(pairs.iter().map(|(name, value)| (&**name, &**value))) {
        Ok(selection) => stream(looks, move |look, out| look.export(&selection, out).map(|_| ())),
        Err(text) => (StatusCode::BAD_REQUEST, text + "\n").into_response(),
    }
}

fn crowded() -> Response {
    let text = format!("{LOOKS_MAX} others are looking into the outbox: try again when they are done\n");
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Sends lines as they come. The last one says that it was all, or what went wrong.
fn stream(
    looks: Looks,
    work: impl FnOnce(&mut Look, &mut Out<'_>) -> Result<(), LookError> + Send + 'static,
) -> Response {
    let Ok(place) = looks.places.try_acquire_owned() else { return crowded() };
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    let outbox = looks.outbox;
    tokio::task::spawn_blocking(move || {
        let runtime = Handle::current();
        let mut chunks = Chunks { _place: place, sender, chunk: Vec::new(), runtime, taken_within: TAKEN_WITHIN };
        let ended = work(&mut outbox.look(), &mut |line| chunks.line(line));
        let told = match ended {
            Ok(()) => Ok(()),
            // Whoever asked is gone.
            Err(LookError::Output(_)) => return,
            Err(error) => chunks.line(&Line::of_error(&error).to_json()),
        };
        if told.and_then(|()| chunks.send()).is_err() {
            log::debug!("whoever looked into the outbox is gone");
        }
    });
    let body = Body::from_stream(ReceiverStream::new(receiver));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Lines on their way.
struct Chunks {
    /// Given back before whoever asked sees the end: the next one finds it free.
    _place: OwnedSemaphorePermit,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    chunk: Vec<u8>,
    runtime: Handle,
    taken_within: Duration,
}

impl Chunks {
    fn line(&mut self, line: &str) -> io::Result<()> {
        self.chunk.extend_from_slice(line.as_bytes());
        self.chunk.push(b'\n');
        // Progress is of no use when it comes late.
        if self.chunk.len() >= CHUNK_BYTES || line.starts_with("{\"progress\"") {
            self.send()?;
        }
        Ok(())
    }

    /// Waits while the reader is slow; an error means that it is gone, or has taken nothing for too long.
    fn send(&mut self) -> io::Result<()> {
        let chunk = Bytes::from(std::mem::take(&mut self.chunk));
        let sent = async { tokio::time::timeout(self.taken_within, self.sender.send(Ok(chunk))).await };
        match self.runtime.block_on(sent) {
            Ok(sent) => sent.map_err(|_| io::ErrorKind::BrokenPipe.into()),
            Err(_) => {
                log::warn!("somebody who looks into the outbox has taken nothing for {:?}: ended", self.taken_within);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_which_nothing_is_taken_ends() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
        let taken_within = Duration::from_millis(50);
        let _place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let runtime_handle = runtime.handle().clone();
        let mut chunks = Chunks { _place, sender, chunk: Vec::new(), runtime: runtime_handle, taken_within };
        for _ in 0..CHUNKS_WAITING {
            chunks.line("{\"progress\"").unwrap();
        }
        assert_eq!(chunks.line("{\"progress\"").unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(receiver);
        assert_eq!(chunks.line("{\"progress\"").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
