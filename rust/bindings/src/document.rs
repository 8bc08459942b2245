//! Python objects to their canonical document (key specification, section 2), straight from the objects.
//!
//! [`Walk::value`] is the head: exact builtin types are written at once, everything else goes by [`kinds::Kind`] to the
//! submodule that owns the row.

use crate::errors;
use crate::released::{WORK_FROM, released_from};
use infercache_core::document::{Limit, Writer};
use infercache_core::error::Error;
use infercache_core::stack::{Floor, SmallStack};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple, PyType};
use std::cell::Cell;

mod containers; // list, tuple, mappings, sets
mod extended; // Enum, images, dates, Decimal, UUID, dataclasses, Pydantic models
mod fault; // why a value has no document, and the path to it
mod forms; // register_form
mod holes; // digests that a device is still computing
mod kinds; // the row of a type
mod pins; // what a walk points at, and when it takes references
mod scalars; // text and numbers
mod tensors; // bytes, arrays, buffers

pub use fault::{Fault, Outcome, Step, shortened};
pub use holes::{Draft, Hole, Holes};
use kinds::Kind;
pub use kinds::attribute;
use pins::Pins;

/// Values that lead to one another without a container between them (a form that returns a form, an Enum of Enums):
/// more than this in a walk is an endless chain.
const MAX_HOPS: usize = 1024;

/// Memory a thread keeps for its next document.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    static OUT: Cell<Option<Writer>> = const { Cell::new(None) };
    static PINS: Cell<Option<Pins>> = const { Cell::new(None) };
}

/// One walk over a value, writing its document.
pub struct Walk<'w, 'py> {
    py: Python<'py>,
    /// Where the document goes.
    pub out: &'w mut Writer,
    pins: &'w mut Pins,
    /// Whether any form is registered.
    forms: bool,
    /// Whether references are taken at each container, and not only before Python code runs.
    eager: bool,
    /// Whether arrays that lie as they are to be hashed are left to the caller, as tensors on a device are.
    defer: bool,
    hops: usize,
    floor: Floor,
}

impl<'py> Walk<'_, 'py> {
    /// Writes the document of a value.
    #[inline]
    pub fn value(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        // SAFETY: `value` is a reference.
        unsafe { self.any(value.as_ptr()) }
    }

    /// Writes the document of an object that somebody lends.
    ///
    /// # Safety
    ///
    /// `value` is a live object, which stays alive at least until Python code runs.
    #[inline(always)]
    unsafe fn any(&mut self, value: *mut ffi::PyObject) -> Outcome {
        // SAFETY: as the caller vouches.
        unsafe { if self.plain(value)? { Ok(()) } else { self.compound(value) } }
    }

    /// Writes text, a number, a truth value or None of exactly the builtin type; `false` where it is something else.
    ///
    /// # Safety
    ///
    /// As [`Walk::any`]. No Python code runs here, or references are taken first.
    #[inline(always)]
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
    ///
    /// # Safety
    ///
    /// As [`Walk::any`].
    unsafe fn compound(&mut self, value: *mut ffi::PyObject) -> Outcome {
        if self.eager {
            self.hold();
        }
        // SAFETY: as the caller vouches; references are taken before anything that runs Python code.
        unsafe {
            if self.forms {
                self.hold();
                let owned = Bound::from_borrowed_ptr(self.py, value);
                if let Some(form) = forms::of(&owned) {
                    return self.form(&owned, &form);
                }
                self.forms = false;
                let plain = self.plain(value);
                self.forms = true;
                if plain? {
                    return Ok(());
                }
            }
            let class = ffi::Py_TYPE(value);
            if class == &raw mut ffi::PyDict_Type {
                self.mapping(value)
            } else if class == &raw mut ffi::PyList_Type {
                self.list(value)
            } else if class == &raw mut ffi::PyTuple_Type {
                self.tuple(value)
            } else {
                self.hold();
                self.by_kind(&Bound::from_borrowed_ptr(self.py, value))
            }
        }
    }

    /// Takes references to all that the walk points at: Python code may run next.
    #[inline]
    fn hold(&mut self) {
        // SAFETY: the walk has the GIL, and every place that runs Python code holds first.
        unsafe { self.pins.hold() }
    }

    /// A fault of text without UTF-8, for which CPython made an exception: that may have run Python code (the garbage
    /// collector) before references were taken, so the walk begins again.
    #[cold]
    fn lost(&mut self, fault: Box<Fault>) -> Box<Fault> {
        if self.eager {
            return fault;
        }
        Fault::again()
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
            // SAFETY: as above.
            Kind::List => unsafe { self.list(value.as_ptr()) },
            // SAFETY: as above.
            Kind::Tuple => unsafe { self.tuple(value.as_ptr()) },
            // SAFETY: as above.
            Kind::Mapping => unsafe { self.mapping(value.as_ptr()) },
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

    /// Why no level deeper may be begun: the specification's bound, or the thread's stack, which may not hold it.
    #[cold]
    #[inline(never)]
    fn too_deep(&self) -> Box<Fault> {
        let small = || Limit::SmallStack(SmallStack::of_this_thread());
        Fault::from_limit(if self.floor.is_near() { small() } else { Limit::TooDeep }, self.pins.is_cycle())
    }

    /// Fills the holes from `first` on: what was written is about to be compared.
    fn settle(&mut self, first: usize) -> Outcome {
        if self.pins.holes.len() <= first {
            return Ok(());
        }
        let open = self.pins.holes.split_off(first);
        holes::settle(self.py, self.out, open)
    }

    /// A step that is no container: counted, so that an endless chain of them is an error.
    fn hop(&mut self, step: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        if self.floor.is_near() {
            return Err(self.too_deep());
        }
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
            let stands_for = form.function.bind(walk.py).call1((value,)).map_err(|e| Box::<Fault>::from(e).at(step))?;
            walk.out.raw(b"{\"$form\":{\"name\":")?;
            walk.out.string(&form.name)?;
            walk.out.raw(b",\"value\":")?;
            walk.value(&stands_for).map_err(|fault| fault.at(step))?;
            Ok(walk.out.raw(b"}}")?)
        })
    }
}

