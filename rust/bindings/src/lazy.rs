//! What is made at first use, in a process that may fork at any moment.
//!
//! `pyo3::sync::PyOnceLock`, and with it `pyo3::intern!`, gives the interpreter up while it marks itself as being made: a
//! thread that forks in that moment leaves its child with a lock that nobody will ever finish, and the child waits for it
//! for ever. Here a value is made first, with nothing marked, and then put in its place without giving the interpreter up
//! in between; two threads may both make it, and the first one's stays.

use crate::key::Key;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::sync::OnceLock;

/// A place for a value that is made at first use.
pub struct Lazy<T>(OnceLock<T>);

impl<T> Default for Lazy<T> {
    fn default() -> Lazy<T> {
        Lazy::new()
    }
}

impl<T> Lazy<T> {
    /// An empty place.
    pub const fn new() -> Lazy<T> {
        Lazy(OnceLock::new())
    }

    /// The value, if it was made.
    #[inline]
    pub fn get(&self, _py: Python<'_>) -> Option<&T> {
        self.0.get()
    }

    /// The value; `make` may be called although another thread makes it too.
    #[inline]
    pub fn get_or_make<E>(&self, py: Python<'_>, make: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        match self.0.get() {
            Some(made) => Ok(made),
            None => Ok(self.keep(py, make()?)),
        }
    }

    /// Puts a value here, unless there is one; gives the one that stays.
    #[cold]
    pub fn keep(&self, _py: Python<'_>, made: T) -> &T {
        // Runs no Python code and holds the interpreter throughout, so at a fork no thread is inside.
        let mut made = Some(made);
        self.0.get_or_init(|| made.take().expect("called once"))
    }
}

impl Lazy<Py<PyString>> {
    /// This text as Python's interned object; for [`intern!`].
    #[inline]
    pub fn text<'py>(&self, py: Python<'py>, text: &str) -> &Bound<'py, PyString> {
        match self.get(py) {
            Some(made) => made.bind(py),
            None => self.keep(py, PyString::intern(py, text).unbind()).bind(py),
        }
    }
}

/// A text as a Python object that is made once: a name of an attribute, a module, a method.
macro_rules! intern {
    ($py:expr, $text:expr) => {{
        static TEXT: $crate::lazy::Lazy<pyo3::Py<pyo3::types::PyString>> = $crate::lazy::Lazy::new();
        TEXT.text($py, $text)
    }};
}
pub(crate) use intern;

/// Makes now, while the extension is imported, what PyO3 and the numpy crate would make in such a way at first use, and
/// imports the modules that are called from here: no import is under way then when a process forks.
pub fn warm_up(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    for name in ["infercache.errors", "infercache.bound", "infercache.tensors"] {
        py.import(name)?;
    }
    // NumPy's table of functions, its version, its types.
    let descr = numpy::dtype::<f32>(py);
    numpy::PyArrayDescrMethods::itemsize(&descr);
    py.get_type::<numpy::PyUntypedArray>();
    // The list of keys that were freed.
    Bound::new(py, Key::empty())?;
    // The name of a type; the types of sequences and mappings; what an exception is compared with when it is fetched.
    let class = py.get_type::<Key>();
    class.module()?;
    class.fully_qualified_name()?;
    let none = py.None().into_bound(py);
    let _ = none.cast::<pyo3::types::PySequence>().is_ok() || none.cast::<pyo3::types::PyMapping>().is_ok();
    drop(none.getattr("no such attribute"));
    // How long an iterator is, and whether NumPy's truth values are true.
    py.import("builtins")?.call_method1("iter", ("",))?.try_iter()?.size_hint();
    py.import("numpy")?.getattr("True_")?.extract::<bool>()?;
    Ok(())
}
