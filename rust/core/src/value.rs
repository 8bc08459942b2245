//! Typed values and tensors as bytes: the format of a stored result, without Python.
//!
//! A stored value is a *kind* (five bits in the entry's header, which cost nothing) and a *payload*. What models return
//! most has a kind of its own with no overhead at all; everything else is a msgpack skeleton behind the raw buffers of
//! its tensors, so that an array is read where it lies.
//!
//! ```text
//! kind  value                       payload
//!    0  bytes                       the bytes
//!    1  text                        its UTF-8
//!    2  one tensor                  elements ‖ descriptor                                  64-byte aligned
//!    3  one row of an array result  elements ‖ descriptor                                  64-byte aligned
//!    4  None                        nothing
//!  5,6  False, True                 nothing
//!    7  integer of 64 bits, signed  8 bytes, little-endian
//!    8  float                       8 bytes, binary64 little-endian, every bit kept
//!    9  anything without tensors    version (1 byte) ‖ skeleton
//!   10  anything with tensors       tensor 0 ‖ pad ‖ tensor 1 ‖ … ‖ version ‖ skeleton ‖ start of version (u64)
//!                                   0        64·k                                          64-byte aligned
//!  +16  the same, as an item of a batch function's *tuple* (so that a batch of hits is a tuple again)
//!
//! descriptor (read from its end; all integers little-endian)
//!   ┌──────────────────┬─────────────────┬─────────┬───────┬───────┬──────┐
//!   │ dims: u64 × ndim │ parameter: u64  │ version │ dtype │ flags │ ndim │
//!   └──────────────────┴─────────────────┴─────────┴───────┴───────┴──────┘
//!                        only where the dtype has one: the item size of text and bytes, the unit of times. Of a row
//!                        that is stored narrower than its array: the item size, and 2^32 times the array's
//!   flags: 1 Fortran order · 2 elements are big-endian · 4 the C type that NumPy does not prefer · 8 torch
//!          16 on a CUDA device (without 8: CuPy) · 32 JAX
//!
//! skeleton: msgpack. nil, booleans, integers of 64 bits, binary64, str, bin, array = list, map = dict;
//! the rest is an extension, whose code is one of `ext`:
//!   1 tuple, 2 set, 3 frozenset    array of the members
//!   4 integer                      two's complement, little-endian, as short as it can be
//!   5 text with lone surrogates    UTF-8 in which surrogates are encoded like other code points
//!   6 bytearray                    the bytes
//!   7 complex                      two binary64
//!   8 tensor                       descriptor; its elements are the next tensor of the payload
//!   9 NumPy scalar                 elements ‖ descriptor with ndim 0
//!  10 datetime, 11 date, 12 time, 13 timedelta, 14 Decimal, 15 UUID: see `moment`
//!  16 record                       array of class index, fingerprint, field values…
//!  17 registered                   array of the registered name and what its `encode` returned
//!  18 absent                       one byte, 0: a field without a value
//!  19 numpy.str_                   as 5;  20 numpy.bytes_  as 6
//! ```
//!
//! # Rules of the format
//!
//! - Kinds, dtype codes and extension codes are never given another meaning; what changes layout changes the version.
//! - The reader trusts nothing: each length is compared with the bytes that remain before anything is allocated, so what is
//!   built is at most a small multiple of the payload; nesting is capped at [`crate::limits::MAX_DEPTH`]; offsets of
//!   tensors are not stored but follow from their order, so no two can overlap. Whatever is wrong is
//!   [`CorruptValue`](crate::error::Error::CorruptValue).
//! - No name in the bytes ever leads to a class: a record names a place in a list that the reader already has, and a
//!   fingerprint of the fields that it expects there.

mod dtype;
pub mod moment;
mod reader;
mod tensor;
mod writer;

pub use dtype::Dtype;
pub use reader::{Group, Item, Reader};
pub use tensor::{
    FLAG_ALTERNATE, FLAG_BIG_ENDIAN, FLAG_DEVICE, FLAG_FORTRAN, FLAG_JAX, FLAG_TORCH, MAX_DIMENSIONS, Tensor, narrowed,
    write_descriptor,
};
pub use writer::{Mark, Writer};

use crate::error::{Error, Result};

/// Version of the descriptor and of the skeleton.
pub const VERSION: u8 = 1;

