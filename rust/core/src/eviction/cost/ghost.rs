//! Fingerprints of what had to go not long ago.

use crate::table::prefetch;

/// Prints of a bucket: a cache line.
const WIDTH: usize = 32;
/// The bit of a print that says which queue it left.
const FROM_MAIN: u16 = 0x8000;

/// What is remembered of an entry that left and is wanted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Return {
    /// It had left the main queue.
    pub(super) from_main: bool,
    /// It is among the younger ones that are remembered: fewer entries left since than about half of those that are
    /// held.
    pub(super) soon: bool,
}

/// A bucket: the youngest first, so a print's place tells its age, and one that is pushed out at the end is forgotten.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket([u16; WIDTH]);

/// Remembers the last `size` that left, give or take: each bucket remembers its own last 32, and those of a bucket are
/// `size` on the average, a sixth more or less as a rule.
#[derive(Debug, Default)]
pub(super) struct Ghost {
    buckets: Vec<Bucket>,
    /// How many it remembers.
    size: usize,
}

/// A print that is never zero: zero is an empty place. A stranger has the print of one of a bucket once in a thousand.
fn print(low: u32) -> u16 {
    (low as u16 & !FROM_MAIN).max(1)
}

impl Ghost {
    pub(super) fn bytes(&self) -> u64 {
        (self.buckets.capacity() * size_of::<Bucket>()) as u64
    }

    fn bucket(&self, low: u32) -> usize {
        ((u64::from(low) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Asks for the memory that `take` will look at.
    pub(super) fn prefetch(&self, low: u32) {
        let start = self.buckets.as_ptr().expose_provenance() as u64;
        prefetch(start + (self.bucket(low) * size_of::<Bucket>()) as u64);
    }

    /// The size that it should have to remember `least`, if not the present one.
    fn wanted(&self, least: usize) -> Option<usize> {
        let least = least.max(8);
        (least > self.size || least < self.size / 4).then_some(least + least / 8)
    }

    fn buckets_for(size: usize) -> usize {
        size.div_ceil(WIDTH)
    }

    /// Bytes by which `put` grows the table.
    pub(super) fn growth(&self, least: usize) -> u64 {
        self.wanted(least).map_or(0, |size| (Ghost::buckets_for(size) * size_of::<Bucket>()) as u64)
    }

    /// Remembers an entry that left; it is to remember the last `least`.
    pub(super) fn put(&mut self, low: u32, from_main: bool, least: usize) {
        if let Some(size) = self.wanted(least) {
            self.resize(size);
        }
        self.push(low, print(low) | if from_main { FROM_MAIN } else { 0 });
    }

    fn push(&mut self, low: u32, print: u16) {
        let at = self.bucket(low);
        let Bucket(prints) = &mut self.buckets[at];
        prints.copy_within(..WIDTH - 1, 1);
        prints[0] = print;
    }

    /// Was it here? Then it is forgotten: it is about to be an entry again. `half`: half of those that are held now.
    pub(super) fn take(&mut self, low: u32, half: usize) -> Option<Return> {
        if self.buckets.is_empty() {
            return None;
        }
        let at = self.bucket(low);
        let Bucket(prints) = &mut self.buckets[at];
        let place = prints.iter().position(|&found| found & !FROM_MAIN == print(low))?;
        let from_main = prints[place] & FROM_MAIN != 0;
        prints[place] = 0;
        Some(Return { from_main, soon: place * self.buckets.len() < half })
    }

    /// A table for so many. Places follow from the size, so what was remembered is filed anew, the oldest first.
    fn resize(&mut self, size: usize) {
        let buckets = vec![Bucket([0; WIDTH]); Ghost::buckets_for(size)];
        let old = std::mem::replace(self, Ghost { buckets, size });
        let count = old.buckets.len() as u64;
        for place in (0..WIDTH).rev() {
            for (at, Bucket(prints)) in old.buckets.iter().enumerate() {
                if prints[place] != 0 {
                    // A bucket's number gives the high bits of the hash back, the print the low ones.
                    let high = (((at as u64) << 32) / count) as u32 + ((1u64 << 31) / count) as u32;
                    self.push(high & !0x7fff | u32::from(prints[place] & !FROM_MAIN), prints[place]);
                }
            }
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    fn low(number: u32) -> u32 {
        u32::from_le_bytes(blake3::hash(&number.to_le_bytes()).as_bytes()[..4].try_into().unwrap())
    }

    #[test]
    fn a_ghost_remembers_about_as_many_as_it_should() {
        for size in [32usize, 1_000, 50_000] {
            let mut ghost = Ghost::default();
            let newest = 10 * size as u32;
            for number in 0..newest {
                ghost.put(low(number), false, size);
            }
            let mut found = |range: std::ops::Range<u32>| {
                range.filter(|&number| ghost.take(low(number), size / 2).is_some()).count()
            };
            let (young, old) = (found(newest - size as u32 / 2..newest), found(0..newest - 3 * size as u32));
            assert!(young >= size / 2 * 97 / 100, "{young} of {}", size / 2);
            assert!(old <= 2 + 7 * size / 200, "{old} of {} that left long ago", 7 * size);
        }
    }

    #[test]
    fn a_ghost_forgets_what_it_gave() {
        let mut ghost = Ghost::default();
        ghost.put(77, true, 100);
        assert_eq!(ghost.take(77, 50), Some(Return { from_main: true, soon: true }));
        assert_eq!(ghost.take(77, 50), None);
    }

    #[test]
    fn a_ghost_of_another_size_keeps_some_of_the_young_ones_and_none_of_the_old_ones() {
        for size in [1_200, 200] {
            let mut ghost = Ghost::default();
            for number in 0..3_000 {
                ghost.put(low(number), false, 1_000);
            }
            let before = ghost.bytes();
            ghost.put(low(3_000), true, size);
            assert_ne!(ghost.bytes(), before);
            let mut found =
                |range: std::ops::Range<u32>| range.filter(|&number| ghost.take(low(number), 1).is_some()).count();
            let (young, old) = (found(2_900..3_000), found(0..1_000));
            assert!(young > 25 && old < 5, "{size}: {young} young ones, {old} old ones");
        }
    }

    #[test]
    fn what_left_not_long_ago_returns_soon() {
        let (mut ghost, size) = (Ghost::default(), 10_000);
        for number in 0..size {
            ghost.put(low(number), false, size as usize);
        }
        let mut soon = |range: std::ops::Range<u32>| {
            range.filter(|&number| ghost.take(low(number), 2_500).is_some_and(|found| found.soon)).count()
        };
        let (young, old) = (soon(size - 1_250..size), soon(0..size - 5_000));
        assert!(young > 1_150 && old < 100, "{young} of 1,250, {old} of 5,000");
    }
}
