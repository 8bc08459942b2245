//! Ordinary fractions, from 2^-19 (2e-6) to 2^52, in exact integer arithmetic and without a branch on the digits.
//!
//! A positive binary64 is `c · 2^q`, `c` of 53 bits. Every decimal nearer to it than half a unit in the last place,
//! `2^q / 2`, reads back as it, and exactly half as well where `c` is even. Let `j` be such that `2^q · 10^j` is at
//! least 0.1 and below 1 (Giulietti's Schubfach, 2020, whose `k` is `-j - 1`). Of the multiples of `10^-j` at most one
//! reads back; if one does it is the shortest, and without its trailing zeros the answer. Otherwise the multiple of
//! `10^-(j+1)` nearest to the number reads back, has one digit more, and is the answer.
//!
//! Schubfach multiplies by an approximate power of ten. In the range here none is needed: `c · 2^q · 10^j` is
//! `c · 5^j / 2^s` with `s = -(q + j)`, `5^j` of at most 49 bits and `s` at most 50, so that the product is one
//! multiplication and the fraction below the point one word, both exact.
//!
//! Which of the three candidates is taken, and how many digits it has, is as good as random in a list of measurements,
//! and a processor that guesses wrong loses what a whole number costs: hence selections where others branch, and whole
//! registers stored where others copy a length.

use super::ROOM;
use std::mem::MaybeUninit;

/// The exponents `q` run from this, of 2^-19, to -1, of the numbers just below 2^52.
const LEAST_Q: i64 = -71;

/// What the exponent decides.
#[derive(Clone, Copy)]
struct Scale {
    /// `5^j`.
    five: u64,
    /// Bits below the point.
    s: u32,
    /// The decimal exponent of the first digit where the product has sixteen digits before the point.
    exponent: i32,
}

/// [`Scale`] of `q` from [`LEAST_Q`] to -1.
const SCALES: [Scale; 71] = {
    let mut scales = [Scale { five: 0, s: 0, exponent: 0 }; 71];
    let mut at = 0;
    while at < 71 {
        let below = 71 - at as u32; // -q
        // The largest j with 2^q · 10^j < 1, that is 10^j < 2^-q.
        let mut j = 0;
        while 10u128.pow(j + 1) < 1 << below {
            j += 1;
        }
        scales[at] = Scale { five: 5u64.pow(j), s: below - j, exponent: 15 - j as i32 };
        at += 1;
    }
    scales
};

/// Writes the text of `value` if it is in range; returns the length in bytes.
///
/// A power of two below 1 is left out too: the numbers below it lie closer than those above.
#[inline]
pub(super) fn write(value: f64, room: &mut [MaybeUninit<u8>; ROOM]) -> Option<usize> {
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = value.to_bits();
    let q = (bits >> 52 & 0x7ff) as i64 - 1075;
    let scale = SCALES.get(usize::try_from(q - LEAST_Q).ok()?)?;
    let fraction = bits & FRACTION;
    let c = fraction | 1 << 52;
    if i64::from(c.trailing_zeros()) >= -q {
        let whole = (c >> -q) as i64;
        return Some(super::write_i64(if value < 0.0 { -whole } else { whole }, room));
    }
    if fraction == 0 {
        return None;
    }
    let (digits, last, exponent) = shortest(c, scale);
    room[0].write(b'-');
    let start = (bits >> 63) as usize;
    Some(start + lay_out(digits, last, exponent, &mut room[start..]))
}

/// Seventeen digits, zeros at the end included: sixteen as a number, the last one, and the exponent of the first.
#[inline]
fn shortest(c: u64, scale: &Scale) -> (u64, u64, i32) {
    let &Scale { five, s, exponent } = scale;
    let one = 1u64 << s;
    let product = u128::from(c) * u128::from(five);
    let below = product as u64 & (one - 1);
    // Half a unit in the last place is five / 2 here.
    let reach = five + u64::from(c.is_multiple_of(2));
    let down = 2 * below < reach;
    let up = 2 * (one - below) < reach;
    let whole = (product >> s) as u64 + u64::from(up); // at least 2^52 / 10, at most 2^53
    let tenths = 10 * below + one / 2;
    let tie = tenths & (one - 1) == 0; // half a tenth goes to the even one
    let digit = tenths >> s & !u64::from(tie);
    let digit = if down | up { 0 } else { digit };
    let sixteen = whole >= 1_000_000_000_000_000;
    let digits = if sixteen { whole } else { 10 * whole + digit };
    (digits, if sixteen { digit } else { 0 }, exponent - i32::from(!sixteen))
}

