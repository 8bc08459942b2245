//! How a payload is stored: as it is, or as an LZ4 block where that pays (docs/decisions/0021-envelope-codec.md).

use super::Refused;
use lz4_flex::block;

/// The codecs of this version; the numbers are never given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Codec {
    Raw = 0,
    Lz4 = 2,
}

/// A byte of an LZ4 block adds at most 255 bytes to what it decompresses to.
const MOST_PER_BYTE: usize = 255;

impl Codec {
    pub(super) fn from_byte(byte: u8) -> Option<Codec> {
        match byte {
            0 => Some(Codec::Raw),
            2 => Some(Codec::Lz4),
            _ => None,
        }
    }
}

/// Bytes that `compress_onto` needs beyond what is there, so as not to move it.
pub(super) fn room_for(length: usize) -> usize {
    block::get_maximum_output_size(length)
}

/// Adds the compressed payload, if that saves an eighth or more; else nothing, and `false`.
pub(super) fn compress_onto(out: &mut Vec<u8>, payload: &[u8]) -> bool {
    let before = out.len();
    out.resize(before + room_for(payload.len()), 0);
    let stored = block::compress_into(payload, &mut out[before..]);
    let pays = |stored: &usize| *stored <= payload.len() - payload.len() / 8;
    let kept = stored.ok().filter(pays);
    out.truncate(before + kept.unwrap_or(0));
    kept.is_some()
}

/// The payload of a compressed one. The caller has checked that `length` is not above its cap.
pub(super) fn decompress(stored: &[u8], length: usize) -> Result<Vec<u8>, Refused> {
    if length > stored.len().saturating_mul(MOST_PER_BYTE) {
        return Err(Refused::Bomb);
    }
    let mut payload = Vec::new();
    payload.try_reserve_exact(length).map_err(|_| Refused::Bomb)?;
    payload.resize(length, 0);
    match block::decompress_into(stored, &mut payload) {
        Ok(written) if written == length => Ok(payload),
        _ => Err(Refused::Compression),
    }
}
