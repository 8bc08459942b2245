//! One conversion from the core's error to Python's tree, which `infercache/errors.py` draws.

use crate::lazy::Lazy;
use infercache_core::error::Error;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// The exception class of this name in `infercache.errors`.
pub fn class<'py>(py: Python<'py>, name: &'static str) -> PyResult<Bound<'py, PyType>> {
    static MODULE: Lazy<Py<PyModule>> = Lazy::new();
    let module = MODULE.get_or_make(py, || py.import("infercache.errors").map(Bound::unbind))?;
    Ok(module.bind(py).getattr(name)?.cast_into::<PyType>()?)
}

/// The Python exception for an error of the core.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let name = match error {
        Error::UnsupportedInput { .. } => "UnsupportedInput",
        Error::InvalidJson { .. } => "InvalidJSON",
        Error::CorruptValue { .. } => "CorruptValue",
        _ => "InvalidArgument",
    };
    match class(py, name) {
        Ok(class) => PyErr::from_type(class, error.to_string()),
        Err(failed) => failed,
    }
}
