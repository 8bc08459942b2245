//! The digest of a tensor (key specification, section 3): plain BLAKE3 of its elements, little-endian, in C order.
//!
//! Strides, byte order and alignment never show, and no contiguous copy of a whole tensor is ever made: what is not
//! contiguous goes piece by piece through a bounded block. A plain BLAKE3 is a tree over 1,024-byte chunks, so the pieces
//! of a large tensor, contiguous or not, are hashed by several threads and merged; see [`THREADS_FROM`].

mod content; // the bytes of a tensor, piece by piece
mod gather; // elements from where they lie into a block
mod threads; // the pieces of one tensor, hashed by several threads

pub(crate) use threads::merged_root;
pub use threads::{STRIDED_THREADS_FROM, THREADS_FROM, hash_threads, set_hash_threads};

use crate::pieces;
use content::Content;

/// Where a tensor's elements lie, as NumPy and the buffer protocol say it.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Elements along each axis; empty for a 0-d tensor, which has one element.
    pub shape: Vec<usize>,
    /// Bytes from one element to the next along each axis; may be zero or negative.
    pub strides: Vec<isize>,
    /// Bytes of one element: 1, 2, 4, 8 or 16.
    pub itemsize: usize,
    /// Bytes of the unit whose order is to be reversed: 0 or 1 where the elements are little-endian already, otherwise
    /// `itemsize`, or half of it for complex numbers.
    pub swap: usize,
    /// Signs that are to be turned; `None` where all stay.
    pub signs: Option<Signs>,
}

/// Signs that a library has promised to turn and has not turned in memory (torch's negative and conjugate bits): the
/// topmost bits of the bytes `first`, `first + step`, … of the little-endian elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// The first of these bytes.
    pub first: usize,
    /// From one to the next: divides the size of an element.
    pub step: usize,
}

impl Signs {
    /// The signs of floating-point elements of `itemsize` bytes, complex ones with parts of `part` bytes; for others `part`
    /// is `itemsize`.
    ///
    /// `negated` turns every sign; `conjugated` turns those of the imaginary parts, again if both are true.
    pub fn of(itemsize: usize, part: usize, negated: bool, conjugated: bool) -> Option<Signs> {
        match (negated, conjugated) {
            (false, false) => None,
            (true, false) => Some(Signs { first: part - 1, step: part }),
            (false, true) => Some(Signs { first: itemsize - 1, step: itemsize }),
            (true, true) => Some(Signs { first: part - 1, step: itemsize }),
        }
    }
}

impl Layout {
    /// The layout of `shape` elements one after another in C order.
    pub fn contiguous(shape: &[usize], itemsize: usize, swap: usize) -> Layout {
        let mut strides = vec![0isize; shape.len()];
        let mut step = itemsize as isize;
        for (stride, &length) in strides.iter_mut().zip(shape).rev() {
            *stride = step;
            step = step.wrapping_mul(length as isize);
        }
        Layout { shape: shape.to_vec(), strides, itemsize, swap, signs: None }
    }

    /// Whether the elements lie in memory as they are hashed: one after another in C order, little-endian, with their signs.
    pub fn is_plain(&self) -> bool {
        let contiguous = || Layout::contiguous(&self.shape, self.itemsize, 0).strides == self.strides;
        self.swap <= 1 && self.signs.is_none() && contiguous()
    }

    /// Bytes of all elements; `None` where the product does not fit.
    pub fn content_bytes(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.itemsize, |bytes, &length| bytes.checked_mul(length))
    }

    /// Drops axes of length one and joins neighbours that one stride walks through: the same elements in the same order.
    fn simplified(&self) -> Layout {
        let mut shape: Vec<usize> = Vec::with_capacity(self.shape.len());
        let mut strides: Vec<isize> = Vec::with_capacity(self.shape.len());
        for (&length, &stride) in self.shape.iter().zip(&self.strides).filter(|(length, _)| **length != 1) {
            match (shape.last_mut(), strides.last_mut()) {
                (Some(outer), Some(step)) if stride.checked_mul(length as isize) == Some(*step) => {
                    *outer *= length;
                    *step = stride;
                }
                _ => {
                    shape.push(length);
                    strides.push(stride);
                }
            }
        }
        Layout { shape, strides, ..*self }
    }
}

/// Plain BLAKE3 of the elements of a strided tensor, with several threads where that measured faster.
///
/// # Safety
///
/// `data` is the address of the element whose indices are all zero, every element that `layout` reaches lies in memory
/// that stays allocated during the call, and nobody frees or moves it. (A value that another thread writes meanwhile is
/// the caller's race, as with every reader of a shared buffer.)
pub unsafe fn digest(data: *const u8, layout: &Layout) -> [u8; 32] {
    if layout.content_bytes().expect("the elements of an existing tensor fit the address space") == 0 {
        return *blake3::hash(b"").as_bytes();
    }
    // SAFETY: as the caller vouches.
    threads::digest(&unsafe { Content::new(data, layout) })
}

/// Plain BLAKE3 of contiguous bytes, with several threads where that measured faster.
pub fn digest_bytes(bytes: &[u8]) -> [u8; 32] {
    threads::digest(&Content::of_bytes(bytes))
}

/// Plain BLAKE3 of bytes that come one part after another, of which only the last ones need to be anywhere.
#[derive(Debug, Default)]
pub struct Parts(blake3::Hasher);

impl Parts {
    /// Adds the next bytes.
    pub fn update(&mut self, part: &[u8]) {
        if pieces::needed(part.len()) {
            pieces::update(&mut self.0, part);
        } else {
            self.0.update(part);
        }
    }

    /// The digest of all bytes so far.
    pub fn digest(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests;
