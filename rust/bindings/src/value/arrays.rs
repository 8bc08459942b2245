//! NumPy arrays and scalars: stored as their elements' bytes, read back over the cache's own buffer.

use std::cell::OnceCell;
use std::ffi::c_int;
use std::ptr;

use infercache_core::entry::{EntryRef, TENSOR_ALIGN};
use infercache_core::value::{Dtype, FLAG_FORTRAN, MAX_DIMENSIONS, Tensor, Writer, corrupt, kind, write_descriptor};
use numpy::npyffi::{
    NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_CARRAY_RO, NPY_ARRAY_F_CONTIGUOUS, NPY_ARRAY_FARRAY_RO,
    NPY_ARRAY_WRITEABLE, NPY_ORDER, NpyTypes, PY_ARRAY_API, PyArrayObject, npy_intp,
};
use numpy::{PyArrayDescrMethods, PyUntypedArray};
use pyo3::prelude::*;

use super::dtypes::{self, Elements, descr_of};
use super::{Encoded, Payload};
use crate::errors::to_python;
use crate::released::{COPY_FROM, released_from};

/// Owns the buffer that read-only arrays of a hit lie in; their ``base``. It offers no buffer of its own, so nothing can
/// make those arrays writable.
#[pyclass(frozen, module = "infercache._core")]
pub struct SharedBuffer(EntryRef);

#[pymethods]
impl SharedBuffer {
    /// Bytes of the buffer, all arrays of the value together.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.payload().len()
    }

    fn __repr__(&self) -> String {
        format!("<infercache buffer of {} bytes>", self.0.payload().len())
    }
}

/// Where a value's arrays come from: an entry, shared or copied.
pub(super) struct Source<'a, 'py> {
    entry: &'a EntryRef,
    copy: bool,
    shared: OnceCell<Bound<'py, SharedBuffer>>,
}

impl<'a, 'py> Source<'a, 'py> {
    pub fn new(entry: &'a EntryRef, copy: bool) -> Self {
        Source { entry, copy, shared: OnceCell::new() }
    }

    /// The one object that owns the entry for all arrays of this value.
    fn owner(&self, py: Python<'py>) -> PyResult<Bound<'py, SharedBuffer>> {
        if let Some(shared) = self.shared.get() {
            return Ok(shared.clone());
        }
        let shared = Bound::new(py, SharedBuffer(self.entry.clone()))?;
        Ok(self.shared.get_or_init(|| shared).clone())
    }
}

/// An array's elements where they lie, in one block.
pub(super) struct View<'py> {
    pub elements: Elements,
    pub flags: u8,
    /// The array, or a copy of it in C order; it owns what `bytes` and `dims` borrow.
    array: Bound<'py, PyAny>,
}

