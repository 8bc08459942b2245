//! Tensors of torch on the CPU or a CUDA device, where a hit puts them again. torch is used only where it is loaded
//! already, or where stored bytes are torch's.
//!
//! torch knows no read-only tensor: one over the cache's buffer could be written through, so each hit gets a fresh copy.

use crate::lazy::Lazy;
use crate::lazy::intern;
use infercache_core::value::{
    Dtype, FLAG_BIG_ENDIAN, FLAG_DEVICE, FLAG_TORCH, Tensor, Writer, corrupt, kind, write_descriptor,
};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arrays::{Rows, copied, no_memory};
use super::{Encoded, Payload};
use crate::errors::to_python;
use crate::released::{COPY_FROM, released_from};

/// Element types that both torch and the format have, by torch's names, which are the format's.
fn has(dtype: Dtype) -> bool {
    !dtype.has_parameter() && !matches!(dtype, Dtype::Float8E3M4 | Dtype::Float8E4M3 | Dtype::Float8E4M3B11Fnuz)
}

/// Whether the exact class is `torch.Tensor`.
pub(super) fn is_tensor(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    static TENSOR: Lazy<Py<PyAny>> = Lazy::new();
    let py = value.py();
    if let Some(tensor) = TENSOR.get(py) {
        return Ok(value.get_type().is(tensor));
    }
    let class = value.get_type();
    if class.module()? != "torch" || class.name()? != "Tensor" {
        return Ok(false);
    }
    let tensor = py.import(intern!(py, "torch"))?.getattr(intern!(py, "Tensor"))?;
    let found = class.is(&tensor);
    TENSOR.keep(py, tensor.unbind());
    Ok(found)
}

/// A tensor's elements in C order.
pub(super) struct View<'py> {
    pub dtype: Dtype,
    flags: u8,
    pub dims: Vec<u64>,
    /// Owns the memory at `address`.
    tensor: Bound<'py, PyAny>,
    address: usize,
    len: usize,
}

impl<'py> View<'py> {
    /// A view of a tensor; `Err` is the reason why it cannot be stored.
    pub fn new(tensor: &Bound<'py, PyAny>) -> PyResult<Result<View<'py>, String>> {
        let py = tensor.py();
        let text = |name: &str| -> PyResult<String> { Ok(tensor.getattr(name)?.str()?.to_str()?.to_owned()) };
        let device = tensor.getattr(intern!(py, "device"))?.getattr(intern!(py, "type"))?;
        let on_cuda = device.eq(intern!(py, "cuda"))?;
        if !on_cuda && !device.eq(intern!(py, "cpu"))? {
            return Ok(Err(format!("a tensor on device {device} cannot be stored; return it on the CPU")));
        }
        if text("layout")? != "torch.strided" {
            return Ok(Err(format!("a tensor of layout {} cannot be stored; return a dense one", text("layout")?)));
        }
        if tensor.getattr(intern!(py, "requires_grad"))?.is_truthy()? {
            return Ok(Err("a tensor that requires grad cannot be stored; detach() it or use torch.no_grad()".into()));
        }
        let name = text("dtype")?;
        let known =
            Dtype::ALL.into_iter().find(|&dtype| has(dtype) && name.strip_prefix("torch.") == Some(dtype.name()));
        let Some(dtype) = known else { return Ok(Err(format!("a tensor of dtype {name} cannot be stored"))) };
        let plain = tensor
            .call_method0(intern!(py, "resolve_conj"))?
            .call_method0(intern!(py, "resolve_neg"))?
            .call_method0(intern!(py, "contiguous"))?;
        // Waits for the current stream, on which the elements were made.
        let plain = if on_cuda { plain.call_method0(intern!(py, "cpu"))? } else { plain };
        let dims: Vec<u64> = plain.getattr(intern!(py, "shape"))?.extract()?;
        if dims.len() > infercache_core::value::MAX_DIMENSIONS {
            return Ok(Err(format!("a tensor of {} dimensions cannot be stored", dims.len())));
        }
        let count: usize = plain.call_method0(intern!(py, "numel"))?.extract()?;
        let len = count * dtype.item_size().unwrap_or_default();
        let address = plain.call_method0(intern!(py, "data_ptr"))?.extract()?;
        if address == 0 && len != 0 {
            return Ok(Err("a tensor without memory of its own cannot be stored".into()));
        }
        // Whoever resizes a storage (FSDP does) leaves the tensors over it as they are.
        let offset: usize = plain.call_method0(intern!(py, "storage_offset"))?.extract()?;
        let item = dtype.item_size().unwrap_or_default();
        let storage = plain.call_method0(intern!(py, "untyped_storage"))?;
        if len != 0 && storage.call_method0(intern!(py, "nbytes"))?.extract::<usize>()? < offset * item + len {
            return Ok(Err("a tensor whose storage was shrunk cannot be stored".into()));
        }
        let flags = if on_cuda { FLAGS | FLAG_DEVICE } else { FLAGS };
        Ok(Ok(View { dtype, flags, dims, tensor: plain, address, len }))
    }

    /// The elements' bytes.
    pub fn bytes(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: a contiguous strided CPU tensor holds `numel` elements from `data_ptr` on, which `tensor` keeps alive; its
        // storage was seen to reach that far.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.len) }
    }

    /// The payload of kind `kind` of the elements in `bytes`, of these dimensions; without the interpreter if it is large.
    pub fn payload(&self, kind: u8, bytes: &[u8], dims: &[u64]) -> Result<Encoded, String> {
        let bytes = copied(self.tensor.py(), bytes, &self.descriptor(dims))?;
        Ok(Encoded { kind, aligned: true, bytes })
    }

    fn descriptor(&self, dims: &[u64]) -> Vec<u8> {
        let mut descriptor = Vec::with_capacity(8 * dims.len() + 16);
        write_descriptor(&mut descriptor, self.dtype, self.flags, 0, dims.iter().copied());
        descriptor
    }
}

const FLAGS: u8 = FLAG_TORCH | if cfg!(target_endian = "big") { FLAG_BIG_ENDIAN } else { 0 };

/// A whole tensor as a payload of its own, its elements where they lie.
pub(super) fn encode<'py>(tensor: &Bound<'py, PyAny>) -> PyResult<Result<Payload<'py>, String>> {
    Ok(View::new(tensor)?.map(|view| {
        let descriptor = view.descriptor(&view.dims);
        // SAFETY: a tensor keeps its elements where they are while it is referred to.
        unsafe { Payload::lent(kind::TENSOR, true, view.tensor.clone(), view.bytes(), descriptor) }
    }))
}

