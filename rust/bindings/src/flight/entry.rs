//! Results on their way into the cache and out of it: how they are stored, in which form, and what a look-up gives.

use super::computation::used;
use crate::value;
use infercache_core::entry::EntryRef;
use pyo3::prelude::*;

/// How results are stored and served: times in milliseconds, the schema of the return annotation, copies or not; and what
/// is known of the widths that a batch function chooses for its text.
#[pyclass(frozen, module = "infercache._core")]
pub struct Terms {
    pub life: Option<u64>,
    pub stale: u64,
    pub schema: Option<Py<PyAny>>,
    pub copy: bool,
    pub chosen: value::Chosen,
}

#[pymethods]
impl Terms {
    #[new]
    #[pyo3(signature = (life, stale, schema, copy))]
    fn new(life: Option<u64>, stale: u64, schema: Option<Py<PyAny>>, copy: bool) -> Terms {
        Terms { life, stale, schema, copy, chosen: value::Chosen::default() }
    }
}

impl Terms {
    /// The value of an entry, as these terms have it.
    pub fn decode<'py>(&self, py: Python<'py>, entry: &EntryRef) -> PyResult<Bound<'py, PyAny>> {
        value::decode(py, entry, self.schema.as_ref().map(|schema| schema.bind(py)), self.copy)
    }
}

/// A result in the form in which it is stored.
#[pyclass(frozen, module = "infercache._core")]
pub struct Encoded(pub value::Encoded);

/// The stored form of `result`, or text that says why it has none.
#[pyfunction]
pub fn encode<'py>(py: Python<'py>, result: &Bound<'py, PyAny>, terms: &Terms) -> PyResult<Bound<'py, PyAny>> {
    match value::encode(py, result, terms.schema.as_ref().map(|schema| schema.bind(py)))? {
        Ok(encoded) => Ok(Bound::new(py, Encoded(encoded))?.into_any()),
        Err(reason) => Ok(reason.into_pyobject(py)?.into_any()),
    }
}

/// An entry as a look-up, a flight or a run gave it.
#[pyclass(frozen, module = "infercache._core")]
pub struct Entry {
    pub entry: EntryRef,
    pub stamp: u64,
}

#[pymethods]
impl Entry {
    /// The value, handed to whoever runs here.
    fn value<'py>(&self, py: Python<'py>, terms: &Terms) -> PyResult<Bound<'py, PyAny>> {
        used(py, self.stamp)?;
        terms.decode(py, &self.entry)
    }
}