impl<'py> View<'py> {
    /// A view of an exact `numpy.ndarray`; `rows` asks for C order, so that rows follow one another.
    pub fn new(array: &Bound<'py, PyUntypedArray>, rows: bool) -> PyResult<Result<View<'py>, String>> {
        let py = array.py();
        let object = object(array.as_any());
        let elements = match dtypes::elements(&descr_of(py, object.descr))? {
            Ok(elements) => elements,
            Err(reason) => return Ok(Err(reason)),
        };
        let fortran = object.flags & NPY_ARRAY_F_CONTIGUOUS != 0 && !rows;
        let (flags, array) = if object.flags & NPY_ARRAY_C_CONTIGUOUS != 0 {
            (elements.flags, array.as_any().clone())
        } else if fortran {
            (elements.flags | FLAG_FORTRAN, array.as_any().clone())
        } else {
            // SAFETY: an array, and an order that NumPy knows; the result is a new array or null with an exception set.
            let copy = unsafe {
                let copy = PY_ARRAY_API.PyArray_NewCopy(py, array.as_ptr().cast(), NPY_ORDER::NPY_CORDER);
                Bound::from_owned_ptr_or_err(py, copy)?
            };
            (elements.flags, copy)
        };
        Ok(Ok(View { elements, flags, array }))
    }

    /// The dimensions.
    pub fn dims(&self) -> &[npy_intp] {
        let object = object(&self.array);
        if object.nd == 0 {
            return &[];
        }
        // SAFETY: an array has `nd` dimensions, which live as long as the array does and change only if someone reshapes it
        // in place meanwhile, which needs the interpreter that we hold.
        unsafe { std::slice::from_raw_parts(object.dimensions, object.nd as usize) }
    }

    /// The elements' bytes, in the order that `flags` says.
    pub fn bytes(&self) -> &[u8] {
        let len = self.dims().iter().map(|&dim| dim as usize).product::<usize>() * self.elements.item_size;
        if len == 0 {
            return &[];
        }
        // SAFETY: a contiguous array holds the product of its dimensions times the item size in bytes from `data` on, and
        // lives as long as `self`. Its elements are plain bytes: `elements` admits no dtype that holds objects.
        unsafe { std::slice::from_raw_parts(object(&self.array).data.cast::<u8>(), len) }
    }

    /// The payload of kind `kind` of the elements in `bytes`, of these dimensions; without the interpreter if it is large.
    pub fn payload(&self, kind: u8, bytes: &[u8], dims: &[npy_intp]) -> Result<Encoded, String> {
        let bytes = copied(self.array.py(), bytes, &self.elements.descriptor(self.flags, dims))?;
        Ok(Encoded { kind, aligned: true, bytes })
    }

    /// The whole as a payload of its own, the elements where they lie.
    pub fn lend(self) -> Payload<'py> {
        let descriptor = self.elements.descriptor(self.flags, self.dims());
        // SAFETY: an array keeps its elements where they are while it is referred to: NumPy refuses to resize it then.
        unsafe { Payload::lent(kind::TENSOR, true, self.array.clone(), self.bytes(), descriptor) }
    }

    /// Adds the array to a skeleton.
    pub fn write(&self, writer: &mut Writer) -> Result<(), String> {
        let (bytes, flags, dims) = (self.bytes(), self.flags, self.dims());
        let Elements { dtype, parameter, .. } = self.elements;
        let add = || writer.tensor(dtype, flags, parameter, dims.iter().map(|&dim| dim as u64), bytes);
        released_from(self.array.py(), COPY_FROM, bytes.len(), add).map_err(|_| no_memory(bytes.len()))
    }
}

impl Elements {
    /// The descriptor of a tensor of these elements.
    pub(super) fn descriptor(&self, flags: u8, dims: &[npy_intp]) -> Vec<u8> {
        let mut descriptor = Vec::with_capacity(8 * dims.len() + 16);
        write_descriptor(&mut descriptor, self.dtype, flags, self.parameter, dims.iter().map(|&dim| dim as u64));
        descriptor
    }
}

/// The C structure of an array.
fn object<'a>(array: &'a Bound<'_, PyAny>) -> &'a PyArrayObject {
    // SAFETY: callers hand in instances of ndarray, whose structure begins with these fields in NumPy 1 and 2.
    unsafe { &*array.as_ptr().cast::<PyArrayObject>() }
}

/// A whole array as a payload of its own, its elements where they lie.
pub(super) fn encode<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Result<Payload<'py>, String>> {
    Ok(View::new(array, false)?.map(View::lend))
}

/// A copy of `bytes` and then `tail`, without the interpreter if it is large, unless memory is too short: then the value
/// goes uncached, and the process on.
pub(super) fn copied(py: Python<'_>, bytes: &[u8], tail: &[u8]) -> Result<Vec<u8>, String> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len() + tail.len()).map_err(|_| no_memory(bytes.len()))?;
    Ok(released_from(py, COPY_FROM, bytes.len(), || {
        copy.extend_from_slice(bytes);
        copy.extend_from_slice(tail);
        copy
    }))
}

