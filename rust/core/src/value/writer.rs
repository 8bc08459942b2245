//! Builds the payload of a value: its tensors, and the msgpack skeleton that refers to them.

use std::collections::TryReserveError;

use rmp::encode as msgpack;

use super::moment::{Date, Delta, Time};
use super::{Dtype, VERSION, ext, kind, write_descriptor};
use crate::entry::TENSOR_ALIGN;
use crate::limits::MAX_SKELETON_BYTES;

/// Bytes of an extension's header as first written (ext 8: marker, length, code); a longer one moves its content.
const SHORT_HEADER: usize = 3;

/// An extension whose content is being written; hand it to [`Writer::close`].
#[must_use]
#[derive(Debug)]
pub struct Mark(usize);

/// Writes one value, top down. Containers announce how many values follow and the caller writes exactly as many.
#[derive(Debug)]
pub struct Writer {
    tensors: Vec<u8>,
    skeleton: Vec<u8>,
}

impl Default for Writer {
    fn default() -> Self {
        Writer::new()
    }
}

/// `io::Write` of a `Vec` never fails.
const VEC: &str = "a vector takes every byte";

impl Writer {
    /// An empty payload.
    pub fn new() -> Writer {
        Writer { tensors: Vec::new(), skeleton: vec![VERSION] }
    }

    /// Whether `more` bytes fit the skeleton (at most [`MAX_SKELETON_BYTES`]): asked before each value, so that a structure
    /// that refers to itself many times over ends here and not in all of memory.
    pub fn has_room(&self, more: usize) -> bool {
        more <= MAX_SKELETON_BYTES - self.skeleton.len().min(MAX_SKELETON_BYTES)
    }

    /// Bytes so far, those of the tensors included.
    #[allow(clippy::len_without_is_empty)] // a skeleton begins with its version, so none is
    pub fn len(&self) -> usize {
        self.tensors.len() + self.skeleton.len()
    }

    /// `None`.
    pub fn none(&mut self) {
        msgpack::write_nil(&mut self.skeleton).expect(VEC);
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) {
        msgpack::write_bool(&mut self.skeleton, value).expect(VEC);
    }

    /// An integer that fits 64 bits, signed.
    pub fn int(&mut self, value: i64) {
        msgpack::write_sint(&mut self.skeleton, value).expect(VEC);
    }

    /// An integer that fits 64 bits, unsigned.
    pub fn uint(&mut self, value: u64) {
        msgpack::write_uint(&mut self.skeleton, value).expect(VEC);
    }

    /// An integer of any size: two's complement, little-endian.
    pub fn big_int(&mut self, bytes: &[u8]) {
        self.extension(ext::BIG_INT, bytes);
    }

    /// A float, every bit kept.
    pub fn float(&mut self, value: f64) {
        msgpack::write_f64(&mut self.skeleton, value).expect(VEC);
    }

