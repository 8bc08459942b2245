//! Explored thread schedules of publish, retire, evict, budget borrowing and fences.
//!
//!     cargo test -p infercache-core --features explore --test explore
//!
//! shuttle runs one thread at a time and chooses at each atomic, lock or fence who goes on; a schedule that fails is
//! printed and can be replayed. Freed entries are overwritten instead of given back (entry.rs), so a use after free is
//! seen as wrong bytes.
#![cfg(feature = "explore")]

use infercache_core::cache::{Cache, Found, Options, Stored, Write};
use infercache_core::clock::Clock;
use infercache_core::entry::FREED;
use infercache_core::fence::Target;
use infercache_core::sync::Arc;
use infercache_core::sync::atomic::{AtomicU64, Ordering};
use infercache_core::sync::thread;

const CAPACITY: u64 = 64 << 10;
/// Random schedules of each scenario, half of them by shuttle's uniform choice, half by PCT (S. Burckhardt et al., 2010).
const SCHEDULES: usize = 3_000;

fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(scenario.clone(), SCHEDULES / 2);
    shuttle::check_pct(scenario, SCHEDULES / 2, 3);
}

fn cache(shards: usize) -> Arc<Cache> {
    let (clock, _) = Clock::manual(1_000);
    Arc::new(Cache::new(Options { clock, shards: Some(shards), ..Options::new(CAPACITY, 7) }))
}