/// The reason for a value that memory is too short for.
pub fn no_memory(len: usize) -> String {
    format!("there is no memory to copy its {len} bytes")
}

/// Adds a NumPy (or ml_dtypes) scalar to a skeleton; `Err` is the reason why it cannot be.
pub(super) fn write_scalar(value: &Bound<'_, PyAny>, writer: &mut Writer) -> PyResult<Result<(), String>> {
    let py = value.py();
    let array =
        py.import(crate::lazy::intern!(py, "numpy"))?.call_method1(crate::lazy::intern!(py, "asarray"), (value,))?;
    let array = array.cast_into::<PyUntypedArray>()?;
    Ok(View::new(&array, false)?.map(|view| {
        writer.scalar(view.elements.dtype, view.elements.flags, view.elements.parameter, view.bytes());
    }))
}

/// The NumPy scalar of a tensor without dimensions.
pub(super) fn scalar<'py>(py: Python<'py>, tensor: &Tensor<'_>) -> PyResult<Bound<'py, PyAny>> {
    let descr = dtypes::descr(py, tensor)?;
    check_elements(py, tensor, tensor.elements)?;
    let mut element = tensor.elements.to_vec();
    // SAFETY: `element` holds an item of the dtype, which NumPy copies bytewise; a base is only wanted for structures.
    unsafe {
        let scalar =
            PY_ARRAY_API.PyArray_Scalar(py, element.as_mut_ptr().cast(), descr.as_dtype_ptr(), ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, scalar)
    }
}

/// The array of a stored tensor: over the entry's buffer and read-only, or fresh and writable.
pub(super) fn array<'py>(
    py: Python<'py>,
    tensor: &Tensor<'_>,
    source: &Source<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    check_elements(py, tensor, tensor.elements)?;
    let address = tensor.elements.as_ptr();
    // An entry that does not lie as it should is copied: NumPy may assume alignment.
    let misaligned = !(address as usize).is_multiple_of(TENSOR_ALIGN) && !tensor.elements.is_empty();
    if source.copy || misaligned {
        let array = fresh(py, tensor, None)?;
        let whole = Rows { size: tensor.elements.len(), suffix: &[] };
        fill(&array, whole, [Some(tensor.elements)].into_iter());
        if !source.copy {
            array.call_method1(crate::lazy::intern!(py, "setflags"), (false,))?;
        }
        return Ok(array);
    }
    let mut dims = [0; MAX_DIMENSIONS];
    let ndim = fill_dims(&mut dims, tensor);
    let descr = dtypes::descr(py, tensor)?;
    let owner = source.owner(py)?;
    let fortran = tensor.flags & FLAG_FORTRAN != 0;
    let flags = if fortran { NPY_ARRAY_FARRAY_RO } else { NPY_ARRAY_CARRAY_RO };
    // SAFETY: `dims` holds `ndim` dimensions whose product times the item size is the length of `elements` (the reader
    // checked it), in the order that `flags` says; NumPy takes over our reference to the dtype. The memory is never written:
    // WRITEABLE is not among the flags, and `owner`, which becomes the base, exports no buffer, so NumPy refuses to set it.
    // It lives as long as the array: `owner` holds the entry and the array holds `owner`.
    unsafe {
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            PY_ARRAY_API.get_type_object(py, NpyTypes::PyArray_Type),
            descr.into_dtype_ptr(),
            ndim as c_int,
            dims.as_mut_ptr(),
            ptr::null_mut(),
            address.cast_mut().cast(),
            flags & !NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED,
            ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), owner.into_ptr()) != 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array)
    }
}

