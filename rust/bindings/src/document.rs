//! Python objects to their canonical document (key specification, section 2), straight from the objects.
//!
//! [`Walk::value`] is the head: exact builtin types are written at once, everything else goes by [`kinds::Kind`] to the
//! submodule that owns the row.

use crate::errors;
use infercache_core::document::Writer;
use infercache_core::error::Error;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyFloat, PyInt, PyList, PyString, PyTuple};
use std::cell::Cell;

mod containers; // list, tuple, mappings, sets
mod extended; // Enum, images, dates, Decimal, UUID, dataclasses, Pydantic models
mod fault; // why a value has no document, and the path to it
mod forms; // register_form
mod kinds; // the row of a type
mod scalars; // text and numbers
mod tensors; // bytes, arrays, buffers

pub use fault::{Fault, Outcome, Step};
use kinds::Kind;

/// Values that lead to one another without a container between them (a form that returns a form, an Enum of Enums):
/// more than this in a walk is an endless chain.
const MAX_HOPS: usize = 1024;

/// Memory a thread keeps for its next document.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Option<Writer>> = const { Cell::new(None) };
}

/// One walk over a value, writing its document.
pub struct Walk<'w, 'py> {
    py: Python<'py>,
    /// Where the document goes.
    pub out: &'w mut Writer,
    /// Members of the mappings that are being written, one after another; see [`containers`].
    entries: Vec<containers::Entry<'py>>,
    forms: bool,
    hops: usize,
}

impl<'w, 'py> Walk<'w, 'py> {
    /// A walk that appends to `out`.
    #[inline]
    pub fn new(py: Python<'py>, out: &'w mut Writer) -> Walk<'w, 'py> {
        Walk { py, out, entries: Vec::new(), forms: forms::any(), hops: 0 }
    }

    /// Writes the document of a value.
    #[inline]
    pub fn value(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        // SAFETY: `value` holds a reference.
        if unsafe { self.plain(value.as_ptr()) }? { Ok(()) } else { self.compound(value) }
    }

