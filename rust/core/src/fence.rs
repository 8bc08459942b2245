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
//! # Order
//!
//! A purge stores the fences, then `applied`. A reader loads `applied`, then the entry's stamp, then the fences, then the
//! horizon; if nothing is above the stamp it may raise the stamp to the `applied` that it loaded, for every fence up to it
//! was visible. Stamp equal to applied is therefore the fast path: fences are probed only after `applied` has moved.
//!
//! # Bounds
//!
//! Of more than [`FENCES`] fences the oldest are dropped, and the horizon rises to the last of them: an entry whose stamp
//! is below the horizon is hidden, since nobody knows any more. A reader that misses a dropped fence sees the horizon,
//! because that is stored first.

use crate::entry::KeyBytes;
use crate::epoch;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
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

/// Local indices of epochs: every authority that this process meets gets its own, so that stamps of different ones can
/// be told apart. From 65,535 on they share the last.
fn next_epoch() -> u16 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).try_into().unwrap_or(u16::MAX)
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

#[derive(Debug)]
struct Slot {
    tag: AtomicU64,
    hard: AtomicU64,
    soft: AtomicU64,
}

/// Open addressing, never more than half full, read without a lock.
#[derive(Debug)]
struct Map {
    slots: Box<[Slot]>,
}

impl Map {
    fn new(slots: usize) -> Map {
        let free = || Slot { tag: AtomicU64::new(0), hard: AtomicU64::new(0), soft: AtomicU64::new(0) };
        Map { slots: (0..slots.next_power_of_two()).map(|_| free()).collect() }
    }

    /// The slot of this tag, or the free one where it would be.
    fn probe(&self, tag: u64) -> &Slot {
        let mask = self.slots.len() - 1;
        let mut at = (tag >> 32) as usize & mask;
        loop {
            let slot = &self.slots[at];
            let here = slot.tag.load(Ordering::Acquire);
            if here == tag || here == 0 {
                return slot;
            }
            at = (at + 1) & mask;
        }
    }

    /// The hard and the soft fence of a tag; zero: none.
    fn fences(&self, tag: u64) -> (u64, u64) {
        let slot = self.probe(tag);
        if slot.tag.load(Ordering::Acquire) != tag {
            return (0, 0);
        }
        (slot.hard.load(Ordering::Acquire), slot.soft.load(Ordering::Acquire))
    }

    fn raise(&self, tag: u64, hard: u64, soft: u64) -> bool {
        let slot = self.probe(tag);
        let new = slot.tag.load(Ordering::Relaxed) == 0;
        slot.hard.fetch_max(hard, Ordering::Release);
        slot.soft.fetch_max(soft, Ordering::Release);
        slot.tag.store(tag, Ordering::Release);
        new
    }
}

/// What only a purge touches.
#[derive(Debug)]
struct Log {
    /// Tags in the order of their fences; a tag fenced again stands here twice.
    order: VecDeque<(u64, u64)>,
    used: usize,
    /// Maps that were replaced, with the epoch in which they were.
    retired: Vec<(u64, Box<Map>)>,
    most: usize,
}

/// The fences of one authority as this process has applied them.
#[derive(Debug)]
pub struct Fences {
    applied: AtomicU64,
    horizon: AtomicU64,
    map: AtomicPtr<Map>,
    log: Mutex<Log>,
}

impl Fences {
    /// No purge yet, in an epoch that no other authority of this process has. `most` fences are kept.
    pub fn new(most: usize) -> Fences {
        Fences {
            applied: AtomicU64::new(Stamp::new(next_epoch(), 0).0),
            horizon: AtomicU64::new(0),
            map: AtomicPtr::new(Box::into_raw(Box::new(Map::new(64)))),
            log: Mutex::new(Log { order: VecDeque::new(), used: 0, retired: Vec::new(), most: most.max(1) }),
        }
    }

    /// What is applied now: the stamp of a value whose computation starts after this call.
    #[inline]
    pub fn applied(&self) -> Stamp {
        Stamp(self.applied.load(Ordering::Acquire))
    }

    fn map(&self) -> &Map {
        // SAFETY: never null; a replaced map is freed only when no guard of its time is left, and callers are under a
        // guard or hold the log's lock.
        unsafe { &*self.map.load(Ordering::Acquire) }
    }

