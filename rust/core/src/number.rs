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

/// No text of [`write_f64`] is longer: sign, `0.`, five zeros, seventeen digits.
pub const MAX_NUMBER_BYTES: usize = 25;

/// Writes the ECMAScript text of a finite `value` to the front of `out` and returns its length in bytes.
///
/// `-0.0` is written as `0`. The caller handles NaN and infinities, which have no text in JSON.
#[inline]
pub fn write_f64(value: f64, out: &mut [u8; 32]) -> usize {
    debug_assert!(value.is_finite());
    if value == 0.0 {
        out[0] = b'0';
        return 1;
    }
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(value).as_bytes();
    let length = text.len();
    out[..length].copy_from_slice(text);
    let magnitude = value.abs();
    if (1e-5..1e16).contains(&magnitude) {
        // `120.0`: a fraction of zero has exactly one digit, and no other text ends so.
        return if text.ends_with(b".0") { length - 2 } else { length };
    }
    if (1e16..1e21).contains(&magnitude) || (1e-6..1e-5).contains(&magnitude) { expand(text, out) } else { length }
}

/// Lays `d.ddde±x` out without an exponent; see the table above. Returns the length in bytes.
#[cold]
fn expand(text: &[u8], out: &mut [u8; 32]) -> usize {
    let sign = usize::from(text[0] == b'-');
    let Some(split) = text.iter().position(|&b| b == b'e') else {
        return text.len(); // already without an exponent
    };
    let mut digits = [0u8; 17];
    let mut count = 0;
    for &b in text[sign..split].iter().filter(|b| b.is_ascii_digit()) {
        digits[count] = b;
        count += 1;
    }
    let exponent = text[split + 2..].iter().fold(0usize, |n, &b| n * 10 + usize::from(b - b'0'));
    let mut at = sign; // a minus sign already stands at out[0]
    let mut put = |byte: u8| {
        out[at] = byte;
        at += 1;
    };
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
        let mut out = [0u8; 32];
        let length = write_f64(value, &mut out);
        assert!(length <= MAX_NUMBER_BYTES);
        String::from_utf8(out[..length].to_vec()).unwrap()
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
