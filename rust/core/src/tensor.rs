//! The digest of a tensor (key specification, section 3): plain BLAKE3 of its elements, little-endian, in C order.
//!
//! Strides, byte order and alignment never show, and no contiguous copy of a whole tensor is ever made: what is not
//! contiguous goes through a bounded block. A plain BLAKE3 is a tree over 1,024-byte chunks, so the parts of a long
//! contiguous run are hashed by several threads and merged; see [`THREADS_FROM`].

use crate::pieces;
use blake3::Hasher;

mod threads; // one long run of bytes, hashed by several threads

pub(crate) use threads::merged_root;
pub use threads::{THREADS_FROM, digest_bytes, digest_with};

/// Bytes of the block that strided elements pass through: half of a usual L2 cache at most.
const BLOCK_BYTES: usize = 64 << 10;

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
        Layout { shape: shape.to_vec(), strides, itemsize, swap }
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
        Layout { shape, strides, itemsize: self.itemsize, swap: self.swap }
    }
}

/// Plain BLAKE3 of the elements of a strided tensor.
///
/// # Safety
///
/// `data` is the address of the element whose indices are all zero, every element that `layout` reaches lies in memory
/// that stays allocated during the call, and nobody frees or moves it. (A value that another thread writes meanwhile is
/// the caller's race, as with every reader of a shared buffer.)
pub unsafe fn digest(data: *const u8, layout: &Layout) -> [u8; 32] {
    let total = layout.content_bytes().expect("the elements of an existing tensor fit the address space");
    if total == 0 {
        return *blake3::hash(b"").as_bytes();
    }
    let simple = layout.simplified();
    let swap = if simple.swap > 1 { simple.swap } else { 0 };
    let contiguous = simple.shape.is_empty() || simple.strides == [simple.itemsize as isize];
    if contiguous && swap == 0 {
        // SAFETY: the caller vouches for all elements, which lie one after another.
        return digest_bytes(unsafe { std::slice::from_raw_parts(data, total) });
    }
    let mut gather = Gather { hasher: Hasher::new(), block: Vec::with_capacity(BLOCK_BYTES.min(total)), swap };
    // SAFETY: as the caller vouches.
    unsafe { gather.walk(data, &simple.shape, &simple.strides, simple.itemsize) };
    gather.flush();
    *gather.hasher.finalize().as_bytes()
}

/// Elements on their way from a strided tensor into the hasher.
struct Gather {
    hasher: Hasher,
    block: Vec<u8>,
    swap: usize,
}

impl Gather {
    fn flush(&mut self) {
        match self.swap {
            2 => reverse::<2>(&mut self.block),
            4 => reverse::<4>(&mut self.block),
            8 => reverse::<8>(&mut self.block),
            _ => {}
        }
        self.hasher.update(&self.block);
        self.block.clear();
    }

    /// # Safety
    ///
    /// As [`digest`]: every element that the axes reach from `data` can be read.
    unsafe fn walk(&mut self, data: *const u8, shape: &[usize], strides: &[isize], itemsize: usize) {
        match (shape, strides) {
            // SAFETY: as the caller vouches.
            ([], _) => unsafe { self.run(data, 1, itemsize as isize, itemsize) },
            // SAFETY: as the caller vouches.
            ([length], [stride]) => unsafe { self.run(data, *length, *stride, itemsize) },
            // SAFETY: as the caller vouches.
            ([rows, columns], [down, across]) if down.unsigned_abs() < across.unsigned_abs() => unsafe {
                self.transposed(data, [*rows, *columns], [*down, *across], itemsize);
            },
            ([length, inner @ ..], [stride, steps @ ..]) => {
                for at in 0..*length {
                    // SAFETY: one more step along an axis of the tensor.
                    unsafe { self.walk(data.offset(at as isize * stride), inner, steps, itemsize) };
                }
            }
            _ => unreachable!("an axis has a length and a stride"),
        }
    }

