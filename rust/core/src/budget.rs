//! The byte budget that shards share.
//!
//! One number, the bytes nobody has borrowed, is shared; each shard keeps a credit of its own, so that most stores touch
//! only what their shard's mutex already guards. Borrowed bytes are either credit or spent: on entries, on those that
//! are retired but not yet freed, and on the shard's own arrays. So at every instant
//!
//! ```text
//!   capacity = free + Σ credit + Σ spent,      all ≥ 0 (but see debt)
//! ```
//!
//! and what is spent never exceeds the capacity, whatever the threads do. An entry that is written over another one's memory
//! (limbo.rs) takes over what was spent on that. Before an entry is charged, and before it is put in where no other stood,
//! room is also made for what the shard's arrays may grow by. Only where another writer of the shard came between, or elements
//! of the wheel move down a level, may a credit fall below zero: by a few kilobytes, paid before anything else is spent.

use crate::sync::atomic::{AtomicU64, Ordering};

/// The shared part.
#[derive(Debug)]
pub(crate) struct Budget {
    capacity: u64,
    free: AtomicU64,
    /// What a shard asks for beyond its need.
    chunk: u64,
    /// Idle credit beyond which a shard gives back. Well above what comes and goes with every round of evictions: else
    /// what one shard evicts for itself would trickle away to the others, and their sizes would drift apart.
    most_idle: u64,
}

impl Budget {
    pub(crate) fn new(capacity: u64, shards: usize) -> Budget {
        let share = capacity / shards as u64;
        Budget { capacity, free: AtomicU64::new(capacity), chunk: (share / 64).min(1 << 20), most_idle: share / 8 }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Borrows `most` bytes or what is left of them, but nothing if less than `least` is left.
    pub(crate) fn borrow(&self, least: u64, most: u64) -> u64 {
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            let granted = free.min(most);
            if granted == 0 || granted < least {
                return 0;
            }
            match self.free.compare_exchange_weak(free, free - granted, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return granted,
                Err(changed) => free = changed,
            }
        }
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.free.fetch_add(bytes, Ordering::AcqRel);
        debug_assert!(before + bytes <= self.capacity, "more came back than was borrowed");
    }
}

/// A shard's part, guarded by its mutex.
#[derive(Debug, Default)]
pub(crate) struct Credit(i64);

impl Credit {
    /// Bytes that can be spent; negative: a debt.
    pub(crate) fn bytes(&self) -> i64 {
        self.0
    }

    /// Spends `bytes` if the credit, with what the budget still has, covers them.
    pub(crate) fn take(&mut self, budget: &Budget, bytes: u64) -> bool {
        let missing = bytes as i64 - self.0;
        if missing > 0 {
            let missing = missing as u64;
            self.0 += budget.borrow(missing, missing + budget.chunk) as i64;
        }
        let covered = self.0 >= bytes as i64;
        if covered {
            self.0 -= bytes as i64;
        }
        covered
    }

    /// Spends `bytes` if the credit, with what the budget still has, covers them and `beside` more, which stay here.
    pub(crate) fn take_beside(&mut self, budget: &Budget, bytes: u64, beside: u64) -> bool {
        let covered = self.take(budget, bytes + beside);
        if covered {
            self.lend(beside);
        }
        covered
    }

    /// Adds borrowed bytes and keeps them all, for they are about to be needed.
    pub(crate) fn lend(&mut self, bytes: u64) {
        self.0 += bytes as i64;
    }

    /// Spends `bytes`, into debt if need be.
    pub(crate) fn owe(&mut self, budget: &Budget, bytes: u64) {
        if !self.take(budget, bytes) {
            self.0 -= bytes as i64;
        }
    }

    /// Takes back `bytes` that were spent; of more than an eighth of a shard's share all but a chunk returns to the others.
    pub(crate) fn put(&mut self, budget: &Budget, bytes: u64) {
        self.0 += bytes as i64;
        if self.0 > budget.most_idle as i64 {
            let surplus = self.0 - budget.chunk as i64;
            self.0 -= surplus;
            budget.give_back(surplus as u64);
        }
    }

    /// Gives everything that is not owed to the caller, who answers for it from now on.
    pub(crate) fn drain(&mut self) -> u64 {
        let all = self.0.max(0);
        self.0 -= all;
        all as u64
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_spent_twice(capacity in 1u64..1 << 20, steps in proptest::collection::vec((0usize..3, 0u64..1 << 16, any::<bool>()), 0..200)) {
            let budget = Budget::new(capacity, 3);
            let mut credits = [Credit::default(), Credit::default(), Credit::default()];
            let mut spent = [0u64; 3];
            for (shard, bytes, take) in steps {
                if take {
                    if credits[shard].take(&budget, bytes) {
                        spent[shard] += bytes;
                    }
                } else {
                    let bytes = bytes.min(spent[shard]);
                    credits[shard].put(&budget, bytes);
                    spent[shard] -= bytes;
                }
                let credit: i64 = credits.iter().map(Credit::bytes).sum();
                prop_assert!(credits.iter().all(|credit| credit.bytes() >= 0));
                prop_assert_eq!(budget.free() + credit as u64 + spent.iter().sum::<u64>(), capacity);
            }
        }
    }

    #[test]
    fn a_debt_is_paid_before_anything_is_spent() {
        let budget = Budget::new(100, 1);
        let mut credit = Credit::default();
        assert!(credit.take(&budget, 100));
        credit.owe(&budget, 10);
        assert_eq!(credit.bytes(), -10);
        credit.put(&budget, 15);
        assert!(!credit.take(&budget, 6));
        assert!(credit.take(&budget, 5));
    }
}
