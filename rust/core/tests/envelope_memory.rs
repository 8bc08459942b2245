//! A process of its own, with an allocator that counts: no length is believed before it is checked.
#![cfg(not(feature = "explore"))]

use infercache_core::envelope::{CHECKSUM_BYTES, Envelope, Lifetime, Options, Reader, Refused, decode, encode};
use infercache_core::scopes::ScopeTags;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, which remembers the largest request.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KEY: [u8; 32] = [7; 32];

fn sealed(payload: &[u8]) -> Vec<u8> {
    let envelope = Envelope {
        key: KEY,
        kind: 0,
        aligned: false,
        epoch: [0; 16],
        lsn: 0,
        lifetime: Lifetime { life: None, stale: 0, age: 0 },
        total: None,
        scope: ScopeTags { namespace: 1, model: 0, version: 0 },
        tags: vec![].into(),
        cost: 0.0,
        payload: payload.into(),
    };
    encode(&envelope, &Options::default()).expect("it can be written")
}

/// With other bytes at an offset, under a right seal.
fn forged(whole: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut body = whole[..whole.len() - CHECKSUM_BYTES].to_vec();
    body[at..at + bytes.len()].copy_from_slice(bytes);
    let seal = blake3::hash(&body);
    [&body[..], &seal.as_bytes()[..CHECKSUM_BYTES]].concat()
}

/// What reading it comes to, and the largest allocation meanwhile.
fn read(bytes: &[u8], cap: u64) -> (Result<usize, Refused>, usize) {
    LARGEST.store(0, Ordering::Relaxed);
    let read = decode(bytes, &KEY, &Reader { mac: None, cap }).map(|read| read.payload.len());
    (read, LARGEST.load(Ordering::Relaxed))
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn a_decompression_bomb_is_refused_and_nothing_is_allocated_for_it() {
    const MIB: usize = 1 << 20;
    // The measure itself: an honest value of that size is seen.
    let honest = sealed(&vec![0; 16 * MIB]);
    assert!(honest.len() < 100_000);
    let (length, largest) = read(&honest, 16 * MIB as u64);
    assert_eq!(length, Ok(16 * MIB));
    assert!((16 * MIB..17 * MIB).contains(&largest), "{largest}");
    // It would expand to 16 MiB, where one is allowed; and it claims gigabytes, or all there is.
    assert_eq!(read(&honest, MIB as u64), (Err(Refused::Bomb), 0));
    for claimed in [1u64 << 32, 1 << 40, u64::MAX] {
        for cap in [MIB as u64, 1 << 39, u64::MAX] {
            let (refused, largest) = read(&forged(&honest, 128, &claimed.to_le_bytes()), cap);
            assert_eq!((refused, largest), (Err(Refused::Bomb), 0), "{claimed} with a cap of {cap}");
        }
    }
    // It claims what the cap allows, and expands to more: nothing beyond the claim is allocated.
    let (refused, largest) = read(&forged(&honest, 128, &(MIB as u64).to_le_bytes()), MIB as u64);
    assert_eq!(refused, Err(Refused::Compression));
    assert!(largest <= MIB, "{largest}");
    // Small bytes cannot claim the cap: LZ4 makes at most 255 of one.
    let small = sealed(&[0; 600]);
    assert_eq!(read(&forged(&small, 128, &(512 * MIB as u64).to_le_bytes()), 1 << 40), (Err(Refused::Bomb), 0));
    // Nor do tags allocate before they are there.
    assert_eq!(read(&forged(&small, 124, &4_096u32.to_le_bytes()), 1 << 40), (Err(Refused::Lengths), 0));
    assert_eq!(read(&forged(&small, 124, &u32::MAX.to_le_bytes()), 1 << 40), (Err(Refused::Tags), 0));
    assert_eq!(read(&forged(&small, 136, &u64::MAX.to_le_bytes()), 1 << 40), (Err(Refused::Lengths), 0));
}
