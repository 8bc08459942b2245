//! Between the cache and its shared tier: what is looked at again once the authority has answered, what the tier had, and
//! what it is given.

use crate::authority::position;
use crate::flight::{Entry, Terms};
use crate::key::Key;
use crate::opened::{Opened, key_argument};
use crate::released::{COPY_FROM, WORK_FROM, released_from};
use crate::store::Store;
use infercache_core::cache::{Found, Stored, Written};
use infercache_core::envelope::{self, COMPRESS_FROM, Envelope, Lifetime, MacKey, Options, Reader, Refused};
use infercache_core::fence::{EpochId, Judgement};
use infercache_core::stats::Count;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

// What became of a value of the tier, besides the names of `envelope_refusals()`.
const FRESH: &str = "fresh";
const STALE: &str = "stale";
const FENCED: &str = "fenced";
const UNPROVEN: &str = "unproven";
const OTHER_EPOCH: &str = "epoch";
const OVER: &str = "over";
const NO_ROOM: &str = "no_room";

/// The fresh entry in memory of a key that was missed before the authority was asked at `since`; None: there is none. What
/// was counted as a miss becomes a hit, unless `counted` is False.
#[pyfunction]
#[pyo3(signature = (store, key, since, counted = true))]
fn tier_look(store: &Store, key: &Bound<'_, PyAny>, since: Option<u64>, counted: bool) -> PyResult<Option<Entry>> {
    let cache = &store.opened()?.cache;
    let Found::Fresh(hit) = cache.peek_since(key_argument(key)?.bytes(key.py())?, since) else { return Ok(None) };
    if counted {
        cache.recount_as_hit(&hit.entry, Count::Hits);
    }
    Ok(Some(Entry { stamp: hit.stamp.to_word(), entry: hit.entry }))
}

/// Checks a value of the tier and puts it into memory with the stamp that it carries: `(outcome, entry)`. There is an
/// entry if the outcome is "fresh" or "stale" (its life is over, or it is softly purged, but its window is not). Otherwise it
/// is "fenced" (a purge hides it), "unproven" (too long nobody has heard of the authority), "epoch" (its stamp is of
/// another one), "over" (so is its life), "no_room", or a name of `envelope_refusals()`.
///
/// `remaining`: milliseconds for which the server still keeps it, `PTTL` less the time since it was asked; None: for ever.
/// `since`: when the authority was asked along with it. A fresh one is counted, in place of the miss before it, if `counted`.
#[pyfunction]
#[pyo3(signature = (store, key, data, remaining, since, counted = true))]
fn tier_promote(
    py: Python<'_>,
    store: &Store,
    key: &Bound<'_, PyAny>,
    data: PyBackedBytes,
    remaining: Option<u64>,
    since: Option<u64>,
    counted: bool,
) -> PyResult<(&'static str, Option<Entry>)> {
    let (opened, key) = (store.opened()?, key_argument(key)?);
    let bytes = key.bytes(py)?;
    let mac = opened.secret.as_ref().map(MacKey::new);
    let reader = Reader { mac: mac.as_ref(), cap: opened.cache.capacity() };
    let decoded = released_from(py, WORK_FROM, data.len(), || {
        let envelope = envelope::decode(&data, bytes, &reader)?;
        let lifetime = envelope.lifetime_with(remaining)?;
        Ok::<_, Refused>((envelope, lifetime))
    });
    Ok(match decoded {
        Ok((envelope, lifetime)) => promote(py, opened, key, &envelope, lifetime, since, counted),
        Err(refused) => (refused.name(), None),
    })
}

fn promote(
    py: Python<'_>,
    opened: &Opened,
    key: &Key,
    envelope: &Envelope<'_>,
    lifetime: Lifetime,
    since: Option<u64>,
    counted: bool,
) -> (&'static str, Option<Entry>) {
    let cache = &opened.cache;
    if lifetime.left() == Some(0) {
        return (OVER, None);
    }
    // A key that knows its model is not told of another one by what somebody wrote into the tier.
    let scope = if key.scope.is_some() { opened.scope_id(key) } else { cache.intern_tags(envelope.scope) };
    let Some(scope) = scope else { return (NO_ROOM, None) };
    // Before the stamp: see rust/core/src/fence.rs on the order of a reader's loads.
    let assured = cache.is_assured(!envelope.tags.is_empty(), since);
    let Some(stamp) = cache.fences().stamp_at(&envelope.epoch, envelope.lsn) else { return (OTHER_EPOCH, None) };
    let judgement = cache.judge_stamp(stamp, scope, &envelope.key, &envelope.tags);
    match judgement {
        Judgement::Hidden => return (FENCED, None),
        _ if !assured => return (UNPROVEN, None),
        Judgement::Valid | Judgement::Soft => {}
    }
    let prepare = || cache.prepare_promoted(envelope, scope, stamp, lifetime);
    let Some(entry) = released_from(py, COPY_FROM, envelope.payload.len(), prepare) else { return (NO_ROOM, None) };
    match cache.store_prepared(&entry) {
        Stored::Fenced => return (FENCED, None),
        // One that memory has no room for is still an answer.
        Stored::Kept | Stored::Refused => {}
    }
    let expired = lifetime.life.is_some_and(|life| lifetime.age >= life);
    let stale = judgement == Judgement::Soft || expired;
    if counted && !stale {
        cache.recount_as_hit(&entry, Count::TierHits);
    }
    (if stale { STALE } else { FRESH }, Some(Entry { entry, stamp: stamp.to_word() }))
}

/// What the tier is given of an entry that was just stored on these terms: its envelope, and the milliseconds for which the server is to keep it (`PX`; None: for ever). None: its stamp is of no epoch that the authority
/// is in now, so nobody could use it.
#[pyfunction]
#[pyo3(signature = (store, entry, terms, compress_from = COMPRESS_FROM))]
fn tier_envelope<'py>(
    py: Python<'py>,
    store: &Store,
    entry: &Entry,
    terms: &Terms,
    compress_from: usize,
) -> PyResult<Option<(Bound<'py, PyBytes>, Option<u64>)>> {
    let opened = store.opened()?;
    let Some((id, lsn)) = position(py, opened.cache.fences(), entry.stamp) else { return Ok(None) };
    let epoch: EpochId = id.as_bytes().try_into().expect("an epoch has 16 bytes");
    let lifetime = Lifetime { life: terms.life, stale: terms.stale, age: 0 };
    let total = lifetime.left();
    let written = Written { epoch, lsn, total };
    let Some(envelope) = opened.cache.envelope(&entry.entry, lifetime, &written) else { return Ok(None) };
    let mac = opened.secret.as_ref().map(MacKey::new);
    let options = Options { compress_from, mac: mac.as_ref() };
    // An entry that cannot be written as an envelope (of thousands of tags, say) stays in this process.
    let bytes = released_from(py, WORK_FROM, envelope.payload.len(), || envelope::encode(&envelope, &options));
    Ok(bytes.ok().map(|bytes| (PyBytes::new(py, &bytes), total)))
}

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(tier_look, module)?)?;
    module.add_function(wrap_pyfunction!(tier_promote, module)?)?;
    module.add_function(wrap_pyfunction!(tier_envelope, module)?)
}
