//! A process of its own, so that no other test's reader delays reclamation: replays are exact in a simulator.
#![cfg(not(feature = "explore"))]

use infercache_core::cache::{Cache, Eviction, Options, Write};
use infercache_core::clock::Clock;
use std::sync::atomic::Ordering;

/// A digest of which steps hit, and how many entries were evicted.
fn replay(seed: u64, eviction: Eviction) -> (blake3::Hash, u64) {
    let (clock, hand) = Clock::manual(0);
    let cache = Cache::new(Options { clock, shards: Some(4), eviction, ..Options::new(1 << 20, seed) });
    let scope = cache.intern("n", Some(("m", "1"))).expect("a first scope");
    let mut hits = Vec::new();
    for step in 0..200_000u64 {
        hand.store(step, Ordering::Relaxed);
        let number = (step * step) % 13_001;
        let key = *blake3::hash(&number.to_le_bytes()).as_bytes();
        let hit = cache.get(&key).is_some();
        if !hit {
            let (payload, life) = ([0; 1_000], (step % 3 == 0).then_some(20_000));
            let (length, cost) = ([50, 100, 1_000][number as usize % 3], [0.0, 0.004, 2.0, 0.01][number as usize % 4]);
            let stamp = cache.stamp();
            cache.store(
                &key,
                &Write {
                    kind: 0,
                    aligned: false,
                    payload: &payload[..length],
                    scope,
                    tags: &[],
                    stamp,
                    life,
                    stale: 0,
                    cost,
                },
            );
        }
        hits.push(u8::from(hit));
    }
    (blake3::hash(&hits), cache.stats().evictions)
}

#[test]
fn replays_are_exact_with_the_same_clock_and_seed() {
    let both = [Eviction::S3Fifo, Eviction::Cost].map(|eviction| {
        let first = replay(7, eviction);
        assert!(first.1 > 1_000, "the replay is to evict: {}", first.1);
        assert_eq!(first, replay(7, eviction));
        first
    });
    assert_ne!(both[0], both[1], "what goes is to depend on the policy");
}
