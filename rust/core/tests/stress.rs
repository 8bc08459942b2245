//! Threads without schedule or mercy, with an allocator that counts: the byte budget holds at every instant.
//!
//! A process of its own, because the allocator counts everything. `make asan` runs it under AddressSanitizer.
#![cfg(not(feature = "explore"))]

use infercache_core::cache::{Cache, Eviction, Found, Options, Stored, Write};
use infercache_core::fence::Target;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

/// Counts live bytes and their highest number.
struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

// SAFETY: hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size() as i64, Ordering::Relaxed) + layout.size() as i64;
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise. Counted after the fact, so that the count is never too low.
        unsafe { System.dealloc(pointer, layout) };
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const THREADS: u64 = 4;
const OPERATIONS: u64 = if cfg!(debug_assertions) { 150_000 } else { 1_000_000 };
const CAPACITY: u64 = 16 << 20;
const KEYS: u64 = 20_000;
const LONGEST: usize = 30_000;
static PAYLOADS: [u8; LONGEST + 256] = {
    let mut bytes = [0; LONGEST + 256];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// The payload of a key: its bytes count up from the key's own byte, so a torn, freed or foreign one is seen.
fn payload(number: u64, length: usize) -> &'static [u8] {
    let first = number as usize % 256;
    &PAYLOADS[first..first + length]
}

fn check(number: u64, found: &[u8]) {
    assert_eq!(found, payload(number, found.len()), "key {number}");
}

fn key(number: u64) -> [u8; 32] {
    *blake3::hash(&number.to_le_bytes()).as_bytes()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(bound)) >> 64) as u64
    }
}

fn step(cache: &Cache, random: &mut Random, counts: &Counts) {
    let number = random.below(KEYS).min(random.below(KEYS));
    match random.below(100) {
        0..55 => match cache.get(&key(number)) {
            Some(entry) => {
                check(number, entry.payload());
                counts.hits.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                counts.misses.fetch_add(1, Ordering::Relaxed);
            }
        },
        55..95 => {
            let length = match random.below(20) {
                0 => random.below(LONGEST as u64),
                1..6 => 1_536,
                _ => random.below(300),
            } as usize;
            let scope = cache.intern("n", Some(("m", "1"))).expect("one scope");
            let tags = [cache.tag("n", Target::Tag(["a", "b", "c"][number as usize % 3]))];
            let life = (random.below(3) == 0).then(|| random.below(200));
            let stamp = cache.stamp();
            let aligned = random.below(2) == 0;
            let write = Write {
                kind: 0,
                aligned,
                payload: payload(number, length),
                scope,
                tags: &tags,
                stamp,
                life,
                stale: random.below(2) * 50,
                // Of a key, another one now and then: its entry then changes its class. 0: not known.
                cost: [0.001, 0.001, 0.02, 2.0, 0.0][random.below(5) as usize],
            };
            let (stored, entry) = cache.store(&key(number), &write);
            check(number, entry.payload());
            counts.stores.fetch_add(u64::from(stored == Stored::Kept), Ordering::Relaxed);
            assert_ne!(stored, Stored::Refused);
        }
        95 => {
            cache.remove(&key(number));
        }
        96..99 => {
            if let Found::Stale(hit) = cache.peek(&key(number)) {
                check(number, hit.entry.payload());
            }
        }
        _ if random.below(200) == 0 => {
            cache.invalidate(&[cache.tag("n", Target::Tag("a"))], random.below(2) == 0);
        }
        _ => {}
    }
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    stores: AtomicU64,
}

#[test]
fn the_byte_budget_holds_at_every_instant_and_counters_are_exact() {
    // One after the other: the allocator counts for the whole process.
    for eviction in [Eviction::S3Fifo, Eviction::Cost] {
        run(eviction);
    }
}

fn run(eviction: Eviction) {
    let before = LIVE.load(Ordering::Relaxed);
    let cache = Cache::new(Options { eviction, ..Options::new(CAPACITY, 7) });
    let own = LIVE.load(Ordering::Relaxed) - before;
    let (counts, done) = (Counts::default(), AtomicBool::new(false));
    PEAK.store(0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (cache, counts) = (&cache, &counts);
                scope.spawn(move || {
                    let mut random = Random(thread * 77 + 1);
                    (0..OPERATIONS).for_each(|_| step(cache, &mut random, counts));
                })
            })
            .collect();
        let (cache, done) = (&cache, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert!(cache.bytes() <= CAPACITY + CAPACITY / 100);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        workers.into_iter().for_each(|worker| worker.join().expect("no worker panics"));
        done.store(true, Ordering::Relaxed);
    });
    // Beside the budget: what the threads hold at one moment (an entry each), their stacks' own, the fixed parts.
    let peak = (PEAK.load(Ordering::Relaxed) - before - own) as u64;
    let allowed = CAPACITY + CAPACITY / 100 + THREADS * (LONGEST as u64 + 4_096);
    println!("{eviction:?}: peak {:.2} % of the capacity", 100.0 * peak as f64 / CAPACITY as f64);
    assert!(peak <= allowed, "{peak} bytes at one instant, {allowed} allowed");
    assert!(peak >= CAPACITY * 9 / 10, "the run is to fill the cache: {peak}");

    let stats = cache.stats();
    assert_eq!(
        (stats.hits, stats.misses, stats.stores),
        (counts.hits.into_inner(), counts.misses.into_inner(), counts.stores.into_inner(),)
    );
    assert!(stats.evictions > 1_000 && stats.expirations > 100 && stats.invalidated > 0, "{stats:?}");
    assert_eq!(stats.pinned_bytes, 0);
    cache.clear();
    let mut left = cache.stats();
    for _ in 0..1_000 {
        if left.bytes == 0 {
            break;
        }
        std::thread::yield_now();
        left = cache.stats();
    }
    assert_eq!((left.entries, left.bytes), (0, 0));
    let remaining = LIVE.load(Ordering::Relaxed) - before - own;
    assert!(remaining < 200_000, "{remaining} bytes are left of an empty cache");
}
