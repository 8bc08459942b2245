//! The canonical document: RFC 8785 (JCS) JSON written into one growing byte buffer, and the `$` forms.
//!
//! The writer emits pieces in the order in which they are asked for. Whoever walks a value (the bindings, [`crate::json`])
//! sorts the members by [`utf16_order`] first and asks for them in that order, so that no byte is written twice.

use crate::limits::{MAX_DEPTH, MAX_DOCUMENT_BYTES, MAX_INTEGER_DIGITS};
use crate::number;
use crate::stack::SmallStack;
use std::cmp::Ordering;
use std::fmt;
use std::mem::MaybeUninit;

mod numbers; // many numbers of an array
pub(crate) mod scan; // bytes that need an escape, sixteen at a time

pub use numbers::Number;

/// A bound of the key specification that a document would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The document would be longer than 256 MiB.
    TooLong,
    /// Containers would nest more than 256 deep.
    TooDeep,
    /// An integer has more than 4,300 digits.
    TooManyDigits,
    /// Containers nest deeper than this thread's stack allows. (Not of the specification: another thread may do it.)
    SmallStack(SmallStack),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::TooLong => write!(f, "the canonical document would be longer than {} MiB", MAX_DOCUMENT_BYTES >> 20),
            Limit::TooDeep => write!(f, "containers nest more than {MAX_DEPTH} deep"),
            Limit::TooManyDigits => write!(f, "an integer of more than {MAX_INTEGER_DIGITS} digits"),
            Limit::SmallStack(small) => write!(f, "it {small}"),
        }
    }
}

impl std::error::Error for Limit {}

/// The result of writing a piece.
pub type Written = std::result::Result<(), Limit>;

/// Writes a canonical document piece by piece; reusable after [`Writer::clear`].
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    depth: usize,
}

/// A place in a document; see [`Writer::mark`].
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    length: usize,
    depth: usize,
}

/// What stands before the digest of a tensor's form.
const TENSOR_OPENS: &[u8] = b"{\"$tensor\":{\"blake3\":";

