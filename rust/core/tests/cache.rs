//! The cache against a slow reference: a miss is always legal, a wrong or a stale answer never is.
#![cfg(not(feature = "explore"))]

use infercache_core::cache::{Cache, Eviction, Found, Options, Stored, Write};
use infercache_core::clock::Clock;
use infercache_core::entry::EntryRef;
use infercache_core::fence::{Stamp, Target};
use infercache_core::scopes::ScopeId;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn key(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

fn cache_of(capacity: u64, shards: usize, eviction: Eviction) -> (Cache, Arc<AtomicU64>) {
    let (clock, hand) = Clock::manual(1_000);
    (Cache::new(Options { clock, shards: Some(shards), eviction, ..Options::new(capacity, 7) }), hand)
}

fn cache(capacity: u64, shards: usize) -> (Cache, Arc<AtomicU64>) {
    cache_of(capacity, shards, Eviction::default())
}

fn write(payload: &[u8], stamp: Stamp, scope: ScopeId) -> Write<'_> {
    Write { kind: 1, aligned: false, payload, scope, tags: &[], stamp, life: None, stale: 0, cost: 0.001 }
}

fn put(cache: &Cache, number: u64, payload: &[u8]) -> Stored {
    let scope = cache.intern("n", Some(("m", "1"))).unwrap();
    cache.store(&key(number), &write(payload, cache.stamp(), scope)).0
}

#[derive(Clone, Debug)]
enum Step {
    Store {
        key: u64,
        length: usize,
        life: Option<u64>,
        stale: u64,
        tags: Vec<u64>,
        old_stamp: bool,
        tail: Option<usize>,
        cost: f32,
    },
    Get {
        key: u64,
    },
    Find {
        key: u64,
        stale: Option<u64>,
    },
    Remove {
        key: u64,
    },
    Purge {
        tags: Vec<u64>,
        soft: bool,
    },
    PurgeKey {
        key: u64,
    },
    PurgeModel {
        version: bool,
    },
    Clear,
    Advance {
        by: u64,
    },
    RememberStamp,
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0u64..40;
    let tags = || proptest::collection::vec(0u64..5, 0..3);
    let cost = proptest::sample::select(vec![0.0, 0.001, 0.005, 2.0, 1e9, f32::INFINITY, f32::NAN, -1.0]);
    let one = prop_oneof![
        8 => (
            key.clone(),
            prop_oneof![0usize..400, 0usize..20_000],
            proptest::option::of(1u64..5_000),
            prop_oneof![Just(0u64), 1u64..5_000],
            tags(),
            any::<bool>(),
            proptest::option::of(0usize..100),
            cost,
        )
            .prop_map(|(key, length, life, stale, tags, old_stamp, tail, cost)| {
                Step::Store { key, length, life, stale, tags, old_stamp, tail, cost }
            }),
        8 => key.clone().prop_map(|key| Step::Get { key }),
        6 => (key.clone(), proptest::option::of(0u64..6_000)).prop_map(|(key, stale)| Step::Find { key, stale }),
        1 => key.clone().prop_map(|key| Step::Remove { key }),
        2 => (tags(), any::<bool>()).prop_map(|(tags, soft)| Step::Purge { tags, soft }),
        1 => key.prop_map(|key| Step::PurgeKey { key }),
        1 => any::<bool>().prop_map(|version| Step::PurgeModel { version }),
        1 => Just(Step::Clear),
        4 => (0u64..2_000).prop_map(|by| Step::Advance { by }),
        1 => Just(Step::RememberStamp),
        1 => Just(Step::Expire),
    ];
    proptest::collection::vec(one, 1..400)
}

/// What the reference knows of the last store under a key.
#[derive(Clone, Debug)]
struct Known {
    payload: Vec<u8>,
    created: u64,
    life: Option<u64>,
    stale: u64,
    tags: Vec<u64>,
    /// Number of purges that had happened when its stamp was read.
    at: usize,
}

#[derive(Clone, Debug)]
enum Purge {
    Tags(Vec<u64>, bool),
    Key(u64),
    Everything,
}

