//! A block: consecutive entries, compressed, with everything needed to notice damage.
//!
//! Limits: at most [`RAW_BYTES_MAX`] bytes unpacked, checked before anything is allocated. The encoded size is bounded
//! by the caller (`packer.rs`).
//!
//! ```text
//! u8  version (high 4 bits; the format of the block, format.rs) | codec (low 4 bits: 0 raw, 1 zstd, 2 lz4)
//! u32 crc32 over everything else
//! u64 index of the first entry       u64 sequence the first counting entry has or would have
//! u32 entries   u32 sequences        u32 raw length
//! payload: entries (entry.rs), compressed
//! ```

use std::ops::Range;

use bytes::Bytes;

use crate::config;

use super::wire::NUMBERS_END;

/// Most bytes of a block unpacked.
pub(super) const RAW_BYTES_MAX: usize = 96 * 1024;
/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = 33;

const VERSION: u8 = 1;
const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const CODEC_LZ4: u8 = 2;
const ZSTD_LEVEL: i32 = 1;

/// What a block says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) first_index: u64,
    pub(super) first_sequence: u64,
    pub(super) entries: u32,
    pub(super) sequences: u32,
}

impl Head {
    /// Index after the last entry.
    pub(super) fn end_index(&self) -> u64 {
        self.first_index.saturating_add(u64::from(self.entries))
    }

    /// Sequence after the last one.
    pub(super) fn end_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.sequences))
    }
}

/// Why bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BlockError {
    #[error("block is cut short")]
    Short,
    #[error("checksum of block does not match")]
    Checksum,
    #[error("block has version or codec {0:#04x}, unknown to this program")]
    Unknown(u8),
    #[error("block claims {0} bytes unpacked")]
    TooLarge(usize),
    #[error("block has numbers that no outbox reaches")]
    Numbers,
    #[error("block does not unpack")]
    Unpack,
}

/// Packs blocks; keeps the compressor's memory between them.
pub(super) struct Encoder {
    codec: config::outbox::Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("codec", &self.codec).finish_non_exhaustive()
    }
}

impl Encoder {
    pub(super) fn new(codec: config::outbox::Compression) -> Self {
        Self { codec, zstd: None, packed: Vec::new() }
    }

    /// Packs `raw`; stores it as it is where packing does not help, or would make bytes in which another block stands.
    pub(super) fn encode(&mut self, head: Head, raw: &[u8]) -> Vec<u8> {
        debug_assert!(raw.len() <= RAW_BYTES_MAX);
        let codec = self.pack(raw);
        if codec != CODEC_RAW {
            let packed = assemble(head, codec, raw.len(), &self.packed);
            if find_in(&packed[1..]).is_none() {
                return packed;
            }
        }
        assemble(head, CODEC_RAW, raw.len(), raw)
    }

    /// Packs into `self.packed` and says with what.
    fn pack(&mut self, raw: &[u8]) -> u8 {
        let (packed, codec) = match self.codec {
            config::outbox::Compression::None => (false, CODEC_RAW),
            config::outbox::Compression::Zstd => (self.pack_zstd(raw), CODEC_ZSTD),
            config::outbox::Compression::Lz4 => (self.pack_lz4(raw), CODEC_LZ4),
        };
        if packed && self.packed.len() < raw.len() { codec } else { CODEC_RAW }
    }

    fn pack_lz4(&mut self, raw: &[u8]) -> bool {
        self.packed.resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
        let packed = lz4_flex::block::compress_into(raw, &mut self.packed);
        packed.map(|len| self.packed.truncate(len)).is_ok()
    }

    fn pack_zstd(&mut self, raw: &[u8]) -> bool {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        let Some(zstd) = &mut self.zstd else { return false };
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        zstd.compress_to_buffer(raw, &mut self.packed).is_ok()
    }
}

fn assemble(head: Head, codec: u8, raw_len: usize, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + payload.len());
    out.push(VERSION << 4 | codec);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&head.first_index.to_le_bytes());
    out.extend_from_slice(&head.first_sequence.to_le_bytes());
    out.extend_from_slice(&head.entries.to_le_bytes());
    out.extend_from_slice(&head.sequences.to_le_bytes());
    out.extend_from_slice(&(raw_len as u32).to_le_bytes());
    out.extend_from_slice(payload);
    let sum = checksum(&out);
    out[1..5].copy_from_slice(&sum.to_le_bytes());
    out
}

