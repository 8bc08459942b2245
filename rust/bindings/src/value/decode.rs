//! Stored bytes to objects. The reader of the core checks every length; what Python refuses is corrupt.

use crate::lazy::intern;
use infercache_core::entry::EntryRef;
use infercache_core::error::Error;
use infercache_core::stack::{Floor, SmallStack};
use infercache_core::value::{self, FLAG_DEVICE, FLAG_JAX, FLAG_TORCH, Group, Item, Reader, Tensor, corrupt, kind};
use pyo3::exceptions::{PyException, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple};

use super::arrays::{self, Source};
use super::device::{Library, on_host};
use super::records::{self, Schema};
use super::{moments, registered, torch};
use crate::errors::{class, to_python};

/// See [`super::decode()`].
pub(super) fn decode<'py>(
    py: Python<'py>,
    entry: &EntryRef,
    schema: Option<&Schema>,
    copy: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let (kind, payload) = (entry.kind(), entry.payload());
    let source = Source::new(entry, copy);
    let decoded = match kind & kind::MASK {
        kind::TENSOR => Tensor::parse(payload).map_err(|e| to_python(py, &e)).and_then(|t| tensor(py, &t, &source)),
        kind::ROW => Tensor::parse(payload).map_err(|e| to_python(py, &e)).and_then(|t| row(py, &t, &source)),
        kind::BYTES => bytes(py, payload),
        kind::STR => text(py, payload),
        kind::INT => number(py, payload).map(|bytes| int(py, i64::from_le_bytes(bytes))),
        kind::FLOAT => number(py, payload).map(|bytes| PyFloat::new(py, f64::from_le_bytes(bytes)).into_any()),
        kind::TREE | kind::TREE_WITH_TENSORS => tree(py, kind, payload, schema, source),
        other => {
            return match (value::check(kind, payload), other) {
                (Err(error), _) => Err(to_python(py, &error)),
                (Ok(()), kind::NONE) => Ok(py.None().into_bound(py)),
                (Ok(()), other) => Ok(PyBool::new(py, other == kind::TRUE).to_owned().into_any()),
            };
        }
    };
    decoded.map_err(|error| as_corrupt(py, error))
}

/// Whatever Python or code of the caller's own made of the bytes: a value that does not decode is a miss, not an error.
/// No memory, and what is no `Exception` (`KeyboardInterrupt`), stay what they are.
fn as_corrupt(py: Python<'_>, error: PyErr) -> PyErr {
    let known = class(py, "CorruptValue").is_ok_and(|class| error.get_type(py).is(&class));
    if known || error.is_instance_of::<PyMemoryError>(py) || !error.is_instance_of::<PyException>(py) {
        return error;
    }
    let wrapped = to_python(py, &corrupt(error.to_string()));
    wrapped.set_cause(py, Some(error));
    wrapped
}

fn number(py: Python<'_>, payload: &[u8]) -> PyResult<[u8; 8]> {
    value::eight(payload).map_err(|error| to_python(py, &error))
}

fn int(py: Python<'_>, value: i64) -> Bound<'_, PyAny> {
    let Ok(int) = value.into_pyobject(py);
    int.into_any()
}

/// A bytes object; no memory is an error here, where `PyBytes::new` panics.
fn bytes<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the bytes are readable for their length; the result is a new object, or null with an exception set.
    unsafe {
        let bytes = ffi::PyBytes_FromStringAndSize(content.as_ptr().cast(), content.len() as ffi::Py_ssize_t);
        Bound::from_owned_ptr_or_err(py, bytes)
    }
}

/// A bytearray, likewise.
fn bytearray<'py>(py: Python<'py>, content: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as for `bytes`.
    unsafe {
        let bytes = ffi::PyByteArray_FromStringAndSize(content.as_ptr().cast(), content.len() as ffi::Py_ssize_t);
        Bound::from_owned_ptr_or_err(py, bytes)
    }
}

/// The text of UTF-8 bytes.
fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the bytes are readable for their length; the result is a new str, or null with an exception set.
    unsafe {
        let text = ffi::PyUnicode_DecodeUTF8(bytes.as_ptr().cast(), bytes.len() as ffi::Py_ssize_t, c"strict".as_ptr());
        Bound::from_owned_ptr_or_err(py, text)
    }
}

