//! Tensors that another library lends through DLPack: <https://dmlc.github.io/dlpack/latest/>.
//!
//! `numpy.from_dlpack` knows neither bfloat16 nor the float8 family, so the capsule is read here: what it describes is
//! shown to NumPy through `__array_interface__`, without a copy, and given back once, when the last array over it is gone.

use crate::errors;
use infercache_core::value::Dtype;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::ffi::CStr;
use std::os::raw::c_void;
use std::ptr::NonNull;

/// The version that is understood; another minor version only adds codes, another major one another layout.
const MAJOR: u32 = 1;
/// Axes of a NumPy array, at most.
const MAX_AXES: usize = 64;
/// Device types whose memory the host reads: its own, and what CUDA and ROCm have pinned.
const HOST: [i32; 3] = [1, 3, 11];

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    axes: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// In elements; null: C order.
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensor`, of before version 1.
#[repr(C)]
struct Unversioned {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Unversioned)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: Tensor,
}

/// A tensor that was lent and has to be given back.
enum Lent {
    Unversioned(NonNull<Unversioned>),
    Versioned(NonNull<Versioned>),
}

// SAFETY: the lender's memory, which DLPack allows to be read and given back on any thread; done with the GIL.
unsafe impl Send for Lent {}
// SAFETY: as above: only read while it is shared.
unsafe impl Sync for Lent {}

impl Lent {
    /// Takes over what a capsule holds: from here on the capsule gives nothing back.
    fn take(capsule: &Bound<'_, PyAny>) -> PyResult<Lent> {
        const NAMES: [(&CStr, &CStr); 2] =
            [(c"dltensor_versioned", c"used_dltensor_versioned"), (c"dltensor", c"used_dltensor")];
        for (name, used) in NAMES {
            // SAFETY: any object may be asked; the pointer of a capsule of this name is of this type and not null, and
            // the new name is a constant, as a capsule's name has to be.
            unsafe {
                if ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) == 0 {
                    continue;
                }
                let pointer = ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr());
                let found = NonNull::new(pointer).ok_or_else(|| PyErr::fetch(capsule.py()))?;
                if ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) != 0 {
                    return Err(PyErr::fetch(capsule.py()));
                }
                return Ok(if name == c"dltensor" {
                    Lent::Unversioned(found.cast())
                } else {
                    Lent::Versioned(found.cast())
                });
            }
        }
        // SAFETY: any object may be asked.
        if unsafe { ffi::PyCapsule_CheckExact(capsule.as_ptr()) } == 0 {
            return Err(PyTypeError::new_err("__dlpack__ gave no capsule"));
        }
        Err(unsupported(
            capsule.py(),
            "its DLPack capsule was consumed before; each call of __dlpack__ has to give a new one",
        ))
    }

    /// The tensor, if its layout in memory is the one that is known here.
    fn tensor(&self) -> Result<&Tensor, String> {
        // SAFETY: not given back yet. Of a versioned one of another major version only what stands before the flags is read.
        unsafe {
            match self {
                Lent::Unversioned(lent) => Ok(&lent.as_ref().tensor),
                Lent::Versioned(lent) if (*lent.as_ptr()).major == MAJOR => Ok(&lent.as_ref().tensor),
                Lent::Versioned(lent) => Err(format!(
                    "DLPack version {}.{} is not understood",
                    (*lent.as_ptr()).major,
                    (*lent.as_ptr()).minor
                )),
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        Python::attach(|py| {
            // An exception may be on its way; the lender may call Python code.
            let raised = PyErr::take(py);
            // SAFETY: taken from a capsule, and given back once. There may be no deleter: the lender then keeps the memory.
            unsafe {
                match self {
                    Lent::Unversioned(lent) => lent.as_ref().deleter.map(|delete| delete(lent.as_ptr())),
                    Lent::Versioned(lent) => (*lent.as_ptr()).deleter.map(|delete| delete(lent.as_ptr())),
                };
            }
            if let Some(raised) = raised {
                raised.restore(py);
            }
        });
    }
}

/// A tensor on the host that another library lends: NumPy reads it where it lies.
#[pyclass(frozen, module = "infercache._core")]
pub struct DLPackTensor {
    lent: Lent,
    dtype: Dtype,
    shape: Vec<i64>,
    /// In bytes.
    strides: Option<Vec<i64>>,
}

#[pymethods]
impl DLPackTensor {
    #[new]
    #[pyo3(signature = (capsule, /))]
    fn new(capsule: &Bound<'_, PyAny>) -> PyResult<DLPackTensor> {
        let lent = Lent::take(capsule)?;
        let read = lent.tensor().and_then(read);
        match read {
            Ok((dtype, shape, strides)) => Ok(DLPackTensor { lent, dtype, shape, strides }),
            Err(reason) => Err(unsupported(capsule.py(), &reason)),
        }
    }

    /// The key specification's name of the element type.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Tensor { data, byte_offset, .. } = *self.lent.tensor().expect("looked at when this was made");
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("typestr", typestr(self.dtype))?;
        interface.set_item("shape", PyTuple::new(py, &self.shape)?)?;
        // Read-only, whatever the lender allows: nothing here writes.
        interface.set_item("data", ((data as usize).wrapping_add(byte_offset as usize), true))?;
        if let Some(strides) = &self.strides {
            interface.set_item("strides", PyTuple::new(py, strides)?)?;
        }
        Ok(interface)
    }
}

/// What a tensor's elements are and how they lie: dtype, shape, strides in bytes.
type Read = (Dtype, Vec<i64>, Option<Vec<i64>>);

/// Reads a tensor's description with distrust.
fn read(tensor: &Tensor) -> Result<Read, String> {
    if !HOST.contains(&tensor.device_type) {
        return Err(format!("its memory is on the DLPack device ({}, {})", tensor.device_type, tensor.device_id));
    }
    let (code, bits, lanes) = (tensor.code, tensor.bits, tensor.lanes);
    let dtype = dtype(code, bits).filter(|_| lanes == 1).ok_or_else(|| {
        format!("its DLPack element type has no form: {} (code {code}, {bits} bits, {lanes} lanes)", family(code))
    })?;
    let axes = usize::try_from(tensor.axes).ok().filter(|&axes| axes <= MAX_AXES);
    let axes =
        axes.ok_or_else(|| format!("it has {} axes, and NumPy's arrays have {MAX_AXES} at most", tensor.axes))?;
    // SAFETY: DLPack has `axes` lengths there, and as many strides or none.
    let (shape, strides) = unsafe { (numbers(tensor.shape, axes), numbers(tensor.strides, axes)) };
    let shape = shape.ok_or("it does not say its shape")?;
    let item = dtype.item_size().expect("a size of its own") as i64;
    let bytes = shape.iter().try_fold(item, |bytes, &length| if length < 0 { None } else { bytes.checked_mul(length) });
    let bytes = bytes.ok_or_else(|| format!("its shape {shape:?} is none"))?;
    if bytes > 0 && tensor.data.is_null() {
        return Err("it has elements, but no address".to_owned());
    }
    let in_bytes =
        |strides: Vec<i64>| strides.iter().map(|&stride| stride.checked_mul(item)).collect::<Option<Vec<_>>>();
    let strides = strides.map(|strides| in_bytes(strides).ok_or("its strides are too large")).transpose()?;
    Ok((dtype, shape, strides))
}

/// The numbers at an address; `None` where there is none.
///
/// # Safety
///
/// `start` is null or points to `count` numbers.
unsafe fn numbers(start: *const i64, count: usize) -> Option<Vec<i64>> {
    if count == 0 {
        return Some(Vec::new());
    }
    // SAFETY: as the caller vouches.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, count) }.to_vec())
}

/// The dtype of a `DLDataTypeCode` and its bits.
fn dtype(code: u8, bits: u8) -> Option<Dtype> {
    Some(match (code, bits) {
        (0, 8) => Dtype::Int8,
        (0, 16) => Dtype::Int16,
        (0, 32) => Dtype::Int32,
        (0, 64) => Dtype::Int64,
        (1, 8) => Dtype::UInt8,
        (1, 16) => Dtype::UInt16,
        (1, 32) => Dtype::UInt32,
        (1, 64) => Dtype::UInt64,
        (2, 16) => Dtype::Float16,
        (2, 32) => Dtype::Float32,
        (2, 64) => Dtype::Float64,
        (4, 16) => Dtype::BFloat16,
        (5, 64) => Dtype::Complex64,
        (5, 128) => Dtype::Complex128,
        (6, 8) => Dtype::Bool,
        (7, 8) => Dtype::Float8E3M4,
        (8, 8) => Dtype::Float8E4M3,
        (9, 8) => Dtype::Float8E4M3B11Fnuz,
        (10, 8) => Dtype::Float8E4M3Fn,
        (11, 8) => Dtype::Float8E4M3Fnuz,
        (12, 8) => Dtype::Float8E5M2,
        (13, 8) => Dtype::Float8E5M2Fnuz,
        (14, 8) => Dtype::Float8E8M0Fnu,
        _ => return None,
    })
}

/// What a `DLDataTypeCode` is called, for an error.
fn family(code: u8) -> &'static str {
    match code {
        0 => "an integer",
        1 => "an unsigned integer",
        2 => "a float",
        3 => "an opaque handle",
        4 => "a bfloat",
        5 => "a complex number",
        6 => "a bool",
        7..=14 => "a float8",
        15 | 16 => "a float6, which is smaller than a byte",
        17 => "a float4, which is smaller than a byte",
        _ => "one of a later version of DLPack",
    }
}

/// NumPy's text for elements of this size; unsigned integers carry the bits of what NumPy has no type for.
fn typestr(dtype: Dtype) -> String {
    let item = dtype.item_size().expect("a size of its own");
    let kind = match dtype {
        Dtype::Bool => 'b',
        Dtype::Int8 | Dtype::Int16 | Dtype::Int32 | Dtype::Int64 => 'i',
        Dtype::Float16 | Dtype::Float32 | Dtype::Float64 => 'f',
        Dtype::Complex64 | Dtype::Complex128 => 'c',
        _ => 'u',
    };
    let order = match (item, cfg!(target_endian = "big")) {
        (1, _) => '|',
        (_, true) => '>',
        (_, false) => '<',
    };
    format!("{order}{kind}{item}")
}

#[cold]
fn unsupported(py: Python<'_>, reason: &str) -> PyErr {
    match errors::class(py, "UnsupportedInput") {
        Ok(class) => PyErr::from_type(class, reason.to_owned()),
        Err(failed) => failed,
    }
}

/// Adds the class to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DLPackTensor>()
}
