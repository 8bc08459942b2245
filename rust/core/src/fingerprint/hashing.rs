//! Plain BLAKE3 of regions of files, and of bytes in memory, by several threads, within a bounded memory.
//!
//! Each region is cut into pieces of 2^n chunks, whose chaining values are computed apart and merged: the digest is that of
//! the region's bytes. Whoever is free takes the next piece, whatever region it is of, so one large tensor keeps all threads
//! busy as well as a thousand small ones. A thread reads its piece into a buffer of its own and hashes it there, while it
//! still lies in the processor's cache; beside those buffers there are 32 bytes for each piece.
//!
//! Files are read, not mapped: a mapped file that somebody truncates kills the process that reads it (`SIGBUS`), and
//! reading is about as fast (docs/decisions/0020-model-fingerprints.md).

use crate::tensor::merged_root;
use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt};
use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a piece: 2^n chunks, few enough to stay in a core's own cache between reading and hashing.
pub const PIECE: usize = 256 << 10;
/// More threads than this never hash together: the memory or the disk ends before.
const MAX_WORKERS: usize = 16;

/// Consecutive bytes of one of the files.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// Which file, as a place in the list of files.
    pub file: usize,
    /// Bytes from the file's beginning.
    pub offset: u64,
    /// Bytes of the region.
    pub length: u64,
}

/// What went wrong with which file.
#[derive(Debug)]
pub struct Failure {
    /// Place in the list of files.
    pub file: usize,
    /// The operating system's error; `UnexpectedEof`: the file is shorter than the region says.
    pub error: io::Error,
}

/// Where the bytes of regions are.
enum Source<'a> {
    File(File),
    Memory(&'a [u8]),
}

/// Regions on their way to their digests.
pub struct Hashing<'a> {
    sources: Vec<Source<'a>>,
    regions: Vec<Region>,
    /// The number of the first piece of each region, and behind the last one the number of all.
    first: Vec<usize>,
    /// A chaining value for each piece; of a region that is one piece, the digest itself.
    values: Mutex<Vec<ChainingValue>>,
    next: AtomicUsize,
    done: AtomicU64,
    stopped: AtomicBool,
    failure: Mutex<Option<Failure>>,
    /// Threads that have enlisted and not ended.
    at_work: Mutex<usize>,
    ended: Condvar,
}

/// Threads that may be of use on this machine.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS)
}

