//! The sharded table: reads without locks.
//!
//! # What a reader sees
//!
//! A shard's index is an array of buckets, a cache line each: seven pointers to entries, and one word with a byte of hash
//! for each of them and a count of the entries that found this bucket full and went on.
//!
//! ```text
//!   bucket (64 bytes)   ┌──────────────────────────────┬────────┬────────┬─ … ─┬────────┐
//!                       │ tag₀ tag₁ … tag₆ │ overflow  │ entry₀ │ entry₁ │     │ entry₆ │
//!                       └──────────────────────────────┴────────┴────────┴─ … ─┴────────┘
//! ```
//!
//! A look-up loads the word, compares its tag with all seven at once (a subtraction finds the zero byte of the
//! difference), follows the one pointer that matches, and compares the 32 bytes of the key. If nothing matches and
//! nothing ever overflowed here, it is a miss after one cache line; else the next bucket is looked at (F14's counting of
//! overflows, N. Bronson and X. Shi, 2019: no tombstones, and a removal moves nothing). So a hit costs two dependent
//! cache misses when the table is cold, index and entry, and no write but that of the entry's count of holders.
//!
//! # Why no lock is needed
//!
//! Entries are immutable (stamp and marks aside) and are published whole, by one release store of their pointer; a
//! change of a key's value is one store that replaces one pointer. Tags are hints: a reader that meets an old one beside
//! a new pointer compares the key and goes on. An array that must grow is built aside and published by one store. What
//! was unlinked, entry or array, is freed or written over when no reader can have it any more (epoch.rs, limbo.rs). Thus a reader never waits, and
//! finds for each key a value that was current at some moment of its look-up, or a miss that was true at some moment:
//! an insertion may finish just after a reader has passed its place.
//!
//! Writers of one shard share a mutex: a miss costs a model run, so writers need no more. This is not a lock-free cache;
//! it is a cache whose reads take no lock.

mod hash; // where a key stands

pub(crate) use hash::{Hash, Hasher};

use crate::entry::{Entry, KeyBytes};
use crate::sync::atomic::{AtomicU64, Ordering};

/// Entries of a bucket: with their word they fill a cache line.
const WIDTH: usize = 7;
/// The bytes of the word that are tags.
const TAGS: u64 = (1 << (8 * WIDTH)) - 1;
const LOW_BITS: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
/// An overflow count that reached this stays: it only costs look-ups a line.
const SATURATED: u64 = 0xff;

/// The byte that stands beside an entry's pointer; zero is an empty place.
fn tag_of(low: u32) -> u64 {
    u64::from((low as u8).max(1))
}

/// A cache line (while schedules are explored the atomics are larger, but the budget is to see the true sizes).
const BUCKET_BYTES: usize = 64;
#[cfg(not(feature = "explore"))]
const _: () = assert!(size_of::<Bucket>() == BUCKET_BYTES);

#[repr(C, align(64))]
struct Bucket {
    word: AtomicU64,
    entries: [AtomicU64; WIDTH],
}

impl Bucket {
    fn new() -> Bucket {
        Bucket { word: AtomicU64::new(0), entries: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// Places among the seven whose tag is `tag`, as the high bit of their byte; may name one too many, never one too few.
#[inline]
fn places(word: u64, tag: u64) -> u64 {
    let difference = word ^ (tag * LOW_BITS);
    difference.wrapping_sub(LOW_BITS) & !difference & HIGH_BITS & TAGS
}

/// How many buckets an array has: four, five, six or seven times a power of two, so that seven bits say it. They ride
/// in the high bits of the array's address, which saves every look-up a dependent load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Size(u64);

impl Size {
    const SHIFT: u32 = 48;

    /// The smallest size of at least so many buckets.
    fn at_least(buckets: u64) -> Size {
        let shift = u64::from((u64::BITS - (buckets.max(1) - 1).leading_zeros()).saturating_sub(3));
        let code = |quarter: u64, shift: u64| Size(shift << 2 | quarter);
        (0..4)
            .map(|quarter| code(quarter, shift))
            .find(|size| size.buckets() as u64 >= buckets)
            .unwrap_or(code(0, shift + 1))
    }

    #[inline]
    fn buckets(self) -> usize {
        ((4 + (self.0 & 3)) << (self.0 >> 2)) as usize
    }
}

/// An array of buckets, not owned.
#[derive(Clone, Copy)]
struct View<'a>(&'a [Bucket]);

/// An array of buckets that is no longer published.
pub(crate) struct Buckets(Box<[Bucket]>);

impl Buckets {
    pub(crate) fn bytes(&self) -> u64 {
        bytes_for(self.0.len())
    }

    /// The entries that stood here when it was replaced, which the caller has to retire.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> {
        let words = self.0.iter().flat_map(|bucket| &bucket.entries).map(|slot| slot.load(Ordering::Relaxed));
        // SAFETY: the shard's mutex is held, and what the array held is not freed before it is retired.
        words.filter(|&word| word != 0).map(|word| unsafe { Entry::from_word(word) })
    }
}

impl View<'_> {
    #[inline]
    fn home(&self, low: u32) -> usize {
        // Scales 32 bits to the number of buckets, which need not be a power of two.
        ((u64::from(low) * self.0.len() as u64) >> 32) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.0.len() { 0 } else { at + 1 }
    }

