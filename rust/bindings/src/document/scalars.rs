//! Text and numbers: what is stored in the base type counts, never an overridden method.

use super::fault::{Fault, Outcome};
use super::{Walk, refused};
use crate::lazy::Lazy;
use crate::released::{COPY_FROM, released};
use infercache_core::document::Number;
use infercache_core::limits::MAX_INTEGER_DIGITS;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};

/// 10^4300 has 14,285 bits, so an integer of more has more than 4,300 digits.
const MAX_INTEGER_BITS: usize = 14_285;

/// The UTF-8 of a str object or of an instance of a subclass, or why there is none.
///
/// # Safety
///
/// `text` is a str (or subclass) object that outlives the result.
#[inline]
pub(super) unsafe fn utf8<'a>(py: Python<'_>, text: *mut ffi::PyObject) -> Outcome<&'a str> {
    let mut size: ffi::Py_ssize_t = 0;
    // SAFETY: a str object, as the caller vouches; the bytes live as long as it does.
    let start = unsafe { ffi::PyUnicode_AsUTF8AndSize(text, &raw mut size) };
    if start.is_null() {
        return Err(no_utf8(py));
    }
    // SAFETY: CPython gives `size` bytes of valid UTF-8 there.
    Ok(unsafe { std::str::from_utf8_unchecked(std::slice::from_raw_parts(start.cast::<u8>(), size as usize)) })
}

/// Whether an object is of exactly type float or int.
///
/// # Safety
///
/// `value` is a live object.
#[inline(always)]
pub(super) unsafe fn is_number(value: *mut ffi::PyObject) -> bool {
    // SAFETY: every object has a type.
    let class = unsafe { ffi::Py_TYPE(value) };
    class == &raw mut ffi::PyFloat_Type || class == &raw mut ffi::PyLong_Type
}

/// The number that an object of exactly type float or int is; `None` for every other and for an int beyond 64 bits.
///
/// # Safety
///
/// `value` is a live object or null. No Python code runs here.
#[inline(always)]
pub(super) unsafe fn builtin_number(value: *mut ffi::PyObject) -> Option<Number> {
    if value.is_null() {
        return None;
    }
    // SAFETY: a live object, whose exact type each branch knows.
    unsafe {
        let class = ffi::Py_TYPE(value);
        if class == &raw mut ffi::PyFloat_Type {
            Some(Number::Float(ffi::PyFloat_AsDouble(value)))
        } else if class == &raw mut ffi::PyLong_Type {
            let mut overflow = 0;
            let integer = ffi::PyLong_AsLongLongAndOverflow(value, &raw mut overflow);
            (overflow == 0).then_some(Number::Integer(integer))
        } else {
            None
        }
    }
}

#[cold]
fn no_utf8(py: Python<'_>) -> Box<Fault> {
    let error = PyErr::fetch(py);
    if error.is_instance_of::<pyo3::exceptions::PyUnicodeEncodeError>(py) {
        return Fault::unsupported("the text contains a lone surrogate, which has no UTF-8; clean the text first");
    }
    error.into()
}

