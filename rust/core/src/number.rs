//! ECMAScript's text of a binary64 (`Number::toString`, ECMA-262 section 6.1.6.1.20), which RFC 8785 prescribes.
//!
//! The shortest digits that read back as the same number come from zmij (Schubfach). Its layout differs from
//! ECMAScript's in two ways only, and both are mended here:
//!
//! | magnitude                         | zmij               | ECMAScript             |
//! | --------------------------------- | ------------------ | ---------------------- |
//! | a whole number below 1e16         | `120.0`            | `120`                  |
//! | at least 1e16 and below 1e21      | `1.2e+17`          | `120000000000000000`   |
//! | at least 1e-6 and below 1e-5      | `1.2e-6`           | `0.0000012`            |
//! | every other                       | the same text      |                        |

use std::mem::MaybeUninit;

mod shortest; // ordinary fractions, in exact integer arithmetic

/// No text of [`write_f64`] is longer: sign, `0.`, five zeros, seventeen digits.
pub const MAX_NUMBER_BYTES: usize = 25;
/// Room that [`write_f64`] asks for.
pub const ROOM: usize = 32;

/// Below this every whole number is written with all its digits, by zmij and by ECMAScript alike.
const WHOLE: f64 = (1u64 << 53) as f64;

/// Writes the ECMAScript text of a finite `value` to the front of `room` and returns its length in bytes.
///
/// `-0.0` is written as `0`. The caller handles NaN and infinities, which have no text in JSON.
#[inline]
pub fn write_f64(value: f64, room: &mut [MaybeUninit<u8>; ROOM]) -> usize {
    debug_assert!(value.is_finite());
    if let Some(length) = shortest::write(value, room) {
        return length;
    }
    write_other(value, room)
}

/// The numbers that are no ordinary fractions: zero, the very large and the very small, powers of two below 1.
#[inline(never)]
fn write_other(value: f64, room: &mut [MaybeUninit<u8>; ROOM]) -> usize {
    let magnitude = value.abs();
    if magnitude < WHOLE && value as i64 as f64 == value {
        return write_i64(value as i64, room);
    }
    let length = write_shortest(value, room);
    if (1e-5..WHOLE).contains(&magnitude) || !(1e-6..1e21).contains(&magnitude) {
        return length;
    }
    relay(room, length)
}

/// zmij's text, written where it is wanted: a copy of bytes just written in small pieces would wait for them.
#[inline]
fn write_shortest(value: f64, room: &mut [MaybeUninit<u8>; ROOM]) -> usize {
    const { assert!(align_of::<zmij::Buffer>() == 1 && size_of::<zmij::Buffer>() <= ROOM) };
    let buffer: *mut zmij::Buffer = room.as_mut_ptr().cast();
    // SAFETY: the room is large enough and any address is aligned for a Buffer, which has no destructor; it is written
    // before it is referred to.
    let text = unsafe {
        buffer.write(zmij::Buffer::new());
        (*buffer).format_finite(value)
    };
    let (start, length) = (text.as_ptr(), text.len());
    if !std::ptr::eq(start, room.as_ptr().cast()) {
        // SAFETY: `length` bytes of text, within the room; the two may overlap.
        unsafe { std::ptr::copy(start, room.as_mut_ptr().cast(), length) };
    }
    length
}

/// Writes the decimal digits of an integer of at most 2^53 in magnitude to the front of `room` and returns their length.
///
/// Straight to where they are wanted, like [`write_shortest`]: libraries write them somewhere else first.
#[inline]
pub fn write_i64(value: i64, room: &mut [MaybeUninit<u8>; ROOM]) -> usize {
    const GROUP: u64 = 100_000_000;
    let magnitude = value.unsigned_abs();
    debug_assert!(magnitude <= 1 << 53);
    room[0].write(b'-');
    let start = usize::from(value < 0);
    if magnitude < GROUP {
        return start + write_leading(magnitude, &mut room[start..]);
    }
    let end = start + write_leading(magnitude / GROUP, &mut room[start..]);
    room[end..end + 8].write_copy_of_slice(&(eight_digits(magnitude % GROUP) | ASCII_ZEROS).to_le_bytes());
    end + 8
}

/// Writes a number below 10^8 without leading zeros (and what follows it up to eight bytes); returns its digits.
#[inline]
fn write_leading(number: u64, room: &mut [MaybeUninit<u8>]) -> usize {
    let digits = eight_digits(number);
    // The most significant digit is the lowest byte; of zero the last digit stays.
    let zeros = (digits.trailing_zeros() / 8).min(7);
    room[..8].write_copy_of_slice(&((digits | ASCII_ZEROS) >> (8 * zeros)).to_le_bytes());
    8 - zeros as usize
}