fn checksum(block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block[..1]);
    hasher.update(&block[5..]);
    hasher.finalize()
}

/// Whether a block of this version may begin with this byte.
pub(super) fn may_begin(byte: u8) -> bool {
    byte >> 4 == VERSION && byte & 15 <= CODEC_LZ4
}

/// Checks a block and reads its head.
pub(super) fn check(block: &[u8]) -> Result<Head, BlockError> {
    if block.len() < 5 {
        return Err(BlockError::Short);
    }
    if checksum(block).to_le_bytes() != block[1..5] {
        return Err(BlockError::Checksum);
    }
    // So far all versions agree. A whole block of another one is no damage.
    if block[0] >> 4 != VERSION || block[0] & 15 > CODEC_LZ4 {
        return Err(BlockError::Unknown(block[0]));
    }
    if block.len() < HEAD_BYTES {
        return Err(BlockError::Short);
    }
    let number = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes of a checked length"));
    let half = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes of a checked length"));
    let head = Head { first_index: number(5), first_sequence: number(13), entries: half(21), sequences: half(25) };
    if head.first_index >= NUMBERS_END || head.first_sequence >= NUMBERS_END {
        return Err(BlockError::Numbers);
    }
    Ok(head)
}

/// A whole block at the start of `bytes`, whatever follows it: its head and its length. Blocks do not say how long they
/// are, so the payload is followed to its end; the checksum then leaves no doubt.
pub(super) fn measure(bytes: &[u8]) -> Option<(Head, usize)> {
    let codec = *bytes.first()? & 15;
    if bytes.len() < HEAD_BYTES || bytes[0] >> 4 != VERSION || codec > CODEC_LZ4 {
        return None;
    }
    let raw_len = u32::from_le_bytes(bytes[29..33].try_into().ok()?) as usize;
    let entries = u32::from_le_bytes(bytes[21..25].try_into().ok()?) as usize;
    // An entry has six bytes at least.
    if raw_len > RAW_BYTES_MAX || entries > raw_len / 6 || entries == 0 {
        return None;
    }
    let payload = &bytes[HEAD_BYTES..];
    let len = match codec {
        CODEC_RAW => raw_len,
        CODEC_ZSTD => zstd::zstd_safe::find_frame_compressed_size(payload).ok()?,
        _ => lz4_len(payload, raw_len)?,
    };
    let len = HEAD_BYTES.checked_add(len).filter(|len| *len <= bytes.len())?;
    check(&bytes[..len]).ok().map(|head| (head, len))
}

/// Whether another whole block stands in the bytes of one that is not packed; of one that is, [`Encoder::encode`] sees
/// to it.
pub(super) fn hides_another(block: &[u8]) -> bool {
    block[0] & 15 == CODEC_RAW && find_in(&block[1..]).is_some()
}

/// Where a whole block stands in these bytes, if one does.
pub(super) fn find_in(bytes: &[u8]) -> Option<Range<usize>> {
    let begins = [CODEC_RAW, CODEC_ZSTD, CODEC_LZ4].map(|codec| VERSION << 4 | codec);
    let mut places = memchr::memchr3_iter(begins[0], begins[1], begins[2], bytes);
    places.find_map(|at| measure(&bytes[at..]).map(|(_, len)| at..at + len))
}

/// Length of an LZ4 block that unpacks to `raw_len` bytes (lz4_Block_format.md: sequences of a token, literals, a match;
/// the last has literals only).
fn lz4_len(payload: &[u8], raw_len: usize) -> Option<usize> {
    fn more(payload: &[u8], at: &mut usize, first: usize) -> Option<usize> {
        let mut len = first;
        if first < 15 {
            return Some(len);
        }
        loop {
            let byte = *payload.get(*at)?;
            *at += 1;
            len += usize::from(byte);
            if byte != 255 {
                return Some(len);
            }
        }
    }
    let (mut at, mut made) = (0, 0);
    loop {
        let token = *payload.get(at)?;
        at += 1;
        let literals = more(payload, &mut at, usize::from(token >> 4))?;
        at += literals;
        made += literals;
        if made >= raw_len {
            return (made == raw_len).then_some(at);
        }
        at += 2;
        made += 4 + more(payload, &mut at, usize::from(token & 15))?;
    }
}