struct Reference {
    now: u64,
    known: HashMap<u64, Known>,
    purges: Vec<Purge>,
}

impl Reference {
    /// May this payload be served as fresh, or with staleness `Some(most)` as stale?
    fn check(&self, number: u64, payload: &[u8], stale: Option<u64>, as_stale: bool) -> Result<(), String> {
        let known = self.known.get(&number).ok_or("never stored, or removed")?;
        if known.payload != payload {
            return Err("not what was stored last".into());
        }
        let mut soft = false;
        for purge in &self.purges[known.at..] {
            match purge {
                Purge::Everything => return Err("everything was purged".into()),
                Purge::Key(purged) if *purged == number => return Err("its key was purged".into()),
                Purge::Tags(tags, softly) if tags.iter().any(|tag| known.tags.contains(tag)) => {
                    if !softly {
                        return Err("its tag was purged".into());
                    }
                    soft = true;
                }
                _ => {}
            }
        }
        let over = known.life.is_some_and(|life| self.now >= known.created + life);
        if !as_stale && (over || soft) {
            return Err("stale, given out as fresh".into());
        }
        if let (true, Some(life)) = (over, known.life) {
            let past = self.now - known.created - life;
            if past >= known.stale || stale.is_none_or(|most| past > most) {
                return Err(format!("stale by {past} ms"));
            }
        }
        Ok(())
    }
}

/// Stores a value at once, or in two steps, its last bytes from elsewhere.
fn store(cache: &Cache, key: &[u8; 32], write: &Write<'_>, tail: Option<usize>) -> (Stored, EntryRef) {
    let Some(tail) = tail else { return cache.store(key, write) };
    let (front, tail) = write.payload.split_at(write.payload.len().saturating_sub(tail));
    let prepared = cache.prepare(key, &Write { payload: front, ..write.clone() }, tail).unwrap();
    (cache.store_prepared(&prepared), prepared)
}

fn run(steps: Vec<Step>, capacity: u64, shards: usize, eviction: Eviction) -> Result<(), TestCaseError> {
    let (cache, hand) = cache_of(capacity, shards, eviction);
    let scope = cache.intern("n", Some(("m", "1"))).unwrap();
    let hashed =
        |tags: &[u64]| -> Vec<u64> { tags.iter().map(|tag| cache.tag("n", Target::Tag(&tag.to_string()))).collect() };
    let mut reference = Reference { now: 1_000, known: HashMap::new(), purges: Vec::new() };
    let mut remembered = (cache.stamp(), 0);
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Store { key: k, length, life, stale, tags, old_stamp, tail, cost } => {
                let payload: Vec<u8> = (0..length).map(|i| (i + number) as u8).collect();
                let (stamp, at) = if old_stamp { remembered } else { (cache.stamp(), reference.purges.len()) };
                let own = hashed(&tags);
                let write = Write { tags: &own, life, stale, cost, ..write(&payload, stamp, scope) };
                let (stored, entry) = store(&cache, &key(k), &write, tail);
                prop_assert_eq!(entry.payload(), &payload[..]);
                match stored {
                    Stored::Kept => {
                        let created = reference.now;
                        reference.known.insert(k, Known { payload, created, life, stale, tags, at });
                    }
                    // What stood there before still does: it is newer than the doomed value, or was refused the place.
                    Stored::Fenced | Stored::Refused => {}
                }
            }
            Step::Get { key: k } => {
                if let Some(entry) = cache.get(&key(k)) {
                    let checked = reference.check(k, entry.payload(), None, false);
                    prop_assert!(checked.is_ok(), "get {k}: {checked:?}");
                }
            }
            Step::Find { key: k, stale } => match cache.find(&key(k), stale) {
                Found::Fresh(hit) => {
                    let checked = reference.check(k, hit.entry.payload(), None, false);
                    prop_assert!(checked.is_ok(), "find {k}: {checked:?}");
                    prop_assert_eq!(hit.age, reference.now - reference.known[&k].created);
                }
                Found::Stale(hit) => {
                    let checked = reference.check(k, hit.entry.payload(), stale, true);
                    prop_assert!(checked.is_ok(), "find {k} stale {stale:?}: {checked:?}");
                }
                Found::Miss => {}
            },
            Step::Remove { key: k } => {
                cache.remove(&key(k));
                reference.known.remove(&k);
            }
            Step::Purge { tags, soft } => {
                cache.invalidate(&hashed(&tags), soft);
                reference.purges.push(Purge::Tags(tags, soft));
            }
            Step::PurgeKey { key: k } => {
                cache.invalidate(&[cache.tag("n", Target::Key(&key(k)))], false);
                reference.purges.push(Purge::Key(k));
            }
            Step::PurgeModel { version } => {
                let target = if version { Target::ModelVersion("m", "1") } else { Target::Model("m") };
                cache.invalidate(&[cache.tag("n", target)], false);
                reference.purges.push(Purge::Everything);
            }
            Step::Clear => {
                cache.clear();
                reference.purges.push(Purge::Everything);
            }
            Step::Advance { by } => {
                reference.now += by;
                hand.store(reference.now, Ordering::Relaxed);
            }
            Step::RememberStamp => remembered = (cache.stamp(), reference.purges.len()),
            Step::Expire => cache.expire(),
        }
        prop_assert!(cache.bytes() <= capacity, "{} of {capacity}", cache.bytes());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_wrong_or_stale_answer_is_never_given(
        steps in steps(),
        capacity in 64_000u64..200_000,
        shards in prop_oneof![Just(1usize), Just(4)],
        eviction in prop_oneof![Just(Eviction::S3Fifo), Just(Eviction::Cost)],
    ) {
        run(steps, capacity, shards, eviction)?;
    }
}

