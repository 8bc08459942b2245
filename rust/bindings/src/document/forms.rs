//! Registered forms: how a type of the caller's own enters a key.

use crate::errors;
use infercache_core::error::Error;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How instances of exactly one type enter a key.
pub struct Form {
    _class: Py<PyType>,
    /// Stands in the document: forms of different names never meet.
    pub name: String,
    /// Called with the instance.
    pub function: Py<PyAny>,
}

/// By the type's address; [`Form::_class`] keeps the type alive, so no other takes its address.
static FORMS: Mutex<Option<HashMap<usize, std::sync::Arc<Form>>>> = Mutex::new(None);
/// How many forms there are, so that a walk without any takes no lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn forms() -> MutexGuard<'static, Option<HashMap<usize, std::sync::Arc<Form>>>> {
    FORMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether any form is registered.
#[inline]
pub fn any() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// The form of this value's exact type.
pub fn of(value: &Bound<'_, PyAny>) -> Option<std::sync::Arc<Form>> {
    forms().as_ref()?.get(&(value.get_type().as_type_ptr() as usize)).cloned()
}

/// Says how instances of exactly `type` enter a key: as `{"$form":{"name":name,"value":…}}` with the form of what
/// `function(instance)` returns. Registering the same type again replaces its form.
#[pyfunction]
#[pyo3(signature = (r#type, name, function))]
pub fn register_form(
    py: Python<'_>,
    r#type: &Bound<'_, PyAny>,
    name: &Bound<'_, PyAny>,
    function: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let class = r#type
        .cast::<PyType>()
        .map_err(|_| type_error(format!("register_form needs a class, not {}", crate::document::type_name(r#type))))?;
    let name = name.cast::<PyString>().map_err(|_| type_error("the name of a form must be text"))?;
    let name = name.to_str().map_err(|_| invalid(py, "the name of a form must not contain lone surrogates"))?;
    if name.is_empty() {
        return Err(invalid(py, "the name of a form must not be empty: it tells forms of different types apart"));
    }
    if !function.is_callable() {
        return Err(type_error(format!("{name:?}: the function of a form must be callable")));
    }
    let address = class.as_type_ptr() as usize;
    let form = Form { _class: class.clone().unbind(), name: name.to_owned(), function: function.clone().unbind() };
    let replaced = {
        let mut forms = forms();
        let forms = forms.get_or_insert_default();
        let replaced = forms.insert(address, std::sync::Arc::new(form));
        COUNT.store(forms.len(), Ordering::Relaxed);
        replaced
    };
    drop(replaced); // outside the lock: it may run Python code
    Ok(())
}

fn type_error(text: impl Into<String>) -> PyErr {
    pyo3::exceptions::PyTypeError::new_err(text.into())
}

fn invalid(py: Python<'_>, reason: &str) -> PyErr {
    errors::to_python(py, &Error::InvalidArgument { reason: reason.to_owned() })
}