    /// Another authority: every stamp of before is hidden from now on.
    pub fn begin_epoch(&self) {
        let _log = self.log.lock();
        let before = Stamp(self.applied.load(Ordering::Relaxed));
        // Never back to an index that an old stamp may carry: after 65,535 epochs the sequence simply goes on.
        let next = Stamp::new(next_epoch(), 0).max(Stamp::new(before.epoch(), before.lsn() + 1));
        self.horizon.store(next.0, Ordering::Release);
        self.applied.store(next.0, Ordering::Release);
    }

    /// Numbers a purge of these tags. When this returns, every later look-up sees it.
    pub fn purge(&self, tags: &[u64], soft: bool) -> Stamp {
        self.purge_and(tags, soft, |_| ())
    }

    /// The same, and what `first` stores is seen by whoever sees the purge.
    pub(crate) fn purge_and(&self, tags: &[u64], soft: bool, first: impl FnOnce(Stamp)) -> Stamp {
        let mut log = self.log.lock();
        let before = Stamp(self.applied.load(Ordering::Relaxed));
        let stamp = Stamp::new(before.epoch(), before.lsn() + 1);
        for &tag in tags {
            if (log.used + 1) * 2 > self.map().slots.len() {
                self.rebuild(&mut log);
            }
            let (hard, soft) = if soft { (0, stamp.0) } else { (stamp.0, 0) };
            log.used += usize::from(self.map().raise(tag, hard, soft));
            log.order.push_back((stamp.0, tag));
        }
        first(stamp);
        self.applied.store(stamp.0, Ordering::Release);
        self.prune(&mut log);
        stamp
    }

