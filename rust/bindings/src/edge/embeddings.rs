//! A request for embeddings to keys, and what memory has of its items to the answer's text.

use crate::errors;
use crate::flight::{self, Entry};
use crate::key::{self, Key, secret_bytes};
use crate::opened::Opened;
use crate::released::{WORK_FROM, released_from};
use crate::store::Store;
use infercache_core::cache::{Found, Hit};
use infercache_core::edge::embeddings::{Query, Record, Usage, records, render};
use infercache_core::entry::{EntryRef, KeyBytes};
use infercache_core::stats::Count;
use infercache_core::value::kind;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};

const NO_PLACE: &str = "the batch has fewer items";

/// A request for embeddings.
#[pyclass(frozen, module = "infercache._core")]
struct EmbeddingsQuery {
    query: Query,
    body: PyBackedBytes,
}

/// What memory has of a request's items.
#[pyclass(frozen, module = "infercache._core", get_all)]
struct Known {
    /// The answer's text, if every item was found.
    body: Option<Py<PyBytes>>,
    /// "exact", "apportioned" or "unknown": where the answer's token counts come from.
    usage: &'static str,
    /// For each item an `Entry` or None; None in place of the list if every item was found.
    entries: Option<Py<PyList>>,
    /// How many items were found.
    hits: usize,
    /// Places of items that are stale.
    stale: Vec<usize>,
    /// Seconds since the oldest item found was made.
    age: f64,
    /// Seconds that all items found stay fresh; None: until evicted.
    left: Option<f64>,
    /// Seconds of computing that the items found took.
    saved: f64,
    /// Bytes of what is stored of them.
    stored_bytes: usize,
}

/// Items as they were found.
struct Looked {
    hits: Vec<Option<Hit>>,
    stale: Vec<usize>,
}

fn look(opened: &Opened, keys: &[KeyBytes], stale: Option<u64>, max_age: Option<u64>) -> Looked {
    let mut looked = Looked { hits: Vec::with_capacity(keys.len()), stale: Vec::new() };
    for (place, key) in keys.iter().enumerate() {
        let (hit, is_stale) = match opened.cache.find(key, stale) {
            Found::Fresh(hit) => (Some(hit), false),
            Found::Stale(hit) => (Some(hit), true),
            Found::Miss => (None, false),
        };
        let hit = hit.filter(|hit| {
            let wanted = max_age.is_none_or(|most| age_of(hit) <= most) && record_of(&hit.entry).is_some();
            if !wanted {
                opened.cache.recount_as_miss(&hit.entry, Count::hit(is_stale));
            }
            wanted
        });
        if is_stale && hit.is_some() {
            looked.stale.push(place);
        }
        looked.hits.push(hit);
    }
    looked
}

/// The bytes of an entry that holds a record of an item.
fn record_of(entry: &EntryRef) -> Option<Record<'_>> {
    if entry.kind() & kind::MASK == kind::BYTES { Record::read(entry.payload()) } else { None }
}

/// Milliseconds since the answer was made, those in another cache included.
fn age_of(hit: &Hit) -> u64 {
    hit.age + record_of(&hit.entry).map_or(0, |record| u64::from(record.age) * 1_000)
}

fn name_of(usage: Usage) -> &'static str {
    match usage {
        Usage::Unknown => "unknown",
        Usage::Exact(_) => "exact",
        Usage::Apportioned(_) => "apportioned",
    }
}

/// The answer's text to items of these entries; `None` if one of them holds no record.
fn text<'py>(
    py: Python<'py>,
    entries: &[&EntryRef],
    base64: bool,
) -> PyResult<Option<(Bound<'py, PyBytes>, &'static str)>> {
    let bytes: usize = entries.iter().map(|entry| entry.payload().len()).sum();
    let mut out = Vec::new();
    let usage =
        released_from(py, WORK_FROM, bytes, || render(entries.iter().map(|entry| entry.payload()), base64, &mut out));
    Ok(usage.map(|usage| (PyBytes::new(py, &out), name_of(usage))))
}

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1e3
}

#[pymethods]
impl EmbeddingsQuery {
    /// Reads a request's body. None: it is JSON, but no request whose items have answers of their own.
    ///
    /// Raises `InvalidJSON` if it is none.
    #[staticmethod]
    fn parse(py: Python<'_>, body: PyBackedBytes) -> PyResult<Option<EmbeddingsQuery>> {
        let parsed = released_from(py, WORK_FROM, body.len(), || Query::parse(&body));
        let query = parsed.map_err(|error| errors::to_python(py, &error))?;
        Ok(query.map(|query| EmbeddingsQuery { query, body }))
    }

    /// The model that the request names.
    #[getter]
    fn model(&self) -> &str {
        &self.query.model
    }

    /// Whether the answer is wanted in base64.
    #[getter]
    fn base64(&self) -> bool {
        self.query.base64
    }

    /// How many items it asks for.
    fn __len__(&self) -> usize {
        self.query.len()
    }

