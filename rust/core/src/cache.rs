//! Look-up and store: the only module that calls several stages.
//!
//! The path of a look-up branches in [`Cache::judge`] and nowhere else: found or not, expired or stale or fresh, hidden
//! by a fence or not. The path of a store branches in [`Cache::store`]: refused, doomed by a purge, or published.

mod prepared; // a large value, in two steps
mod promotion; // to a shared tier's envelope and back
mod room; // where the bytes of a new entry come from
mod terms;
mod trust; // how old the follower's proof may be

pub use crate::eviction::Eviction;
pub use promotion::Written;
pub use terms::{Found, Hit, Options, Stored, Write};
pub use trust::Trust;

use crate::budget::Budget;
use crate::entry::{Entry, EntryRef, KeyBytes, Parts, Pinned};
use crate::epoch;
use crate::fence::{Fences, Judgement, Stamp, Tagger, Target};
use crate::scopes::{ScopeId, ScopeTags, Scopes};
use crate::shard::{Common, Open, Shard};
use crate::stats::{Count, Counters, Stats};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use crate::table::{Hash, Hasher};
use trust::Assurance;

/// Bytes that a shard should have at least: below, the policy has too little to choose from.
const BYTES_PER_SHARD: u64 = 128 << 10;
const MOST_SHARDS: usize = 256;
/// Bytes that may be retired in all shards together before the readers are asked for the epoch once more. As many as stay
/// in the processor's own caches, where they are warm for the next entries.
const LINGER: u64 = 64 << 10;

enum Verdict {
    /// The follower's proof is too old to say anything of it.
    Unproven,
    Fresh,
    Stale {
        softly_purged: bool,
    },
    Expired,
    Hidden,
}

/// An in-process cache of immutable values under 32-byte keys.
pub struct Cache {
    common: Common,
    shards: Box<[Shard]>,
    fences: Arc<Fences>,
    /// How old the fences' proof may be; `None`: this process is the authority.
    trust: Option<Trust>,
    /// The stamp of the last `clear`: the authority may be shared, so a fence for everything would hide too much.
    cleared: AtomicU64,
    scopes: Scopes,
    tagger: Tagger,
    all: u64,
    counters: Counters,
    /// Whoever needs more than a shard has takes turns, so that two never hold half each.
    large: Mutex<()>,
}

impl Cache {
    /// An empty cache. `capacity` is at least one byte; `shards`, if given, a power of two.
    pub fn new(options: Options) -> Cache {
        let by_capacity = (options.capacity / BYTES_PER_SHARD).clamp(1, MOST_SHARDS as u64) as usize;
        let by_capacity = match options.eviction {
            Eviction::S3Fifo => by_capacity.next_power_of_two(),
            // What a shard holds is parted into classes, so that no shard is to have less than its bytes.
            Eviction::Cost => 1 << by_capacity.ilog2(),
        };
        let shards = options.shards.unwrap_or(by_capacity).next_power_of_two().min(MOST_SHARDS);
        let batch = (options.capacity / shards as u64 / 64).min(64 << 10);
        let linger = (options.capacity / 64).min(LINGER) / shards as u64;
        let tagger = Tagger::new(&options.deployment, options.secret.as_ref());
        Cache {
            common: Common {
                budget: Budget::new(options.capacity, shards),
                share: options.capacity / shards as u64,
                batch,
                linger,
                keep: batch + 2 * linger,
                hasher: Hasher::new(options.seed, shards),
                clock: options.clock,
                pinned: Arc::new(Pinned::default()),
                mortal: AtomicBool::new(false),
                eviction: options.eviction,
            },
            shards: (0..shards).map(|_| Shard::new(options.eviction)).collect(),
            trust: options.trust,
            fences: options.authority.unwrap_or_else(|| Arc::new(Fences::new(options.fences))),
            cleared: AtomicU64::new(0),
            scopes: Scopes::default(),
            all: tagger.tag("", Target::All),
            tagger,
            counters: Counters::default(),
            large: Mutex::new(()),
        }
    }

