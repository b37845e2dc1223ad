//! One sled database, used so that a power cut loses nothing. The only file that names sled.
//!
//! Limits: nothing is ever removed inside; an encoded block is at most a quarter of a segment / 17, for a leaf holds up
//! to 17 values, is rewritten whole, and above a quarter of a segment goes to a file that sled never syncs; at most an
//! eighth of a segment is inserted between two syncs, for a freed segment may be written over before what replaces it
//! is on the medium. `flush()` of sled 0.34 is no fsync: we sync `db` ourselves, through a handle of our own.
//! (Measured by replaying power cuts; docs/decisions/0201.)
//!
//! sled panics on some damage, so every call runs under `catch_unwind`; after a panic or error the database is never
//! written again.

mod trees;

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use self::trees::Trees;
use super::directory::{Directory, GenerationId, sync_directory, sync_tree};

/// Segment sizes in use: small ones for a small `max_bytes`.
pub(super) const SEGMENT_BYTES: [usize; 2] = [1 << 20, 512 << 10];

/// sled's page cache. Not what decides its memory: that is the size of a generation.
const CACHE_BYTES: u64 = 2 << 20;

/// Largest encoded block for a segment size: segment / 4 / 17, less sled's own heads.
pub(super) fn block_bytes_max(segment_bytes: usize) -> usize {
    if segment_bytes >= 1 << 20 { 15_000 } else { 7_400 }
}

/// Most encoded bytes between two syncs.
pub(super) fn unsynced_bytes_max(segment_bytes: usize) -> usize {
    segment_bytes / 8
}

/// What the caller must do about a failure of the store.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Somebody holds the database.
    #[error("the database is in use: {0}")]
    Busy(String),
    /// No space.
    #[error("no space left: {0}")]
    Full(String),
    /// The files are not what they should be: set aside.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Whole, but of a later program (format.rs): never set aside.
    #[error("{0}; a later fieldpost wrote it, and this one must leave it alone")]
    Later(String),
    /// The file system said no; another try may do.
    #[error("{0}")]
    Io(io::Error),
    /// Closed or failed before.
    #[error("the database is closed")]
    Closed,
    /// Made with another segment size.
    #[error("other segment size")]
    OtherSegment,
}

