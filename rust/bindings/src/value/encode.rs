//! Objects to stored bytes. Everything is decided by exact type.

use crate::lazy::intern;
use infercache_core::limits::{MAX_DEPTH, MAX_SKELETON_BYTES};
use infercache_core::stack::{Floor, SmallStack};
use infercache_core::value::{Writer, ext, kind};
use numpy::PyUntypedArray;
use pyo3::exceptions::PyException;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{
    PyBool, PyByteArray, PyBytes, PyComplex, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PySet, PyString, PyTuple,
    PyType,
};

use super::records::{self, Schema};
use super::{Payload, arrays, device, dtypes, moments, registered, torch};
use crate::released::{COPY_FROM, released_from};

/// Why a value was not stored.
pub(super) enum Fail {
    /// It cannot be: the steps that lead to the part that cannot, innermost first, and the reason.
    Refused(Vec<String>, String),
    /// Python raised.
    Raised(PyErr),
}

impl From<PyErr> for Fail {
    fn from(error: PyErr) -> Fail {
        Fail::Raised(error)
    }
}

pub(super) type Done<T = ()> = Result<T, Fail>;

pub(super) fn refuse<T>(reason: impl Into<String>) -> Done<T> {
    Err(Fail::Refused(Vec::new(), reason.into()))
}

/// Names the step to a part of a value in whatever went wrong there.
pub(super) fn step<T>(done: Done<T>, name: impl FnOnce() -> String) -> Done<T> {
    done.map_err(|fail| match fail {
        Fail::Refused(mut path, reason) => {
            path.push(name());
            Fail::Refused(path, reason)
        }
        raised => raised,
    })
}

/// The steps to a part of a value, given from the innermost outwards, as text. The middle of a very long way helps nobody.
fn path(steps: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut outwards: Vec<&str> = steps.iter().rev().map(String::as_str).collect();
    if outwards.len() > 2 * SHOWN {
        outwards.splice(SHOWN..outwards.len() - SHOWN, ["…"]);
    }
    outwards.concat()
}

/// See [`super::encode()`].
pub(super) fn encode<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    schema: Option<&Schema>,
) -> PyResult<Result<Payload<'py>, String>> {
    match whole(py, value, schema) {
        Ok(payload) => Ok(Ok(payload)),
        Err(Fail::Refused(steps, reason)) => Ok(Err(format!("result{}: {reason}", path(&steps)))),
        // A value whose own code fails when it is looked at is one that cannot be stored; Ctrl-C is not.
        Err(Fail::Raised(error)) if error.is_instance_of::<PyException>(py) => Ok(Err(format!("result: {error}"))),
        Err(Fail::Raised(error)) => Err(error),
    }
}

/// The value by itself: kinds of their own first, then the skeleton.
fn whole<'py>(py: Python<'py>, value: &Bound<'py, PyAny>, schema: Option<&Schema>) -> Done<Payload<'py>> {
    let plain = |kind, bytes: &[u8]| Ok(Payload::owned(kind, false, bytes.to_vec()));
    // SAFETY: the content of a bytes or str object neither moves nor changes while it is referred to.
    let lent = |kind, bytes: &[u8]| Ok(unsafe { Payload::lent(kind, false, value.clone(), bytes, Vec::new()) });
    if value.is_none() {
        return plain(kind::NONE, &[]);
    }
    if let Ok(array) = value.cast_exact::<PyUntypedArray>() {
        return arrays::encode(array)?.or_else(refuse);
    }
    if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        return lent(kind::BYTES, bytes.as_bytes());
    }
    if let Ok(text) = value.cast_exact::<PyString>() {
        if let Ok(text) = text.to_str() {
            return lent(kind::STR, text.as_bytes());
        }
    } else if let Ok(float) = value.cast_exact::<PyFloat>() {
        return plain(kind::FLOAT, &float.value().to_le_bytes());
    } else if let Ok(bool) = value.cast_exact::<PyBool>() {
        return plain(if bool.is_true() { kind::TRUE } else { kind::FALSE }, &[]);
    } else if let Ok(int) = value.cast_exact::<PyInt>() {
        if let Ok(int) = int.extract::<i64>() {
            return plain(kind::INT, &int.to_le_bytes());
        }
    } else if !value.is_exact_instance_of::<PyDict>() && !value.is_exact_instance_of::<PyList>() {
        if torch::is_tensor(value)? {
            return torch::encode(value)?.or_else(refuse);
        }
        if let Some(library) = device::Library::of(value)? {
            return library.view(value, false)?.map_or_else(refuse, |view| Ok(view.lend()));
        }
    }
    let mut encoder = Encoder { py, writer: Writer::new(), schema, open: Vec::new(), floor: Floor::of_this_thread() };
    encoder.value(value)?;
    let writer = encoder.writer;
    // Behind the tensors comes the skeleton, for which they may have to move.
    let (kind, aligned, bytes) = released_from(py, COPY_FROM, writer.len(), || writer.finish());
    Ok(Payload::owned(kind, aligned, bytes))
}

