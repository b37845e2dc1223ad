//! From a byte stream to frames. Pure: no runtime, no clock, no I/O.
//!
//! Limits: a framer never holds more than `frame_bytes_max` plus one delimiter of unfinished input; what is longer is
//! skipped to the next boundary and reported with its length. However the stream is cut into pieces, the frames are the
//! same.

mod delimiter;

use bytes::Bytes;

use crate::config::intake::Framing;

/// Something between two boundaries that does not become a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Longer than `frame_bytes_max`; its length in bytes.
    Oversize(u64),
    /// The part before the first boundary after opening, which may lack its beginning; its length in bytes.
    FirstPartial(u64),
}

/// Cuts a stream into frames.
pub(crate) trait Framer: std::fmt::Debug + Send {
    /// Takes more of the stream.
    fn push(&mut self, bytes: &[u8]);
    /// The next complete frame, in order; `None` until more is pushed.
    fn next_frame(&mut self) -> Option<Result<Bytes, FrameError>>;
    /// The stream broke off: forgets the unfinished frame and says how many bytes it had. What comes next is the
    /// beginning of a stream again.
    fn restart(&mut self) -> u64;
}

/// The framer that the configuration asks for.
pub(crate) fn framer(framing: &Framing, frame_bytes_max: usize, keep_first_partial: bool) -> Box<dyn Framer> {
    match framing {
        Framing::Delimiter { delimiter } => {
            Box::new(delimiter::Delimiter::new(delimiter.as_bytes(), frame_bytes_max, keep_first_partial))
        }
    }
}