fn key(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

/// A payload whose bytes are all alike, so that a torn or freed one is seen.
fn put(cache: &Cache, number: u64, byte: u8, length: usize) -> Stored {
    assert_ne!(byte, FREED);
    let scope = cache.intern("n", Some(("m", "1"))).unwrap();
    let payload = vec![byte; length];
    let stamp = cache.stamp();
    let write =
        Write { kind: 0, aligned: false, payload: &payload, scope, tags: &[], stamp, life: None, stale: 0, cost: 0.0 };
    let (stored, entry) = cache.store(&key(number), &write);
    assert!(entry.payload().iter().all(|&b| b == byte), "what was just stored is whole");
    stored
}

fn get(cache: &Cache, number: u64, allowed: &[u8]) -> Option<u8> {
    let entry = cache.get(&key(number))?;
    let payload = entry.payload();
    let byte = payload[0];
    thread::yield_now();
    assert!(payload.iter().all(|&b| b == byte) && allowed.contains(&byte), "{byte:#x} under key {number}");
    Some(byte)
}

/// With everybody gone every byte can be accounted for again.
fn assert_emptied(cache: &Cache) {
    cache.clear();
    for _ in 0..3 {
        cache.stats();
    }
    assert_eq!(cache.bytes(), 0);
}

fn assert_within_capacity(cache: &Cache) {
    let bytes = cache.bytes();
    assert!(bytes <= CAPACITY + CAPACITY / 100, "{bytes}");
}

/// So many threads that do something with the cache, each with its number.
fn spawn_each(
    count: u64,
    cache: &Arc<Cache>,
    work: impl Fn(&Cache, u64) + Send + Sync + 'static,
) -> Vec<thread::JoinHandle<()>> {
    let work = Arc::new(work);
    let spawn = |number| {
        let (cache, work) = (cache.clone(), work.clone());
        thread::spawn(move || work(&cache, number))
    };
    (0..count).map(spawn).collect()
}

#[test]
fn a_reader_sees_whole_values_while_they_are_replaced_and_removed() {
    explore(|| {
        let cache = cache(1);
        put(&cache, 1, 1, 100);
        let writer = thread::spawn({
            let cache = cache.clone();
            move || {
                put(&cache, 1, 2, 2_000);
                cache.remove(&key(1));
                put(&cache, 1, 3, 50);
                cache.stats();
            }
        });
        let readers = spawn_each(2, &cache, |cache, _| {
            let mut last = 0;
            for _ in 0..3 {
                if let Some(byte) = get(cache, 1, &[1, 2, 3]) {
                    assert!(byte >= last, "time went backwards: {byte} after {last}");
                    last = byte;
                }
            }
        });
        writer.join().unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(get(&cache, 1, &[3]), Some(3));
    });
}

#[test]
fn memory_is_written_over_only_when_no_reader_has_it_and_nobody_holds_it() {
    /// Stores that got memory which an entry had before: here nothing is given back, so an address comes twice only so.
    static RECYCLED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    // So long that the readers' epoch is asked at every store; all of one length, so that the memory fits.
    const LENGTH: usize = 1_100;
    explore(|| {
        let cache = cache(1);
        put(&cache, 1, 1, LENGTH);
        put(&cache, 2, 101, LENGTH);
        let held = cache.get(&key(1)).unwrap();
        let writer = thread::spawn({
            let cache = cache.clone();
            move || {
                let mut seen = std::collections::HashSet::new();
                for byte in 2..6 {
                    for (number, byte) in [(1, byte), (2, 100 + byte)] {
                        put(&cache, number, byte, LENGTH);
                        let address = cache.get(&key(number)).unwrap().payload().as_ptr().addr();
                        RECYCLED.fetch_add(usize::from(!seen.insert(address)), std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
        });
        let readers = spawn_each(2, &cache, |cache, _| {
            let mut last = [0; 2];
            for _ in 0..2 {
                for (number, first) in [(1, 0), (2, 100)] {
                    let allowed = [1, 2, 3, 4, 5].map(|byte| first + byte);
                    let byte = get(cache, number, &allowed).expect("nobody removes it, so it is found at every moment");
                    let last = &mut last[number as usize - 1];
                    assert!(byte >= *last, "time went backwards: {byte} after {last}");
                    *last = byte;
                }
            }
        });
        writer.join().unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(held.payload().iter().all(|&byte| byte == 1), "what a caller holds was written over");
        drop(held);
        assert_emptied(&cache);
        assert_eq!(cache.stats().pinned_bytes, 0);
    });
    let recycled = RECYCLED.load(std::sync::atomic::Ordering::Relaxed);
    assert!(recycled > SCHEDULES, "memory was written over only {recycled} times in {SCHEDULES} schedules");
}

#[test]
fn evicted_entries_are_freed_only_when_no_reader_has_them_and_the_budget_holds() {
    explore(|| {
        let cache = cache(1);
        let writers = spawn_each(2, &cache, |cache, thread| {
            for round in 0..4 {
                put(cache, 4 * thread + round, (4 * thread + round) as u8 + 1, 15_000);
                assert_within_capacity(cache);
            }
        });
        let reader = thread::spawn({
            let cache = cache.clone();
            move || {
                for number in [0, 4, 1, 5] {
                    get(&cache, number, &[number as u8 + 1]);
                }
            }
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        reader.join().unwrap();
        assert_emptied(&cache);
    });
}

#[test]
fn the_index_grows_under_readers() {
    explore(|| {
        let cache = cache(1);
        put(&cache, 0, 1, 10);
        let writer = thread::spawn({
            let cache = cache.clone();
            move || (1..40).for_each(|number| assert_eq!(put(&cache, number, 2, 10), Stored::Kept))
        });
        for _ in 0..4 {
            assert_eq!(get(&cache, 0, &[1]), Some(1), "an entry that nobody removes is found at every moment");
        }
        writer.join().unwrap();
        (1..40).for_each(|number| assert_eq!(get(&cache, number, &[2]), Some(2)));
    });
}

#[test]
fn entries_larger_than_a_shards_share_borrow_from_all_and_never_lock_up() {
    explore(|| {
        let cache = cache(4);
        for number in 0..6 {
            put(&cache, number, 1, 5_000);
        }
        let writers = spawn_each(3, &cache, |cache, thread| {
            let length = [55_000, 50_000, 3_000][thread as usize];
            put(cache, 100 + thread, 9, length);
            assert_within_capacity(cache);
        });
        for writer in writers {
            writer.join().unwrap();
        }
        // Whoever was refused in the rush is served once it is over.
        assert_eq!(put(&cache, 200, 7, 57_000), Stored::Kept);
        assert_eq!(get(&cache, 200, &[7]), Some(7));
        assert_emptied(&cache);
    });
}

#[test]
fn a_purge_wins_over_every_value_computed_before_it_whatever_the_order() {
    explore(|| {
        let cache = cache(1);
        let source = Arc::new(AtomicU64::new(1));
        let tag = cache.tag("n", Target::Tag("product"));
        // Two fills: stamp, load the source, store.
        let fills: Vec<_> = (0..2)
            .map(|_| {
                let (cache, source) = (cache.clone(), source.clone());
                thread::spawn(move || {
                    let scope = cache.intern("n", Some(("m", "1"))).unwrap();
                    let stamp = cache.stamp();
                    thread::yield_now();
                    let version = source.load(Ordering::SeqCst) as u8;
                    let payload = [version; 16];
                    let write = Write {
                        kind: 0,
                        aligned: false,
                        payload: &payload,
                        scope,
                        tags: &[tag],
                        stamp,
                        life: None,
                        stale: 0,
                        cost: 0.0,
                    };
                    cache.store(&key(1), &write);
                })
            })
            .collect();
        let purger = thread::spawn({
            let (cache, source) = (cache.clone(), source.clone());
            move || {
                for version in 2..4 {
                    source.store(version, Ordering::SeqCst);
                    cache.invalidate(&[tag], false);
                    if let Found::Fresh(hit) = cache.find(&key(1), None) {
                        assert!(
                            u64::from(hit.entry.payload()[0]) >= version,
                            "a purge was acknowledged and its past served"
                        );
                    }
                    // Another tag's purge moves `applied`, so that stamps are raised.
                    cache.invalidate(&[cache.tag("n", Target::Tag("other"))], false);
                }
            }
        });
        let reader = thread::spawn({
            let (cache, source) = (cache.clone(), source.clone());
            move || {
                for _ in 0..2 {
                    // What is found must be no older than the last purge that was acknowledged before the look-up: that
                    // of the version before the source's present one.
                    let owed = source.load(Ordering::SeqCst).saturating_sub(1);
                    if let Some(entry) = cache.get(&key(1)) {
                        assert!(u64::from(entry.payload()[0]) >= owed);
                    }
                }
            }
        });
        fills.into_iter().for_each(|fill| fill.join().unwrap());
        purger.join().unwrap();
        reader.join().unwrap();
        if let Some(entry) = cache.get(&key(1)) {
            assert_eq!(entry.payload()[0], 3);
        }
    });
}

/// Stores one value under key 1 with the first of these tags.
fn put_tagged(cache: &Cache, tag: u64) {
    let scope = cache.intern("n", Some(("m", "1"))).unwrap();
    let stamp = cache.stamp();
    let write = Write {
        kind: 0,
        aligned: false,
        payload: &[1; 16],
        scope,
        tags: &[tag],
        stamp,
        life: None,
        stale: 0,
        cost: 0.0,
    };
    assert_eq!(cache.store(&key(1), &write).0, Stored::Kept);
}

#[test]
fn a_reader_between_a_purges_stores_never_lifts_an_entry_over_it() {
    explore(|| {
        let cache = cache(1);
        let (tag, other) = (cache.tag("n", Target::Tag("product")), cache.tag("n", Target::Tag("other")));
        put_tagged(&cache, tag);
        let readers = spawn_each(2, &cache, |cache, _| {
            cache.get(&key(1));
        });
        let elsewhere = thread::spawn({
            let cache = cache.clone();
            move || {
                cache.invalidate(&[other], false);
            }
        });
        cache.invalidate(&[tag], false);
        assert!(cache.get(&key(1)).is_none(), "purged and acknowledged");
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        elsewhere.join().unwrap();
        assert!(cache.get(&key(1)).is_none(), "purged long ago");
    });
}

#[test]
fn fences_beyond_the_limit_hide_too_much_rather_than_too_little() {
    explore(|| {
        let (clock, _) = Clock::manual(1_000);
        let cache = Arc::new(Cache::new(Options { clock, fences: 2, ..Options::new(CAPACITY, 7) }));
        let tag = |number: usize| cache.tag("n", Target::Tag(&number.to_string()));
        put_tagged(&cache, tag(0));
        cache.invalidate(&[tag(0)], false);
        // More tags than the map has room for: it is built anew, without what lies below the horizon.
        let purgers: Vec<_> = (0..2)
            .map(|thread| {
                let (cache, tags) = (cache.clone(), (1..21).map(|at| tag(100 * thread + at)).collect::<Vec<_>>());
                thread::spawn(move || {
                    for tags in tags.chunks(7) {
                        cache.invalidate(tags, false);
                    }
                })
            })
            .collect();
        for _ in 0..4 {
            assert!(cache.get(&key(1)).is_none(), "its fence was dropped, and the horizon not yet raised");
        }
        purgers.into_iter().for_each(|purger| purger.join().unwrap());
        assert!(cache.get(&key(1)).is_none());
    });
}