/// Writes one value's skeleton.
pub(super) struct Encoder<'a, 'py> {
    pub py: Python<'py>,
    pub writer: Writer,
    pub schema: Option<&'a Schema>,
    /// The containers that are being written, outermost first.
    open: Vec<*mut ffi::PyObject>,
    floor: Floor,
}

impl<'py> Encoder<'_, 'py> {
    /// Adds a value.
    pub fn value(&mut self, value: &Bound<'py, PyAny>) -> Done {
        self.room(16)?;
        if value.is_none() {
            self.writer.none();
        } else if let Ok(text) = value.cast_exact::<PyString>() {
            self.text(text)?;
        } else if let Ok(float) = value.cast_exact::<PyFloat>() {
            self.writer.float(float.value());
        } else if let Ok(int) = value.cast_exact::<PyInt>() {
            self.int(int)?;
        } else if let Ok(bool) = value.cast_exact::<PyBool>() {
            self.writer.bool(bool.is_true());
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            self.within(value, |this| this.list(list))?;
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            self.within(value, |this| this.dict(dict))?;
        } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            self.within(value, |this| this.tuple(tuple))?;
        } else if let Ok(array) = value.cast_exact::<PyUntypedArray>() {
            arrays::View::new(array, false)?.and_then(|view| view.write(&mut self.writer)).or_else(refuse)?;
        } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
            self.room(bytes.as_bytes().len())?;
            self.writer.bytes(bytes.as_bytes());
        } else {
            self.rarer(value)?;
        }
        Ok(())
    }

    /// The types that are looked for last: the built-in ones, those of the caller's own, those of libraries.
    /// By itself, so that lists and dicts, which nest, need no stack for it.
    #[inline(never)]
    fn rarer(&mut self, value: &Bound<'py, PyAny>) -> Done {
        if let Ok(set) = value.cast_exact::<PySet>() {
            return self.within(value, |this| this.set(ext::SET, set.as_any()));
        }
        if let Ok(set) = value.cast_exact::<PyFrozenSet>() {
            return self.within(value, |this| this.set(ext::FROZENSET, set.as_any()));
        }
        if registered::write(self, value)? || records::write(self, value)? {
            return Ok(());
        }
        self.leaf(value)
    }

    /// What holds no others, of the types that are looked for last.
    #[inline(never)]
    fn leaf(&mut self, value: &Bound<'py, PyAny>) -> Done {
        if let Ok(bytes) = value.cast_exact::<PyByteArray>() {
            return self.blob(ext::BYTEARRAY, &bytes.to_vec());
        }
        if let Ok(complex) = value.cast_exact::<PyComplex>() {
            // SAFETY: an exact complex; neither call can fail for one.
            let (real, imaginary) =
                unsafe { (ffi::PyComplex_RealAsDouble(value.as_ptr()), ffi::PyComplex_ImagAsDouble(complex.as_ptr())) };
            self.writer.complex(real, imaginary);
            return Ok(());
        }
        let class = value.get_type();
        if moments::write(self, value, &class)? {
            return Ok(());
        }
        if dtypes::ml_dtype_of_class(class.as_any())?.is_some() {
            return arrays::write_scalar(value, &mut self.writer)?.or_else(refuse);
        }
        if torch::is_tensor(value)? {
            return torch::write(value, &mut self.writer)?.or_else(refuse);
        }
        if let Some(library) = device::Library::of(value)? {
            return library.view(value, false)?.and_then(|view| view.write(&mut self.writer)).or_else(refuse);
        }
        refuse(records::advice(value, &class)?)
    }

    /// An extension that is nothing but bytes.
    pub fn blob(&mut self, code: i8, bytes: &[u8]) -> Done {
        self.room(bytes.len())?;
        self.writer.extension(code, bytes);
        Ok(())
    }

    fn room(&self, more: usize) -> Done {
        if self.writer.has_room(more) {
            return Ok(());
        }
        refuse(format!("larger than {} MiB, its arrays not counted", MAX_SKELETON_BYTES >> 20))
    }

    /// Runs `write` for a container, unless it is being written already or nests too deep.
    pub fn within(&mut self, container: &Bound<'py, PyAny>, write: impl FnOnce(&mut Self) -> Done) -> Done {
        if self.open.contains(&container.as_ptr()) {
            return refuse("contains itself");
        }
        if self.open.len() == MAX_DEPTH {
            return refuse(format!("nests deeper than {MAX_DEPTH} levels"));
        }
        if self.floor.is_near() {
            return refuse(SmallStack::of_this_thread().to_string());
        }
        self.open.push(container.as_ptr());
        let done = write(self);
        self.open.pop();
        done
    }

    /// How many values a container announces.
    pub fn count(&self, len: usize) -> Done<u32> {
        self.room(len)?;
        // The room is far below 4 Gi.
        Ok(len as u32)
    }

    fn text(&mut self, text: &Bound<'py, PyString>) -> Done {
        match text.to_str() {
            Ok(text) => {
                self.room(text.len())?;
                self.writer.str(text);
                Ok(())
            }
            Err(_) => self.blob(ext::SURROGATES, surrogates(text)?.as_bytes()),
        }
    }

    fn int(&mut self, int: &Bound<'py, PyInt>) -> Done {
        if let Ok(small) = int.extract::<i64>() {
            self.writer.int(small);
        } else if let Ok(large) = int.extract::<u64>() {
            self.writer.uint(large);
        } else {
            let bits: usize = int.call_method0(intern!(self.py, "bit_length"))?.extract()?;
            self.room(bits / 8 + 1)?;
            let kwargs = PyDict::new(self.py);
            kwargs.set_item(intern!(self.py, "signed"), true)?;
            let bytes = int.call_method(intern!(self.py, "to_bytes"), (bits / 8 + 1, "little"), Some(&kwargs))?;
            self.writer.big_int(bytes.cast::<PyBytes>().map_err(PyErr::from)?.as_bytes());
        }
        Ok(())
    }

    fn list(&mut self, list: &Bound<'py, PyList>) -> Done {
        let len = list.len();
        self.writer.list(self.count(len)?);
        for index in 0..len {
            // Code of the caller's own may run in between, and shorten the list.
            let Ok(item) = list.get_item(index) else { break };
            step(self.value(&item), || format!("[{index}]"))?;
        }
        if list.len() == len { Ok(()) } else { refuse("changed while it was being stored") }
    }

    fn tuple(&mut self, tuple: &Bound<'py, PyTuple>) -> Done {
        let mark = self.writer.group(ext::TUPLE, self.count(tuple.len())?);
        for (index, item) in tuple.iter().enumerate() {
            step(self.value(&item), || format!("[{index}]"))?;
        }
        self.writer.close(mark);
        Ok(())
    }

    /// The pairs of a dict, as they are now: values of the caller's own may change it while they are looked at.
    pub fn dict(&mut self, dict: &Bound<'py, PyDict>) -> Done {
        let items = dict.items();
        self.writer.dict(self.count(items.len())?);
        for pair in items.iter() {
            let (key, value) = pair.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>()?;
            step(self.value(&key), || format!("[key {}]", shown(&key)))?;
            step(self.value(&value), || format!("[{}]", shown(&key)))?;
        }
        Ok(())
    }

    /// The members of a set, as they are now.
    pub fn set(&mut self, code: i8, set: &Bound<'py, PyAny>) -> Done {
        let members = set.try_iter()?.collect::<PyResult<Vec<_>>>()?;
        let mark = self.writer.group(code, self.count(members.len())?);
        for member in &members {
            step(self.value(member), || format!("{{{}}}", shown(member)))?;
        }
        self.writer.close(mark);
        Ok(())
    }
}