    /// The number of a scope's implicit tags; `None` when there are too many different ones.
    pub fn intern(&self, namespace: &str, model: Option<(&str, &str)>) -> Option<ScopeId> {
        let tag = |target| self.tagger.tag(namespace, target);
        self.scopes.intern(ScopeTags {
            namespace: tag(Target::Namespace),
            model: model.map_or(0, |(model, _)| tag(Target::Model(model))),
            version: model.map_or(0, |(model, version)| tag(Target::ModelVersion(model, version))),
        })
    }

    /// The hash of what a purge or an entry names.
    pub fn tag(&self, namespace: &str, target: Target<'_>) -> u64 {
        self.tagger.tag(namespace, target)
    }

    /// Tells authorities apart: stamps of one mean nothing to another.
    pub fn authority(&self) -> usize {
        Arc::as_ptr(&self.fences).addr()
    }

    /// The authority, or this process's replica of it.
    pub fn fences(&self) -> &Arc<Fences> {
        &self.fences
    }

    /// The stamp for a value whose computation starts now.
    #[inline]
    pub fn stamp(&self) -> Stamp {
        self.fences.applied()
    }

    /// Hides (or, softly, marks stale) every entry with one of these tags whose computation began before. When it
    /// returns, every later look-up knows.
    pub fn invalidate(&self, tags: &[u64], soft: bool) -> Stamp {
        self.fences.purge(tags, soft)
    }

    /// Would an entry with this stamp, scope, key and tags be served now?
    #[inline]
    pub fn judge_stamp(&self, stamp: Stamp, scope: ScopeId, key: &KeyBytes, tags: &[u64]) -> Judgement {
        if self.fences.is_current(stamp, self.fences.applied()) {
            return Judgement::Valid;
        }
        self.judge_older_stamp(stamp, scope, key, tags)
    }

    #[cold]
    fn judge_older_stamp(&self, stamp: Stamp, scope: ScopeId, key: &KeyBytes, tags: &[u64]) -> Judgement {
        if stamp.to_word() < self.cleared.load(Ordering::Acquire) {
            return Judgement::Hidden;
        }
        let implicit = self.scopes.tags(scope.0);
        let key = self.tagger.tag("", Target::Key(key));
        let all = [self.all, implicit.namespace, implicit.model, implicit.version, key];
        // Zero (no such tag) is never fenced: a tag's hash is never zero.
        self.fences.judge(stamp, all.into_iter().filter(|&tag| tag != 0).chain(tags.iter().copied()))
    }

    /// Is this entry to be served? `assurance` and then `applied` were loaded before the entry was found; the caller is
    /// under a guard.
    fn judge(&self, entry: Entry, assurance: Assurance, applied: Stamp, now: &mut Option<u64>) -> Verdict {
        if self.trust.is_some() && !assurance.covers(!entry.tags().is_empty()) {
            return Verdict::Unproven;
        }
        let word = entry.stamp().load(Ordering::Acquire);
        let mut softly_purged = false;
        let stamp = Stamp::from_word(word);
        if !self.fences.is_current(stamp, applied) {
            match self.judge_stamp(stamp, ScopeId(entry.scope()), entry.key(), entry.tags()) {
                Judgement::Hidden => return Verdict::Hidden,
                Judgement::Soft => softly_purged = true,
                // Every fence up to `applied` was visible. Never lowered: another reader may have raised it further.
                Judgement::Valid if stamp < applied => {
                    let raised = applied.to_word();
                    let _ = entry.stamp().compare_exchange(word, raised, Ordering::Release, Ordering::Relaxed);
                }
                Judgement::Valid => {}
            }
        }
        if entry.lives_for_ever() {
            return if softly_purged { Verdict::Stale { softly_purged } } else { Verdict::Fresh };
        }
        let times = entry.times();
        if let Some(deadline) = times.soft_deadline() {
            let now = *now.get_or_insert_with(|| self.common.clock.not_before());
            if now >= deadline {
                let expired = now >= deadline.saturating_add(times.stale);
                return if expired { Verdict::Expired } else { Verdict::Stale { softly_purged } };
            }
        }
        if softly_purged { Verdict::Stale { softly_purged } } else { Verdict::Fresh }
    }

