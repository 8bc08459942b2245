//! Dates, times and time zones as bytes (little-endian, without padding).
//!
//! ```text
//! date       year u16 ‖ month u8 ‖ day u8
//! time       hour u8 ‖ minute u8 ‖ second u8 ‖ fold u8 ‖ microsecond u32 ‖ zone
//! datetime   date ‖ time
//! timedelta  days i32 ‖ seconds u32 ‖ microseconds u32
//! zone       0                                                    none
//!            1                                                    timezone.utc
//!            2 ‖ timedelta                                        a fixed offset
//!            3 ‖ timedelta ‖ name                                 a fixed offset with a name of its own
//!            4 ‖ key                                              a zone of the IANA database
//! ```
//! Name and key are UTF-8 to the end of the extension. Whether the calendar has such a day is for the builder to say.

use super::corrupt;
use crate::error::Result;

/// A day of the proleptic Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Date {
    pub year: u16,
    pub month: u8,
    pub day: u8,
}

/// A duration in Python's normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Delta {
    pub days: i32,
    pub seconds: u32,
    pub microseconds: u32,
}

/// A time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone<'a> {
    /// A naive time.
    None,
    /// `timezone.utc`.
    Utc,
    /// A fixed offset, with a name (UTF-8, unchecked) where it was given one.
    Fixed(Delta, Option<&'a [u8]>),
    /// A key of the IANA database (UTF-8, unchecked).
    Named(&'a [u8]),
}

/// A time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Time<'a> {
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
    /// 1 for the second of two equal wall-clock times.
    pub fold: u8,
    pub microsecond: u32,
    pub zone: Zone<'a>,
}

impl Date {
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.year.to_le_bytes());
        out.extend_from_slice(&[self.month, self.day]);
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Date> {
        match *bytes {
            [y0, y1, month, day] => Ok(Date { year: u16::from_le_bytes([y0, y1]), month, day }),
            _ => Err(corrupt(format!("a date of {} bytes", bytes.len()))),
        }
    }
}

impl Delta {
    const BYTES: usize = 12;

    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.days.to_le_bytes());
        out.extend_from_slice(&self.seconds.to_le_bytes());
        out.extend_from_slice(&self.microseconds.to_le_bytes());
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Delta> {
        let bytes: [u8; Self::BYTES] =
            bytes.try_into().map_err(|_| corrupt(format!("a duration of {} bytes", bytes.len())))?;
        let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        Ok(Delta {
            days: i32::from_le_bytes(word(0)),
            seconds: u32::from_le_bytes(word(4)),
            microseconds: u32::from_le_bytes(word(8)),
        })
    }
}

impl<'a> Zone<'a> {
    fn write(self, out: &mut Vec<u8>) {
        match self {
            Zone::None => out.push(0),
            Zone::Utc => out.push(1),
            Zone::Fixed(offset, name) => {
                out.push(if name.is_some() { 3 } else { 2 });
                offset.write(out);
                out.extend_from_slice(name.unwrap_or_default());
            }
            Zone::Named(key) => {
                out.push(4);
                out.extend_from_slice(key);
            }
        }
    }

    fn parse(bytes: &'a [u8]) -> Result<Zone<'a>> {
        match bytes {
            [0] => Ok(Zone::None),
            [1] => Ok(Zone::Utc),
            [2, offset @ ..] => Ok(Zone::Fixed(Delta::parse(offset)?, None)),
            [3, rest @ ..] if rest.len() >= Delta::BYTES => {
                let (offset, name) = rest.split_at(Delta::BYTES);
                Ok(Zone::Fixed(Delta::parse(offset)?, Some(name)))
            }
            [4, key @ ..] => Ok(Zone::Named(key)),
            _ => Err(corrupt("a time zone that is none of the known forms")),
        }
    }
}

impl<'a> Time<'a> {
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.hour, self.minute, self.second, self.fold]);
        out.extend_from_slice(&self.microsecond.to_le_bytes());
        self.zone.write(out);
    }

    pub(super) fn parse(bytes: &'a [u8]) -> Result<Time<'a>> {
        let [hour, minute, second, fold, m0, m1, m2, m3, zone @ ..] = bytes else {
            return Err(corrupt(format!("a time of {} bytes", bytes.len())));
        };
        Ok(Time {
            hour: *hour,
            minute: *minute,
            second: *second,
            fold: *fold,
            microsecond: u32::from_le_bytes([*m0, *m1, *m2, *m3]),
            zone: Zone::parse(zone)?,
        })
    }
}
