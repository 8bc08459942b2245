//! Who holds an entry: its bytes live as long as anyone does, whatever becomes of the table and of the cache.

use super::{ALIGNED, Block, Entry, KIND, KeyBytes, ORPHAN, PAYLOAD, Parts};
use crate::limits::KEY_BYTES;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Bytes of entries that the table has given up but callers still hold; the last of them takes its bytes out.
#[derive(Debug, Default)]
pub struct Pinned(AtomicU64);

impl Pinned {
    /// Bytes now.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A counted reference to an immutable entry: the bytes live as long as anyone holds one, whatever becomes of the
/// table and of the cache.
#[derive(Debug)]
pub struct EntryRef(pub(super) Entry);

// SAFETY: as for `Entry`; the count is atomic and whoever brings it to zero frees.
unsafe impl Send for EntryRef {}
// SAFETY: shared references only read immutable bytes and atomics.
unsafe impl Sync for EntryRef {}

impl EntryRef {
    /// An entry that stands in no table: what a leader hands to its waiters when the result was not stored.
    pub fn detached(kind: u8, payload: &[u8], aligned: bool) -> EntryRef {
        EntryRef::from_parts(&Parts {
            key: [0; KEY_BYTES],
            kind,
            aligned,
            payload,
            scope: 0,
            stamp: 0,
            created: 0,
            life: None,
            stale: 0,
            tags: &[],
            cost: 0.0,
            cost_is_estimated: false,
        })
    }

    /// How the payload is to be read (see [`crate::value`]).
    #[inline]
    pub fn kind(&self) -> u8 {
        self.0.header().kind & KIND
    }

    /// The stored bytes.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        // SAFETY: `Entry::new` wrote `length` bytes there, and nobody writes them again while there is a holder.
        unsafe { std::slice::from_raw_parts(self.0.0.as_ptr().cast::<u8>().add(PAYLOAD), self.0.length()) }
    }

    /// Whether the payload holds tensors and lies at a multiple of [`TENSOR_ALIGN`](super::TENSOR_ALIGN).
    pub fn aligned(&self) -> bool {
        self.0.header().kind & ALIGNED != 0
    }

    /// The stamp that it carries now.
    pub fn stamp(&self) -> u64 {
        self.0.stamp().load(Ordering::Acquire)
    }

    /// Seconds that computing it took, as recorded; 0: not known.
    pub fn cost(&self) -> f32 {
        self.0.cost()
    }

    /// Hashes of its own tags.
    pub fn tags(&self) -> &[u64] {
        self.0.tags()
    }

    /// The key under which it stands.
    pub fn key(&self) -> &KeyBytes {
        self.0.key()
    }

    pub(crate) fn entry(&self) -> Entry {
        self.0
    }

    /// An entry of these parts that stands in no table.
    pub(crate) fn from_parts(parts: &Parts<'_>) -> EntryRef {
        EntryRef(Entry::new(parts, 1))
    }

    /// The same with a payload that `tail` ends; `None`: there is no memory for it.
    pub(crate) fn try_from_parts(parts: &Parts<'_>, tail: &[u8]) -> Option<EntryRef> {
        Some(EntryRef(Entry::try_new(parts, tail, 1)?))
    }
}

impl Clone for EntryRef {
    fn clone(&self) -> EntryRef {
        self.0.hold()
    }
}

impl Drop for EntryRef {
    #[inline]
    fn drop(&mut self) {
        let header = self.0.header();
        if header.holders.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // What every other holder did happened before the bytes are freed (as in std's Arc).
        crate::sync::atomic::fence(Ordering::Acquire);
        let layout = self.0.layout();
        if header.marks.load(Ordering::Relaxed) & ORPHAN != 0 {
            let address = header.times.load(Ordering::Relaxed);
            // SAFETY: `give_up` put there what `Arc::into_raw` gave, once, and this is the one holder that takes it.
            let pinned = unsafe { Arc::from_raw(std::ptr::with_exposed_provenance::<Pinned>(address as usize)) };
            pinned.0.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        }
        // SAFETY: the last holder; the memory was a block of this layout before `Entry::fill`.
        drop(unsafe { Block::from_start(self.0.0.cast(), layout) });
    }
}
