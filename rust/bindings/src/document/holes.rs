//! Places in a document for the digests of tensors that lie on a device.
//!
//! The walk notes each such tensor and goes on. When it is over, the digests of all of them are asked for at once
//! (`infercache.gpu.digests.begin`: one launch), and joined when somebody needs the document's bytes.

use crate::document::{Fault, Outcome};
use crate::lazy::intern;
use infercache_core::document::{Writer, fill};
use infercache_core::limits::KEY_BYTES;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

/// A digest's place in a document, and the tensor: an `infercache.gpu.tensors.DeviceTensor`.
pub struct Hole {
    pub at: usize,
    pub tensor: Py<PyAny>,
}

/// The places of one document, nearly always none.
pub type Holes = Vec<Hole>;

/// A document whose digests are being computed.
pub struct Draft {
    document: Vec<u8>,
    /// Place, and which of the digests stands there.
    places: Vec<(usize, usize)>,
    /// An `infercache.gpu.digests.Digests`, of this document or of many.
    digests: Py<PyAny>,
}

impl Draft {
    /// Has the digests of one document computed.
    pub fn begin(py: Python<'_>, document: &[u8], holes: Holes) -> PyResult<Draft> {
        let mut drafts = Draft::begin_all(py, vec![(document.to_vec(), holes)])?;
        Ok(drafts.pop().expect("one for each"))
    }

    /// Has the digests of many documents computed, all in one go; a tensor that stands in several of them once.
    pub fn begin_all(py: Python<'_>, documents: Vec<(Vec<u8>, Holes)>) -> PyResult<Vec<Draft>> {
        let mut tensors: Vec<Py<PyAny>> = Vec::new();
        let mut known = std::collections::HashMap::new();
        let mut planned = Vec::with_capacity(documents.len());
        for (document, holes) in documents {
            let mut places = Vec::with_capacity(holes.len());
            for hole in holes {
                let index = *known.entry(hole.tensor.as_ptr() as usize).or_insert(tensors.len());
                if index == tensors.len() {
                    tensors.push(hole.tensor);
                }
                places.push((hole.at, index));
            }
            planned.push((document, places));
        }
        let digests = begin(py, tensors)?;
        let draft = |(document, places)| Draft { document, places, digests: digests.clone_ref(py) };
        Ok(planned.into_iter().map(draft).collect())
    }

    /// The `infercache.gpu.digests.Digests` that are missing.
    pub fn digests(&self, py: Python<'_>) -> Py<PyAny> {
        self.digests.clone_ref(py)
    }

    /// The whole document; waits for the digests.
    pub fn whole(&self, py: Python<'_>) -> PyResult<Vec<u8>> {
        let digests = join(py, self.digests.bind(py))?;
        let mut document = self.document.clone();
        for &(at, index) in &self.places {
            fill(&mut document, at, digests.get(index).ok_or_else(too_few)?);
        }
        Ok(document)
    }
}

fn begin(py: Python<'_>, tensors: Vec<Py<PyAny>>) -> PyResult<Py<PyAny>> {
    let module = py.import(intern!(py, "infercache.gpu.digests"))?;
    Ok(module.call_method1(intern!(py, "begin"), (PyList::new(py, tensors)?,))?.unbind())
}

fn join(py: Python<'_>, digests: &Bound<'_, PyAny>) -> PyResult<Vec<[u8; KEY_BYTES]>> {
    let joined = digests.call_method0(intern!(py, "join"))?;
    let digest = |found: PyResult<Bound<'_, PyAny>>| -> PyResult<[u8; KEY_BYTES]> {
        let found = found?.cast_into::<PyBytes>()?;
        found.as_bytes().try_into().map_err(|_| PyRuntimeError::new_err("a digest of BLAKE3 has 32 bytes"))
    };
    joined.try_iter()?.map(digest).collect()
}

#[cold]
fn too_few() -> PyErr {
    PyRuntimeError::new_err("fewer digests than tensors were asked for")
}

/// Fills these holes now, because what was written is about to be compared.
pub fn settle(py: Python<'_>, out: &mut Writer, holes: Holes) -> Outcome {
    let (places, tensors): (Vec<_>, Vec<_>) = holes.into_iter().map(|hole| (hole.at, hole.tensor)).unzip();
    let digests = begin(py, tensors).and_then(|digests| join(py, digests.bind(py))).map_err(Box::<Fault>::from)?;
    for (index, at) in places.into_iter().enumerate() {
        out.fill(at, digests.get(index).ok_or_else(|| Box::<Fault>::from(too_few()))?);
    }
    Ok(())
}
