//! The thread `outbox-writer`: sole owner of everything on disk but `state`.
//!
//! It gathers what sources submit, writes it as blocks, syncs (at the latest after an eighth of a segment), and only
//! then answers. What fails stays queued, in order, and is written again into the next generation. Sources get one
//! answer per sync. Readings are refused or held back when the disk is full; control entries and notes have headroom.
//!
//! `writer/commit.rs` writes and answers, `writer/rotate.rs` makes, closes and removes generations, `writer/room.rs`
//! applies the policies.

mod commit;
mod room;
mod rotate;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use crate::backoff::Backoff;
use crate::clock;
use crate::config;
use crate::outbox::{Answer, Arrival, Control, Outcome};
use crate::promise::Durable;
use crate::record::{Reading, SourceId};

use super::directory::{Directory, GenerationId};
use super::entry::Segment;
use super::generation::{Generation, StoreError, block_bytes_max};
use super::limits::Sizes;
use super::memory::{Memory, Undo};
use super::note::Note;
use super::packer::Packer;
use super::position::{Position, PositionFile};
use super::recovery::Opened;
use super::summary::Summary;
use super::view::Shared;

/// `pos` is synced at most this often.
const POSITION_EVERY: Duration = Duration::from_secs(1);
/// Control entries wait this long for company.
const CONTROL_WAIT: Duration = Duration::from_secs(1);
/// When the outbox is full, room is looked for this often.
const ROOM_EVERY: Duration = Duration::from_millis(200);
/// A sync on an SD card may take this long before it counts as a stall.
const SYNC_STALL: Duration = Duration::from_secs(120);
/// The loop beats at least this often.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// Metrics are brought up to date at most this often.
const METRICS_EVERY: Duration = Duration::from_millis(500);

/// One source, as the writer knows it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) id: SourceId,
    pub(super) answers: UnboundedSender<Answer>,
}

/// What comes through the writer's channel.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Arc<Source>, Vec<Arrival>),
    Control(Arc<Source>, Control),
    /// Writes a note; answered when it is durable.
    Note(Note, SyncSender<()>),
    /// A generation cannot be read: note it, move it away, answer whether it is gone.
    SetAside(GenerationId, String, SyncSender<bool>),
    /// Syncs `pos`.
    SyncPosition(SyncSender<io::Result<()>>),
    /// Look at the view: trims, protection.
    Nudge,
    Close,
}

/// Something to be written.
#[derive(Debug)]
enum Work {
    Arrival(Arc<Source>, Arrival),
    Control(Arc<Source>, Control),
    /// A gap record for readings refused.
    Told(SourceId, Box<Reading>, super::entry::Refusal),
    Note(Box<Note>, Option<SyncSender<()>>),
}

/// Something written and not yet durable.
#[derive(Debug)]
struct Flight {
    work: Work,
    /// Index of its commit mark; [`UNSETTLED`] while its refusal is not written.
    through: u64,
    /// Sequence after it.
    sequence_after: u64,
    outcome: Outcome,
}

const UNSETTLED: u64 = u64::MAX;

/// The newest generation.
#[derive(Debug)]
struct Current {
    generation: Arc<Generation>,
    /// What of it is durable.
    summary: Summary,
    /// Raw bytes after its snapshot.
    raw_bytes: u64,
    made_at: Instant,
}

/// Why work stopped.
#[derive(Debug)]
enum Stop {
    /// The generation failed: close it, go on in the next.
    Store(StoreError),
    /// Something beside it failed (`pos`, `state`, a marker): try again later.
    Io(&'static str, io::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Io(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl Stop {
    fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Full(_)),
            Self::Io(_, error) => {
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
        }
    }
}

/// State of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    directory: Directory,
    sizes: Sizes,
    config: config::Outbox,
    position: PositionFile,
    memory: Memory,
    packer: Packer,
    current: Option<Current>,
    next_number: u64,
    segment: Segment,
    /// The segment entry is not yet in the log.
    segment_due: bool,
    durable: Durable,
    /// First sequence that is not durable.
    durable_end_sequence: u64,
    backlog: VecDeque<Work>,
    flights: VecDeque<Flight>,
    undo: Vec<(u64, Undo)>,
    /// Encoded bytes inserted since the last sync.
    unsynced_bytes: usize,
    /// First index that is not inserted.
    inserted_end: u64,
    /// Sources with refusals that are not yet in the log.
    unsettled: Vec<SourceId>,
    full: bool,
    has_reserve: bool,
    /// Readings dropped by policy since start.
    dropped: u64,
    /// Bytes on disk of `damaged/`.
    damaged_bytes: u64,
    waiting_since: Option<Instant>,
    retry: Backoff,
    retry_at: Option<Instant>,
    position_at: Instant,
    room_at: Instant,
    metrics_at: Instant,
    closing: bool,
    /// Of the state directory; held until everything is closed.
    lock: Option<File>,
}

