//! What an entry is made of, and how much room that takes.

use super::{GRAIN, KeyBytes, PAYLOAD, TENSOR_ALIGN};
use std::alloc::Layout;

/// What an entry is made of.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// The key under which it stands.
    pub key: KeyBytes,
    /// How the payload is to be read, 0..=31 (see [`crate::value`]).
    pub kind: u8,
    /// The payload holds tensors and is to lie at a multiple of [`TENSOR_ALIGN`].
    pub aligned: bool,
    /// The value's bytes.
    pub payload: &'a [u8],
    /// The interned scope, below 2²⁴.
    pub scope: u32,
    /// The stamp read before the value was computed.
    pub stamp: u64,
    /// When it was made, in milliseconds of the cache's clock.
    pub created: u64,
    /// How long it is fresh, in milliseconds; `None`: until evicted.
    pub life: Option<u64>,
    /// How long after that it may be served stale, in milliseconds.
    pub stale: u64,
    /// Hashes of the caller's tags.
    pub tags: &'a [u64],
    /// Seconds that computing it took.
    pub cost: f32,
    /// That is an estimate.
    pub cost_is_estimated: bool,
}

impl Parts<'_> {
    /// Of an entry whose payload has so many bytes.
    pub(super) fn layout(&self, length: usize) -> Layout {
        let size = PAYLOAD + length;
        let size = if self.has_extras() { size.next_multiple_of(8) + 16 + 8 * self.tags.len() } else { size };
        let align = if self.aligned { TENSOR_ALIGN } else { 8 };
        Layout::from_size_align(size.next_multiple_of(GRAIN), align).expect("a payload's length is below 2^40")
    }

    pub(super) fn has_extras(&self) -> bool {
        self.stale != 0 || !self.tags.is_empty()
    }

    /// Bytes that the entry will take, as the budget counts them.
    pub fn weight(&self) -> u64 {
        self.whole_layout().size() as u64
    }

    /// Of the entry that they make.
    pub(crate) fn whole_layout(&self) -> Layout {
        self.layout(self.payload.len())
    }
}
