//! The pieces of one tensor, hashed by several threads.
//!
//! BLAKE3 is a tree: the chaining values of pieces of 2^n chunks can be computed apart and merged. The caller's bytes
//! are cut into such pieces, and whoever is free takes the next one, the caller first of all. So a helper that wakes
//! late, because the machine is busy, costs nothing: the caller has done its pieces by then. It only ever waits for a
//! piece that a helper is in the middle of. Each thread gathers strided elements into a block of its own.
//!
//! On a machine whose cores are all busy helpers do not come in time, take the caller's own core, or lose theirs in the
//! middle of a piece. So it is measured: a run that took nearly as long as the caller alone takes was a disappointment,
//! and the next runs are hashed without helpers: one after the first, then three, seven, and so on up to
//! [`LONGEST_PAUSE`], until they prove useful again. What the caller alone takes is known for contiguous bytes from the
//! runs before; every strided layout is different, so there it is what its fastest piece took, times their number.
//!
//! The helpers are started at the first long run and then sleep until the next. They are no thread pool of a library,
//! because those do not survive `fork`, and servers fork: here the child starts helpers of its own.

use super::content::Content;
use crate::pieces;
use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use parking_lot::{Condvar, Mutex};
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Contiguous bytes from which a second thread pays; docs/decisions/0008-hash-threads.md has the measurement.
pub const THREADS_FROM: usize = 512 << 10;
/// Bytes from which it pays for elements that are gathered first; docs/decisions/0016-strided-tensors.md has it.
pub const STRIDED_THREADS_FROM: usize = 256 << 10;
/// More threads than this never read a buffer together: memory bandwidth ends before.
const MAX_THREADS: usize = 8;
/// Runs in a row, at most, that are hashed without helpers because they disappointed.
const LONGEST_PAUSE: usize = 63;
/// Turns of a loop in which the caller waits for a helper's last piece: a few microseconds in which it just looks again,
const SPINS: usize = 64;
/// and then some in which it lets others run first, for the helper may be waiting for this very core; then it sleeps.
const YIELDS: usize = 64;

/// So many threads hash together, whatever the length and whatever was measured; 0: as this module decides.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// The number that [`set_hash_threads`] chose; 0: none.
pub fn hash_threads() -> usize {
    CHOSEN.load(Ordering::Relaxed)
}

/// Has so many threads hash each tensor of more than one piece from now on, for measurements; 0: as is best.
pub fn set_hash_threads(threads: usize) {
    CHOSEN.store(threads.min(MAX_THREADS), Ordering::Relaxed);
}

/// Plain BLAKE3 of a tensor's bytes, with several threads where that measured faster.
pub(super) fn digest(content: &Content<'_>) -> [u8; 32] {
    let chosen = hash_threads();
    if chosen > 0 {
        return digest_with(content, chosen);
    }
    let from = if content.in_place() { THREADS_FROM } else { STRIDED_THREADS_FROM };
    if content.length < from || pieces::needed(content.length) || cores() < 2 {
        return alone(content);
    }
    let helpers = Helpers::of_this_process();
    if content.in_place() { contiguous(content, helpers) } else { strided(content, helpers) }
}

/// As [`digest`], with so many threads if there is more than one piece.
pub(super) fn digest_with(content: &Content<'_>, threads: usize) -> [u8; 32] {
    if threads < 2 || content.length <= content.piece() { alone(content) } else { with_helpers(content, threads).0 }
}

/// Hashes on this thread.
fn alone(content: &Content<'_>) -> [u8; 32] {
    let mut block = Vec::new();
    if content.in_place() {
        let bytes = content.part(0, content.length, &mut block);
        return if pieces::needed(bytes.len()) {
            pieces::hash(Hasher::new(), bytes)
        } else {
            *blake3::hash(bytes).as_bytes()
        };
    }
    let (mut hasher, piece) = (Hasher::new(), content.piece());
    for offset in (0..content.length).step_by(piece) {
        pieces::update(&mut hasher, content.part(offset, piece.min(content.length - offset), &mut block));
    }
    *hasher.finalize().as_bytes()
}

/// Hashes bytes that lie one after another, with helpers if they are of use.
fn contiguous(content: &Content<'_>, helpers: &'static Helpers) -> [u8; 32] {
    let expected = helpers.expected() && helpers.alone.load(Ordering::Relaxed) > 0;
    let begun = Instant::now();
    let digest = if expected { with_helpers(content, cores()).0 } else { alone(content) };
    let pace = begun.elapsed().as_nanos() as usize * 1024 / content.length;
    if expected {
        helpers.judge(pace, helpers.alone.load(Ordering::Relaxed));
    } else {
        helpers.learn(pace);
    }
    digest
}