    /// The keys of the items, in their order, in the scope of these fields.
    #[pyo3(signature = (namespace, version, operation, secret = None))]
    fn keys<'py>(
        &self,
        py: Python<'py>,
        namespace: &str,
        version: &str,
        operation: &str,
        secret: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let secret = secret.map(secret_bytes).transpose()?;
        let scope = key::scope([namespace, &self.query.model, version, operation], secret.as_ref())
            .map_err(|error| errors::to_python(py, &error))?;
        let keys = released_from(py, WORK_FROM, self.body.len(), || self.query.keys(&scope));
        PyList::new(py, keys.into_iter().map(|bytes| Key::new(bytes, scope.clone())))
    }

    /// What memory has of these keys' items: fresh, stale for at most `stale` seconds (None: none), and no older than
    /// `max_age` seconds.
    #[pyo3(signature = (store, keys, stale = None, max_age = None))]
    fn look(
        &self,
        py: Python<'_>,
        store: PyRef<'_, Store>,
        keys: Vec<PyRef<'_, Key>>,
        stale: Option<f64>,
        max_age: Option<f64>,
    ) -> PyResult<Known> {
        let bytes = keys.iter().map(|key| key.bytes(py).copied()).collect::<PyResult<Vec<_>>>()?;
        let milliseconds = |seconds: f64| (seconds * 1e3) as u64;
        let looked = look(store.opened()?, &bytes, stale.map(milliseconds), max_age.map(milliseconds));
        let found: Vec<&Hit> = looked.hits.iter().flatten().collect();
        let age = found.iter().map(|hit| age_of(hit)).max().unwrap_or(0);
        let left = found.iter().filter_map(|hit| hit.left).min();
        let saved = found.iter().map(|hit| f64::from(hit.entry.cost())).sum();
        let mut known = Known {
            body: None,
            usage: "unknown",
            entries: None,
            hits: found.len(),
            stale: looked.stale,
            age: seconds(age),
            left: left.map(seconds),
            saved,
            stored_bytes: found.iter().map(|hit| hit.entry.payload().len()).sum(),
        };
        if found.len() == looked.hits.len() {
            let entries: Vec<&EntryRef> = found.iter().map(|hit| &hit.entry).collect();
            if let Some((body, usage)) = text(py, &entries, self.query.base64)? {
                if let Some(least) = found.iter().map(|hit| hit.stamp.to_word()).min() {
                    flight::used(py, least)?;
                }
                (known.body, known.usage) = (Some(body.unbind()), usage);
                return Ok(known);
            }
        }
        let entry =
            |hit: &Option<Hit>| hit.as_ref().map(|hit| Entry { entry: hit.entry.clone(), stamp: hit.stamp.to_word() });
        known.entries = Some(PyList::new(py, looked.hits.iter().map(entry))?.unbind());
        Ok(known)
    }

    /// An item as canonical JSON.
    fn item<'py>(&self, py: Python<'py>, place: usize) -> PyResult<Bound<'py, PyBytes>> {
        if place >= self.query.len() {
            return Err(PyIndexError::new_err(NO_PLACE));
        }
        Ok(PyBytes::new(py, self.query.item(place)))
    }

    /// The request for the items at these places alone, for the model server.
    fn ask<'py>(&self, py: Python<'py>, places: Vec<usize>) -> PyResult<Bound<'py, PyBytes>> {
        let body = self.query.ask(&self.body, &places).ok_or_else(|| PyIndexError::new_err(NO_PLACE))?;
        Ok(PyBytes::new(py, &body))
    }

    /// The records of the model server's answer to the items at these places, in their order, and whether it counted as
    /// many tokens as `counts` says that they have; `age`: how many seconds old it came. None: it is no complete answer
    /// to them.
    #[pyo3(signature = (answer, places, age = 0, counts = None))]
    fn records<'py>(
        &self,
        py: Python<'py>,
        answer: PyBackedBytes,
        places: Vec<usize>,
        age: u32,
        counts: Option<Vec<u32>>,
    ) -> PyResult<Option<(Bound<'py, PyList>, bool)>> {
        if places.iter().any(|&place| place >= self.query.len()) {
            return Err(PyIndexError::new_err(NO_PLACE));
        }
        let weights: Vec<usize> = places.iter().map(|&place| self.query.item(place).len()).collect();
        let found = released_from(py, WORK_FROM, answer.len(), || records(&answer, &weights, counts.as_deref(), age));
        let Some(found) = found else { return Ok(None) };
        let list = PyList::new(py, found.records.iter().map(|record| PyBytes::new(py, record)))?;
        Ok(Some((list, found.agrees)))
    }

    /// Seconds that the answer of a record was old when it came; None: these bytes are none.
    #[staticmethod]
    fn age(record: &[u8]) -> Option<u32> {
        Record::read(record).map(|record| record.age)
    }

    /// The answer's text to these entries, one for each item, and where its token counts come from. None: one of them
    /// holds no record.
    fn render<'py>(
        &self,
        py: Python<'py>,
        entries: Vec<PyRef<'_, Entry>>,
    ) -> PyResult<Option<(Bound<'py, PyBytes>, &'static str)>> {
        for entry in &entries {
            if record_of(&entry.entry).is_none() {
                return Ok(None);
            }
            flight::used(py, entry.stamp)?;
        }
        let entries: Vec<&EntryRef> = entries.iter().map(|entry| &entry.entry).collect();
        text(py, &entries, self.query.base64)
    }
}

/// Adds this module's classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<EmbeddingsQuery>()?;
    module.add_class::<Known>()
}
