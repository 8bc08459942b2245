//! An envelope to bytes.

use super::codec::{self, Codec};
use super::{ALIGNED, CHECKSUM_BYTES, Envelope, FOR_EVER, FORMAT, HAS_MAC, HEADER_BYTES, MAGIC, MAX_KIND, MacKey};
use super::{at, checksum, seal_bytes};
use crate::entry::MAX_PAYLOAD_BYTES;
use crate::error::{Error, Result};
use crate::limits::MAX_ENVELOPE_TAGS;

/// Payloads from so many bytes on are compressed where it pays (docs/decisions/0021-envelope-codec.md).
pub const COMPRESS_FROM: usize = 512;

/// How envelopes are written.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// Payloads shorter than this stay as they are; `usize::MAX`: all do.
    pub compress_from: usize,
    /// With it the envelope carries a MAC, without it a checksum.
    pub mac: Option<&'a MacKey>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { compress_from: COMPRESS_FROM, mac: None }
    }
}

/// The bytes of an envelope.
///
/// # Errors
/// `InvalidArgument` for what no reader would accept: an unknown kind, too many tags or one that is zero, a scope without
/// a namespace, a life that ends without a total for the server, a total of zero.
pub fn encode(envelope: &Envelope<'_>, options: &Options<'_>) -> Result<Vec<u8>> {
    check(envelope)?;
    let payload: &[u8] = &envelope.payload;
    let has_mac = options.mac.is_some();
    let before = HEADER_BYTES + 8 * envelope.tags.len();
    let compressible = payload.len() >= options.compress_from;
    let room = if compressible { codec::room_for(payload.len()) } else { payload.len() };
    let mut out = Vec::with_capacity(before + room + seal_bytes(has_mac));
    out.resize(HEADER_BYTES, 0);
    for tag in envelope.tags.iter() {
        out.extend_from_slice(&tag.to_le_bytes());
    }
    let compressed = compressible && codec::compress_onto(&mut out, payload);
    if !compressed {
        out.extend_from_slice(payload);
    }
    let codec = if compressed { Codec::Lz4 } else { Codec::Raw };
    let flags = if has_mac { HAS_MAC } else { 0 } | if envelope.aligned { ALIGNED } else { 0 };
    let stored = (out.len() - before) as u64;
    let mut field = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    field(0, &MAGIC);
    field(at::FORMAT, &[FORMAT]);
    field(at::CODEC, &[codec as u8]);
    field(at::FLAGS, &[flags]);
    field(at::KIND, &[envelope.kind]);
    field(at::KEY, &envelope.key);
    field(at::EPOCH, &envelope.epoch);
    field(at::COST, &written_cost(envelope.cost).to_le_bytes());
    field(at::TAGS, &(envelope.tags.len() as u32).to_le_bytes());
    for (at, value) in [
        (at::LSN, envelope.lsn),
        (at::LIFE, envelope.lifetime.life.unwrap_or(FOR_EVER)),
        (at::STALE, envelope.lifetime.stale),
        (at::TOTAL, envelope.total.unwrap_or(FOR_EVER)),
        (at::AGE, envelope.lifetime.age),
        (at::NAMESPACE, envelope.scope.namespace),
        (at::MODEL, envelope.scope.model),
        (at::VERSION, envelope.scope.version),
        (at::PAYLOAD_LENGTH, payload.len() as u64),
        (at::STORED_LENGTH, stored),
    ] {
        field(at, &value.to_le_bytes());
    }
    match options.mac {
        Some(key) => {
            let mac = key.mac(&out);
            out.extend_from_slice(mac.as_bytes());
        }
        None => {
            let sum = checksum(&out);
            out.extend_from_slice(&sum.as_bytes()[..CHECKSUM_BYTES]);
        }
    }
    Ok(out)
}

/// A cost that is none becomes zero, as in an entry's header.
fn written_cost(cost: f32) -> f32 {
    if cost > 0.0 { cost.min(f32::MAX) } else { 0.0 }
}

fn check(envelope: &Envelope<'_>) -> Result<()> {
    let invalid = |reason: String| Err(Error::InvalidArgument { reason });
    let (life, total) = (envelope.lifetime.life, envelope.total);
    if envelope.kind > MAX_KIND {
        return invalid(format!("an envelope's kind is at most {MAX_KIND}, not {}", envelope.kind));
    }
    if envelope.tags.len() > MAX_ENVELOPE_TAGS {
        let many = envelope.tags.len();
        return invalid(format!(
            "an envelope holds at most {MAX_ENVELOPE_TAGS} tags, not {many}: give the entry fewer"
        ));
    }
    if envelope.tags.contains(&0) {
        return invalid("the hash of a tag is never zero".to_owned());
    }
    if envelope.scope.namespace == 0 || (envelope.scope.model == 0) != (envelope.scope.version == 0) {
        return invalid("an envelope names a namespace, and both model and version or neither".to_owned());
    }
    if life == Some(FOR_EVER) || total == Some(FOR_EVER) || total == Some(0) || (life.is_some() && total.is_none()) {
        return invalid(format!(
            "life {life:?} ms with a total of {total:?} ms: a life that ends needs a total that is at least 1 ms, and \
             2^64 - 1 ms stands for no end"
        ));
    }
    if envelope.payload.len() > MAX_PAYLOAD_BYTES {
        return invalid(format!("a payload has at most {MAX_PAYLOAD_BYTES} bytes, not {}", envelope.payload.len()));
    }
    Ok(())
}
