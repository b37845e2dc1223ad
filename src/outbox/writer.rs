//! The thread `outbox-writer`: sole owner of everything on disk but `state`.
//!
//! It gathers what sources submit, writes it as blocks, syncs (at the latest after an eighth of a segment), and only
//! then answers. What fails stays queued, in order, and is written again into the next generation. Sources get one
//! answer per sync. Readings are refused or held back when the disk is full; control entries and notes have headroom.
//!
//! `writer/queue.rs` holds what waits, `writer/flights.rs` what is under way, `writer/tail.rs` the numbers of the log's end,
//! `writer/schedule.rs` says what is due. `writer/commit.rs` writes and answers, `writer/rotate.rs` makes and closes
//! generations, `writer/remove.rs` removes them, `writer/room.rs` measures the disk and applies the policies,
//! `writer/refuse.rs` counts what is refused, `writer/reserve.rs` keeps the reserve,
//! `writer/change.rs` purges and `writer/replay.rs` copies what `survey.rs` has found for them.

mod answer;
mod change;
mod commit;
mod damage;
mod door;
mod flights;
mod queue;
mod refuse;
mod remove;
mod replay;
mod reserve;
mod room;
mod rotate;
mod schedule;
mod source;
mod stop;
mod sync;
mod tail;

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::clock;
use crate::config;
use crate::outbox::{Arrival, Change, ChangeError, Control, Purged, Replayed, Step};

use super::directory::{Directory, GenerationId};
use super::generation::{Generation, block_bytes_max};
use super::limits::Sizes;
use super::look::Counts;
use super::memory::Memory;
use super::note::Note;
use super::packer::Packer;
use super::position::{Position, PositionFile};
use super::recovery::Opened;
use super::summary::Summary;
use super::view::Shared;

pub(super) use schedule::gather;
pub(super) use source::{Source, Sources};

use door::Door;
use flights::Flights;
use queue::{Queue, Work};
use replay::Replay;
use room::Room;
use schedule::Timers;
use sync::Syncer;
use tail::Tail;

/// When the outbox is full, room is looked for this often.
const ROOM_EVERY: Duration = Duration::from_millis(200);
/// A sync on an SD card may take this long before it counts as a stall.
const SYNC_STALL: Duration = Duration::from_secs(120);
/// The loop beats at least this often.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// What comes through the writer's channel.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Arc<Source>, Vec<Arrival>),
    Control(Arc<Source>, Control),
    /// Writes a note; answered when it is durable.
    Note(Note, SyncSender<bool>),
    /// A generation cannot be read: note it, move it away, answer whether it is gone.
    SetAside(GenerationId, String, SyncSender<bool>),
    /// One step of a purge, if who asked is still there when its turn comes.
    Purge(Change, Weak<()>, SyncSender<Result<Step<Purged>, ChangeError>>),
    /// One step of a replay, likewise.
    Replay(Change, Weak<()>, SyncSender<Result<Step<Replayed>, ChangeError>>),
    /// Syncs `pos`.
    SyncPosition(SyncSender<io::Result<()>>),
    /// Tells what only the writer knows.
    Count(SyncSender<Counts>),
    /// Look at the view: trims, protection.
    Nudge,
    Close,
}

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