const ASCII_ZEROS: u64 = u64::from_ne_bytes([b'0'; 8]);

/// The eight decimal digits of a number below 10^8, one a byte, the most significant one in the lowest byte.
///
/// Halves are divided side by side in one word: by 10^4, then by 100, then by 10, each division a multiplication by the
/// reciprocal (Khuong, "How to print integers really fast", 2017).
#[inline]
fn eight_digits(number: u64) -> u64 {
    let high = number / 10_000;
    let fours = high | (number - 10_000 * high) << 32;
    let hundreds = ((fours * 10_486) >> 20) & 0x7f_0000_007f; // x / 100 for x < 10^4
    let pairs = hundreds | (fours - 100 * hundreds) << 16;
    let tens = ((pairs * 103) >> 10) & 0x0f_000f_000f_000f; // x / 10 for x < 100
    tens | (pairs - 10 * tens) << 8
}

/// Lays a text of zmij's out as ECMAScript does; see the table above. Returns the length in bytes.
#[cold]
#[inline(never)]
fn relay(room: &mut [MaybeUninit<u8>; ROOM], length: usize) -> usize {
    let mut text = [0u8; ROOM];
    for (byte, place) in text.iter_mut().zip(&room[..length]) {
        // SAFETY: the first `length` bytes were written just now.
        *byte = unsafe { place.assume_init() };
    }
    let mut out = [0u8; ROOM];
    let length = laid_out(&text[..length], &mut out);
    for (place, byte) in room.iter_mut().zip(&out[..length]) {
        place.write(*byte);
    }
    length
}

fn laid_out(text: &[u8], out: &mut [u8; ROOM]) -> usize {
    let sign = usize::from(text[0] == b'-');
    let Some(split) = text.iter().position(|&b| b == b'e') else {
        let whole = text.strip_suffix(b".0").unwrap_or(text);
        out[..whole.len()].copy_from_slice(whole);
        return whole.len();
    };
    let mut digits = [0u8; 17];
    let mut count = 0;
    for &b in text[sign..split].iter().filter(|b| b.is_ascii_digit()) {
        digits[count] = b;
        count += 1;
    }
    let exponent = text[split + 2..].iter().fold(0usize, |n, &b| n * 10 + usize::from(b - b'0'));
    let mut at = 0;
    let mut put = |byte: u8| {
        out[at] = byte;
        at += 1;
    };
    if sign == 1 {
        put(b'-');
    }
    if text[split + 1] == b'-' {
        put(b'0');
        put(b'.');
        (1..exponent).for_each(|_| put(b'0'));
        digits[..count].iter().for_each(|&b| put(b));
    } else {
        // At most 17 digits and an exponent of at least 16: never a fraction.
        digits[..count].iter().for_each(|&b| put(b));
        (count..=exponent).for_each(|_| put(b'0'));
    }
    at
}

/// Whether a binary64 holds this magnitude exactly: at most 53 bits from its first to its last one.
#[inline]
pub fn is_exact(magnitude: u64) -> bool {
    magnitude < 1 << 53 || 64 - magnitude.leading_zeros() - magnitude.trailing_zeros() <= 53
}