impl Writer {
    /// Takes over what recovery found. Makes the first generation where there is none, and only then moves damaged ones
    /// away: when this returns, every note is durable and everything may be read.
    pub(super) fn start(
        opened: Opened,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        sizes: Sizes,
        config: config::Outbox,
    ) -> io::Result<Self> {
        let durable_index = crate::record::Index(opened.next_index - 1);
        let mut writer = Self {
            packer: Packer::new(
                config.compression,
                block_bytes_max(sizes.segment_bytes),
                opened.next_index,
                opened.next_sequence,
            ),
            // Opening synced every file, so all that was found is on the medium.
            durable: Durable::after_sync(durable_index),
            durable_end_sequence: opened.next_sequence,
            directory: opened.directory,
            position: opened.position,
            memory: opened.memory,
            segment: opened.segment,
            segment_due: opened.current.is_some(),
            current: opened.current.map(|current| Current {
                generation: current.generation,
                summary: current.summary,
                raw_bytes: current.raw_bytes,
                made_at: Instant::now(),
            }),
            next_number: opened.next_number,
            inserted_end: opened.next_index,
            unsynced_bytes: 0,
            backlog: VecDeque::new(),
            flights: VecDeque::new(),
            undo: Vec::new(),
            unsettled: Vec::new(),
            full: false,
            has_reserve: false,
            dropped: 0,
            damaged_bytes: 0,
            waiting_since: None,
            retry: Backoff::new(Duration::from_millis(50), Duration::from_secs(5)),
            retry_at: None,
            position_at: Instant::now(),
            room_at: Instant::now(),
            metrics_at: Instant::now(),
            closing: false,
            lock: Some(opened.lock),
            shared,
            commands,
            sizes,
            config,
        };
        if writer.current.is_none() {
            if let Err(stop) = writer.make_generation() {
                return Err(match stop {
                    Stop::Io(_, error) | Stop::Store(StoreError::Io(error)) => error,
                    Stop::Store(StoreError::Full(text)) => io::Error::new(io::ErrorKind::StorageFull, text),
                    Stop::Store(error) => io::Error::other(error.to_string()),
                });
            }
        }
        for id in opened.set_aside {
            writer.move_aside(id);
        }
        writer.damaged_bytes = super::directory::disk_bytes(&writer.directory.damaged());
        writer.has_reserve = writer.directory.file("reserve").exists();
        writer.publish_memory();
        writer.look_for_room();
        writer.tell_refused();
        writer.update_metrics();
        Ok(writer)
    }