/// A fresh, writable array of a tensor's dtype and shape, with `rows` in front of it; its elements are not yet set.
pub(super) fn fresh<'py>(py: Python<'py>, tensor: &Tensor<'_>, rows: Option<usize>) -> PyResult<Bound<'py, PyAny>> {
    let mut dims = [0; MAX_DIMENSIONS + 1];
    let front = usize::from(rows.is_some());
    dims[0] = rows.unwrap_or(0) as npy_intp;
    let ndim = front + fill_dims(&mut dims[front..], tensor);
    let descr = dtypes::descr(py, tensor)?;
    let fortran = c_int::from(tensor.flags & FLAG_FORTRAN != 0 && rows.is_none());
    // SAFETY: `dims` holds `ndim` dimensions; without data NumPy allocates, with an order in `flags`; it takes over our
    // reference to the dtype and returns a new array, or null with an exception set (too many dimensions, no memory).
    unsafe {
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            PY_ARRAY_API.get_type_object(py, NpyTypes::PyArray_Type),
            descr.into_dtype_ptr(),
            ndim as c_int,
            dims.as_mut_ptr(),
            ptr::null_mut(),
            ptr::null_mut(),
            fortran,
            ptr::null_mut(),
        );
        Bound::from_owned_ptr_or_err(py, array)
    }
}

/// Rows to be copied one behind the other: of each payload the first `size` bytes, behind which `suffix` must stand.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub size: usize,
    pub suffix: &'a [u8],
}

impl Rows<'_> {
    /// Copies; false, and what was copied is of no use, where a payload is none, or not of this form.
    ///
    /// The bytes behind the elements are looked at after these were copied, when the processor has fetched them already.
    ///
    /// # Safety
    /// `to` has room for `size` bytes for each payload, and is nobody else's.
    pub unsafe fn copy<'p>(self, mut to: *mut u8, payloads: impl Iterator<Item = Option<&'p [u8]>>) -> bool {
        for payload in payloads {
            let Some((elements, suffix)) = payload.and_then(|payload| payload.split_at_checked(self.size)) else {
                return false;
            };
            // SAFETY: the caller's promise; a torch tensor without elements has no memory, but then `size` is 0.
            unsafe {
                to.copy_from_nonoverlapping(elements.as_ptr(), self.size);
                to = to.add(self.size);
            }
            if suffix != self.suffix {
                return false;
            }
        }
        true
    }
}

/// Sets the elements of an array from [`fresh`], which has as many rows as there are payloads.
pub(super) fn fill<'p>(
    array: &Bound<'_, PyAny>,
    rows: Rows<'_>,
    payloads: impl Iterator<Item = Option<&'p [u8]>>,
) -> bool {
    let object = object(array);
    let dims = (0..object.nd as usize).map(|axis| {
        // SAFETY: an array has `nd` dimensions.
        unsafe { *object.dimensions.add(axis) as usize }
    });
    let room = dims.product::<usize>() * descr_of(array.py(), object.descr).itemsize();
    let fit = room.checked_div(rows.size).unwrap_or(usize::MAX);
    // SAFETY: the array is new, so nobody else sees it, and has room for so many payloads.
    unsafe { rows.copy(object.data.cast::<u8>(), payloads.take(fit)) }
}

/// The dimensions as NumPy counts them; the reader has checked that each fits.
fn fill_dims(dims: &mut [npy_intp], tensor: &Tensor<'_>) -> usize {
    for (slot, dim) in dims.iter_mut().zip(tensor.dims()) {
        *slot = dim as npy_intp;
    }
    tensor.ndim()
}

/// Text must be code points: Python makes strings of them without asking.
pub(super) fn check_elements(py: Python<'_>, tensor: &Tensor<'_>, elements: &[u8]) -> PyResult<()> {
    if tensor.dtype != Dtype::Str {
        return Ok(());
    }
    let big_endian = tensor.flags & infercache_core::value::FLAG_BIG_ENDIAN != 0;
    let decode = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
    if elements.as_chunks::<4>().0.iter().all(|&point| decode(point) <= 0x10_ffff) {
        Ok(())
    } else {
        Err(to_python(py, &corrupt("an array of text with a number that is no code point")))
    }
}