    /// Writes text, a number, a truth value or None of exactly the builtin type; `false` where it is something else.
    ///
    /// # Safety
    ///
    /// `value` is a live object, kept alive by somebody during the call. No Python code runs here.
    #[inline]
    unsafe fn plain(&mut self, value: *mut ffi::PyObject) -> Outcome<bool> {
        if self.forms {
            return Ok(false); // a builtin type may have a form of its own
        }
        // SAFETY: as the caller vouches; each branch knows the exact type.
        unsafe {
            let class = ffi::Py_TYPE(value);
            if class == &raw mut ffi::PyUnicode_Type {
                self.text(value)?;
            } else if class == &raw mut ffi::PyFloat_Type {
                self.out.float(ffi::PyFloat_AsDouble(value))?;
            } else if class == &raw mut ffi::PyLong_Type {
                self.integer(value)?;
            } else if value == ffi::Py_None() {
                self.out.null()?;
            } else if class == &raw mut ffi::PyBool_Type {
                self.out.bool(value == ffi::Py_True())?;
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes anything that [`Walk::plain`] left.
    fn compound(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        if self.forms {
            if let Some(form) = forms::of(value) {
                return self.form(value, &form);
            }
            self.forms = false;
            // SAFETY: `value` holds a reference.
            let plain = unsafe { self.plain(value.as_ptr()) };
            self.forms = true;
            if plain? {
                return Ok(());
            }
        }
        // SAFETY: every object has a type.
        let class = unsafe { ffi::Py_TYPE(value.as_ptr()) };
        if class == &raw mut ffi::PyDict_Type {
            return self.mapping(value);
        }
        if class == &raw mut ffi::PyList_Type {
            return self.list(value);
        }
        if class == &raw mut ffi::PyTuple_Type {
            return self.tuple(value);
        }
        self.by_kind(value)
    }

    fn by_kind(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        match kinds::of(value)? {
            // SAFETY: the kind says what the object's layout is; `value` holds a reference.
            Kind::Text => unsafe { self.text(value.as_ptr()) },
            // SAFETY: as above.
            Kind::Integer => unsafe { self.integer(value.as_ptr()) },
            // SAFETY: as above: a subclass's content is read, not its __float__.
            Kind::Float => Ok(self.out.float(unsafe { ffi::PyFloat_AsDouble(value.as_ptr()) })?),
            Kind::EnumMember => self.hop(|walk| walk.enum_member(value)),
            Kind::NumpyScalar => self.hop(|walk| walk.numpy_scalar(value)),
            Kind::MlFloat => self.ml_float(value),
            Kind::List => self.list(value),
            Kind::Tuple => self.tuple(value),
            Kind::Mapping => self.mapping(value),
            Kind::Proxy => self.proxy(value),
            Kind::Set => self.set(value),
            Kind::Bytes => self.bytes(value),
            Kind::ByteArray | Kind::Buffer => self.buffer(value),
            Kind::Array => self.array(value),
            Kind::ForeignTensor => self.foreign_tensor(value),
            Kind::Image => self.image(value),
            Kind::DateTime => self.moment(value, "$datetime"),
            Kind::Date => self.moment(value, "$date"),
            Kind::Time => self.time(value),
            Kind::Decimal => self.decimal(value),
            Kind::Uuid => self.uuid(value),
            Kind::Dataclass => self.dataclass(value),
            Kind::Model => self.model(value),
            Kind::Refused(reason) => Err(refused(value, reason)),
            Kind::Unsupported => Err(refused(
                value,
                "no row of the key specification admits it; convert it, or say how it enters a key with \
                 infercache.register_form(type, name, function)",
            )),
        }
    }

    /// Writes the inside of an object whose braces the caller writes: one container deeper.
    pub fn inside(&mut self, write: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        self.out.enter()?;
        let outcome = write(self);
        self.out.leave();
        outcome
    }

    /// A step that is no container: counted, so that an endless chain of them is an error.
    fn hop(&mut self, step: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        if self.hops >= MAX_HOPS {
            return Err(Fault::unsupported(format!("more than {MAX_HOPS} forms or Enum values lead to one another")));
        }
        self.hops += 1;
        let outcome = step(self);
        self.hops -= 1;
        outcome
    }

    fn form(&mut self, value: &Bound<'py, PyAny>, form: &forms::Form) -> Outcome {
        let step = || Step::Form(form.name.clone());
        self.hop(|walk| {
            let stands_for =
                form.function.bind(walk.py).call1((value,)).map_err(|e| Box::<Fault>::from(e).at(step()))?;
            walk.out.raw(b"{\"$form\":{\"name\":")?;
            walk.out.string(&form.name)?;
            walk.out.raw(b",\"value\":")?;
            walk.value(&stands_for).map_err(|fault| fault.at(step()))?;
            Ok(walk.out.raw(b"}}")?)
        })
    }
}

#[cold]
fn refused(value: &Bound<'_, PyAny>, reason: &str) -> Box<Fault> {
    Fault::unsupported(format!("{}: {reason}", type_name(value)))
}

/// The qualified name of a value's type, for error texts.
pub fn type_name(value: &Bound<'_, PyAny>) -> String {
    let class = value.get_type();
    class.fully_qualified_name().map_or_else(|_| String::from("a value of unknown type"), |name| name.to_string())
}

/// The UTF-8 of a str object or an instance of a subclass; the error is a lone surrogate.
///
/// # Safety
///
/// `text` is a str object (or of a subclass) that outlives the result.
pub unsafe fn utf8_of<'a>(py: Python<'_>, text: *mut ffi::PyObject) -> Result<&'a str, ()> {
    // SAFETY: as the caller vouches.
    unsafe { scalars::utf8(py, text) }.map_err(drop)
}

/// Appends what `fill` walks to `out`, or leaves `out` as it was.
pub fn walked<'py>(
    py: Python<'py>,
    out: &mut Writer,
    root: &str,
    fill: impl FnOnce(&mut Walk<'_, 'py>) -> Outcome,
) -> PyResult<()> {
    let mark = out.mark();
    let outcome = fill(&mut Walk::new(py, out)).and_then(|()| Ok(out.finish()?));
    outcome.map_err(|fault| {
        out.reset(mark);
        fault.into_pyerr(py, root)
    })
}

