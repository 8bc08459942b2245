//! What `infercache.fingerprint` needs of the core: regions of files, and arrays, hashed by several threads, and the text at
//! the end.

use crate::released::{WORK_FROM, released, released_from};
use infercache_core::fingerprint::{Failure, Hashing, Region, of_document, workers};
use infercache_core::tensor::{THREADS_FROM, digest_bytes};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyEOFError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// How often a signal is looked for and progress told.
const TICK: Duration = Duration::from_millis(100);

/// Python's exception for what happened to a file: `EOFError` where it is shorter than it was said to be.
fn to_python(failure: &Failure, paths: &[PathBuf]) -> PyErr {
    let path = paths.get(failure.file).cloned().unwrap_or_default();
    match (failure.error.kind(), failure.error.raw_os_error()) {
        (io::ErrorKind::UnexpectedEof, _) => PyEOFError::new_err(path),
        // With its number OSError becomes the subclass that fits: FileNotFoundError, PermissionError, …
        (_, Some(number)) => PyOSError::new_err((number, failure.error.to_string(), path)),
        (_, None) => PyOSError::new_err(failure.error.to_string()),
    }
}

/// Plain BLAKE3 of regions of files: `(place of the path, offset, length)` in bytes.
///
/// `progress` is called with the bytes done, some ten times a second, on the calling thread; what it raises ends the work.
#[pyfunction]
#[pyo3(signature = (paths, regions, progress=None, threads=None))]
fn _hash_regions<'py>(
    py: Python<'py>,
    paths: Vec<PathBuf>,
    regions: Vec<(usize, u64, u64)>,
    progress: Option<Bound<'py, PyAny>>,
    threads: Option<usize>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let regions = regions.into_iter().map(|(file, offset, length)| Region { file, offset, length }).collect();
    let opened = released(py, || Hashing::open(&paths, regions));
    let hashing = opened.map_err(|failure| to_python(&failure, &paths))?;
    work(py, &hashing, progress.as_ref(), threads)?;
    let digests = hashing.digests().map_err(|failure| to_python(&failure, &paths))?;
    Ok(digests.iter().map(|digest| PyBytes::new(py, digest)).collect())
}

/// Plain BLAKE3 of the elements of contiguous arrays as they lie in memory; `progress` as for [`_hash_regions`].
#[pyfunction]
#[pyo3(signature = (arrays, progress=None, threads=None))]
fn _hash_arrays<'py>(
    py: Python<'py>,
    arrays: Vec<Bound<'py, PyUntypedArray>>,
    progress: Option<Bound<'py, PyAny>>,
    threads: Option<usize>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let mut buffers = Vec::with_capacity(arrays.len());
    for array in &arrays {
        if !array.is_c_contiguous() {
            return Err(PyValueError::new_err("the elements of an array lie one after another"));
        }
        let bytes = array.len() * array.dtype().itemsize();
        // SAFETY: a contiguous array's elements, which stay while `arrays` refers to it: `resize` refuses then. (What
        // another thread writes meanwhile is the caller's race.)
        buffers.push(unsafe {
            match bytes {
                0 => &[][..],
                _ => std::slice::from_raw_parts((*array.as_array_ptr()).data.cast::<u8>().cast_const(), bytes),
            }
        });
    }
    if buffers.iter().map(|buffer| buffer.len()).sum::<usize>() < THREADS_FROM {
        let digest =
            |bytes: &&[u8]| PyBytes::new(py, &released_from(py, WORK_FROM, bytes.len(), || digest_bytes(bytes)));
        return Ok(buffers.iter().map(digest).collect());
    }
    let failed = |failure: Failure| to_python(&failure, &[]);
    let hashing = Hashing::of_memory(&buffers).map_err(failed)?;
    work(py, &hashing, progress.as_ref(), threads)?;
    Ok(hashing.digests().map_err(failed)?.iter().map(|digest| PyBytes::new(py, digest)).collect())
}

/// Has threads do the work, and waits for them.
fn work(
    py: Python<'_>,
    hashing: &Hashing<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    threads: Option<usize>,
) -> PyResult<()> {
    let threads = threads.unwrap_or_else(workers).clamp(1, hashing.pieces().max(1));
    thread::scope(|scope| {
        for _ in 0..threads {
            hashing.enlist();
            let named = thread::Builder::new().name("infercache-fingerprint".to_owned());
            if named.spawn_scoped(scope, || hashing.work()).is_err() {
                hashing.retire();
            }
        }
        let told = attend(py, hashing, progress);
        if told.is_err() {
            hashing.stop();
            released(py, || while !hashing.wait(TICK) {});
        }
        told
    })?;
    // Where no thread could be started, the caller does it all; otherwise nothing is left.
    released(py, || {
        hashing.enlist();
        hashing.work();
    });
    Ok(())
}

/// Waits for the threads, and lets Python look up from time to time.
fn attend(py: Python<'_>, hashing: &Hashing<'_>, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    while !released(py, || hashing.wait(TICK)) {
        py.check_signals()?;
        if let Some(progress) = progress {
            progress.call1((hashing.done(),))?;
        }
    }
    Ok(())
}

/// The text form of the fingerprint whose canonical document this is.
#[pyfunction]
#[pyo3(signature = (document, /))]
fn _fingerprint_of(py: Python<'_>, document: &Bound<'_, PyBytes>) -> String {
    let bytes = document.as_bytes();
    released_from(py, WORK_FROM, bytes.len(), || of_document(bytes))
}

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_hash_regions, module)?)?;
    module.add_function(wrap_pyfunction!(_hash_arrays, module)?)?;
    module.add_function(wrap_pyfunction!(_fingerprint_of, module)?)
}
