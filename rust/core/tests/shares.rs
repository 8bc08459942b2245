//! A process of its own, as in replay.rs: long churn leaves every shard its share, so parts cost no hits.
#![cfg(not(feature = "explore"))]

use infercache_core::cache::{Cache, Options, Write};
use infercache_core::clock::Clock;

const ITEMS: usize = 50_000;
const REQUESTS: usize = 1_500_000;

/// Hit ratio in percent over the last third of a Zipf-distributed stream through a cache of a tenth of the items.
fn hit_ratio(shards: usize) -> f64 {
    let (clock, _) = Clock::manual(0);
    let cache = Cache::new(Options { clock, shards: Some(shards), ..Options::new(ITEMS as u64 / 10 * 160, 7) });
    let scope = cache.intern("n", None).expect("a first scope");
    let mut sums = Vec::with_capacity(ITEMS);
    let mut sum = 0.0;
    for rank in 1..=ITEMS {
        sum += (rank as f64).powf(-0.99);
        sums.push(sum);
    }
    let (mut state, mut hits) = (88_172_645_463_325_252u64, 0);
    for request in 0..REQUESTS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = (state >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let item = sums.partition_point(|&below| below < at).min(ITEMS - 1);
        let key = *blake3::hash(&item.to_le_bytes()).as_bytes();
        if cache.get(&key).is_some() {
            hits += u32::from(request >= REQUESTS * 2 / 3);
        } else {
            let stamp = cache.stamp();
            let write = Write {
                kind: 0,
                aligned: false,
                payload: &[1; 64],
                scope,
                tags: &[],
                stamp,
                life: None,
                stale: 0,
                cost: 0.0,
            };
            cache.store(&key, &write);
        }
    }
    100.0 * f64::from(hits) / (REQUESTS / 3) as f64
}

#[test]
fn shards_keep_their_shares_and_cost_no_hits() {
    let (whole, parts) = (hit_ratio(1), hit_ratio(8));
    println!("one shard {whole:.2} %, eight {parts:.2} %");
    assert!((whole - parts).abs() < 1.0, "one shard {whole:.2} %, eight {parts:.2} %");
}
