//! Envelopes of a shared tier by hand, for tests and tools; `tiered` makes and reads those of entries.

use crate::errors;
use crate::key::{Key, secret_bytes};
use crate::released::{WORK_FROM, released_from};
use infercache_core::envelope::{self, COMPRESS_FROM, Envelope, Lifetime, MacKey, Options, Reader, Refused};
use infercache_core::error::Error;
use infercache_core::scopes::ScopeTags;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict};

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
        key: *key.bytes(py)?,
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
    let key = key.bytes(py)?;
    let envelope = match released_from(py, WORK_FROM, data.len(), || envelope::decode(&data, key, &reader)) {
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

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(envelope_encode, module)?)?;
    module.add_function(wrap_pyfunction!(envelope_decode, module)?)?;
    module.add_function(wrap_pyfunction!(envelope_refusals, module)?)
}
