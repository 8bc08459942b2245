//! Fences by tag, read without a lock.

use crate::sync::atomic::{AtomicU64, Ordering};

/// What a slot holds of its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fenced {
    /// The last purge that hides, as a stamp's word; zero: none.
    pub(super) hard: u64,
    /// The last one that marks stale.
    pub(super) soft: u64,
    /// Purges that the authority has not acknowledged: see [`HARD`], [`SOFT`].
    pub(super) pending: u64,
}

/// A hard purge of the tag is pending.
pub(super) const HARD: u64 = 1;
/// A soft one is.
pub(super) const SOFT: u64 = 2;

#[derive(Debug)]
struct Slot {
    tag: AtomicU64,
    hard: AtomicU64,
    soft: AtomicU64,
    pending: AtomicU64,
}

impl Slot {
    fn holds(&self) -> Fenced {
        Fenced {
            hard: self.hard.load(Ordering::Acquire),
            soft: self.soft.load(Ordering::Acquire),
            pending: self.pending.load(Ordering::Acquire),
        }
    }
}

/// Open addressing, never more than half full. It belongs to one epoch: a reader who holds a stamp of another one must
/// not take "no fence here" for an answer.
#[derive(Debug)]
pub(super) struct Map {
    /// The local index of the epoch.
    pub(super) epoch: u16,
    slots: Box<[Slot]>,
}

impl Map {
    pub(super) fn new(epoch: u16, slots: usize) -> Map {
        let zero = || AtomicU64::new(0);
        let free = || Slot { tag: zero(), hard: zero(), soft: zero(), pending: zero() };
        Map { epoch, slots: (0..slots.next_power_of_two().max(64)).map(|_| free()).collect() }
    }

    /// Is there no room for one more beside so many?
    pub(super) fn is_full(&self, used: usize) -> bool {
        (used + 1) * 2 > self.slots.len()
    }

    /// The slot of this tag, or the free one where it would be.
    fn probe(&self, tag: u64) -> &Slot {
        let mask = self.slots.len() - 1;
        let mut at = (tag >> 32) as usize & mask;
        loop {
            let slot = &self.slots[at];
            let here = slot.tag.load(Ordering::Acquire);
            if here == tag || here == 0 {
                return slot;
            }
            at = (at + 1) & mask;
        }
    }

    /// What is known of a tag.
    pub(super) fn get(&self, tag: u64) -> Fenced {
        let slot = self.probe(tag);
        if slot.tag.load(Ordering::Acquire) == tag { slot.holds() } else { Fenced::default() }
    }

    /// For the writer: raises the fences of a tag; says whether the tag is new.
    pub(super) fn raise(&self, tag: u64, hard: u64, soft: u64) -> bool {
        let slot = self.probe(tag);
        let new = slot.tag.load(Ordering::Relaxed) == 0;
        slot.hard.fetch_max(hard, Ordering::Release);
        slot.soft.fetch_max(soft, Ordering::Release);
        slot.tag.store(tag, Ordering::Release);
        new
    }

    /// For the writer: what is pending of a tag from now on; says whether the tag is new.
    pub(super) fn mark(&self, tag: u64, pending: u64) -> bool {
        let slot = self.probe(tag);
        let new = slot.tag.load(Ordering::Relaxed) == 0;
        slot.pending.store(pending, Ordering::Release);
        slot.tag.store(tag, Ordering::Release);
        new
    }

    /// For the writer: the tags and what is known of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Fenced)> + '_ {
        let tagged = self.slots.iter().map(|slot| (slot.tag.load(Ordering::Relaxed), slot));
        tagged.filter(|&(tag, _)| tag != 0).map(|(tag, slot)| (tag, slot.holds()))
    }
}