/// State of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    /// Came in the middle of a group, and waits for its end.
    put_off: Option<Command>,
    syncer: Syncer,
    directory: Directory,
    sizes: Sizes,
    config: config::Outbox,
    position: PositionFile,
    memory: Memory,
    tail: Tail,
    queue: Queue,
    flights: Flights,
    current: Option<Current>,
    next_number: u64,
    room: Room,
    door: Door,
    /// A gap record for refusals could not be written, and waits for nobody else's work.
    is_untold: bool,
    /// Readings dropped by policy since start.
    dropped: u64,
    timers: Timers,
    closing: bool,
    /// Of the state directory; held until everything is closed.
    lock: Option<File>,
    /// Generations that this process has rebuilt: what is missing in them now is lost.
    rebuilt: Vec<GenerationId>,
    /// Between two steps of a replay.
    replay: Option<Replay>,
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
        let (index, sequence) = (opened.next_index, opened.next_sequence);
        let packer = Packer::new(config.compression, block_bytes_max(sizes.segment_bytes), index, sequence);
        let mut writer = Self {
            tail: Tail::behind(index, sequence, packer, opened.segment, opened.current.is_some()),
            directory: opened.directory,
            position: opened.position,
            memory: opened.memory,
            current: opened.current.map(|current| Current {
                generation: current.generation,
                summary: current.summary,
                raw_bytes: current.raw_bytes,
                made_at: Instant::now(),
            }),
            next_number: opened.next_number,
            queue: Queue::default(),
            flights: Flights::default(),
            room: Room::new(),
            door: Door::new(),
            is_untold: false,
            dropped: 0,
            timers: Timers::new(),
            closing: false,
            lock: Some(opened.lock),
            rebuilt: opened.rebuilt,
            replay: None,
            shared,
            commands,
            put_off: None,
            syncer: Syncer::default(),
            sizes,
            config,
        };
        if writer.current.is_none() {
            writer.make_generation()?;
        }
        writer.begin_life()?;
        writer.shared.metrics.dropped("damage").inc_by(opened.lost);
        writer.shared.metrics.damaged.inc_by(writer.rebuilt.len() as u64);
        writer.shared.view().damaged += writer.rebuilt.len() as u64;
        for id in opened.set_aside {
            writer.move_aside(id);
        }
        if let Err(error) = writer.directory.trim_damaged(writer.sizes.damaged_bytes_max) {
            log::warn!("cannot bring damaged/ below its cap ({error}); it counts in max_bytes");
        }
        writer.measure_damaged();
        writer.find_reserve();
        writer.publish_memory();
        writer.look_for_room();
        writer.tell_refused();
        writer.update_metrics();
        if let Err(error) = writer.sync_position() {
            log::error!("cannot write outbox/pos ({error}); it is tried again in a second");
        }
        Ok(writer)
    }

    /// The snapshot of the newest generation names the incarnation in force: no later start may take it for unused.
    fn begin_life(&self) -> io::Result<()> {
        let mut state = self.shared.state();
        if state.state.life().is_none_or(|life| life.begun) {
            return Ok(());
        }
        state.update(|state| state.lives.iter_mut().for_each(|life| life.begun = true))
    }

    /// Runs until closed.
    pub(super) fn run(mut self) {
        let _end = End(self.shared.clone());
        self.shared.progress.phase("idle", 4 * BEAT_EVERY);
        while !self.is_done() {
            self.receive();
            self.trim();
            self.lend_reserve();
            self.leave_full();
            self.watch_door();
            if self.is_due() {
                self.commit();
            }
            self.rotate_if_old();
            self.end_idle_replay();
            self.sync_position_if_due();
            if self.timers.metrics_are_due() {
                self.update_metrics();
            }
        }
        self.shut();
    }

    /// Closed, and nothing left that can be written.
    fn is_done(&self) -> bool {
        self.closing && (self.queue.is_empty() || self.takes_nothing() || self.timers.retry_at.is_some())
    }

    /// Readings wait for room.
    fn takes_nothing(&self) -> bool {
        self.room.is_full() && self.config.when_full != config::outbox::WhenFull::DropNewest
    }

    /// Waits for commands until the next thing is due; takes all that are there.
    fn receive(&mut self) {
        if let Some(command) = self.put_off.take() {
            // What came behind it, and the end if this was it, is for the next turn.
            self.shared.progress.beat();
            return self.take(command);
        }
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
            let is_long = matches!(command, Command::Purge(..) | Command::Replay(..));
            self.take(command);
            if is_long {
                // Intake goes on between two steps.
                break;
            }
        }
    }

    /// Takes submissions that are there, in the middle of a group; anything else waits for its end.
    fn take_submissions(&mut self) {
        while self.put_off.is_none() {
            match self.commands.try_recv() {
                Ok(command @ (Command::Submit(..) | Command::Control(..) | Command::Nudge)) => self.take(command),
                Ok(other) => self.put_off = Some(other),
                Err(_) => break,
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(source, arrivals) => {
                arrivals.into_iter().for_each(|arrival| self.queue.push(Work::Arrival(source.clone(), arrival)));
            }
            Command::Control(source, control) => self.queue.push(Work::Control(source, control)),
            Command::Note(note, done) => self.note_missing(note, done),
            Command::SetAside(id, why, done) => self.set_aside(id, &why, done),
            Command::Purge(change, asker, done) => {
                let wanted = asker.strong_count() > 0;
                let result = if wanted { self.purge(&change) } else { Err(ChangeError::Unwanted) };
                if done.send(result).is_err() {
                    log::debug!("nobody waits for the purge any more");
                }
            }
            Command::Replay(change, asker, done) => {
                let wanted = asker.strong_count() > 0;
                let result = if wanted { self.replay(&change) } else { Err(ChangeError::Unwanted) };
                if done.send(result).is_err() {
                    log::debug!("nobody waits for the replay any more");
                }
            }
            Command::SyncPosition(done) => {
                let result = self.sync_position();
                if done.send(result).is_err() {
                    log::debug!("nobody waits for the position any more");
                }
            }
            Command::Count(done) => {
                if done.send(self.counts()).is_err() {
                    log::debug!("nobody waits for the counts any more");
                }
            }
            Command::Nudge => self.shared.nudge_taken(),
            Command::Close => self.closing = true,
        }
    }

    fn counts(&self) -> Counts {
        let newest = self.current.as_ref().map(|current| {
            let (end_index, end_sequence) = (self.tail.durable_end_index(), self.tail.durable_end_sequence);
            Summary { end_index, end_sequence, ..current.summary.clone() }
        });
        let newest_bytes = self.current.as_ref().map_or(0, |current| current.generation.disk_bytes());
        Counts { newest, newest_bytes, refusals: self.memory.refusals.clone() }
    }

    /// Where the log stands, for `pos`.
    fn position_now(&self) -> Position {
        let durable_end = self.tail.durable_end_sequence;
        Position {
            incarnation_number: self.tail.segment.incarnation_number,
            committed: self.shared.view().committed.min(durable_end.saturating_sub(1)),
            next_index: self.tail.durable_end_index(),
            next_sequence: durable_end,
        }
    }

    fn position_is_behind(&self) -> bool {
        self.position.written() != Some(self.position_now())
    }

    fn sync_position_if_due(&mut self) {
        if self.timers.position_is_due() && self.position_is_behind() {
            if let Err(error) = self.sync_position() {
                log::error!("cannot write outbox/pos ({error}); it is tried again in a second");
            }
        }
    }

    fn sync_position(&mut self) -> io::Result<()> {
        self.timers.position_at = Instant::now();
        let position = self.position_now();
        self.shared.progress.phase("syncing the position", SYNC_STALL);
        self.position.write(position)?;
        let kept_from = self.shared.view().generations.front().map_or(u64::MAX, |listed| listed.first_sequence);
        self.memory.forget_through(position.committed, kept_from);
        self.publish_memory();
        Ok(())
    }

    /// Notes and segments changed: tell the reader.
    fn publish_memory(&self) {
        self.shared.publish(|view| {
            view.notes = Arc::new(self.memory.notes.clone());
            view.purges = Arc::new(self.memory.purges.clone());
            view.segments = self.memory.segments.clone().into();
        });
    }

    fn shut(&mut self) {
        self.replay = None;
        // Twice: then one damaged slot does not hide where a log ended that was closed in order.
        if let Err(error) = self.sync_position().and_then(|()| self.position.write_again()) {
            log::error!(
                "cannot write outbox/pos at the end ({error}): delivered readings may be read again, not sent again"
            );
        }
        if self.queue.all_len() > 0 {
            log::warn!(
                "{} submissions were not stored before the end (the outbox is {}); they were not acknowledged: what came by \
                 MQTT at QoS 1 or 2 is sent again, what came by a serial line is lost",
                self.queue.all_len(),
                self.shared.view().state
            );
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
        self.timers.metrics_at = Instant::now();
        let wear = self.shared.wear_counts();
        let mut view = self.shared.view();
        view.wear.sample(self.timers.metrics_at, wear);
        let waiting = view.durable_sequence.saturating_sub(view.committed);
        let committed = view.committed;
        let age = if waiting == 0 { 0.0 } else { view.ages.oldest_seconds(committed, clock::now()) };
        view.dropped = self.dropped + self.memory.refused_total();
        let m = &self.shared.metrics;
        if let Some(bytes) = wear.process_bytes {
            // A counter of the kernel's, brought up to date.
            m.medium_bytes.inc_by(bytes.saturating_sub(m.medium_bytes.get()));
        }
        m.records.set(waiting as i64);
        m.bytes.set(view.bytes as i64);
        m.oldest_age_seconds.set(age);
        m.generations.set(view.generations.len() as i64);
        m.full.set(i64::from(self.room.is_full()));
        m.failing.set(i64::from(view.state.starts_with("failing")));
        m.reserve_bytes.set(if self.room.reserve.is_there { self.sizes.reserve_bytes as i64 } else { 0 });
        for source in self.door.known() {
            let queued = view.queued.get(source).cloned().unwrap_or_default();
            m.source(source.as_str(), queued.records, queued.bytes, queued.outside.is_some());
        }
        m.notes.set(self.memory.notes.iter().filter(|note| note.to > committed).count() as i64);
    }
}

/// If the thread dies, whoever waits for it must learn it, and health must say it.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.sources.end();
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