/// Writes `0.00ddd` or `dd.ddd`. The exponent is between -6 and 15, and what is written is no whole number.
#[inline]
fn lay_out(digits: u64, last: u64, exponent: i32, room: &mut [MaybeUninit<u8>]) -> usize {
    let (text, zeros) = sixteen_digits(digits);
    // A position of the seventeen is a bit; the last one that is no zero ends the text.
    let count = 32 - (zeros | u32::from(last != 0) << 16).leading_zeros() as usize;
    let last = b'0' + last as u8;
    if exponent < 0 {
        let before = (1 - exponent) as usize;
        room[..8].write_copy_of_slice(b"0.000000");
        room[before..before + 16].write_copy_of_slice(&text.to_le_bytes());
        room[before + 16].write(last);
        return before + count;
    }
    let whole = exponent as usize + 1;
    let mask = u128::MAX >> (128 - 8 * whole);
    room[16].write((text >> 120) as u8);
    room[17].write(last);
    room[..16].write_copy_of_slice(&(text & mask | text << 8 & !mask).to_le_bytes());
    room[whole].write(b'.');
    count + 1
}

/// The decimal digits of a number below 10^16 as text, the most significant one in the lowest byte, and a bit for each
/// that is not `0`.
#[cfg(target_arch = "x86_64")]
#[inline]
fn sixteen_digits(number: u64) -> (u128, u32) {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi64, _mm_cmpgt_epi8, _mm_movemask_epi8, _mm_mul_epu32, _mm_mulhi_epu16, _mm_mullo_epi16,
        _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8, _mm_set1_epi16, _mm_set1_epi32, _mm_set1_epi64x,
        _mm_setzero_si128, _mm_shuffle_epi32, _mm_slli_epi16, _mm_slli_epi32, _mm_srli_epi16, _mm_srli_epi64,
        _mm_sub_epi16,
    };
    const GROUP: u64 = 100_000_000;
    // SAFETY: SSE2 belongs to every x86-64, and the two types have the same size.
    unsafe {
        let eights = _mm_set_epi64x((number / GROUP) as i64, (number % GROUP) as i64);
        let quotients = _mm_srli_epi64::<40>(_mm_mul_epu32(eights, _mm_set1_epi64x(109_951_163))); // x / 10^4, x < 10^8
        // Each half becomes the remainder and, above it, the quotient; then all four stand in their order.
        let fours = _mm_add_epi64(eights, _mm_mul_epu32(quotients, _mm_set1_epi64x((1 << 32) - 10_000)));
        let fours = _mm_shuffle_epi32::<0b00_01_10_11>(fours);
        let hundreds = _mm_srli_epi16::<3>(_mm_mulhi_epu16(fours, _mm_set1_epi32(5_243))); // x / 100, x < 10^4
        let rest = _mm_sub_epi16(fours, _mm_mullo_epi16(hundreds, _mm_set1_epi16(100)));
        let pairs = _mm_or_si128(hundreds, _mm_slli_epi32::<16>(rest));
        let tens = _mm_mulhi_epu16(pairs, _mm_set1_epi16(6_554)); // x / 10, x < 100
        let digits: __m128i = _mm_sub_epi16(_mm_slli_epi16::<8>(pairs), _mm_mullo_epi16(tens, _mm_set1_epi16(2_559)));
        let some = _mm_movemask_epi8(_mm_cmpgt_epi8(digits, _mm_setzero_si128()));
        let text = _mm_or_si128(digits, _mm_set1_epi8(b'0' as i8));
        (std::mem::transmute::<__m128i, u128>(text), some as u32)
    }
}

/// As above, a word at a time.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn sixteen_digits(number: u64) -> (u128, u32) {
    use super::{ASCII_ZEROS, eight_digits};
    const GROUP: u64 = 100_000_000;
    let (high, low) = (eight_digits(number / GROUP), eight_digits(number % GROUP));
    let digits = u128::from(high) | u128::from(low) << 64;
    // Only the last digit that is not zero counts.
    let some = 1u32.checked_shl(15 - digits.leading_zeros() / 8).unwrap_or(0);
    (digits | u128::from(ASCII_ZEROS) << 64 | u128::from(ASCII_ZEROS), some)
}
