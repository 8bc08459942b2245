//! S3-FIFO as its authors describe it, whatever an entry cost; the essay of `eviction` explains the three queues.
//!
//! The small queue's share is counted in bytes, since results differ a thousandfold in size: a tenth of what the shard
//! holds now. Before anything had to go, new entries beyond that share fill the main queue; a loop longer than the
//! cache then keeps finding them there. The ghost remembers as many fingerprints as the main queue has entries, as the
//! paper does: buckets of eight words of 16 bits of hash and 16 bits of time, the oldest of a bucket gives way. Sixteen
//! bits let a stranger pass for a returning entry once in 8,000 admissions.
//!
//! The constants are those of the paper and of libcachesim's S3-FIFO (small 0.1, ghost 0.9, two uses to enter main),
//! which tests/test_eviction.py compares with ours on real traces.

use super::{FEW, LATER, Resolve, SOON};
use crate::chunks::Chunks;
use crate::entry::Entry;
use crate::table::prefetch;

/// The small queue's share of the bytes, as a divisor.
const SMALL_SHARE: u64 = 10;
/// Uses that carry an entry from the small queue to the main one.
const USES_TO_MAIN: u8 = 2;

/// The live entry of these bits that stands in the main (or the small) queue.
fn standing(resolve: &impl Resolve, low: u32, main: bool, visited: bool) -> Option<Entry> {
    resolve.resolve(low, visited, |entry| entry.in_main() == main)
}

/// One first-in-first-out queue of hash bits.
#[derive(Debug, Default)]
struct Fifo {
    order: Chunks,
    /// Elements whose entry has gone.
    left_over: usize,
    /// Bytes of the live entries.
    bytes: u64,
}

impl Fifo {
    fn forget(&mut self, weight: u64) {
        self.left_over += 1;
        self.bytes -= weight;
    }

    fn live(&self) -> usize {
        self.order.len() - self.left_over
    }

    /// Drops the left-overs. Of two elements for one entry (deleted, then stored again) the younger is the true one.
    fn compact(&mut self, main: bool, resolve: &impl Resolve) {
        let mut young_first = Vec::with_capacity(self.live());
        while let Some(low) = self.order.pop_back() {
            if let Some(entry) = standing(resolve, low, main, false) {
                entry.set_visited(true);
                young_first.push(low);
            }
        }
        for &low in young_first.iter().rev() {
            if let Some(entry) = standing(resolve, low, main, true) {
                entry.set_visited(false);
            }
            self.order.push_back(low);
        }
        self.left_over = 0;
    }
}

/// The three queues of one shard.
#[derive(Debug, Default)]
pub(crate) struct S3Fifo {
    small: Fifo,
    main: Fifo,
    ghost: Ghost,
    /// Something has had to go already.
    warm: bool,
}

impl S3Fifo {
    /// Puts a new entry into the queue where it belongs, and marks it so. Before it is published. `share` is what the
    /// shard may come to hold, in bytes.
    pub(super) fn admit(&mut self, low: u32, entry: Entry, share: u64) {
        // While the cache fills, what the small queue's share does not hold fills the main queue.
        let overflow = !self.warm && self.small.bytes * SMALL_SHARE >= share;
        let main = self.ghost.take(low) || overflow;
        entry.set_in_main(main);
        let queue = if main { &mut self.main } else { &mut self.small };
        queue.order.push_back(low);
        queue.bytes += entry.weight();
    }

    /// Before room is made for an entry of these bits: asks for what `admit` will look at.
    pub(super) fn prefetch(&self, low: u32) {
        self.ghost.prefetch(low);
    }

    /// `new` has taken the place of `old` (whose marks it took over).
    pub(super) fn replace(&mut self, old: Entry, new: Entry) {
        let queue = if old.in_main() { &mut self.main } else { &mut self.small };
        queue.bytes = queue.bytes - old.weight() + new.weight();
    }

    /// The entry is about to be taken out by somebody else: deleted, or expired.
    pub(super) fn forget(&mut self, entry: Entry, resolve: &impl Resolve) {
        let main = entry.in_main();
        let queue = if main { &mut self.main } else { &mut self.small };
        queue.forget(entry.weight());
        // The entry itself still resolves, so its element survives this compaction and is found left over by the next.
        if queue.left_over > FEW && queue.left_over > queue.order.len() / 2 {
            queue.compact(main, resolve);
            queue.left_over = 1;
        }
    }

