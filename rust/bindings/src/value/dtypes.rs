//! NumPy's element types and the format's.

use std::ffi::{c_int, c_long};

use crate::lazy::Lazy;
use crate::lazy::intern;
use infercache_core::value::{Dtype, FLAG_ALTERNATE, FLAG_BIG_ENDIAN, Tensor, corrupt};
use numpy::npyffi::{NPY_TYPES, PY_ARRAY_API, PyArray_Descr};
use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::prelude::*;

use crate::errors::to_python;

/// What the format says of an array's elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elements {
    pub dtype: Dtype,
    pub flags: u8,
    pub parameter: u64,
    pub item_size: usize,
}

/// Units of datetime64 and timedelta64, at NumPy's numbers (3 was business days).
const UNITS: [&str; 15] = ["Y", "M", "W", "", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"];

/// NumPy prefers `long` for the integer of its size, and `int` or `long long` for the other.
const LONG_IS_64: bool = size_of::<c_long>() == 8;

/// The elements of this dtype, or `Err` with the reason why they cannot be stored.
pub(super) fn elements(descr: &Bound<'_, PyArrayDescr>) -> PyResult<Result<Elements, String>> {
    let type_num = descr.num();
    let (dtype, alternate) = match native(type_num) {
        Some(found) => found,
        None => match ml_dtype(descr)? {
            Some(dtype) => (dtype, false),
            None => return Ok(Err(format!("an array of dtype {descr} cannot be stored"))),
        },
    };
    let item_size = descr.itemsize();
    if item_size == 0 {
        return Ok(Err(format!("an array of dtype {descr}, whose items have no bytes, cannot be stored")));
    }
    let parameter = match dtype {
        Dtype::Str | Dtype::Bytes => item_size as u64,
        Dtype::DateTime64 | Dtype::TimeDelta64 => unit(descr)?,
        _ => 0,
    };
    let big_endian = match descr.byteorder() {
        b'>' => true,
        b'=' => cfg!(target_endian = "big"),
        _ => false,
    };
    let flags = if alternate { FLAG_ALTERNATE } else { 0 } | if big_endian { FLAG_BIG_ENDIAN } else { 0 };
    Ok(Ok(Elements { dtype, flags, parameter, item_size }))
}

/// NumPy's own type numbers, the element type of each, and whether it is the C type that NumPy does not prefer.
const NATIVE: [(NPY_TYPES, Dtype, bool); 20] = {
    use NPY_TYPES::*;
    [
        (NPY_BOOL, Dtype::Bool, false),
        (NPY_BYTE, Dtype::Int8, false),
        (NPY_UBYTE, Dtype::UInt8, false),
        (NPY_SHORT, Dtype::Int16, false),
        (NPY_USHORT, Dtype::UInt16, false),
        (NPY_INT, Dtype::Int32, !LONG_IS_64),
        (NPY_UINT, Dtype::UInt32, !LONG_IS_64),
        (NPY_LONG, if LONG_IS_64 { Dtype::Int64 } else { Dtype::Int32 }, false),
        (NPY_ULONG, if LONG_IS_64 { Dtype::UInt64 } else { Dtype::UInt32 }, false),
        (NPY_LONGLONG, Dtype::Int64, LONG_IS_64),
        (NPY_ULONGLONG, Dtype::UInt64, LONG_IS_64),
        (NPY_FLOAT, Dtype::Float32, false),
        (NPY_DOUBLE, Dtype::Float64, false),
        (NPY_CFLOAT, Dtype::Complex64, false),
        (NPY_CDOUBLE, Dtype::Complex128, false),
        (NPY_STRING, Dtype::Bytes, false),
        (NPY_UNICODE, Dtype::Str, false),
        (NPY_DATETIME, Dtype::DateTime64, false),
        (NPY_TIMEDELTA, Dtype::TimeDelta64, false),
        (NPY_HALF, Dtype::Float16, false),
    ]
};

/// The same the other way round, by the element type's code: the preferred type number and the other one.
const NUMBERS: [[c_int; 2]; Dtype::ALL.len() + 1] = {
    let mut numbers = [[NONE; 2]; Dtype::ALL.len() + 1];
    let mut row = 0;
    while row < NATIVE.len() {
        let (number, dtype, alternate) = NATIVE[row];
        numbers[dtype.code() as usize][alternate as usize] = number as c_int;
        row += 1;
    }
    numbers
};
const NONE: c_int = -1;

/// The element type of one of NumPy's own type numbers, and whether it is the C type that NumPy does not prefer.
fn native(type_num: c_int) -> Option<(Dtype, bool)> {
    NATIVE.iter().find(|row| row.0 as c_int == type_num).map(|row| (row.1, row.2))
}

/// NumPy's type number of an element type of its own that needs no parameter. Where a machine has but one C type of that
/// size, it is that one.
fn type_num(dtype: Dtype, alternate: bool) -> Option<c_int> {
    let [preferred, other] = NUMBERS[usize::from(dtype.code())];
    let number = if (alternate && other != NONE) || preferred == NONE { other } else { preferred };
    (number != NONE && !dtype.has_parameter()).then_some(number)
}

/// The element type of a dtype or scalar class of ml_dtypes, by module and name; `None` for others (its sub-byte types too).
fn ml_dtype(descr: &Bound<'_, PyArrayDescr>) -> PyResult<Option<Dtype>> {
    if descr.num() < NPY_TYPES::NPY_USERDEF as c_int {
        return Ok(None);
    }
    ml_dtype_of_class(descr.typeobj().as_any())
}

/// As [`ml_dtype`], of the class of its scalars.
pub(super) fn ml_dtype_of_class(class: &Bound<'_, PyAny>) -> PyResult<Option<Dtype>> {
    let py = class.py();
    if !class.getattr(intern!(py, "__module__"))?.eq(intern!(py, "ml_dtypes"))? {
        return Ok(None);
    }
    let name = class.getattr(intern!(py, "__name__"))?.extract::<String>()?;
    Ok(Dtype::ALL.into_iter().find(|dtype| dtype.is_of_ml_dtypes() && dtype.name() == name))
}

/// Parameter of datetime64 and timedelta64: unit and multiple.
fn unit(descr: &Bound<'_, PyArrayDescr>) -> PyResult<u64> {
    let py = descr.py();
    let data = py.import(intern!(py, "numpy"))?.call_method1(intern!(py, "datetime_data"), (descr,))?;
    let (name, multiple): (String, u64) = data.extract()?;
    let unit = if name == "μs" { 9 } else { UNITS.iter().position(|unit| *unit == name).unwrap_or(14) };
    Ok(unit as u64 | multiple << 8)
}

/// The dtype of a stored tensor.
///
/// # Errors
/// `CorruptValue` where there is none such, or ml_dtypes, which it needs, is not installed.
pub(super) fn descr<'py>(py: Python<'py>, tensor: &Tensor<'_>) -> PyResult<Bound<'py, PyArrayDescr>> {
    let descr = build(py, tensor)?;
    // Whoever makes an array of it over existing memory relies on this.
    if descr.itemsize() == tensor.item_size() {
        Ok(descr)
    } else {
        Err(to_python(py, &corrupt(format!("{} of {} bytes", tensor.dtype.name(), tensor.item_size()))))
    }
}

fn build<'py>(py: Python<'py>, tensor: &Tensor<'_>) -> PyResult<Bound<'py, PyArrayDescr>> {
    let big_endian = tensor.flags & FLAG_BIG_ENDIAN != 0;
    let native = match type_num(tensor.dtype, tensor.flags & FLAG_ALTERNATE != 0) {
        // SAFETY: the call makes or shares a descriptor of a type number that NumPy has, and returns a reference of our own.
        Some(number) => unsafe {
            let descr = PY_ARRAY_API.PyArray_DescrFromType(py, number);
            Bound::from_owned_ptr_or_err(py, descr.cast())?.cast_into_unchecked()
        },
        None if tensor.dtype.has_parameter() => return flexible(py, tensor, big_endian),
        None => foreign(py, tensor.dtype)?,
    };
    if big_endian == cfg!(target_endian = "big") || tensor.item_size() == 1 {
        return Ok(native);
    }
    let order = if big_endian { b'>' } else { b'<' };
    // SAFETY: a descriptor that we hold; the result is a new reference or null with an exception set.
    unsafe {
        let swapped = PY_ARRAY_API.PyArray_DescrNewByteorder(py, native.as_dtype_ptr(), order as _);
        Ok(Bound::from_owned_ptr_or_err(py, swapped.cast())?.cast_into_unchecked())
    }
}

/// A dtype that is made from text: fixed-width text and bytes, moments and durations.
fn flexible<'py>(py: Python<'py>, tensor: &Tensor<'_>, big_endian: bool) -> PyResult<Bound<'py, PyArrayDescr>> {
    let order = if big_endian { '>' } else { '<' };
    let times = |letter: char| {
        let (unit, multiple) = ((tensor.parameter & 0xff) as usize, tensor.parameter >> 8);
        match UNITS.get(unit) {
            Some(&"generic") => Ok(format!("{order}{letter}8")),
            Some(&name) if !name.is_empty() && multiple > 0 => Ok(format!("{order}{letter}8[{multiple}{name}]")),
            _ => Err(to_python(py, &corrupt(format!("unit {unit} of {}", tensor.dtype.name())))),
        }
    };
    let text = match tensor.dtype {
        Dtype::Str => format!("{order}U{}", tensor.item_size() / 4),
        Dtype::Bytes => format!("S{}", tensor.item_size()),
        Dtype::DateTime64 => times('M')?,
        _ => times('m')?,
    };
    PyArrayDescr::new(py, text)
}

/// A dtype of ml_dtypes, which is imported if need be: by then it was imported where the value was stored.
fn foreign<'py>(py: Python<'py>, dtype: Dtype) -> PyResult<Bound<'py, PyArrayDescr>> {
    static FOUND: [Lazy<Py<PyArrayDescr>>; Dtype::ALL.len()] = [const { Lazy::new() }; Dtype::ALL.len()];
    let slot = &FOUND[usize::from(dtype.code()) - 1];
    let found = slot.get_or_make(py, || {
        let class = py.import("ml_dtypes").and_then(|module| module.getattr(dtype.name()));
        let class = class.map_err(|error| {
            to_python(py, &corrupt(format!("an array of {} needs ml_dtypes here: {error}", dtype.name())))
        })?;
        PyArrayDescr::new(py, class).map(Bound::unbind)
    })?;
    Ok(found.bind(py).clone())
}

/// The dtype that an array's structure points to.
pub(super) fn descr_of<'py>(py: Python<'py>, descr: *mut PyArray_Descr) -> Bound<'py, PyArrayDescr> {
    // SAFETY: the caller's array holds the descriptor while we take a reference of our own.
    unsafe { Bound::from_borrowed_ptr(py, descr.cast()).cast_into_unchecked() }
}
