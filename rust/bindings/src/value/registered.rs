//! Types given to `register_value`: stored as what their `encode` returns, under the name that they were registered by.
//!
//! The name in stored bytes is looked up in this registry alone: what was never registered in this process is corrupt.

use crate::lazy::Lazy;
use crate::lazy::intern;
use infercache_core::error::Error;
use infercache_core::value::Group;
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};

use super::decode::Decoder;
use super::encode::{Done, Encoder, refuse, step, type_name};
use super::moments;
use crate::errors::to_python;

/// Registered types: by class `(name, encode)`, by name `(class, decode)`.
fn registry(py: Python<'_>) -> &'static (Py<PyDict>, Py<PyDict>) {
    static REGISTRY: Lazy<(Py<PyDict>, Py<PyDict>)> = Lazy::new();
    match REGISTRY.get(py) {
        Some(registry) => registry,
        None => REGISTRY.keep(py, (PyDict::new(py).unbind(), PyDict::new(py).unbind())),
    }
}

/// Says how results of a type are stored: ``encode(value)`` returns what can be stored (built from the types that can),
/// ``decode(stored)`` makes an instance of exactly that type of it again. ``name`` stands for the type in stored bytes.
#[pyfunction]
#[pyo3(signature = (r#type, name, encode, decode))]
pub(super) fn register_value(
    py: Python<'_>,
    r#type: &Bound<'_, PyAny>,
    name: &Bound<'_, PyAny>,
    encode: &Bound<'_, PyAny>,
    decode: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let Ok(class) = r#type.cast::<PyType>() else {
        return Err(PyTypeError::new_err(format!("register_value: type must be a class, not {}", r#type.repr()?)));
    };
    let Ok(name) = name.cast_exact::<PyString>() else {
        return Err(PyTypeError::new_err("register_value: name must be text"));
    };
    if !encode.is_callable() || !decode.is_callable() {
        return Err(PyTypeError::new_err("register_value: encode and decode must be callable"));
    }
    let invalid = |reason: String| Err(to_python(py, &Error::InvalidArgument { reason }));
    if name.is_empty()? || name.to_str().is_err() {
        return invalid("register_value: name must be text that is not empty and has no lone surrogates".into());
    }
    if is_built_in(class)? {
        return invalid(format!("register_value: {} is stored already", type_name(class)));
    }
    let (by_class, by_name) = registry(py);
    if let Some(other) = by_name.bind(py).get_item(name)? {
        let other = other.get_item(0)?.cast_into::<PyType>()?;
        // A module that is loaded again, a notebook's cell that is run again: the same class anew.
        if !other.is(class) && type_name(&other) != type_name(class) {
            return invalid(format!(
                "register_value: the name {} stands for {} already",
                name.repr()?,
                type_name(&other)
            ));
        }
        by_class.bind(py).call_method1(intern!(py, "pop"), (other, py.None()))?;
    }
    if let Some(earlier) = by_class.bind(py).get_item(class)? {
        by_name.bind(py).call_method1(intern!(py, "pop"), (earlier.get_item(0)?, py.None()))?;
    }
    by_class.bind(py).set_item(class, (name, encode))?;
    by_name.bind(py).set_item(name, (class, decode))
}

/// Whether instances of a class are stored without anyone saying how.
fn is_built_in(class: &Bound<'_, PyType>) -> PyResult<bool> {
    let py = class.py();
    let builtins = py.import(intern!(py, "builtins"))?;
    for name in
        ["str", "int", "float", "bool", "bytes", "bytearray", "complex", "list", "tuple", "dict", "set", "frozenset"]
    {
        if class.is(&builtins.getattr(name)?) {
            return Ok(true);
        }
    }
    let none = py.None().into_bound(py).get_type();
    Ok(class.is(&none) || class.is(py.get_type::<numpy::PyUntypedArray>()) || moments::knows(class)?)
}

/// Adds a value whose class is registered; whether it is.
pub(super) fn write<'py>(to: &mut Encoder<'_, 'py>, value: &Bound<'py, PyAny>) -> Done<bool> {
    let by_class = registry(to.py).0.bind(to.py);
    if by_class.is_empty() {
        return Ok(false);
    }
    let Some(found) = by_class.get_item(value.get_type())? else { return Ok(false) };
    let (name, encode): (Bound<'py, PyString>, Bound<'py, PyAny>) = found.extract()?;
    let stored = match encode.call1((value,)) {
        Ok(stored) => stored,
        Err(error) if error.is_instance_of::<PyException>(to.py) => {
            return refuse(format!("the registered encode of {name} raised {error}"));
        }
        Err(error) => return Err(error.into()),
    };
    to.within(value, |to| {
        let mark = to.writer.registered(name.to_str()?);
        step(to.value(&stored), || format!(".encode({name})"))?;
        to.writer.close(mark);
        Ok(())
    })?;
    Ok(true)
}

/// Builds a value of a registered type.
#[inline(never)]
pub(super) fn build<'py>(from: &mut Decoder<'_, 'py>, name: &[u8], group: Group) -> PyResult<Bound<'py, PyAny>> {
    let py = from.py;
    from.look_down()?;
    let name = std::str::from_utf8(name).map_err(|_| from.corrupt("a registered name that is not UTF-8"))?;
    let Some(found) = registry(py).1.bind(py).get_item(name)? else {
        return Err(from.corrupt(format!("no type is registered under {name:?} here")));
    };
    let (class, decode): (Bound<'py, PyType>, Bound<'py, PyAny>) = found.extract()?;
    let stored = from.value()?;
    from.close(group)?;
    let value = decode.call1((stored,))?;
    if !value.get_type().is(&class) {
        let found = type_name(&value.get_type());
        return Err(
            from.corrupt(format!("the registered decode of {name:?} returned {found}, not {}", type_name(&class)))
        );
    }
    Ok(value)
}