impl<'py> Walk<'_, 'py> {
    /// # Safety
    ///
    /// `text` is a live str object or instance of a subclass.
    #[inline(always)]
    pub(super) unsafe fn text(&mut self, text: *mut ffi::PyObject) -> Outcome {
        // SAFETY: as the caller vouches.
        let content = unsafe { utf8(self.py, text) }.map_err(|fault| self.lost(fault))?;
        if content.len() >= COPY_FROM {
            // SAFETY: as the caller vouches.
            return unsafe { self.long_text(text, content) };
        }
        Ok(self.out.string(content)?)
    }

    /// Text that takes so long to copy that others may run meanwhile. Its content never changes, and `owner` keeps it.
    ///
    /// # Safety
    ///
    /// As [`Walk::text`]; `content` is its UTF-8.
    #[cold]
    #[inline(never)]
    unsafe fn long_text(&mut self, text: *mut ffi::PyObject, content: &str) -> Outcome {
        // SAFETY: a live object, as the caller vouches.
        let owner = unsafe { Bound::from_borrowed_ptr(self.py, text) };
        self.hold();
        let out = &mut *self.out;
        let written = released(self.py, || out.string(content));
        drop(owner);
        Ok(written?)
    }

    /// # Safety
    ///
    /// `integer` is a live int object or instance of a subclass.
    #[inline(always)]
    pub(super) unsafe fn integer(&mut self, integer: *mut ffi::PyObject) -> Outcome {
        let mut overflow = 0;
        // SAFETY: an int, so neither __index__ nor any other Python code is asked.
        let value = unsafe { ffi::PyLong_AsLongLongAndOverflow(integer, &raw mut overflow) };
        if overflow == 0 {
            return Ok(self.out.integer(value)?);
        }
        // SAFETY: a live object, as the caller vouches.
        self.large_integer(&unsafe { Bound::from_borrowed_ptr(self.py, integer) })
    }

    #[cold]
    fn large_integer(&mut self, integer: &Bound<'py, PyAny>) -> Outcome {
        let py = self.py;
        self.hold();
        let too_long = || {
            Fault::unsupported(format!(
                "an integer of more than {MAX_INTEGER_DIGITS} digits; pass its text or its bytes"
            ))
        };
        static BIT_LENGTH: Lazy<Py<PyAny>> = Lazy::new();
        let bit_length =
            BIT_LENGTH.get_or_make(py, || py.get_type::<PyInt>().getattr("bit_length").map(Bound::unbind))?;
        if bit_length.bind(py).call1((integer,))?.extract::<usize>()? > MAX_INTEGER_BITS {
            return Err(too_long());
        }
        // Hexadecimal, because CPython's limit on decimal digits may be set lower than the specification's.
        // SAFETY: an int (or subclass, whose content it reads); gives a new reference or an exception.
        let text = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyNumber_ToBase(integer.as_ptr(), 16)) }?;
        let text = text.cast_into::<PyString>().map_err(PyErr::from)?;
        let text = text.to_str()?;
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let decimal = decimal_of_hex(digits.trim_start_matches("0x"));
        if decimal.len() > MAX_INTEGER_DIGITS {
            return Err(too_long());
        }
        Ok(self.out.integer_text(negative, &decimal)?)
    }

    /// A NumPy scalar counts as its `.item()`, asked of NumPy itself and not of a subclass.
    pub(super) fn numpy_scalar(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        let generic = super::kinds::attribute(self.py, "numpy", "generic")
            .ok_or_else(|| refused(value, "NumPy is no longer imported"))?;
        let item = generic.getattr(crate::lazy::intern!(self.py, "item"))?.call1((value,))?;
        if item.get_type().is(value.get_type()) {
            return Err(refused(value, "this NumPy scalar has no ordinary value; convert it first"));
        }
        self.value(&item)
    }

    pub(super) fn ml_float(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        Ok(self.out.float(value.extract::<f64>()?)?)
    }
}

/// Hexadecimal digits to decimal ones, without leading zeros. Quadratic, for at most [`MAX_INTEGER_BITS`] bits.
fn decimal_of_hex(digits: &str) -> String {
    const GROUP: u64 = 10_000_000_000_000_000_000; // the largest power of ten within 64 bits
    let mut limbs: Vec<u64> = Vec::with_capacity(digits.len() / 16 + 1); // most significant first
    let first = digits.len() % 16;
    let groups = std::iter::once(&digits[..first]).chain(
        digits.as_bytes()[first..]
            .chunks(16)
            .map(|group| std::str::from_utf8(group).expect("hexadecimal digits are ASCII")),
    );
    limbs.extend(groups.filter_map(|group| u64::from_str_radix(group, 16).ok()));
    let mut parts: Vec<u64> = Vec::new(); // least significant first
    while !limbs.is_empty() {
        let mut remainder = 0u64;
        for limb in &mut limbs {
            let wide = u128::from(remainder) << 64 | u128::from(*limb);
            *limb = (wide / u128::from(GROUP)) as u64;
            remainder = (wide % u128::from(GROUP)) as u64;
        }
        parts.push(remainder);
        let leading = limbs.iter().take_while(|&&limb| limb == 0).count();
        limbs.drain(..leading);
    }
    let mut text = parts.pop().unwrap_or(0).to_string();
    for part in parts.iter().rev() {
        text.push_str(&format!("{part:019}"));
    }
    text
}
