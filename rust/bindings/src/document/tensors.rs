//! Bytes, arrays and buffers: content that stands in the document as its BLAKE3.
//!
//! Long content is hashed where it lies, with the GIL released. The object is kept alive meanwhile, and where it
//! offers the buffer protocol its export is held, so that it can be neither freed nor resized.

use super::fault::{Fault, Outcome};
use super::{Hole, Walk, kinds, refused};
use crate::errors;
use crate::released::{COPY_FROM, WORK_FROM, released_from};
use infercache_core::tensor::{self, Layout, Signs};
use infercache_core::value::Dtype;
use numpy::npyffi::{NPY_TYPES, PyArrayObject};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};

/// A dtype by kind (`b` bool, `i`, `u`, `f`, `c`) and bytes of an element.
fn native(kind: u8, itemsize: usize) -> Option<Dtype> {
    Some(match (kind, itemsize) {
        (b'b', 1) => Dtype::Bool,
        (b'i', 1) => Dtype::Int8,
        (b'i', 2) => Dtype::Int16,
        (b'i', 4) => Dtype::Int32,
        (b'i', 8) => Dtype::Int64,
        (b'u', 1) => Dtype::UInt8,
        (b'u', 2) => Dtype::UInt16,
        (b'u', 4) => Dtype::UInt32,
        (b'u', 8) => Dtype::UInt64,
        (b'f', 2) => Dtype::Float16,
        (b'f', 4) => Dtype::Float32,
        (b'f', 8) => Dtype::Float64,
        (b'c', 8) => Dtype::Complex64,
        (b'c', 16) => Dtype::Complex128,
        _ => return None,
    })
}

/// The dtype of this name, of those that the specification admits: the ones whose elements have a size of their own, and
/// are no times.
fn named(name: &str) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|dtype| !dtype.has_parameter() && dtype.name() == name)
}

/// Bytes of an element.
fn item_bytes(dtype: Dtype) -> usize {
    dtype.item_size().expect("only text and bytes have no size of their own, and neither is a tensor here")
}

/// Bytes of the unit that byte order applies to.
fn unit(dtype: Dtype) -> usize {
    let parts = if matches!(dtype, Dtype::Complex64 | Dtype::Complex128) { 2 } else { 1 };
    item_bytes(dtype) / parts
}

/// NumPy numbers the dtypes of other packages from here on.
const FIRST_USER_TYPE: i32 = NPY_TYPES::NPY_USERDEF as i32;

/// A pointer on its way to a closure that runs without the GIL.
struct Address(*const u8);
// SAFETY: only read while the owner of the memory is kept alive by the thread that made it.
unsafe impl Send for Address {}

impl Address {
    fn get(&self) -> *const u8 {
        self.0
    }
}

/// Has so many threads hash each tensor of more than 32 KiB from now on, whatever its size and whatever was measured, for
/// measurements; 0: as is best, as it is from the start. Gives the number that was set before.
#[pyfunction]
#[pyo3(signature = (threads, /))]
pub(super) fn _hash_threads(threads: usize) -> usize {
    let before = tensor::hash_threads();
    tensor::set_hash_threads(threads);
    before
}

/// Plain BLAKE3 of the elements, without the GIL where there are many.
///
/// # Safety
///
/// As [`tensor::digest`]; the caller holds a reference to the owner of the memory until this returns.
unsafe fn digest(py: Python<'_>, data: *const u8, layout: &Layout) -> [u8; 32] {
    let bytes = layout.content_bytes().unwrap_or(usize::MAX);
    let address = Address(data);
    // SAFETY: as the caller vouches; releasing the GIL frees nothing that is referred to.
    released_from(py, WORK_FROM, bytes, move || unsafe { tensor::digest(address.get(), layout) })
}