    /// The horizon rises over the oldest fences beyond the limit, a bounded number at each purge.
    fn prune(&self, log: &mut Log) {
        let over = log.order.len().saturating_sub(log.most);
        let mut horizon = 0;
        for _ in 0..over.min(2 * log.most) {
            let Some(&(stamp, tag)) = log.order.front() else { break };
            let (hard, soft) = self.map().fences(tag);
            if hard.max(soft) == stamp {
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
        log.retired.retain({
            let free = if log.retired.is_empty() { 0 } else { epoch::passed_after_two_steps() };
            move |&(tag, _)| tag > free
        });
    }

    /// A map without the fences below the horizon, twice as large as what is left needs.
    fn rebuild(&self, log: &mut Log) {
        let horizon = self.horizon.load(Ordering::Relaxed);
        let old = self.map();
        let alive = |slot: &&Slot| {
            slot.tag.load(Ordering::Relaxed) != 0
                && slot.hard.load(Ordering::Relaxed).max(slot.soft.load(Ordering::Relaxed)) > horizon
        };
        let left = old.slots.iter().filter(alive).count();
        let made = Map::new((left + 1) * 4);
        for slot in old.slots.iter().filter(alive) {
            made.raise(
                slot.tag.load(Ordering::Relaxed),
                slot.hard.load(Ordering::Relaxed),
                slot.soft.load(Ordering::Relaxed),
            );
        }
        log.used = left;
        let old = self.map.swap(Box::into_raw(Box::new(made)), Ordering::AcqRel);
        // SAFETY: it came from `Box::into_raw`, is no longer published, and is kept until no reader can have it.
        log.retired.push((epoch::tag(), unsafe { Box::from_raw(old) }));
    }

    /// What the fences say of something with this stamp and these tags. The caller loaded `applied` before the stamp.
    pub fn judge(&self, stamp: Stamp, tags: impl IntoIterator<Item = u64>) -> Judgement {
        if stamp.epoch() != self.applied().epoch() {
            return Judgement::Hidden;
        }
        let guard = epoch::pin();
        let map = self.map();
        let mut soft = false;
        for tag in tags {
            let (hard_fence, soft_fence) = map.fences(tag);
            if hard_fence > stamp.0 {
                return Judgement::Hidden;
            }
            soft |= soft_fence > stamp.0;
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn targets_of_different_kinds_never_share_a_tag() {
        let tagger = Tagger::new("ic", None);
        let key = *b"abcdefghijklmnopqrstuvwxyz012345";
        let text = std::str::from_utf8(&key).unwrap();
        let targets = [
            Target::All,
            Target::Namespace,
            Target::Model("ab"),
            Target::Model("a"),
            Target::ModelVersion("ab", "c"),
            Target::ModelVersion("a", "bc"),
            Target::ModelVersion("abc", ""),
            Target::Key(&key),
            Target::Tag("all"),
            Target::Tag("ab"),
            Target::Tag(text),
        ];
        let mut tags: Vec<u64> = targets.iter().map(|&target| tagger.tag("n", target)).collect();
        tags.push(tagger.tag("m", Target::Tag("ab")));
        tags.push(Tagger::new("ic", Some(&[1; 32])).tag("n", Target::Tag("ab")));
        tags.push(Tagger::new("other", None).tag("n", Target::Tag("ab")));
        let count = tags.len();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), count);
    }

    #[test]
    fn a_purge_during_a_computation_wins_over_its_result() {
        let fences = Fences::new(100);
        let stamp = fences.applied();
        fences.purge(&[5], false);
        assert_eq!(fences.judge(stamp, [5]), Judgement::Hidden);
        assert_eq!(fences.judge(stamp, [6]), Judgement::Valid);
        assert_eq!(fences.judge(fences.applied(), [5]), Judgement::Valid);
    }

    #[test]
    fn a_soft_purge_makes_stale_and_a_hard_one_after_it_hides() {
        let fences = Fences::new(100);
        let stamp = fences.applied();
        fences.purge(&[5], true);
        assert_eq!(fences.judge(stamp, [4, 5]), Judgement::Soft);
        fences.purge(&[5], false);
        assert_eq!(fences.judge(stamp, [4, 5]), Judgement::Hidden);
        fences.purge(&[5], true);
        assert_eq!(fences.judge(stamp, [4, 5]), Judgement::Hidden, "a later soft purge does not lift the hard one");
    }

    #[test]
    fn another_epoch_is_hidden() {
        let fences = Fences::new(100);
        let before = fences.applied();
        fences.begin_epoch();
        assert_eq!(fences.judge(before, [1]), Judgement::Hidden);
        assert_eq!(fences.judge(Fences::new(100).applied(), [1]), Judgement::Hidden);
        assert_eq!(fences.judge(fences.applied(), [1]), Judgement::Valid);
    }

    #[test]
    fn memory_stays_bounded_in_a_storm_of_tags() {
        let fences = Fences::new(1_000);
        for tag in 1..100_000u64 {
            fences.purge(&[tag.wrapping_mul(0x9e37_79b9_7f4a_7c15)], false);
        }
        let (used, horizon) = fences.extent();
        assert!(used <= 8_192, "{used}");
        assert!(horizon >= 99_999 - 1_001, "{horizon}");
        assert!(fences.log.lock().order.len() <= 1_000);
    }

    proptest! {
        /// The reference keeps every purge for ever; a judgement may be harder than the reference's (the horizon), never softer.
        #[test]
        fn nothing_purged_is_ever_judged_valid(
            steps in proptest::collection::vec((0u8..4, proptest::collection::vec(1u64..40, 1..4), any::<bool>()), 1..300), most in 1usize..50
        ) {
            let fences = Fences::new(most);
            let mut purges: Vec<(Vec<u64>, bool)> = Vec::new();
            let mut stamps = vec![(fences.applied(), 0)];
            for (step, tags, soft) in steps {
                if step == 0 {
                    fences.purge(&tags, soft);
                    purges.push((tags, soft));
                } else if step == 1 {
                    stamps.push((fences.applied(), purges.len()));
                } else {
                    for &(stamp, at) in &stamps {
                        let hit = |soft| purges[at..].iter().any(|(purged, s)| *s == soft && purged.iter().any(|tag| tags.contains(tag)));
                        let expected = if hit(false) { Judgement::Hidden } else if hit(true) { Judgement::Soft } else { Judgement::Valid };
                        let found = fences.judge(stamp, tags.iter().copied());
                        prop_assert!(found == expected || found == Judgement::Hidden && stamp.lsn() < fences.extent().1, "{found:?} {expected:?}");
                    }
                }
            }
        }
    }
}
