//! Inserting and syncing. While one part of a large group is synced, in a thread of its own, the next one is packed.
//! Nothing is inserted until that sync has returned: the rule of `generation.rs` on bytes between two syncs stays as it is.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use crate::promise::Durable;
use crate::record::Index;

use super::super::generation::{Generation, StoreError, unsynced_bytes_max};
use super::stop::Stop;
use super::{SYNC_STALL, Writer};

impl Writer {
    /// Inserts blocks that are ready, with a sync where the cap demands one. While that runs it returns at once, until as
    /// much is ready as may be inserted behind it. Returns the raw bytes inserted.
    pub(super) fn insert_ready(&mut self) -> Result<u64, Stop> {
        let mut raw_bytes = 0;
        while let Some(bytes) = self.tail.packer.first_ready_bytes() {
            let current = self.current.as_ref().expect("a generation is made before anything is written");
            let max = unsynced_bytes_max(current.generation.segment_bytes());
            if self.syncer.is_busy() {
                if self.tail.packer.ready_bytes() < max && !self.syncer.has_returned() {
                    break;
                }
                self.end_sync()?;
            } else if self.tail.unsynced_bytes > 0 && self.tail.unsynced_bytes + bytes > max {
                self.begin_sync()?;
            } else {
                raw_bytes += self.insert_first()?;
            }
        }
        Ok(raw_bytes)
    }

    fn insert_first(&mut self) -> Result<u64, Stop> {
        assert!(!self.syncer.is_busy(), "nothing is inserted before the sync has returned");
        let (Some(current), Some(block)) = (&mut self.current, self.tail.packer.take()) else { return Ok(0) };
        current.generation.insert(block.first_index, &block.bytes)?;
        current.raw_bytes += block.raw_bytes as u64;
        self.tail.unsynced_bytes += block.bytes.len();
        self.tail.inserted_end = block.end_index;
        let m = &self.shared.metrics;
        m.blocks.inc();
        m.written_bytes.inc_by(block.bytes.len() as u64);
        Ok(block.raw_bytes as u64)
    }

    /// Ends the block under way, syncs, answers.
    pub(super) fn finish_group(&mut self) -> Result<(), Stop> {
        self.settle_refusals();
        self.tail.packer.flush();
        self.insert_ready()?;
        while self.syncer.is_busy() {
            self.end_sync()?;
            self.insert_ready()?;
        }
        if self.tail.unsynced_bytes > 0 {
            self.sync()?;
        }
        // What needed no entry: redeliveries of what was durable already.
        self.answer();
        Ok(())
    }

    /// Syncs everything inserted.
    pub(super) fn sync(&mut self) -> Result<(), Stop> {
        self.shared.progress.phase("syncing", SYNC_STALL);
        let started = Instant::now();
        self.current.as_ref().expect("a sync follows an insert").generation.sync()?;
        self.synced(started.elapsed());
        Ok(())
    }

    /// The same, beside the packing; nothing may be inserted before [`Self::end_sync`].
    fn begin_sync(&mut self) -> Result<(), Stop> {
        let current = self.current.as_ref().expect("a sync follows an insert");
        if self.syncer.begin(&current.generation) { Ok(()) } else { self.sync() }
    }

    fn end_sync(&mut self) -> Result<(), Stop> {
        self.shared.progress.phase("syncing", SYNC_STALL);
        if let Some((result, took)) = self.syncer.wait() {
            result?;
            self.synced(took);
        }
        Ok(())
    }

    /// The only place where something becomes durable: whole arrivals in what is inserted are.
    fn synced(&mut self, took: Duration) {
        self.shared.metrics.sync_seconds.observe(took.as_secs_f64());
        self.shared.metrics.syncs.inc();
        self.tail.unsynced_bytes = 0;
        let synced = self.current.as_ref().is_some_and(|current| current.generation.is_synced());
        assert!(synced, "nothing becomes durable before its sync has returned");
        if let Some((through, sequence_after)) = self.flights.whole_below(self.tail.inserted_end) {
            // A redelivery names an entry that may be durable already.
            let through = through.max(self.tail.durable.through().0);
            self.tail.durable = Durable::after_sync(Index(through));
            self.tail.durable_end_sequence = self.tail.durable_end_sequence.max(sequence_after);
            self.flights.forget_undo_through(through);
        }
        self.answer();
    }
}

/// What a sync came to, and how long it took.
type Synced = (Result<(), StoreError>, Duration);

/// The thread that syncs, once it is needed: readings that come alone never need it.
#[derive(Debug, Default)]
pub(super) struct Syncer {
    thread: Option<Thread>,
    is_busy: bool,
    /// Returned and not yet taken.
    returned: Option<Synced>,
}

#[derive(Debug)]
struct Thread {
    jobs: SyncSender<Arc<Generation>>,
    done: Receiver<Synced>,
}

impl Syncer {
    /// Whether a sync was begun and its end not taken.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Whether [`Self::wait`] would not wait.
    pub(super) fn has_returned(&mut self) -> bool {
        if let (None, Some(thread)) = (&self.returned, &self.thread) {
            match thread.done.try_recv() {
                Ok(synced) => self.returned = Some(synced),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => {}
            }
        }
        true
    }

    /// Begins to sync a generation; `false`: there is no thread for it.
    fn begin(&mut self, generation: &Arc<Generation>) -> bool {
        debug_assert!(!self.is_busy, "one sync at a time");
        if self.thread.is_none() {
            self.thread = Thread::start()
                .map_err(|error| log::warn!("cannot start a thread for syncs ({error}): the writer does them itself"))
                .ok();
        }
        self.is_busy = self.thread.as_ref().is_some_and(|thread| thread.jobs.try_send(generation.clone()).is_ok());
        self.is_busy
    }

    /// Waits for the end of the sync that was begun, if one was.
    pub(super) fn wait(&mut self) -> Option<Synced> {
        if !std::mem::take(&mut self.is_busy) {
            return None;
        }
        let returned = self.returned.take().or_else(|| self.thread.as_ref()?.done.recv().ok());
        Some(returned.unwrap_or_else(|| {
            self.thread = None;
            (Err(StoreError::Io(io::Error::other("the thread that syncs has ended"))), Duration::ZERO)
        }))
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let (jobs, taken) = sync_channel::<Arc<Generation>>(1);
        let (tell, done) = sync_channel(1);
        let work = move || {
            for generation in taken {
                let started = Instant::now();
                let result = generation.sync();
                // Before the writer may think nobody holds it.
                drop(generation);
                if tell.send((result, started.elapsed())).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("outbox-sync".to_owned()).spawn(work)?;
        Ok(Self { jobs, done })
    }
}