impl<'py> Walk<'_, 'py> {
    /// bytes or an instance of a subclass, by its content.
    pub(super) fn bytes(&mut self, bytes: &Bound<'py, PyAny>) -> Outcome {
        let (mut start, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: a bytes object; its content never moves or changes while `bytes` holds a reference.
        unsafe {
            if ffi::PyBytes_AsStringAndSize(bytes.as_ptr(), &raw mut start, &raw mut length) < 0 {
                return Err(PyErr::fetch(self.py).into());
            }
            let layout = Layout::contiguous(&[length as usize], 1, 0);
            let digest = digest(self.py, start.cast::<u8>().cast_const(), &layout);
            Ok(self.out.bytes_form(&digest)?)
        }
    }

    /// bytearray, memoryview, `array.array` and whatever else offers a buffer.
    pub(super) fn buffer(&mut self, exporter: &Bound<'py, PyAny>) -> Outcome {
        let export = Export::new(exporter)?;
        let view = &export.view;
        // SAFETY: a format is a C string that lives as long as the export; none means unsigned bytes.
        let format = if view.format.is_null() { c"B" } else { unsafe { CStr::from_ptr(view.format) } };
        // SAFETY: an export that was filled in.
        let contiguous = unsafe { ffi::PyBuffer_IsContiguous(&raw const *export.view, b'C' as std::ffi::c_char) } != 0;
        if view.ndim == 1 && contiguous && (format == c"B" || format == c"c") {
            let layout = Layout::contiguous(&[view.len as usize], 1, 0);
            // SAFETY: `len` contiguous bytes, held by the export.
            let digest = unsafe { digest(self.py, view.buf.cast(), &layout) };
            return Ok(self.out.bytes_form(&digest)?);
        }
        let (dtype, big_endian) = format_dtype(format.to_bytes(), view.itemsize as usize).ok_or_else(|| {
            let format = format.to_string_lossy();
            refused(
                exporter,
                &format!("a buffer of format {format:?} is no tensor of one numeric type; convert it first"),
            )
        })?;
        let axes = view.ndim as usize;
        // SAFETY: as many lengths and strides as axes; either may be left out (null), and neither belongs to a 0-d buffer.
        let (shape, strides) = unsafe { (axes_of(view.shape, axes), axes_of(view.strides, axes)) };
        let shape: Vec<usize> = match (shape.len(), axes) {
            (0, 1) => vec![view.len as usize / item_bytes(dtype)],
            (given, axes) if given == axes => shape.iter().map(|&length| length as usize).collect(),
            _ => return Err(refused(exporter, "its buffer does not say its shape")),
        };
        let swap = if big_endian { unit(dtype) } else { 0 };
        let mut layout = Layout::contiguous(&shape, item_bytes(dtype), swap);
        if strides.len() == axes {
            layout.strides = strides.to_vec(); // without strides (ctypes) a buffer is contiguous
        }
        if layout.content_bytes() != Some(view.len as usize) {
            return Err(refused(exporter, "its buffer has another length than its shape says"));
        }
        // SAFETY: the exporter vouches for the layout and keeps the memory while the export is held.
        let digest = unsafe { digest(self.py, view.buf.cast(), &layout) };
        Ok(self.out.tensor_form(&digest, dtype.name(), &layout.shape)?)
    }

    /// ndarray, memmap or matrix.
    pub(super) fn array(&mut self, array: &Bound<'py, PyAny>) -> Outcome {
        let fields = array.as_ptr().cast::<PyArrayObject>();
        // SAFETY: an ndarray (or memmap, matrix, which add nothing before these fields) always has a descriptor, whose first
        // fields stand at the same place in NumPy 1 and 2.
        let (kind, number) = unsafe { ((*(*fields).descr).kind as u8, (*(*fields).descr).type_num) };
        if kind == b'U' || kind == b'S' {
            return self.text_array(array);
        }
        let dtype = self.array_dtype(array, kind, number)?;
        self.elements(array, dtype, None)
    }

    /// The form of an array's elements, whatever its own dtype, as elements of this one, of the same size.
    fn elements(&mut self, array: &Bound<'py, PyAny>, dtype: Dtype, signs: Option<Signs>) -> Outcome {
        let fields = array.as_ptr().cast::<PyArrayObject>();
        // SAFETY: an ndarray; see `array`. Shape and strides have `nd` items each.
        let (layout, data) = unsafe {
            let axes = (*fields).nd as usize;
            let (shape, strides) = (axes_of((*fields).dimensions, axes), axes_of((*fields).strides, axes));
            let order = (*(*fields).descr).byteorder as u8;
            let big_endian = order == b'>' || (order == b'=' && cfg!(target_endian = "big"));
            let layout = Layout {
                shape: shape.iter().map(|&length| length as usize).collect(),
                strides: strides.to_vec(),
                itemsize: item_bytes(dtype),
                swap: if big_endian { unit(dtype) } else { 0 },
                signs,
            };
            (layout, (*fields).data.cast::<u8>().cast_const())
        };
        if self.defer && layout.is_plain() {
            let at = self.out.open_tensor_form(dtype.name(), &layout.shape)?;
            self.pins.holes.push(Hole { at, tensor: array.clone().unbind() });
            return Ok(());
        }
        // SAFETY: NumPy vouches for the layout. The reference in `array` keeps the memory: `resize` refuses while others
        // hold one, and shape and strides were copied.
        let digest = unsafe { digest(self.py, data, &layout) };
        Ok(self.out.tensor_form(&digest, dtype.name(), &layout.shape)?)
    }

    fn array_dtype(&self, array: &Bound<'py, PyAny>, kind: u8, number: i32) -> Outcome<Dtype> {
        let descr = array.getattr(crate::lazy::intern!(self.py, "dtype"))?;
        let long = number == NPY_TYPES::NPY_LONGDOUBLE as i32 || number == NPY_TYPES::NPY_CLONGDOUBLE as i32;
        let found = if number < FIRST_USER_TYPE {
            let itemsize = descr.getattr(crate::lazy::intern!(self.py, "itemsize"))?.extract()?;
            native(kind, itemsize).filter(|_| !long)
        } else {
            let class = descr.getattr(crate::lazy::intern!(self.py, "type"))?;
            let is = |dtype: &Dtype| kinds::attribute(self.py, "ml_dtypes", dtype.name()).is_some_and(|c| c.is(&class));
            Dtype::ALL.into_iter().find(|dtype| dtype.is_of_ml_dtypes() && is(dtype))
        };
        found.ok_or_else(|| {
            let name = descr.str().map_or_else(|_| String::from("?"), |name| name.to_string());
            let reason = format!("an array of dtype {name} has no form; convert it to a numeric dtype, or to lists");
            refused(array, &reason)
        })
    }

    /// An array of fixed-width text or bytes: as the lists of its items.
    fn text_array(&mut self, array: &Bound<'py, PyAny>) -> Outcome {
        let shape: Vec<usize> = array.getattr(crate::lazy::intern!(self.py, "shape"))?.extract()?;
        if shape.contains(&0) {
            return Err(refused(
                array,
                "a text array with a zero in its shape does not say its shape as lists; pass lists",
            ));
        }
        let ndarray = kinds::attribute(self.py, "numpy", "ndarray")
            .ok_or_else(|| refused(array, "NumPy is no longer imported"))?;
        let lists = ndarray.getattr(crate::lazy::intern!(self.py, "tolist"))?.call1((array,))?;
        self.value(&lists)
    }

    /// A tensor of another library: `infercache.tensors` says its dtype and gives its elements as an array of NumPy's.
    pub(super) fn foreign_tensor(&mut self, value: &Bound<'py, PyAny>) -> Outcome {
        let describe = self.py.import(crate::lazy::intern!(self.py, "infercache.tensors"))?;
        let described =
            describe.call_method1(crate::lazy::intern!(self.py, "describe"), (value,)).map_err(|error| {
                let ours =
                    errors::class(self.py, "UnsupportedInput").is_ok_and(|class| error.is_instance(self.py, &class));
                // Said again with the path to the tensor, which Python does not know.
                if ours { Fault::unsupported(error.value(self.py).to_string()) } else { error.into() }
            })?;
        let (name, array, negated, conjugated): (String, Bound<'py, PyAny>, bool, bool) = described.extract()?;
        let reason = |text: &str| Fault::unsupported(format!("{}: {text}", super::type_name(value)));
        let dtype = named(&name).ok_or_else(|| reason(&format!("a tensor of dtype {name} has no form")))?;
        if let Some(shape) = device_shape(&array)? {
            let at = self.out.open_tensor_form(dtype.name(), &shape)?;
            self.pins.holes.push(Hole { at, tensor: array.unbind() });
            return Ok(());
        }
        if !array.is_exact_instance_of::<numpy::PyUntypedArray>() {
            return Err(reason("its elements could not be read as an array"));
        }
        let itemsize: usize = array.getattr(crate::lazy::intern!(self.py, "itemsize"))?.extract()?;
        if itemsize != item_bytes(dtype) {
            return Err(reason("its elements have another size than its dtype says"));
        }
        self.elements(&array, dtype, Signs::of(itemsize, unit(dtype), negated, conjugated))
    }
}

/// The shape of a tensor that lies on a device: `describe` gives an `infercache.gpu.tensors.DeviceTensor` in place of an
/// array then.
fn device_shape(elements: &Bound<'_, PyAny>) -> PyResult<Option<Vec<usize>>> {
    if elements.is_exact_instance_of::<numpy::PyUntypedArray>() {
        return Ok(None);
    }
    let py = elements.py();
    let module = py.import(crate::lazy::intern!(py, "infercache.gpu.tensors"))?;
    let class = module.getattr(crate::lazy::intern!(py, "DeviceTensor"))?;
    if !elements.is_instance(&class)? {
        return Ok(None);
    }
    elements.getattr(crate::lazy::intern!(py, "shape"))?.extract().map(Some)
}

/// The items of a C array of `axes` lengths or strides.
///
/// # Safety
///
/// `start` is null or points to `axes` items that outlive the result.
unsafe fn axes_of<'a>(start: *const isize, axes: usize) -> &'a [isize] {
    if start.is_null() || axes == 0 {
        return &[];
    }
    // SAFETY: as the caller vouches.
    unsafe { std::slice::from_raw_parts(start, axes) }
}

/// The dtype of a buffer's format (struct module syntax), and whether its elements are big-endian.
fn format_dtype(format: &[u8], itemsize: usize) -> Option<(Dtype, bool)> {
    let (big_endian, code) = match format {
        [b'@' | b'=', code @ ..] => (cfg!(target_endian = "big"), code),
        [b'<', code @ ..] => (false, code),
        [b'>' | b'!', code @ ..] => (true, code),
        code => (cfg!(target_endian = "big"), code),
    };
    let kind = match code {
        b"?" => b'b',
        b"b" | b"h" | b"i" | b"l" | b"q" | b"n" => b'i',
        b"B" | b"H" | b"I" | b"L" | b"Q" | b"N" => b'u',
        b"e" | b"f" | b"d" => b'f',
        b"Zf" | b"Zd" | b"F" | b"D" => b'c',
        _ => return None,
    };
    native(kind, itemsize).map(|dtype| (dtype, big_endian))
}

/// Plain BLAKE3 of contiguous bytes.
#[pyfunction]
#[pyo3(signature = (content, /))]
pub(super) fn _blake3<'py>(py: Python<'py>, content: &Bound<'py, PyBytes>) -> Bound<'py, PyBytes> {
    let content = content.as_bytes();
    let layout = Layout::contiguous(&[content.len()], 1, 0);
    // SAFETY: the content of a bytes object, which neither moves nor changes while `content` refers to it.
    let digest = unsafe { digest(py, content.as_ptr(), &layout) };
    PyBytes::new(py, &digest)
}

/// Plain BLAKE3 of bytes that come one buffer after another, so that they need not all be in memory at once.
#[pyclass(frozen, module = "infercache._core", name = "_Blake3")]
#[derive(Default)]
pub struct Blake3(Mutex<tensor::Parts>);

#[pymethods]
impl Blake3 {
    #[new]
    fn new() -> Blake3 {
        Blake3::default()
    }

    /// Adds a buffer's bytes; without the interpreter where they are many.
    #[pyo3(signature = (part, /))]
    fn update(&self, py: Python<'_>, part: &Bound<'_, PyAny>) -> PyResult<()> {
        let export = Export::new(part).map_err(|fault| fault.into_pyerr(py, "part"))?;
        // SAFETY: an export that was filled in.
        let contiguous = unsafe { ffi::PyBuffer_IsContiguous(&raw const *export.view, b'C' as std::ffi::c_char) } != 0;
        if !contiguous {
            return Err(PyBufferError::new_err("the bytes of a part lie one after another"));
        }
        let (start, length) = (Address(export.view.buf.cast()), export.view.len as usize);
        released_from(py, WORK_FROM, length, move || {
            // SAFETY: `length` contiguous bytes, held by the export; an empty buffer's address may be null.
            let bytes = if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(start.get(), length) } };
            // Locked by whoever hashes, and by nobody who waits for the interpreter.
            self.0.lock().unwrap_or_else(PoisonError::into_inner).update(bytes);
        });
        Ok(())
    }

    /// The digest of all bytes so far.
    fn digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.lock().unwrap_or_else(PoisonError::into_inner).digest())
    }
}

