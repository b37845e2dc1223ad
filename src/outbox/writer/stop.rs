//! Why the writer could not go on.

use std::io;

use super::super::generation::StoreError;

/// Why work stopped.
#[derive(Debug)]
pub(super) enum Stop {
    /// The generation failed: close it, go on in the next.
    Store(StoreError),
    /// Something beside it failed (`pos`, `state`, a marker): try again later.
    Io(&'static str, io::Error),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Io(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl From<Stop> for io::Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Io(_, error) | Stop::Store(StoreError::Io(error)) => error,
            Stop::Store(StoreError::Full(text)) => Self::new(io::ErrorKind::StorageFull, text),
            Stop::Store(error) => Self::other(error.to_string()),
        }
    }
}

impl Stop {
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error, StoreError::Full(_)),
            Self::Io(_, error) => {
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
        }
    }
}
