//! Durations in 24 bits and costs in 16: small floating-point numbers of an entry's header.

/// The life of an entry that stays until it is evicted.
pub(super) const LIFE_FOR_EVER: u32 = 0xff_ffff;

/// A duration in 24 bits: 5 of exponent, 19 of mantissa with a hidden bit; rounds down.
pub(super) struct Life;

impl Life {
    const MANTISSA: u32 = 19;

    pub(super) fn encode(milliseconds: u64) -> u32 {
        let bits = 64 - milliseconds.leading_zeros();
        if bits <= Self::MANTISSA {
            return milliseconds as u32;
        }
        let exponent = bits - Self::MANTISSA;
        if exponent > 31 {
            return LIFE_FOR_EVER - 1;
        }
        let mantissa = (milliseconds >> (exponent - 1)) as u32 & ((1 << Self::MANTISSA) - 1);
        (exponent << Self::MANTISSA | mantissa).min(LIFE_FOR_EVER - 1)
    }

    pub(super) fn decode(life: u32) -> u64 {
        let (exponent, mantissa) = (life >> Self::MANTISSA, u64::from(life) & ((1 << Self::MANTISSA) - 1));
        if exponent == 0 { mantissa } else { (mantissa | 1 << Self::MANTISSA) << (exponent - 1) }
    }
}

/// The unit of a recorded cost: with 11 bits of mantissa and 5 of exponent it reaches from 16 ns to a day.
const COST_UNIT_NANOSECONDS: u64 = 16;
/// Beyond what 16 bits hold, and well within 64.
const MOST_COST_UNITS: f64 = (1u64 << 43) as f64;
const COST_UNIT: f64 = COST_UNIT_NANOSECONDS as f64 * 1e-9;
const COST_MANTISSA: u32 = 11;

pub(super) fn encode_cost(seconds: f32) -> u16 {
    // NaN and negative costs become 0.
    let units = (f64::from(seconds) * (1.0 / COST_UNIT) + 0.5).clamp(0.0, MOST_COST_UNITS) as u64;
    let bits = 64 - units.leading_zeros();
    if bits <= COST_MANTISSA {
        return units as u16;
    }
    let exponent = bits - COST_MANTISSA;
    let rounded = (units + (1 << (exponent - 1) >> 1)) >> (exponent - 1);
    if exponent > 31 || (exponent == 31 && rounded >> (COST_MANTISSA + 1) != 0) {
        return u16::MAX;
    }
    // A mantissa that rounds up to the next power of two carries into the exponent, which is just right.
    ((exponent << COST_MANTISSA) as u64 + (rounded - (1 << COST_MANTISSA))) as u16
}

#[inline]
pub(super) fn cost_nanoseconds(cost: u16) -> u64 {
    cost_units(cost) * COST_UNIT_NANOSECONDS
}

#[inline]
fn cost_units(cost: u16) -> u64 {
    let (exponent, mantissa) = (u32::from(cost) >> COST_MANTISSA, u64::from(cost) & ((1 << COST_MANTISSA) - 1));
    if exponent == 0 { mantissa } else { (mantissa | 1 << COST_MANTISSA) << (exponent - 1) }
}

pub(super) fn decode_cost(cost: u16) -> f32 {
    (cost_units(cost) as f64 * COST_UNIT) as f32
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_life_is_never_lengthened_and_hardly_shortened(milliseconds in 0..(1u64 << 48)) {
            let kept = Life::decode(Life::encode(milliseconds));
            prop_assert!(kept <= milliseconds);
            prop_assert!(milliseconds - kept <= milliseconds >> 19, "{milliseconds} {kept}");
        }

        #[test]
        fn a_cost_keeps_three_digits(exponent in -7.0f64..4.8) {
            let seconds = 10f64.powf(exponent) as f32;
            let kept = decode_cost(encode_cost(seconds));
            prop_assert!((f64::from(kept) / f64::from(seconds) - 1.0).abs() < 1.0 / 2048.0 + 8e-9 / f64::from(seconds), "{seconds} {kept}");
        }
    }

    #[test]
    fn costs_at_the_ends() {
        for (seconds, kept) in [(0.0, 0.0), (-1.0, 0.0), (f32::NAN, 0.0)] {
            assert_eq!(decode_cost(encode_cost(seconds)), kept);
        }
        assert!(decode_cost(encode_cost(f32::INFINITY)) > 60_000.0);
        assert_eq!(Life::decode(Life::encode(u64::MAX)), Life::decode(LIFE_FOR_EVER - 1));
    }
}