    /// The fresh entry of this key. The shortest path: what `cache.get` runs.
    #[inline]
    pub fn get(&self, key: &KeyBytes) -> Option<EntryRef> {
        let hash = self.common.hasher.hash(key);
        let shard = &self.shards[hash.shard];
        shard.prefetch(hash.low);
        let guard = epoch::pin();
        let assurance = self.assurance(None);
        let applied = self.fences.applied();
        let found = shard.find(hash.low, key);
        if let Some(entry) = found {
            match self.judge(entry, assurance, applied, &mut None) {
                Verdict::Fresh => {
                    entry.touch(self.common.eviction.most_uses());
                    let held = entry.hold();
                    self.count_hit(&guard, Count::Hits, entry);
                    return Some(held);
                }
                Verdict::Hidden => self.counters.add(guard.thread_index(), Count::Invalidated, 1),
                Verdict::Stale { .. } | Verdict::Expired | Verdict::Unproven => {}
            }
        }
        self.counters.add(guard.thread_index(), Count::Misses, 1);
        None
    }

    #[inline]
    fn count_hit(&self, guard: &epoch::Guard, count: Count, entry: Entry) {
        let thread = guard.thread_index();
        self.counters.add(thread, count, 1);
        self.counters.add(thread, Count::SavedNanoseconds, entry.cost_nanoseconds());
    }

    /// The entry of this key and what is known of it; stale ones only if their life has been over for at most `stale`
    /// milliseconds (`None`: not even softly purged ones). Counts a hit, a stale hit or a miss.
    pub fn find(&self, key: &KeyBytes, stale: Option<u64>) -> Found {
        let guard = epoch::pin();
        let thread = guard.thread_index();
        match self.look(key, None, &guard) {
            Looked::Fresh(hit) => {
                self.count_hit(&guard, Count::Hits, hit.entry.entry());
                Found::Fresh(hit)
            }
            Looked::Stale(hit) if stale.is_some_and(|most| hit.past < most || hit.past == 0) => {
                self.count_hit(&guard, Count::StaleHits, hit.entry.entry());
                Found::Stale(hit)
            }
            looked => {
                if matches!(looked, Looked::Hidden) {
                    self.counters.add(thread, Count::Invalidated, 1);
                }
                self.counters.add(thread, Count::Misses, 1);
                Found::Miss
            }
        }
    }

    /// As [`Cache::find`] with any staleness, but counts nothing and is no use of the entry.
    pub fn peek(&self, key: &KeyBytes) -> Found {
        self.peek_since(key, None)
    }

    /// The same, after the authority was asked at `since` (nanoseconds of [`crate::clock::counting`]).
    pub fn peek_since(&self, key: &KeyBytes, since: Option<u64>) -> Found {
        match self.look_untouched(key, since, &epoch::pin()) {
            Looked::Fresh(hit) => Found::Fresh(hit),
            Looked::Stale(hit) => Found::Stale(hit),
            Looked::Hidden | Looked::Nothing => Found::Miss,
        }
    }

    fn look(&self, key: &KeyBytes, since: Option<u64>, guard: &epoch::Guard) -> Looked {
        let looked = self.look_untouched(key, since, guard);
        if let Looked::Fresh(hit) | Looked::Stale(hit) = &looked {
            hit.entry.entry().touch(self.common.eviction.most_uses());
        }
        looked
    }