    /// One axis of `length` elements.
    ///
    /// # Safety
    ///
    /// As [`digest`].
    unsafe fn run(&mut self, data: *const u8, length: usize, stride: isize, itemsize: usize) {
        if stride == itemsize as isize && self.swap == 0 && length * itemsize >= BLOCK_BYTES / 4 {
            self.flush();
            // SAFETY: `length` elements one after another.
            pieces::update(&mut self.hasher, unsafe { std::slice::from_raw_parts(data, length * itemsize) });
            return;
        }
        let mut done = 0;
        while done < length {
            if self.block.len() + itemsize > BLOCK_BYTES {
                self.flush();
            }
            let count = ((BLOCK_BYTES - self.block.len()) / itemsize).min(length - done);
            // SAFETY: `count` of the remaining elements.
            unsafe { self.append(data.offset(done as isize * stride), count, stride, itemsize) };
            done += count;
        }
    }

    /// Two axes of which the outer one has the closer neighbours (a Fortran-ordered matrix): several rows are filled
    /// together, column by column, so that each cache line is fetched once and not once a row.
    ///
    /// # Safety
    ///
    /// As [`digest`].
    unsafe fn transposed(&mut self, data: *const u8, shape: [usize; 2], strides: [isize; 2], itemsize: usize) {
        let ([rows, columns], [down, across]) = (shape, strides);
        let row_bytes = columns * itemsize;
        let together = (BLOCK_BYTES / row_bytes).min(rows);
        if together < 4 {
            for row in 0..rows {
                // SAFETY: a row of the tensor.
                unsafe { self.run(data.offset(row as isize * down), columns, across, itemsize) };
            }
            return;
        }
        let mut row = 0;
        while row < rows {
            self.flush();
            let count = together.min(rows - row);
            self.block.resize(count * row_bytes, 0);
            let target = self.block.as_mut_ptr();
            for column in 0..columns {
                // SAFETY: the first of `count` elements of this column, and its place in the first row of the block,
                // which has `count` rows of `row_bytes` bytes.
                unsafe {
                    let source = data.offset(row as isize * down + column as isize * across);
                    copy(source, down, target.add(column * itemsize), row_bytes as isize, count, itemsize);
                }
            }
            row += count;
        }
    }

    /// # Safety
    ///
    /// As [`digest`], and the block has room for `count` elements.
    unsafe fn append(&mut self, data: *const u8, count: usize, stride: isize, itemsize: usize) {
        let start = self.block.len();
        self.block.reserve(count * itemsize);
        // SAFETY: the room was just made; the new length covers exactly the elements that are written.
        unsafe {
            copy(data, stride, self.block.as_mut_ptr().add(start), itemsize as isize, count, itemsize);
            self.block.set_len(start + count * itemsize);
        }
    }
}

/// Copies `count` elements of `itemsize` bytes from one stride to another.
///
/// # Safety
///
/// All elements of both sides are within memory that can be read and written respectively, and do not overlap.
unsafe fn copy(from: *const u8, step: isize, to: *mut u8, to_step: isize, count: usize, itemsize: usize) {
    // SAFETY: passed on unchanged; T only gives the size, as both accesses are unaligned ones.
    unsafe {
        match itemsize {
            1 => copy_as::<u8>(from, step, to, to_step, count),
            2 => copy_as::<u16>(from, step, to, to_step, count),
            4 => copy_as::<u32>(from, step, to, to_step, count),
            8 => copy_as::<u64>(from, step, to, to_step, count),
            16 => copy_as::<u128>(from, step, to, to_step, count),
            _ => {
                for at in 0..count as isize {
                    from.offset(at * step).copy_to_nonoverlapping(to.offset(at * to_step), itemsize);
                }
            }
        }
    }
}

/// # Safety
///
/// As [`copy`], for elements of the size of `T`.
#[inline(always)]
unsafe fn copy_as<T>(from: *const u8, step: isize, to: *mut u8, to_step: isize, count: usize) {
    for at in 0..count as isize {
        // SAFETY: an element of each side; unaligned, so any address will do.
        unsafe {
            to.offset(at * to_step).cast::<T>().write_unaligned(from.offset(at * step).cast::<T>().read_unaligned())
        };
    }
}

/// Reverses the bytes of each unit of `N`.
fn reverse<const N: usize>(bytes: &mut [u8]) {
    for unit in bytes.chunks_exact_mut(N) {
        unit.reverse();
    }
}

#[cfg(test)]
mod tests;