/// UTF-8 of a text with lone surrogates, which are encoded like other code points.
pub(super) fn surrogates<'py>(text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyBytes>> {
    // SAFETY: a str and two C strings; the result is a new bytes object, or null with an exception set.
    unsafe {
        let bytes = ffi::PyUnicode_AsEncodedString(text.as_ptr(), c"utf-8".as_ptr(), c"surrogatepass".as_ptr());
        Ok(Bound::from_owned_ptr_or_err(text.py(), bytes)?.cast_into_unchecked())
    }
}

/// A key or member in a path, shortened; only of types whose repr is Python's own.
fn shown(value: &Bound<'_, PyAny>) -> String {
    let plain = value.is_exact_instance_of::<PyString>()
        || value.is_exact_instance_of::<PyInt>()
        || value.is_exact_instance_of::<PyFloat>()
        || value.is_exact_instance_of::<PyBytes>();
    // Nobody else's repr is asked: it may run code of the caller's own, or need more stack than there is.
    let text = if plain { value.repr().ok() } else { None };
    match text {
        Some(text) => {
            let text = text.to_string_lossy();
            if text.chars().count() <= 40 { text.into_owned() } else { text.chars().take(39).chain(['…']).collect() }
        }
        None => value.get_type().name().map_or("…".into(), |name| format!("a {name}")),
    }
}

/// The exact type, as `module.Name`.
pub(super) fn type_name(class: &Bound<'_, PyType>) -> String {
    class.fully_qualified_name().map_or_else(|_| "an object".into(), |name| name.to_string_lossy().into_owned())
}
