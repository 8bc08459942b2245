//! A batch function's result, item by item: apart when it is stored, together when it is asked for.
//!
//! What decides is the kind of the entries. Rows of an array, all of one dtype and shape, become one fresh array of that
//! library again, rows of text of whatever widths (see `widths`) too; items of a tuple a tuple; everything else a list.
//! Rows that do not fit together (the function changed its mind, or another function's entries are mixed in) become a list
//! of arrays: nothing is broadcast or converted, and `memoize_batch` takes such a list for the sign to ask the function for
//! all of them.

use infercache_core::entry::EntryRef;
use infercache_core::value::{FLAG_TORCH, Tensor, kind};
use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::device::{Library, on_host};
use super::encode::{encode, type_name};
use super::records::Schema;
use super::widths::{self, Chosen};
use super::{Encoded, arrays, schema_of, torch};
use crate::errors::to_python;

/// What a batch function returned, for `n` items.
#[derive(Debug)]
pub enum Rows {
    /// One for each item: what to store, or the reason why it cannot be.
    Items(Vec<Result<Encoded, String>>),
    /// Another number of results than there are items.
    Count(usize),
    /// No list, tuple, NumPy array or torch tensor with a first dimension, so nothing that has items; says what instead.
    Unsuited(String),
}

/// One item of a batch's result.
#[derive(Clone, Copy)]
pub enum Part<'a, 'py> {
    /// A hit, or what was stored just now.
    Stored(&'a EntryRef),
    /// What could not be stored, as the function returned it.
    Object(&'a Bound<'py, PyAny>),
}

/// The items of a batch function's result as bytes, to be stored one by one. What the result shows of the widths that the
/// function chooses is `chosen` from now on.
///
/// # Errors
/// As for [`super::encode()`].
pub fn encode_rows(
    py: Python<'_>,
    result: &Bound<'_, PyAny>,
    n: usize,
    schema: Option<&Bound<'_, PyAny>>,
    chosen: &Chosen,
) -> PyResult<Rows> {
    let schema = schema_of(schema)?;
    if let Ok(list) = result.cast_exact::<PyList>() {
        // Encoding may run code of the caller's own, which could change the list.
        return each(py, &list.to_tuple(), n, schema, 0);
    }
    if let Ok(tuple) = result.cast_exact::<PyTuple>() {
        return each(py, tuple, n, schema, kind::TUPLE_ITEM);
    }
    if let Ok(array) = result.cast_exact::<PyUntypedArray>() {
        return rows_of_view(result, arrays::View::new(array, true)?, n, chosen);
    }
    if torch::is_tensor(result)? {
        return rows_of_tensor(result, n);
    }
    if let Some(library) = Library::of(result)? {
        return rows_of_view(result, library.view(result, true)?, n, chosen);
    }
    let class = type_name(&result.get_type());
    let expected = "a list, a tuple, an array of NumPy, CuPy or JAX, or a torch tensor";
    Ok(Rows::Unsuited(format!("a {class}, where {expected} was expected")))
}

fn each(py: Python<'_>, items: &Bound<'_, PyTuple>, n: usize, schema: Option<&Schema>, mark: u8) -> PyResult<Rows> {
    if items.len() != n {
        return Ok(Rows::Count(items.len()));
    }
    let mut rows = Vec::with_capacity(n);
    for item in items.iter() {
        let encoded = encode(py, &item, schema)?.and_then(|payload| payload.into_encoded(py));
        rows.push(encoded.map(|encoded| Encoded { kind: encoded.kind | mark, ..encoded }));
    }
    Ok(Rows::Items(rows))
}

fn rows_of_view(
    array: &Bound<'_, PyAny>,
    view: Result<arrays::View<'_>, String>,
    n: usize,
    chosen: &Chosen,
) -> PyResult<Rows> {
    let view = match view {
        Ok(view) => view,
        // Its elements may be objects; the number of rows counts all the same.
        Err(reason) => {
            let shape: Vec<usize> = array.getattr(crate::lazy::intern!(array.py(), "shape"))?.extract()?;
            return Ok(match shape.first() {
                Some(&found) if found == n => Rows::Items(vec![Err(reason); n]),
                Some(&found) => Rows::Count(found),
                None => Rows::Unsuited("an array without dimensions".into()),
            });
        }
    };
    let Some((&found, dims)) = view.dims().split_first() else {
        return Ok(Rows::Unsuited("an array without dimensions".into()));
    };
    if found as usize != n {
        return Ok(Rows::Count(found as usize));
    }
    let size = dims.iter().map(|&dim| dim as usize).product::<usize>() * view.elements.item_size;
    let narrow = widths::is_of_its_elements(&view, chosen);
    let row = |index: usize| {
        let row = &view.bytes()[index * size..][..size];
        if narrow { widths::narrow(&view, row, dims) } else { view.payload(kind::ROW, row, dims) }
    };
    Ok(Rows::Items((0..n).map(row).collect()))
}

fn rows_of_tensor(tensor: &Bound<'_, PyAny>, n: usize) -> PyResult<Rows> {
    let shape: Vec<usize> = tensor.getattr(crate::lazy::intern!(tensor.py(), "shape"))?.extract()?;
    match shape.first() {
        None => return Ok(Rows::Unsuited("a tensor without dimensions".into())),
        Some(&found) if found != n => return Ok(Rows::Count(found)),
        Some(_) => (),
    }
    let view = match torch::View::new(tensor)? {
        Ok(view) => view,
        Err(reason) => return Ok(Rows::Items(vec![Err(reason); n])),
    };
    let dims = &view.dims[1..];
    let size = view.bytes().len().checked_div(n).unwrap_or(0);
    let row = |index: usize| view.payload(kind::ROW, &view.bytes()[index * size..][..size], dims);
    Ok(Rows::Items((0..n).map(row).collect()))
}

/// A batch function's result of these items, in their order; an item may stand several times. `chosen` are the widths that
/// the function is known to choose, and what the items show of them is added.
///
/// # Errors
/// `CorruptValue` where an entry does not decode.
pub fn assemble<'py>(
    py: Python<'py>,
    parts: &[Part<'_, 'py>],
    schema: Option<&Bound<'py, PyAny>>,
    copy: bool,
    chosen: &Chosen,
) -> PyResult<Bound<'py, PyAny>> {
    if let Some(array) = assemble_rows(py, parts, chosen)? {
        return Ok(array);
    }
    let schema = schema_of(schema)?;
    let item = |part: &Part<'_, 'py>| match part {
        Part::Stored(entry) => super::decode::decode(py, entry, schema, copy),
        Part::Object(object) => Ok((*object).clone()),
    };
    let items = parts.iter().map(item).collect::<PyResult<Vec<_>>>()?;
    let of_tuple = |part: &Part<'_, '_>| matches!(part, Part::Stored(entry) if entry.kind() & kind::TUPLE_ITEM != 0);
    let of_list = |part: &Part<'_, '_>| matches!(part, Part::Stored(entry) if entry.kind() & kind::TUPLE_ITEM == 0);
    if parts.iter().any(of_tuple) && !parts.iter().any(of_list) {
        Ok(PyTuple::new(py, items)?.into_any())
    } else {
        Ok(PyList::new(py, items)?.into_any())
    }
}