/// How a payload is to be read; see the table at the head of this module.
pub mod kind {
    /// `bytes`: the payload is the value.
    pub const BYTES: u8 = 0;
    /// `str` without lone surrogates: the payload is its UTF-8.
    pub const STR: u8 = 1;
    /// One tensor: elements, then descriptor.
    pub const TENSOR: u8 = 2;
    /// One row of an array that a batch function returned: elements, then descriptor.
    pub const ROW: u8 = 3;
    /// `None`.
    pub const NONE: u8 = 4;
    /// `False`.
    pub const FALSE: u8 = 5;
    /// `True`.
    pub const TRUE: u8 = 6;
    /// An integer that fits a signed 64-bit one.
    pub const INT: u8 = 7;
    /// A float.
    pub const FLOAT: u8 = 8;
    /// A msgpack skeleton without tensors.
    pub const TREE: u8 = 9;
    /// Tensors and a msgpack skeleton.
    pub const TREE_WITH_TENSORS: u8 = 10;
    /// Added to any other: the value is an item of a batch function's tuple.
    pub const TUPLE_ITEM: u8 = 16;
    /// The part of a kind that says how the payload is read.
    pub const MASK: u8 = 15;
}

/// Codes of the skeleton's msgpack extensions; see the table at the head of this module.
pub mod ext {
    #![allow(missing_docs)] // the table says what each is
    pub const TUPLE: i8 = 1;
    pub const SET: i8 = 2;
    pub const FROZENSET: i8 = 3;
    pub const BIG_INT: i8 = 4;
    pub const SURROGATES: i8 = 5;
    pub const BYTEARRAY: i8 = 6;
    pub const COMPLEX: i8 = 7;
    pub const TENSOR: i8 = 8;
    pub const SCALAR: i8 = 9;
    pub const DATETIME: i8 = 10;
    pub const DATE: i8 = 11;
    pub const TIME: i8 = 12;
    pub const TIMEDELTA: i8 = 13;
    pub const DECIMAL: i8 = 14;
    pub const UUID: i8 = 15;
    pub const RECORD: i8 = 16;
    pub const REGISTERED: i8 = 17;
    pub const ABSENT: i8 = 18;
    pub const NUMPY_STR: i8 = 19;
    pub const NUMPY_BYTES: i8 = 20;
}

/// The error for stored bytes that are not what they should be.
pub fn corrupt(reason: impl Into<String>) -> Error {
    Error::CorruptValue { reason: reason.into() }
}

/// Walks a stored value to its end without building anything: `Ok` if every length, count and descriptor holds.
/// Text is not checked to be UTF-8, nor moments to exist in the calendar: who builds them does that.
pub fn check(kind: u8, payload: &[u8]) -> Result<()> {
    let empty = || if payload.is_empty() { Ok(()) } else { Err(corrupt("bytes behind a value that has none")) };
    match kind & kind::MASK {
        kind::BYTES | kind::STR => Ok(()),
        kind::NONE | kind::FALSE | kind::TRUE => empty(),
        kind::INT | kind::FLOAT => eight(payload).map(|_| ()),
        kind::TENSOR | kind::ROW => Tensor::parse(payload).map(|_| ()),
        kind::TREE | kind::TREE_WITH_TENSORS => {
            let mut reader = Reader::new(kind, payload)?;
            walk(&mut reader)?;
            reader.finish()
        }
        other => Err(corrupt(format!("unknown kind {other}"))),
    }
}

/// The eight bytes of an integer or a float.
pub fn eight(payload: &[u8]) -> Result<[u8; 8]> {
    payload.try_into().map_err(|_| corrupt(format!("a number of {} bytes, not 8", payload.len())))
}

fn walk(reader: &mut Reader<'_>) -> Result<()> {
    let mut open = Vec::new(); // containers, outermost first, and how many values of each are still to come
    loop {
        match reader.next()? {
            Item::List(group) | Item::Tuple(group) | Item::Set(group) | Item::FrozenSet(group) => {
                open.push((group, group.len));
            }
            Item::Dict(group) => open.push((group, 2 * group.len)),
            Item::Record { group, .. } | Item::Registered { group, .. } => open.push((group, group.len)),
            _ => {}
        }
        while let Some((group, 0)) = open.last() {
            reader.close(*group)?;
            open.pop();
        }
        match open.last_mut() {
            Some((_, values)) => *values -= 1,
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
