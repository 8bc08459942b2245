//! Counters, exact once the threads have stopped.
//!
//! A counter that every thread adds to is a cache line that travels at every hit. Here each of the first 32 threads has a
//! line of its own, to which it alone adds with plain loads and stores; further threads share the last one and add with
//! atomic instructions.

use crate::sync::atomic::{AtomicU64, Ordering};

const LINES: usize = 32;

/// What a look-up or a store counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Look-ups answered with a fresh entry.
    Hits,
    /// Look-ups answered with a fresh entry of the shared tier.
    TierHits,
    /// Look-ups answered with a stale one.
    StaleHits,
    /// Look-ups that found nothing to serve.
    Misses,
    /// Of the misses, those that found an entry which a purge hides.
    Invalidated,
    /// Callers that took another's computation instead of their own.
    Coalesced,
    /// Entries stored.
    Stores,
    /// Entries refused: larger than the cache, or no room could be made.
    Rejected,
    /// Results that cannot be stored.
    Uncacheable,
    /// Compute time that hits saved, in nanoseconds.
    SavedNanoseconds,
}

impl Count {
    /// What memory's answer counts as.
    #[inline]
    pub fn hit(stale: bool) -> Count {
        if stale { Count::StaleHits } else { Count::Hits }
    }
}

const COUNTS: usize = 10;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line([AtomicU64; COUNTS]);

/// The counters of one cache.
#[derive(Debug)]
pub struct Counters(Box<[Line]>);

impl Default for Counters {
    fn default() -> Counters {
        Counters((0..=LINES).map(|_| Line::default()).collect())
    }
}

impl Counters {
    /// Adds `amount` for the thread with this index (see `epoch::Guard::thread_index`).
    #[inline]
    pub(crate) fn add(&self, thread: usize, count: Count, amount: u64) {
        if thread < LINES {
            // No other running thread has this index, and one that had it before has handed it over in order.
            let counter = &self.0[thread].0[count as usize];
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        } else {
            self.0[LINES].0[count as usize].fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Back to zero, while nobody counts.
    pub(crate) fn reset(&self) {
        self.0.iter().flat_map(|line| &line.0).for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// The sum over all threads.
    pub fn sum(&self, count: Count) -> u64 {
        self.0.iter().fold(0, |sum, line| sum.wrapping_add(line.0[count as usize].load(Ordering::Relaxed)))
    }
}

/// A reading of a cache's counters and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// See [`Count::Hits`].
    pub hits: u64,
    /// Look-ups answered with a fresh entry of the shared tier.
    pub tier_hits: u64,
    /// See [`Count::StaleHits`].
    pub stale_hits: u64,
    /// See [`Count::Misses`].
    pub misses: u64,
    /// See [`Count::Coalesced`].
    pub coalesced: u64,
    /// See [`Count::Stores`].
    pub stores: u64,
    /// See [`Count::Rejected`].
    pub rejected: u64,
    /// See [`Count::Uncacheable`].
    pub uncacheable: u64,
    /// See [`Count::Invalidated`].
    pub invalidated: u64,
    /// Live entries that had to go for others.
    pub evictions: u64,
    /// Expired entries whose bytes came back.
    pub expirations: u64,
    /// Entries held now, those that nobody may be served any more but that still take space included.
    pub entries: u64,
    /// Bytes held now: keys, values, arrays, and what is retired but not yet freed.
    pub bytes: u64,
    /// Bytes of entries that are gone from the cache but that callers still hold.
    pub pinned_bytes: u64,
    /// Compute time that hits saved, in seconds.
    pub saved_seconds: f64,
}
