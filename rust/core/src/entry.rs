//! An entry: payload, stamp, deadlines, tags, cost, weight, in one allocation.
//!
//! ```text
//!  offset  0        4       5      6         8        16       20        23       24          29        32      64
//!          ┌────────┬───────┬──────┬─────────┬────────┬────────┬─────────┬────────┬───────────┬─────────┬───────┬──────────┬────────────┐
//!          │ holders│ marks │ kind │  cost   │ stamp  │ length │  scope  │ length │  created  │  life   │  key  │ payload… │ [extras]   │
//!          │  u32   │  u8   │  u8  │ float16 │  u64   │ low 32 │   u24   │ high 8 │ u40, ms   │ float24 │ 32 B  │          │ stale,tags │
//!          └────────┴───────┴──────┴─────────┴────────┴────────┴─────────┴────────┴───────────┴─────────┴───────┴──────────┴────────────┘
//! ```
//!
//! Thirty-two bytes of header, and the payload begins at byte 64, so tensors lie aligned when the allocation is. Only
//! `holders`, `marks`, `stamp` and (once nobody can look the entry up) the time word change after publication.
//!
//! Times and costs are small floating-point numbers: a relative error below 2⁻¹⁹ in a life (half a second in three
//! days, rounded down: never served too long) and below 2⁻¹¹ in a cost buy 16 bytes an entry.

mod block; // its memory
mod parts; // what an entry is made of
mod reference; // who holds it
mod small_float;

pub(crate) use block::Block;
#[cfg(feature = "explore")]
pub use block::FREED;
pub use parts::Parts;
pub use reference::{EntryRef, Pinned};

use crate::limits::KEY_BYTES;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::table::prefetch;
use small_float::{LIFE_FOR_EVER, Life, decode_cost, encode_cost};
use std::alloc::{Layout, handle_alloc_error};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;

/// Alignment of a payload that holds tensors, in bytes: a cache line, and what SIMD code likes best.
pub const TENSOR_ALIGN: usize = 64;
/// Sizes of entries are multiples of this: allocators hand out no others, and so one entry's memory fits the next.
const GRAIN: usize = 16;
/// Where the payload begins.
const PAYLOAD: usize = size_of::<Header>().next_multiple_of(TENSOR_ALIGN);
/// The longest payload: its length has 40 bits.
pub const MAX_PAYLOAD_BYTES: usize = (1 << 40) - 1;

const KIND: u8 = 0x1f;
/// The cost is not the entry's own: what its model's answers cost on the average.
const ESTIMATED: u8 = 0x20;
const HAS_EXTRAS: u8 = 0x40;
const ALIGNED: u8 = 0x80;

/// `marks`: four bits of frequency, which queue the entry stands in, a bit for the queue's compaction, and whether the
/// table has let go of it while others still hold it.
const FREQUENCY: u8 = 0x0f;
const IN_MAIN: u8 = 0x10;
const VISITED: u8 = 0x20;
const ORPHAN: u8 = 0x40;
/// What `succeed` hands over to the entry that replaces this one.
const QUEUE_STATE: u8 = FREQUENCY | IN_MAIN;

/// More holders than this can only be a leak of references; the process stops before the count wraps.
const MAX_HOLDERS: u32 = u32::MAX / 2;

/// A key: 32 bytes of BLAKE3.
pub type KeyBytes = [u8; KEY_BYTES];

/// A map by keys.
pub type KeyMap<V> = HashMap<KeyBytes, V, BuildHasherDefault<KeyHasher>>;

/// Keys are BLAKE3 output: any eight bytes of them are a hash.
#[derive(Debug, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Arrays feed their length first (8 bytes through `write_usize`), then the 32 bytes themselves.
        if let Some((head, _)) = bytes.split_first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*head);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