#[test]
fn what_was_stored_is_found_while_there_is_room() {
    let (cache, _) = cache(1 << 20, 4);
    for number in 0..2_000 {
        assert_eq!(put(&cache, number, &number.to_le_bytes()), Stored::Kept);
    }
    for number in 0..2_000 {
        assert_eq!(cache.get(&key(number)).expect("a hit").payload(), number.to_le_bytes());
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.stores, stats.entries, stats.evictions), (2_000, 0, 2_000, 2_000, 0));
    assert!((stats.saved_seconds - 2.0).abs() < 0.002, "{}", stats.saved_seconds);
}

#[test]
fn an_entry_of_nine_tenths_of_the_capacity_is_accepted_by_a_full_cache() {
    let capacity = 16 << 20;
    let (cache, _) = cache(capacity, 16);
    for number in 0..200_000 {
        put(&cache, number, &[0; 64]);
    }
    let large = vec![1; capacity as usize * 9 / 10];
    assert_eq!(put(&cache, u64::MAX, &large), Stored::Kept);
    assert_eq!(cache.get(&key(u64::MAX)).expect("just stored").payload().len(), large.len());
    assert!(cache.bytes() <= capacity);
    // And the cache goes on.
    for number in 0..1_000 {
        assert_eq!(put(&cache, number, &[0; 64]), Stored::Kept);
    }
    assert!(cache.get(&key(999)).is_some());
}

#[test]
fn an_entry_larger_than_the_cache_is_refused_and_counted_and_evicts_nothing() {
    let (cache, _) = cache(1 << 20, 1);
    put(&cache, 1, b"small");
    assert_eq!(put(&cache, 2, &vec![0; 1 << 20]), Stored::Refused);
    assert_eq!(cache.stats().rejected, 1);
    assert!(cache.get(&key(1)).is_some());
}

