//! Numbers of an array, one after another: room is made for many at once.

use super::{Limit, Writer};
use crate::number;
use std::mem::MaybeUninit;

/// A number as a language stores it.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    /// A binary64.
    Float(f64),
    /// An integer.
    Integer(i64),
}

/// As many numbers get room at once.
const BLOCK: usize = 64;
/// A comma and the number's room.
const ITEM: usize = number::ROOM + 1;

impl Writer {
    /// Writes the items `from..to` of an array while `item` gives numbers, with a comma before each but item 0.
    ///
    /// Returns the index of the first item that was not written: one that `item` knows no number for, or a number that
    /// is a `$` form (NaN, an infinity, an integer beyond 2^53), which [`Writer::float`] and [`Writer::integer`] write.
    #[inline]
    pub fn numbers(
        &mut self,
        from: usize,
        to: usize,
        mut item: impl FnMut(usize) -> Option<Number>,
    ) -> std::result::Result<usize, Limit> {
        let mut next = from;
        while next < to {
            let block = (to - next).min(BLOCK);
            self.reserve(block * ITEM)?;
            let room = &mut self.bytes.spare_capacity_mut()[..block * ITEM];
            let (mut length, end) = (0, next + block);
            while next < end {
                let Some(number) = item(next) else { break };
                let Some(place) = room[length..].first_chunk_mut::<ITEM>() else { break };
                let comma = usize::from(next > 0);
                place[0].write(b',');
                let Some(digits) = digits(number, place[comma..].first_chunk_mut().expect("a number's room")) else {
                    break;
                };
                length += comma + digits;
                next += 1;
            }
            // SAFETY: within the capacity; each number begins where the one before it ends, and number.rs writes as
            // many bytes as it says.
            unsafe { self.bytes.set_len(self.bytes.len() + length) };
            if next < end {
                break;
            }
        }
        Ok(next)
    }
}

/// The text of a number that is not a `$` form.
#[inline(always)]
fn digits(number: Number, room: &mut [MaybeUninit<u8>; number::ROOM]) -> Option<usize> {
    match number {
        Number::Float(value) if value.is_finite() => Some(number::write_f64(value, room)),
        Number::Integer(value) if value.unsigned_abs() <= 1 << 53 => Some(number::write_i64(value, room)),
        _ => None,
    }
}
