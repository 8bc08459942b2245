//! What goes first when the cache is full: what is cheapest to make again per byte.
#![cfg(not(feature = "explore"))]

use infercache_core::cache::{Cache, Eviction, Options, Stored, Write};
use infercache_core::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const MEBIBYTE: u64 = 1 << 20;

fn key(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

fn cache(shards: usize, eviction: Eviction) -> (Cache, Arc<AtomicU64>) {
    let (clock, hand) = Clock::manual(1_000);
    (Cache::new(Options { clock, shards: Some(shards), eviction, ..Options::new(MEBIBYTE, 7) }), hand)
}

/// What is stored: of which model, how large, how dear, for how long.
#[derive(Clone, Copy)]
struct Answer {
    model: &'static str,
    bytes: usize,
    cost: f32,
    life: Option<u64>,
}

impl Answer {
    const fn of(model: &'static str, bytes: usize, cost: f32) -> Answer {
        Answer { model, bytes, cost, life: None }
    }

    fn put(self, cache: &Cache, number: u64) {
        let scope = cache.intern("n", Some((self.model, "1"))).unwrap();
        let payload = vec![0; self.bytes];
        let write = Write {
            kind: 0,
            aligned: false,
            payload: &payload,
            scope,
            tags: &[],
            stamp: cache.stamp(),
            life: self.life,
            stale: 0,
            cost: self.cost,
        };
        assert_eq!(cache.store(&key(number), &write).0, Stored::Kept);
    }
}

/// How many of these are still there.
fn left(cache: &Cache, numbers: std::ops::Range<u64>) -> usize {
    numbers.filter(|&number| cache.get(&key(number)).is_some()).count()
}

const CHEAP: Answer = Answer::of("cheap", 1_000, 0.005);
const DEAR: Answer = Answer::of("dear", 1_000, 2.0);

#[test]
fn expensive_entries_outlive_cheap_ones() {
    for (eviction, kept) in [(Eviction::Cost, 90..=100), (Eviction::S3Fifo, 0..=10)] {
        let (cache, _) = cache(1, eviction);
        (0..100).for_each(|number| DEAR.put(&cache, number));
        // A hundred times as many cheap ones, none of which is asked for again; nor are the dear ones.
        (1_000..11_000).for_each(|number| CHEAP.put(&cache, number));
        let found = left(&cache, 0..100);
        assert!(kept.contains(&found), "{eviction:?}: {found} of 100 dear ones are left");
    }
}

#[test]
fn small_entries_outlive_large_ones_of_the_same_cost() {
    let (cache, _) = cache(1, Eviction::Cost);
    let (small, large) = (Answer::of("small", 100, 0.01), Answer::of("large", 10_000, 0.01));
    (0..100).for_each(|number| small.put(&cache, number));
    (1_000..1_400).for_each(|number| large.put(&cache, number));
    assert!(cache.stats().evictions >= 250, "four times as many as there is room for");
    let found = left(&cache, 0..100);
    assert!(found >= 90, "{found} of 100 small ones are left");
}

#[test]
fn what_is_dear_and_never_asked_for_goes_in_the_end() {
    let (cache, _) = cache(1, Eviction::Cost);
    (0..500).for_each(|number| DEAR.put(&cache, number));
    // A cheap model whose thousand answers are asked for all the time: the dear ones only take its room.
    for round in 0..400 {
        for number in 1_000..2_000 {
            if cache.get(&key(number)).is_none() {
                CHEAP.put(&cache, number);
            }
        }
        if round == 0 {
            let found = left(&cache, 0..500);
            assert!(found >= 450, "{found} of 500 dear ones are left after one round");
            // Being looked for here is a use. It is forgotten in time.
        }
    }
    let found =
        (0..500).filter(|&number| matches!(cache.peek(&key(number)), infercache_core::cache::Found::Fresh(_))).count();
    assert!(found < 100, "{found} of 500 dear ones that nobody asks for are left");
}

#[test]
fn an_entry_of_unknown_cost_is_worth_what_its_models_answers_cost() {
    for (model, kept) in [("dear", 90..=100), ("cheap", 0..=10)] {
        let (cache, _) = cache(1, Eviction::Cost);
        (0..20).for_each(|number| DEAR.put(&cache, number));
        (20..40).for_each(|number| CHEAP.put(&cache, number));
        // Stored by hand: nobody knows what they took.
        let unknown = Answer { model, cost: 0.0, ..CHEAP };
        (100..200).for_each(|number| unknown.put(&cache, number));
        (1_000..11_000).for_each(|number| CHEAP.put(&cache, number));
        let found = left(&cache, 100..200);
        assert!(kept.contains(&found), "of {model}: {found} of 100 are left");
    }
}

#[test]
fn an_estimated_cost_is_not_counted_as_saved() {
    let (cache, _) = cache(1, Eviction::Cost);
    DEAR.put(&cache, 1);
    Answer { cost: 0.0, ..DEAR }.put(&cache, 2);
    assert!(cache.get(&key(2)).is_some());
    assert_eq!(cache.stats().saved_seconds, 0.0);
    assert_eq!(cache.get(&key(2)).unwrap().cost(), 0.0, "nor does it reach a shared tier");
    assert!(cache.get(&key(1)).is_some());
    assert!((cache.stats().saved_seconds - 2.0).abs() < 0.002);
}

#[test]
fn one_slow_answer_is_forgotten_in_the_mean_of_its_model() {
    let (cache, _) = cache(1, Eviction::Cost);
    // The first run of a model loads it. The others fill the cache.
    Answer { cost: 30.0, ..CHEAP }.put(&cache, 0);
    (10_000..12_000).for_each(|number| CHEAP.put(&cache, number));
    let unknown = Answer { cost: 0.0, ..CHEAP };
    (1_000..1_100).for_each(|number| unknown.put(&cache, number));
    (2_000..4_000).for_each(|number| CHEAP.put(&cache, number));
    let found = left(&cache, 1_000..1_100);
    assert!(found <= 10, "{found} of 100 that are as cheap as the others are left");
}

#[test]
fn an_overwritten_entry_counts_for_what_its_new_value_cost() {
    for (first, second, kept) in [(CHEAP, DEAR, 90..=100), (DEAR, CHEAP, 0..=10)] {
        let (cache, _) = cache(1, Eviction::Cost);
        for answer in [first, second] {
            (0..100).for_each(|number| answer.put(&cache, number));
        }
        // Being stored again is a use, so these are used as often.
        for number in 1_000..11_000 {
            CHEAP.put(&cache, number);
            cache.get(&key(number));
        }
        let found = left(&cache, 0..100);
        assert!(kept.contains(&found), "{found} of 100 are left");
    }
}

/// The part of the requests for 401 answers that are hits where as many others are for something new each.
fn hits_beside(unique: Answer, eviction: Eviction) -> f64 {
    let (cache, _) = cache(1, eviction);
    let hot = Answer::of("hot", 1_000, 0.01);
    let (mut hits, mut asked) = (0, 0);
    for number in 0..60_000u64 {
        let wanted = number * number % 401;
        asked += 1;
        if cache.get(&key(wanted)).is_some() {
            hits += 1;
        } else {
            hot.put(&cache, wanted);
        }
        unique.put(&cache, 1_000_000 + number);
    }
    f64::from(hits) / f64::from(asked)
}

#[test]
fn a_stream_of_new_questions_leaves_what_is_asked_for_again_alone() {
    for eviction in [Eviction::S3Fifo, Eviction::Cost] {
        let found = hits_beside(Answer::of("unique", 1_000, 0.01), eviction);
        assert!(found > 0.98, "{eviction:?}: {found:.3} of the requests that repeat are hits");
    }
    // Where each of them took a hundred times as long they are given more room, until it is known that none returns.
    let found = hits_beside(Answer::of("unique", 1_000, 1.0), Eviction::Cost);
    assert!(found > 0.9, "{found:.3} of the requests that repeat are hits");
}

#[test]
fn expired_entries_never_push_out_live_ones_whatever_they_cost() {
    for (eviction, shards) in [(Eviction::S3Fifo, 1), (Eviction::Cost, 1), (Eviction::S3Fifo, 8), (Eviction::Cost, 8)] {
        let (cache, hand) = cache(shards, eviction);
        let cheap = Answer::of("cheap", 100, 0.001);
        (0..1_000).for_each(|number| cheap.put(&cache, number));
        for round in 0..20 {
            // Dear answers of a short life, of which each round brings as many as the last one left behind.
            let dear = Answer { life: Some(1_000), ..Answer::of("dear", 100, 5.0) };
            (0..2_000).for_each(|number| dear.put(&cache, 10_000 * (round + 1) + number));
            assert_eq!(cache.stats().evictions, 0, "{eviction:?}, {shards} shards, round {round}");
            hand.fetch_add(10_000, Ordering::Relaxed);
        }
        assert_eq!(left(&cache, 0..1_000), 1_000);
        assert!(cache.stats().expirations >= 30_000, "{}", cache.stats().expirations);
    }
}