/// Hashes gathered elements, with helpers if they are of use.
fn strided(content: &Content<'_>, helpers: &'static Helpers) -> [u8; 32] {
    let piece = content.piece();
    if content.length <= piece || !helpers.expected() {
        return alone(content);
    }
    let begun = Instant::now();
    let (digest, fastest) = with_helpers(content, cores());
    if let Some(fastest) = fastest {
        let took = begun.elapsed().as_nanos() as usize;
        helpers.judge(took, fastest.as_nanos() as usize * (content.length / piece));
    }
    digest
}

/// Threads that may be of use. Asked once: the answer comes from files of the operating system, which takes as long as
/// hashing 200 KiB. No lock, which a fork could leave behind held; several threads may ask.
fn cores() -> usize {
    static CORES: AtomicUsize = AtomicUsize::new(0);
    match CORES.load(Ordering::Relaxed) {
        0 => {
            let cores = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
            CORES.store(cores, Ordering::Relaxed);
            cores
        }
        cores => cores,
    }
}

/// Plain BLAKE3 of more than one piece, with `threads - 1` helpers, whether or not they were of use before; and how long
/// the caller's fastest piece took where pieces are gathered.
pub(super) fn with_helpers(content: &Content<'_>, threads: usize) -> ([u8; 32], Option<Duration>) {
    let helpers = Helpers::of_this_process();
    let piece = content.piece();
    let pieces = content.length.div_ceil(piece);
    let job = Arc::new(Job::new(content, piece, pieces));
    helpers.call(&job, (threads - 1).min(pieces - 1));
    let fastest = job.work();
    job.wait();
    // SAFETY: every piece is done, and `wait` saw it.
    let values: Vec<ChainingValue> = job.values.iter().map(|value| unsafe { *value.get() }).collect();
    (merged_root(&values), fastest)
}

/// The digest of bytes from the chaining values of their pieces: at least two, all but the last of the same 2^n chunks.
pub(crate) fn merged_root(values: &[ChainingValue]) -> [u8; 32] {
    let (left, right) = values.split_at(left_pieces(values.len()));
    *merge_subtrees_root(&merged(left), &merged(right), Mode::Hash).as_bytes()
}

/// How many of `pieces` (at least two) the left subtree has: the largest power of two that leaves some.
fn left_pieces(pieces: usize) -> usize {
    1 << (pieces - 1).ilog2()
}

fn merged(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [value] => *value,
        values => {
            let (left, right) = values.split_at(left_pieces(values.len()));
            merge_subtrees_non_root(&merged(left), &merged(right), Mode::Hash)
        }
    }
}

/// One tensor that is being hashed.
struct Job {
    content: *const Content<'static>,
    /// Bytes of a piece.
    piece: usize,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    /// How many pieces are done.
    done: AtomicUsize,
    values: Box<[UnsafeCell<ChainingValue>]>,
    caller: Thread,
}

// SAFETY: `content` is only read while a piece is in work, and the caller, who keeps it, waits for all of those. A
// chaining value is written by the one thread that took its piece, and read after all are done.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl Job {
    fn new(content: &Content<'_>, piece: usize, pieces: usize) -> Job {
        Job {
            content: std::ptr::from_ref(content).cast(),
            piece,
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            values: (0..pieces).map(|_| UnsafeCell::new([0; 32])).collect(),
            caller: thread::current(),
        }
    }

    /// Takes pieces until none is left. Gives the time of the fastest whole one, where pieces are gathered.
    fn work(&self) -> Option<Duration> {
        let (mut block, mut fastest) = (Vec::new(), None);
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(place) = self.values.get(piece) else { return fastest };
            // SAFETY: a taken piece that is not done: the caller waits, so the content is there.
            let content = unsafe { &*self.content };
            let begun = (!content.in_place()).then(Instant::now);
            let offset = piece * self.piece;
            let length = self.piece.min(content.length - offset);
            let mut hasher = Hasher::new();
            hasher.set_input_offset(offset as u64);
            pieces::update(&mut hasher, content.part(offset, length, &mut block));
            // SAFETY: this thread alone took the piece, and nobody reads before all are done.
            unsafe { *place.get() = hasher.finalize_non_root() };
            if let Some(begun) = begun.filter(|_| length == self.piece) {
                let took = begun.elapsed();
                fastest = Some(fastest.map_or(took, |before: Duration| before.min(took)));
            }
            if self.done.fetch_add(1, Ordering::Release) + 1 == self.values.len() {
                self.caller.unpark();
            }
        }
    }

    /// Returns when every piece is done.
    fn wait(&self) {
        let mut turns = 0;
        while self.done.load(Ordering::Acquire) < self.values.len() {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else if turns < SPINS + YIELDS {
                thread::yield_now();
            } else {
                // With a timeout, for the thread may be unparked for another reason before.
                thread::park_timeout(Duration::from_millis(1));
            }
        }
    }
}

