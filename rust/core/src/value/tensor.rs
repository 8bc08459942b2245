//! The descriptor of a stored tensor: what its elements are and how they lie.

use super::{Dtype, VERSION, corrupt};
use crate::error::Result;

/// Elements lie in Fortran order (the first index varies fastest).
pub const FLAG_FORTRAN: u8 = 1;
/// Elements of more than one byte are big-endian.
pub const FLAG_BIG_ENDIAN: u8 = 2;
/// The element type is the C type of that size that NumPy does not prefer (`long long` where `int64` is `long`).
pub const FLAG_ALTERNATE: u8 = 4;
/// The tensor was torch's.
pub const FLAG_TORCH: u8 = 8;
/// The tensor was on a CUDA device: torch's with [`FLAG_TORCH`], else CuPy's.
pub const FLAG_DEVICE: u8 = 16;
/// The tensor was JAX's, wherever it was.
pub const FLAG_JAX: u8 = 32;
const FLAGS: u8 = FLAG_FORTRAN | FLAG_BIG_ENDIAN | FLAG_ALTERNATE | FLAG_TORCH | FLAG_DEVICE | FLAG_JAX;

/// More dimensions than NumPy has (64) are corrupt.
pub const MAX_DIMENSIONS: usize = 64;

/// Bytes of a descriptor behind its dimensions and parameter.
const TAIL: usize = 4;

/// The part of a parameter of text and bytes that is the item size.
const ITEM_SIZE: u64 = u32::MAX as u64;

/// The parameter of a row of text or bytes that is stored narrower than the array it is of: the bytes of one element, and
/// above them those of one of the array's. Of a row that is as wide as its array it is the item size alone.
pub fn narrowed(item_size: u32, of_array: u32) -> u64 {
    debug_assert!(item_size < of_array);
    u64::from(item_size) | u64::from(of_array) << 32
}

/// A stored tensor, read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// The `FLAG_…`s.
    pub flags: u8,
    /// Item size of text and bytes (of a narrowed row see [`narrowed`]), unit of times; 0 for other element types.
    pub parameter: u64,
    /// The elements, in C order unless [`FLAG_FORTRAN`] is set.
    pub elements: &'a [u8],
    pub(super) dims: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Reads a payload of kind `TENSOR` or `ROW`: elements, then descriptor, and nothing else.
    ///
    /// # Errors
    /// `CorruptValue` where any length disagrees.
    pub fn parse(payload: &'a [u8]) -> Result<Tensor<'a>> {
        let (tensor, size) = Tensor::describe(payload)?;
        let elements = &payload[..payload.len() - size];
        let wanted = tensor.byte_length()?;
        if elements.len() != wanted {
            return Err(corrupt(format!("a tensor of {} bytes whose shape asks for {wanted}", elements.len())));
        }
        Ok(Tensor { elements, ..tensor })
    }

    /// Reads the descriptor at the end of `bytes`; the elements are left empty. Also returns the descriptor's length in bytes.
    pub(super) fn describe(bytes: &'a [u8]) -> Result<(Tensor<'a>, usize)> {
        let Some((front, &[version, dtype, flags, ndim])) = bytes.split_last_chunk::<TAIL>() else {
            return Err(corrupt("no room for a tensor's descriptor"));
        };
        if version != VERSION {
            return Err(corrupt(format!("tensor descriptor of version {version}, not {VERSION}")));
        }
        let dtype = Dtype::from_code(dtype).ok_or_else(|| corrupt(format!("unknown element type {dtype}")))?;
        if flags & !FLAGS != 0 {
            return Err(corrupt(format!("unknown tensor flags {flags:#04x}")));
        }
        let ndim = usize::from(ndim);
        if ndim > MAX_DIMENSIONS {
            return Err(corrupt(format!("a tensor of {ndim} dimensions")));
        }
        let words = ndim + usize::from(dtype.has_parameter());
        let start = front.len().checked_sub(8 * words).ok_or_else(|| corrupt("no room for a tensor's shape"))?;
        let (dims, rest) = front[start..].split_at(8 * ndim);
        let parameter = rest.try_into().map_or(0, u64::from_le_bytes);
        let tensor = Tensor { dtype, flags, parameter, elements: &[], dims };
        tensor.check_parameter()?;
        Ok((tensor, 8 * words + TAIL))
    }

    fn check_parameter(&self) -> Result<()> {
        let (own, of) = (self.parameter & ITEM_SIZE, self.parameter >> 32);
        // NumPy 1 keeps item sizes in a C int, and takes a size of 0 for "not known yet", so nothing has it.
        let wide = |unit: u64| {
            let is_width = |size: u64| (unit..=i32::MAX as u64).contains(&size) && size.is_multiple_of(unit);
            is_width(own) && (of == 0 || of > own && is_width(of))
        };
        let good = match self.dtype {
            Dtype::Str => wide(4),
            Dtype::Bytes => wide(1),
            Dtype::DateTime64 | Dtype::TimeDelta64 => self.parameter >> 8 <= i32::MAX as u64,
            _ => true,
        };
        if good { Ok(()) } else { Err(corrupt(format!("parameter {} of {}", self.parameter, self.dtype.name()))) }
    }

    /// Number of dimensions, at most [`MAX_DIMENSIONS`].
    pub fn ndim(&self) -> usize {
        self.dims.len() / 8
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.dims.chunks_exact(8).map(|dim| u64::from_le_bytes(dim.try_into().expect("chunks of 8 bytes")))
    }

    /// Bytes of one element.
    pub fn item_size(&self) -> usize {
        // The parameter was checked to fit an i32.
        self.dtype.item_size().unwrap_or((self.parameter & ITEM_SIZE) as usize)
    }

    /// Bytes of one element of the array that this is a row of: of a narrowed one more than its own.
    pub fn array_item_size(&self) -> usize {
        match self.dtype {
            Dtype::Str | Dtype::Bytes if self.parameter > ITEM_SIZE => (self.parameter >> 32) as usize,
            _ => self.item_size(),
        }
    }

    /// Bytes of all elements. The product of the dimensions other than 0, too, must fit an `isize`: strides are made of it.
    ///
    /// # Errors
    /// `CorruptValue` where it does not.
    pub fn byte_length(&self) -> Result<usize> {
        let mut product = self.item_size();
        let mut empty = false;
        for dim in self.dims() {
            empty |= dim == 0;
            product = usize::try_from(dim.max(1))
                .ok()
                .and_then(|dim| product.checked_mul(dim))
                .filter(|&bytes| bytes <= isize::MAX as usize)
                .ok_or_else(|| corrupt("a tensor's shape is larger than any memory"))?;
        }
        Ok(if empty { 0 } else { product })
    }
}

/// Appends a descriptor to `out`. `parameter` counts only for element types that have one.
pub fn write_descriptor(
    out: &mut Vec<u8>,
    dtype: Dtype,
    flags: u8,
    parameter: u64,
    dims: impl ExactSizeIterator<Item = u64>,
) {
    debug_assert!(dims.len() <= MAX_DIMENSIONS && flags & !FLAGS == 0);
    let ndim = dims.len() as u8;
    for dim in dims {
        out.extend_from_slice(&dim.to_le_bytes());
    }
    if dtype.has_parameter() {
        out.extend_from_slice(&parameter.to_le_bytes());
    }
    out.extend_from_slice(&[VERSION, dtype.code(), flags, ndim]);
}
