//! Envelopes of a shared tier: entries to bytes and back into the cache, and both by hand for tests and tools.

use crate::errors;
use crate::flight::Entry;
use crate::key::{Key, secret_bytes};
use crate::released::{COPY_FROM, WORK_FROM, released_from};
use crate::store::Store;
use infercache_core::cache::{Stored, Written};
use infercache_core::envelope::{self, COMPRESS_FROM, Envelope, Lifetime, MacKey, Options, Reader, Refused};
use infercache_core::error::Error;
use infercache_core::fence::Stamp;
use infercache_core::scopes::ScopeTags;
use infercache_core::stats::Count;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

/// What stands in for a refusal where a value was read: a name of `envelope_refusals()`, and what became of it else.
const KEPT: &str = "kept";
const FENCED: &str = "fenced";
const TOO_LARGE: &str = "refused";
const OTHER_EPOCH: &str = "epoch";
const OVER: &str = "over";

fn mac_key(secret: Option<&Bound<'_, PyAny>>) -> PyResult<Option<MacKey>> {
    Ok(secret.map(secret_bytes).transpose()?.as_ref().map(MacKey::new))
}

fn invalid(py: Python<'_>, error: &Error) -> PyErr {
    errors::to_python(py, error)
}

/// The bytes of an envelope, from its parts: for tests and tools. Durations are milliseconds, None: for ever.
#[pyfunction]
#[pyo3(signature = (
    key, payload, *, kind = 0, aligned = false, epoch = [0; 16], lsn = 0, life = None, stale = 0, age = 0, total = None,
    scope = (1, 0, 0), tags = Vec::new(), cost = 0.0, secret = None, compress_from = COMPRESS_FROM
))]
#[allow(clippy::too_many_arguments)] // one a field
fn envelope_encode<'py>(
    py: Python<'py>,
    key: &Key,
    payload: PyBackedBytes,
    kind: u8,
    aligned: bool,
    epoch: [u8; 16],
    lsn: u64,
    life: Option<u64>,
    stale: u64,
    age: u64,
    total: Option<u64>,
    scope: (u64, u64, u64),
    tags: Vec<u64>,
    cost: f32,
    secret: Option<&Bound<'py, PyAny>>,
    compress_from: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let mac = mac_key(secret)?;
    let envelope = Envelope {
        key: key.bytes,
        kind,
        aligned,
        epoch,
        lsn,
        lifetime: Lifetime { life, stale, age },
        total,
        scope: ScopeTags { namespace: scope.0, model: scope.1, version: scope.2 },
        tags: tags.into(),
        cost,
        payload: payload.as_ref().into(),
    };
    let options = Options { compress_from, mac: mac.as_ref() };
    let bytes = released_from(py, WORK_FROM, payload.len(), || envelope::encode(&envelope, &options));
    Ok(PyBytes::new(py, &bytes.map_err(|error| invalid(py, &error))?))
}

/// What an envelope holds, as a dict of `envelope_encode`'s arguments; or the name of the reason why it is refused.
#[pyfunction]
#[pyo3(signature = (data, key, *, secret = None, cap = 1 << 40))]
fn envelope_decode<'py>(
    py: Python<'py>,
    data: PyBackedBytes,
    key: &Key,
    secret: Option<&Bound<'py, PyAny>>,
    cap: u64,
) -> PyResult<Bound<'py, PyAny>> {
    let mac = mac_key(secret)?;
    let reader = Reader { mac: mac.as_ref(), cap };
    let envelope = match released_from(py, WORK_FROM, data.len(), || envelope::decode(&data, &key.bytes, &reader)) {
        Ok(envelope) => envelope,
        Err(refused) => return Ok(refused.name().into_pyobject(py)?.into_any()),
    };
    let fields = PyDict::new(py);
    fields.set_item("payload", PyBytes::new(py, &envelope.payload))?;
    fields.set_item("kind", envelope.kind)?;
    fields.set_item("aligned", envelope.aligned)?;
    fields.set_item("epoch", PyBytes::new(py, &envelope.epoch))?;
    fields.set_item("lsn", envelope.lsn)?;
    fields.set_item("life", envelope.lifetime.life)?;
    fields.set_item("stale", envelope.lifetime.stale)?;
    fields.set_item("age", envelope.lifetime.age)?;
    fields.set_item("total", envelope.total)?;
    fields.set_item("scope", (envelope.scope.namespace, envelope.scope.model, envelope.scope.version))?;
    fields.set_item("tags", envelope.tags.to_vec())?;
    fields.set_item("cost", envelope.cost)?;
    Ok(fields.into_any())
}

