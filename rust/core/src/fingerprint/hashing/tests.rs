use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::Path;

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2654435761) >> 9) as u8).collect()
}

/// A file that is removed when dropped.
struct Made(PathBuf);

impl Made {
    fn new(name: &str, bytes: &[u8]) -> Made {
        let path = std::env::temp_dir().join(format!("infercache-hashing-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Made(path)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn run(paths: &[&Path], regions: &[Region], threads: usize) -> Result<Vec<[u8; 32]>, Failure> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let hashing = Hashing::open(&paths, regions.to_vec())?;
    thread::scope(|scope| {
        for _ in 0..threads {
            hashing.enlist();
            scope.spawn(|| hashing.work());
        }
        while !hashing.wait(Duration::from_secs(1)) {}
    });
    if hashing.failure.lock().is_none() {
        assert_eq!(hashing.done(), regions.iter().map(|region| region.length).sum::<u64>());
    }
    hashing.digests()
}

#[test]
fn lengths_around_every_boundary_have_the_digest_of_their_bytes() {
    let bytes = content(9 * PIECE + 7);
    let made = Made::new("boundaries", &bytes);
    let mut regions = Vec::new();
    for pieces in 0..=9 {
        for length in [pieces * PIECE, pieces * PIECE + 1, (pieces * PIECE).saturating_sub(1), pieces * 1024 + 1023] {
            for offset in [0, 1, 5] {
                if offset + length <= bytes.len() {
                    regions.push(Region { file: 0, offset: offset as u64, length: length as u64 });
                }
            }
        }
    }
    for threads in [1, 2, 5] {
        let digests = run(&[&made.0], &regions, threads).unwrap();
        for (region, digest) in regions.iter().zip(digests) {
            let part = &bytes[region.offset as usize..][..region.length as usize];
            assert_eq!(digest, *blake3::hash(part).as_bytes(), "{region:?}");
        }
    }
}

#[test]
fn bytes_in_memory_have_their_digests() {
    let bytes = content(5 * PIECE + 7);
    let lengths = [0, 1, 1024, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, bytes.len()];
    let buffers: Vec<&[u8]> = lengths.iter().map(|&length| &bytes[bytes.len() - length..]).collect();
    for threads in [1, 2, 5] {
        let hashing = Hashing::of_memory(&buffers).unwrap();
        thread::scope(|scope| {
            for _ in 0..threads {
                hashing.enlist();
                scope.spawn(|| hashing.work());
            }
        });
        let digests = hashing.digests().unwrap();
        assert!(buffers.iter().zip(&digests).all(|(bytes, digest)| digest == blake3::hash(bytes).as_bytes()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_regions_of_any_files_have_the_digest_of_their_bytes(
        cuts in prop::collection::vec((0usize..3, 0usize..2 * PIECE, 0usize..3 * PIECE), 0..12),
        threads in 1usize..4,
        name in 0u64..u64::MAX,
    ) {
        let sizes = [0, PIECE + 13, 5 * PIECE];
        let contents: Vec<Vec<u8>> = sizes.iter().map(|&size| content(size)).collect();
        let made: Vec<Made> = contents.iter().enumerate().map(|(at, bytes)| Made::new(&format!("{name}-{at}"), bytes)).collect();
        let paths: Vec<&Path> = made.iter().map(|made| made.0.as_path()).collect();
        let within = |&(file, offset, length): &(usize, usize, usize)| {
            let offset = offset.min(sizes[file]);
            Region { file, offset: offset as u64, length: length.min(sizes[file] - offset) as u64 }
        };
        let regions: Vec<Region> = cuts.iter().map(within).collect();
        for (region, digest) in regions.iter().zip(run(&paths, &regions, threads).unwrap()) {
            let part = &contents[region.file][region.offset as usize..][..region.length as usize];
            prop_assert_eq!(digest, *blake3::hash(part).as_bytes());
        }
    }
}

#[test]
fn a_region_beyond_the_end_of_its_file_is_refused_before_anything_is_allocated() {
    let made = Made::new("short", b"abc");
    for (offset, length) in [(0, 4), (3, 1), (4, 0), (u64::MAX, 1), (1, u64::MAX), (0, u64::MAX / 2)] {
        let failure = run(&[&made.0], &[Region { file: 0, offset, length }], 1).unwrap_err();
        assert_eq!(failure.error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn a_file_that_is_truncated_meanwhile_is_a_failure_that_names_it() {
    let (whole, cut) = (Made::new("whole", b"x"), Made::new("cut", &content(4 * PIECE)));
    let regions = vec![Region { file: 1, offset: 0, length: 4 * PIECE as u64 }];
    let hashing = Hashing::open(&[whole.0.clone(), cut.0.clone()], regions).unwrap();
    File::options().write(true).open(&cut.0).unwrap().set_len(10).unwrap();
    hashing.enlist();
    hashing.work();
    assert!(hashing.wait(Duration::ZERO));
    let failure = hashing.digests().unwrap_err();
    assert_eq!((failure.file, failure.error.kind()), (1, io::ErrorKind::UnexpectedEof));
}

#[test]
fn a_missing_file_is_a_failure_that_names_it() {
    let made = Made::new("there", b"x");
    let missing = made.0.with_extension("missing");
    let failure = run(&[&made.0, &missing], &[], 1).unwrap_err();
    assert_eq!((failure.file, failure.error.kind()), (1, io::ErrorKind::NotFound));
}

#[test]
fn who_is_stopped_ends_before_the_last_piece() {
    let made = Made::new("stopped", &content(3 * PIECE));
    let region = Region { file: 0, offset: 0, length: 3 * PIECE as u64 };
    let hashing = Hashing::open(std::slice::from_ref(&made.0), vec![region]).unwrap();
    hashing.stop();
    hashing.enlist();
    hashing.work();
    assert_eq!(hashing.done(), 0);
    assert!(hashing.wait(Duration::ZERO));
}
