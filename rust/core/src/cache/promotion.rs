//! Between the cache and the envelopes of a shared tier: an entry on its way out, and a value on its way in.
//!
//! What is promoted keeps everything that it was stored with: its stamp, so that purges which it missed still hide it; its
//! life from when it was computed, not from now; its tags and its cost.

use super::Cache;
use crate::entry::{EntryRef, MAX_PAYLOAD_BYTES, Parts};
use crate::envelope::{Envelope, Lifetime};
use crate::epoch;
use crate::fence::Stamp;
use crate::scopes::{ScopeId, ScopeTags};
use std::borrow::Cow;

/// What an envelope says of an entry that the entry does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The epoch of the authority to which the entry's stamp belongs.
    pub epoch: [u8; 16],
    /// The stamp's log sequence number.
    pub lsn: u64,
    /// Milliseconds of life that the server is given with it.
    pub total: Option<u64>,
}

impl Cache {
    /// The number of implicit tags that were hashed by this deployment, by whichever process; as [`Cache::intern`].
    pub fn intern_tags(&self, tags: ScopeTags) -> Option<ScopeId> {
        self.scopes.intern(tags)
    }

    /// The life of an entry and its age now; `None`: it is not in the table any more, so nobody knows.
    pub fn lifetime(&self, entry: &EntryRef) -> Option<Lifetime> {
        let hash = self.common.hasher.hash(entry.key());
        // Under the guard what was found in the table keeps its times; see `Entry::give_up`.
        let _guard = epoch::pin();
        let found = self.shards[hash.shard].find(hash.low, entry.key())?;
        if found != entry.entry() {
            return None;
        }
        let times = found.times();
        let age = self.common.clock.not_before().saturating_sub(times.created);
        Some(Lifetime { life: times.life, stale: times.stale, age })
    }

    /// An entry of this cache as an envelope, with a lifetime that [`Cache::lifetime`] gave or that the caller knows from
    /// when the entry was stored. `None`: it was made for no cache or for another one, so its implicit tags are unknown.
    pub fn envelope<'a>(&self, entry: &'a EntryRef, lifetime: Lifetime, written: &Written) -> Option<Envelope<'a>> {
        Some(Envelope {
            key: *entry.key(),
            kind: entry.kind(),
            aligned: entry.aligned(),
            epoch: written.epoch,
            lsn: written.lsn,
            lifetime,
            total: written.total,
            scope: self.scopes.known(entry.entry().scope())?,
            tags: Cow::Borrowed(entry.tags()),
            cost: entry.cost(),
            payload: Cow::Borrowed(entry.payload()),
        })
    }

    /// Copies an envelope's value into an entry that stands in no table yet; [`Cache::store_prepared`] then stores it. Takes
    /// no lock. `scope` is the number of the envelope's implicit tags, `stamp` its stamp with this process's number for its
    /// epoch, `lifetime` its life with the age that it has now ([`Envelope::lifetime_with`]).
    ///
    /// `None`: there is no memory for it.
    pub fn prepare_promoted(
        &self,
        envelope: &Envelope<'_>,
        scope: ScopeId,
        stamp: Stamp,
        lifetime: Lifetime,
    ) -> Option<EntryRef> {
        if envelope.payload.len() > MAX_PAYLOAD_BYTES {
            return None;
        }
        let hash = self.common.hasher.hash(&envelope.key);
        self.shards[hash.shard].prefetch(hash.low);
        let now = self.common.clock.not_after();
        // A clock that began after the value was computed cannot date it: what of its age lies before is taken off its life.
        let unseen = lifetime.age.saturating_sub(now);
        let over = unseen.saturating_sub(lifetime.life.unwrap_or(u64::MAX));
        let mut parts = Parts {
            key: envelope.key,
            kind: envelope.kind,
            aligned: envelope.aligned,
            payload: &envelope.payload,
            scope: scope.0,
            stamp: stamp.to_word(),
            created: now.saturating_sub(lifetime.age),
            life: lifetime.life.map(|life| life.saturating_sub(unseen)),
            stale: lifetime.stale.saturating_sub(over),
            tags: &envelope.tags,
            cost: envelope.cost,
            cost_is_estimated: false,
        };
        self.price(&mut parts);
        EntryRef::try_from_parts(&parts, &[])
    }
}