/// A held export of the buffer protocol; released when dropped.
pub(super) struct Export {
    view: Box<ffi::Py_buffer>,
}

impl Export {
    pub(super) fn new(exporter: &Bound<'_, PyAny>) -> Outcome<Export> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // Read-only will do; strides and format are asked for, suboffsets (rows of pointers) are not understood.
        // SAFETY: the view is boxed, so the exporter may keep pointers into it until it is released.
        let failed = unsafe { ffi::PyObject_GetBuffer(exporter.as_ptr(), &raw mut *view, ffi::PyBUF_RECORDS_RO) } != 0;
        if failed {
            let error = PyErr::fetch(exporter.py());
            if error.is_instance_of::<pyo3::exceptions::PyBufferError>(exporter.py()) {
                return Err(refused(exporter, &format!("its buffer cannot be read: {}", error.value(exporter.py()))));
            }
            return Err(error.into());
        }
        Ok(Export { view })
    }

    /// A copy of its bytes, where they lie one after another in C order.
    pub(super) fn copied(&self, py: Python<'_>) -> Option<Vec<u8>> {
        // SAFETY: an export that was filled in.
        let contiguous = unsafe { ffi::PyBuffer_IsContiguous(&raw const *self.view, b'C' as std::ffi::c_char) } != 0;
        let (start, length) = (Address(self.view.buf.cast()), self.view.len as usize);
        let mut copy: Vec<u8> = Vec::new();
        if !contiguous || copy.try_reserve_exact(length).is_err() {
            return None;
        }
        Some(released_from(py, COPY_FROM, length, move || {
            // SAFETY: `length` contiguous bytes, held by the export, into as much room; a null address has no bytes. (What
            // another thread writes meanwhile is the caller's race.)
            unsafe {
                if length > 0 {
                    copy.as_mut_ptr().copy_from_nonoverlapping(start.get(), length);
                }
                copy.set_len(length);
            }
            copy
        }))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // SAFETY: filled in by PyObject_GetBuffer and released once, on the thread that holds the GIL.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.view) }
    }
}
