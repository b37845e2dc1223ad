//! Rebuilding a damaged generation from the blocks that are still whole in its file.
//!
//! sled drops everything behind a bad message in a segment, and wipes the end of the log when it opens. But a block
//! stands in one piece in `db`, under a checksum of its own. So all that is whole is searched for byte by byte, put
//! into a new database under the same name, and the damaged one goes to `damaged/`. What is still missing shows as
//! holes between blocks, like any other loss. A block that somebody sent as a reading is none of ours: what stands
//! inside a whole block is not looked at, and where that one is damaged there is none, for the packer cuts every such
//! reading (docs/decisions/0227).
//!
//! The newest generation is read into memory before it is opened ([`image`]): only then is damage seen, and the end
//! wiped. It is not copied on disk, for there may be no room, and the cap holds at any moment: what was damaged before
//! goes for it, then the reserve.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::block::{self, HEAD_BYTES};
use super::directory::{Directory, GenerationId};
use super::generation::{Generation, Opening, StoreError, block_bytes_max, unsynced_bytes_max};
use super::limits::Sizes;

/// What could be read of a generation's file `db`, which has some 14 MiB at most.
#[derive(Debug, Default)]
pub(super) struct Image {
    bytes: Vec<u8>,
    /// Nothing of it was unreadable.
    whole: bool,
}

/// Pieces in which a file is read that has unreadable sectors.
const PIECE_BYTES: usize = 4096;

/// Reads the file `db`; zeros stand for what the medium does not give back. An error says nothing about the file (no
/// handles left, no permission): another try may do.
pub(super) fn image(directory: &Directory, id: GenerationId) -> io::Result<Image> {
    let path = directory.generation(id).join("db");
    match fs::read(&path) {
        Ok(bytes) => Ok(Image { bytes, whole: true }),
        Err(error) if is_of_medium(&error) => in_pieces(&path),
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) =>
        {
            log::debug!("cannot read {}: {error}", path.display());
            Ok(Image::default())
        }
        Err(error) => Err(error),
    }
}

fn is_of_medium(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

fn in_pieces(path: &Path) -> io::Result<Image> {
    let file = File::open(path)?;
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    let mut lost = 0;
    for (number, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
        match file.read_exact_at(piece, (number * PIECE_BYTES) as u64) {
            Err(error) if is_of_medium(&error) => {
                piece.fill(0);
                lost += 1;
            }
            read => read?,
        }
    }
    log::error!("{lost} pieces of {PIECE_BYTES} bytes of {} cannot be read", path.display());
    Ok(Image { bytes, whole: false })
}

impl Image {
    /// Puts the file back as it was before sled opened it and wiped what stood behind the damage, so that the next try
    /// finds it too. Nobody may have it open.
    pub(super) fn write_back(&self, directory: &Directory, id: GenerationId) -> io::Result<()> {
        if !self.whole {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(directory.generation(id).join("db"))?;
        file.write_all_at(&self.bytes, 0)?;
        file.set_len(self.bytes.len() as u64)?;
        file.sync_all()
    }
}

/// Where whole blocks of this generation stand in `bytes`: first index, offset, length.
fn find_blocks(bytes: &[u8], first_index: u64) -> BTreeMap<u64, (usize, usize)> {
    let mut found: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    let mut at = 0;
    while at + HEAD_BYTES <= bytes.len() {
        let end = bytes.len().min(at + LONGEST);
        match block::measure(&bytes[at..end]) {
            Some((head, len)) => {
                if head.first_index >= first_index {
                    found.entry(head.first_index).or_insert((at, len));
                }
                at += len;
            }
            None => at += 1,
        }
    }
    found
}

/// What a database takes beside its file `db`.
const SMALL_FILES_BYTES: u64 = 64 << 10;
/// More than the longest block.
const LONGEST: usize = 16 << 10;

/// Puts a new database in the place of a damaged generation, which nobody may have open, with every block that is whole
/// in `image`. The damaged one goes to `damaged/`; all that is on disk stays below `max_bytes`. `Ok(None)`: nothing of it
/// is left, and nothing was changed. Else the number of blocks.
pub(super) fn rebuild(
    directory: &Directory,
    id: GenerationId,
    image: &Image,
    sizes: &Sizes,
) -> Result<Option<usize>, StoreError> {
    debug_assert!(block_bytes_max(sizes.segment_bytes) < LONGEST);
    let image = &image.bytes;
    let found = find_blocks(image, id.first_index);
    if found.is_empty() {
        return Ok(None);
    }
    let rebuilt = directory.rebuilding(id);
    if rebuilt.exists() {
        fs::remove_dir_all(&rebuilt).map_err(StoreError::Io)?;
    }
    directory
        .make_room(image.len() as u64 + SMALL_FILES_BYTES, sizes.rebuilding_bytes_max())
        .map_err(StoreError::Io)?;
    let blocks = found.iter().map(|(key, (at, len))| (*key, &image[*at..at + len]));
    let made = fill(directory, id, &rebuilt, sizes.segment_bytes, blocks).map_err(StoreError::of_writing);
    let exchange = || directory.exchange(id, sizes.damaged_bytes_max).map_err(StoreError::Io);
    let exchanged = made.and_then(|()| exchange());
    match exchanged {
        Ok(to) => {
            log::warn!("{id} was rebuilt from {} whole blocks; the damaged one is {}", found.len(), to.display());
            // Whoever reads it now opens it, which takes up to a segment.
            if let Err(error) = directory.make_room(0, sizes.rebuilding_bytes_max()) {
                log::warn!("cannot bring damaged/ below its cap ({error}); the next start tries again");
            }
            Ok(Some(found.len()))
        }
        Err(error) => {
            if let Err(error) = fs::remove_dir_all(&rebuilt) {
                log::debug!("cannot remove {} ({error}); the next start does", rebuilt.display());
            }
            Err(error)
        }
    }
}

fn fill<'a>(
    directory: &Directory,
    id: GenerationId,
    path: &Path,
    segment_bytes: usize,
    blocks: impl Iterator<Item = (u64, &'a [u8])>,
) -> Result<(), StoreError> {
    let generation = Generation::open_at(directory, id, path.to_owned(), segment_bytes, Opening::ToWrite)?;
    let mut unsynced = 0;
    for (first_index, block) in blocks {
        if unsynced > 0 && unsynced + block.len() > unsynced_bytes_max(segment_bytes) {
            generation.sync()?;
            unsynced = 0;
        }
        generation.insert(first_index, block)?;
        unsynced += block.len();
    }
    generation.sync()?;
    generation.close();
    // sled writes `conf` and renames its snapshot without syncing.
    super::directory::sync_tree(path).map_err(StoreError::of_io)
}