#[cold]
fn refused(value: &Bound<'_, PyAny>, reason: &str) -> Box<Fault> {
    let name = match value.cast::<PyType>() {
        Ok(class) => name_of(class), // a class is told by its own name
        Err(_) => type_name(value),
    };
    Fault::unsupported(format!("{name}: {reason}"))
}

/// The qualified name of a value's type, for error texts.
pub fn type_name(value: &Bound<'_, PyAny>) -> String {
    name_of(&value.get_type())
}

fn name_of(class: &Bound<'_, PyType>) -> String {
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

/// Appends what `fill` walks to `out`, or leaves `out` as it was; gives the places where digests are missing. `fill` may be
/// called twice.
pub fn walked<'py>(
    py: Python<'py>,
    out: &mut Writer,
    root: &str,
    mut fill: impl FnMut(&mut Walk<'_, 'py>) -> Outcome,
) -> PyResult<Holes> {
    let mut pins = PINS.take().unwrap_or_default();
    let mark = out.mark();
    let floor = pins.stack.floor();
    let mut eager = false;
    let result = loop {
        let mut walk =
            Walk { py, out: &mut *out, pins: &mut pins, forms: forms::any(), eager, defer: false, hops: 0, floor };
        let outcome = fill(&mut walk).and_then(|()| Ok(out.finish()?));
        let Err(fault) = outcome else { break Ok(std::mem::take(&mut pins.holes)) };
        // SAFETY: `py` is the proof of the GIL.
        unsafe { pins.clear() };
        out.reset(mark);
        if eager || !fault.is_again() {
            break Err(fault.into_pyerr(py, root));
        }
        eager = true;
    };
    if pins.capacity() <= KEPT_BYTES {
        PINS.set(Some(pins));
    }
    result
}

/// Appends the canonical document of a Python object to `out`; on an error `out` ends where it ended before.
#[inline]
pub fn write<'py>(py: Python<'py>, value: &Bound<'py, PyAny>, out: &mut Writer) -> PyResult<Holes> {
    walked(py, out, "input", |walk| walk.value(value))
}

/// Fills this thread's reusable writer and hands the document to `read`. Re-entrant: a form that itself asks for a key
/// gets a writer of its own.
#[inline]
pub fn with_document<R>(
    _py: Python<'_>,
    fill: impl FnOnce(&mut Writer) -> PyResult<Holes>,
    read: impl FnOnce(&[u8], Holes) -> PyResult<R>,
) -> PyResult<R> {
    let mut out = OUT.take().unwrap_or_default();
    let filled = fill(&mut out);
    let result = filled.and_then(|holes| read(out.as_bytes(), holes));
    if out.capacity() <= KEPT_BYTES {
        out.clear();
        OUT.set(Some(out));
    }
    result
}