/// The sleeping helpers of one process.
struct Helpers {
    process: u32,
    jobs: Mutex<Jobs>,
    wake: Condvar,
    /// So many runs are hashed without helpers before they are called again,
    skip: AtomicUsize,
    /// and so many were skipped after the last disappointment.
    pause: AtomicUsize,
    /// Nanoseconds that the caller alone takes for 1,024 bytes; 0: not known yet.
    alone: AtomicUsize,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Arc<Job>>,
    started: usize,
}

impl Helpers {
    /// The helpers of this process; after a `fork` the child has none of its parent's threads and makes its own.
    fn of_this_process() -> &'static Helpers {
        static HELPERS: AtomicPtr<Helpers> = AtomicPtr::new(std::ptr::null_mut());
        let process = std::process::id();
        let known = HELPERS.load(Ordering::Acquire);
        // SAFETY: what stands there was leaked below and is never freed.
        if let Some(helpers) = unsafe { known.as_ref() }
            && helpers.process == process
        {
            return helpers;
        }
        let made = Box::into_raw(Box::new(Helpers {
            process,
            jobs: Mutex::default(),
            wake: Condvar::new(),
            skip: AtomicUsize::new(0),
            pause: AtomicUsize::new(0),
            alone: AtomicUsize::new(0),
        }));
        match HELPERS.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: leaked, as said above: once a process, and once more in each forked child that hashes much.
            Ok(_) => unsafe { &*made },
            Err(theirs) => {
                // SAFETY: nobody else saw `made`; `theirs` was leaked by another thread of this process.
                unsafe {
                    drop(Box::from_raw(made));
                    &*theirs
                }
            }
        }
    }

    /// Whether helpers are worth calling, as the last runs showed. (Counts that threads lose to each other do not matter.)
    fn expected(&self) -> bool {
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
        }
        skip == 0
    }

    /// Notes how long the caller alone took, in nanoseconds for 1,024 bytes: a moving average in which one run that lost
    /// its core for a while hardly shows.
    fn learn(&self, pace: usize) {
        let known = self.alone.load(Ordering::Relaxed);
        let next = if known == 0 { pace } else { (7 * known + pace.min(2 * known)).div_ceil(8) };
        self.alone.store(next.max(1), Ordering::Relaxed);
    }

    /// Notes how long a run with helpers took, and how long the caller alone takes: they have to save a tenth to be called
    /// again.
    fn judge(&self, took: usize, alone: usize) {
        let useful = 10 * took <= 9 * alone;
        let pause = if useful { 0 } else { (2 * self.pause.load(Ordering::Relaxed) + 1).min(LONGEST_PAUSE) };
        self.pause.store(pause, Ordering::Relaxed);
        self.skip.store(pause, Ordering::Relaxed);
    }

    /// Asks up to `count` helpers to work on a job.
    fn call(&'static self, job: &Arc<Job>, count: usize) {
        let mut jobs = self.jobs.lock();
        while jobs.started < count {
            // Without a helper the caller does all: not being able to start a thread is no fault of its.
            let started = thread::Builder::new().name("infercache-hash".to_owned()).spawn(|| self.help());
            if started.is_err() {
                break;
            }
            jobs.started += 1;
        }
        let count = count.min(jobs.started);
        jobs.waiting.extend(std::iter::repeat_n(job, count).cloned());
        drop(jobs);
        for _ in 0..count {
            self.wake.notify_one();
        }
    }

    fn help(&self) {
        let mut jobs = self.jobs.lock();
        loop {
            match jobs.waiting.pop_front() {
                Some(job) => {
                    drop(jobs);
                    job.work();
                    drop(job);
                    jobs = self.jobs.lock();
                }
                None => self.wake.wait(&mut jobs),
            }
        }
    }
}
