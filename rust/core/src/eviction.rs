//! The eviction policy: what a full cache gives up. Ranked by writers only.
//!
//! # S3-FIFO, the default
//!
//! Most results are never asked for again. A cache that gives each of them the long way through an LRU list spends most
//! of its bytes on them. S3-FIFO (J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi: "FIFO queues are all you need for
//! cache eviction", SOSP 2023) keeps three queues:
//!
//! ```text
//!                      asked for twice or more
//!   new ──► small (10 % of the bytes) ───────────► main (90 %) ──► out, if not asked for since it was last at the end;
//!    ▲             │ else out                        ▲      └────┐ else once more through, with one use forgotten
//!    │             ▼                                 └───────────┘
//!    └── seen ── ghost (fingerprints of what left small): a new entry found here goes straight to main
//! ```
//!
//! What is asked for once leaves through the small queue soon; what comes back soon after is recognised by its
//! fingerprint; what is in use goes round in the main queue. There is no list to reorder at a hit: a hit adds one to a
//! count in the entry, and not even that once the count stands at three. All ranking is done by writers, who have the
//! shard's mutex anyway. A loop longer than the cache, which defeats LRU, leaves the main queue alone. And a stream of
//! questions that never repeat passes through a tenth of the bytes: that is the admission. s3fifo.rs has it.
//!
//! # What it does not know
//!
//! Results of models differ a thousandfold in cost and in size, so the one that is asked for least need not be the one
//! to give up. GreedyDual-Size-Frequency (L. Cherkasova, 1998) gives each entry a priority `L + uses × cost ÷ bytes`;
//! the least goes, and the level `L` rises to its priority. So an entry that nobody asks for stays for as long as the
//! level takes to rise by its worth, and the level rises by what is given up: what is a hundred times as dear per byte
//! stays a hundred times as long, which is right if requests come at random. But it wants a heap, and a write at each
//! hit. [`Eviction::Cost`] does about the same without either; the essay of `cost` explains how, and decision 0031 why
//! it has to be asked for.
//!
//! # How both are kept
//!
//! A queue holds the 32 bits of hash that stand for an entry, four bytes each; the index finds the entry again
//! (table.rs). An entry that was deleted leaves its four bytes behind; whoever comes upon them finds nothing, or finds
//! an entry that stands in another queue, and goes on. When more than half of a queue is left-overs it is compacted.
//! Two live entries of a shard that agree in 32 bits (one pair in a shard of 90,000 entries) may change places in a
//! queue; nothing else happens to them.
//!
//! The two policies share no code but this, so that what most caches run is no slower for the other one.

mod s3fifo; // what nobody asks for goes first
mod cost; // what is cheapest to make again per byte goes first

use crate::entry::Entry;
use cost::ByCost;
use s3fifo::S3Fifo;

/// Left-overs below this are not worth a compaction.
const FEW: usize = 64;

/// How far ahead in a queue memory is asked for: the entries' and the index's.
const SOON: usize = 2;
const LATER: usize = 6;

/// What is given up for new entries. The number is that of the uses that an entry counts, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Eviction {
    /// What nobody asks for, whatever it cost.
    #[default]
    S3Fifo = 3,
    /// What is cheapest to make again per byte, by how likely it is to be asked for.
    Cost = 15,
}

impl Eviction {
    /// Each by the name that an option gives it; the default is the first.
    pub const NAMED: [(&str, Eviction); 2] = [("s3-fifo", Eviction::S3Fifo), ("cost", Eviction::Cost)];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Eviction> {
        Eviction::NAMED.iter().find(|(known, _)| *known == name).map(|&(_, eviction)| eviction)
    }

    /// Uses that an entry counts, at most: each hit up to there writes. A load, for each hit asks.
    #[inline]
    pub(crate) fn most_uses(self) -> u8 {
        self as u8
    }
}

/// What a policy asks of the shard: a live entry of these bits that was (or was not) visited by the compaction that is
/// under way, and that `stands` where it is looked for; outside a compaction, none is visited.
pub(crate) trait Resolve {
    fn resolve(&self, low: u32, visited: bool, stands: impl Fn(Entry) -> bool) -> Option<Entry>;

    /// Asks for the memory that `resolve` will look at: first the index's, then, `soon`, the entry's.
    fn prefetch(&self, low: u32, soon: bool);
}

/// The queues of one shard.
#[derive(Debug)]
pub(crate) enum Policy {
    S3Fifo(S3Fifo),
    Cost(ByCost),
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::new(Eviction::default())
    }
}

impl Policy {
    pub(crate) fn new(eviction: Eviction) -> Policy {
        match eviction {
            Eviction::S3Fifo => Policy::S3Fifo(S3Fifo::default()),
            Eviction::Cost => Policy::Cost(ByCost::default()),
        }
    }

    /// Puts a new entry into the queue where it belongs, and marks it so. Before it is published. `share` is what the
    /// shard may come to hold, in bytes.
    pub(crate) fn admit(&mut self, low: u32, entry: Entry, share: u64) {
        match self {
            Policy::S3Fifo(policy) => policy.admit(low, entry, share),
            Policy::Cost(policy) => policy.admit(low, entry, share),
        }
    }

    /// Before room is made for an entry of these bits: asks for what `admit` will look at.
    pub(crate) fn prefetch(&self, low: u32) {
        match self {
            Policy::S3Fifo(policy) => policy.prefetch(low),
            Policy::Cost(policy) => policy.prefetch(low),
        }
    }

