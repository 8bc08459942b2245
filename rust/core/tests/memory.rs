//! A process of its own, so that its resident memory is this cache's alone.
#![cfg(all(target_os = "linux", not(feature = "explore")))]

use infercache_core::cache::{Cache, Eviction, Options, Stored, Write};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ENTRIES: u64 = 1 << 20;
const PAYLOAD: usize = 64;

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line of resident memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") * 1024
}

fn fill(cache: &Cache, life: Option<u64>) {
    let scope = cache.intern("default", Some(("m", "1"))).expect("a first scope");
    for number in 0..ENTRIES {
        let key = *blake3::hash(&number.to_le_bytes()).as_bytes();
        let payload = [number as u8; PAYLOAD];
        let stamp = cache.stamp();
        let write =
            Write { kind: 0, aligned: false, payload: &payload, scope, tags: &[], stamp, life, stale: 0, cost: 0.005 };
        assert_eq!(cache.store(&key, &write).0, Stored::Kept);
    }
}

/// Which of the measurements this process makes: each wants a process of its own, for memory that was given back is not
/// at once the machine's again.
const CHILD: &str = "INFERCACHE_MEMORY";

fn measure(life: Option<u64>, eviction: Eviction) {
    let before = resident();
    let cache = Cache::new(Options { eviction, ..Options::new(1 << 30, 7) });
    fill(&cache, life);
    let grown = resident() - before;
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.evictions), (ENTRIES, 0));
    let metadata = (grown as f64 - (ENTRIES * (32 + PAYLOAD as u64)) as f64) / ENTRIES as f64;
    let counted = stats.bytes as f64 / ENTRIES as f64 - 96.0;
    println!("life {life:?}, {eviction:?}: {metadata:.1} bytes of metadata an entry; the budget counts {counted:.1}");
    assert!(metadata <= 64.0, "{metadata:.1}");
    // What the budget counts is what the machine spends, but for the allocator's own overhead.
    assert!((0.9..=1.02).contains(&(stats.bytes as f64 / grown as f64)), "{} counted, {grown} grown", stats.bytes);
}

#[test]
fn metadata_is_at_most_64_bytes_an_entry() {
    match std::env::var(CHILD).as_deref() {
        Ok("none") => measure(None, Eviction::S3Fifo),
        Ok("hour") => measure(Some(3_600_000), Eviction::S3Fifo),
        Ok("cost") => measure(None, Eviction::Cost),
        _ => {
            for measured in ["none", "hour", "cost"] {
                let child = std::process::Command::new(std::env::current_exe().expect("a path"))
                    .args(["--exact", "metadata_is_at_most_64_bytes_an_entry", "--nocapture"])
                    .env(CHILD, measured)
                    .output()
                    .expect("the test can run itself");
                let said = String::from_utf8_lossy(&child.stdout);
                println!("{}", said.lines().find(|line| line.starts_with("life")).unwrap_or_default());
                assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
            }
        }
    }
}
