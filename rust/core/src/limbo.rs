//! What was unlinked and waits until no reader can have it any more; then its memory is the next entry's, or freed.
//!
//! A store that replaces a value retires one entry and needs memory for another, mostly of the same size. So the oldest
//! entry here is written over if the epoch has passed its readers and nobody holds it: the memory is still in the
//! processor's caches, the allocator is not asked, and the budget is not touched, for the bytes that were spent on the
//! one are spent on the other.
//!
//! ```text
//!   unlinked ──► fresh ──► dated (epoch.rs) ──► passed ──► written over by the next entry of its size, or freed
//! ```

use crate::entry::{Block, Entry, Pinned};
use crate::epoch;
use crate::sync::Arc;
use crate::table::Buckets;
use std::alloc::Layout;
use std::collections::VecDeque;

/// A list of up to this many is kept for the next ones.
const FEW: usize = 16;
/// Entries that one store takes off the list when it looks for memory.
const FREED_PER_STORE: usize = 4;
/// The date of what has none yet.
const FRESH: u64 = u64::MAX;

/// The retired things of one shard.
#[derive(Default)]
pub(crate) struct Limbo {
    /// Entries in the order in which they were retired, each with its epoch. Those at the end have none yet: one fence
    /// serves many.
    entries: VecDeque<(u64, Entry)>,
    /// Of the entries, those without an epoch.
    fresh: usize,
    /// Their bytes.
    undated: u64,
    /// Bytes of entries and arrays.
    bytes: u64,
    /// Bytes retired since the readers were last asked for the epoch.
    unasked: u64,
    arrays: Vec<(u64, Buckets)>,
}

