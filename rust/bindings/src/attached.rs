//! What the process remembers of Python's objects, in a process that may fork at any moment.
//!
//! Nothing of Python's may be in a `thread_local!`: it would be dropped when its thread ends, which then has no
//! interpreter any more. PyO3 keeps such references in a pool until somebody has it again, under a mutex that from the
//! first one on every call takes; a process that forks while another thread holds it without the interpreter has a child
//! that waits for it for ever. So this extension is built without that pool (`.cargo/config.toml`), and drops nothing
//! of Python's without the interpreter: see docs/decisions/0024-references-without-the-interpreter.md.

use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};

/// A place for something that holds Python's objects, shared by all threads.
pub struct Attached<T>(Mutex<T>);

impl<T> Attached<T> {
    /// A place with this in it.
    pub const fn new(value: T) -> Attached<T> {
        Attached(Mutex::new(value))
    }

    /// Runs `work` on it. It must run no Python code and give no reference back (return what is replaced instead): it has
    /// the interpreter from begin to end, so at a fork no thread is inside, and it cannot come here a second time.
    #[inline]
    pub fn with<R>(&self, _py: Python<'_>, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What this build does with a reference that is dropped without the interpreter.
const DETACHED_DROPS: &str = match (cfg!(pyo3_disable_reference_pool), cfg!(pyo3_leak_on_drop_without_reference_pool)) {
    (false, _) => "pool",
    (true, false) => "abort",
    (true, true) => "leak",
};

/// Tells what this build does with a reference that is dropped without the interpreter.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DETACHED_DROPS", DETACHED_DROPS)
}
