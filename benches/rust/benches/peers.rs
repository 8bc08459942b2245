//! The core beside quick_cache and moka: same keys, same identity hasher, same payloads, same allocator.
//!
//! The cells: 0, 5 and 50 % writes; a cache that holds everything, and one that holds a tenth, where a read that misses
//! stores the value. Every cell is run in rounds; within a round each cache runs for the same number of operations, one after the other,
//! so that whatever else the machine does falls on all of them. What is printed is the median over the rounds of each
//! cache's throughput, and of our throughput divided by the faster peer's of the same round.
//!
//!     cargo bench -p infercache-benches --bench peers [-- --short] [--json FILE]
//!     … -- --only 50 1                            the cells of 50 % writes that hold everything
//!     … -- --profile infercache 1 50 10 [1000]    one peer, threads, writes %, holds 1/10, of so many items, for a profiler

use infercache_core::cache::{Cache, Options, Write};
use infercache_core::scopes::ScopeId;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::Write as _;
use std::sync::{Arc, Barrier};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAYLOAD: usize = 64;
type Key = [u8; 32];

/// Keys are BLAKE3 output: their first eight bytes are a hash.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, bytes: &[u8]) {
        if let Ok(word) = bytes[..8.min(bytes.len())].try_into() {
            self.0 = u64::from_le_bytes(word);
        }
    }
    fn write_usize(&mut self, _: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

type Build = BuildHasherDefault<Identity>;

trait Peer: Sync {
    fn name(&self) -> &'static str;
    /// The first byte of the value, if it is in.
    fn get(&self, key: &Key) -> Option<u8>;
    fn set(&self, key: &Key, value: &[u8; PAYLOAD]);
}

struct Ours(Cache, ScopeId);

impl Peer for Ours {
    fn name(&self) -> &'static str {
        "infercache"
    }
    fn get(&self, key: &Key) -> Option<u8> {
        self.0.get(key).map(|entry| entry.payload()[0])
    }
    fn set(&self, key: &Key, value: &[u8; PAYLOAD]) {
        let stamp = self.0.stamp();
        let write = Write {
            kind: 0,
            aligned: false,
            payload: value,
            scope: self.1,
            tags: &[],
            stamp,
            life: None,
            stale: 0,
            cost: 0.005,
        };
        std::hint::black_box(self.0.store(key, &write));
    }
}

struct Quick(quick_cache::sync::Cache<Key, Arc<[u8]>, quick_cache::UnitWeighter, Build>);

impl Peer for Quick {
    fn name(&self) -> &'static str {
        "quick_cache"
    }
    fn get(&self, key: &Key) -> Option<u8> {
        self.0.get(key).map(|value| value[0])
    }
    fn set(&self, key: &Key, value: &[u8; PAYLOAD]) {
        self.0.insert(*key, Arc::from(&value[..]));
    }
}

struct Moka(moka::sync::Cache<Key, Arc<[u8]>, Build>);

impl Peer for Moka {
    fn name(&self) -> &'static str {
        "moka"
    }
    fn get(&self, key: &Key) -> Option<u8> {
        self.0.get(key).map(|value| value[0])
    }
    fn set(&self, key: &Key, value: &[u8; PAYLOAD]) {
        self.0.insert(*key, Arc::from(&value[..]));
    }
}

/// xorshift64*, so that drawing costs next to nothing.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Item numbers in the order in which they are asked for, drawn beforehand.
fn zipf(items: usize, exponent: f64, count: usize, seed: u64) -> Vec<u32> {
    let mut sums = Vec::with_capacity(items);
    let mut sum = 0.0;
    for rank in 1..=items {
        sum += (rank as f64).powf(-exponent);
        sums.push(sum);
    }
    let mut random = Random(seed | 1);
    (0..count)
        .map(|_| {
            let at = (random.next() >> 11) as f64 / (1u64 << 53) as f64 * sum;
            sums.partition_point(|&s| s < at).min(items - 1) as u32
        })
        .collect()
}

struct Cell {
    threads: usize,
    /// Writes in a hundred operations.
    writes: u32,
    /// A read that misses stores the value, as a cache in front of a model does.
    fill: bool,
}

/// Operations a second of all threads together.
fn run(peer: &dyn Peer, keys: &[Key], draws: &[Vec<u32>], cell: &Cell) -> f64 {
    let barrier = Barrier::new(cell.threads + 1);
    std::thread::scope(|scope| {
        for (thread, draws) in draws.iter().take(cell.threads).enumerate() {
            let barrier = &barrier;
            scope.spawn(move || {
                let value = [thread as u8; PAYLOAD];
                let mut random = Random(thread as u64 + 99);
                let mut seen = 0u64;
                barrier.wait();
                for &item in draws {
                    let key = &keys[item as usize];
                    if cell.writes > 0 && (random.next() >> 32) as u32 % 100 < cell.writes {
                        peer.set(key, &value);
                    } else {
                        match peer.get(key) {
                            Some(byte) => seen += u64::from(byte),
                            None if cell.fill => peer.set(key, &value),
                            None => {}
                        }
                    }
                }
                std::hint::black_box(seen);
                barrier.wait();
            });
        }
        barrier.wait();
        let start = Instant::now();
        barrier.wait();
        (cell.threads * draws[0].len()) as f64 / start.elapsed().as_secs_f64()
    })
}

