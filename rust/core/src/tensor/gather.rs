//! Elements from where they lie, whatever the strides, one after another into a block.
//!
//! The innermost two axes are the rows and columns of a matrix, which is copied in the order that suits its strides; the
//! axes outside are counted through.

use super::{Layout, Signs};
use std::mem::MaybeUninit;

/// Columns up to which a matrix is copied column by column, since a loop for each row would cost more than the row.
const FEW_COLUMNS: usize = 16;
/// Bytes of a cache line: where rows are the closer neighbours, so many of some columns are copied together.
const LINE: usize = 64;

/// The axes of a tensor that has elements.
pub(super) struct Axes {
    /// Lengths and strides of the axes outside the matrices, from the outermost.
    outer: Vec<(usize, isize)>,
    /// Rows of a matrix,
    pub(super) rows: usize,
    /// columns of one, and bytes from a row to the next, from a column to the next.
    pub(super) columns: usize,
    pub(super) down: isize,
    pub(super) across: isize,
    itemsize: usize,
}

impl Axes {
    /// The axes of a simplified layout.
    pub(super) fn new(layout: &Layout) -> Axes {
        let mut axes: Vec<(usize, isize)> = layout.shape.iter().copied().zip(layout.strides.iter().copied()).collect();
        let (columns, across) = axes.pop().unwrap_or((1, layout.itemsize as isize));
        let (rows, down) = axes.pop().unwrap_or((1, 0));
        Axes { outer: axes, rows, columns, down, across, itemsize: layout.itemsize }
    }

    /// Bytes from the first element to the matrix of this number.
    fn matrix(&self, mut number: usize) -> isize {
        let mut offset = 0;
        for &(length, stride) in self.outer.iter().rev() {
            offset += (number % length) as isize * stride;
            number /= length;
        }
        offset
    }

    /// Bytes from the first element of all to `first`, if the `count` elements from there on lie one after another.
    pub(super) fn run(&self, first: usize, count: usize) -> Option<isize> {
        let column = first % self.columns;
        if self.across != self.itemsize as isize || count > self.columns - column {
            return None;
        }
        let row = first / self.columns;
        let in_matrix = (row % self.rows) as isize * self.down + column as isize * self.across;
        Some(self.matrix(row / self.rows) + in_matrix)
    }
}

/// Copies `count` elements from the one of number `first` (in C order) on to `to`.
///
/// # Safety
///
/// `data` is the address of the first element of all, all these elements can be read, and there is room for them at `to`.
pub(super) unsafe fn gather(data: *const u8, axes: &Axes, first: usize, count: usize, mut to: *mut u8) {
    let size = axes.rows * axes.columns;
    let (mut number, mut from, mut left) = (first / size, first % size, count);
    while left > 0 {
        let here = left.min(size - from);
        // SAFETY: elements of this matrix, and room for them.
        unsafe {
            matrix(data.offset(axes.matrix(number)), axes, from, from + here, to);
            to = to.add(here * axes.itemsize);
        }
        (number, from, left) = (number + 1, 0, left - here);
    }
}

/// Copies the elements of a matrix from number `from` until `until` to `to`.
///
/// # Safety
///
/// As [`gather`], for a matrix at `data`.
unsafe fn matrix(data: *const u8, axes: &Axes, from: usize, until: usize, to: *mut u8) {
    let Axes { columns, down, across, itemsize, .. } = *axes;
    let (row, begun) = (from / columns, from % columns);
    let (last, more) = (until / columns, until % columns);
    // SAFETY: in each call, elements of the matrix, and their places in the block.
    unsafe {
        let source = |row: usize, column: usize| data.offset(row as isize * down + column as isize * across);
        let place = |row: usize| to.add((row * columns - from) * itemsize);
        let line = |from, to, count| grid(Grid::line(from, across, to, count, itemsize), itemsize);
        if row == last {
            return line(source(row, begun), to, until - from);
        }
        let mut whole = row;
        if begun > 0 {
            line(source(row, begun), to, columns - begun);
            whole += 1;
        }
        if whole < last {
            rows(source(whole, 0), axes, last - whole, place(whole));
        }
        if more > 0 {
            line(source(last, 0), place(last), more);
        }
    }
}

