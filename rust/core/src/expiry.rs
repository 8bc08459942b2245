//! Deadlines and their bounded reclaim.
//!
//! The deadline of an entry is checked at every read; that is what makes answers correct. This wheel only gives the bytes
//! of expired entries back, a bounded number at each write, without a thread of its own and without anybody reading
//! them (G. Varghese and T. Lauck: "Hashed and hierarchical timing wheels", SOSP 1987).
//!
//! Five levels of 64 slots; a slot of the first is 64 ms wide, of the next 4 s, then 4.4 min, 4.7 h and 12.4 days; what
//! lies more than two years ahead waits in the furthest slot and is filed again. An
//! element is the four bytes that stand for an entry (table.rs), filed by the entry's hard deadline in the level of the
//! highest six bits in which that differs from now. When time comes to a slot, its elements are looked up: gone, filed
//! elsewhere since, to be filed one level down, or expired. An entry whose deadline was changed is simply filed again.

use crate::chunks::Chunks;

/// log₂ of the first level's slot in milliseconds.
const TICK_BITS: u32 = 6;
/// log₂ of the slots of a level.
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 5;

#[derive(Debug)]
struct Level {
    occupied: u64,
    slots: [Chunks; SLOTS],
}

/// What is to be done with an element whose slot's time has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Its entry is gone, or never expires: drop the element.
    Gone,
    /// Its entry's hard deadline, in milliseconds.
    At(u64),
}

/// One shard's wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// The tick up to which everything was handled.
    now: u64,
    /// No slot begins before this tick: what a write looks at first, and mostly all that it looks at.
    soonest: u64,
    levels: [Option<Box<Level>>; LEVELS],
    elements: usize,
    bytes: u64,
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel { now: 0, soonest: u64::MAX, levels: Default::default(), elements: 0, bytes: 0 }
    }
}

/// The first tick at whose beginning a deadline has passed.
fn tick_after(deadline: u64) -> u64 {
    deadline.div_ceil(1 << TICK_BITS)
}

impl Wheel {
    /// Files an element by its hard deadline, in milliseconds.
    pub(crate) fn file(&mut self, low: u32, deadline: u64) {
        // The slot of the last level in which we are comes round again only behind all others.
        let last = (SLOT_BITS * (LEVELS as u32 - 1), SLOTS as u64 - 1);
        let furthest = ((self.now >> last.0) + last.1) << last.0;
        let tick = tick_after(deadline).max(self.now + 1).min(furthest);
        let level = ((63 - (tick ^ self.now).leading_zeros()) / SLOT_BITS) as usize;
        let level = level.min(LEVELS - 1);
        let shift = SLOT_BITS * level as u32;
        let slot = (tick >> shift) as usize % SLOTS;
        self.soonest = self.soonest.min(tick >> shift << shift);
        let bytes = &mut self.bytes;
        let level = self.levels[level].get_or_insert_with(|| {
            *bytes += size_of::<Level>() as u64;
            Box::new(Level { occupied: 0, slots: std::array::from_fn(|_| Chunks::default()) })
        });
        let elements = &mut level.slots[slot];
        *bytes -= elements.bytes();
        elements.push_back(low);
        *bytes += elements.bytes();
        level.occupied |= 1 << slot;
        self.elements += 1;
    }

    /// Elements filed, those of gone entries included.
    pub(crate) fn len(&self) -> usize {
        self.elements
    }

    /// Bytes of the wheel's arrays.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes by which the arrays may grow when an element is filed, at most: a level, a chunk, and the list of a slot's
    /// chunks.
    pub(crate) fn growth(&self) -> u64 {
        size_of::<Level>() as u64 + 256 + (self.elements as u64 / 64 + 4) * size_of::<usize>() as u64
    }

    /// The next occupied slot: its level, its number, and the tick at which it begins.
    fn next(&self) -> Option<(usize, usize, u64)> {
        (0..LEVELS)
            .filter_map(|at| {
                let level = self.levels[at].as_ref()?;
                if level.occupied == 0 {
                    return None;
                }
                let shift = SLOT_BITS * at as u32;
                let here = (self.now >> shift) as u32 % SLOTS as u32;
                let ahead = level.occupied.rotate_right(here).trailing_zeros();
                let begin = ((self.now >> shift) + u64::from(ahead)) << shift;
                Some((at, (here + ahead) as usize % SLOTS, begin.max(self.now)))
            })
            .min_by_key(|&(at, _, begin)| (begin, std::cmp::Reverse(at)))
    }

    /// A time in milliseconds before which `next_expired` has nothing to do.
    #[inline]
    pub(crate) fn next_due(&self) -> u64 {
        self.soonest.saturating_mul(1 << TICK_BITS)
    }

    /// Has no slot's time come? Then time goes on, and that is all.
    #[inline]
    pub(crate) fn is_quiet(&mut self, now: u64) -> bool {
        let target = now >> TICK_BITS;
        let quiet = target < self.soonest;
        if quiet {
            self.now = self.now.max(target);
        }
        quiet
    }

