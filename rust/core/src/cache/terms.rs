//! What a caller says of a cache, a value to be stored, a look-up; and what it is told.

use super::Trust;
use crate::clock::Clock;
use crate::entry::{EntryRef, KeyBytes, Parts};
use crate::eviction::Eviction;
use crate::fence::{FENCES, Fences, Stamp};
use crate::scopes::ScopeId;
use crate::sync::Arc;

/// How a cache is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes: keys, values, overhead, retired entries.
    pub capacity: u64,
    /// Where time comes from.
    pub clock: Clock,
    /// Seed of the table's hash. Random in production: it keeps chosen keys from colliding.
    pub seed: u64,
    /// Parts with a mutex each, a power of two; `None`: by the capacity.
    pub shards: Option<usize>,
    /// The authority whose purges hide entries; caches of one deployment in one process share it. `None`: its own.
    pub authority: Option<Arc<Fences>>,
    /// How old the proof of that authority may be, where it is a follower's replica; `None`: this process is the authority.
    pub trust: Option<Trust>,
    /// Fences that an authority of its own keeps (see [`crate::fence`]).
    pub fences: usize,
    /// Keeps the tags of different deployments apart.
    pub deployment: String,
    /// Makes tags unguessable.
    pub secret: Option<[u8; 32]>,
    /// What is given up for new entries.
    pub eviction: Eviction,
}

impl Options {
    /// A cache of so many bytes on the system's clock.
    pub fn new(capacity: u64, seed: u64) -> Options {
        Options {
            capacity,
            clock: Clock::System,
            seed,
            shards: None,
            authority: None,
            trust: None,
            fences: FENCES,
            deployment: "ic".into(),
            secret: None,
            eviction: Eviction::default(),
        }
    }
}

/// A value to be stored.
#[derive(Clone, Debug)]
pub struct Write<'a> {
    /// How the payload is to be read, 0..=31.
    pub kind: u8,
    /// The payload holds tensors and is to be aligned.
    pub aligned: bool,
    /// The value's bytes.
    pub payload: &'a [u8],
    /// Its implicit tags, as [`super::Cache::intern`] numbered them.
    pub scope: ScopeId,
    /// Its own tags, as [`super::Cache::tag`] hashed them.
    pub tags: &'a [u64],
    /// Read before the computation began.
    pub stamp: Stamp,
    /// Milliseconds of freshness; `None`: until evicted.
    pub life: Option<u64>,
    /// Milliseconds after that in which it may be served stale.
    pub stale: u64,
    /// Seconds that the computation took; 0: not known.
    pub cost: f32,
}

impl Write<'_> {
    /// What the entry is made of.
    pub(super) fn parts(&self, key: &KeyBytes, created: u64) -> Parts<'_> {
        Parts {
            key: *key,
            kind: self.kind,
            aligned: self.aligned,
            payload: self.payload,
            scope: self.scope.0,
            stamp: self.stamp.to_word(),
            created,
            life: self.life,
            stale: self.stale,
            tags: self.tags,
            cost: self.cost,
            cost_is_estimated: false,
        }
    }
}

/// What became of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It can be looked up now.
    Kept,
    /// A purge after its stamp hides it: it was not stored.
    Fenced,
    /// Larger than the whole cache, or no room could be made.
    Refused,
}

/// What a look-up found.
#[derive(Debug)]
pub enum Found {
    /// A fresh entry.
    Fresh(Hit),
    /// One whose life is over, or that a soft purge marked, but that may still be served by who accepts that.
    Stale(Hit),
    /// Nothing that may be served.
    Miss,
}

/// An entry and what the look-up knew of it.
#[derive(Debug)]
pub struct Hit {
    /// The entry.
    pub entry: EntryRef,
    /// Milliseconds since it was made.
    pub age: u64,
    /// Milliseconds that it stays fresh; `None`: until evicted. Zero if stale.
    pub left: Option<u64>,
    /// Milliseconds since it stopped being fresh by its life alone.
    pub past: u64,
    /// A soft purge marked it.
    pub softly_purged: bool,
    /// The stamp that it carries.
    pub stamp: Stamp,
}