/// Puts a digest's 64 digits at their place in a document; see [`Writer::open_tensor_form`].
pub fn fill(document: &mut [u8], at: usize, digest: &[u8; 32]) {
    document[at..at + 64].copy_from_slice(blake3::Hash::from_bytes(*digest).to_hex().as_bytes());
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.depth = 0;
    }

    /// What was written so far: UTF-8.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Length so far, in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The document itself.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Drops everything after the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// Where the document stands now, to come back to with [`Writer::reset`].
    pub fn mark(&self) -> Mark {
        Mark { length: self.bytes.len(), depth: self.depth }
    }

    /// Goes back to where `mark` was taken.
    pub fn reset(&mut self, mark: Mark) {
        self.bytes.truncate(mark.length);
        self.depth = mark.depth;
    }

    /// Enters a container of the caller's value (the brackets of `$` forms are none).
    #[inline]
    pub fn enter(&mut self) -> Written {
        if self.depth >= MAX_DEPTH {
            return Err(Limit::TooDeep);
        }
        self.depth += 1;
        Ok(())
    }

    /// Leaves the container entered last.
    #[inline]
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Makes room for `more` bytes, within the limit of a document.
    #[inline]
    fn reserve(&mut self, more: usize) -> Written {
        if self.bytes.capacity() - self.bytes.len() >= more { Ok(()) } else { self.grow(more) }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, more: usize) -> Written {
        // Room is asked for up to 32 bytes too generously, hence the slack; `finish` looks at the exact length.
        if more > MAX_DOCUMENT_BYTES + 64 || self.bytes.len() + more > MAX_DOCUMENT_BYTES + 64 {
            return Err(Limit::TooLong);
        }
        self.bytes.reserve(more.max(256));
        Ok(())
    }

    /// Whether the whole is within 256 MiB; to be asked once the document is complete.
    #[inline]
    pub fn finish(&self) -> Written {
        if self.bytes.len() > MAX_DOCUMENT_BYTES { Err(Limit::TooLong) } else { Ok(()) }
    }

    /// Appends bytes for which room was made.
    #[inline]
    fn append<const N: usize>(&mut self, bytes: [u8; N]) {
        let room = self.bytes.spare_capacity_mut().first_chunk_mut::<N>().expect("room was made");
        *room = bytes.map(MaybeUninit::new);
        // SAFETY: within the capacity, and written just now.
        unsafe { self.bytes.set_len(self.bytes.len() + N) };
    }

    /// Canonical bytes as they are.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) -> Written {
        self.reserve(bytes.len())?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// One byte of punctuation.
    #[inline]
    pub fn byte(&mut self, byte: u8) -> Written {
        self.reserve(1)?;
        self.append([byte]);
        Ok(())
    }

    /// `null`.
    #[inline]
    pub fn null(&mut self) -> Written {
        self.reserve(4)?;
        self.append(*b"null");
        Ok(())
    }

    /// `true` or `false`.
    #[inline]
    pub fn bool(&mut self, value: bool) -> Written {
        if value { self.raw(b"true") } else { self.raw(b"false") }
    }

    /// An integer: a number where a binary64 holds it exactly, else `$int`.
    #[inline]
    pub fn integer(&mut self, value: i64) -> Written {
        if value.unsigned_abs() <= 1 << 53 {
            return self.digits(|room| number::write_i64(value, room));
        }
        if number::is_exact(value.unsigned_abs()) {
            return self.float(value as f64);
        }
        self.text_form("$int", &value.to_string())
    }

    /// An integer of any size, as its decimal digits: no leading zero but in `0` itself, `-0` is `0`.
    pub fn integer_text(&mut self, negative: bool, digits: &str) -> Written {
        if digits.len() > MAX_INTEGER_DIGITS {
            return Err(Limit::TooManyDigits);
        }
        if let Some(value) = number::exact_f64(digits) {
            return self.float(if negative { -value } else { value });
        }
        self.raw(b"{\"$int\":\"")?;
        if negative {
            self.byte(b'-')?;
        }
        self.raw(digits.as_bytes())?;
        self.raw(b"\"}")
    }

    /// A float: an ECMAScript number, or `$float` for NaN and the infinities.
    #[inline]
    pub fn float(&mut self, value: f64) -> Written {
        if !value.is_finite() {
            return self.raw(if value.is_nan() {
                b"{\"$float\":\"NaN\"}"
            } else if value > 0.0 {
                b"{\"$float\":\"Infinity\"}"
            } else {
                b"{\"$float\":\"-Infinity\"}"
            });
        }
        self.digits(|room| number::write_f64(value, room))
    }

    /// Lets `write` put the text of a number at the end.
    #[inline]
    fn digits(&mut self, write: impl FnOnce(&mut [MaybeUninit<u8>; number::ROOM]) -> usize) -> Written {
        self.reserve(number::ROOM)?;
        let room = self.bytes.spare_capacity_mut().first_chunk_mut().expect("room was made");
        let length = write(room);
        debug_assert!(length <= number::MAX_NUMBER_BYTES);
        // SAFETY: within the capacity; number.rs writes as many bytes as it says.
        unsafe { self.bytes.set_len(self.bytes.len() + length) };
        Ok(())
    }

    /// A string with RFC 8785's escapes: `\b \t \n \f \r \" \\`, other control characters as `\u00xx`.
    #[inline]
    pub fn string(&mut self, text: &str) -> Written {
        self.reserve(text.len() + 2)?;
        self.append([b'"']);
        self.escaped(text.as_bytes())?;
        self.byte(b'"')
    }

    /// A member name of the caller's own and its colon: a name that begins with `$` gets one more in front.
    #[inline]
    pub fn name(&mut self, name: &str) -> Written {
        self.reserve(name.len() + 4)?;
        self.append([b'"']);
        if name.as_bytes().first() == Some(&b'$') {
            self.append([b'$']);
        }
        self.escaped(name.as_bytes())?;
        self.reserve(2)?;
        self.append([b'"', b':']);
        Ok(())
    }

    /// The inside of a string; room for its bytes was made.
    #[inline]
    fn escaped(&mut self, text: &[u8]) -> Written {
        let room = self.bytes.spare_capacity_mut();
        assert!(room.len() >= text.len());
        // SAFETY: there is room for all of `text`, and `text` is not in this buffer's spare memory.
        let clean = unsafe { scan::copy_clean(text, room.as_mut_ptr().cast()) };
        // SAFETY: the first `clean` bytes of the room were written.
        unsafe { self.bytes.set_len(self.bytes.len() + clean) };
        if clean == text.len() { Ok(()) } else { self.escape_rest(&text[clean..]) }
    }

    #[cold]
    #[inline(never)]
    fn escape_rest(&mut self, mut rest: &[u8]) -> Written {
        while let Some((&byte, after)) = rest.split_first() {
            self.escape(byte)?;
            let clean = scan::clean_prefix(after);
            self.raw(&after[..clean])?;
            rest = &after[clean..];
        }
        Ok(())
    }

    /// One character below U+0080 as it stands inside a canonical string.
    pub(crate) fn escape(&mut self, byte: u8) -> Written {
        let short = match byte {
            b'"' | b'\\' => byte,
            0x08 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            0x0c => b'f',
            b'\r' => b'r',
            0x00..=0x1f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                return self.raw(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => return self.byte(byte),
        };
        self.raw(&[b'\\', short])
    }

    /// `{"<form>":"<text>"}`: `$int`, `$datetime`, `$date`, `$time`, `$decimal`, `$uuid`.
    pub fn text_form(&mut self, form: &str, text: &str) -> Written {
        self.open_form(form)?;
        self.string(text)?;
        self.byte(b'}')
    }

    /// `{"<form>":`, to be followed by a value and [`Writer::byte`]`(b'}')`.
    pub fn open_form(&mut self, form: &str) -> Written {
        debug_assert!(form.starts_with('$'));
        self.raw(b"{\"")?;
        self.raw(form.as_bytes())?;
        self.raw(b"\":")
    }

    /// `{"$bytes":"<digest>"}` of content whose plain BLAKE3 is `digest`.
    pub fn bytes_form(&mut self, digest: &[u8; 32]) -> Written {
        self.open_form("$bytes")?;
        self.hex(digest)?;
        self.byte(b'}')
    }

    /// `{"$tensor":…}`: `digest` is the plain BLAKE3 of the elements, `dtype` one of the specification's names.
    pub fn tensor_form(&mut self, digest: &[u8; 32], dtype: &str, shape: &[usize]) -> Written {
        self.raw(TENSOR_OPENS)?;
        self.hex(digest)?;
        self.raw(b",\"dtype\":\"")?;
        self.raw(dtype.as_bytes())?;
        self.raw(b"\",\"shape\":")?;
        self.lengths(shape)?;
        self.raw(b"}}")
    }

    /// As [`Writer::tensor_form`] of a tensor whose digest is not known yet: gives the place for [`Writer::fill`].
    pub fn open_tensor_form(&mut self, dtype: &str, shape: &[usize]) -> std::result::Result<usize, Limit> {
        let at = self.len() + TENSOR_OPENS.len() + 1; // behind the quotation mark
        self.tensor_form(&[0; 32], dtype, shape)?;
        Ok(at)
    }

    /// Puts a digest's digits at a place that [`Writer::open_tensor_form`] gave, and that has not moved since.
    pub fn fill(&mut self, at: usize, digest: &[u8; 32]) {
        fill(&mut self.bytes, at, digest);
    }

    /// `{"$image":…}`: `digest` is the plain BLAKE3 of the pixels, `size` width and height in pixels.
    pub fn image_form(&mut self, digest: &[u8; 32], mode: &str, size: [usize; 2]) -> Written {
        self.raw(b"{\"$image\":{\"blake3\":")?;
        self.hex(digest)?;
        self.raw(b",\"mode\":")?;
        self.string(mode)?;
        self.raw(b",\"size\":")?;
        self.lengths(&size)?;
        self.raw(b"}}")
    }

    /// 64 lower-case hexadecimal digits as a string.
    fn hex(&mut self, digest: &[u8; 32]) -> Written {
        self.byte(b'"')?;
        self.raw(blake3::Hash::from_bytes(*digest).to_hex().as_bytes())?;
        self.byte(b'"')
    }

    fn lengths(&mut self, lengths: &[usize]) -> Written {
        self.byte(b'[')?;
        for (at, &length) in lengths.iter().enumerate() {
            if at > 0 {
                self.byte(b',')?;
            }
            self.integer(i64::try_from(length).unwrap_or(i64::MAX))?;
        }
        self.byte(b']')
    }
}

/// The order of RFC 8785 section 3.2.3: by UTF-16 code units, asked of UTF-8.
///
/// UTF-8 sorts like code points. UTF-16 differs only where a character beyond U+FFFF (a surrogate pair, from D800)
/// meets one of U+E000 to U+FFFF: the pair comes first. In UTF-8 these begin with F0 and more, and with EE or EF.
#[inline]
pub fn utf16_order(a: &[u8], b: &[u8]) -> Ordering {
    let shorter = a.len().min(b.len());
    for at in 0..shorter {
        let (x, y) = (a[at], b[at]);
        if x != y {
            return match (x >= 0xf0, y >= 0xf0) {
                (true, false) if y >= 0xee => Ordering::Less,
                (false, true) if x >= 0xee => Ordering::Greater,
                _ => x.cmp(&y),
            };
        }
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests;
