//! Results of model functions to stored bytes and back; `infercache_core::value` describes the bytes.
//!
//! `encode` and `decode` are one value each; `encode_rows` and `assemble` a batch function's result. Types are exact: an
//! instance of a subclass is stored only if its own class is named in the return annotation or registered, so that a hit is
//! of the type that the miss was.

mod arrays; // NumPy arrays and scalars, over the cache's own buffer
mod decode; // bytes to objects
mod device; // arrays of CuPy and JAX
mod dtypes; // NumPy's element types and the format's
mod encode; // objects to bytes
mod moments; // datetime, Decimal, UUID
mod records; // dataclasses, models, named tuples, enum members
mod registered; // types of the caller's own, by name
mod rows; // a batch function's result, item by item
mod torch; // tensors of torch
mod widths; // rows of text, and who decides how wide they are

use infercache_core::entry::EntryRef;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ptr::NonNull;

// Used by the modules of the cache and of the decorators.
pub use arrays::SharedBuffer;
pub use arrays::no_memory;
pub use records::Schema;
#[allow(unused_imports)]
pub use rows::{Part, Rows, assemble, encode_rows};
pub use widths::Chosen;

/// A value as the cache stores it.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// How the bytes are to be read: an entry's kind.
    pub kind: u8,
    /// Whether the payload must begin at a multiple of 64 bytes.
    pub aligned: bool,
    /// The payload.
    pub bytes: Vec<u8>,
}

impl Encoded {
    /// An entry that stands in no table, for who needs one at once.
    pub fn detached(&self) -> EntryRef {
        EntryRef::detached(self.kind, &self.bytes, self.aligned)
    }
}

/// A value in the form in which it is stored, before anything large is copied: `content`, then `tail`.
pub struct Payload<'py> {
    /// As in [`Encoded`].
    pub kind: u8,
    /// As in [`Encoded`].
    pub aligned: bool,
    content: Content<'py>,
    /// What ends the payload: an array's descriptor.
    pub tail: Vec<u8>,
}

enum Content<'py> {
    Owned(Vec<u8>),
    /// Bytes that lie in an object, which does not move them while it is referred to.
    Lent {
        bytes: NonNull<[u8]>,
        _owner: Bound<'py, PyAny>,
    },
}

impl<'py> Payload<'py> {
    /// Bytes of our own.
    fn owned(kind: u8, aligned: bool, bytes: Vec<u8>) -> Payload<'py> {
        Payload { kind, aligned, content: Content::Owned(bytes), tail: Vec::new() }
    }

    /// Bytes of an object: elements of an array, the content of a bytes or str object.
    ///
    /// # Safety
    /// `bytes` stay where they are, and allocated, while there is a reference to `owner`.
    unsafe fn lent(kind: u8, aligned: bool, owner: Bound<'py, PyAny>, bytes: &[u8], tail: Vec<u8>) -> Payload<'py> {
        Payload { kind, aligned, content: Content::Lent { bytes: NonNull::from(bytes), _owner: owner }, tail }
    }

    /// The payload but for its tail.
    pub fn content(&self) -> &[u8] {
        match &self.content {
            Content::Owned(bytes) => bytes,
            // SAFETY: the object is referred to. (What another thread writes into an array meanwhile is the caller's race.)
            Content::Lent { bytes, .. } => unsafe { bytes.as_ref() },
        }
    }

    /// Bytes of the whole.
    pub fn len(&self) -> usize {
        self.content().len() + self.tail.len()
    }

    /// A copy of what is lent, unless memory is too short: then the value goes uncached, and the process on.
    fn into_encoded(self, py: Python<'_>) -> Result<Encoded, String> {
        let (kind, aligned) = (self.kind, self.aligned);
        let bytes = match self.content {
            Content::Owned(mut bytes) => {
                bytes.extend_from_slice(&self.tail);
                bytes
            }
            Content::Lent { .. } => arrays::copied(py, self.content(), &self.tail)?,
        };
        Ok(Encoded { kind, aligned, bytes })
    }
}

/// `value` as bytes. `schema` is the [`Schema`] of the function's return annotation, if it names classes.
///
/// `Ok(Err(reason))` says that the value cannot be stored and why, with the path to the part that cannot.
///
/// # Errors
/// What is no `Exception` (`KeyboardInterrupt`, …), raised by code of the caller's that ran; a `schema` that is none.
pub fn encode(
    py: Python<'_>,
    value: &Bound<'_, PyAny>,
    schema: Option<&Bound<'_, PyAny>>,
) -> PyResult<Result<Encoded, String>> {
    Ok(lend(py, value, schema)?.and_then(|payload| payload.into_encoded(py)))
}

/// As [`encode()`], for who copies the bytes at once to where they are to be.
///
/// # Errors
/// As for [`encode()`].
pub fn lend<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    schema: Option<&Bound<'py, PyAny>>,
) -> PyResult<Result<Payload<'py>, String>> {
    let schema = schema_of(schema)?;
    encode::encode(py, value, schema)
}

