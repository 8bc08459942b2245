//! A decorated function bound to an instance or a class, as a method is.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// What attribute access on an instance gives: a call, a key, … with the instance in front of the arguments.
#[pyclass(frozen, module = "infercache._core")]
pub struct BoundMemoized {
    memoized: Py<PyAny>,
    instance: Py<PyAny>,
}

/// The descriptor protocol. The decorated object says what kind of function it is: a plain one binds instances, a
/// class method the class, a static method nothing.
pub fn bind<'py>(
    memoized: Bound<'py, PyAny>,
    instance: Option<Bound<'py, PyAny>>,
    owner: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = memoized.py();
    let kind: u8 = memoized.getattr("_binds")?.extract()?;
    let instance = match kind {
        BINDS_CLASS => owner.or_else(|| instance.map(|instance| instance.get_type().into_any())),
        BINDS_NOTHING => None,
        _ => instance,
    };
    match instance {
        None => Ok(memoized),
        Some(instance) => {
            let bound = BoundMemoized { memoized: memoized.unbind(), instance: instance.unbind() };
            Ok(Bound::new(py, bound)?.into_any())
        }
    }
}

const BINDS_INSTANCE: u8 = 0;
const BINDS_CLASS: u8 = 1;
const BINDS_NOTHING: u8 = 2;

impl BoundMemoized {
    fn prepend<'py>(&self, py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, Prepended { first: Some(self.instance.bind(py).clone()), rest: args, next: 0 })
    }

    fn method<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.memoized.bind(py).call_method(name, self.prepend(py, args)?, kwargs)
    }
}

struct Prepended<'a, 'py> {
    first: Option<Bound<'py, PyAny>>,
    rest: &'a Bound<'py, PyTuple>,
    next: usize,
}

impl<'py> Iterator for Prepended<'_, 'py> {
    type Item = Bound<'py, PyAny>;

    fn next(&mut self) -> Option<Self::Item> {
        self.first.take().or_else(|| {
            self.next += 1;
            self.rest.get_item(self.next - 1).ok()
        })
    }
}

impl ExactSizeIterator for Prepended<'_, '_> {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len() - self.next
    }
}

#[pymethods]
impl BoundMemoized {
    #[pyo3(signature = (*args, **kwargs))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.memoized.bind(py).call(self.prepend(py, args)?, kwargs)
    }

    /// The key of a call with these arguments.
    #[pyo3(signature = (*args, **kwargs))]
    fn key<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.method(py, "key", args, kwargs)
    }

    /// The answer if the cache has it, else None.
    #[pyo3(signature = (*args, **kwargs))]
    fn peek<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.method(py, "peek", args, kwargs)
    }

    /// Computes the answer anew and stores it.
    #[pyo3(signature = (*args, **kwargs))]
    fn refresh<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.method(py, "refresh", args, kwargs)
    }

    /// Purges the answer.
    #[pyo3(signature = (*args, **kwargs))]
    fn invalidate<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.method(py, "invalidate", args, kwargs)
    }

    /// The decorated function.
    #[getter]
    fn __func__(&self, py: Python<'_>) -> Py<PyAny> {
        self.memoized.clone_ref(py)
    }

    /// What it is bound to.
    #[getter]
    fn __self__(&self, py: Python<'_>) -> Py<PyAny> {
        self.instance.clone_ref(py)
    }

    /// The method that was decorated, bound.
    #[getter]
    fn __wrapped__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let function = self.memoized.bind(py).getattr("__wrapped__")?;
        py.import("types")?.getattr("MethodType")?.call1((function, &self.instance))
    }

    #[getter]
    fn __doc__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.memoized.bind(py).getattr("__doc__")
    }

    /// Everything else is the decorated function's: its name, its code, …
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.memoized.bind(py).getattr(name)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("<{} bound to {}>", self.memoized.bind(py).repr()?, self.instance.bind(py).repr()?))
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast_exact::<Self>().is_ok_and(|other| {
            let other = other.get();
            self.memoized.is(&other.memoized) && self.instance.is(&other.instance)
        })
    }

    fn __hash__(&self) -> usize {
        self.memoized.as_ptr() as usize ^ (self.instance.as_ptr() as usize).rotate_left(32)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.memoized)?;
        visit.call(&self.instance)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("BINDS_INSTANCE", BINDS_INSTANCE)?;
    module.add("BINDS_CLASS", BINDS_CLASS)?;
    module.add("BINDS_NOTHING", BINDS_NOTHING)?;
    module.add_class::<BoundMemoized>()
}
