//! Whether a dictionary pays for small blocks: encoded bytes and CPU at groups 1, 10 and 100, without one and with the
//! last 16 KiB of readings as one. And what the medium would see of it: device bytes of a sync with 200 B and with 20 B.

use std::time::Instant;

use crate::plain::put;
use crate::readings::{Pool, reading};
use crate::table::Table;

const DICTIONARY_BYTES: usize = 16 << 10;
const VALUE_BYTES: usize = 200;
const READINGS: usize = 20_000;

fn raw_blocks(group: usize) -> Vec<Vec<u8>> {
    let pool = Pool::of(VALUE_BYTES);
    let block = |at: usize| {
        let mut raw = Vec::new();
        pool.group((at * group) as u64, group as u64).for_each(|reading| put(&mut raw, &reading));
        raw
    };
    (0..READINGS / group).map(block).collect()
}

/// Encoded bytes per byte of payload, and microseconds per reading.
fn pack(blocks: &[Vec<u8>], mut zstd: zstd::bulk::Compressor<'_>) -> (f64, f64) {
    let start = Instant::now();
    let bytes: usize = blocks.iter().map(|raw| zstd.compress(raw).expect("it packs").len()).sum();
    (bytes as f64 / (READINGS * VALUE_BYTES) as f64, start.elapsed().as_secs_f64() * 1e6 / READINGS as f64)
}

pub(crate) fn notes(table: &mut Table) {
    if !table.wants("dictionary") {
        return;
    }
    let mut dictionary = Vec::new();
    for n in 1_000_000.. {
        put(&mut dictionary, &reading(n, VALUE_BYTES));
        if dictionary.len() >= DICTIONARY_BYTES {
            break;
        }
    }
    for group in [1, 10, 100] {
        let blocks = raw_blocks(group);
        let without = pack(&blocks, zstd::bulk::Compressor::new(1).expect("zstd"));
        let with = pack(&blocks, zstd::bulk::Compressor::with_dictionary(1, &dictionary).expect("zstd"));
        let text = format!(
            "{:.3} B encoded per byte of payload, {:.2} us a reading; with a dictionary {:.3} B, {:.2} us",
            without.0, without.1, with.0, with.1
        );
        table.note(&format!("dictionary, group {group}"), &text);
    }
}