/// The value of an entry. Arrays are read-only over the entry's own buffer, which they keep alive; with `copy` they are
/// fresh and writable.
///
/// # Errors
/// `CorruptValue` where the bytes are no value, or not one of this schema.
pub fn decode<'py>(
    py: Python<'py>,
    entry: &EntryRef,
    schema: Option<&Bound<'py, PyAny>>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let schema = schema_of(schema)?;
    decode::decode(py, entry, schema, copy)
}

fn schema_of<'a>(schema: Option<&'a Bound<'_, PyAny>>) -> PyResult<Option<&'a Schema>> {
    match schema {
        Some(schema) if !schema.is_none() => match schema.cast::<Schema>() {
            Ok(schema) => Ok(Some(schema.get())),
            Err(_) => Err(PyTypeError::new_err("schema must be a Schema or None")),
        },
        _ => Ok(None),
    }
}

/// Stored bytes of a value: `(kind, aligned, payload)`. Raises TypeError with the reason for what cannot be stored.
#[pyfunction]
#[pyo3(name = "_encode_value", signature = (value, schema=None))]
fn encode_value<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    schema: Option<&Bound<'py, PyAny>>,
) -> PyResult<(u8, bool, Bound<'py, PyBytes>)> {
    let encoded = encode(py, value, schema)?.map_err(PyTypeError::new_err)?;
    Ok((encoded.kind, encoded.aligned, PyBytes::new(py, &encoded.bytes)))
}

/// The value of stored bytes, as a hit gives it.
#[pyfunction]
#[pyo3(name = "_decode_value", signature = (kind, aligned, payload, schema=None, copy=false))]
fn decode_value<'py>(
    py: Python<'py>,
    kind: u8,
    aligned: bool,
    payload: &[u8],
    schema: Option<&Bound<'py, PyAny>>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    decode(py, &EntryRef::detached(kind & 31, payload, aligned), schema, copy)
}

/// An entry by itself, for tests and benchmarks: what a look-up holds between finding and decoding.
#[pyclass(frozen, module = "infercache._core", name = "_Stored")]
struct Stored {
    entry: EntryRef,
    schema: Option<Py<PyAny>>,
}

#[pymethods]
impl Stored {
    #[new]
    #[pyo3(signature = (value, schema=None))]
    fn new(py: Python<'_>, value: &Bound<'_, PyAny>, schema: Option<&Bound<'_, PyAny>>) -> PyResult<Stored> {
        let encoded = encode(py, value, schema)?.map_err(PyTypeError::new_err)?;
        Ok(Stored { entry: encoded.detached(), schema: schema.cloned().map(Bound::unbind) })
    }

    /// The value, as a hit gives it.
    #[pyo3(signature = (copy=false))]
    fn value<'py>(&self, py: Python<'py>, copy: bool) -> PyResult<Bound<'py, PyAny>> {
        decode(py, &self.entry, self.schema.as_ref().map(|schema| schema.bind(py)), copy)
    }

    /// How the payload is read.
    #[getter]
    fn kind(&self) -> u8 {
        self.entry.kind()
    }

    /// The items of a batch function's result: one entry each, or the reason (text) why one cannot be stored.
    #[staticmethod]
    #[pyo3(signature = (result, n, schema=None))]
    fn rows<'py>(
        py: Python<'py>,
        result: &Bound<'py, PyAny>,
        n: usize,
        schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let items = match encode_rows(py, result, n, schema, &Chosen::default())? {
            Rows::Items(items) => items,
            Rows::Count(found) => return Err(PyTypeError::new_err(format!("{found} results for {n} items"))),
            Rows::Unsuited(reason) => return Err(PyTypeError::new_err(reason)),
        };
        let stored = |item: Result<Encoded, String>| match item {
            Ok(encoded) => {
                let schema = schema.cloned().map(Bound::unbind);
                Ok(Bound::new(py, Stored { entry: encoded.detached(), schema })?.into_any())
            }
            Err(reason) => Ok(reason.into_pyobject(py)?.into_any()),
        };
        items.into_iter().map(stored).collect()
    }

    /// A batch function's result of these items: entries, or, for what could not be stored, the objects themselves.
    #[staticmethod]
    #[pyo3(signature = (items, schema=None, copy=false))]
    fn assemble<'py>(
        py: Python<'py>,
        items: Vec<Bound<'py, PyAny>>,
        schema: Option<&Bound<'py, PyAny>>,
        copy: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let parts = items.iter().map(|item| match item.cast::<Stored>() {
            Ok(stored) => Part::Stored(&stored.get().entry),
            Err(_) => Part::Object(item),
        });
        assemble(py, &parts.collect::<Vec<_>>(), schema, copy, &Chosen::default())
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Schema>()?;
    module.add_class::<SharedBuffer>()?;
    module.add_class::<Stored>()?;
    module.add_function(wrap_pyfunction!(registered::register_value, module)?)?;
    module.add_function(wrap_pyfunction!(encode_value, module)?)?;
    module.add_function(wrap_pyfunction!(decode_value, module)?)?;
    Ok(())
}