    /// The first entry with this tag that `wanted` accepts, and its bucket and place.
    #[inline]
    fn find(&self, low: u32, mut wanted: impl FnMut(Entry) -> bool) -> Option<(Entry, usize, usize)> {
        let tag = tag_of(low);
        let mut at = self.home(low);
        for _ in 0..self.0.len() {
            let bucket = &self.0[at];
            let word = bucket.word.load(Ordering::Acquire);
            let mut found = places(word, tag);
            while found != 0 {
                let place = found.trailing_zeros() as usize / 8;
                let pointer = bucket.entries[place].load(Ordering::Acquire);
                if pointer != 0 {
                    // SAFETY: the caller of `Index` is under a guard or has the lock; a published pointer is valid then.
                    let entry = unsafe { Entry::from_word(pointer) };
                    if wanted(entry) {
                        return Some((entry, at, place));
                    }
                }
                found &= found - 1;
            }
            if word & !TAGS == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Puts an entry in; there must be a free place.
    fn insert(&self, low: u32, entry: Entry) {
        let mut at = self.home(low);
        loop {
            let bucket = &self.0[at];
            let word = bucket.word.load(Ordering::Relaxed);
            let free = places(word, 0);
            if free != 0 {
                // The lowest zero byte is always a true one.
                let place = free.trailing_zeros() as usize / 8;
                bucket.entries[place].store(entry.to_word(), Ordering::Release);
                bucket.word.store(word | tag_of(low) << (8 * place), Ordering::Release);
                return;
            }
            if word >> (8 * WIDTH) != SATURATED {
                bucket.word.store(word + (1 << (8 * WIDTH)), Ordering::Release);
            }
            at = self.after(at);
        }
    }
}

/// Bytes of an array of so many buckets.
fn bytes_for(buckets: usize) -> u64 {
    (buckets * BUCKET_BYTES) as u64
}

/// Asks for a cache line ahead of its use; any address will do, for nothing is read.
#[inline]
pub(crate) fn prefetch(address: u64) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::with_exposed_provenance(address as usize));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// A shard's index: readers go through it without a lock, under an epoch guard; the writer holds the shard's mutex.
pub(crate) struct Index {
    /// Address and size of the array; zero: there is none.
    array: AtomicU64,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { array: AtomicU64::new(0) }
    }