/// Adds a tensor to a skeleton.
pub(super) fn write(tensor: &Bound<'_, PyAny>, writer: &mut Writer) -> PyResult<Result<(), String>> {
    Ok(View::new(tensor)?.and_then(|view| {
        let (bytes, dims, dtype, flags) = (view.bytes(), &view.dims, view.dtype, view.flags);
        let add = || writer.tensor(dtype, flags, 0, dims.iter().copied(), bytes);
        released_from(tensor.py(), COPY_FROM, bytes.len(), add).map_err(|_| no_memory(bytes.len()))
    }))
}

/// The tensor of stored elements.
pub(super) fn tensor<'py>(py: Python<'py>, stored: &Tensor<'_>) -> PyResult<Bound<'py, PyAny>> {
    let whole = Rows { size: stored.elements.len(), suffix: &[] };
    let tensor = fresh(py, stored, None, whole, [Some(stored.elements)].into_iter())?;
    tensor.ok_or_else(|| to_python(py, &corrupt("a tensor without elements")))
}

/// A fresh tensor of the dtype and shape of `like`, with as many `rows` in front of it as there are payloads; `None` where
/// one of these is none, or not of the form of the rows.
pub(super) fn fresh<'p, 'py>(
    py: Python<'py>,
    like: &Tensor<'_>,
    rows: Option<usize>,
    form: Rows<'_>,
    payloads: impl Iterator<Item = Option<&'p [u8]>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    if !has(like.dtype) || like.flags & !FLAG_DEVICE != FLAGS {
        return Err(to_python(py, &corrupt(format!("a tensor of {} that torch has not", like.dtype.name()))));
    }
    let torch = py.import(intern!(py, "torch"))?;
    let shape = PyTuple::new(py, rows.map(|rows| rows as u64).into_iter().chain(like.dims()).collect::<Vec<_>>())?;
    let kwargs = PyDict::new(py);
    kwargs.set_item(intern!(py, "dtype"), torch.getattr(like.dtype.name())?)?;
    kwargs.set_item(intern!(py, "device"), intern!(py, "cpu"))?;
    let tensor = torch.call_method(intern!(py, "empty"), (shape,), Some(&kwargs))?;
    if !is_tensor(&tensor)? {
        return Err(to_python(py, &corrupt("torch makes no ordinary tensors here")));
    }
    let room = tensor.call_method0(intern!(py, "numel"))?.extract::<usize>()?.saturating_mul(like.item_size());
    if room != form.size.saturating_mul(rows.unwrap_or(1)) {
        return Err(to_python(py, &corrupt("another number of elements than the shape has")));
    }
    let to = tensor.call_method0(intern!(py, "data_ptr"))?.extract::<usize>()? as *mut u8;
    // SAFETY: the tensor is new, contiguous and on the CPU: nobody else sees it, and it has `room` bytes from `data_ptr` on,
    // which is `size` for each payload; where that is 0, it has no memory and nothing is written.
    let whole = unsafe { form.copy(to, payloads.take(rows.unwrap_or(1))) };
    if !whole || like.flags & FLAG_DEVICE == 0 {
        return Ok(whole.then_some(tensor));
    }
    let results = py.import(intern!(py, "infercache.gpu.results"))?;
    results.call_method1(intern!(py, "torch_tensor"), (tensor,)).map(Some)
}
