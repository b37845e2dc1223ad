//! Frames that end with a delimiter, which is not part of them. Nothing between two delimiters is no frame.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem::Finder;

use super::{FrameError, Framer};

/// See the module's description.
#[derive(Debug)]
pub(super) struct Delimiter {
    finder: Finder<'static>,
    frame_bytes_max: usize,
    keep_first_partial: bool,
    buffer: BytesMut,
    /// Bytes at the front of `buffer` that hold no beginning of a delimiter that ends in them.
    searched: usize,
    /// Bytes of the frame under way that were thrown away because it is too long.
    skipped: u64,
    /// Whether the next boundary ends the first, perhaps partial, frame.
    first: bool,
}

impl Delimiter {
    /// A delimiter of at least one byte.
    pub(super) fn new(delimiter: &[u8], frame_bytes_max: usize, keep_first_partial: bool) -> Self {
        Self {
            finder: Finder::new(delimiter).into_owned(),
            frame_bytes_max,
            keep_first_partial,
            buffer: BytesMut::new(),
            searched: 0,
            skipped: 0,
            first: true,
        }
    }

    /// Takes `length` bytes and the delimiter after them off the buffer, and decides what they are.
    fn take(&mut self, length: usize) -> Option<Result<Bytes, FrameError>> {
        let frame = self.buffer.split_to(length).freeze();
        self.buffer.advance(self.finder.needle().len());
        self.searched = 0;
        let total = std::mem::take(&mut self.skipped) + length as u64;
        let first = std::mem::take(&mut self.first) && !self.keep_first_partial;
        if total == 0 {
            None
        } else if first {
            Some(Err(FrameError::FirstPartial(total)))
        } else if total > self.frame_bytes_max as u64 {
            Some(Err(FrameError::Oversize(total)))
        } else {
            Some(Ok(frame))
        }
    }

    /// Throws away what cannot become a frame any more, except a possible beginning of the delimiter.
    fn shed(&mut self) {
        let keep = self.finder.needle().len() - 1;
        if self.buffer.len() > self.frame_bytes_max + keep {
            let shed = self.buffer.len() - keep;
            self.buffer.advance(shed);
            self.skipped += shed as u64;
            self.searched = 0;
        }
    }
}

impl Framer for Delimiter {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next_frame(&mut self) -> Option<Result<Bytes, FrameError>> {
        while let Some(at) = self.finder.find(&self.buffer[self.searched..]) {
            if let Some(frame) = self.take(self.searched + at) {
                return Some(frame);
            }
        }
        self.searched = self.buffer.len().saturating_sub(self.finder.needle().len() - 1);
        self.shed();
        None
    }

    fn restart(&mut self) -> u64 {
        let lost = self.skipped + self.buffer.len() as u64;
        self.buffer = BytesMut::new();
        self.searched = 0;
        self.skipped = 0;
        self.first = true;
        lost
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Frames = Vec<Result<Vec<u8>, FrameError>>;

    fn frames(framer: &mut Delimiter, pieces: &[&[u8]]) -> Frames {
        let mut out = Vec::new();
        for piece in pieces {
            framer.push(piece);
            while let Some(frame) = framer.next_frame() {
                out.push(frame.map(|bytes| bytes.to_vec()));
            }
        }
        out
    }

    #[test]
    fn the_first_part_is_discarded_unless_it_is_wanted() {
        let mut framer = Delimiter::new(b"\n", 64, false);
        assert_eq!(
            frames(&mut framer, &[b"tail\none\n\ntw", b"o\nrest"]),
            vec![Err(FrameError::FirstPartial(4)), Ok(b"one".to_vec()), Ok(b"two".to_vec())]
        );
        assert_eq!(framer.restart(), 4);
        assert_eq!(frames(&mut framer, &[b"x\ny\n"]), vec![Err(FrameError::FirstPartial(1)), Ok(b"y".to_vec())]);
        let mut keeping = Delimiter::new(b"\n", 64, true);
        assert_eq!(frames(&mut keeping, &[b"tail\n"]), vec![Ok(b"tail".to_vec())]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_told_with_its_length_and_the_next_one_is_whole() {
        let mut framer = Delimiter::new(b"\r\n", 4, true);
        let pieces: &[&[u8]] = &[b"1234\r\n12345", b"6789\r", b"\nok\0\r\n"];
        assert_eq!(
            frames(&mut framer, pieces),
            vec![Ok(b"1234".to_vec()), Err(FrameError::Oversize(9)), Ok(b"ok\0".to_vec())]
        );
    }

    #[test]
    fn memory_is_bounded_without_any_delimiter() {
        let mut framer = Delimiter::new(b"\n", 1000, true);
        for _ in 0..1000 {
            framer.push(&[7; 500]);
            assert_eq!(framer.next_frame(), None);
            assert!(framer.buffer.len() <= 1000, "{}", framer.buffer.len());
        }
        assert_eq!(framer.restart(), 500_000);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(
            stream in prop::collection::vec(prop::sample::select(vec![b'a', b'\r', b'\n', 0]), 0..120),
            cuts in prop::collection::vec(0usize..120, 0..12),
            delimiter in prop::sample::select(vec!["\n", "\r\n", "\n\n", "\r\n\r\n"]),
            keep in any::<bool>(),
        ) {
            let make = || Delimiter::new(delimiter.as_bytes(), 5, keep);
            let whole = frames(&mut make(), &[&stream]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([stream.len()]);
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            let pieces: Vec<&[u8]> = starts.zip(ends).map(|(start, end)| &stream[start..end]).collect();
            prop_assert_eq!(frames(&mut make(), &pieces), whole);
        }
    }
}
