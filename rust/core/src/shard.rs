//! One shard: what a writer does under its mutex.
//!
//! The steps of a store are: take back what has expired; find memory, best that of an entry which is gone (limbo.rs), whose
//! bytes are charged already; else make room (borrow, then unlink what the policy gives up) and charge the entry's bytes;
//! publish it, file it. Bytes are charged before they are allocated and released after they are freed, so the budget
//! holds at every instant.

use crate::budget::{Budget, Credit};
use crate::clock::Clock;
use crate::entry::{Block, Entry, KeyBytes, Pinned};
use crate::eviction::{Eviction, Policy, Resolve};
use crate::expiry::{Due, Wheel};
use crate::limbo::Limbo;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use crate::table::{Buckets, Hasher, Index};
use std::alloc::Layout;

/// Expired entries that one write takes back, and elements of the wheel that it looks at for them.
const EXPIRED_PER_WRITE: usize = 8;
const LOOKED_AT_PER_WRITE: usize = 16;
/// Entries that are retired before some are freed, where many go at once.
const RETIRED_PER_STEP: usize = 256;

/// What all shards of a cache have in common.
pub(crate) struct Common {
    pub(crate) budget: Budget,
    /// Bytes that are evicted ahead of need.
    pub(crate) batch: u64,
    /// Bytes that are retired in a shard before the readers are asked again: once for several stores.
    pub(crate) linger: u64,
    /// Bytes of a shard that stay retired for the next entries to be written over.
    pub(crate) keep: u64,
    /// Bytes of a shard that has its even share.
    pub(crate) share: u64,
    pub(crate) hasher: Hasher,
    pub(crate) clock: Clock,
    pub(crate) pinned: Arc<Pinned>,
    /// An entry that expires was stored.
    pub(crate) mortal: AtomicBool,
    pub(crate) eviction: Eviction,
}

/// What the mutex guards.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) entries: u64,
    pub(crate) evictions: u64,
    pub(crate) expirations: u64,
    credit: Credit,
    policy: Policy,
    wheel: Wheel,
    limbo: Limbo,
    /// Bytes of arrays as charged.
    arrays: u64,
    /// Counts stores, to go through the other shards by.
    turn: usize,
}

/// A part of the table with a mutex of its own.
pub(crate) struct Shard {
    index: Index,
    writer: Mutex<Writer>,
    /// The clock's time before which nothing expires here; a hint for writers of other shards.
    next_due: AtomicU64,
}

struct Standing<'a>(&'a Index, &'a Hasher);

impl Resolve for Standing<'_> {
    fn resolve(&self, low: u32, visited: bool, stands: impl Fn(Entry) -> bool) -> Option<Entry> {
        self.0.resolve(self.1, low, |entry| entry.visited() == visited && stands(entry))
    }

    fn prefetch(&self, low: u32, soon: bool) {
        if soon { self.0.prefetch_entry(low) } else { self.0.prefetch(low) }
    }
}

impl Shard {
    pub(crate) fn new(eviction: Eviction) -> Shard {
        let writer = Writer { policy: Policy::new(eviction), ..Writer::default() };
        Shard { index: Index::new(), writer: Mutex::new(writer), next_due: AtomicU64::new(u64::MAX) }
    }

    /// Before a guard is taken: asks for the line that `find` will look at first.
    #[inline]
    pub(crate) fn prefetch(&self, low: u32) {
        self.index.prefetch(low);
    }

    /// Under a guard.
    #[inline]
    pub(crate) fn find(&self, low: u32, key: &KeyBytes) -> Option<Entry> {
        self.index.find(low, key)
    }

    /// The shard, for a writer.
    pub(crate) fn open<'a>(&'a self, common: &'a Common) -> Open<'a> {
        Open { shard: self, common, writer: self.writer.lock() }
    }

    /// Takes back what has expired here, if that is cheap: something is due and nobody writes.
    pub(crate) fn help(&self, common: &Common, now: u64) {
        if self.next_due.load(Ordering::Relaxed) <= now
            && let Some(writer) = self.writer.try_lock()
        {
            Open { shard: self, common, writer }.sweep(now, EXPIRED_PER_WRITE, LOOKED_AT_PER_WRITE);
        }
    }
}