/// The names of the reasons for which an envelope is refused: one counter each.
#[pyfunction]
fn envelope_refusals() -> Vec<&'static str> {
    Refused::ALL.map(Refused::name).to_vec()
}

/// An entry's envelope and the milliseconds for which the server is to keep it (`PX`; None: for ever). None: the entry is not in
/// the cache any more, or its life is over. `most` bounds those milliseconds.
#[pyfunction]
#[pyo3(signature = (store, entry, *, epoch, most = None, compress_from = COMPRESS_FROM))]
fn envelope_of<'py>(
    py: Python<'py>,
    store: &Bound<'py, Store>,
    entry: &Entry,
    epoch: [u8; 16],
    most: Option<u64>,
    compress_from: usize,
) -> PyResult<Option<(Bound<'py, PyBytes>, Option<u64>)>> {
    let opened = store.get().opened()?;
    let Some(lifetime) = opened.cache.lifetime(&entry.entry) else { return Ok(None) };
    let total = lifetime.left().into_iter().chain(most).min();
    if total == Some(0) {
        return Ok(None);
    }
    let written = Written { epoch, lsn: Stamp::from_word(entry.stamp).lsn(), total };
    let Some(envelope) = opened.cache.envelope(&entry.entry, lifetime, &written) else { return Ok(None) };
    let mac = opened.secret.as_ref().map(MacKey::new);
    let options = Options { compress_from, mac: mac.as_ref() };
    let bytes = released_from(py, WORK_FROM, envelope.payload.len(), || envelope::encode(&envelope, &options));
    let bytes = bytes.map_err(|error| invalid(py, &error))?;
    Ok(Some((PyBytes::new(py, &bytes), total)))
}

/// Promotes an envelope into the cache: `(outcome, entry)`. The outcome is "kept", "fenced" (a purge after its stamp hides
/// it), "refused" (larger than the cache), "over" (its life is), "epoch" (it belongs to another epoch of the authority than
/// `epoch`, whose number here is that of `stamp`), or a name of `envelope_refusals()`. There is an entry if it is kept or refused.
///
/// `remaining` are the milliseconds for which the server still keeps it: `PTTL` less the time since it was asked.
#[pyfunction]
#[pyo3(signature = (store, data, key, *, epoch, stamp, remaining))]
fn envelope_promote(
    py: Python<'_>,
    store: &Bound<'_, Store>,
    data: PyBackedBytes,
    key: &Key,
    epoch: [u8; 16],
    stamp: u64,
    remaining: Option<u64>,
) -> PyResult<(&'static str, Option<Entry>)> {
    let opened = store.get().opened()?;
    let cache = &opened.cache;
    let mac = opened.secret.as_ref().map(MacKey::new);
    let reader = Reader { mac: mac.as_ref(), cap: cache.capacity() };
    let decoded = released_from(py, WORK_FROM, data.len(), || {
        let envelope = envelope::decode(&data, &key.bytes, &reader)?;
        let lifetime = envelope.lifetime_with(remaining)?;
        Ok::<_, Refused>((envelope, lifetime))
    });
    let (envelope, lifetime) = match decoded {
        Ok(decoded) => decoded,
        Err(refused) => return Ok((refused.name(), None)),
    };
    if envelope.epoch != epoch {
        return Ok((OTHER_EPOCH, None));
    }
    if lifetime.left() == Some(0) {
        return Ok((OVER, None));
    }
    let Some(scope) = cache.intern_tags(envelope.scope) else {
        cache.count(Count::Rejected, 1);
        return Ok((TOO_LARGE, None));
    };
    let stamp = Stamp::new(Stamp::from_word(stamp).epoch(), envelope.lsn);
    let prepared = released_from(py, COPY_FROM, envelope.payload.len(), || {
        cache.prepare_promoted(&envelope, scope, stamp, lifetime)
    });
    let Some(entry) = prepared else { return Ok((TOO_LARGE, None)) };
    let outcome = match cache.store_prepared(&entry) {
        Stored::Kept => KEPT,
        Stored::Fenced => return Ok((FENCED, None)),
        Stored::Refused => TOO_LARGE,
    };
    Ok((outcome, Some(Entry { entry, stamp: stamp.to_word() })))
}

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(envelope_encode, module)?)?;
    module.add_function(wrap_pyfunction!(envelope_decode, module)?)?;
    module.add_function(wrap_pyfunction!(envelope_refusals, module)?)?;
    module.add_function(wrap_pyfunction!(envelope_of, module)?)?;
    module.add_function(wrap_pyfunction!(envelope_promote, module)?)
}