    /// Runs until closed.
    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        self.shared.progress.phase("idle", 4 * BEAT_EVERY);
        while !self.is_done() {
            self.receive();
            self.trim();
            self.leave_full();
            if self.is_due() {
                self.commit();
            }
            self.sync_position_if_due();
            if self.metrics_at.elapsed() >= METRICS_EVERY {
                self.update_metrics();
            }
        }
        self.shut();
    }

    /// Closed, and nothing left that can be written.
    fn is_done(&self) -> bool {
        self.closing && (self.backlog.is_empty() || self.full || self.retry_at.is_some())
    }

    /// Waits for commands until the next thing is due; takes all that are there.
    fn receive(&mut self) {
        let wait = self.next_due().saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            self.shared.progress.phase("idle", 4 * BEAT_EVERY);
            match self.commands.recv_timeout(wait.min(BEAT_EVERY)) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.closing = true,
            }
        }
        self.shared.progress.beat();
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(source, arrivals) => {
                self.backlog.extend(arrivals.into_iter().map(|arrival| Work::Arrival(source.clone(), arrival)));
            }
            Command::Control(source, control) => self.backlog.push_back(Work::Control(source, control)),
            Command::Note(note, done) => self.backlog.push_front(Work::Note(Box::new(note), Some(done))),
            Command::SetAside(id, why, done) => self.set_aside(id, &why, done),
            Command::SyncPosition(done) => {
                let result = self.sync_position();
                if done.send(result).is_err() {
                    log::debug!("nobody waits for the position any more");
                }
            }
            Command::Nudge => self.shared.nudge_taken(),
            Command::Close => self.closing = true,
        }
        if self.waiting_since.is_none() && !self.backlog.is_empty() {
            self.waiting_since = Some(Instant::now());
        }
    }

    /// When the loop must turn again without being asked.
    fn next_due(&self) -> Instant {
        let now = Instant::now();
        let mut due = now + BEAT_EVERY;
        if !self.backlog.is_empty() {
            due = due.min(self.commit_due());
        }
        if self.position_is_behind() {
            due = due.min(self.position_at + POSITION_EVERY);
        }
        due
    }

    /// When what waits is to be written.
    fn commit_due(&self) -> Instant {
        let since = self.waiting_since.unwrap_or_else(Instant::now);
        if let Some(at) = self.retry_at {
            return at;
        }
        if self.full && self.config.when_full != config::outbox::WhenFull::DropNewest {
            // Only what needs no room, and whatever room there is by then.
            return self.room_at + ROOM_EVERY;
        }
        if self.closing {
            return since;
        }
        if self.backlog.iter().all(Work::can_wait) {
            return since + CONTROL_WAIT;
        }
        since + self.gather()
    }

    fn gather(&self) -> Duration {
        match self.config.sync {
            config::outbox::Sync::Batch => self.config.gather.0,
            config::outbox::Sync::Interval(span) => self.config.gather.0.max(span.0),
        }
    }

    fn is_due(&self) -> bool {
        !self.backlog.is_empty() && Instant::now() >= self.commit_due()
    }

    /// Where the log stands, for `pos`.
    fn position_now(&self) -> Position {
        let durable_end = self.durable_end_sequence;
        Position {
            incarnation_number: self.segment.incarnation_number,
            committed: self.shared.view().committed.min(durable_end.saturating_sub(1)),
            next_index: self.durable.through().0 + 1,
            next_sequence: durable_end,
        }
    }

    fn position_is_behind(&self) -> bool {
        self.position.written() != Some(self.position_now())
    }

    fn sync_position_if_due(&mut self) {
        if self.position_at.elapsed() >= POSITION_EVERY && self.position_is_behind() {
            if let Err(error) = self.sync_position() {
                log::error!("cannot write outbox/pos ({error}); it is tried again in a second");
            }
        }
    }

    fn sync_position(&mut self) -> io::Result<()> {
        self.position_at = Instant::now();
        let position = self.position_now();
        self.shared.progress.phase("syncing the position", SYNC_STALL);
        self.position.write(position)?;
        self.memory.forget_through(position.committed);
        self.publish_memory();
        Ok(())
    }

    /// Notes and segments changed: tell the reader.
    fn publish_memory(&self) {
        self.shared.publish(|view| {
            view.notes = Arc::new(self.memory.notes.clone());
            view.segments = self.memory.segments.clone().into();
        });
    }

    fn shut(&mut self) {
        if let Err(error) = self.sync_position() {
            log::error!(
                "cannot write outbox/pos at the end ({error}): delivered readings may be read again, not sent again"
            );
        }
        if !self.backlog.is_empty() {
            log::warn!("{} submissions were not stored before the end; they were not acknowledged", self.backlog.len());
        }
        if let Some(current) = self.current.take() {
            current.generation.close();
        }
        self.update_metrics();
        if let Some(lock) = self.lock.take() {
            // Said outright: a child process that is just being started may hold a copy of the handle.
            if let Err(error) = rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock) {
                log::warn!("cannot unlock the state directory ({error}); the end of the process does");
            }
        }
        self.shared.progress.phase("closed", Duration::MAX);
        self.shared.publish(|view| view.closed = true);
    }

    fn update_metrics(&mut self) {
        self.metrics_at = Instant::now();
        let mut view = self.shared.view();
        let waiting = view.durable_sequence.saturating_sub(view.committed);
        let committed = view.committed;
        let age = if waiting == 0 { 0.0 } else { view.ages.oldest_seconds(committed, clock::now()) };
        view.dropped = self.dropped + self.memory.refused_total();
        let m = &self.shared.metrics;
        m.records.set(waiting as i64);
        m.bytes.set(view.bytes as i64);
        m.oldest_age_seconds.set(age);
        m.generations.set(view.generations.len() as i64);
        m.notes.set(self.memory.notes.iter().count() as i64);
    }
}

/// If the thread dies, whoever waits for it must learn it, and health must say it.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("the outbox writer died of a fault of its own: nothing is stored any more, restart the daemon");
            self.0.progress.phase("dead", Duration::ZERO);
            self.0.publish(|view| {
                view.state = "failing: the writer died".to_owned();
                view.closed = true;
            });
        }
    }
}

impl Work {
    /// Whether it may wait for company: packet identifiers that are done.
    fn can_wait(&self) -> bool {
        matches!(self, Self::Control(_, Control::Released(_)))
    }
}
