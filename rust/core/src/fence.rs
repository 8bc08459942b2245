//! Logical clock and tag fences: what an invalidation hides.
//!
//! Nothing is searched for and deleted when a tag is purged. The authority (here the process itself; with a shared tier
//! its primary) numbers every purge; the number is the tag's *fence*, and an entry carries as *stamp* the last number
//! that its process had applied before the value was computed. An entry is hidden iff one of its tags has a fence above
//! its stamp:
//!
//! ```text
//!      stamp read ── model runs ── stored        fence(tag) = 7 > stamp = 6: hidden, whenever it was stored
//!          6             ↑
//!                   purge: LSN 7
//! ```
//!
//! So a purge during a model run wins over its result, whatever the order of arrival, and no clock is compared. Every
//! entry has implicit tags besides its own: all, its namespace, its model, its model and version, its key.
//!
//! # Whose numbers
//!
//! Without a shared tier the process is its own authority: it numbers its purges itself ([`Fences::new`]), and knows all
//! there are. With one, the authority is the tier's primary and this is a *follower*'s replica of its log
//! ([`Fences::following`], [`follower`]), which is as good as its last *proof*: when the question was sent that the
//! authority last answered in full. How old it may be is each reader's to decide (cache/trust.rs).
//!
//! # Order
//!
//! A purge, or a follower, stores the fences, then `applied`, then the proof. A reader loads the proof, then `applied`, then the
//! entry's stamp, then the fences, then the horizon; if nothing is above the stamp it may raise the stamp to the `applied` that it loaded,
//! for every fence up to it was visible. Stamp equal to applied is therefore the fast path: fences are probed only after
//! `applied` has moved (or while a purge is pending).
//!
//! # Bounds
//!
//! Of more than [`FENCES`] fences the oldest are dropped, and the horizon rises to the last of them: an entry whose stamp
//! is below the horizon is hidden, since nobody knows any more. A reader that misses a dropped fence sees the horizon,
//! because that is stored first.

pub mod follower; // the replica of another process's authority
mod map; // fences by tag

use crate::entry::KeyBytes;
use crate::epoch;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use map::Map;
use std::collections::VecDeque;

/// Fences that are kept; the oldest go first.
pub const FENCES: usize = 1 << 17;
const EPOCH_SHIFT: u32 = 48;
const LSN_MASK: u64 = (1 << EPOCH_SHIFT) - 1;

/// A moment of the logical clock: which epoch of the authority (a local index), and how many purges of it were applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// From its parts: 16 bits of epoch index, 48 of log sequence number.
    pub fn new(epoch: u16, lsn: u64) -> Stamp {
        Stamp(u64::from(epoch) << EPOCH_SHIFT | lsn & LSN_MASK)
    }

    /// As [`Stamp::to_word`] gave it.
    pub fn from_word(word: u64) -> Stamp {
        Stamp(word)
    }

    /// The stamp of a follower that knows no epoch yet: nothing is stored under it.
    pub fn is_unknown(self) -> bool {
        self.epoch() == 0
    }

    /// One word, for storing.
    pub fn to_word(self) -> u64 {
        self.0
    }

    /// The local index of the authority's epoch.
    pub fn epoch(self) -> u16 {
        (self.0 >> EPOCH_SHIFT) as u16
    }

    /// The log sequence number.
    pub fn lsn(self) -> u64 {
        self.0 & LSN_MASK
    }
}

/// An epoch of an authority: 16 bytes that nobody else has.
pub type EpochId = [u8; 16];

/// Local indices of epochs: every epoch that this process meets gets its own, so that stamps of different ones can
/// be told apart. `None`: all 65,534 are taken. Zero is no epoch.
fn next_epoch() -> Option<u16> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).min(u32::from(u16::MAX));
    u16::try_from(next).ok().filter(|&index| index < u16::MAX)
}

/// An epoch of this process's own.
fn own_epoch_id() -> EpochId {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds its hash maps from the system.
    let word = |salt: u64| RandomState::new().hash_one((salt, std::process::id())).to_le_bytes();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&word(1));
    id[8..].copy_from_slice(&word(2));
    id
}

