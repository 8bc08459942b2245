//! A decorated function bound to an instance or a class, as a method is.

use crate::lazy::Lazy;
use pyo3::prelude::*;

/// The descriptor protocol. `kind` says what the function is: a plain one binds instances, a class method the class, a
/// static method nothing.
pub fn bind<'py>(
    memoized: Bound<'py, PyAny>,
    kind: u8,
    instance: Option<Bound<'py, PyAny>>,
    owner: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let instance = match kind {
        BINDS_CLASS => owner.or_else(|| instance.map(|instance| instance.get_type().into_any())),
        BINDS_NOTHING => None,
        _ => instance,
    };
    match instance {
        None => Ok(memoized),
        Some(instance) => bound_class(memoized.py())?.call1((memoized, instance)),
    }
}

const BINDS_INSTANCE: u8 = 0;
const BINDS_CLASS: u8 = 1;
const BINDS_NOTHING: u8 = 2;

/// `infercache.bound.Bound`: a `functools.partial`, so that no native frame of ours stands below a model.
fn bound_class(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CLASS: Lazy<Py<PyAny>> = Lazy::new();
    let found = || Ok::<_, PyErr>(py.import("infercache.bound")?.getattr("Bound")?.unbind());
    Ok(CLASS.get_or_make(py, found)?.bind(py))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("BINDS_INSTANCE", BINDS_INSTANCE)?;
    module.add("BINDS_CLASS", BINDS_CLASS)?;
    module.add("BINDS_NOTHING", BINDS_NOTHING)
}