/// The text of UTF-8 bytes in which lone surrogates are encoded.
fn surrogates<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: as for `text`.
    unsafe {
        let len = bytes.len() as ffi::Py_ssize_t;
        let text = ffi::PyUnicode_DecodeUTF8(bytes.as_ptr().cast(), len, c"surrogatepass".as_ptr());
        Bound::from_owned_ptr_or_err(py, text)
    }
}

fn tensor<'py>(py: Python<'py>, tensor: &Tensor<'_>, source: &Source<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    if tensor.flags & FLAG_TORCH != 0 {
        return torch::tensor(py, tensor);
    }
    match Library::of_stored(tensor) {
        None => arrays::array(py, tensor, source),
        Some(library) => library.restore(arrays::array(py, &on_host(tensor), source)?),
    }
}

/// A row of an array result by itself: what indexing the array gives.
pub(super) fn row<'py>(py: Python<'py>, row: &Tensor<'_>, source: &Source<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    let of_numpy = row.flags & (FLAG_TORCH | FLAG_JAX | FLAG_DEVICE) == 0;
    if row.ndim() == 0 && of_numpy { arrays::scalar(py, row) } else { tensor(py, row, source) }
}

fn tree<'py>(
    py: Python<'py>,
    kind: u8,
    payload: &[u8],
    schema: Option<&Schema>,
    source: Source<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let reader = Reader::new(kind, payload).map_err(|error| to_python(py, &error))?;
    let mut decoder = Decoder { py, reader, schema, source, floor: Floor::of_this_thread() };
    let value = decoder.value()?;
    decoder.checked(decoder.reader.finish())?;
    Ok(value)
}

/// Builds one value of a skeleton.
pub(super) struct Decoder<'a, 'py> {
    pub py: Python<'py>,
    reader: Reader<'a>,
    pub schema: Option<&'a Schema>,
    source: Source<'a, 'py>,
    floor: Floor,
}