fn peers(items: usize, holds: usize) -> Vec<Box<dyn Peer>> {
    let held = items / holds;
    // Ours counts bytes: header, key, payload and this share of the arrays make an entry.
    let bytes = held * (64 + PAYLOAD + 32);
    // With everything held, nobody is to evict.
    let (held, bytes) = if holds == 1 { (held * 2, bytes * 2) } else { (held, bytes) };
    let ours = Cache::new(Options::new(bytes as u64, 1));
    let scope = ours.intern("bench", None).expect("a first scope");
    vec![
        Box::new(Ours(ours, scope)),
        Box::new(Quick(quick_cache::sync::Cache::with(
            held,
            held as u64,
            quick_cache::UnitWeighter,
            Build::default(),
            Default::default(),
        ))),
        Box::new(Moka(moka::sync::Cache::builder().max_capacity(held as u64).build_with_hasher(Build::default()))),
    ]
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs one cell of one peer for some seconds and prints nanoseconds an operation.
fn profile(arguments: &[String], items: usize) {
    let number = |at: usize| arguments[at].parse::<usize>().expect("a number");
    let cell = Cell { threads: number(1), writes: number(2) as u32, fill: number(3) > 1 };
    let keys: Vec<Key> = (0..items as u64).map(|item| *blake3::hash(&item.to_le_bytes()).as_bytes()).collect();
    let draws: Vec<Vec<u32>> =
        (0..cell.threads).map(|thread| zipf(items, 0.99, 1_000_000, thread as u64 + 1)).collect();
    for peer in peers(items, number(3)).iter().filter(|peer| peer.name() == arguments[0]) {
        (0..items).rev().for_each(|item| peer.set(&keys[item], &[1; PAYLOAD]));
        let mut speeds: Vec<f64> = (0..30).map(|_| run(peer.as_ref(), &keys, &draws, &cell)).collect();
        let hits = draws[0].iter().filter(|&&item| peer.get(&keys[item as usize]).is_some()).count();
        let (time, ratio) =
            (cell.threads as f64 * 1e9 / median(&mut speeds), 100.0 * hits as f64 / draws[0].len() as f64);
        println!("{}: {time:.1} ns an operation of a thread, then {ratio:.1} % hits", peer.name());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let short = arguments.iter().any(|argument| argument == "--short");
    let json = arguments.iter().position(|argument| argument == "--json").map(|at| arguments[at + 1].clone());
    let (items, operations, rounds) = if short { (100_000, 200_000, 5) } else { (100_000, 1_000_000, 15) };
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    if let Some(at) = arguments.iter().position(|argument| argument == "--profile") {
        let items = arguments.get(at + 5).map_or(items, |text| text.parse().expect("a number of items"));
        return profile(&arguments[at + 1..], items);
    }
    let only = arguments.iter().position(|argument| argument == "--only").map(|at| {
        let number = |at: usize| arguments[at].parse::<u32>().expect("a number");
        (number(at + 1), number(at + 2) as usize)
    });
    let threads: Vec<usize> = [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|&threads| threads <= cores.max(2)).collect();
    let keys: Vec<Key> = (0..items as u64).map(|item| *blake3::hash(&item.to_le_bytes()).as_bytes()).collect();
    let draws: Vec<Vec<u32>> =
        (0..cores.max(2)).map(|thread| zipf(items, 0.99, operations, thread as u64 + 1)).collect();
    println!(
        "{items} items, Zipf 0.99, {operations} operations a thread, median of {rounds} rounds, million operations a second"
    );
    println!(
        "{:>7} {:>7} {:>6} {:>12} {:>12} {:>8} {:>22}",
        "threads", "writes", "holds", "infercache", "quick_cache", "moka", "ours / faster peer"
    );
    let mut rows = Vec::new();
    let all = [1, 10].into_iter().flat_map(|holds| [0, 5, 50].map(|writes| (writes, holds)));
    for (writes, holds) in all.filter(|&cell| only.is_none_or(|only| only == cell)) {
        for &threads in &threads {
            let cell = Cell { threads, writes, fill: holds > 1 };
            let peers = peers(items, holds);
            for peer in &peers {
                (0..items).rev().for_each(|item| peer.set(&keys[item], &[1; PAYLOAD]));
                run(peer.as_ref(), &keys, &draws, &cell);
            }
            let mut speeds = vec![Vec::new(); peers.len()];
            let mut ratios = Vec::new();
            for round in 0..rounds {
                let mut speed = vec![0.0; peers.len()];
                for turn in 0..peers.len() {
                    let peer = (round + turn) % peers.len();
                    speed[peer] = run(peers[peer].as_ref(), &keys, &draws, &cell);
                    speeds[peer].push(speed[peer]);
                }
                ratios.push(speed[0] / speed[1..].iter().copied().fold(0.0, f64::max));
            }
            let [ours, quick, moka] = [0, 1, 2].map(|peer| median(&mut speeds[peer]) / 1e6);
            let ratio = median(&mut ratios);
            println!(
                "{threads:>7} {writes:>6}% {:>6} {ours:>12.1} {quick:>12.1} {moka:>8.1} {ratio:>22.2}",
                format!("1/{holds}")
            );
            let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
            rows.push(format!(
                "{{\"threads\":{threads},\"writes_percent\":{writes},\"holds_one_in\":{holds},\"{}\":{ours:.3},\"{}\":{quick:.3},\"{}\":{moka:.3},\"ours_over_faster_peer\":{ratio:.3}}}",
                names[0], names[1], names[2]
            ));
        }
    }
    if let Some(file) = json {
        let mut file = std::fs::File::create(file).expect("the file can be created");
        write!(file, "[\n{}\n]\n", rows.join(",\n")).expect("the file can be written");
    }
}
