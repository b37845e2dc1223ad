//! Little helpers of the formats on disk: fixed little-endian numbers, texts with a 4-byte length, and a cursor that
//! hands out slices of one shared buffer. Nothing here panics on any bytes.

use bytes::Bytes;
use bytestring::ByteString;

/// No index, sequence or count of an outbox reaches this: what says so is not ours, and sums below it cannot overflow.
pub(super) const NUMBERS_END: u64 = 1 << 62;

/// Appends a text: length u32, bytes.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

/// Appends bytes: length u32, bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("no text or value reaches 4 GiB: the packet limit is far below");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads forward through a part of a shared buffer. `None`: the bytes are not what they should be.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    /// Reads `bytes[at..end]`; bounds beyond the buffer are cut.
    pub(super) fn new(bytes: &'a Bytes, at: usize, end: usize) -> Self {
        let end = end.min(bytes.len());
        Self { bytes, at: at.min(end), end }
    }

    /// Reads all of `bytes`.
    pub(super) fn whole(bytes: &'a Bytes) -> Self {
        Self::new(bytes, 0, bytes.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at == self.end
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let stop = self.at.checked_add(len).filter(|stop| *stop <= self.end)?;
        let slice = &self.bytes[self.at..stop];
        self.at = stop;
        Some(slice)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// An index, a sequence or a count.
    pub(super) fn number(&mut self) -> Option<u64> {
        self.u64().filter(|number| *number < NUMBERS_END)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Bytes with a length before them, as a slice of the shared buffer.
    pub(super) fn bytes(&mut self) -> Option<Bytes> {
        let len = self.u32()? as usize;
        let from = self.at;
        self.take(len)?;
        Some(self.bytes.slice(from..self.at))
    }

    /// Text with a length before it, as a slice of the shared buffer.
    pub(super) fn text(&mut self) -> Option<ByteString> {
        ByteString::try_from(self.bytes()?).ok()
    }

    /// What is left, as a slice of the shared buffer.
    pub(super) fn rest(&mut self) -> Bytes {
        let rest = self.bytes.slice(self.at..self.end);
        self.at = self.end;
        rest
    }
}