    fn look_untouched(&self, key: &KeyBytes, since: Option<u64>, _guard: &epoch::Guard) -> Looked {
        let hash = self.common.hasher.hash(key);
        let assurance = self.assurance(since);
        let applied = self.fences.applied();
        let Some(entry) = self.shards[hash.shard].find(hash.low, key) else { return Looked::Nothing };
        let mut now = Some(self.common.clock.not_before());
        let verdict = self.judge(entry, assurance, applied, &mut now);
        let (times, now) = (entry.times(), now.expect("set above"));
        let past = times.soft_deadline().map_or(0, |deadline| now.saturating_sub(deadline));
        let hit = |left, softly_purged| Hit {
            entry: entry.hold(),
            age: now.saturating_sub(times.created),
            left,
            past,
            softly_purged,
            stamp: Stamp::from_word(entry.stamp().load(Ordering::Acquire)),
        };
        match verdict {
            Verdict::Fresh => Looked::Fresh(hit(times.soft_deadline().map(|deadline| deadline - now), false)),
            Verdict::Stale { softly_purged } => Looked::Stale(hit(Some(0), softly_purged)),
            Verdict::Hidden => Looked::Hidden,
            Verdict::Expired | Verdict::Unproven => Looked::Nothing,
        }
    }

    /// Stores a value under a key, in place of what stands there. The entry comes back in any case, so that whoever
    /// computed the value gives out the same bytes as a hit would.
    pub fn store(&self, key: &KeyBytes, write: &Write<'_>) -> (Stored, EntryRef) {
        let hash = self.common.hasher.hash(key);
        self.shards[hash.shard].prefetch(hash.low);
        let (created, now) = self.common.clock.bounds();
        let mut parts = write.parts(key, created);
        self.price(&mut parts);
        self.store_parts(hash, &parts, now, write)
    }

    /// What making an entry again will cost: what it cost, from which its model's mean is learnt, or else that mean.
    /// Where eviction does not look at cost nobody asks.
    #[inline]
    fn price(&self, parts: &mut Parts<'_>) {
        if self.common.eviction == Eviction::S3Fifo {
            return;
        }
        let Some(mean) = self.scopes.cost(parts.scope) else { return };
        if parts.cost > 0.0 {
            mean.learn(parts.cost);
        } else {
            (parts.cost, parts.cost_is_estimated) = (mean.estimate(), true);
        }
    }

    fn store_parts(&self, hash: Hash, parts: &Parts<'_>, now: u64, write: &Write<'_>) -> (Stored, EntryRef) {
        let key = &parts.key;
        if self.judge_stamp(write.stamp, write.scope, key, write.tags) == Judgement::Hidden {
            return (Stored::Fenced, EntryRef::from_parts(parts));
        }
        match self.publish(hash, parts, now) {
            Some(held) => {
                self.count(Count::Stores, 1);
                (Stored::Kept, held)
            }
            None => {
                self.count(Count::Rejected, 1);
                (Stored::Refused, EntryRef::from_parts(parts))
            }
        }
    }

    /// Takes the entry of this key out, and says whether there was one.
    pub fn remove(&self, key: &KeyBytes) -> bool {
        let hash = self.common.hasher.hash(key);
        let mut open = self.shards[hash.shard].open(&self.common);
        let removed = open.remove(hash.low, key);
        open.reclaim();
        removed
    }

    /// Hides every entry, those being computed included, and gives their bytes back. Where the process is its own
    /// authority; a follower purges its namespace and then empties the cache.
    pub fn clear(&self) -> Stamp {
        let stamp = self.fences.purge_and(&[], false, |stamp| {
            self.cleared.fetch_max(stamp.to_word(), Ordering::Release);
        });
        self.empty();
        stamp
    }

    /// Takes every entry out and gives their bytes back; hides nothing.
    pub fn empty(&self) {
        for shard in &self.shards {
            shard.open(&self.common).clear();
        }
    }