#[test]
fn expired_entries_give_their_space_back_without_being_read() {
    let (cache, hand) = cache(64 << 20, 16);
    let scope = cache.intern("n", None).unwrap();
    for number in 0..20_000 {
        cache.store(&key(number), &Write { life: Some(1_000), ..write(&[0; 100], cache.stamp(), scope) });
    }
    let full = cache.bytes();
    hand.store(10_000, Ordering::Relaxed);
    // A write takes back a bounded number, so this takes some writes, all to one key.
    for _ in 0..5_000 {
        put(&cache, u64::MAX, b"one");
    }
    let stats = cache.stats();
    assert_eq!((stats.expirations, stats.entries, stats.evictions), (20_000, 1, 0));
    assert!(stats.bytes < full / 10, "{} of {full}", stats.bytes);
}

#[test]
fn expired_entries_never_push_out_live_ones() {
    let (cache, hand) = cache(1 << 20, 1);
    let scope = cache.intern("n", None).unwrap();
    for number in 0..1_000 {
        put(&cache, number, &[0; 100]);
        cache.get(&key(number));
    }
    for number in 1_000..3_500 {
        cache.store(&key(number), &Write { life: Some(1_000), ..write(&[0; 100], cache.stamp(), scope) });
    }
    assert_eq!(cache.stats().evictions, 0, "the test is to begin with everything in");
    hand.store(10_000, Ordering::Relaxed);
    for number in 3_500..6_000 {
        put(&cache, number, &[0; 100]);
    }
    assert_eq!(cache.stats().evictions, 0);
    assert!((0..1_000).all(|number| cache.get(&key(number)).is_some()));
}

#[test]
fn the_queues_and_the_wheel_do_not_grow_with_deletions_and_overwrites() {
    let (cache, hand) = cache(1 << 20, 1);
    let scope = cache.intern("n", None).unwrap();
    for round in 0..200_000u64 {
        hand.store(1_000 + round, Ordering::Relaxed);
        cache.store(&key(round % 10), &Write { life: Some(3_600_000), ..write(&[0; 10], cache.stamp(), scope) });
        if round % 3 == 0 {
            cache.remove(&key(round % 10));
        }
    }
    let stats = cache.stats();
    assert!(stats.bytes < 64 << 10, "{}", stats.bytes);
    assert_eq!(stats.evictions, 0);
}

#[test]
fn buffers_outlive_their_entry_and_the_cache_and_are_counted_as_pinned() {
    let (cache, _) = cache(1 << 20, 1);
    put(&cache, 1, &[7; 1_000]);
    let held = cache.get(&key(1)).unwrap();
    cache.clear();
    for number in 2..5_000 {
        put(&cache, number, &[0; 1_000]);
    }
    assert!(cache.stats().pinned_bytes >= 1_000);
    assert!(cache.stats().bytes <= 1 << 20);
    let other = held.clone();
    drop(held);
    assert!(cache.stats().pinned_bytes >= 1_000);
    drop(cache);
    assert_eq!(other.payload(), [7; 1_000]);
}

#[test]
fn pinned_bytes_return_to_zero() {
    let (cache, _) = cache(1 << 20, 1);
    put(&cache, 1, &[7; 1_000]);
    let held = cache.get(&key(1)).unwrap();
    cache.remove(&key(1));
    while cache.stats().pinned_bytes == 0 {
        std::thread::yield_now(); // another test's reader may hold the epoch for a moment
    }
    drop(held);
    assert_eq!(cache.stats().pinned_bytes, 0);
}

#[test]
fn a_stale_entry_is_served_only_to_who_accepts_it() {
    let (cache, hand) = cache(1 << 20, 1);
    let scope = cache.intern("n", None).unwrap();
    cache.store(&key(1), &Write { life: Some(1_000), stale: 500, ..write(b"v", cache.stamp(), scope) });
    hand.store(2_200, Ordering::Relaxed);
    assert!(cache.get(&key(1)).is_none());
    assert!(matches!(cache.find(&key(1), None), Found::Miss));
    assert!(matches!(cache.find(&key(1), Some(100)), Found::Miss));
    assert!(matches!(cache.find(&key(1), Some(300)), Found::Stale(hit) if hit.past == 200 && hit.age == 1_200));
    hand.store(2_500, Ordering::Relaxed);
    assert!(matches!(cache.find(&key(1), Some(10_000)), Found::Miss));
}