impl StoreError {
    pub(super) fn of_io(error: io::Error) -> Self {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull, UnexpectedEof};
        let text = error.to_string();
        match error.kind() {
            StorageFull | QuotaExceeded => Self::Full(text),
            UnexpectedEof => Self::Damaged(text),
            PermissionDenied | ReadOnlyFilesystem => Self::Io(error),
            _ if text.contains("could not acquire lock") => Self::Busy(text),
            _ if error.raw_os_error() == Some(libc::EIO) => Self::Damaged(text),
            _ => Self::Io(error),
        }
    }

    /// Of a database that is just being made: an error of the medium is no word about what it is made from.
    pub(super) fn of_writing(self) -> Self {
        match self {
            Self::Damaged(text) if names(&text, libc::EIO) => Self::Io(io::Error::other(text)),
            error => error,
        }
    }

    fn of_sled(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::of_io(error),
            sled::Error::Unsupported(text) if text.contains("io buffer size") => Self::OtherSegment,
            sled::Error::Unsupported(text) if text.contains("pagecache version") => Self::Later(text),
            // A thread of sled's own has died: from then on this process opens and writes nothing more, whatever the files
            // are like.
            sled::Error::ReportableBug(text) if text.contains("IO thread") => Self::Io(io::Error::other(text)),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// Bytes of a block as the store holds them.
#[derive(Debug, Clone)]
pub(super) struct BlockBytes(sled::IVec);

impl Deref for BlockBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

struct Open {
    db: sled::Db,
    trees: Trees,
    file: File,
}

/// An open generation; shared by the writer and the reader.
pub(super) struct Generation {
    id: GenerationId,
    path: PathBuf,
    segment_bytes: usize,
    inner: RwLock<Option<Open>>,
    /// For one that is only read: bytes of `db` before it was opened.
    closed_bytes: Option<u64>,
    /// Something was inserted since the last sync.
    dirty: AtomicBool,
    /// A sync is under way: what is inserted now would count as synced and not be.
    syncing: AtomicBool,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Generation {
    /// Opens what is there, whatever its segment size, or makes it with `segment_bytes`. Everything that can be read
    /// when this returns is on the medium. The marker is not made here.
    pub(super) fn open(directory: &Directory, id: GenerationId, segment_bytes: usize) -> Result<Self, StoreError> {
        Self::open_at(directory, id, directory.generation(id), segment_bytes, Opening::ToWrite)
    }

    /// Opens or makes a generation that lies somewhere else in the directory.
    pub(super) fn open_at(
        directory: &Directory,
        id: GenerationId,
        path: PathBuf,
        segment_bytes: usize,
        opening: Opening,
    ) -> Result<Self, StoreError> {
        match Self::open_with(directory, id, path.clone(), segment_bytes, opening) {
            Err(StoreError::OtherSegment) => {
                let other = SEGMENT_BYTES.into_iter().find(|size| *size != segment_bytes).unwrap_or(segment_bytes);
                Self::open_with(directory, id, path, other, opening).map_err(|error| match error {
                    StoreError::OtherSegment => StoreError::Damaged("unknown segment size".to_owned()),
                    error => error,
                })
            }
            other => other,
        }
    }

    /// Opens a generation that is closed, to be read. Opening fills the last segment up; closing cuts that off again, so
    /// that readers leave no bytes behind.
    pub(super) fn open_closed(directory: &Directory, id: GenerationId) -> Result<Self, StoreError> {
        let db = directory.generation(id).join("db");
        let bytes = match fs::metadata(db) {
            // sled would make a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Damaged("its file db is lost".to_owned()));
            }
            meta => meta.map_err(StoreError::of_io)?.len(),
        };
        let path = directory.generation(id);
        let mut generation = Self::open_at(directory, id, path, SEGMENT_BYTES[0], Opening::ToRead)?;
        generation.closed_bytes = Some(bytes);
        Ok(generation)
    }

    fn open_with(
        directory: &Directory,
        id: GenerationId,
        path: PathBuf,
        segment_bytes: usize,
        opening: Opening,
    ) -> Result<Self, StoreError> {
        remove_half_made_snapshots(&path).map_err(StoreError::of_io)?;
        require_conf(&path)?;
        let (db, trees) = guarded(|| {
            let db = sled::Config::new()
                .path(&path)
                .segment_size(segment_bytes)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(None)
                .open()?;
            db.flush()?;
            let trees = Trees::of(&db)?;
            Ok((db, trees))
        })?;
        // sled writes `conf` and renames its snapshot without syncing: without this most power cuts left a database
        // that did not open.
        let synced = opening.sync(directory, &path);
        let file = synced.and_then(|()| File::options().read(true).write(true).open(path.join("db")));
        match file {
            Ok(file) => Ok(Self {
                id,
                path,
                segment_bytes,
                inner: RwLock::new(Some(Open { db, trees, file })),
                closed_bytes: None,
                dirty: AtomicBool::new(false),
                syncing: AtomicBool::new(false),
            }),
            Err(error) => {
                drop(trees);
                drop_guarded(db);
                Err(StoreError::of_io(error))
            }
        }
    }

    pub(super) fn id(&self) -> GenerationId {
        self.id
    }

    pub(super) fn segment_bytes(&self) -> usize {
        self.segment_bytes
    }

    /// Inserts a block under the index of its first entry.
    pub(super) fn insert(&self, first_index: u64, block: &[u8]) -> Result<(), StoreError> {
        debug_assert!(!self.syncing.load(Ordering::Acquire), "nothing is inserted during a sync");
        self.dirty.store(true, Ordering::Release);
        #[cfg(test)]
        self.fault("fault-insert")?;
        self.with(|open| guarded(|| open.trees.insert(&open.db, first_index, block)))
    }

    /// Everything inserted is on the medium when this returns. Nothing may be inserted meanwhile.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.syncing.store(true, Ordering::Release);
        let result = self.with(|open| {
            guarded(|| open.db.flush().map(|_| ()))?;
            #[cfg(test)]
            self.fault("fault-sync")?;
            open.file.sync_data().map_err(StoreError::of_io)
        });
        self.syncing.store(false, Ordering::Release);
        if result.is_ok() {
            self.dirty.store(false, Ordering::Release);
        }
        result
    }

    /// Whether everything inserted is on the medium.
    pub(super) fn is_synced(&self) -> bool {
        !self.dirty.load(Ordering::Acquire)
    }

    /// Fails if a test has put a file of this name beside the generations, as `full`, or with any other text; once, but
    /// with `always full` for as long as the file is there. `always 800ms`: as slow as a worn card.
    #[cfg(test)]
    fn fault(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path.with_file_name(name);
        let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
        assert!(text != "panic", "a fault of the writer's own");
        if text == "always full" {
            return Err(StoreError::Full(text));
        }
        if text == "eio where one is rebuilt" {
            let is_rebuilt = self.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("dead-"));
            let error = || StoreError::of_io(io::Error::from_raw_os_error(libc::EIO));
            return if is_rebuilt { Err(error()) } else { Ok(()) };
        }
        if let Some(ms) = text.strip_prefix("always ").and_then(|text| text.strip_suffix("ms")?.parse().ok()) {
            std::thread::sleep(Duration::from_millis(ms));
            return Ok(());
        }
        fs::remove_file(path).map_err(StoreError::Io)?;
        Err(if text == "full" { StoreError::Full(text) } else { StoreError::Io(io::Error::other(text)) })
    }

    /// The first block whose first index is `index` or above.
    pub(super) fn block_from(&self, index: u64) -> Result<Option<(u64, BlockBytes)>, StoreError> {
        let found = self.with(|open| guarded(|| open.trees.first_from(index)))?;
        let Some((key, value)) = found else { return Ok(None) };
        let key: [u8; 8] =
            key.as_ref().try_into().map_err(|_| StoreError::Damaged("a key is not an index".to_owned()))?;
        Ok(Some((u64::from_be_bytes(key), BlockBytes(value))))
    }

    /// Bytes on disk: one stat.
    pub(super) fn disk_bytes(&self) -> u64 {
        super::directory::disk_bytes(&self.path.join("db"))
    }

    /// Whether nobody has closed it yet.
    pub(super) fn is_open(&self) -> bool {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Closes the database: whoever still holds this handle gets errors from now on.
    pub(super) fn close(&self) {
        let open = self.inner.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(open) = open {
            drop(open.trees);
            drop_guarded(open.db);
            if let Some(bytes) = self.closed_bytes {
                cut_to(&open.file, bytes, &self.path);
            }
        }
    }

    fn with<T>(&self, call: impl FnOnce(&Open) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        call(inner.as_ref().ok_or(StoreError::Closed)?)
    }
}