    /// Makes the child of a fork start cold: no entries, a new epoch (so that what was being computed when the process
    /// forked is not stored here), counters at zero.
    ///
    /// # Safety
    /// Only the forking thread runs, and at the fork no thread was inside a call to any cache but [`Cache::prepare`], whose
    /// entries the child must not store.
    pub unsafe fn after_fork(&self) {
        // SAFETY: the caller's promise.
        unsafe { epoch::after_fork() };
        self.fences.begin_epoch();
        self.each(|open| open.clear());
        self.counters.reset();
    }

    /// Takes back the bytes of everything that has expired, at once; writes do the same bit by bit.
    pub fn expire(&self) {
        let now = self.common.clock.not_before();
        self.each(|open| open.sweep(now, usize::MAX, usize::MAX));
    }

    fn each(&self, mut visit: impl FnMut(&mut Open<'_>)) {
        for shard in &self.shards {
            visit(&mut shard.open(&self.common));
        }
    }

    /// Counts something that the layers above decide.
    pub fn count(&self, count: Count, amount: u64) {
        self.counters.add(epoch::thread_index(), count, amount);
    }

    /// Counts a hit as the miss that it comes to, since its value cannot be built here: [`Count::Hits`],
    /// [`Count::TierHits`] or [`Count::StaleHits`], whichever it was counted as.
    #[cold]
    pub fn recount_as_miss(&self, entry: &EntryRef, hit: Count) {
        let thread = epoch::thread_index();
        // Counters wrap, so these subtract.
        self.counters.add(thread, hit, 1u64.wrapping_neg());
        self.counters.add(thread, Count::SavedNanoseconds, entry.entry().cost_nanoseconds().wrapping_neg());
        self.counters.add(thread, Count::Misses, 1);
    }

    /// Counts a miss as the hit that it came to after all: [`Count::Hits`], [`Count::TierHits`] or [`Count::StaleHits`].
    #[cold]
    pub fn recount_as_hit(&self, entry: &EntryRef, hit: Count) {
        let thread = epoch::thread_index();
        self.counters.add(thread, Count::Misses, 1u64.wrapping_neg());
        self.counters.add(thread, hit, 1);
        self.counters.add(thread, Count::SavedNanoseconds, entry.entry().cost_nanoseconds());
    }

    /// Bytes that the cache may hold.
    pub fn capacity(&self) -> u64 {
        self.common.budget.capacity()
    }

    /// Bytes held now; never more than the capacity (to within the arrays' small debts, see `budget`). Takes all mutexes
    /// for a moment, in order: nobody waits for one who holds another.
    pub fn bytes(&self) -> u64 {
        let opened: Vec<Open<'_>> = self.shards.iter().map(|shard| shard.open(&self.common)).collect();
        let idle: i64 = opened.iter().map(Open::credit).sum();
        (self.capacity() as i64 - self.common.budget.free() as i64 - idle).max(0) as u64
    }

    /// Counters and gauges; exact once the threads have stopped.
    pub fn stats(&self) -> Stats {
        let sum = |count| self.counters.sum(count);
        let mut stats = Stats {
            hits: sum(Count::Hits),
            tier_hits: sum(Count::TierHits),
            stale_hits: sum(Count::StaleHits),
            misses: sum(Count::Misses),
            coalesced: sum(Count::Coalesced),
            stores: sum(Count::Stores),
            rejected: sum(Count::Rejected),
            uncacheable: sum(Count::Uncacheable),
            invalidated: sum(Count::Invalidated),
            saved_seconds: sum(Count::SavedNanoseconds) as f64 / 1e9,
            pinned_bytes: self.common.pinned.bytes(),
            ..Stats::default()
        };
        self.each(|open| {
            open.reclaim();
            stats.entries += open.writer.entries;
            stats.evictions += open.writer.evictions;
            stats.expirations += open.writer.expirations;
        });
        stats.bytes = self.bytes();
        stats.pinned_bytes = self.common.pinned.bytes();
        stats
    }
}

enum Looked {
    Fresh(Hit),
    Stale(Hit),
    Hidden,
    Nothing,
}
