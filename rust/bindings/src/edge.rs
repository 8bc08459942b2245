//! Bodies at the edge: from a request's bytes to keys, from what is stored to an answer's bytes.

mod embeddings; // OpenAI's embeddings: a hit per item
mod infer; // Open Inference Protocol v2's infer

use infercache_core::edge::depth;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

/// How deep the brackets of JSON text nest, whether the text is JSON or not.
#[pyfunction]
fn json_depth(text: PyBackedBytes) -> usize {
    depth(&text)
}

/// Adds this module's classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    embeddings::register(module)?;
    infer::register(module)?;
    module.add_function(wrap_pyfunction!(json_depth, module)?)
}
