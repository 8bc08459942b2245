//! The extension module `infercache._core`: thin bindings over `infercache-core`.
#![warn(missing_docs)]

use pyo3::prelude::*;

/// Entries are the allocations that count here; Python's own objects keep Python's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod arguments; // a call's arguments to their document, without inspect.bind
mod attached; // Python's objects that all threads share
mod authority; // the authority of a deployment, as the follower feeds it
mod dlpack; // tensors that other libraries lend
mod clock; // time that a test moves by hand
mod document; // Python objects to the canonical document
mod edge; // bodies of requests and answers before a model server
mod envelope; // envelopes of a shared tier to bytes and back
mod errors; // one conversion from the core's error to Python's
mod fingerprint; // regions of a model's files, hashed
mod flight; // the Python face of flights
#[allow(clippy::disallowed_types)] // PyO3's own, in the list of freed keys, which `lazy` has made at import
mod key; // Key, key(), canonical_json(), explain()
mod lazy; // what is made at first use, in a process that may fork
mod memoized; // a decorated function: hits answered without a Python frame
mod opened; // an opened cache, and the keys that callers pass to it
mod released; // work without the interpreter, and the way back
mod log_lines; // lines of a log to columns
mod replay; // a log through a cache, on a clock that it moves
mod store; // the base class of Cache
mod tiered; // between the cache and its shared tier
mod value; // results to bytes and back

/// The native part of infercache; import `infercache` instead.
#[pymodule(gil_used = true)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    attached::register(module)?;
    released::register(module)?;
    key::register(module)?;
    dlpack::register(module)?;
    document::register(module)?;
    fingerprint::register(module)?;
    value::register(module)?;
    authority::register(module)?;
    clock::register(module)?;
    store::register(module)?;
    log_lines::register(module)?;
    replay::register(module)?;
    tiered::register(module)?;
    flight::register(module)?;
    envelope::register(module)?;
    edge::register(module)?;
    arguments::register(module)?;
    memoized::register(module)?;
    lazy::warm_up(module)
}
