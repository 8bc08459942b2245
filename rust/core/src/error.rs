//! What can go wrong, as one enum; the bindings convert it in one place.

use std::fmt;

/// Every error of the core. The text says what was wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A value that no row of the key specification admits; `path` leads to it (`input.filters[2].when`).
    UnsupportedInput {
        /// Where in the input.
        path: String,
        /// What was wrong and what to do.
        reason: String,
    },
    /// Raw JSON text that is not acceptable; `offset` is a byte offset into it.
    InvalidJson {
        /// Byte offset of the fault.
        offset: usize,
        /// What was wrong.
        reason: String,
    },
    /// A scope field, key text, option or other argument of the caller that is not acceptable.
    InvalidArgument {
        /// What was wrong and what to do.
        reason: String,
    },
    /// Stored bytes that do not decode to a value.
    CorruptValue {
        /// What was wrong.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnsupportedInput { path, reason } => write!(f, "{path}: {reason}"),
            Error::InvalidJson { offset, reason } => write!(f, "invalid JSON at byte {offset}: {reason}"),
            Error::InvalidArgument { reason } => f.write_str(reason),
            Error::CorruptValue { reason } => write!(f, "stored value is corrupt: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

/// The core's result.
pub type Result<T> = std::result::Result<T, Error>;
