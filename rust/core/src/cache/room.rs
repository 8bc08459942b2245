//! Where the bytes of a new entry come from: an entry that is gone, the budget, or, patiently, everybody else.

use super::Cache;
use crate::entry::{Block, Entry, EntryRef, MAX_PAYLOAD_BYTES, Parts};
use crate::shard::{Open, Shard};
use crate::sync::atomic::Ordering;
use crate::sync::thread;
use crate::table::Hash;
use std::alloc::Layout;

/// Payloads up to this are copied under the shard's mutex, which saves taking it twice.
const COPIED_UNDER_LOCK: usize = 4 << 10;
/// Times that a writer yields to readers or other writers before it gives an entry up.
const PATIENCE: usize = if cfg!(feature = "explore") { 20 } else { 20_000 };
/// Arrays that the first entry of a shard may bring with it.
const GROWTH_OF_AN_EMPTY_SHARD: u64 = 6 << 10;

impl Cache {
    /// Puts an entry into the table; `None`: it is larger than the cache, or no room could be made.
    pub(super) fn publish(&self, hash: Hash, parts: &Parts<'_>, now: u64) -> Option<EntryRef> {
        if parts.payload.len() > MAX_PAYLOAD_BYTES {
            return None;
        }
        let (mut open, block) = self.room_for(hash, parts.whole_layout(), parts.life.is_some(), now)?;
        if parts.payload.len() > COPIED_UNDER_LOCK {
            drop(open);
            let (entry, held) = Entry::new_held(parts, block);
            self.shards[hash.shard].open(&self.common).publish(hash.low, entry, now);
            return Some(held);
        }
        let (entry, held) = Entry::new_held(parts, block);
        open.publish(hash.low, entry, now);
        Some(held)
    }

    /// The shard of an entry of this layout, charged with it, and memory for it if an entry that is gone has left some;
    /// `None`: it is larger than the cache, or no room could be made.
    #[inline]
    pub(super) fn room_for(
        &self,
        hash: Hash,
        layout: Layout,
        expires: bool,
        now: u64,
    ) -> Option<(Open<'_>, Option<Block>)> {
        let (shard, weight) = (&self.shards[hash.shard], layout.size() as u64);
        if weight > self.common.budget.capacity() {
            return None;
        }
        let mut open = shard.open(&self.common);
        open.prefetch(hash.low);
        // The others are helped in turn with what has expired there: they may have no writers of their own. They are
        // only tried, so holding this shard's mutex meanwhile cannot lock anybody up.
        if self.common.mortal.load(Ordering::Relaxed) {
            let other = open.next_turn() & (self.shards.len() - 1);
            if other != hash.shard {
                self.shards[other].help(&self.common, now);
            }
        }
        open.begin(now);
        let block = open.recycle(layout);
        if block.is_none() && !open.charge(hash.low, weight, expires, now) {
            drop(open);
            if !self.charge_patiently(shard, hash.low, weight, now) {
                return None;
            }
            open = shard.open(&self.common);
        }
        Some((open, block))
    }

    /// Charges `bytes` where one attempt did not do: readers hold back what was unlinked, or the shard alone has too
    /// little, and all are asked. The caller then owns so many bytes of the budget.
    fn charge_patiently(&self, shard: &Shard, low: u32, bytes: u64, now: u64) -> bool {
        for _ in 0..PATIENCE {
            let mut open = shard.open(&self.common);
            if open.charge(low, bytes, true, now) {
                return true;
            }
            if !open.waits_for_readers(bytes) {
                break;
            }
            drop(open);
            thread::yield_now();
        }
        let _turn = self.large.lock();
        let growth = shard.open(&self.common).growth(true).max(GROWTH_OF_AN_EMPTY_SHARD);
        let wanted = (bytes + growth).min(self.common.budget.capacity());
        let mut held = 0;
        for _ in 0..PATIENCE {
            held += self.collect(wanted - held, now);
            if held == wanted {
                // What the shard's arrays may grow by becomes its credit.
                shard.open(&self.common).lend(wanted - bytes);
                return true;
            }
            thread::yield_now();
        }
        self.common.budget.give_back(held);
        false
    }

    /// Takes up to `bytes` from the budget and from all shards in turn, and says how many.
    fn collect(&self, bytes: u64, now: u64) -> u64 {
        let mut held = self.common.budget.borrow(1, bytes);
        for turn in 0..self.shards.len() {
            if held == bytes {
                break;
            }
            let other = &self.shards[(now as usize).wrapping_add(turn) & (self.shards.len() - 1)];
            held += other.open(&self.common).yield_bytes(bytes - held, now);
        }
        held
    }
}
