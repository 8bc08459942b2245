//! An entry: payload, stamp, deadlines, tags, cost, weight.
//!
//! This first form holds the payload only; the engine replaces it behind the same names.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment of a payload that holds tensors, in bytes: a cache line, and what SIMD code likes best.
pub const TENSOR_ALIGN: usize = 64;

struct Payload {
    start: NonNull<u8>,
    layout: Layout,
    len: usize,
    kind: u8,
}

// SAFETY: the bytes are written once, before the payload is shared, and never again.
unsafe impl Send for Payload {}
// SAFETY: as above: shared references only read.
unsafe impl Sync for Payload {}

impl Drop for Payload {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc` with this same layout and is freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A counted reference to an immutable entry: the bytes live as long as anyone holds one.
#[derive(Clone)]
pub struct EntryRef(Arc<Payload>);

impl EntryRef {
    /// An entry that stands in no table: what a leader hands to its waiters when the result was not stored.
    /// `kind` (0..=31) says how `payload` is to be read; `aligned` asks for an address that is a multiple of [`TENSOR_ALIGN`].
    pub fn detached(kind: u8, payload: &[u8], aligned: bool) -> EntryRef {
        let align = if aligned { TENSOR_ALIGN } else { 8 };
        let layout =
            Layout::from_size_align(payload.len().max(1), align).expect("a slice's length is below isize::MAX");
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: freshly allocated, at least `payload.len()` bytes, so not overlapping.
        unsafe { start.as_ptr().copy_from_nonoverlapping(payload.as_ptr(), payload.len()) };
        EntryRef(Arc::new(Payload { start, layout, len: payload.len(), kind }))
    }

    /// How the payload is to be read (see [`crate::value`]).
    pub fn kind(&self) -> u8 {
        self.0.kind
    }

    /// The stored bytes.
    pub fn payload(&self) -> &[u8] {
        // SAFETY: `len` bytes were written by `detached` and are never written again.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}
