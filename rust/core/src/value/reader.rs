//! Reads a value's skeleton item by item, trusting nothing.

use rmp::Marker;

use super::moment::{Date, Delta, Time};
use super::{Tensor, VERSION, corrupt, ext, kind};
use crate::entry::TENSOR_ALIGN;
use crate::error::Result;
use crate::limits::MAX_DEPTH;

/// A container that was opened: read its values, then hand it to [`Reader::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Values (pairs, for a dict) that follow. At least as many bytes remain, so it is safe to reserve room for.
    pub len: usize,
    /// Where the extension around it ends.
    end: Option<usize>,
}

/// The next value, or the head of a container. Text is UTF-8 that nobody has checked yet.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // named as in the table of the format
pub enum Item<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// One that does not fit an `i64`.
    UInt(u64),
    /// Two's complement, little-endian.
    BigInt(&'a [u8]),
    Float(f64),
    Complex(f64, f64),
    Str(&'a [u8]),
    /// UTF-8 in which lone surrogates are encoded like other code points.
    Surrogates(&'a [u8]),
    Bytes(&'a [u8]),
    ByteArray(&'a [u8]),
    NumpyStr(&'a [u8]),
    NumpyBytes(&'a [u8]),
    List(Group),
    Tuple(Group),
    Set(Group),
    FrozenSet(Group),
    /// `len` pairs.
    Dict(Group),
    Tensor(Tensor<'a>),
    /// A tensor without dimensions.
    Scalar(Tensor<'a>),
    DateTime(Date, Time<'a>),
    Date(Date),
    Time(Time<'a>),
    TimeDelta(Delta),
    /// The text of a Decimal.
    Decimal(&'a [u8]),
    /// 16 bytes, big-endian, and how safely it was made (0 unknown, 1 safe, 2 unsafe).
    Uuid([u8; 16], u8),
    /// Its class's place in the schema, the fingerprint of the fields; `len` field values follow.
    Record {
        index: u64,
        fingerprint: u64,
        group: Group,
    },
    /// One value follows.
    Registered {
        name: &'a [u8],
        group: Group,
    },
    Absent,
}

/// A cursor over the skeleton and, in step with it, the tensors.
#[derive(Debug)]
pub struct Reader<'a> {
    skeleton: &'a [u8],
    at: usize,
    tensors: &'a [u8],
    next_tensor: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// A reader of a payload of kind `TREE` or `TREE_WITH_TENSORS`.
    ///
    /// # Errors
    /// `CorruptValue` where the payload has no skeleton of this version.
    pub fn new(kind: u8, payload: &'a [u8]) -> Result<Reader<'a>> {
        let (tensors, skeleton) = if kind & kind::MASK == kind::TREE_WITH_TENSORS {
            let (front, start) =
                payload.split_last_chunk::<8>().ok_or_else(|| corrupt("no room for the skeleton's start"))?;
            let start = usize::try_from(u64::from_le_bytes(*start)).ok().filter(|&start| start <= front.len());
            front.split_at(start.ok_or_else(|| corrupt("the skeleton starts behind its end"))?)
        } else {
            (&payload[..0], payload)
        };
        match skeleton.first() {
            Some(&VERSION) => Ok(Reader { skeleton, at: 1, tensors, next_tensor: 0, depth: 0 }),
            Some(version) => Err(corrupt(format!("skeleton of version {version}, not {VERSION}"))),
            None => Err(corrupt("an empty skeleton")),
        }
    }

    /// Everything was read: no byte of the skeleton and of the tensors remains.
    ///
    /// # Errors
    /// `CorruptValue` otherwise.
    pub fn finish(&self) -> Result<()> {
        if self.at == self.skeleton.len() && self.next_tensor == self.tensors.len() {
            Ok(())
        } else {
            Err(corrupt("bytes behind the value"))
        }
    }

    /// Ends a container whose values have all been read.
    ///
    /// # Errors
    /// `CorruptValue` where its extension is longer or shorter than its values.
    pub fn close(&mut self, group: Group) -> Result<()> {
        self.depth -= 1;
        match group.end {
            Some(end) if end != self.at => Err(corrupt("an extension whose length is not that of its values")),
            _ => Ok(()),
        }
    }

    /// The next value if it is a float: a shortcut past [`Reader::next`], since results are mostly floats.
    #[inline]
    pub fn float(&mut self) -> Option<f64> {
        let (&marker, rest) = self.skeleton[self.at..].split_first()?;
        let bits = rest.first_chunk::<8>().filter(|_| marker == Marker::F64.to_u8())?;
        self.at += 9;
        Some(f64::from_be_bytes(*bits))
    }

    /// The next value if it is a text of at most 31 bytes, as names are: a shortcut past [`Reader::next`].
    #[inline]
    pub fn short_text(&mut self) -> Option<&'a [u8]> {
        let (&marker, rest) = self.skeleton[self.at..].split_first()?;
        let text = rest.get(..usize::from(marker & 0x1f)).filter(|_| marker & 0xe0 == 0xa0)?;
        self.at += 1 + text.len();
        Some(text)
    }

    /// The next value or head of a container.
    ///
    /// # Errors
    /// `CorruptValue` where the bytes are none, or too few, or nest too deep.
    #[allow(clippy::should_implement_trait)] // each item decides how to go on, so it is no iterator
    pub fn next(&mut self) -> Result<Item<'a>> {
        match Marker::from_u8(self.byte()?) {
            marker @ (Marker::FixArray(_) | Marker::Array16 | Marker::Array32) => {
                let len = self.array_length(marker)?;
                Ok(Item::List(self.open(len, 1, None)?))
            }
            Marker::FixMap(len) => Ok(Item::Dict(self.open(usize::from(len), 2, None)?)),
            Marker::Map16 => {
                let len = self.length::<2>()?;
                Ok(Item::Dict(self.open(len, 2, None)?))
            }
            Marker::Map32 => {
                let len = self.length::<4>()?;
                Ok(Item::Dict(self.open(len, 2, None)?))
            }
            Marker::FixExt1 => self.extension(1),
            Marker::FixExt2 => self.extension(2),
            Marker::FixExt4 => self.extension(4),
            Marker::FixExt8 => self.extension(8),
            Marker::FixExt16 => self.extension(16),
            Marker::Ext8 => {
                let len = self.length::<1>()?;
                self.extension(len)
            }
            Marker::Ext16 => {
                let len = self.length::<2>()?;
                self.extension(len)
            }
            Marker::Ext32 => {
                let len = self.length::<4>()?;
                self.extension(len)
            }
            marker => self.plain(marker),
        }
    }

    /// The value of a marker that holds no further values. Never calls [`Reader::next`], so what stands at the front of an
    /// extension can be read by it without recursion.
    #[inline]
    fn plain(&mut self, marker: Marker) -> Result<Item<'a>> {
        Ok(match marker {
            Marker::Null => Item::None,
            Marker::True => Item::Bool(true),
            Marker::False => Item::Bool(false),
            Marker::FixPos(value) => Item::Int(i64::from(value)),
            Marker::FixNeg(value) => Item::Int(i64::from(value)),
            Marker::U8 => Item::Int(i64::from(self.byte()?)),
            Marker::U16 => Item::Int(i64::from(u16::from_be_bytes(self.array()?))),
            Marker::U32 => Item::Int(i64::from(u32::from_be_bytes(self.array()?))),
            Marker::U64 => {
                let value = u64::from_be_bytes(self.array()?);
                i64::try_from(value).map_or(Item::UInt(value), Item::Int)
            }
            Marker::I8 => Item::Int(i64::from(self.byte()? as i8)),
            Marker::I16 => Item::Int(i64::from(i16::from_be_bytes(self.array()?))),
            Marker::I32 => Item::Int(i64::from(i32::from_be_bytes(self.array()?))),
            Marker::I64 => Item::Int(i64::from_be_bytes(self.array()?)),
            Marker::F64 => Item::Float(f64::from_be_bytes(self.array()?)),
            Marker::FixStr(len) => Item::Str(self.take(usize::from(len))?),
            Marker::Str8 => Item::Str(self.sized::<1>()?),
            Marker::Str16 => Item::Str(self.sized::<2>()?),
            Marker::Str32 => Item::Str(self.sized::<4>()?),
            Marker::Bin8 => Item::Bytes(self.sized::<1>()?),
            Marker::Bin16 => Item::Bytes(self.sized::<2>()?),
            Marker::Bin32 => Item::Bytes(self.sized::<4>()?),
            _ => return Err(corrupt("a marker that is not written here")),
        })
    }

    fn remaining(&self) -> usize {
        self.skeleton.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(corrupt(format!("{len} bytes announced where {} remain", self.remaining())));
        }
        let bytes = &self.skeleton[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.skeleton[self.at..].first_chunk::<N>().ok_or_else(|| corrupt("the skeleton ends early"))?;
        self.at += N;
        Ok(*bytes)
    }

    /// A big-endian length of `N` (1, 2 or 4) bytes.
    fn length<const N: usize>(&mut self) -> Result<usize> {
        Ok(self.array::<N>()?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }

    fn sized<const N: usize>(&mut self) -> Result<&'a [u8]> {
        let len = self.length::<N>()?;
        self.take(len)
    }

    fn array_length(&mut self, marker: Marker) -> Result<usize> {
        match marker {
            Marker::FixArray(len) => Ok(usize::from(len)),
            Marker::Array16 => self.length::<2>(),
            Marker::Array32 => self.length::<4>(),
            _ => Err(corrupt("an extension whose content is not an array")),
        }
    }

    /// Begins a container of `len` members of `values` values each: every value takes at least one byte.
    fn open(&mut self, len: usize, values: usize, end: Option<usize>) -> Result<Group> {
        if len.saturating_mul(values) > self.remaining() {
            return Err(corrupt(format!("{len} members announced where {} bytes remain", self.remaining())));
        }
        if self.depth == MAX_DEPTH {
            return Err(corrupt(format!("nests deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        Ok(Group { len, end })
    }

    /// The array that is the content of an extension: how many values it holds behind the first `taken`.
    fn content_length(&mut self, taken: usize) -> Result<usize> {
        let marker = Marker::from_u8(self.byte()?);
        self.array_length(marker)?.checked_sub(taken).ok_or_else(|| corrupt("an extension whose array is too short"))
    }

    fn extension(&mut self, len: usize) -> Result<Item<'a>> {
        let code = self.byte()? as i8;
        if len > self.remaining() {
            return Err(corrupt(format!("{len} bytes announced where {} remain", self.remaining())));
        }
        let end = self.at + len;
        match code {
            ext::TUPLE | ext::SET | ext::FROZENSET => {
                let len = self.content_length(0)?;
                let group = self.open(len, 1, Some(end))?;
                Ok(match code {
                    ext::TUPLE => Item::Tuple(group),
                    ext::SET => Item::Set(group),
                    _ => Item::FrozenSet(group),
                })
            }
            ext::RECORD => {
                let len = self.content_length(2)?;
                let (index, fingerprint) = (self.unsigned()?, self.unsigned()?);
                Ok(Item::Record { index, fingerprint, group: self.open(len, 1, Some(end))? })
            }
            ext::REGISTERED => {
                let len = self.content_length(1)?;
                let marker = Marker::from_u8(self.byte()?);
                let Item::Str(name) = self.plain(marker)? else {
                    return Err(corrupt("a registered value without a name"));
                };
                if len != 1 {
                    return Err(corrupt("a registered value of several values"));
                }
                Ok(Item::Registered { name, group: self.open(len, 1, Some(end))? })
            }
            _ => {
                let content = self.take(len)?;
                self.leaf(code, content)
            }
        }
    }

    fn unsigned(&mut self) -> Result<u64> {
        let marker = Marker::from_u8(self.byte()?);
        match self.plain(marker)? {
            Item::Int(value) if value >= 0 => Ok(value as u64),
            Item::UInt(value) => Ok(value),
            _ => Err(corrupt("a record without class and fingerprint")),
        }
    }

    /// An extension that holds no further values.
    fn leaf(&mut self, code: i8, content: &'a [u8]) -> Result<Item<'a>> {
        Ok(match code {
            ext::BIG_INT => Item::BigInt(content),
            ext::SURROGATES => Item::Surrogates(content),
            ext::BYTEARRAY => Item::ByteArray(content),
            ext::NUMPY_STR => Item::NumpyStr(content),
            ext::NUMPY_BYTES => Item::NumpyBytes(content),
            ext::COMPLEX => match content.as_chunks::<8>() {
                ([real, imaginary], []) => Item::Complex(f64::from_le_bytes(*real), f64::from_le_bytes(*imaginary)),
                _ => return Err(corrupt("a complex number that is not 16 bytes")),
            },
            ext::TENSOR => Item::Tensor(self.tensor(content)?),
            ext::SCALAR => match Tensor::parse(content)? {
                scalar if scalar.ndim() == 0 => Item::Scalar(scalar),
                _ => return Err(corrupt("a scalar with dimensions")),
            },
            ext::DATETIME => match content.split_at_checked(4) {
                Some((date, time)) => Item::DateTime(Date::parse(date)?, Time::parse(time)?),
                None => return Err(corrupt("a datetime without a date")),
            },
            ext::DATE => Item::Date(Date::parse(content)?),
            ext::TIME => Item::Time(Time::parse(content)?),
            ext::TIMEDELTA => Item::TimeDelta(Delta::parse(content)?),
            ext::DECIMAL => Item::Decimal(content),
            ext::UUID => match content.split_first_chunk::<16>() {
                Some((bytes, [])) => Item::Uuid(*bytes, 0),
                Some((bytes, [safe @ 1..=2])) => Item::Uuid(*bytes, *safe),
                _ => return Err(corrupt("a UUID that is not 16 bytes")),
            },
            ext::ABSENT if content == [0] => Item::Absent,
            _ => return Err(corrupt(format!("unknown extension {code}"))),
        })
    }

    /// The next tensor in the payload, of this descriptor.
    fn tensor(&mut self, descriptor: &'a [u8]) -> Result<Tensor<'a>> {
        let (tensor, size) = Tensor::describe(descriptor)?;
        if size != descriptor.len() {
            return Err(corrupt("bytes before a tensor's descriptor"));
        }
        let len = tensor.byte_length()?;
        let start = self.next_tensor.next_multiple_of(TENSOR_ALIGN);
        let end = start.checked_add(len).filter(|&end| end <= self.tensors.len());
        let end = end.ok_or_else(|| corrupt(format!("a tensor of {len} bytes runs over the tensors' end")))?;
        self.next_tensor = end;
        Ok(Tensor { elements: &self.tensors[start..end], ..tensor })
    }
}