/// The binary64 that equals the integer written as `digits` (no sign, no leading zero), if there is one.
pub fn exact_f64(digits: &str) -> Option<f64> {
    if let Ok(small) = digits.parse::<u64>() {
        return is_exact(small).then_some(small as f64);
    }
    if digits.len() > 309 {
        return None; // beyond the largest binary64, which has 309 digits
    }
    let nearest: f64 = digits.parse().ok()?;
    // With a precision Rust prints the exact decimal expansion, so equal text means equal numbers.
    (nearest.is_finite() && format!("{nearest:.0}") == digits).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: f64) -> String {
        let mut room = [MaybeUninit::uninit(); ROOM];
        let length = write_f64(value, &mut room);
        assert!(length <= MAX_NUMBER_BYTES);
        // SAFETY: `length` bytes were written.
        room[..length].iter().map(|byte| unsafe { byte.assume_init() } as char).collect()
    }

    /// An independent formatter of the same standard.
    fn peer(value: f64) -> String {
        ryu_js::Buffer::new().format_finite(value).to_owned()
    }

    #[test]
    fn boundaries_of_the_layout_are_ecmascripts() {
        let cases: [(f64, &str); 16] = [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (1e21, "1e+21"),
            (999999999999999900000.0, "999999999999999900000"),
            (1e20, "100000000000000000000"),
            (123456789012345680.0, "123456789012345680"),
            (1e16, "10000000000000000"),
            (1e-6, "0.000001"),
            (9.999999999999997e-7, "9.999999999999997e-7"),
            (1e-7, "1e-7"),
            (-1.2345678901234567e-6, "-0.0000012345678901234567"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (-9223372036854775808.0, "-9223372036854776000"),
        ];
        for (value, expected) in cases {
            assert_eq!(text(value), expected);
        }
    }

    #[test]
    fn integers_of_every_length_have_their_digits() {
        let mut values: Vec<i64> = (0..20_000).chain([1 << 53, (1 << 53) - 1, 1_234_567_890_123_456]).collect();
        for power in 0..16 {
            let ten = 10i64.pow(power);
            values.extend(
                (1..10).flat_map(|digit| [digit * ten - 1, digit * ten, digit * ten + 1]).filter(|v| *v <= 1 << 53),
            );
        }
        values.extend((0..10_000).map(|step| step * 10_007 + 3)); // every pair of digits at every place
        values.extend((0..10_000).map(|step| 99_999_999 - step * 9_973));
        for value in values.iter().flat_map(|&value| [value, value.wrapping_neg()]) {
            let mut room = [MaybeUninit::uninit(); ROOM];
            let length = write_i64(value, &mut room);
            // SAFETY: `length` bytes were written.
            let text: String = room[..length].iter().map(|byte| unsafe { byte.assume_init() } as char).collect();
            assert_eq!(text, value.to_string());
        }
    }

    #[test]
    fn powers_of_two_and_ten_and_their_neighbours_agree_with_ryu_js() {
        for exponent in -1074..1024 {
            around(2f64.powi(exponent));
        }
        for exponent in -324..309 {
            around(format!("1e{exponent}").parse().unwrap());
        }
        for whole in (1u64 << 53) - 1000..(1 << 53) + 1000 {
            around(whole as f64);
        }
        for subnormal in 0..4096 {
            around(f64::from_bits(subnormal));
            around(f64::from_bits((1 << 52) - 2048 + subnormal));
        }
    }

    fn around(value: f64) {
        for bits in value.to_bits().saturating_sub(3)..=value.to_bits() + 3 {
            for near in [f64::from_bits(bits), -f64::from_bits(bits)] {
                if near.is_finite() {
                    assert_eq!(text(near), peer(near), "{near:e}");
                }
            }
        }
    }

    #[test]
    fn two_million_random_doubles_agree_with_ryu_js() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        let mut seen = 0;
        while seen < 1_000_000 {
            let value = f64::from_bits(next()); // every exponent alike
            if value.is_finite() {
                assert_eq!(text(value), peer(value), "{value:e}");
                seen += 1;
            }
        }
        for _ in 0..1_000_000 {
            // Decimal-looking numbers of ordinary size, where the layout without exponent applies.
            let value = (next() % 1_000_000_007) as f64 * 10f64.powi((next() % 30) as i32 - 18);
            assert_eq!(text(value), peer(value), "{value:e}");
        }
    }

    #[test]
    fn ordinary_fractions_agree_with_ryu_js() {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let first = 1e-6f64.to_bits() >> 52;
        let last = ((1u64 << 53) as f64).to_bits() >> 52;
        for exponent in first - 2..last + 2 {
            let base = exponent << 52;
            for _ in 0..10_000 {
                let value = f64::from_bits(base | next() >> 12);
                assert_eq!(text(value), peer(value), "{value:e}");
                // Few bits: whole numbers, halves and quarters, and digits that lie exactly between two others.
                let value = f64::from_bits(base | next() >> 12 & u64::MAX << (next() % 53));
                assert_eq!(text(-value), peer(-value), "{value:e}");
            }
            (0..200).for_each(|step| around(f64::from_bits(base + step)));
        }
        for _ in 0..500_000 {
            let value = (next() >> 11) as f64 / (1u64 << 53) as f64; // what Python's random.random() gives
            assert_eq!(text(value), peer(value), "{value:e}");
            let value = (next() % 1_000_000) as f64 / 1000.0;
            assert_eq!(text(value), peer(value), "{value:e}");
        }
    }

    #[test]
    fn an_integer_is_exact_iff_a_binary64_holds_it() {
        for (digits, expected) in [
            ("0", Some(0.0)),
            ("9007199254740992", Some(9007199254740992.0)),
            ("9007199254740993", None),
            ("18446744073709551615", None),
            ("18446744073709551616", Some(18446744073709551616.0)),
            ("100000000000000000000", Some(1e20)),
            ("1000000000000000000000000000001", None),
        ] {
            assert_eq!(exact_f64(digits), expected, "{digits}");
        }
        assert_eq!(exact_f64(&format!("{:.0}", f64::MAX)), Some(f64::MAX));
        assert_eq!(exact_f64(&"9".repeat(309)), None);
        assert_eq!(exact_f64(&"9".repeat(4300)), None);
    }
}