/// One array of rows that are alike; `None` where they are not, or there are none.
fn assemble_rows<'py>(
    py: Python<'py>,
    parts: &[Part<'_, 'py>],
    chosen: &Chosen,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let Some(Part::Stored(first)) = parts.first() else { return Ok(None) };
    if first.kind() & kind::MASK != kind::ROW {
        return Ok(None);
    }
    let row = Tensor::parse(first.payload()).map_err(|error| to_python(py, &error))?;
    let (size, descriptor) = (row.elements.len(), &first.payload()[row.elements.len()..]);
    // Alike are rows of as many elements before a descriptor of the same bytes. One pass copies and looks: that a row is
    // not like the first is rare.
    let form = arrays::Rows { size, suffix: descriptor };
    let payloads = parts.iter().map(|part| match part {
        Part::Stored(entry) if entry.kind() & kind::MASK == kind::ROW => Some(entry.payload()),
        _ => None,
    });
    if row.flags & FLAG_TORCH != 0 {
        return torch::fresh(py, &row, Some(parts.len()), form, payloads);
    }
    if let Some(rows) = widths::alike(py, &row, payloads.clone())? {
        return widths::assemble(py, &rows, chosen).map(Some);
    }
    let array = arrays::fresh(py, &on_host(&row), Some(parts.len()))?;
    match Library::of_stored(&row) {
        _ if !arrays::fill(&array, form, payloads) => Ok(None),
        None => Ok(Some(array)),
        Some(library) => library.restore(array).map(Some),
    }
}