impl<'a, 'py> Decoder<'a, 'py> {
    /// The next value.
    pub fn value(&mut self) -> PyResult<Bound<'py, PyAny>> {
        match self.field()? {
            Some(value) => Ok(value),
            None => Err(self.corrupt("a missing field outside a record")),
        }
    }

    /// The next value, or `None` for a field that had none.
    pub fn field(&mut self) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = self.py;
        if let Some(value) = self.reader.float() {
            return Ok(Some(PyFloat::new(py, value).into_any()));
        }
        if let Some(bytes) = self.reader.short_text() {
            return text(py, bytes).map(Some);
        }
        let item = self.reader.next();
        Ok(Some(match self.checked(item)? {
            Item::None => py.None().into_bound(py),
            Item::Bool(value) => PyBool::new(py, value).to_owned().into_any(),
            Item::Int(value) => int(py, value),
            Item::Float(value) => PyFloat::new(py, value).into_any(),
            Item::Str(bytes) => text(py, bytes)?,
            Item::Bytes(found) => bytes(py, found)?,
            Item::List(group) => {
                let values = self.values(group)?;
                PyList::new(py, values)?.into_any()
            }
            Item::Tuple(group) => {
                let values = self.values(group)?;
                PyTuple::new(py, values)?.into_any()
            }
            Item::Dict(group) => self.dict(group)?,
            Item::Tensor(found) => tensor(py, &found, &self.source)?,
            Item::Absent => return Ok(None),
            Item::Set(group) => self.set(group)?,
            Item::FrozenSet(group) => self.frozen_set(group)?,
            Item::Record { index, fingerprint, group } => records::build(self, index, fingerprint, group)?,
            Item::Registered { name, group } => registered::build(self, name, group)?,
            rarer => self.rarer(rarer)?,
        }))
    }

    /// A value of another type, which holds no others. By itself, so that what nests needs no stack for it.
    #[inline(never)]
    fn rarer(&mut self, item: Item<'a>) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        match item {
            Item::UInt(value) => {
                let Ok(int) = value.into_pyobject(py);
                Ok(int.into_any())
            }
            Item::BigInt(bytes) => self.big_int(bytes),
            Item::Complex(real, imaginary) => Ok(PyComplex::from_doubles(py, real, imaginary).into_any()),
            Item::Surrogates(bytes) => surrogates(py, bytes),
            Item::ByteArray(bytes) => bytearray(py, bytes),
            Item::NumpyStr(bytes) => self.numpy("str_", surrogates(py, bytes)?),
            Item::NumpyBytes(found) => self.numpy("bytes_", bytes(py, found)?),
            Item::Scalar(scalar) => arrays::scalar(py, &scalar),
            moment => match moments::build(py, &moment)? {
                Some(value) => Ok(value),
                None => Err(self.corrupt("a value that is none")),
            },
        }
    }

    /// The members of a container, which is closed. The reader has compared their number with the bytes that remain.
    fn values(&mut self, group: Group) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.look_down()?;
        let mut values = Vec::new();
        values.try_reserve_exact(group.len).map_err(|error| PyMemoryError::new_err(error.to_string()))?;
        for _ in 0..group.len {
            values.push(self.value()?);
        }
        self.close(group)?;
        Ok(values)
    }

    #[inline(never)]
    fn set(&mut self, group: Group) -> PyResult<Bound<'py, PyAny>> {
        let members = self.values(group)?;
        let set = PySet::new(self.py, members)?;
        self.distinct(set.len(), group)?;
        Ok(set.into_any())
    }

    #[inline(never)]
    fn frozen_set(&mut self, group: Group) -> PyResult<Bound<'py, PyAny>> {
        let members = self.values(group)?;
        let set = PyFrozenSet::new(self.py, members)?;
        self.distinct(set.len(), group)?;
        Ok(set.into_any())
    }

    fn dict(&mut self, group: Group) -> PyResult<Bound<'py, PyAny>> {
        self.look_down()?;
        let dict = PyDict::new(self.py);
        for _ in 0..group.len {
            let key = self.value()?;
            let value = self.value()?;
            dict.set_item(key, value)?;
        }
        self.close(group)?;
        self.distinct(dict.len(), group)?;
        Ok(dict.into_any())
    }

    fn distinct(&self, found: usize, group: Group) -> PyResult<()> {
        if found == group.len { Ok(()) } else { Err(self.corrupt("equal keys or members")) }
    }

    fn big_int(&self, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let py = self.py;
        let kwargs = PyDict::new(py);
        kwargs.set_item(intern!(py, "signed"), true)?;
        let bytes = PyBytes::new(py, bytes);
        py.get_type::<PyInt>().call_method(intern!(py, "from_bytes"), (bytes, intern!(py, "little")), Some(&kwargs))
    }

    fn numpy(&self, name: &str, of: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.py.import(intern!(self.py, "numpy"))?.getattr(name)?.call1((of,))
    }

    /// Asked before the values of a container are read: an error where the thread's stack may not hold them.
    #[inline(always)]
    pub fn look_down(&self) -> PyResult<()> {
        if self.floor.is_near() { Err(self.small_stack()) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn small_stack(&self) -> PyErr {
        match class(self.py, "CorruptValue") {
            Ok(class) => PyErr::from_type(class, format!("the stored value {}", SmallStack::of_this_thread())),
            Err(failed) => failed,
        }
    }

    /// Ends a container.
    pub fn close(&mut self, group: Group) -> PyResult<()> {
        let closed = self.reader.close(group);
        self.checked(closed)
    }

    fn checked<T>(&self, result: Result<T, Error>) -> PyResult<T> {
        result.map_err(|error| to_python(self.py, &error))
    }

    pub fn corrupt(&self, reason: impl Into<String>) -> PyErr {
        to_python(self.py, &corrupt(reason))
    }
}

/// A dictionary of text to value that was written by the encoder itself.
pub(super) fn as_dict<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    Ok(value.cast_exact::<PyDict>()?.clone())
}

/// The content of a text item.
pub(super) fn as_text<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
    Ok(value.cast_exact::<PyString>()?.clone())
}