#[repr(C)]
struct Header {
    holders: AtomicU32,
    marks: AtomicU8,
    kind: u8,
    cost: u16,
    stamp: AtomicU64,
    length_low: u32,
    /// Low 24 bits the scope, high 8 bits the length's.
    scope_and_length_high: u32,
    /// Low 40 bits `created`, high 24 bits `life`; for an orphan the address of its [`Pinned`].
    times: AtomicU64,
    key: KeyBytes,
}

// shuttle's atomics are larger than the machine's.
#[cfg(not(feature = "explore"))]
const _: () = assert!(PAYLOAD == 64 && size_of::<Header>() == 64);

/// An entry as the table holds it: a pointer that does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(NonNull<Header>);

// SAFETY: the header's mutable fields are atomic and the rest is written before the entry is shared.
unsafe impl Send for Entry {}

impl Entry {
    /// The entry, in this memory or in new, with two holders: the table, and whoever stores it.
    pub(crate) fn new_held(parts: &Parts<'_>, block: Option<Block>) -> (Entry, EntryRef) {
        let entry = match block {
            Some(block) => Entry::fill(block, parts, &[], 2),
            None => Entry::new(parts, 2),
        };
        (entry, EntryRef(entry))
    }

    fn new(parts: &Parts<'_>, holders: u32) -> Entry {
        let no_memory = || handle_alloc_error(parts.layout(parts.payload.len()));
        Entry::try_new(parts, &[], holders).unwrap_or_else(no_memory)
    }

    /// An entry of these parts whose payload `tail` ends; `None`: there is no memory for it.
    fn try_new(parts: &Parts<'_>, tail: &[u8], holders: u32) -> Option<Entry> {
        let block = Block::allocate(parts.layout(parts.payload.len() + tail.len()))?;
        Some(Entry::fill(block, parts, tail, holders))
    }

    /// Writes an entry into memory of its layout.
    fn fill(block: Block, parts: &Parts<'_>, tail: &[u8], holders: u32) -> Entry {
        let length = parts.payload.len() + tail.len();
        debug_assert_eq!(block.layout(), parts.layout(length));
        let start = block.into_start();
        let header = start.cast::<Header>();
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(parts.aligned, ALIGNED)
            | flag(parts.has_extras(), HAS_EXTRAS)
            | flag(parts.cost_is_estimated, ESTIMATED);
        let life = parts.life.map_or(LIFE_FOR_EVER, Life::encode);
        // SAFETY: a block is memory of its layout (at least `PAYLOAD + length` bytes, aligned to 8 or more) that nobody else
        // knows of; the payload cannot overlap it.
        unsafe {
            header.write(Header {
                holders: AtomicU32::new(holders),
                marks: AtomicU8::new(0),
                kind: parts.kind & KIND | flags,
                cost: encode_cost(parts.cost),
                stamp: AtomicU64::new(parts.stamp),
                length_low: length as u32,
                scope_and_length_high: parts.scope & 0xff_ffff | ((length as u64 >> 32) as u32) << 24,
                times: AtomicU64::new(parts.created & CREATED_MASK | u64::from(life) << 40),
                key: parts.key,
            });
            let payload = start.add(PAYLOAD);
            payload.copy_from_nonoverlapping(NonNull::from(parts.payload).cast(), parts.payload.len());
            payload.add(parts.payload.len()).copy_from_nonoverlapping(NonNull::from(tail).cast(), tail.len());
            if parts.has_extras() {
                let extras = start.add((PAYLOAD + length).next_multiple_of(8)).cast::<u64>();
                extras.write(parts.stale);
                extras.add(1).write(parts.tags.len() as u64);
                extras.add(2).copy_from_nonoverlapping(NonNull::from(parts.tags).cast(), parts.tags.len());
            }
        }
        Entry(header)
    }

    /// # Safety
    /// `word` came from [`Entry::to_word`] and the entry has not been freed.
    pub(crate) unsafe fn from_word(word: u64) -> Entry {
        // SAFETY: the caller's promise; the address of an allocation is never zero.
        Entry(unsafe { NonNull::new_unchecked(word as usize as *mut Header) })
    }

