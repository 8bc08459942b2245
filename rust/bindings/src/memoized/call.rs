//! Calling a decorated function without leaving native frames below a model.
//!
//! A hit returns from here. A miss calls Python, which runs the model, and that may last. If the interpreter goes down
//! meanwhile, CPython before 3.14 ends a daemon thread that asks for the interpreter again by unwinding its stack
//! (`pthread_exit`), and a Rust frame that has anything to clean up, as every frame of PyO3's does, aborts the process
//! then. So `__call__` is a type slot of our own: [`begin`] does all the work and has returned before Python is called
//! from [`call`], which owns nothing that a destructor would have to free.

use pyo3::PyClass;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use std::any::Any;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// What a call comes to.
pub enum Next<'py> {
    /// Its answer.
    Answer(Bound<'py, PyAny>),
    /// A callable and its arguments, whose result is the answer.
    Call(Bound<'py, PyAny>, Bound<'py, PyTuple>),
}

/// A class whose instances are called through [`callable_type`].
pub trait Callable: PyClass {
    /// What a call with these arguments comes to.
    fn next<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Next<'py>>;
}

/// `Next` without destructors: owned references, or null for an error that is set (no callee, no answer).
#[derive(Clone, Copy)]
struct Raw {
    answer: *mut ffi::PyObject,
    callee: *mut ffi::PyObject,
    arguments: *mut ffi::PyObject,
}

const FAILED: Raw = Raw { answer: ptr::null_mut(), callee: ptr::null_mut(), arguments: ptr::null_mut() };

#[allow(clashing_extern_declarations)] // pyo3-ffi declares it as a function that never unwinds
unsafe extern "C-unwind" {
    fn PyObject_Call(
        callee: *mut ffi::PyObject,
        arguments: *mut ffi::PyObject,
        names: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

/// The type slot `tp_call`.
///
/// # Safety
/// As the interpreter calls it: attached, `slf` an instance of `T`, `args` a tuple, `kwargs` a dict or null.
unsafe extern "C-unwind" fn call<T: Callable>(
    slf: *mut ffi::PyObject,
    args: *mut ffi::PyObject,
    kwargs: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the caller's promise.
    let next = unsafe { begin::<T>(slf, args, kwargs) };
    if next.callee.is_null() {
        return next.answer;
    }
    // SAFETY: two references that are ours, given back once.
    unsafe {
        let answer = PyObject_Call(next.callee, next.arguments, ptr::null_mut());
        ffi::Py_DecRef(next.callee);
        ffi::Py_DecRef(next.arguments);
        answer
    }
}

/// Everything of a call but Python's part. No panic leaves it.
///
/// # Safety
/// As [`call`].
#[inline(never)]
unsafe fn begin<T: Callable>(slf: *mut ffi::PyObject, args: *mut ffi::PyObject, kwargs: *mut ffi::PyObject) -> Raw {
    let begun = catch_unwind(AssertUnwindSafe(|| {
        Python::attach(|py| {
            // SAFETY: the caller's promise; the references are borrowed for the length of this call.
            let (slf, args, kwargs) = unsafe {
                (
                    Bound::from_borrowed_ptr(py, slf).cast_into_unchecked::<T>(),
                    Bound::from_borrowed_ptr(py, args).cast_into_unchecked::<PyTuple>(),
                    Bound::from_borrowed_ptr_or_opt(py, kwargs).map(|kwargs| kwargs.cast_into_unchecked::<PyDict>()),
                )
            };
            match T::next(&slf, &args, kwargs.as_ref()) {
                Ok(Next::Answer(answer)) => Raw { answer: answer.into_ptr(), ..FAILED },
                Ok(Next::Call(callee, arguments)) => {
                    Raw { callee: callee.into_ptr(), arguments: arguments.into_ptr(), ..FAILED }
                }
                Err(error) => {
                    error.restore(py);
                    FAILED
                }
            }
        })
    }));
    begun.unwrap_or_else(|payload| {
        Python::attach(|py| {
            PyRuntimeError::new_err(format!("a bug in infercache: {}", text_of(&*payload))).restore(py)
        });
        FAILED
    })
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

/// A class below `T` whose instances are callable; `name` is its full name.
pub fn callable_type<'py, T: Callable>(py: Python<'py>, name: &'static CStr) -> PyResult<Bound<'py, PyAny>> {
    let base: Bound<'py, PyType> = py.get_type::<T>();
    let slot = call::<T> as unsafe extern "C-unwind" fn(_, _, _) -> _;
    let mut slots = [
        ffi::PyType_Slot { slot: ffi::Py_tp_call as c_int, pfunc: slot as *mut c_void },
        ffi::PyType_Slot { slot: 0, pfunc: ptr::null_mut() },
    ];
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        basicsize: 0, // the base's
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_BASETYPE) as c_uint,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the specification is whole and ends with an empty slot; the interpreter copies what it keeps but for the
    // name, which is static. Instances of the new class are instances of `T`, as the slot asks.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpecWithBases(&mut spec, base.as_ptr())) }
}
