//! Finding the bytes that a canonical string escapes: control characters, `"` and `\`.
//!
//! Nearly all text has none, and most of it is short. So text is looked at in words of sixteen, eight or four bytes
//! without a branch inside, the last word overlapping the one before it, and copied as it is looked at.

/// Whether this byte needs an escape inside a canonical string.
#[inline]
pub fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Length of the longest prefix without a byte that needs an escape.
#[inline]
pub fn clean_prefix(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = text[at..].first_chunk::<16>() {
        if block_needs_escape(block) {
            break;
        }
        at += 16;
    }
    if let Some(word) = text[at..].first_chunk::<8>()
        && !word_needs_escape(u64::from_le_bytes(*word))
    {
        at += 8;
    }
    at + first_of(&text[at..])
}

/// Copies the longest prefix without a byte that needs an escape to `to` and returns its length. Bytes after it, up to
/// the length of `text`, may be written as well.
///
/// # Safety
///
/// `text.len()` bytes can be written at `to`, and they do not overlap `text`.
#[inline]
pub unsafe fn copy_clean(text: &[u8], to: *mut u8) -> usize {
    let length = text.len();
    if length < 16 {
        // SAFETY: as the caller vouches.
        return unsafe { copy_short(text, to) };
    }
    let mut at = 0;
    loop {
        let block: &[u8; 16] = text[at..].first_chunk().expect("sixteen bytes are left");
        // SAFETY: sixteen bytes from `at` on are within `text`, and so within the room.
        unsafe { to.add(at).cast::<[u8; 16]>().write_unaligned(*block) };
        if block_needs_escape(block) {
            return at + first_of(block);
        }
        if at + 16 == length {
            return length;
        }
        // The last block begins early enough to end with the text: some bytes are looked at and copied twice.
        at = (at + 16).min(length - 16);
    }
}

/// [`copy_clean`] of fewer than sixteen bytes.
///
/// # Safety
///
/// As [`copy_clean`].
#[inline]
unsafe fn copy_short(text: &[u8], to: *mut u8) -> usize {
    let length = text.len();
    let clean = match (text.first_chunk::<8>(), text.last_chunk::<8>(), text.first_chunk::<4>(), text.last_chunk::<4>())
    {
        (Some(first), Some(last), _, _) => {
            // SAFETY: the first and the last eight bytes of the room.
            unsafe {
                to.cast::<[u8; 8]>().write_unaligned(*first);
                to.add(length - 8).cast::<[u8; 8]>().write_unaligned(*last);
            }
            !word_needs_escape(u64::from_le_bytes(*first)) && !word_needs_escape(u64::from_le_bytes(*last))
        }
        (_, _, Some(first), Some(last)) => {
            // SAFETY: the first and the last four bytes of the room.
            unsafe {
                to.cast::<[u8; 4]>().write_unaligned(*first);
                to.add(length - 4).cast::<[u8; 4]>().write_unaligned(*last);
            }
            let both = u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << 32;
            !word_needs_escape(both)
        }
        _ => {
            let mut clean = true;
            for (at, &byte) in text.iter().enumerate() {
                // SAFETY: within the length of `text`.
                unsafe { to.add(at).write(byte) };
                clean &= !needs_escape(byte);
            }
            clean
        }
    };
    if clean { length } else { first_of(text) }
}

/// Where the first byte that needs an escape stands, or the length.
#[inline]
fn first_of(text: &[u8]) -> usize {
    text.iter().position(|&byte| needs_escape(byte)).unwrap_or(text.len())
}

#[inline]
fn block_needs_escape(block: &[u8; 16]) -> bool {
    // No branch inside: the compiler makes vector compares of it.
    block.iter().fold(false, |found, &byte| found | needs_escape(byte))
}

/// Whether one of eight bytes needs an escape: the usual zero-byte trick, three times. (A false alarm above a true one
/// changes nothing.)
#[inline]
fn word_needs_escape(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let zero = |x: u64| x.wrapping_sub(ONES) & !x;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (control | zero(word ^ (ONES * b'"' as u64)) | zero(word ^ (ONES * b'\\' as u64))) & HIGH != 0
}
