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

mod parts; // what an entry is made of
mod small_float;

pub use parts::Parts;

use crate::limits::KEY_BYTES;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use small_float::{LIFE_FOR_EVER, Life, decode_cost, encode_cost};
#[cfg(not(feature = "explore"))]
use std::alloc::dealloc;
use std::alloc::{Layout, alloc, handle_alloc_error};
use std::ptr::NonNull;

/// Alignment of a payload that holds tensors, in bytes: a cache line, and what SIMD code likes best.
pub const TENSOR_ALIGN: usize = 64;
/// Where the payload begins.
const PAYLOAD: usize = size_of::<Header>().next_multiple_of(TENSOR_ALIGN);
/// The same, for who prefetches it with the header.
pub(crate) const PAYLOAD_OFFSET: u64 = PAYLOAD as u64;
/// The longest payload: its length has 40 bits.
pub const MAX_PAYLOAD_BYTES: usize = (1 << 40) - 1;

const KIND: u8 = 0x1f;
const HAS_EXTRAS: u8 = 0x40;
const ALIGNED: u8 = 0x80;

/// `marks`: two bits of frequency, which queue the entry stands in, a bit for the queue's compaction, and whether the
/// table has let go of it while others still hold it.
const FREQUENCY: u8 = 0x03;
const IN_MAIN: u8 = 0x04;
const VISITED: u8 = 0x08;
const ORPHAN: u8 = 0x10;
/// What `duplicate` hands over to the entry that replaces this one.
const QUEUE_STATE: u8 = FREQUENCY | IN_MAIN;

/// More holders than this can only be a leak of references; the process stops before the count wraps.
const MAX_HOLDERS: u32 = u32::MAX / 2;

/// A key: 32 bytes of BLAKE3.
pub type KeyBytes = [u8; KEY_BYTES];

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

/// Bytes of entries that the table has given up but callers still hold; the last of them takes its bytes out.
#[derive(Debug, Default)]
pub struct Pinned(AtomicU64);

impl Pinned {
    /// Bytes now.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Allocators hand out multiples of 16 bytes.
fn weigh(layout: Layout) -> u64 {
    layout.size().next_multiple_of(16) as u64
}

/// An entry as the table holds it: a pointer that does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(NonNull<Header>);

// SAFETY: the header's mutable fields are atomic and the rest is written before the entry is shared.
unsafe impl Send for Entry {}

impl Entry {
    /// Allocates the entry with two holders: the table, and whoever stores it.
    pub(crate) fn new_held(parts: &Parts<'_>) -> (Entry, EntryRef) {
        let entry = Entry::new(parts, 2);
        (entry, EntryRef(entry))
    }

    fn new(parts: &Parts<'_>, holders: u32) -> Entry {
        let no_memory = || handle_alloc_error(parts.layout(parts.payload.len()));
        Entry::try_new(parts, &[], holders).unwrap_or_else(no_memory)
    }

    /// An entry of these parts whose payload `tail` ends; `None`: there is no memory for it.
    fn try_new(parts: &Parts<'_>, tail: &[u8], holders: u32) -> Option<Entry> {
        let length = parts.payload.len() + tail.len();
        let layout = parts.layout(length);
        // SAFETY: the layout's size is at least `PAYLOAD`.
        let start = unsafe { alloc(layout) };
        let header = NonNull::new(start.cast::<Header>())?;
        let flags = if parts.aligned { ALIGNED } else { 0 } | if parts.has_extras() { HAS_EXTRAS } else { 0 };
        let life = parts.life.map_or(LIFE_FOR_EVER, Life::encode);
        // SAFETY: fresh memory of at least `PAYLOAD + length` bytes, aligned to 8 or more; the payload cannot overlap it.
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
            payload.copy_from_nonoverlapping(parts.payload.as_ptr(), parts.payload.len());
            payload.add(parts.payload.len()).copy_from_nonoverlapping(tail.as_ptr(), tail.len());
            if parts.has_extras() {
                let extras = start.add((PAYLOAD + length).next_multiple_of(8)).cast::<u64>();
                extras.write(parts.stale);
                extras.add(1).write(parts.tags.len() as u64);
                extras.add(2).copy_from_nonoverlapping(parts.tags.as_ptr(), parts.tags.len());
            }
        }
        Some(Entry(header))
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

    fn layout(&self) -> Layout {
        let kind = self.header().kind;
        let mut size = PAYLOAD + self.length();
        if kind & HAS_EXTRAS != 0 {
            size = size.next_multiple_of(8) + 16 + 8 * self.tags().len();
        }
        let align = if kind & ALIGNED != 0 { TENSOR_ALIGN } else { 8 };
        // SAFETY: the same computation made a valid layout when the entry was allocated.
        unsafe { Layout::from_size_align_unchecked(size, align) }
    }