/// What a purge names. Kinds keep a caller's tag `"all"` apart from everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Every entry of the cache.
    All,
    /// Every entry of this namespace.
    Namespace,
    /// Every entry of this model, whatever its version.
    Model(&'a str),
    /// Every entry of this model and version.
    ModelVersion(&'a str, &'a str),
    /// The entry of this key.
    Key(&'a KeyBytes),
    /// Every entry that carries this tag of the caller's.
    Tag(&'a str),
}

/// Hashes what a purge names to the 64 bits under which its fence is kept.
#[derive(Clone)]
pub struct Tagger {
    key: [u8; 32],
}

impl Tagger {
    /// `deployment` keeps the tags of different deployments apart; a secret makes them unguessable.
    pub fn new(deployment: &str, secret: Option<&[u8; 32]>) -> Tagger {
        let material = blake3::derive_key("infercache 2026-11-23 fence v1 tag", deployment.as_bytes());
        Tagger { key: secret.map_or(material, |secret| *blake3::keyed_hash(secret, &material).as_bytes()) }
    }

    /// The 64 bits: BLAKE3 of kind ‖ namespace ‖ name, every text with its length before it.
    pub fn tag(&self, namespace: &str, target: Target<'_>) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        match target {
            Target::All => field(b"all"),
            Target::Namespace => [b"namespace", namespace.as_bytes()].map(&mut field).into_iter().collect(),
            Target::Model(model) => {
                [b"model", namespace.as_bytes(), model.as_bytes()].map(&mut field).into_iter().collect()
            }
            Target::ModelVersion(model, version) => {
                [b"version", namespace.as_bytes(), model.as_bytes(), version.as_bytes()]
                    .map(&mut field)
                    .into_iter()
                    .collect()
            }
            Target::Key(key) => [&b"key"[..], key].map(&mut field).into_iter().collect(),
            Target::Tag(tag) => [b"tag", namespace.as_bytes(), tag.as_bytes()].map(&mut field).into_iter().collect(),
        }
        let bytes: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("eight bytes");
        // Zero marks a free slot of the map.
        u64::from_le_bytes(bytes).max(1)
    }
}

/// What the fences say of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// No fence is above its stamp.
    Valid,
    /// A soft fence is: it may be served stale.
    Soft,
    /// A hard fence is: it may not be served at all.
    Hidden,
}

/// What only writers touch.
#[derive(Debug)]
struct Log {
    /// Tags in the order of their fences; a tag fenced again stands here twice.
    order: VecDeque<(u64, u64)>,
    used: usize,
    /// Maps that were replaced, with the reclamation epoch in which they were.
    retired: Vec<(u64, Box<Map>)>,
    most: usize,
    /// The authority's epoch, if it is known.
    id: Option<EpochId>,
    /// Goes up with every change of epoch.
    generation: u64,
    /// Purges that the authority has not acknowledged: their number, tag, and whether they are soft.
    pending: Vec<follower::Pending>,
    purges: u64,
}

/// The fences of one authority as this process has applied them.
#[derive(Debug)]
pub struct Fences {
    applied: AtomicU64,
    /// Tags with purges that the authority has not acknowledged.
    pending: AtomicU64,
    /// When the question was sent that the authority last answered in full, in nanoseconds of `clock::counting`.
    proof: AtomicU64,
    /// The authority is out of reach.
    out: AtomicBool,
    horizon: AtomicU64,
    map: AtomicPtr<Map>,
    log: Mutex<Log>,
}

impl Fences {
    /// This process as its own authority: no purge yet, in an epoch that no other has. `most` fences are kept.
    pub fn new(most: usize) -> Fences {
        let index = next_epoch().unwrap_or(u16::MAX);
        Fences::at(Stamp::new(index, 0), u64::MAX, Some(own_epoch_id()), most)
    }

    /// The replica of another authority, of which nothing is known yet. `most` fences are kept.
    pub fn following(most: usize) -> Fences {
        Fences::at(Stamp(0), 0, None, most)
    }