/// The document as a bytes object; waits for what a device still computes.
pub fn as_bytes<'py>(py: Python<'py>, document: &[u8], holes: Holes) -> PyResult<Bound<'py, PyBytes>> {
    if holes.is_empty() {
        return Ok(PyBytes::new(py, document));
    }
    Ok(PyBytes::new(py, &Draft::begin(py, document, holes)?.whole(py)?))
}

/// A document and where digests are missing in it: place and tensor.
type Opened<'py> = (Bound<'py, PyByteArray>, Vec<(usize, Py<PyAny>)>);

/// The canonical document of a value with zeros in place of digests, to be filled in by who hashes many tensors together:
/// at each place stand the 64 digits of an `infercache.gpu.tensors.DeviceTensor`, or of a contiguous array.
#[pyfunction]
#[pyo3(signature = (value, /))]
fn _open_document<'py>(py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Opened<'py>> {
    let fill = |out: &mut Writer| {
        walked(py, out, "input", |walk| {
            walk.defer = true;
            walk.value(value)
        })
    };
    with_document(py, fill, |document, holes| {
        Ok((PyByteArray::new(py, document), holes.into_iter().map(|hole| (hole.at, hole.tensor)).collect()))
    })
}

/// The canonical document of a value (see docs/key-specification.md): UTF-8 bytes.
#[pyfunction]
#[pyo3(signature = (value, /))]
fn canonical_json<'py>(py: Python<'py>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    with_document(py, |out| write(py, value, out), |document, holes| as_bytes(py, document, holes))
}

/// The canonical document of raw JSON text: bytes, or anything that offers its bytes.
#[pyfunction]
#[pyo3(signature = (text, /))]
fn canonical_json_from_json<'py>(py: Python<'py>, text: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    with_document(py, |out| write_json(py, text, out), |document, holes| as_bytes(py, document, holes))
}

/// Appends the canonical document of raw JSON text (bytes or str) to `out`.
pub fn write_json(py: Python<'_>, text: &Bound<'_, PyAny>, out: &mut Writer) -> PyResult<Holes> {
    // What is parsed never changes: the content of a bytes or str object that is held here, or a copy of our own.
    let parse = |bytes: &[u8], out: &mut Writer| {
        let parsed = released_from(py, WORK_FROM, bytes.len(), || infercache_core::json::write(bytes, out));
        parsed.map(|()| Holes::new()).map_err(|error| errors::to_python(py, &error))
    };
    if let Ok(text) = text.cast::<PyBytes>() {
        return parse(text.as_bytes(), out);
    }
    if let Ok(text) = text.cast::<PyString>() {
        let text = text.to_str().map_err(|_| {
            let reason = "the text contains a lone surrogate".to_owned();
            errors::to_python(py, &Error::InvalidJson { offset: 0, reason })
        })?;
        return parse(text.as_bytes(), out);
    }
    // Another thread may write to these while they are parsed.
    if (text.is_instance_of::<PyByteArray>() || text.is_exact_instance_of::<PyMemoryView>())
        && let Ok(export) = tensors::Export::new(text)
        && let Some(copy) = export.copied(py)
    {
        return parse(&copy, out);
    }
    let bytes = text.call_method0(crate::lazy::intern!(py, "__bytes__")).or_else(|_| {
        // SAFETY: gives a new reference or an exception.
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromObject(text.as_ptr())) }
    });
    match bytes.ok().filter(|_| !is_number_or_list(text)).and_then(|bytes| bytes.cast_into::<PyBytes>().ok()) {
        Some(bytes) => parse(bytes.as_bytes(), out),
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
    module.add_function(wrap_pyfunction!(_open_document, module)?)?;
    module.add_function(wrap_pyfunction!(tensors::_blake3, module)?)?;
    module.add_class::<tensors::Blake3>()?;
    module.add_function(wrap_pyfunction!(canonical_json_from_json, module)?)?;
    module.add_function(wrap_pyfunction!(tensors::_hash_threads, module)?)?;
    module.add_function(wrap_pyfunction!(forms::register_form, module)?)
}