    #[inline]
    fn buckets(&self) -> Option<View<'_>> {
        let word = self.array.load(Ordering::Acquire);
        if word == 0 {
            return None;
        }
        let start = std::ptr::with_exposed_provenance((word & ((1 << Size::SHIFT) - 1)) as usize);
        // SAFETY: `publish` put there an array of this size, which is freed only after it was replaced and every guard of
        // that time is gone, or by the exclusive `Drop`; whoever calls is under a guard or has the lock.
        Some(View(unsafe { std::slice::from_raw_parts(start, Size(word >> Size::SHIFT).buckets()) }))
    }

    /// Asks for the first line of a look-up while the reader's announcement is still under way. No guard is needed:
    /// nothing is read.
    #[inline]
    pub(crate) fn prefetch(&self, low: u32) {
        let word = self.array.load(Ordering::Relaxed);
        let home = (u64::from(low) * Size(word >> Size::SHIFT).buckets() as u64) >> 32;
        prefetch((word & ((1 << Size::SHIFT) - 1)) + home * BUCKET_BYTES as u64);
    }

    /// For the writer: asks for the entries that these bits may stand for.
    pub(crate) fn prefetch_entry(&self, low: u32) {
        let Some(buckets) = self.buckets() else { return };
        let bucket = &buckets.0[buckets.home(low)];
        let found = places(bucket.word.load(Ordering::Relaxed), tag_of(low));
        if found != 0 {
            prefetch(bucket.entries[found.trailing_zeros() as usize / 8].load(Ordering::Relaxed));
        }
    }

    /// For readers (under a guard) and the writer.
    #[inline]
    pub(crate) fn find(&self, low: u32, key: &KeyBytes) -> Option<Entry> {
        let is_wanted = |entry: Entry| {
            entry.prefetch_payload();
            entry.key() == key
        };
        self.buckets()?.find(low, is_wanted).map(|(entry, ..)| entry)
    }

    /// For the writer: one store puts `new` in the place of the entry that has its key, if there is one; `before` is told
    /// of that first.
    pub(crate) fn replace(&self, low: u32, new: Entry, before: impl FnOnce(Entry)) -> Option<Entry> {
        let buckets = self.buckets()?;
        let (old, at, place) = buckets.find(low, |entry| entry.key() == new.key())?;
        before(old);
        buckets.0[at].entries[place].store(new.to_word(), Ordering::Release);
        Some(old)
    }

    /// For the writer: the entry that a queue's 32 bits stand for.
    pub(crate) fn resolve(&self, hasher: &Hasher, low: u32, accept: impl Fn(Entry) -> bool) -> Option<Entry> {
        self.buckets()?.find(low, |entry| hasher.hash(entry.key()).low == low && accept(entry)).map(|(entry, ..)| entry)
    }

    /// For the writer: bytes of the array.
    pub(crate) fn bytes(&self) -> u64 {
        self.buckets().map_or(0, |buckets| bytes_for(buckets.0.len()))
    }

    /// For the writer: how many buckets the array should have for so many entries, if not those that it has. It
    /// grows by a fifth or so when it is filled to 85 %, so a look-up seldom leaves its first line.
    #[inline]
    pub(crate) fn wanted_buckets(&self, entries: u64) -> Option<usize> {
        let has = self.buckets().map_or(0, |buckets| buckets.0.len()) as u64;
        let full = |buckets: u64| buckets * WIDTH as u64 * 85 / 100;
        if entries > full(has) {
            return Some(Size::at_least((has + 1).max(entries.div_ceil(6))).buckets());
        }
        (has > 16 && entries < full(has) / 4).then(|| Size::at_least(has / 2).buckets())
    }

    /// For the writer: bytes that an array of so many buckets takes.
    pub(crate) fn bytes_for(buckets: usize) -> u64 {
        bytes_for(buckets)
    }

    /// For the writer: a new array, published whole; the old one is to be retired.
    pub(crate) fn rebuild(&self, hasher: &Hasher, count: usize) -> Option<Buckets> {
        let size = Size::at_least(count as u64);
        let made: Box<[Bucket]> = (0..size.buckets()).map(|_| Bucket::new()).collect();
        self.for_each(|entry| View(&made).insert(hasher.hash(entry.key()).low, entry));
        let start = Box::into_raw(made).cast::<Bucket>().expose_provenance() as u64;
        debug_assert_eq!(start >> Size::SHIFT, 0, "addresses of user space have 48 bits");
        self.publish(start | size.0 << Size::SHIFT)
    }

    /// For the writer: no array at all, where there is no entry.
    pub(crate) fn dissolve(&self) -> Option<Buckets> {
        self.publish(0)
    }

    fn publish(&self, word: u64) -> Option<Buckets> {
        let old = self.buckets().map(|view| std::ptr::from_ref(view.0).cast_mut());
        self.array.store(word, Ordering::Release);
        // SAFETY: it came from `Box::into_raw` in `rebuild` and is no longer published; the caller retires it.
        old.map(|array| Buckets(unsafe { Box::from_raw(array) }))
    }

    /// For the writer: puts an entry whose key is not in; `wanted_buckets` was heeded.
    pub(crate) fn insert(&self, low: u32, entry: Entry) {
        self.buckets().expect("an array was built").insert(low, entry);
    }

    /// For the writer: takes an entry out.
    pub(crate) fn remove(&self, low: u32, entry: Entry) {
        let buckets = self.buckets().expect("the entry stands in an array");
        let (_, at, place) = buckets.find(low, |found| found == entry).expect("the entry is in");
        let bucket = &buckets.0[at];
        let word = bucket.word.load(Ordering::Relaxed);
        bucket.word.store(word & !(0xff << (8 * place)), Ordering::Release);
        bucket.entries[place].store(0, Ordering::Release);
        let mut passed = buckets.home(low);
        while passed != at {
            let word = buckets.0[passed].word.load(Ordering::Relaxed);
            if word >> (8 * WIDTH) != SATURATED {
                buckets.0[passed].word.store(word - (1 << (8 * WIDTH)), Ordering::Release);
            }
            passed = buckets.after(passed);
        }
    }

    /// For the writer: every entry, in no order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Entry)) {
        let Some(buckets) = self.buckets() else { return };
        for bucket in buckets.0 {
            for slot in &bucket.entries {
                let word = slot.load(Ordering::Relaxed);
                if word != 0 {
                    // SAFETY: the caller has the lock, so what stands here is not freed.
                    visit(unsafe { Entry::from_word(word) });
                }
            }
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        drop(self.dissolve());
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use crate::entry::{EntryRef, Parts};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn entry(key: KeyBytes) -> EntryRef {
        let parts = Parts {
            key,
            kind: 0,
            aligned: false,
            payload: b"",
            scope: 0,
            stamp: 0,
            created: 0,
            life: None,
            stale: 0,
            tags: &[],
            cost: 0.0,
            cost_is_estimated: false,
        };
        EntryRef::from_parts(&parts)
    }

    fn key(number: u16) -> KeyBytes {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_le_bytes());
        key
    }

    proptest! {
        #[test]
        fn the_index_is_a_map(steps in proptest::collection::vec((0u8..4, 0u16..600), 0..2_000)) {
            let hasher = Hasher::new(42, 1);
            let index = Index::new();
            let mut model: HashMap<u16, EntryRef> = HashMap::new();
            let mut old = Vec::new();
            for (step, number) in steps {
                let low = hasher.hash(&key(number)).low;
                match (step, model.get(&number)) {
                    (0 | 1, None) => {
                        if let Some(count) = index.wanted_buckets(model.len() as u64 + 1) {
                            old.extend(index.rebuild(&hasher, count));
                        }
                        let made = entry(key(number));
                        index.insert(low, made.entry());
                        model.insert(number, made);
                    }
                    (0 | 1, Some(present)) => {
                        let made = entry(key(number));
                        prop_assert_eq!(index.replace(low, made.entry(), |_| ()), Some(present.entry()));
                        model.insert(number, made);
                    }
                    (2, Some(present)) => {
                        index.remove(low, present.entry());
                        model.remove(&number);
                    }
                    _ => {}
                }
                for probe in [number, number.wrapping_add(1) % 600] {
                    let found = index.find(hasher.hash(&key(probe)).low, &key(probe));
                    prop_assert_eq!(found, model.get(&probe).map(EntryRef::entry));
                }
            }
            let mut count = 0;
            index.for_each(|found| {
                count += 1;
                let number = u16::from_le_bytes(found.key()[..2].try_into().unwrap());
                assert_eq!(model[&number].entry(), found);
            });
            prop_assert_eq!(count, model.len());
        }
    }

    #[test]
    fn sizes_are_dense_and_never_too_small() {
        for wanted in 1..100_000u64 {
            let size = Size::at_least(wanted).buckets() as u64;
            assert!(size >= wanted && size <= (wanted + wanted / 4 + 1).max(4), "{wanted} {size}");
        }
    }

    #[test]
    fn the_byte_search_never_misses_a_place() {
        for tag in 0..=255u64 {
            for place in 0..WIDTH {
                let word = (TAGS & !(0xff << (8 * place)) & 0x7f01_807f_01ff_5501) | tag << (8 * place) | 3 << 56;
                let found = places(word, tag);
                assert!(found & 0x80 << (8 * place) != 0, "{tag} {place}");
                assert_eq!(found & !TAGS, 0, "the overflow count is no tag");
            }
        }
    }
}