    fn at(applied: Stamp, proof: u64, id: Option<EpochId>, most: usize) -> Fences {
        let log = Log {
            order: VecDeque::new(),
            used: 0,
            retired: Vec::new(),
            most: most.max(1),
            id,
            generation: 0,
            pending: Vec::new(),
            purges: 0,
        };
        Fences {
            applied: AtomicU64::new(applied.0),
            pending: AtomicU64::new(0),
            proof: AtomicU64::new(proof),
            out: AtomicBool::new(false),
            horizon: AtomicU64::new(0),
            map: AtomicPtr::new(Box::into_raw(Box::new(Map::new(applied.epoch(), 64)))),
            log: Mutex::new(log),
        }
    }

    /// What is applied now: the stamp of a value whose computation starts after this call.
    #[inline]
    pub fn applied(&self) -> Stamp {
        Stamp(self.applied.load(Ordering::Acquire))
    }

    /// Is a value with this stamp valid whatever its tags, `applied` being what the caller loaded before the stamp?
    #[inline]
    pub fn is_current(&self, stamp: Stamp, applied: Stamp) -> bool {
        stamp == applied && self.pending.load(Ordering::Acquire) == 0 && !stamp.is_unknown()
    }

    /// A stamp as another process understands it; `None`: its epoch is over, or none is known.
    pub fn position(&self, stamp: Stamp) -> Option<(EpochId, u64)> {
        let log = self.log.lock();
        let current = stamp.epoch() == self.applied().epoch() && !stamp.is_unknown();
        log.id.filter(|_| current).map(|id| (id, stamp.lsn()))
    }

    /// The stamp of a position; `None`: it is of another epoch than the present one.
    pub fn stamp_at(&self, id: &EpochId, lsn: u64) -> Option<Stamp> {
        let log = self.log.lock();
        (log.id.as_ref() == Some(id)).then(|| Stamp::new(self.applied().epoch(), lsn))
    }

    fn map(&self) -> &Map {
        // SAFETY: never null; a replaced map is freed only when no guard of its time is left, and callers are under a
        // guard or hold the log's lock.
        unsafe { &*self.map.load(Ordering::Acquire) }
    }

    /// In the child of a fork: every stamp of before is hidden from now on. A follower knows nothing any more.
    pub fn begin_epoch(&self) {
        let mut log = self.log.lock();
        log.generation += 1;
        if self.proof.load(Ordering::Relaxed) != u64::MAX {
            log.id = None;
            self.proof.store(0, Ordering::Release);
            self.out.store(false, Ordering::Relaxed);
            self.applied.store(0, Ordering::Release);
            return;
        }
        log.id = Some(own_epoch_id());
        let before = Stamp(self.applied.load(Ordering::Relaxed));
        // Never back to an index that an old stamp may carry: when all are taken the sequence simply goes on.
        let next = next_epoch().map_or(Stamp::new(before.epoch(), before.lsn() + 1), |index| Stamp::new(index, 0));
        self.publish(&mut log, Map::new(next.epoch(), 64), 0);
        self.horizon.store(next.0, Ordering::Release);
        self.applied.store(next.0, Ordering::Release);
    }

    /// Numbers a purge of these tags, where the process is its own authority. When this returns, every later look-up sees it.
    pub fn purge(&self, tags: &[u64], soft: bool) -> Stamp {
        self.purge_and(tags, soft, |_| ())
    }

    /// The same, and what `first` stores is seen by whoever sees the purge.
    pub(crate) fn purge_and(&self, tags: &[u64], soft: bool, first: impl FnOnce(Stamp)) -> Stamp {
        let mut log = self.log.lock();
        let before = Stamp(self.applied.load(Ordering::Relaxed));
        let stamp = Stamp::new(before.epoch(), before.lsn() + 1);
        for &tag in tags {
            self.raise(&mut log, tag, stamp, soft);
        }
        first(stamp);
        self.applied.store(stamp.0, Ordering::Release);
        self.prune(&mut log);
        stamp
    }

    fn raise(&self, log: &mut Log, tag: u64, stamp: Stamp, soft: bool) {
        self.make_room(log);
        let (hard, soft) = if soft { (0, stamp.0) } else { (stamp.0, 0) };
        log.used += usize::from(self.map().raise(tag, hard, soft));
        log.order.push_back((stamp.0, tag));
    }