    /// A complex number.
    pub fn complex(&mut self, real: f64, imaginary: f64) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&real.to_le_bytes());
        bytes[8..].copy_from_slice(&imaginary.to_le_bytes());
        self.extension(ext::COMPLEX, &bytes);
    }

    /// Text.
    pub fn str(&mut self, value: &str) {
        msgpack::write_str(&mut self.skeleton, value).expect(VEC);
    }

    /// Bytes.
    pub fn bytes(&mut self, value: &[u8]) {
        msgpack::write_bin(&mut self.skeleton, value).expect(VEC);
    }

    /// The head of a list: `len` values follow.
    pub fn list(&mut self, len: u32) {
        msgpack::write_array_len(&mut self.skeleton, len).expect(VEC);
    }

    /// The head of a dict: `len` times a key and a value follow.
    pub fn dict(&mut self, len: u32) {
        msgpack::write_map_len(&mut self.skeleton, len).expect(VEC);
    }

    /// The head of a tuple, set or frozenset (`code`): `len` values follow, then [`Writer::close`].
    pub fn group(&mut self, code: i8, len: u32) -> Mark {
        let mark = self.open(code);
        self.list(len);
        mark
    }

    /// The head of a record: its class's place in the schema and the fingerprint of its fields; `len` values follow, then close.
    pub fn record(&mut self, index: u32, fingerprint: u64, len: u32) -> Mark {
        let mark = self.open(ext::RECORD);
        self.list(len + 2);
        self.uint(u64::from(index));
        self.uint(fingerprint);
        mark
    }

    /// The head of a registered type's value: one value follows, then close.
    pub fn registered(&mut self, name: &str) -> Mark {
        let mark = self.open(ext::REGISTERED);
        self.list(2);
        self.str(name);
        mark
    }

    /// Ends what [`Writer::group`], [`Writer::record`] or [`Writer::registered`] began.
    pub fn close(&mut self, mark: Mark) {
        let content = mark.0 + SHORT_HEADER;
        let len = self.skeleton.len() - content;
        match u8::try_from(len) {
            Ok(len) => self.skeleton[mark.0 + 1] = len,
            Err(_) => {
                // The skeleton is far below 4 GiB, so ext 32 holds every length.
                let code = self.skeleton[mark.0 + 2];
                let [a, b, c, d] = (len as u32).to_be_bytes();
                self.skeleton.splice(mark.0..content, [rmp::Marker::Ext32.to_u8(), a, b, c, d, code]);
            }
        }
    }

    fn open(&mut self, code: i8) -> Mark {
        let mark = Mark(self.skeleton.len());
        self.skeleton.extend_from_slice(&[rmp::Marker::Ext8.to_u8(), 0, code as u8]);
        mark
    }

    /// A value that is an extension of its own: `code` is one of [`ext`], `content` as the table says.
    pub fn extension(&mut self, code: i8, content: &[u8]) {
        msgpack::write_ext_meta(&mut self.skeleton, content.len() as u32, code).expect(VEC);
        self.skeleton.extend_from_slice(content);
    }

    /// A date.
    pub fn date(&mut self, date: Date) {
        let mut bytes = Vec::with_capacity(4);
        date.write(&mut bytes);
        self.extension(ext::DATE, &bytes);
    }

    /// A time of day.
    pub fn time(&mut self, time: Time<'_>) {
        let mut bytes = Vec::with_capacity(32);
        time.write(&mut bytes);
        self.extension(ext::TIME, &bytes);
    }

    /// A date and time.
    pub fn datetime(&mut self, date: Date, time: Time<'_>) {
        let mut bytes = Vec::with_capacity(32);
        date.write(&mut bytes);
        time.write(&mut bytes);
        self.extension(ext::DATETIME, &bytes);
    }

    /// A duration.
    pub fn timedelta(&mut self, delta: Delta) {
        let mut bytes = Vec::with_capacity(12);
        delta.write(&mut bytes);
        self.extension(ext::TIMEDELTA, &bytes);
    }

    /// A field without a value.
    pub fn absent(&mut self) {
        self.extension(ext::ABSENT, &[0]);
    }

    /// A tensor of these elements.
    ///
    /// # Errors
    /// There is no memory for a copy of the elements; the writer is as it was.
    pub fn tensor(
        &mut self,
        dtype: Dtype,
        flags: u8,
        parameter: u64,
        dims: impl ExactSizeIterator<Item = u64>,
        elements: &[u8],
    ) -> Result<(), TryReserveError> {
        let start = self.tensors.len().next_multiple_of(TENSOR_ALIGN);
        self.tensors.try_reserve(start - self.tensors.len() + elements.len())?;
        self.tensors.resize(start, 0);
        self.tensors.extend_from_slice(elements);
        let mut descriptor = Vec::with_capacity(64);
        write_descriptor(&mut descriptor, dtype, flags, parameter, dims);
        self.extension(ext::TENSOR, &descriptor);
        Ok(())
    }

    /// A NumPy scalar of these bytes.
    pub fn scalar(&mut self, dtype: Dtype, flags: u8, parameter: u64, element: &[u8]) {
        let mut content = element.to_vec();
        write_descriptor(&mut content, dtype, flags, parameter, std::iter::empty());
        self.extension(ext::SCALAR, &content);
    }

    /// The kind, whether the payload must lie at a multiple of [`TENSOR_ALIGN`], and the payload.
    pub fn finish(self) -> (u8, bool, Vec<u8>) {
        if self.tensors.is_empty() {
            return (kind::TREE, false, self.skeleton);
        }
        let mut payload = self.tensors;
        let start = payload.len() as u64;
        payload.reserve_exact(self.skeleton.len() + 8);
        payload.extend_from_slice(&self.skeleton);
        payload.extend_from_slice(&start.to_le_bytes());
        (kind::TREE_WITH_TENSORS, true, payload)
    }
}