impl<'a> Hashing<'a> {
    /// Opens the files and cuts the regions into pieces.
    ///
    /// # Errors
    ///
    /// A file that cannot be opened, or is shorter than one of its regions says.
    pub fn open(paths: &[PathBuf], regions: Vec<Region>) -> Result<Hashing<'a>, Failure> {
        let mut sources = Vec::with_capacity(paths.len());
        let mut sizes = Vec::with_capacity(paths.len());
        for (at, path) in paths.iter().enumerate() {
            let fail = |error| Failure { file: at, error };
            let file = File::open(path).map_err(fail)?;
            sizes.push(file.metadata().map_err(fail)?.len());
            sources.push(Source::File(file));
        }
        Hashing::new(sources, &sizes, regions)
    }

    /// Takes buffers as a region each; no file is read.
    ///
    /// # Errors
    ///
    /// No memory for 32 bytes a piece.
    pub fn of_memory(buffers: &[&'a [u8]]) -> Result<Hashing<'a>, Failure> {
        let sources = buffers.iter().map(|bytes| Source::Memory(bytes)).collect();
        let sizes: Vec<u64> = buffers.iter().map(|bytes| bytes.len() as u64).collect();
        let region = |(file, &length): (usize, &u64)| Region { file, offset: 0, length };
        Hashing::new(sources, &sizes, sizes.iter().enumerate().map(region).collect())
    }

    fn new(sources: Vec<Source<'a>>, sizes: &[u64], regions: Vec<Region>) -> Result<Hashing<'a>, Failure> {
        let mut first = Vec::with_capacity(regions.len() + 1);
        let mut pieces = 0usize;
        for region in &regions {
            let fail = |error| Failure { file: region.file, error };
            let end = region.offset.checked_add(region.length);
            let size = sizes.get(region.file).copied().unwrap_or(0);
            if end.is_none_or(|end| end > size) {
                return Err(fail(io::ErrorKind::UnexpectedEof.into()));
            }
            first.push(pieces);
            // An empty region is one piece without bytes.
            let count = usize::try_from(region.length.div_ceil(PIECE as u64).max(1)).ok();
            let sum = count.and_then(|count| pieces.checked_add(count));
            pieces = sum.ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
        }
        first.push(pieces);
        let mut values: Vec<ChainingValue> = Vec::new();
        if values.try_reserve_exact(pieces).is_err() {
            return Err(Failure { file: 0, error: io::ErrorKind::OutOfMemory.into() });
        }
        values.resize(pieces, [0; 32]);
        Ok(Hashing {
            sources,
            regions,
            first,
            values: Mutex::new(values),
            next: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            failure: Mutex::default(),
            at_work: Mutex::new(0),
            ended: Condvar::new(),
        })
    }

    /// Pieces of all regions: more threads than these have nothing to do.
    pub fn pieces(&self) -> usize {
        self.first.last().copied().unwrap_or(0)
    }

    /// A thread will call [`Hashing::work`]: [`Hashing::wait`] waits for it from now on.
    pub fn enlist(&self) {
        *self.at_work.lock() += 1;
    }

    /// Takes pieces until none is left, one failed, or somebody said [`Hashing::stop`]. After [`Hashing::enlist`].
    pub fn work(&self) {
        let mut buffer = Vec::new();
        while !self.stopped.load(Ordering::Relaxed) {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces() {
                break;
            }
            if let Err(failure) = self.hash(piece, &mut buffer) {
                self.failure.lock().get_or_insert(failure);
                self.stop();
            }
        }
        self.retire();
    }

    /// An enlisted thread will not work after all.
    pub fn retire(&self) {
        *self.at_work.lock() -= 1;
        self.ended.notify_all();
    }

    /// Lets the threads end before they are done.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until every enlisted thread has ended, but no longer than this; says whether they have.
    pub fn wait(&self, longest: Duration) -> bool {
        let until = Instant::now() + longest;
        let mut at_work = self.at_work.lock();
        while *at_work > 0 {
            if self.ended.wait_until(&mut at_work, until).timed_out() {
                return *at_work == 0;
            }
        }
        true
    }

    /// Bytes that are hashed by now.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// The digest of each region, once all threads have ended.
    ///
    /// # Errors
    ///
    /// The first failure of a thread.
    ///
    /// # Panics
    ///
    /// Where the work was stopped, or nobody did it.
    pub fn digests(self) -> Result<Vec<[u8; 32]>, Failure> {
        if let Some(failure) = self.failure.into_inner() {
            return Err(failure);
        }
        let next = self.next.into_inner();
        let pieces = *self.first.last().expect("one more number than regions");
        assert!(next >= pieces && !self.stopped.into_inner(), "digests are asked for before they are done");
        let values = self.values.into_inner();
        let of_region = |ends: &[usize]| match &values[ends[0]..ends[1]] {
            [digest] => *digest,
            values => merged_root(values),
        };
        Ok(self.first.windows(2).map(of_region).collect())
    }

    fn hash(&self, piece: usize, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        // The last region that begins at or before this piece; every region has a piece, so no two begin at the same.
        let place = self.first.partition_point(|&first| first <= piece) - 1;
        let region = self.regions[place];
        let start = (piece - self.first[place]) as u64 * PIECE as u64;
        let length = (region.length - start).min(PIECE as u64) as usize;
        let bytes = match &self.sources[region.file] {
            Source::Memory(bytes) => &bytes[(region.offset + start) as usize..][..length],
            Source::File(file) => {
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                let bytes = &mut buffer[..length];
                read_at(file, bytes, region.offset + start).map_err(|error| Failure { file: region.file, error })?;
                &*bytes
            }
        };
        let value = if region.length <= PIECE as u64 {
            *blake3::hash(bytes).as_bytes()
        } else {
            Hasher::new().set_input_offset(start).update(bytes).finalize_non_root()
        };
        self.values.lock()[piece] = value;
        self.done.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Fills the buffer from this place of the file on; several threads may read one file.
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    use std::os::unix::fs::FileExt;
    #[cfg(windows)]
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        #[cfg(unix)]
        let read = file.read_at(buffer, offset);
        #[cfg(windows)]
        let read = file.seek_read(buffer, offset);
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