    fn make_room(&self, log: &mut Log) {
        if self.map().is_full(log.used) {
            self.rebuild(log);
        }
    }

    /// The horizon rises over the oldest fences beyond the limit, a bounded number at each purge.
    fn prune(&self, log: &mut Log) {
        let over = log.order.len().saturating_sub(log.most);
        let mut horizon = 0;
        for _ in 0..over.min(2 * log.most) {
            let Some(&(stamp, tag)) = log.order.front() else { break };
            let fenced = self.map().get(tag);
            if fenced.hard.max(fenced.soft) == stamp {
                if stamp == self.applied.load(Ordering::Relaxed) {
                    break; // one purge of more tags than the limit: the last purge always stays whole
                }
                horizon = stamp;
            }
            log.order.pop_front();
        }
        if horizon != 0 {
            self.horizon.fetch_max(horizon, Ordering::Release);
        }
        self.reclaim(log);
    }

    fn reclaim(&self, log: &mut Log) {
        log.retired.retain({
            let free = if log.retired.is_empty() { 0 } else { epoch::passed_after_two_steps() };
            move |&(tag, _)| tag > free
        });
    }

    /// A map without the fences below the horizon, twice as large as what is left needs.
    fn rebuild(&self, log: &mut Log) {
        let horizon = self.horizon.load(Ordering::Relaxed);
        let old = self.map();
        let alive = |fenced: &map::Fenced| fenced.hard.max(fenced.soft) > horizon || fenced.pending != 0;
        let left = old.iter().filter(|(_, fenced)| alive(fenced)).count();
        let made = Map::new(old.epoch, (left + 1) * 4);
        for (tag, fenced) in old.iter().filter(|(_, fenced)| alive(fenced)) {
            made.raise(tag, fenced.hard, fenced.soft);
            made.mark(tag, fenced.pending);
        }
        self.publish(log, made, left);
    }

    /// Puts a map in the place of the present one, never emptying that: readers may hold it.
    fn publish(&self, log: &mut Log, made: Map, used: usize) {
        log.used = used;
        let old = self.map.swap(Box::into_raw(Box::new(made)), Ordering::AcqRel);
        // SAFETY: it came from `Box::into_raw`, is no longer published, and is kept until no reader can have it.
        log.retired.push((epoch::tag(), unsafe { Box::from_raw(old) }));
    }

    /// What the fences say of something with this stamp and these tags. The caller loaded `applied` before the stamp.
    pub fn judge(&self, stamp: Stamp, tags: impl IntoIterator<Item = u64>) -> Judgement {
        if stamp.is_unknown() || stamp.epoch() != self.applied().epoch() {
            return Judgement::Hidden;
        }
        let guard = epoch::pin();
        let map = self.map();
        // A follower that has just met another epoch published its map first: there is nothing in it about this stamp.
        if map.epoch != stamp.epoch() {
            return Judgement::Hidden;
        }
        let mut soft = false;
        for tag in tags {
            let fenced = map.get(tag);
            if fenced.hard > stamp.0 || fenced.pending & map::HARD != 0 {
                return Judgement::Hidden;
            }
            soft |= fenced.soft > stamp.0 || fenced.pending & map::SOFT != 0;
        }
        drop(guard);
        // After the fences: whoever dropped one stored the horizon before.
        if stamp.0 < self.horizon.load(Ordering::Acquire) {
            return Judgement::Hidden;
        }
        if soft { Judgement::Soft } else { Judgement::Valid }
    }

    /// How many fences there are, and the horizon's log sequence number.
    pub fn extent(&self) -> (usize, u64) {
        (self.log.lock().used, Stamp(self.horizon.load(Ordering::Acquire)).lsn())
    }
}

impl Drop for Fences {
    fn drop(&mut self) {
        // SAFETY: exclusive; the published map came from `Box::into_raw`.
        drop(unsafe { Box::from_raw(self.map.load(Ordering::Relaxed)) });
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests;