    /// The address, which fits 48 bits on every platform that Rust runs on with virtual memory of user space.
    pub(crate) fn to_word(self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    fn header(&self) -> &Header {
        // SAFETY: whoever has an `Entry` holds it, is under an epoch guard, or has the shard's lock: it is not freed.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn key(&self) -> &KeyBytes {
        &self.header().key
    }

    fn length(&self) -> usize {
        let header = self.header();
        header.length_low as usize | ((header.scope_and_length_high >> 24) as usize) << 32
    }

    pub(crate) fn layout(&self) -> Layout {
        let kind = self.header().kind;
        let mut size = PAYLOAD + self.length();
        if kind & HAS_EXTRAS != 0 {
            size = size.next_multiple_of(8) + 16 + 8 * self.tags().len();
        }
        let align = if kind & ALIGNED != 0 { TENSOR_ALIGN } else { 8 };
        // SAFETY: the same computation made a valid layout when the entry was allocated.
        unsafe { Layout::from_size_align_unchecked(size.next_multiple_of(GRAIN), align) }
    }

    /// Bytes that it takes, as the budget counts them.
    pub(crate) fn weight(&self) -> u64 {
        self.layout().size() as u64
    }

    pub(crate) fn scope(&self) -> u32 {
        self.header().scope_and_length_high & 0xff_ffff
    }

    pub(crate) fn stamp(&self) -> &AtomicU64 {
        &self.header().stamp
    }

    #[inline]
    fn cost_is_estimated(&self) -> bool {
        self.header().kind & ESTIMATED != 0
    }

    /// Seconds that computing it took, as recorded; 0: not known.
    pub(crate) fn cost(&self) -> f32 {
        if self.cost_is_estimated() { 0.0 } else { decode_cost(self.header().cost) }
    }

    /// The same in nanoseconds.
    #[inline]
    pub(crate) fn cost_nanoseconds(&self) -> u64 {
        if self.cost_is_estimated() { 0 } else { self.price_nanoseconds() }
    }

    /// What making it again is taken to cost, in nanoseconds: what it cost, or an estimate.
    #[inline]
    pub(crate) fn price_nanoseconds(&self) -> u64 {
        small_float::cost_nanoseconds(self.header().cost)
    }

    /// Do they weigh the same, and cost the same to make again?
    pub(crate) fn is_as_dear_as(&self, other: Entry) -> bool {
        self.header().cost == other.header().cost && self.weight() == other.weight()
    }

    fn extras(&self) -> Option<*const u64> {
        if self.header().kind & HAS_EXTRAS == 0 {
            return None;
        }
        // SAFETY: within the allocation, by its layout.
        Some(unsafe { self.0.as_ptr().cast::<u8>().add((PAYLOAD + self.length()).next_multiple_of(8)).cast() })
    }

    pub(crate) fn tags(&self) -> &[u64] {
        match self.extras() {
            None => &[],
            // SAFETY: `new` wrote the count and so many tags there.
            Some(extras) => unsafe { std::slice::from_raw_parts(extras.add(2), extras.add(1).read() as usize) },
        }
    }

    /// Does its life never end?
    #[inline]
    pub(crate) fn lives_for_ever(&self) -> bool {
        (self.header().times.load(Ordering::Relaxed) >> 40) as u32 == LIFE_FOR_EVER
    }

    /// When it was made and how long it lives. Only for the table's readers: an orphan's times are gone.
    pub(crate) fn times(&self) -> Times {
        let word = self.header().times.load(Ordering::Relaxed);
        // SAFETY: `new` wrote the stale window there.
        let stale = self.extras().map_or(0, |extras| unsafe { extras.read() });
        let life = (word >> 40) as u32;
        Times { created: word & CREATED_MASK, life: (life != LIFE_FOR_EVER).then(|| Life::decode(life)), stale }
    }

    pub(crate) fn frequency(&self) -> u8 {
        self.header().marks.load(Ordering::Relaxed) & FREQUENCY
    }

    /// Counts a use, up to `most`, which is 15 at most. Once the entry is hot this only reads. Two readers at once may
    /// count as one.
    #[inline]
    pub(crate) fn touch(&self, most: u8) {
        debug_assert!(most <= FREQUENCY);
        let marks = &self.header().marks;
        let seen = marks.load(Ordering::Relaxed);
        if seen & FREQUENCY < most {
            let _ = marks.compare_exchange(seen, seen + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// For the writer, who alone changes other marks than the frequency: a plain store, which may undo the count of a
    /// reader at the same moment. A reader's own change compares the whole byte first, so it undoes nothing.
    fn set_marks(&self, mask: u8, value: u8) {
        let marks = &self.header().marks;
        marks.store(marks.load(Ordering::Relaxed) & !mask | value, Ordering::Relaxed);
    }

    pub(crate) fn set_frequency(&self, frequency: u8) {
        self.set_marks(FREQUENCY, frequency);
    }

    pub(crate) fn in_main(&self) -> bool {
        self.header().marks.load(Ordering::Relaxed) & IN_MAIN != 0
    }

    pub(crate) fn set_in_main(&self, main: bool) {
        self.set_marks(IN_MAIN, if main { IN_MAIN } else { 0 });
    }

    pub(crate) fn visited(&self) -> bool {
        self.header().marks.load(Ordering::Relaxed) & VISITED != 0
    }

    pub(crate) fn set_visited(&self, visited: bool) {
        self.set_marks(VISITED, if visited { VISITED } else { 0 });
    }

    /// Takes over the place that `old` has in its queue; being stored again is a use, of which `most` count. Before it
    /// is published.
    pub(crate) fn succeed(&self, old: Entry, most: u8) {
        self.set_marks(QUEUE_STATE, old.header().marks.load(Ordering::Relaxed) & QUEUE_STATE);
        self.touch(most);
    }

    /// Another holder.
    #[inline]
    pub(crate) fn hold(self) -> EntryRef {
        let before = self.header().holders.fetch_add(1, Ordering::Relaxed);
        if before > MAX_HOLDERS {
            std::process::abort();
        }
        EntryRef(self)
    }

    /// Asks for the memory that the next entry may be written into.
    #[inline]
    pub(crate) fn prefetch(self) {
        prefetch(self.to_word());
        self.prefetch_payload();
    }

    /// Asks for what a hit will read after the header.
    #[inline]
    pub(crate) fn prefetch_payload(self) {
        prefetch(self.to_word() + PAYLOAD as u64);
    }

    /// The table gives its entry up, and its memory is free. If others still hold the entry there is none to be had: its
    /// bytes move to `pinned`, and whoever is last frees them.
    ///
    /// # Safety
    /// The entry is unlinked and no reader under a guard can reach it; the table's hold is given up with this call.
    pub(crate) unsafe fn give_up(self, pinned: &Arc<Pinned>) -> Option<Block> {
        // Only a look-up or a clone makes a holder. No look-up can find the entry any more, and the table, which does not
        // clone, is the one that is left: so a one stays a one. Acquire: what others did with the entry happened before.
        if self.header().holders.load(Ordering::Acquire) == 1 {
            // SAFETY: as just said, the memory is this caller's alone, and was allocated with this layout.
            return Some(unsafe { Block::from_start(self.0.cast(), self.layout()) });
        }
        pinned.add(self.weight());
        let address = Arc::into_raw(pinned.clone()).expose_provenance() as u64;
        // Nobody reads times any more: that takes a look-up, and the last reader that had one has left its guard.
        self.header().times.store(address, Ordering::Relaxed);
        self.header().marks.fetch_or(ORPHAN, Ordering::Release);
        drop(EntryRef(self));
        None
    }
}

/// When an entry was made and how long it lives, in milliseconds of the cache's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When it was made.
    pub created: u64,
    /// How long it is fresh; `None`: until evicted.
    pub life: Option<u64>,
    /// How long after that it may be served stale.
    pub stale: u64,
}

impl Times {
    /// The first millisecond at which it is no longer fresh.
    pub fn soft_deadline(&self) -> Option<u64> {
        Some(self.created.saturating_add(self.life?))
    }

    /// The first millisecond at which it may not be served in any way.
    pub fn hard_deadline(&self) -> Option<u64> {
        Some(self.soft_deadline()?.saturating_add(self.stale))
    }
}

const CREATED_MASK: u64 = (1 << 40) - 1;
#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    fn parts(payload: &[u8]) -> Parts<'_> {
        Parts {
            key: [7; 32],
            kind: 5,
            aligned: false,
            payload,
            scope: 0xabcdef,
            stamp: 9,
            created: 1_234,
            life: Some(60_000),
            stale: 0,
            tags: &[],
            cost: 0.005,
            cost_is_estimated: false,
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let tags = [1, u64::MAX];
        for aligned in [false, true] {
            for length in [0, 1, 7, 8, 63, 64, 65, 1536] {
                let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
                for (tags, stale) in [(&tags[..], 0), (&[], 0), (&[], 5), (&tags[..], 5)] {
                    let held = EntryRef(Entry::new(&Parts { aligned, tags, stale, ..parts(&payload) }, 1));
                    assert_eq!(held.payload(), payload);
                    assert_eq!((held.kind(), held.0.scope(), held.stamp(), held.key()), (5, 0xabcdef, 9, &[7; 32]));
                    assert_eq!(held.tags(), tags);
                    assert_eq!(held.0.times(), Times { created: 1_234, life: Some(60_000), stale });
                    assert!(!aligned || held.payload().as_ptr().addr().is_multiple_of(TENSOR_ALIGN));
                }
            }
        }
    }

    #[test]
    fn a_held_entry_that_the_table_gives_up_counts_as_pinned_until_it_is_dropped() {
        let pinned = Arc::new(Pinned::default());
        let (entry, held) = Entry::new_held(&parts(&[1; 100]), None);
        let weight = entry.weight();
        // SAFETY: no table and no reader knows this entry.
        assert!(unsafe { entry.give_up(&pinned) }.is_none());
        assert_eq!(pinned.bytes(), weight);
        assert_eq!(held.payload(), [1; 100]);
        let other = held.clone();
        drop(held);
        assert_eq!(pinned.bytes(), weight);
        drop(other);
        assert_eq!(pinned.bytes(), 0);
        assert_eq!(Arc::strong_count(&pinned), 1);
    }

    #[test]
    fn frequency_stops_where_it_is_to_and_leaves_the_other_marks_alone() {
        for most in [3, 15] {
            let held = EntryRef(Entry::new(&parts(b""), 1));
            held.0.set_in_main(true);
            for seen in (1..=most).chain([most, most]) {
                held.0.touch(most);
                assert_eq!(held.0.frequency(), seen);
            }
            assert!(held.0.in_main() && !held.0.visited());
        }
    }

    #[test]
    fn an_estimated_cost_is_a_price_and_no_cost() {
        let own = EntryRef(Entry::new(&parts(b""), 1));
        let estimated = EntryRef(Entry::new(&Parts { cost_is_estimated: true, ..parts(b"") }, 1));
        assert_eq!(own.0.cost_nanoseconds(), own.0.price_nanoseconds());
        assert_eq!((estimated.0.cost_nanoseconds(), estimated.cost()), (0, 0.0));
        assert_eq!(estimated.0.price_nanoseconds(), own.0.price_nanoseconds());
        assert_eq!(estimated.kind(), own.kind());
    }
}
