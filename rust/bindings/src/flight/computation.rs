//! The run of a model, as Python carries it: a context variable tells code which computation it is part of.

use crate::lazy::Lazy;
use infercache_core::fence::Stamp;
use infercache_core::flight;
use pyo3::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Computations that run now, anywhere in the process. While there are none, a hit has nobody to tell its stamp to.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// The context variable that carries the computation which code is part of: tasks and `asyncio.to_thread` inherit it.
pub fn current(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CURRENT: Lazy<Py<PyAny>> = Lazy::new();
    let made = || -> PyResult<Py<PyAny>> {
        let options = pyo3::types::PyDict::new(py);
        options.set_item("default", py.None())?;
        Ok(py.import("contextvars")?.call_method("ContextVar", ("infercache_computation",), Some(&options))?.unbind())
    };
    Ok(CURRENT.get_or_make(py, made)?.bind(py))
}

/// A cached answer of this stamp is handed to whoever runs here: a computation that uses it carries the smaller stamp.
#[inline]
pub fn used(py: Python<'_>, stamp: u64) -> PyResult<()> {
    if RUNNING.load(Ordering::Relaxed) == 0 { Ok(()) } else { tell_current(py, stamp) }
}

#[cold]
fn tell_current(py: Python<'_>, stamp: u64) -> PyResult<()> {
    let computation = current(py)?.call_method0("get")?;
    if let Ok(computation) = computation.cast_exact::<Computation>() {
        computation.get().inner.used(Stamp::from_word(stamp));
    }
    Ok(())
}

/// The stamp that what runs here would carry if it ended now, `now` being the present one.
pub fn stamp_here(py: Python<'_>, now: Stamp) -> PyResult<Stamp> {
    let computation = current(py)?.call_method0("get")?;
    Ok(computation.cast_exact::<Computation>().map_or(now, |computation| computation.get().inner.stamp(now)))
}

/// A run of a model, carried by a context variable: see `infercache_core::flight`.
#[pyclass(frozen, module = "infercache._core")]
pub struct Computation {
    pub(super) inner: Arc<flight::Computation>,
    began: Instant,
    seconds: OnceLock<f32>,
}

impl Computation {
    /// The model is about to run.
    pub(super) fn begin(inner: Arc<flight::Computation>) -> Computation {
        RUNNING.fetch_add(1, Ordering::Relaxed);
        Computation { inner, began: Instant::now(), seconds: OnceLock::new() }
    }
}

#[pymethods]
impl Computation {
    /// The model has returned: nothing that still carries this computation is part of it. Idempotent.
    fn end(&self) {
        if self.seconds.set(self.began.elapsed().as_secs_f32()).is_ok() {
            self.inner.end();
            // In the child of a fork the count began anew, while this computation may be of the parent's.
            let _ = RUNNING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |running| running.checked_sub(1));
        }
    }

    /// Seconds that the run took.
    #[getter]
    pub fn seconds(&self) -> f32 {
        self.seconds.get().copied().unwrap_or_else(|| self.began.elapsed().as_secs_f32())
    }
}

impl Drop for Computation {
    fn drop(&mut self) {
        self.end();
    }
}

/// In the child of a fork no computation runs.
pub fn forget_running() {
    RUNNING.store(0, Ordering::Relaxed);
}