    /// The entry that has to go, already out of its queue.
    pub(super) fn victim(&mut self, resolve: &impl Resolve) -> Option<(u32, Entry)> {
        self.warm = true;
        loop {
            let small_first = self.small.bytes * SMALL_SHARE > self.small.bytes + self.main.bytes;
            let from_main = self.small.order.is_empty() || (!small_first && !self.main.order.is_empty());
            let queue = if from_main { &mut self.main } else { &mut self.small };
            let low = queue.order.pop_front()?;
            // What lies at the end of a queue has long left the processor's caches: two misses, one behind the other.
            if let (Some(soon), Some(later)) = (queue.order.ahead(SOON), queue.order.ahead(LATER)) {
                resolve.prefetch(soon, true);
                resolve.prefetch(later, false);
            }
            let Some(entry) = standing(resolve, low, from_main, false) else {
                queue.left_over = queue.left_over.saturating_sub(1);
                continue;
            };
            let (uses, weight) = (entry.frequency(), entry.weight());
            if from_main && uses > 0 {
                entry.set_frequency(uses - 1);
                self.main.order.push_back(low);
                continue;
            }
            queue.bytes -= weight;
            if from_main {
                return Some((low, entry));
            }
            if uses >= USES_TO_MAIN {
                entry.set_in_main(true);
                entry.set_frequency(0);
                self.main.order.push_back(low);
                self.main.bytes += weight;
                continue;
            }
            self.ghost.put(low, self.main.live() + self.small.live());
            return Some((low, entry));
        }
    }

    /// Bytes of the queues' own arrays.
    pub(super) fn bytes(&self) -> u64 {
        self.small.order.bytes() + self.main.order.bytes() + (self.ghost.words.capacity() * size_of::<u32>()) as u64
    }

    /// Bytes by which the arrays may grow when an entry is admitted, and another one leaves for it.
    pub(super) fn growth(&self) -> u64 {
        let ghost = self.ghost.growth(self.main.live() + self.small.live());
        // Entries that go over from the small queue to the main one may open a chunk there before they close one here.
        self.small.order.growth() + self.main.order.growth() + 2 * Chunks::BYTES + ghost
    }
}

/// Ways of a ghost's bucket.
const WAYS: usize = 8;
/// log₂ of the ticks of a ghost's life, at most.
const LIFE_BITS: u32 = 10;

/// Fingerprints of what left the small queue not long ago.
#[derive(Debug, Default)]
struct Ghost {
    /// Buckets of eight; a word is 16 bits of fingerprint over 16 bits of tick; 0 is empty.
    words: Vec<u32>,
    /// How many it remembers.
    size: usize,
    /// How many were put in.
    count: u64,
}

impl Ghost {
    /// log₂ of the entries that leave in a tick: a power of two, for a division would be a good part of a store.
    fn granule(&self) -> u32 {
        (usize::BITS - self.size.leading_zeros()).saturating_sub(LIFE_BITS)
    }

    fn tick(&self) -> u32 {
        (self.count >> self.granule()) as u32 & 0xffff
    }

    fn life(&self) -> u32 {
        (self.size >> self.granule()) as u32
    }

    /// Asks for the memory that `take` will look at.
    fn prefetch(&self, low: u32) {
        prefetch(self.words.as_ptr().expose_provenance() as u64 + 4 * self.bucket(low).start as u64);
    }

    fn bucket(&self, low: u32) -> std::ops::Range<usize> {
        let buckets = self.words.len() / WAYS;
        let first = ((u64::from(low) * buckets as u64) >> 32) as usize * WAYS;
        first..first + WAYS
    }

    /// A fingerprint that is never zero, in the high half of a word.
    fn print(low: u32) -> u32 {
        (low & 0xffff).max(1) << 16
    }

    /// The size that it should have while the shard holds so many entries, if not the present one.
    fn wanted(&self, entries: usize) -> Option<usize> {
        let wanted = (entries * 9 / 10).max(8);
        (wanted > self.size || wanted < self.size / 4).then_some(wanted + wanted / 4)
    }

