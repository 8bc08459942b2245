//! Rows of fixed-width text and bytes, whose width NumPy takes from the longest element of the whole array.
//!
//! An array that is exactly as wide as its longest element most probably got its width from it (`np.array(list_of_texts)`),
//! so what the same function gives to one of these items alone is as wide as that item. Each row is stored as narrow as
//! its own elements then, and rows come together again as wide as the widest of them, as NumPy promotes them. An array
//! that is wider than its longest element has a width that somebody chose, which its rows keep.

use super::Encoded;
use super::arrays::{self, View};
use super::dtypes::Elements;
use crate::errors::to_python;
use infercache_core::value::{Dtype, Tensor, kind};
use numpy::npyffi::npy_intp;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

/// Bytes of the smallest width: a code point or a byte; `None` for element types of one size.
fn unit(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::Str => Some(4),
        Dtype::Bytes => Some(1),
        _ => None,
    }
}

/// Bytes of the longest of these elements without the zeros behind it, one unit at least: NumPy has no narrower arrays.
fn longest(elements: &[u8], width: usize, unit: usize) -> usize {
    let length = |element: &[u8]| element.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let mut longest = unit;
    for element in elements.chunks_exact(width) {
        // Only what lies behind the longest one so far can make a longer one.
        longest += length(&element[longest..]).next_multiple_of(unit);
        if longest == width {
            break;
        }
    }
    longest
}

/// Whether the rows of this array are stored as wide as their own elements.
pub(super) fn is_of_its_elements(view: &View<'_>) -> bool {
    let width = view.elements.item_size;
    unit(view.elements.dtype).is_some_and(|unit| width > unit && longest(view.bytes(), width, unit) == width)
}

/// A row in the width of its own elements.
pub(super) fn narrow(view: &View<'_>, row: &[u8], dims: &[npy_intp]) -> Result<Encoded, String> {
    let (before, unit) = (view.elements.item_size, unit(view.elements.dtype).unwrap_or(1));
    let width = longest(row, before, unit);
    if width == before {
        return view.payload(kind::ROW, row, dims);
    }
    let mut bytes = Vec::new();
    let len = row.len() / before * width;
    bytes.try_reserve_exact(len).map_err(|_| arrays::no_memory(len))?;
    for element in row.chunks_exact(before) {
        bytes.extend_from_slice(&element[..width]);
    }
    let elements = Elements { parameter: width as u64, item_size: width, ..view.elements };
    bytes.extend_from_slice(&elements.descriptor(view.flags, dims));
    Ok(Encoded { kind: kind::ROW, aligned: true, bytes })
}

/// The rows of these payloads, if they differ in their width and in nothing else.
///
/// # Errors
/// `CorruptValue` where one does not decode.
pub(super) fn differing<'p>(
    py: Python<'_>,
    first: &Tensor<'_>,
    payloads: impl Iterator<Item = Option<&'p [u8]>>,
) -> PyResult<Option<Vec<Tensor<'p>>>> {
    if unit(first.dtype).is_none() {
        return Ok(None);
    }
    let mut rows = Vec::new();
    for payload in payloads {
        let Some(payload) = payload else { return Ok(None) };
        let row = Tensor::parse(payload).map_err(|error| to_python(py, &error))?;
        if (row.dtype, row.flags) != (first.dtype, first.flags) || !row.dims().eq(first.dims()) {
            return Ok(None);
        }
        rows.push(row);
    }
    Ok(rows.iter().any(|row| row.parameter != first.parameter).then_some(rows))
}

/// One fresh array of rows that [`differing`] gave, as wide as the widest.
pub(super) fn assemble<'py>(py: Python<'py>, rows: &[Tensor<'_>]) -> PyResult<Bound<'py, PyAny>> {
    let widest = *rows.iter().max_by_key(|row| row.parameter).expect("rows that differ are several");
    let width = widest.item_size();
    let len: usize = rows.iter().map(|row| row.elements.len() / row.item_size() * width).sum();
    let mut elements = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| PyMemoryError::new_err(arrays::no_memory(len)))?;
    for row in rows {
        arrays::check_elements(py, row, row.elements)?;
        for element in row.elements.chunks_exact(row.item_size()) {
            elements.extend_from_slice(element);
            elements.resize(elements.len() + width - element.len(), 0);
        }
    }
    let array = arrays::fresh(py, &widest, Some(rows.len()))?;
    let whole = arrays::Rows { size: elements.len(), suffix: &[] };
    arrays::fill(&array, whole, std::iter::once(Some(&*elements)));
    Ok(array)
}