impl Limbo {
    /// Bytes that wait here.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.arrays.is_empty()
    }

    /// Bytes of the list itself.
    pub(crate) fn list_bytes(&self) -> u64 {
        (self.entries.capacity() * size_of::<(u64, Entry)>() + self.arrays.capacity() * size_of::<(u64, Buckets)>())
            as u64
    }

    /// Takes an entry that was just unlinked.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.bytes += entry.weight();
        self.unasked += entry.weight();
        self.undated += entry.weight();
        self.entries.push_back((FRESH, entry));
        self.fresh += 1;
        self.date_the_oldest();
    }

    /// Takes an array that was just replaced.
    pub(crate) fn push_array(&mut self, array: Buckets) {
        self.bytes += array.bytes();
        self.arrays.push((epoch::tag(), array));
    }

    /// Gives those at the end their epoch.
    fn date(&mut self) {
        if self.fresh > 0 {
            let tag = epoch::tag();
            let known = self.entries.len() - self.fresh;
            self.entries.range_mut(known..).for_each(|(at, _)| *at = tag);
            (self.fresh, self.undated) = (0, 0);
        }
    }

    /// The oldest is the next to be used: it must not be the one that has no epoch.
    fn date_the_oldest(&mut self) {
        if self.fresh == self.entries.len() {
            self.date();
        }
    }

    /// Asks for the memory that `recycle` will give.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some((_, entry)) = self.entries.front() {
            entry.prefetch();
        }
    }

    /// The memory of the oldest entry, if it fits and no reader can have it any more; and how many bytes of others, which
    /// did not fit, are held elsewhere or are more than `keep`, are spent no longer. The readers are asked (their
    /// announcements are cache lines of other processors) only after `linger` bytes.
    ///
    /// A list that is longer than it has to be is cold memory, and bytes that hold nothing: so a date is given to each
    /// `linger` bytes, lest the ones behind wait for all those before them, and what is more than `keep` is freed.
    #[inline]
    pub(crate) fn recycle(
        &mut self,
        layout: Layout,
        linger: u64,
        keep: u64,
        pinned: &Arc<Pinned>,
    ) -> (Option<Block>, u64) {
        if self.undated > linger {
            self.date();
        }
        let (mut found, mut freed) = (None, 0);
        for _ in 0..FREED_PER_STORE {
            let Some(&(tag, entry)) = self.entries.front() else { break };
            if tag > epoch::passed() && !self.ask(linger) {
                break;
            }
            self.entries.pop_front();
            let weight = entry.weight();
            self.bytes -= weight;
            // SAFETY: it was unlinked when it was retired, and the epoch has passed every reader of that time.
            match unsafe { entry.give_up(pinned) } {
                Some(block) if found.is_none() && block.layout() == layout => found = Some(block),
                _ => freed += weight,
            }
            if found.is_some() && self.bytes <= keep {
                break;
            }
        }
        (found, freed)
    }

    /// Has the epoch, asked anew if enough has gathered, passed the oldest?
    #[cold]
    fn ask(&mut self, linger: u64) -> bool {
        self.date_the_oldest();
        if self.unasked <= linger {
            return false;
        }
        self.unasked = 0;
        let passed = epoch::passed_after_two_steps();
        self.entries.front().is_some_and(|&(tag, _)| tag <= passed)
    }

    /// Frees what no reader can have any more, the oldest first, until that is `wanted` bytes or more; says how many.
    pub(crate) fn free(&mut self, wanted: u64, pinned: &Arc<Pinned>) -> u64 {
        if self.is_empty() || wanted == 0 {
            return 0;
        }
        self.date();
        self.unasked = 0;
        let (passed, before) = (epoch::passed_after_two_steps(), self.bytes);
        self.arrays.retain(|(tag, array)| {
            let free = *tag <= passed;
            self.bytes -= if free { array.bytes() } else { 0 };
            !free
        });
        while before - self.bytes < wanted
            && let Some((_, entry)) = self.entries.pop_front_if(|(tag, _)| *tag <= passed)
        {
            self.bytes -= entry.weight();
            // SAFETY: as in `recycle`.
            drop(unsafe { entry.give_up(pinned) });
        }
        self.shrink();
        before - self.bytes
    }

    /// Keeps the lists in proportion.
    fn shrink(&mut self) {
        if self.entries.is_empty() && self.entries.capacity() > FEW {
            self.entries = VecDeque::new();
        } else if self.entries.capacity() > 4 * self.entries.len() + FEW {
            self.entries.shrink_to(2 * self.entries.len());
        }
        if self.arrays.is_empty() {
            self.arrays = Vec::new();
        }
    }

    /// Gives up everything at once, when no reader is left.
    pub(crate) fn dissolve(&mut self, pinned: &Arc<Pinned>) {
        for (_, entry) in std::mem::take(self).entries {
            // SAFETY: the caller has the whole cache to itself.
            drop(unsafe { entry.give_up(pinned) });
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use crate::entry::Parts;

    /// Values are replaced for ever: what is retired is written over, and does not gather.
    #[test]
    fn what_is_retired_stays_as_short_as_it_has_to_be() {
        const LINGER: u64 = 1 << 10;
        const KEEP: u64 = 4 * LINGER;
        let payload = [0; 64];
        let parts = Parts {
            key: [0; 32],
            kind: 0,
            aligned: false,
            payload: &payload,
            scope: 0,
            stamp: 0,
            created: 0,
            life: None,
            stale: 0,
            tags: &[],
            cost: 0.0,
            cost_is_estimated: false,
        };
        let (first, held) = Entry::new_held(&parts, None);
        drop(held);
        let (layout, pinned) = (first.layout(), Arc::default());
        let (mut limbo, mut live) = (Limbo::default(), VecDeque::from([first]));
        let mut written_over = 0;
        let mut store = |limbo: &mut Limbo| {
            let (block, _) = limbo.recycle(layout, LINGER, KEEP, &pinned);
            written_over += usize::from(block.is_some());
            let (entry, held) = Entry::new_held(&parts, block);
            drop(held);
            live.push_back(entry);
            if live.len() > 100 {
                limbo.push(live.pop_front().expect("there are a hundred"));
            }
        };
        (0..100_000).for_each(|_| store(&mut limbo));
        let most = KEEP + 2 * LINGER;
        // Another test's reader holds everything up for a moment; then it is made up for.
        for _ in 0..1_000 {
            store(&mut limbo);
        }
        assert!(limbo.bytes() <= most, "{} bytes are retired, {most} would do", limbo.bytes());
        assert!(written_over > 90_000, "{written_over} of 101,000 were written over another");
        live.into_iter().for_each(|entry| limbo.push(entry));
        limbo.dissolve(&pinned);
    }
}