    pub(crate) fn weight(&self) -> u64 {
        weigh(self.layout())
    }

    pub(crate) fn scope(&self) -> u32 {
        self.header().scope_and_length_high & 0xff_ffff
    }

    pub(crate) fn stamp(&self) -> &AtomicU64 {
        &self.header().stamp
    }

    /// Seconds that computing it took, as recorded.
    pub(crate) fn cost(&self) -> f32 {
        decode_cost(self.header().cost)
    }

    /// The same in nanoseconds.
    #[inline]
    pub(crate) fn cost_nanoseconds(&self) -> u64 {
        small_float::cost_nanoseconds(self.header().cost)
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

    /// Counts a use, up to 3. Once the entry is hot this only reads. Two readers at once may count as one.
    #[inline]
    pub(crate) fn touch(&self) {
        let marks = &self.header().marks;
        let seen = marks.load(Ordering::Relaxed);
        if seen & FREQUENCY < FREQUENCY {
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

    /// Takes over the place that `old` has in its queue; being stored again is a use. Before it is published.
    pub(crate) fn succeed(&self, old: Entry) {
        self.set_marks(QUEUE_STATE, old.header().marks.load(Ordering::Relaxed) & QUEUE_STATE);
        self.touch();
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

    /// The table gives its entry up; the bytes of one that others still hold move to `pinned`.
    ///
    /// # Safety
    /// The entry is unlinked and no reader under a guard can reach it; the table's hold is given up with this call.
    pub(crate) unsafe fn give_up(self, pinned: &Arc<Pinned>) {
        if self.header().holders.load(Ordering::Acquire) != 1 {
            pinned.0.fetch_add(self.weight(), Ordering::Relaxed);
            let address = Arc::into_raw(pinned.clone()).expose_provenance() as u64;
            // Nobody reads times any more: that takes a look-up, and the last reader that had one has left its guard.
            self.header().times.store(address, Ordering::Relaxed);
            self.header().marks.fetch_or(ORPHAN, Ordering::Release);
        }
        drop(EntryRef(self));
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

/// A counted reference to an immutable entry: the bytes live as long as anyone holds one, whatever becomes of the
/// table and of the cache.
#[derive(Debug)]
pub struct EntryRef(Entry);

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

    /// Whether the payload holds tensors and lies at a multiple of [`TENSOR_ALIGN`].
    pub fn aligned(&self) -> bool {
        self.0.header().kind & ALIGNED != 0
    }

    /// The stamp that it carries now.
    pub fn stamp(&self) -> u64 {
        self.0.stamp().load(Ordering::Acquire)
    }

    /// Seconds that computing it took, as recorded.
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
            pinned.0.fetch_sub(weigh(layout), Ordering::Relaxed);
        }
        // SAFETY: the last holder; allocated by `Entry::new` with this layout.
        unsafe { free(self.0.0.as_ptr().cast(), layout) }
    }
}

/// Frees an entry's memory.
///
/// # Safety
/// As `dealloc`.
#[cfg(not(feature = "explore"))]
unsafe fn free(start: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { dealloc(start, layout) }
}

/// While schedules are explored a freed entry is overwritten and kept, so that a reader who still looks at it is seen to.
///
/// # Safety
/// As `dealloc`.
#[cfg(feature = "explore")]
unsafe fn free(start: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise: nobody else may look at these bytes. The header's atomics are left to be found freed.
    unsafe {
        start.add(size_of::<Header>() - KEY_BYTES).write_bytes(FREED, layout.size() + KEY_BYTES - size_of::<Header>())
    };
}

/// What explored schedules see in place of a freed entry's key and payload.
#[cfg(feature = "explore")]
pub const FREED: u8 = 0xdd;

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
        let (entry, held) = Entry::new_held(&parts(&[1; 100]));
        let weight = entry.weight();
        // SAFETY: no table and no reader knows this entry.
        unsafe { entry.give_up(&pinned) };
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
    fn frequency_stops_at_three_and_leaves_the_other_marks_alone() {
        let held = EntryRef(Entry::new(&parts(b""), 1));
        held.0.set_in_main(true);
        for seen in [1, 2, 3, 3, 3] {
            held.0.touch();
            assert_eq!(held.0.frequency(), seen);
        }
        assert!(held.0.in_main() && !held.0.visited());
    }
}
