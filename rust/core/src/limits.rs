//! Every bound in one place. Those of the key specification never change within a version.

/// Containers nest at most this deep in a canonical document, the outermost being 1 (KEYSPEC section 2).
pub const MAX_DEPTH: usize = 256;
/// A canonical document longer than this is an error (KEYSPEC section 2): 256 MiB.
pub const MAX_DOCUMENT_BYTES: usize = 256 << 20;
/// Integers of more decimal digits are an error (KEYSPEC section 2), as in CPython's own conversion limit.
pub const MAX_INTEGER_DIGITS: usize = 4_300;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// The structure of a stored value (all of it but its tensors) is at most this large; a larger one is not stored: 256 MiB.
pub const MAX_SKELETON_BYTES: usize = 256 << 20;
/// An envelope for a shared tier holds at most so many of the caller's tags; an entry with more stays in its process.
pub const MAX_ENVELOPE_TAGS: usize = 4_096;