/// How often and how long a database is waited for that somebody else is just opening or closing: sled lets go of its lock
/// a moment after it is closed.
const BUSY_TRIES: u32 = 100;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// Does it again while somebody holds the database.
pub(super) fn unless_busy<T>(mut open: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 1..BUSY_TRIES {
        match open() {
            Err(StoreError::Busy(_)) => std::thread::sleep(BUSY_WAIT),
            done => return done,
        }
    }
    open()
}

/// What a database is opened for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Opening {
    /// To be made, or written on.
    ToWrite,
    /// Only to be read, and closed by the writer before: all of it is on the medium.
    ToRead,
}

impl Opening {
    /// Syncs what opening has changed. In a closed database sled wipes the rest of the last segment and makes a snapshot,
    /// which it syncs itself before it is renamed: `db` and the names are left to be synced. A drain that syncs every
    /// file for each generation spends most of its time there (docs/decisions/0209).
    fn sync(self, directory: &Directory, path: &Path) -> io::Result<()> {
        match self {
            Self::ToWrite => sync_tree(path).and_then(|()| sync_directory(directory.path())),
            Self::ToRead => File::open(path.join("db"))?.sync_data().and_then(|()| sync_directory(path)),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.close();
    }
}

/// Gives back what opening added. Nothing was written since.
fn cut_to(file: &File, bytes: u64, path: &Path) {
    let cut = file.metadata().and_then(|meta| if meta.len() > bytes { file.set_len(bytes) } else { Ok(()) });
    if let Err(error) = cut {
        log::debug!("{} keeps the bytes that opening it took: {error}", path.display());
    }
}

/// sled takes a half-made snapshot for its newest one and never opens again.
fn remove_half_made_snapshots(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Without `conf` sled takes the segment size it is given, reads a database of another one as torn and wipes it; of a
/// wrong checksum in it (its last four bytes) it only warns. `conf` is synced before a generation is marked, so its
/// loss is damage.
fn require_conf(path: &Path) -> Result<(), StoreError> {
    if fs::metadata(path.join("db")).map_or(0, |meta| meta.len()) == 0 {
        return Ok(());
    }
    let conf = match fs::read(path.join("conf")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::of_io(error)),
        conf => conf.unwrap_or_default(),
    };
    let whole = conf.split_last_chunk::<4>().is_some_and(|(text, sum)| crc32fast::hash(text).to_le_bytes() == *sum);
    if whole { Ok(()) } else { Err(StoreError::Damaged("its file conf is lost".to_owned())) }
}

/// A call into sled; a panic in it becomes damage.
fn guarded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(StoreError::of_sled),
        Err(panic) => Err(of_panic(format!("the store panicked: {}", panic_text(&*panic)))),
    }
}

/// A panic in sled is damage, unless its text names an error that says nothing about the files: the machine has no more
/// handles, threads or memory to give.
fn of_panic(text: String) -> StoreError {
    if [libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::ENOMEM].iter().any(|code| names(&text, *code)) {
        StoreError::Io(io::Error::other(text))
    } else {
        StoreError::Damaged(text)
    }
}

/// Whether a text tells of an error of the operating system with this number.
fn names(text: &str, code: i32) -> bool {
    text.contains(&format!("code: {code},")) || text.contains(&format!("os error {code})"))
}

fn drop_guarded(db: sled::Db) {
    if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
        log::warn!("the store panicked while it was closed; nothing that was synced is affected");
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}