    /// The next element whose entry has expired at `now` (milliseconds), of at most `most` that are looked at; `most` is
    /// counted down. `due` says what has become of an element's entry.
    pub(crate) fn next_expired(&mut self, now: u64, most: &mut usize, due: impl Fn(u32) -> Due) -> Option<u32> {
        while *most > 0 && !self.is_quiet(now) {
            let Some((at, slot, begin)) = self.next() else {
                self.soonest = u64::MAX;
                continue;
            };
            self.soonest = begin;
            if self.is_quiet(now) {
                return None;
            }
            self.now = self.now.max(begin);
            let level = self.levels[at].as_mut().expect("an occupied level exists");
            let elements = &mut level.slots[slot];
            self.bytes -= elements.bytes();
            let low = elements.pop_back().expect("an occupied slot has elements");
            self.bytes += elements.bytes();
            if elements.is_empty() {
                level.occupied &= !(1 << slot);
            }
            self.elements -= 1;
            *most -= 1;
            match due(low) {
                Due::Gone => {}
                Due::At(deadline) if deadline <= now => return Some(low),
                Due::At(deadline) => self.file(low, deadline),
            }
        }
        None
    }

    /// Empties the wheel, so that it can be filled anew without the elements of gone entries.
    pub(crate) fn clear(&mut self) {
        *self = Wheel { now: self.now, ..Wheel::default() };
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn drain(wheel: &mut Wheel, now: u64, deadlines: &BTreeMap<u32, u64>) -> Vec<u32> {
        let mut out = Vec::new();
        let mut most = usize::MAX;
        while let Some(low) =
            wheel.next_expired(now, &mut most, |low| deadlines.get(&low).map_or(Due::Gone, |&at| Due::At(at)))
        {
            out.push(low);
        }
        out
    }

    proptest! {
        #[test]
        fn everything_expires_once_its_time_has_come_and_nothing_before(
            steps in proptest::collection::vec((0u64..1 << 43, 0u32..13), 1..200), jumps in proptest::collection::vec((0u64..1 << 41, 0u32..13), 1..50)
        ) {
            let mut wheel = Wheel::default();
            let mut deadlines = BTreeMap::new();
            let (mut now, mut steps) = (0, steps.into_iter().enumerate());
            for jump in jumps {
                for (number, (ahead, shift)) in steps.by_ref().take(5) {
                    let deadline = now + (ahead >> (3 * shift));
                    deadlines.insert(number as u32, deadline);
                    wheel.file(number as u32, deadline);
                }
                now += jump.0 >> (3 * jump.1);
                for low in drain(&mut wheel, now, &deadlines) {
                    let deadline = deadlines.remove(&low).expect("expired twice");
                    prop_assert!(deadline <= now);
                }
                // Space may come back up to two slots of the first level after the deadline.
                prop_assert!(deadlines.values().all(|&deadline| deadline + 128 > now), "left behind");
                prop_assert_eq!(wheel.len(), deadlines.len());
            }
        }
    }

    #[test]
    fn a_deadline_of_years_ahead_costs_nothing_until_it_comes() {
        let year = 365 * 24 * 3_600_000u64;
        for now in [0, 1_000_000, 12_345_678_901] {
            let deadlines: BTreeMap<u32, u64> = (1..=100).map(|years| (years as u32, now + years * year)).collect();
            let mut wheel = Wheel::default();
            assert!(drain(&mut wheel, now, &BTreeMap::new()).is_empty());
            for (&low, &deadline) in &deadlines {
                wheel.file(low, deadline);
            }
            let mut most = 1_000;
            assert!(wheel.next_expired(now + 1_000, &mut most, |low| Due::At(deadlines[&low])).is_none());
            assert_eq!(most, 1_000, "nothing was due, so nothing was to be looked at");
            assert_eq!(drain(&mut wheel, now + 50 * year, &deadlines).len(), 50);
        }
    }

    #[test]
    fn a_step_looks_at_no_more_than_it_may() {
        let mut wheel = Wheel::default();
        for low in 0..1_000 {
            wheel.file(low, 10_000);
        }
        let mut most = 10;
        assert!(wheel.next_expired(1_000_000, &mut most, |_| Due::Gone).is_none());
        assert_eq!((most, wheel.len()), (0, 990));
    }

    #[test]
    fn the_arrays_are_counted() {
        let mut wheel = Wheel::default();
        assert_eq!(wheel.bytes(), 0);
        for low in 0..1_000 {
            wheel.file(low, 3_600_000);
        }
        assert!(wheel.bytes() >= 4_000 && wheel.bytes() < 4_000 + 600 + size_of::<Level>() as u64, "{}", wheel.bytes());
        wheel.clear();
        assert_eq!((wheel.bytes(), wheel.len(), wheel.next_due()), (0, 0, u64::MAX));
    }
}
