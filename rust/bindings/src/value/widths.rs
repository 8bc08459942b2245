//! Rows of fixed-width text and bytes, whose width is either the function's choice or that of the batch's longest element.
//!
//! `LABELS[ids]` is as wide as `LABELS`, whatever the ids; `np.array(list_of_texts)` is as wide as the longest of these
//! texts. Which of both a function does is not to be seen in every array:
//!
//! - One that is wider than its longest element has a width that somebody chose. Its rows keep it, and the function is
//!   known to choose this width from now on ([`Chosen`]).
//! - One that its longest element fills may be either. Its rows are stored as narrow as their own elements, and say how
//!   wide their array was; where the function is known to choose that width they keep it.
//!
//! When rows come together, and all their arrays had one width, which is a chosen one, so has the whole. Otherwise it is
//! as wide as the widest row, as NumPy promotes them: arrays of different widths show that the batch decides, and of one
//! width of which nothing is known that is the likelier case.

use super::Encoded;
use super::arrays::{self, View};
use super::dtypes::Elements;
use crate::errors::to_python;
use infercache_core::value::{Dtype, Tensor, kind, narrowed};
use numpy::npyffi::npy_intp;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Different widths that a function can choose, a language each, say. One of which more are seen chooses none: its width
/// depends on the batch in a way that its results do not show (`np.char.strip` keeps the width of what it strips).
const MOST_CHOSEN: usize = 16;

/// The widths that a function's arrays have had without an element that filled them.
#[derive(Debug, Default)]
pub struct Chosen(Mutex<Vec<(Dtype, usize)>>);

impl Chosen {
    fn add(&self, dtype: Dtype, width: usize) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() <= MOST_CHOSEN && !known.contains(&(dtype, width)) {
            known.push((dtype, width));
        }
    }

    fn has(&self, dtype: Dtype, width: usize) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() <= MOST_CHOSEN && known.contains(&(dtype, width))
    }
}

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

/// Whether the rows of this array are stored as wide as their own elements: nobody is known to have chosen its width.
pub(super) fn is_of_its_elements(view: &View<'_>, chosen: &Chosen) -> bool {
    let (dtype, width) = (view.elements.dtype, view.elements.item_size);
    let Some(unit) = unit(dtype).filter(|&unit| unit < width) else { return false };
    if longest(view.bytes(), width, unit) < width {
        chosen.add(dtype, width);
        return false;
    }
    !chosen.has(dtype, width)
}

/// A row in the width of its own elements.
pub(super) fn narrow(view: &View<'_>, row: &[u8], dims: &[npy_intp]) -> Result<Encoded, String> {
    let (before, unit) = (view.elements.item_size, unit(view.elements.dtype).unwrap_or(1));
    let width = longest(row, before, unit);
    let (Ok(own), Ok(of_array)) = (u32::try_from(width), u32::try_from(before)) else {
        return view.payload(kind::ROW, row, dims); // wider than any that is read again
    };
    if width == before {
        return view.payload(kind::ROW, row, dims);
    }
    let mut bytes = Vec::new();
    let len = row.len() / before * width;
    bytes.try_reserve_exact(len).map_err(|_| arrays::no_memory(len))?;
    for element in row.chunks_exact(before) {
        bytes.extend_from_slice(&element[..width]);
    }
    let elements = Elements { parameter: narrowed(own, of_array), item_size: width, ..view.elements };
    bytes.extend_from_slice(&elements.descriptor(view.flags, dims));
    Ok(Encoded { kind: kind::ROW, aligned: true, bytes })
}

/// The rows of these payloads, if they are of text or bytes and differ in their width and in nothing else.
///
/// # Errors
/// `CorruptValue` where one does not decode.
pub(super) fn alike<'p>(
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
    Ok(Some(rows))
}

/// The width of an array of these rows; what they show of the function's choice is `chosen` from now on.
fn together(rows: &[Tensor<'_>], chosen: &Chosen) -> usize {
    let (mut widest, mut of_one) = (0, true);
    let of = rows[0].array_item_size();
    for row in rows {
        let (dtype, width, of_array) = (row.dtype, row.item_size(), row.array_item_size());
        let unit = unit(dtype).unwrap_or(width);
        if width == of_array && width > unit && !chosen.has(dtype, width) && longest(row.elements, width, unit) < width
        {
            chosen.add(dtype, width); // another process may have seen the array
        }
        widest = widest.max(width);
        of_one &= of_array == of;
    }
    if of_one && chosen.has(rows[0].dtype, of) { of } else { widest }
}

/// One fresh array of rows that [`alike`] gave.
pub(super) fn assemble<'py>(py: Python<'py>, rows: &[Tensor<'_>], chosen: &Chosen) -> PyResult<Bound<'py, PyAny>> {
    let width = together(rows, chosen);
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
    let mut form = rows[0];
    form.parameter = width as u64;
    let array = arrays::fresh(py, &form, Some(rows.len()))?;
    let whole = arrays::Rows { size: elements.len(), suffix: &[] };
    arrays::fill(&array, whole, std::iter::once(Some(&*elements)));
    Ok(array)
}