/// Copies `count` whole rows of a matrix.
///
/// # Safety
///
/// As [`matrix`], for the rows from `data` on.
unsafe fn rows(data: *const u8, axes: &Axes, count: usize, to: *mut u8) {
    let Axes { columns, down, across, itemsize, .. } = *axes;
    let row_bytes = columns * itemsize;
    let by_rows = Grid {
        from: data,
        to,
        count: [count, columns],
        step: [down, across],
        to_step: [row_bytes as isize, itemsize as isize],
        tile: columns,
    };
    // SAFETY: elements of these rows, and their places in the block, in whatever order.
    unsafe {
        if columns <= FEW_COLUMNS && across == itemsize as isize && has_loop(row_bytes) {
            // A row of few columns one after another is copied as if it were one element.
            grid(Grid::line(data, down, to, count, row_bytes), row_bytes);
        } else if columns <= FEW_COLUMNS && count > columns {
            grid(by_rows.turned(), itemsize);
        } else if down.unsigned_abs() < across.unsigned_abs() {
            grid(Grid { tile: (LINE / itemsize).max(1), ..by_rows }, itemsize);
        } else {
            grid(by_rows, itemsize);
        }
    }
}

/// Elements of two axes to be copied.
struct Grid {
    from: *const u8,
    to: *mut u8,
    /// Along the outer and the inner axis.
    count: [usize; 2],
    /// Bytes from one to the next, where they lie,
    step: [isize; 2],
    /// and where they are copied to.
    to_step: [isize; 2],
    /// So many of the inner axis are copied for every one of the outer axis before the next so many are.
    tile: usize,
}

impl Grid {
    /// One axis, into elements one after another.
    fn line(from: *const u8, step: isize, to: *mut u8, count: usize, itemsize: usize) -> Grid {
        Grid { from, to, count: [1, count], step: [0, step], to_step: [0, itemsize as isize], tile: count }
    }

    /// The same elements, the outer axis inside.
    fn turned(self) -> Grid {
        let swapped = |pair: [isize; 2]| [pair[1], pair[0]];
        Grid {
            count: [self.count[1], self.count[0]],
            step: swapped(self.step),
            to_step: swapped(self.to_step),
            tile: self.count[0],
            ..self
        }
    }
}

/// Whether [`grid`] has a loop of its own for elements of so many bytes.
fn has_loop(bytes: usize) -> bool {
    matches!(bytes, 1 | 2 | 3 | 4 | 6 | 8 | 12 | 16 | 24 | 32)
}

/// Copies elements of `itemsize` bytes.
///
/// # Safety
///
/// All elements of both sides are within memory that can be read and written respectively, and do not overlap.
unsafe fn grid(grid: Grid, itemsize: usize) {
    let one_after_another = [itemsize as isize; 2];
    // SAFETY: passed on unchanged; T only gives the size, as both accesses are unaligned ones.
    unsafe {
        if [grid.step[1], grid.to_step[1]] == one_after_another && grid.tile == grid.count[1] {
            for at in 0..grid.count[0] as isize {
                let (from, to) = (grid.from.offset(at * grid.step[0]), grid.to.offset(at * grid.to_step[0]));
                from.copy_to_nonoverlapping(to, grid.count[1] * itemsize);
            }
            return;
        }
        match itemsize {
            1 => grid_as::<u8>(&grid),
            2 => grid_as::<u16>(&grid),
            3 => grid_as::<[u8; 3]>(&grid),
            4 => grid_as::<u32>(&grid),
            6 => grid_as::<[u16; 3]>(&grid),
            8 => grid_as::<u64>(&grid),
            12 => grid_as::<[u32; 3]>(&grid),
            16 => grid_as::<u128>(&grid),
            24 => grid_as::<[u64; 3]>(&grid),
            32 => grid_as::<[u64; 4]>(&grid),
            _ => unreachable!("elements have 1, 2, 4, 8 or 16 bytes"),
        }
    }
}