/// Appends the canonical document of a Python object to `out`; on an error `out` ends where it ended before.
pub fn write<'py>(py: Python<'py>, value: &Bound<'py, PyAny>, out: &mut Writer) -> PyResult<()> {
    walked(py, out, "input", |walk| walk.value(value))
}

/// Fills this thread's reusable writer and hands the document to `read`. Re-entrant: a form that itself asks for a key
/// gets a writer of its own.
pub fn with_document<R>(
    _py: Python<'_>,
    fill: impl FnOnce(&mut Writer) -> PyResult<()>,
    read: impl FnOnce(&[u8]) -> R,
) -> PyResult<R> {
    let mut out = SCRATCH.with(Cell::take).unwrap_or_default();
    let filled = fill(&mut out);
    let result = filled.map(|()| read(out.as_bytes()));
    if out.capacity() <= KEPT_BYTES {
        out.clear();
        SCRATCH.with(|scratch| scratch.set(Some(out)));
    }
    result
}

/// The canonical document of a value (see docs/key-specification.md): UTF-8 bytes.
#[pyfunction]
#[pyo3(signature = (value, /))]
fn canonical_json<'py>(py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    with_document(py, |out| write(py, value, out), |document| PyBytes::new(py, document))
}

/// The canonical document of raw JSON text: bytes, or anything that offers its bytes.
#[pyfunction]
#[pyo3(signature = (text, /))]
fn canonical_json_from_json<'py>(py: Python<'py>, text: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    with_document(py, |out| write_json(py, text, out), |document| PyBytes::new(py, document))
}

/// Appends the canonical document of raw JSON text (bytes or str) to `out`.
pub fn write_json(py: Python<'_>, text: &Bound<'_, PyAny>, out: &mut Writer) -> PyResult<()> {
    let convert = |error: Error| errors::to_python(py, &error);
    if let Ok(text) = text.cast::<PyBytes>() {
        return infercache_core::json::write(text.as_bytes(), out).map_err(convert);
    }
    if let Ok(text) = text.cast::<PyString>() {
        let text = text.to_str().map_err(|_| {
            convert(Error::InvalidJson { offset: 0, reason: "the text contains a lone surrogate".to_owned() })
        })?;
        return infercache_core::json::write(text.as_bytes(), out).map_err(convert);
    }
    let bytes = text.call_method0(pyo3::intern!(py, "__bytes__")).or_else(|_| {
        // A copy, because another thread may write to a bytearray or a memoryview while it is parsed.
        // SAFETY: gives a new reference or an exception.
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromObject(text.as_ptr())) }
    });
    match bytes.ok().filter(|_| !is_number_or_list(text)).and_then(|bytes| bytes.cast_into::<PyBytes>().ok()) {
        Some(bytes) => infercache_core::json::write(bytes.as_bytes(), out).map_err(convert),
        None => Err(pyo3::exceptions::PyTypeError::new_err(format!(
            "raw JSON text must be bytes or str, not {}; for a Python object use infercache.key",
            type_name(text)
        ))),
    }
}

/// `bytes([1, 2])` is a conversion that nobody means here.
fn is_number_or_list(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyInt>()
        || value.is_instance_of::<PyFloat>()
        || value.is_instance_of::<PyList>()
        || value.is_instance_of::<PyTuple>()
}

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(canonical_json, module)?)?;
    module.add_function(wrap_pyfunction!(canonical_json_from_json, module)?)?;
    module.add_function(wrap_pyfunction!(forms::register_form, module)?)
}
