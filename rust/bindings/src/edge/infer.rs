//! A request of the Open Inference Protocol to its key, and a stored record to the answer that it wants.

use crate::errors;
use crate::key::{self, Key, secret_bytes};
use crate::released::{WORK_FROM, released_from};
use infercache_core::edge::infer::{Query, age, record};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// A request for inference.
#[pyclass(frozen, module = "infercache._core")]
struct InferQuery(Query);

/// A body's JSON object and the tensors' bytes behind it; `None` if the object is longer than the body.
fn parts(body: &[u8], head: Option<usize>) -> Option<(&[u8], &[u8])> {
    body.split_at_checked(head.unwrap_or(body.len()))
}

#[pymethods]
impl InferQuery {
    /// Reads a request's body, of which the first `head` bytes are a JSON object (None: all). None: it is JSON, but no
    /// request whose answer depends on it alone.
    ///
    /// Raises `InvalidJSON` if it is none.
    #[staticmethod]
    #[pyo3(signature = (body, head = None))]
    fn parse(py: Python<'_>, body: PyBackedBytes, head: Option<usize>) -> PyResult<Option<InferQuery>> {
        let Some((head, tensors)) = parts(&body, head) else { return Ok(None) };
        let parsed = released_from(py, WORK_FROM, body.len(), || Query::parse(head, tensors));
        Ok(parsed.map_err(|error| errors::to_python(py, &error))?.map(InferQuery))
    }

    /// The key in the scope of these fields.
    #[pyo3(signature = (namespace, model, version, operation, secret = None))]
    fn key<'py>(
        &self,
        py: Python<'py>,
        namespace: &str,
        model: &str,
        version: &str,
        operation: &str,
        secret: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Key> {
        let secret = secret.map(secret_bytes).transpose()?;
        let scope = key::scope([namespace, model, version, operation], secret.as_ref())
            .map_err(|error| errors::to_python(py, &error))?;
        Ok(Key::new(self.0.key(&scope), scope))
    }

    /// The record of the model server's answer; `age`: how many seconds old it came. None: it is no complete answer.
    #[staticmethod]
    #[pyo3(signature = (body, head = None, age = 0))]
    fn record<'py>(py: Python<'py>, body: PyBackedBytes, head: Option<usize>, age: u32) -> Option<Bound<'py, PyBytes>> {
        let (head, tensors) = parts(&body, head)?;
        let found = released_from(py, WORK_FROM, body.len(), || record(head, tensors, age));
        found.map(|record| PyBytes::new(py, &record))
    }

    /// The answer that this request wants, made of a record: its body, and the length of its JSON object if bytes follow.
    /// None: an output has no form of the kind that is asked for, or these bytes are no record.
    fn render<'py>(&self, py: Python<'py>, record: PyBackedBytes) -> Option<(Bound<'py, PyBytes>, Option<usize>)> {
        let rendered = released_from(py, WORK_FROM, record.len(), || self.0.render(&record));
        rendered.map(|(body, head)| (PyBytes::new(py, &body), head))
    }

    /// Seconds that the answer of a record was old when it came.
    #[staticmethod]
    fn age(record: PyBackedBytes) -> Option<u32> {
        age(&record)
    }
}

/// Adds this module's class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<InferQuery>()
}