/// Unpacks blocks; keeps the decompressor's memory between them.
#[derive(Default)]
pub(super) struct Decoder {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// Checks and unpacks a block.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<(Head, Bytes), BlockError> {
        let head = check(block)?;
        Ok((head, self.unpack(block)?))
    }

    /// Unpacks a block that [`check`] has found good.
    pub(super) fn unpack(&mut self, block: &[u8]) -> Result<Bytes, BlockError> {
        let raw_len = u32::from_le_bytes(block[29..33].try_into().expect("four bytes of a checked length")) as usize;
        if raw_len > RAW_BYTES_MAX {
            return Err(BlockError::TooLarge(raw_len));
        }
        let payload = &block[HEAD_BYTES..];
        let raw = match block[0] & 15 {
            CODEC_RAW => payload.to_vec(),
            CODEC_ZSTD => self.unpack_zstd(payload, raw_len)?,
            CODEC_LZ4 => lz4_flex::block::decompress(payload, raw_len).map_err(|_| BlockError::Unpack)?,
            _ => return Err(BlockError::Unknown(block[0])),
        };
        if raw.len() != raw_len {
            return Err(BlockError::Unpack);
        }
        Ok(Bytes::from(raw))
    }

    fn unpack_zstd(&mut self, payload: &[u8], raw_len: usize) -> Result<Vec<u8>, BlockError> {
        if self.zstd.is_none() {
            self.zstd = zstd::bulk::Decompressor::new().ok();
        }
        let zstd = self.zstd.as_mut().ok_or(BlockError::Unpack)?;
        zstd.decompress(payload, raw_len).map_err(|_| BlockError::Unpack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [config::outbox::Compression; 3] =
        [config::outbox::Compression::Zstd, config::outbox::Compression::Lz4, config::outbox::Compression::None];
    const HEAD: Head = Head { first_index: 7, first_sequence: 5, entries: 3, sequences: 2 };

    #[test]
    fn what_is_packed_unpacks_with_every_codec() {
        for codec in CODECS {
            for raw in [Vec::new(), b"abc".repeat(900), (0..=255).collect::<Vec<u8>>()] {
                let block = Encoder::new(codec).encode(HEAD, &raw);
                let (head, back) = Decoder::default().decode(&block).unwrap();
                assert_eq!((head, &back[..]), (HEAD, &raw[..]));
                assert!(block.len() <= HEAD_BYTES + raw.len(), "never larger than raw");
            }
        }
    }

    #[test]
    fn a_block_that_claims_too_much_is_refused_before_it_is_unpacked() {
        let mut block = Encoder::new(config::outbox::Compression::Zstd).encode(HEAD, &[0; 1000]);
        block[29..33].copy_from_slice(&u32::MAX.to_le_bytes());
        let sum = checksum(&block);
        block[1..5].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Decoder::default().decode(&block), Err(BlockError::TooLarge(u32::MAX as usize)));
    }

    #[test]
    fn a_block_is_measured_whatever_follows_it() {
        for codec in CODECS {
            for raw in [vec![7; 6], b"reading ".repeat(2000), (0..3000u32).flat_map(u32::to_le_bytes).collect()] {
                let head = Head { entries: 1, ..HEAD };
                let mut bytes = Encoder::new(codec).encode(head, &raw);
                let len = bytes.len();
                bytes.extend_from_slice(b"what follows");
                assert_eq!(measure(&bytes), Some((head, len)));
                assert_eq!(measure(&bytes[..len]), Some((head, len)));
                assert_eq!(measure(&bytes[..len - 1]), None);
                bytes[len / 2] ^= 1;
                assert_eq!(measure(&bytes), None);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_bytes_give_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Decoder::default().decode(&bytes);
            let _ = measure(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0usize..1000, bit in 0u8..8) {
            let mut block = Encoder::new(config::outbox::Compression::Zstd).encode(HEAD, &b"reading ".repeat(100));
            let at = at % block.len();
            block[at] ^= 1 << bit;
            prop_assert!(Decoder::default().decode(&block).is_err());
        }

        #[test]
        fn bytes_under_a_good_checksum_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), HEAD_BYTES..300)) {
            bytes[0] = VERSION << 4 | bytes[0] & 3;
            bytes[31] = 0;
            bytes[32] = 0;
            let _ = measure(&bytes);
            let sum = checksum(&bytes);
            bytes[1..5].copy_from_slice(&sum.to_le_bytes());
            if let Ok((_, raw)) = Decoder::default().decode(&bytes) {
                let mut at = 0;
                while let Some(framed) = super::super::entry::Framed::at(&raw, at) {
                    let _ = framed.decode(&raw);
                    at = framed.next;
                }
            }
        }
    }
}