/// # Safety
///
/// As [`grid`], for elements of the size of `T`.
unsafe fn grid_as<T: Copy>(grid: &Grid) {
    let side = LINE / size_of::<T>();
    if grid.step[0] == size_of::<T>() as isize && grid.tile == side && grid.count.iter().all(|&count| count >= side) {
        // SAFETY: passed on; rows lie one after another.
        return unsafe { transposed::<T>(grid, side) };
    }
    let [outer, inner] = grid.count;
    for start in (0..inner).step_by(grid.tile) {
        let until = inner.min(start + grid.tile) as isize;
        for row in 0..outer as isize {
            // SAFETY: the outer offsets of elements of both sides.
            let (from, to) = unsafe { (grid.from.offset(row * grid.step[0]), grid.to.offset(row * grid.to_step[0])) };
            for column in start as isize..until {
                // SAFETY: an element of each side; unaligned, so any address will do.
                unsafe {
                    let element = from.offset(column * grid.step[1]).cast::<T>().read_unaligned();
                    to.offset(column * grid.to_step[1]).cast::<T>().write_unaligned(element);
                }
            }
        }
    }
}

/// Copies a grid whose rows lie one element after another, by squares of a cache line's elements each way that pass through
/// a square of their own: so each line is read and written at once, although lines of one column of squares may all have
/// the same place in the processor's cache (matrices whose sides are powers of two).
///
/// # Safety
///
/// As [`grid_as`]; the grid is a square at least each way.
unsafe fn transposed<T: Copy>(grid: &Grid, side: usize) {
    let mut square = [MaybeUninit::<u8>::uninit(); LINE * LINE];
    let square = square.as_mut_ptr().cast::<T>();
    let [outer, inner] = grid.count;
    // The last square each way begins earlier where the sides are no multiples: some elements are copied twice.
    for column in (0..inner).step_by(side).map(|column| column.min(inner - side)) {
        for row in (0..outer).step_by(side).map(|row| row.min(outer - side)) {
            let (down, across) = (row as isize, column as isize);
            // SAFETY: `side` elements of each of `side` columns, into the square, which has room for as many; then to their
            // places, row by row. The square is of bytes, so it is accessed as unaligned.
            unsafe {
                let from = grid.from.offset(down * grid.step[0] + across * grid.step[1]);
                let to = grid.to.offset(down * grid.to_step[0] + across * grid.to_step[1]);
                for line in 0..side {
                    let source = from.offset(line as isize * grid.step[1]);
                    source.copy_to_nonoverlapping(square.add(line * side).cast::<u8>(), side * size_of::<T>());
                }
                for line in 0..side {
                    let target = to.offset(line as isize * grid.to_step[0]);
                    for element in 0..side {
                        let value = square.add(element * side + line).read_unaligned();
                        target.offset(element as isize * grid.to_step[1]).cast::<T>().write_unaligned(value);
                    }
                }
            }
        }
    }
}

/// Makes gathered elements what the specification hashes: little-endian, with their signs turned.
pub(super) fn finish(block: &mut [u8], swap: usize, signs: Option<Signs>) {
    #[cfg(target_arch = "x86_64")]
    if swap > 1 && std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        unsafe { reverse_avx2(block, swap) };
    } else {
        reverse(block, swap);
    }
    #[cfg(not(target_arch = "x86_64"))]
    reverse(block, swap);
    if let Some(Signs { first, step }) = signs {
        block.iter_mut().skip(first).step_by(step).for_each(|byte| *byte ^= 0x80);
    }
}

/// [`reverse`], compiled for processors that shuffle the bytes of 32 at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn reverse_avx2(bytes: &mut [u8], unit: usize) {
    reverse(bytes, unit);
}

/// Reverses the bytes of each unit of 2, 4 or 8.
#[inline(always)]
fn reverse(bytes: &mut [u8], unit: usize) {
    match unit {
        2 => bytes
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .for_each(|two| *two = u16::from_ne_bytes(*two).swap_bytes().to_ne_bytes()),
        4 => bytes
            .as_chunks_mut::<4>()
            .0
            .iter_mut()
            .for_each(|four| *four = u32::from_ne_bytes(*four).swap_bytes().to_ne_bytes()),
        8 => bytes
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .for_each(|eight| *eight = u64::from_ne_bytes(*eight).swap_bytes().to_ne_bytes()),
        _ => {}
    }
}
