//! Work without the interpreter, and how a thread comes back from it when the interpreter goes down.
//!
//! CPython before 3.14 ends a daemon thread that asks for the interpreter again while it is being finalised, by unwinding
//! its stack (`pthread_exit`), and a Rust frame with anything to clean up aborts the process then. So a thread that comes
//! back from here after `atexit` was reached sleeps instead, as CPython 3.14 has such threads do; and the thread that
//! finalises waits for those that were just about to come back.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes from which hashing or parsing them without the interpreter pays: below, giving it up and getting it back costs
/// more than the work.
pub const WORK_FROM: usize = 32 << 10;
/// Bytes from which copying them does, which is eight times as fast.
pub const COPY_FROM: usize = 256 << 10;

static LEAVING: AtomicBool = AtomicBool::new(false);
/// Threads that found the interpreter staying and ask for it again.
static RETURNING: AtomicU64 = AtomicU64::new(0);
/// How long the end of the process waits for them: they only need their turn.
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    /// This thread runs the end of the process, so it may come back whatever happens.
    static LEAVES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `work` without the interpreter. It must not touch anything of Python's.
pub fn released<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    let leaves = LEAVES.get();
    let done = py.detach(move || {
        let done = work();
        RETURNING.fetch_add(1, Ordering::SeqCst);
        if LEAVING.load(Ordering::SeqCst) && !leaves {
            RETURNING.fetch_sub(1, Ordering::SeqCst);
            loop {
                thread::sleep(Duration::from_secs(3_600));
            }
        }
        done
    });
    RETURNING.fetch_sub(1, Ordering::SeqCst);
    done
}

/// Runs `work` without the interpreter if it is about so many bytes that this pays; see [`released`].
#[inline]
pub fn released_from<T: Send>(py: Python<'_>, least: usize, bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    if bytes < least { work() } else { released(py, work) }
}

/// For `atexit`: from now on threads stay where they are; waits for those that are on their way back.
#[pyfunction]
fn _leave(py: Python<'_>) {
    LEAVES.set(true);
    LEAVING.store(true, Ordering::SeqCst);
    let began = Instant::now();
    while RETURNING.load(Ordering::SeqCst) > 0 && began.elapsed() < PATIENCE {
        py.detach(|| thread::sleep(Duration::from_millis(1)));
    }
}

/// For the child of a fork: it has none of its parent's threads, so none is on its way back.
#[pyfunction]
fn _alone() {
    RETURNING.store(0, Ordering::SeqCst);
}

/// Has `_leave` called at the end of the process, and `_alone` in the child of a fork.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_leave, module)?)?;
    module.add_function(wrap_pyfunction!(_alone, module)?)?;
    let os = module.py().import("os")?;
    if os.hasattr("register_at_fork")? {
        let hooks = PyDict::new(module.py());
        hooks.set_item("after_in_child", module.getattr("_alone")?)?;
        os.call_method("register_at_fork", (), Some(&hooks))?;
    }
    module.py().import("atexit")?.call_method1("register", (module.getattr("_leave")?,))?;
    Ok(())
}
