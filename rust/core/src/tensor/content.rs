//! The bytes of a tensor as the specification orders them, from any place on: where they lie if they lie so, otherwise
//! gathered into a block of the reader's own. A block of [`PIECE`] bytes stays in a usual L1 or L2 cache until it is hashed.

use super::gather::{self, Axes};
use super::{Layout, Signs};
use std::marker::PhantomData;

/// Bytes of a piece: 32 chunks, some ten microseconds of work, so that nobody waits long for the last one.
pub(super) const PIECE: usize = 32 << 10;
/// Bytes of the longest piece, for layouts of which a shorter one would read every cache line many times.
pub(super) const LONGEST_PIECE: usize = 512 << 10;
/// A tensor is cut into as many pieces at least, where it is long enough.
const LEAST_PIECES: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;

/// The bytes of a tensor that somebody keeps in memory for `'a`.
pub(super) struct Content<'a> {
    data: *const u8,
    /// Bytes of all elements, not zero where `axes` is given.
    pub(super) length: usize,
    /// How the elements are found; `None`: they lie one after another, as they are to be read.
    axes: Option<Axes>,
    swap: usize,
    signs: Option<Signs>,
    itemsize: usize,
    kept: PhantomData<&'a [u8]>,
}

// SAFETY: the memory is only read, and whoever made this vouches that it stays for `'a`.
unsafe impl Send for Content<'_> {}
// SAFETY: as above.
unsafe impl Sync for Content<'_> {}

impl<'a> Content<'a> {
    /// These bytes as they are.
    pub(super) fn of_bytes(bytes: &'a [u8]) -> Content<'a> {
        let (swap, signs, kept) = (0, None, PhantomData);
        Content { data: bytes.as_ptr(), length: bytes.len(), axes: None, swap, signs, itemsize: 1, kept }
    }

    /// The elements of a tensor that has some.
    ///
    /// # Safety
    ///
    /// As [`super::digest`], for `'a`.
    pub(super) unsafe fn new(data: *const u8, layout: &Layout) -> Content<'a> {
        let simple = layout.simplified();
        let swap = if simple.swap > 1 { simple.swap } else { 0 };
        let plain = swap == 0 && simple.signs.is_none();
        let contiguous = simple.shape.is_empty() || simple.strides == [simple.itemsize as isize];
        Content {
            data,
            length: simple.shape.iter().product::<usize>() * simple.itemsize,
            axes: (!contiguous || !plain).then(|| Axes::new(&simple)),
            swap,
            signs: simple.signs,
            itemsize: simple.itemsize,
            kept: PhantomData,
        }
    }

    /// Whether the bytes are hashed where they lie.
    pub(super) fn in_place(&self) -> bool {
        self.axes.is_none()
    }

    /// Bytes of a piece: a power of two of chunks, so that pieces are subtrees of BLAKE3's tree.
    pub(super) fn piece(&self) -> usize {
        let Some(Axes { rows, columns, down, across, .. }) = &self.axes else { return PIECE };
        let (apart, row) = (down.unsigned_abs(), columns * self.itemsize);
        if apart >= LINE || across.unsigned_abs() <= LINE {
            return PIECE;
        }
        // Rows lie side by side within a cache line, and every column has a line of its own: as many rows together as a
        // line holds, so that it is read once. But enough pieces for several threads.
        let together = LINE.div_ceil(apart.max(1)).min(*rows);
        let most = (self.length / LEAST_PIECES).clamp(PIECE, LONGEST_PIECE).next_power_of_two();
        together.saturating_mul(row).min(most).next_power_of_two().max(PIECE)
    }

    /// The bytes from `offset` on, `length` of them, both whole elements: where they lie, or in `block`.
    pub(super) fn part<'b>(&'b self, offset: usize, length: usize, block: &'b mut Vec<u8>) -> &'b [u8] {
        assert!(offset <= self.length && length <= self.length - offset);
        let Some(axes) = &self.axes else {
            // SAFETY: `length` bytes of this content, which lie one after another and stay as long as this.
            return unsafe { std::slice::from_raw_parts(self.data.add(offset), length) };
        };
        if length == 0 {
            return &[];
        }
        let (first, count) = (offset / self.itemsize, length / self.itemsize);
        if self.swap == 0
            && self.signs.is_none()
            && let Some(start) = axes.run(first, count)
        {
            // SAFETY: `count` elements of the tensor from this one on, one after another.
            return unsafe { std::slice::from_raw_parts(self.data.offset(start), length) };
        }
        block.clear();
        block.reserve(length);
        // SAFETY: all of them elements of the tensor, and the block has room for them; `gather` writes each of them.
        unsafe {
            gather::gather(self.data, axes, first, count, block.as_mut_ptr());
            block.set_len(length);
        }
        gather::finish(block, self.swap, self.signs);
        block
    }
}