    /// Bytes by which `put` grows the table.
    fn growth(&self, entries: usize) -> u64 {
        self.wanted(entries).map_or(0, |size| Ghost::words(size) as u64 * 4)
    }

    /// Half again as many words as fingerprints: a bucket of eight then seldom drops a live one.
    fn words(size: usize) -> usize {
        (size * 3 / 2).next_multiple_of(WAYS)
    }

    /// Remembers an entry that left; `entries` is how many the shard holds now.
    fn put(&mut self, low: u32, entries: usize) {
        if let Some(size) = self.wanted(entries) {
            self.resize(size);
        }
        self.count += 1;
        let (tick, range) = (self.tick(), self.bucket(low));
        let words = &mut self.words[range];
        let age = |word: u32| if word == 0 { u32::MAX } else { tick.wrapping_sub(word) & 0xffff };
        let oldest = (0..WAYS).max_by_key(|&way| age(words[way])).expect("a bucket has ways");
        words[oldest] = Self::print(low) | tick;
    }

    /// Was it here? Then it is forgotten: it is about to be an entry again.
    fn take(&mut self, low: u32) -> bool {
        if self.words.is_empty() {
            return false;
        }
        let (tick, life, range) = (self.tick(), self.life(), self.bucket(low));
        for word in &mut self.words[range] {
            if *word & 0xffff_0000 == Self::print(low) && tick.wrapping_sub(*word) & 0xffff <= life {
                *word = 0;
                return true;
            }
        }
        false
    }

    /// A table for so many. Positions and ticks follow from the size, so what was remembered is filed anew.
    fn resize(&mut self, size: usize) {
        let old = std::mem::take(self);
        self.size = size;
        self.words = vec![0; Ghost::words(size)];
        let old_buckets = old.words.len() / WAYS;
        let mut left: Vec<(u32, u32)> = Vec::new();
        for (at, &word) in old.words.iter().enumerate() {
            let age = old.tick().wrapping_sub(word) & 0xffff;
            if word != 0 && age <= old.life() {
                // The bucket gives the high bits of the hash back, the fingerprint the low ones.
                let high = ((((at / WAYS) as u64) << 32) / old_buckets as u64) as u32 + (1 << 31) / old_buckets as u32;
                left.push((age, high & 0xffff_0000 | word >> 16));
            }
        }
        left.sort_unstable_by_key(|&(age, _)| std::cmp::Reverse(age));
        for (_, low) in left {
            self.count += 1;
            let (tick, range) = (self.tick(), self.bucket(low));
            if let Some(free) = self.words[range].iter_mut().find(|word| **word == 0) {
                *free = Self::print(low) | tick;
            }
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl S3Fifo {
        /// What has to hold while so many entries that weigh so much together are held.
        pub(crate) fn check(&self, entries: usize, weight: u64) -> Result<(), TestCaseError> {
            prop_assert_eq!(self.small.live() + self.main.live(), entries, "each entry has an element");
            prop_assert_eq!(self.small.bytes + self.main.bytes, weight);
            Ok(())
        }
    }

    #[test]
    fn a_ghost_remembers_as_many_as_it_should() {
        for entries in [20usize, 1_000, 50_000] {
            let mut ghost = Ghost::default();
            let low = |number: u32| {
                u32::from_le_bytes(blake3::hash(&number.to_le_bytes()).as_bytes()[..4].try_into().unwrap())
            };
            for number in 0..10 * entries as u32 {
                ghost.put(low(number), entries);
            }
            let newest = 10 * entries as u32;
            let mut found = |range: std::ops::Range<u32>| range.filter(|&number| ghost.take(low(number))).count();
            let young = found(newest - entries as u32 * 8 / 10..newest);
            let old = found(0..newest - 2 * entries as u32);
            assert!(young >= entries * 8 / 10 * 97 / 100, "{young} of {}", entries * 8 / 10);
            assert!(old <= 2 + entries / 100, "{old} that left long ago");
        }
    }

    #[test]
    fn a_ghost_forgets_what_it_gave() {
        let mut ghost = Ghost::default();
        ghost.put(77, 100);
        assert!(ghost.take(77));
        assert!(!ghost.take(77));
    }
}
