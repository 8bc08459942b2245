//! Arrays of CuPy and JAX as results: stored as host bytes, given back by their library on the device of the call.
//!
//! `infercache.gpu.results` knows the libraries; here is only what a type and a flag mean. (torch's tensors are in `torch`.)

use crate::lazy::{Lazy, intern};
use infercache_core::value::{FLAG_DEVICE, FLAG_JAX, FLAG_TORCH, Tensor};
use numpy::PyUntypedArray;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::arrays::View;

/// A library whose arrays are not on the host, or need not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Library {
    Cupy,
    Jax,
}

impl Library {
    /// Whose array a value is, by its exact type.
    pub fn of(value: &Bound<'_, PyAny>) -> PyResult<Option<Library>> {
        static CUPY: Lazy<Py<PyType>> = Lazy::new();
        static JAX: Lazy<Py<PyType>> = Lazy::new();
        let (py, class) = (value.py(), value.get_type());
        for (place, library) in [(&CUPY, Library::Cupy), (&JAX, Library::Jax)] {
            if place.get(py).is_some_and(|known| class.is(known)) {
                return Ok(Some(library));
            }
        }
        let module = class.module()?;
        let (package, name) = (module.to_str()?.split('.').next().unwrap_or_default(), class.name()?);
        let (place, library) = match package {
            "cupy" if name == "ndarray" => (&CUPY, Library::Cupy),
            "jaxlib" | "jax" if name == "ArrayImpl" => (&JAX, Library::Jax),
            _ => return Ok(None),
        };
        place.keep(py, class.unbind());
        Ok(Some(library))
    }

    /// What a stored tensor is, if it is to be given back by one of these.
    pub fn of_stored(tensor: &Tensor<'_>) -> Option<Library> {
        match tensor.flags & (FLAG_TORCH | FLAG_JAX | FLAG_DEVICE) {
            FLAG_DEVICE => Some(Library::Cupy),
            FLAG_JAX => Some(Library::Jax),
            _ => None,
        }
    }

    fn flag(self) -> u8 {
        match self {
            Library::Cupy => FLAG_DEVICE,
            Library::Jax => FLAG_JAX,
        }
    }

    /// The elements on the host; `Err` is the reason why they cannot be stored.
    pub fn view<'py>(self, array: &Bound<'py, PyAny>, c_order: bool) -> PyResult<Result<View<'py>, String>> {
        let py = array.py();
        let results = py.import(intern!(py, "infercache.gpu.results"))?;
        let elements = match self {
            Library::Cupy => results.call_method1(intern!(py, "elements_of_cupy"), (array,)),
            Library::Jax => results.call_method1(intern!(py, "elements_of_jax"), (array,)),
        };
        let elements = match elements {
            Ok(elements) => elements.cast_into::<PyUntypedArray>()?,
            Err(error) if error.is_instance_of::<PyTypeError>(py) => return Ok(Err(error.value(py).to_string())),
            Err(error) => return Err(error),
        };
        Ok(View::new(&elements, c_order)?.map(|mut view| {
            view.flags |= self.flag();
            view
        }))
    }

    /// The array of its elements on the host.
    pub fn restore<'py>(self, elements: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = elements.py();
        let results = py.import(intern!(py, "infercache.gpu.results"))?;
        match self {
            Library::Cupy => results.call_method1(intern!(py, "cupy_array"), (elements,)),
            Library::Jax => results.call_method1(intern!(py, "jax_array"), (elements,)),
        }
    }
}

/// The same tensor as an array of the host.
pub(super) fn on_host<'a>(tensor: &Tensor<'a>) -> Tensor<'a> {
    let mut tensor = *tensor;
    tensor.flags &= !(FLAG_DEVICE | FLAG_JAX);
    tensor
}