/// A shard whose mutex is held.
pub(crate) struct Open<'a> {
    shard: &'a Shard,
    common: &'a Common,
    pub(crate) writer: crate::sync::MutexGuard<'a, Writer>,
}

impl Open<'_> {
    /// A number that goes up by one at each call.
    pub(crate) fn next_turn(&mut self) -> usize {
        self.writer.turn = self.writer.turn.wrapping_add(1);
        self.writer.turn
    }

    /// Asks for the memory that `recycle` may give and for the entry that `publish` will look at.
    #[inline]
    pub(crate) fn prefetch(&self, low: u32) {
        self.writer.limbo.prefetch();
        self.shard.index.prefetch_entry(low);
    }

    /// What every write does first: it takes back some of what has expired.
    #[inline]
    pub(crate) fn begin(&mut self, now: u64) {
        self.expire(now, EXPIRED_PER_WRITE, LOOKED_AT_PER_WRITE);
    }

    /// The memory of an entry that is gone, if there is some of this layout: its bytes are charged already.
    #[inline]
    pub(crate) fn recycle(&mut self, layout: Layout) -> Option<Block> {
        let Writer { limbo, credit, .. } = &mut *self.writer;
        let (block, freed) = limbo.recycle(layout, self.common.linger, self.common.keep, &self.common.pinned);
        if freed > 0 {
            credit.put(&self.common.budget, freed);
        }
        block
    }

    /// Charges `bytes` for an entry of these bits, making room for them if need be. `false`: nothing was charged; either
    /// readers still hold back what was unlinked, or nothing is left here to give up.
    pub(crate) fn charge(&mut self, low: u32, bytes: u64, expires: bool, now: u64) -> bool {
        let growth = self.growth(expires);
        if self.writer.credit.take_beside(&self.common.budget, bytes, growth) {
            return true;
        }
        self.writer.policy.prefetch(low);
        // Some more than is needed: the epoch is asked once for many stores, and each finds memory to write over.
        self.make_room(bytes + growth, self.common.batch, now);
        let growth = self.growth(expires);
        self.writer.credit.take_beside(&self.common.budget, bytes, growth)
    }

    /// What the arrays may grow by when one more entry is put in, at most. Does it expire?
    pub(crate) fn growth(&self, expires: bool) -> u64 {
        let place = self.shard.index.wanted_buckets(self.writer.entries + 1).map_or(0, Index::bytes_for);
        let wheel = if expires { self.writer.wheel.growth() } else { 0 };
        place + self.writer.policy.growth() + wheel
    }

    /// Unlinks expired entries, then those that the policy gives up, until `bytes` and `ahead` more will be there once they
    /// are freed; and frees `bytes` of them, if that can be.
    fn make_room(&mut self, bytes: u64, ahead: u64, now: u64) {
        let wanted = (bytes + ahead) as i64;
        let will_be = |writer: &Writer| writer.credit.bytes() + writer.limbo.bytes() as i64;
        // Nothing has to leave while the others have more than enough.
        let missing = wanted - will_be(&self.writer);
        if missing > 0 {
            let borrowed = self.common.budget.borrow(1, missing as u64);
            self.writer.credit.lend(borrowed);
        }
        while will_be(&self.writer) < wanted {
            if self.expire(now, 1, usize::MAX) == 0 && !self.evict() {
                break;
            }
        }
        if self.writer.entries == 0 {
            self.dissolve();
        }
        let missing = bytes as i64 - self.writer.credit.bytes();
        self.free(missing.max(0) as u64);
    }

    /// Gives up to `bytes` of this shard's to the caller, who needs more than one shard has, and says how many.
    pub(crate) fn yield_bytes(&mut self, bytes: u64, now: u64) -> u64 {
        self.make_room(bytes, 0, now);
        let drained = self.writer.credit.drain();
        let surplus = drained.saturating_sub(bytes);
        if surplus > 0 {
            self.writer.credit.put(&self.common.budget, surplus);
        }
        drained - surplus
    }

    /// Sees to it that the arrays can still grow, where another writer may have come between charge and publication.
    pub(crate) fn keep_growth(&mut self, expires: bool, now: u64) {
        let growth = self.growth(expires);
        if !self.writer.credit.take_beside(&self.common.budget, 0, growth) {
            self.make_room(growth, 0, now);
        }
    }

    /// Adds bytes that the caller owns to the credit.
    pub(crate) fn lend(&mut self, bytes: u64) {
        self.writer.credit.lend(bytes);
    }

    /// Is so much unlinked here that `bytes` will be there as soon as readers leave?
    pub(crate) fn waits_for_readers(&self, bytes: u64) -> bool {
        self.writer.credit.bytes() + self.writer.limbo.bytes() as i64 >= (bytes + self.growth(true)) as i64
    }

    /// Frees everything that no reader can have any more.
    pub(crate) fn reclaim(&mut self) {
        self.free(u64::MAX);
    }

    /// Frees `bytes` of what no reader can have any more, or what there is.
    fn free(&mut self, bytes: u64) {
        let Writer { limbo, credit, entries, arrays, .. } = &mut *self.writer;
        let freed = limbo.free(bytes, &self.common.pinned);
        credit.put(&self.common.budget, freed);
        if *entries == 0 && limbo.is_empty() {
            // An empty shard owns nothing at all.
            let list = limbo.list_bytes().min(*arrays);
            *limbo = Limbo::default();
            *arrays -= list;
            credit.put(&self.common.budget, list);
        }
    }

    /// Unlinks the entry that the policy gives up.
    fn evict(&mut self) -> bool {
        let standing = Standing(&self.shard.index, &self.common.hasher);
        let Some((low, entry)) = self.writer.policy.victim(&standing) else { return false };
        self.unlink(low, entry);
        self.writer.evictions += 1;
        true
    }

    fn unlink(&mut self, low: u32, entry: Entry) {
        self.shard.index.remove(low, entry);
        self.writer.entries -= 1;
        self.writer.limbo.push(entry);
    }

    /// Takes back what has expired, apart from any store.
    pub(crate) fn sweep(&mut self, now: u64, most: usize, look: usize) {
        self.expire(now, most, look);
        // Elements that moved down a level may have opened one.
        if self.writer.credit.bytes() < 0 {
            self.make_room(0, 0, now);
        }
        self.reclaim();
    }

    /// Unlinks at most `most` expired entries, looking at no more than `look` elements of the wheel; says how many.
    fn expire(&mut self, now: u64, most: usize, mut look: usize) -> usize {
        if self.writer.wheel.is_quiet(now) {
            return 0;
        }
        let (mut found, before) = (0, self.writer.wheel.bytes());
        while found < most {
            let Open { shard, common, writer } = self;
            let due = |low: u32| match shard.index.resolve(&common.hasher, low, |_| true) {
                None => Due::Gone,
                Some(entry) => entry.times().hard_deadline().map_or(Due::Gone, Due::At),
            };
            let Some(low) = writer.wheel.next_expired(now, &mut look, due) else { break };
            let expired = |entry: Entry| entry.times().hard_deadline().is_some_and(|deadline| deadline <= now);
            let entry = shard.index.resolve(&common.hasher, low, expired).expect("just found due");
            writer.policy.forget(entry, &Standing(&shard.index, &common.hasher));
            self.unlink(low, entry);
            self.writer.expirations += 1;
            found += 1;
        }
        if found > 0 || self.writer.wheel.bytes() != before {
            self.settle();
        }
        found
    }

    /// Publishes an entry whose bytes were charged. The entry that it replaces is retired.
    pub(crate) fn publish(&mut self, low: u32, entry: Entry, now: u64) {
        let deadline = entry.times().hard_deadline();
        if deadline.is_some() {
            self.keep_growth(true, now);
        }
        let lists = self.writer.limbo.list_bytes();
        let most_uses = self.common.eviction.most_uses();
        let old = self.shard.index.replace(low, entry, |old| entry.succeed(old, most_uses));
        let mut moved = false;
        if let Some(old) = old {
            let standing = Standing(&self.shard.index, &self.common.hasher);
            moved = self.writer.policy.replace(low, old, entry, &standing);
            self.writer.limbo.push(old);
            if !moved && deadline.is_none() && self.writer.limbo.list_bytes() == lists {
                return; // one pointer has changed, and no array
            }
        } else {
            self.keep_growth(deadline.is_some(), now);
            self.reserve_place();
            self.writer.policy.admit(low, entry, self.common.share);
            self.shard.index.insert(low, entry);
            self.writer.entries += 1;
        }
        if let Some(deadline) = deadline
            && old.is_none_or(|old| old.times().hard_deadline() != Some(deadline))
        {
            self.writer.wheel.file(low, deadline);
            if !self.common.mortal.load(Ordering::Relaxed) {
                self.common.mortal.store(true, Ordering::Relaxed);
            }
        }
        self.settle();
        // An element that went to another queue may have opened a chunk there.
        if moved && self.writer.credit.bytes() < 0 {
            self.make_room(0, 0, now);
        }
    }

    /// Takes an entry out. Says whether it was in.
    pub(crate) fn remove(&mut self, low: u32, key: &KeyBytes) -> bool {
        let Some(entry) = self.shard.index.find(low, key) else { return false };
        self.writer.policy.forget(entry, &Standing(&self.shard.index, &self.common.hasher));
        self.unlink(low, entry);
        self.settle();
        true
    }

    /// Takes every entry out. In steps, so that the list of what is retired stays short.
    pub(crate) fn clear(&mut self) {
        self.writer.entries = 0;
        if let Some(buckets) = self.shard.index.dissolve() {
            for (count, entry) in buckets.entries().enumerate() {
                self.writer.limbo.push(entry);
                if count % RETIRED_PER_STEP == RETIRED_PER_STEP - 1 {
                    self.reclaim();
                }
            }
            self.retire_buckets(Some(buckets));
        }
        self.dissolve();
        self.reclaim();
        self.settle();
    }

    /// An array of the size that one more entry asks for.
    fn reserve_place(&mut self) {
        let Some(count) = self.shard.index.wanted_buckets(self.writer.entries + 1) else { return };
        self.writer.credit.owe(&self.common.budget, Index::bytes_for(count));
        self.writer.arrays += Index::bytes_for(count);
        let old = self.shard.index.rebuild(&self.common.hasher, count);
        self.retire_buckets(old);
        self.reclaim();
    }

    fn retire_buckets(&mut self, old: Option<Buckets>) {
        if let Some(buckets) = old {
            self.writer.arrays -= buckets.bytes();
            self.writer.limbo.push_array(buckets);
        }
    }

    /// A shard without entries keeps no arrays.
    fn dissolve(&mut self) {
        let old = self.shard.index.dissolve();
        self.retire_buckets(old);
        self.writer.policy = Policy::new(self.common.eviction);
        self.writer.wheel.clear();
        self.settle();
    }

    /// Charges what the arrays have grown by, or gives back what they have shrunk by; leaves word of the next deadline.
    fn settle(&mut self) {
        let Open { shard, common, writer } = self;
        let writer = &mut **writer;
        if writer.wheel.len() as u64 > 2 * writer.entries + 1_024 {
            writer.wheel.clear();
            shard.index.for_each(|entry| {
                if let Some(deadline) = entry.times().hard_deadline() {
                    writer.wheel.file(common.hasher.hash(entry.key()).low, deadline);
                }
            });
        }
        let lists = writer.policy.bytes() + writer.wheel.bytes() + writer.limbo.list_bytes();
        let (before, arrays) = (writer.arrays, shard.index.bytes() + lists);
        writer.arrays = arrays;
        if arrays > before {
            writer.credit.owe(&common.budget, arrays - before);
        } else if arrays < before {
            writer.credit.put(&common.budget, before - arrays);
        }
        let due = writer.wheel.next_due();
        if due != shard.next_due.load(Ordering::Relaxed) {
            shard.next_due.store(due, Ordering::Relaxed);
        }
    }

    /// Credit that is spent on nothing.
    pub(crate) fn credit(&self) -> i64 {
        self.writer.credit.bytes()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // Exclusive: no reader is left, so nothing needs to wait for an epoch. What callers still hold lives on; the
        // counter of pinned bytes lives as long as they.
        let orphans: Arc<Pinned> = Arc::default();
        self.index.for_each(|entry| {
            // SAFETY: nobody can look the entry up any more, and the index is dropped without being read again.
            drop(unsafe { entry.give_up(&orphans) });
        });
        self.writer.get_mut().limbo.dissolve(&orphans);
    }
}
