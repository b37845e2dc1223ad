//! The trees of a generation. A sled tree writes a block three times: as a link to its leaf, when the leaf is consolidated
//! (at the tenth link), and when the leaf is split (at 17 values); and what is superseded stands among what is live, so
//! that its segment is never free again. A tree that gets nine blocks and no more is never consolidated, and each
//! of its blocks is written once. So a generation is a row of small trees, each named by the index of its first block.
//!
//! Limits: the list of all trees is rewritten whole with each new one, so a tree takes at least [`TREE_BYTES_MIN`]
//! (small blocks go on in one tree, as sled writes them), and there are at most [`TREES_MAX`].
//!
//! Generations of earlier builds have everything in sled's default tree; they are read, and a row is begun behind it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A leaf is consolidated by the link after so many.
const TREE_BLOCKS: usize = 9;
/// Encoded bytes of a tree, at least.
const TREE_BYTES_MIN: usize = 32 << 10;
/// sled's list of trees must stay far below a quarter of a segment: beyond, it goes to a file that is never synced.
const TREES_MAX: usize = 400;

/// Bytes of a tree's name: the index of its first block, big-endian.
const NAME_BYTES: usize = 8;

/// The trees of an open database, by first index.
#[derive(Debug)]
pub(super) struct Trees(Mutex<Row>);

#[derive(Debug)]
struct Row {
    /// Never empty after the first insert; names rise.
    trees: Vec<(u64, sled::Tree)>,
    /// In the last one.
    blocks: usize,
    bytes: usize,
}

impl Trees {
    /// Lists what is in the database.
    pub(super) fn of(db: &sled::Db) -> sled::Result<Self> {
        let mut trees = Vec::new();
        if !db.is_empty() {
            trees.push((0, (**db).clone()));
        }
        for name in db.tree_names() {
            if let Ok(first) = <[u8; NAME_BYTES]>::try_from(&*name) {
                trees.push((u64::from_be_bytes(first), db.open_tree(name)?));
            }
        }
        trees.sort_unstable_by_key(|(first, _)| *first);
        let (mut blocks, mut bytes) = (0, 0);
        if let Some((_, last)) = trees.last() {
            for pair in last {
                blocks += 1;
                bytes += pair?.1.len();
            }
        }
        Ok(Self(Mutex::new(Row { trees, blocks, bytes })))
    }

    /// Inserts a block. Its index is above all before it.
    pub(super) fn insert(&self, db: &sled::Db, first_index: u64, block: &[u8]) -> sled::Result<()> {
        let mut row = self.row();
        let is_used = row.blocks >= TREE_BLOCKS && row.bytes >= TREE_BYTES_MIN && row.trees.len() < TREES_MAX;
        if is_used || row.trees.is_empty() {
            let tree = db.open_tree(first_index.to_be_bytes())?;
            row.trees.push((first_index, tree));
            (row.blocks, row.bytes) = (0, 0);
        }
        row.blocks += 1;
        row.bytes += block.len();
        let tree = row.trees.last().map(|(_, tree)| tree.clone());
        drop(row);
        tree.map_or(Ok(()), |tree| tree.insert(first_index.to_be_bytes(), block).map(drop))
    }

    /// The first block whose index is `index` or above.
    pub(super) fn first_from(&self, index: u64) -> sled::Result<Option<(sled::IVec, sled::IVec)>> {
        let trees: Vec<sled::Tree> = {
            let row = self.row();
            let at = row.trees.partition_point(|(first, _)| *first <= index).saturating_sub(1);
            row.trees[at.min(row.trees.len())..].iter().take(2).map(|(_, tree)| tree.clone()).collect()
        };
        // The block may be the first of the next tree; further on there is none nearer.
        for tree in trees {
            if let Some(found) = tree.range(index.to_be_bytes()..).next().transpose()? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::directory::{Directory, GenerationId};
    use super::super::{Generation, SEGMENT_BYTES, block_bytes_max, unless_busy, unsynced_bytes_max};
    use super::*;
    use crate::outbox::testing::reading_of;

    const ID: GenerationId = GenerationId { number: 1, first_index: 1 };

    fn block(n: u64, bytes: usize) -> Vec<u8> {
        reading_of(n, bytes, true).value.to_vec()
    }

    fn fill(generation: &Generation, from: u64, count: u64, bytes: usize) {
        let mut unsynced = 0;
        for n in from..from + count {
            if unsynced + bytes > unsynced_bytes_max(generation.segment_bytes()) {
                generation.sync().unwrap();
                unsynced = 0;
            }
            generation.insert(n * 10, &block(n, bytes)).unwrap();
            unsynced += bytes;
        }
        generation.sync().unwrap();
    }

    fn check(generation: &Generation, from: u64, to: u64, bytes: usize) {
        for n in from..=to {
            // Asked for the index itself, and for one between this block and the one before.
            for index in [n * 10, n * 10 - 5] {
                let (first, found) = generation.block_from(index).unwrap().unwrap();
                assert_eq!(first, n * 10);
                assert!(*found == *block(n, bytes), "block {n}");
            }
        }
        assert!(generation.block_from(to * 10 + 1).unwrap().is_none());
    }

    fn db_bytes(dir: &Path) -> u64 {
        std::fs::metadata(dir.join(ID.to_string()).join("db")).unwrap().len()
    }

    fn blobs(dir: &Path) -> usize {
        std::fs::read_dir(dir.join(ID.to_string()).join("blobs")).map_or(0, Iterator::count)
    }

    #[test]
    fn large_blocks_are_written_once_and_found_across_trees_and_openings() {
        for segment_bytes in SEGMENT_BYTES {
            let dir = tempfile::tempdir().unwrap();
            let directory = Directory::new(dir.path().to_owned());
            let bytes = block_bytes_max(segment_bytes);
            let generation = Generation::open(&directory, ID, segment_bytes).unwrap();
            fill(&generation, 1, 400, bytes);
            check(&generation, 1, 400, bytes);
            let payload = 400 * bytes as u64;
            assert!(db_bytes(dir.path()) < payload * 11 / 10, "{} for {payload}", db_bytes(dir.path()));
            drop(generation);
            // It goes on where it was.
            let generation = Generation::open(&directory, ID, segment_bytes).unwrap();
            fill(&generation, 401, 20, bytes);
            check(&generation, 1, 420, bytes);
            assert_eq!(blobs(dir.path()), 0, "sled never syncs those");
        }
    }

    #[test]
    fn small_blocks_make_few_trees() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().to_owned());
        let generation = Generation::open(&directory, ID, SEGMENT_BYTES[1]).unwrap();
        fill(&generation, 1, 5000, 120);
        check(&generation, 1, 5000, 120);
        let trees = generation.inner.read().unwrap().as_ref().unwrap().trees.row().trees.len();
        assert!((2..=5000 * 120 / TREE_BYTES_MIN + 1).contains(&trees), "{trees}");
        assert_eq!(blobs(dir.path()), 0);
    }

    #[test]
    fn reading_a_closed_generation_leaves_no_bytes_behind() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(dir.path().to_owned());
        let generation = Generation::open(&directory, ID, SEGMENT_BYTES[1]).unwrap();
        fill(&generation, 1, 30, 7000);
        drop(generation);
        let before = db_bytes(dir.path());
        for _ in 0..3 {
            let generation = unless_busy(|| Generation::open_closed(&directory, ID)).unwrap();
            assert!(db_bytes(dir.path()) > before, "opening fills a segment up");
            check(&generation, 1, 30, 7000);
            drop(generation);
            assert_eq!(db_bytes(dir.path()), before);
        }
    }
}
