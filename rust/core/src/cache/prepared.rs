//! Storing a large value in two steps, for who has to let others run while its bytes are copied.
//!
//! The first step takes no lock and holds nobody up; the second takes a moment. So an interpreter can be given up around
//! the first, and a process that forks meanwhile leaves no lock behind in its child.

use super::{Cache, Stored, Write};
use crate::entry::{EntryRef, KeyBytes, MAX_PAYLOAD_BYTES};
use crate::fence::{Judgement, Stamp};
use crate::scopes::ScopeId;
use crate::stats::Count;

impl Cache {
    /// Copies a value's bytes, which `tail` ends, into an entry that stands in no table yet. `None`: there is no memory for
    /// it. Until it is stored its bytes are outside the budget, as those are that it is made of.
    pub fn prepare(&self, key: &KeyBytes, write: &Write<'_>, tail: &[u8]) -> Option<EntryRef> {
        if write.payload.len() + tail.len() > MAX_PAYLOAD_BYTES {
            return None;
        }
        let hash = self.common.hasher.hash(key);
        self.shards[hash.shard].prefetch(hash.low);
        let mut parts = write.parts(key, self.common.clock.not_after());
        self.price(&mut parts);
        EntryRef::try_from_parts(&parts, tail)
    }

    /// Puts a prepared entry into the table, once, as [`Cache::store`] does with what it makes itself.
    pub fn store_prepared(&self, prepared: &EntryRef) -> Stored {
        let entry = prepared.entry();
        let stamp = Stamp::from_word(prepared.stamp());
        if self.judge_stamp(stamp, ScopeId(entry.scope()), entry.key(), entry.tags()) == Judgement::Hidden {
            return Stored::Fenced;
        }
        let hash = self.common.hasher.hash(entry.key());
        let now = self.common.clock.not_before();
        let Some((mut open, block)) = self.room_for(hash, entry.layout(), !entry.lives_for_ever(), now) else {
            self.count(Count::Rejected, 1);
            return Stored::Refused;
        };
        std::mem::forget(prepared.clone()); // from now on the table holds it too
        drop(block); // what was spent on it is spent on the prepared entry now
        open.publish(hash.low, entry, now);
        drop(open);
        self.count(Count::Stores, 1);
        Stored::Kept
    }
}