    /// `new` has taken the place of `old` (whose marks it took over). `true`: it stands in another queue now, and the
    /// arrays may have grown.
    pub(crate) fn replace(&mut self, low: u32, old: Entry, new: Entry, resolve: &impl Resolve) -> bool {
        match self {
            Policy::S3Fifo(policy) => {
                policy.replace(old, new);
                false
            }
            Policy::Cost(policy) => policy.replace(low, old, new, resolve),
        }
    }

    /// The entry is about to be taken out by somebody else: deleted, or expired.
    pub(crate) fn forget(&mut self, entry: Entry, resolve: &impl Resolve) {
        match self {
            Policy::S3Fifo(policy) => policy.forget(entry, resolve),
            Policy::Cost(policy) => policy.forget(entry, resolve),
        }
    }

    /// The entry that has to go, already out of its queue.
    pub(crate) fn victim(&mut self, resolve: &impl Resolve) -> Option<(u32, Entry)> {
        match self {
            Policy::S3Fifo(policy) => policy.victim(resolve),
            Policy::Cost(policy) => policy.victim(resolve),
        }
    }

    /// Bytes of the queues' own arrays.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Policy::S3Fifo(policy) => policy.bytes(),
            Policy::Cost(policy) => policy.bytes(),
        }
    }

    /// Bytes by which the arrays may grow when an entry is admitted, and another one leaves for it.
    pub(crate) fn growth(&self) -> u64 {
        match self {
            Policy::S3Fifo(policy) => policy.growth(),
            Policy::Cost(policy) => policy.growth(),
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use crate::entry::{EntryRef, Parts};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn entry(number: u32, bytes: usize, cost: f32) -> EntryRef {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        EntryRef::from_parts(&Parts {
            key,
            kind: 0,
            aligned: false,
            payload: &vec![0; bytes],
            scope: 0,
            stamp: 0,
            created: 0,
            life: None,
            stale: 0,
            tags: &[],
            cost,
            cost_is_estimated: false,
        })
    }

    /// The entries that a shard holds. Of an element the bits are the number.
    struct Held(HashMap<u32, EntryRef>);

    impl Resolve for Held {
        fn resolve(&self, low: u32, visited: bool, stands: impl Fn(Entry) -> bool) -> Option<Entry> {
            let entry = self.0.get(&low)?.entry();
            (entry.visited() == visited && stands(entry)).then_some(entry)
        }

        fn prefetch(&self, _: u32, _: bool) {}
    }

    fn check(policy: &Policy, held: &Held) -> Result<(), TestCaseError> {
        let weight = held.0.values().map(|entry| entry.entry().weight()).sum::<u64>();
        match policy {
            Policy::S3Fifo(policy) => policy.check(held.0.len(), weight),
            Policy::Cost(policy) => policy.check(held.0.len(), weight),
        }
    }

    #[test]
    fn each_is_found_by_its_name_and_the_first_is_the_default() {
        for (name, eviction) in Eviction::NAMED {
            assert_eq!(Eviction::named(name), Some(eviction));
        }
        assert_eq!(Eviction::NAMED[0].1, Eviction::default());
        assert_eq!(Eviction::named("S3-FIFO"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn whatever_is_done_each_entry_has_one_place_and_the_sums_agree(
            eviction in prop_oneof![Just(Eviction::S3Fifo), Just(Eviction::Cost)],
            steps in proptest::collection::vec((0u8..8, 0u32..300, 0usize..5, 0usize..5), 1..2_000),
        ) {
            let mut policy = Policy::new(eviction);
            let mut held = Held(HashMap::new());
            for (step, number, size, cost) in steps {
                let (bytes, cost) = ([0, 40, 400, 3_000, 100_000][size], [1e-7, 0.004, 0.005, 2.0, 1e6][cost]);
                match (step, held.0.get(&number).map(EntryRef::entry)) {
                    (0..3, None) => {
                        let new = entry(number, bytes, cost);
                        let room = policy.bytes() + policy.growth();
                        policy.admit(number, new.entry(), 1 << 20);
                        held.0.insert(number, new);
                        prop_assert!(policy.bytes() <= room, "{} of {room}", policy.bytes());
                    }
                    (0..3, Some(old)) => {
                        let new = entry(number, bytes, cost);
                        new.entry().succeed(old, eviction.most_uses());
                        let old = held.0.insert(number, new).expect("it was there");
                        policy.replace(number, old.entry(), held.0[&number].entry(), &held);
                    }
                    (3, Some(gone)) => {
                        policy.forget(gone, &held);
                        held.0.remove(&number);
                    }
                    (4, _) => match policy.victim(&held) {
                        Some((low, gone)) => prop_assert_eq!(held.0.remove(&low).map(|held| held.entry()), Some(gone)),
                        None => prop_assert!(held.0.is_empty()),
                    },
                    (_, Some(used)) => used.touch(eviction.most_uses()),
                    _ => {}
                }
                check(&policy, &held)?;
            }
            while let Some((low, _)) = policy.victim(&held) {
                prop_assert!(held.0.remove(&low).is_some());
            }
            prop_assert!(held.0.is_empty(), "everything can be given up");
            check(&policy, &held)?;
        }
    }
}
