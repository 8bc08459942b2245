//! One first-in-first-out queue of the policy, and how high the level stood when its elements came.

use super::rank;
use crate::chunks::Chunks;
use crate::entry::Entry;
use crate::eviction::{FEW, Resolve};
use std::collections::VecDeque;

/// Levels that a queue keeps, at most: those of a lap are about eight.
const MOST_STAMPS: usize = 24;

/// A queue of a shard: of one class, the small one or the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) rank: u8,
    pub(super) main: bool,
}

impl Place {
    /// The live entry of these bits that stands here.
    pub(super) fn find(self, low: u32, visited: bool, resolve: &impl Resolve) -> Option<Entry> {
        resolve.resolve(low, visited, |entry| entry.in_main() == self.main && rank(entry) == self.rank)
    }
}

/// A queue of hash bits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) order: Chunks,
    /// Elements whose entry has gone.
    left_over: usize,
    /// Bytes of the live entries.
    pub(super) weight: u64,
    /// The number of the element at the front; elements are numbered as they come.
    front: u64,
    /// The first element of each level that is kept, and the level. The first says that of the front.
    stamps: VecDeque<(u64, f64)>,
}

impl Queue {
    pub(super) fn live(&self) -> usize {
        self.order.len() - self.left_over
    }

    /// The level at which the element at the front came.
    pub(super) fn level(&self) -> f64 {
        self.stamps.front().map_or(0.0, |&(_, level)| level)
    }

    /// Bytes of the arrays.
    pub(super) fn bytes(&self) -> u64 {
        self.order.bytes() + (self.stamps.capacity() * size_of::<(u64, f64)>()) as u64
    }

    /// Bytes by which the next push grows them, at most.
    pub(super) fn growth(&self) -> u64 {
        let stamps = if self.stamps.len() == self.stamps.capacity() { self.stamps.capacity().max(4) } else { 0 };
        self.order.growth() + (stamps * size_of::<(u64, f64)>()) as u64
    }

    /// Takes an element at this level, of which a difference below `grain` is not worth a stamp.
    pub(super) fn push(&mut self, low: u32, level: f64, grain: f64) {
        let fresh = match self.stamps.back() {
            None => true,
            Some(&(_, last)) => level > last && level - last >= grain && self.stamps.len() < MOST_STAMPS,
        };
        if fresh {
            self.stamps.push_back((self.front + self.order.len() as u64, level));
        }
        self.order.push_back(low);
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let low = self.order.pop_front()?;
        self.front += 1;
        if self.order.is_empty() {
            self.stamps = VecDeque::new();
        } else if self.stamps.get(1).is_some_and(|&(first, _)| first <= self.front) {
            self.stamps.pop_front();
        }
        Some(low)
    }

    /// An element turned out to be a left-over.
    pub(super) fn pass_left_over(&mut self) {
        self.left_over = self.left_over.saturating_sub(1);
    }

    /// The entry of one of the elements is going; `here`: it still resolves to that element.
    pub(super) fn forget(&mut self, weight: u64, place: Place, here: bool, resolve: &impl Resolve) {
        self.left_over += 1;
        self.weight -= weight;
        if self.left_over > FEW && self.left_over > self.order.len() / 2 {
            self.compact(place, resolve);
            // An element that still resolved survived this compaction, and is found left over by the next.
            self.left_over = usize::from(here);
        }
    }

    /// Drops the left-overs. Of two elements for one entry (deleted, then stored again) the younger is the true one.
    fn compact(&mut self, place: Place, resolve: &impl Resolve) {
        let mut young_first = Vec::with_capacity(self.live());
        // How many of them are younger than each level's first, and the level.
        let mut levels = Vec::with_capacity(self.stamps.len());
        while let Some((first, level)) = self.stamps.pop_back() {
            while self.front + self.order.len() as u64 > first
                && let Some(low) = self.order.pop_back()
            {
                if let Some(entry) = place.find(low, false, resolve) {
                    entry.set_visited(true);
                    young_first.push(low);
                }
            }
            levels.push((young_first.len(), level));
        }
        let mut end = young_first.len();
        while let Some((_, level)) = levels.pop() {
            let begin = levels.last().map_or(0, |&(begin, _)| begin);
            for &low in young_first[begin..end].iter().rev() {
                if let Some(entry) = place.find(low, true, resolve) {
                    entry.set_visited(false);
                }
                self.push(low, level, 0.0);
            }
            end = begin;
        }
        if self.order.is_empty() {
            self.stamps = VecDeque::new();
        }
        self.left_over = 0;
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use crate::entry::EntryRef;
    use std::collections::HashMap;

    struct Live(HashMap<u32, EntryRef>);

    impl Resolve for Live {
        fn resolve(&self, low: u32, visited: bool, stands: impl Fn(Entry) -> bool) -> Option<Entry> {
            self.0.get(&low).map(EntryRef::entry).filter(|&entry| entry.visited() == visited && stands(entry))
        }

        fn prefetch(&self, _: u32, _: bool) {}
    }

    fn entry() -> EntryRef {
        EntryRef::detached(0, &[], false)
    }

    #[test]
    fn a_compaction_keeps_order_and_levels() {
        let (mut queue, mut live) = (Queue::default(), Live(HashMap::new()));
        let place = Place { rank: rank(entry().entry()), main: false };
        for low in 0..200 {
            live.0.insert(low, entry());
            queue.push(low, f64::from(low / 20), 0.0);
            queue.weight += 1;
        }
        for low in (0..200).filter(|low| low % 10 != 3) {
            live.0.remove(&low);
            queue.forget(1, place, false, &live);
        }
        assert!(queue.order.len() < 100, "it was compacted");
        let mut found = Vec::new();
        loop {
            let level = queue.level();
            let Some(low) = queue.pop() else { break };
            found.extend(live.0.contains_key(&low).then_some((low, level)));
        }
        assert_eq!(found, (0..20).map(|at| (10 * at + 3, f64::from(at / 2))).collect::<Vec<_>>());
    }
}
