//! Time that a test or a simulator moves by hand.

use crate::errors;
use infercache_core::error::Error;
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds that only the caller moves: for tests and simulators.
#[pyclass(frozen, module = "infercache._core")]
pub struct ManualClock(pub Arc<AtomicU64>);

#[pymethods]
impl ManualClock {
    /// A clock that stands at `seconds`.
    #[new]
    #[pyo3(signature = (seconds = 0.0))]
    fn new(py: Python<'_>, seconds: f64) -> PyResult<ManualClock> {
        Ok(ManualClock(Arc::new(AtomicU64::new(passed(py, seconds)?))))
    }

    /// Moves the clock on by `seconds`.
    fn advance(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        self.0.fetch_add(passed(py, seconds)?, Ordering::Relaxed);
        Ok(())
    }
}

/// The milliseconds of a clock that moves by `seconds`: forwards, and not for longer than a clock can count.
fn passed(py: Python<'_>, seconds: f64) -> PyResult<u64> {
    const MOST: f64 = 1e12; // thirty thousand years
    if (0.0..=MOST).contains(&seconds) {
        return Ok(milliseconds(seconds));
    }
    let reason = format!("seconds={seconds:?}: a clock moves forwards, by at most {MOST:?} seconds");
    Err(errors::to_python(py, &Error::InvalidArgument { reason }))
}

/// Seconds to whole milliseconds; the caller has checked that they are not negative.
pub fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

/// Adds this module's class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ManualClock>()
}
