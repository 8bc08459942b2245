//! Stored records to the answer's text.

use super::record::{Certainty, Counts, Form, Record};
use crate::number as decimal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::mem::MaybeUninit;

/// What is known of an answer's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Of some item the model server gave no count, so the answer gives none.
    Unknown,
    /// The sum of the model server's own counts, or of counts that it has confirmed.
    Exact(u64),
    /// A sum in which counts of batches were apportioned.
    Apportioned(u64),
}

/// The answer's text to items of these records, in their order, appended to `out`; `None` if one of them is no record.
pub fn render<'a>(records: impl Iterator<Item = &'a [u8]>, base64: bool, out: &mut Vec<u8>) -> Option<Usage> {
    let (mut tokens, mut least, mut usage_text, mut counts): (u64, _, &[u8], _) =
        (0, Certainty::Exact, &[], Counts::Both);
    for (index, bytes) in records.enumerate() {
        let record = Record::read(bytes)?;
        if index == 0 {
            out.push(b'{');
            members(record.texts[0], out);
            out.extend_from_slice(b"\"data\":[{");
            (usage_text, counts) = (record.texts[2], record.counted.counts);
        } else {
            out.extend_from_slice(b",{");
        }
        members(record.texts[1], out);
        out.extend_from_slice(b"\"index\":");
        integer(index as u64, out);
        out.extend_from_slice(b",\"embedding\":");
        if base64 {
            encoded(&record, out);
        } else {
            written(&record, out);
        }
        out.push(b'}');
        tokens += u64::from(record.counted.tokens);
        least = match (least, record.counted.certainty) {
            (Certainty::None, _) | (_, Certainty::None) => Certainty::None,
            (Certainty::Exact, Certainty::Exact) => Certainty::Exact,
            _ => Certainty::Apportioned,
        };
    }
    out.push(b']');
    let usage = match least {
        Certainty::None => Usage::Unknown,
        Certainty::Exact => Usage::Exact(tokens),
        Certainty::Apportioned => Usage::Apportioned(tokens),
    };
    if usage != Usage::Unknown {
        out.extend_from_slice(b",\"usage\":{");
        members(usage_text, out);
        let names: &[&[u8]] = match counts {
            Counts::Both => &[b"\"prompt_tokens\":", b",\"total_tokens\":"],
            Counts::Prompt => &[b"\"prompt_tokens\":"],
            Counts::Total => &[b"\"total_tokens\":"],
        };
        for name in names {
            out.extend_from_slice(name);
            integer(tokens, out);
        }
        out.push(b'}');
    }
    out.push(b'}');
    Some(usage)
}

/// Members, and the comma before the next one.
fn members(text: &[u8], out: &mut Vec<u8>) {
    if !text.is_empty() {
        out.extend_from_slice(text);
        out.push(b',');
    }
}

/// A count: of items or tokens, far below 2^53.
fn integer(value: u64, out: &mut Vec<u8>) {
    let mut room = [MaybeUninit::uninit(); decimal::ROOM];
    let length = decimal::write_i64(value.min(1 << 53) as i64, &mut room);
    append(&room, length, out);
}

#[inline]
fn append(room: &[MaybeUninit<u8>; decimal::ROOM], length: usize, out: &mut Vec<u8>) {
    // SAFETY: `decimal` wrote the first `length` bytes.
    out.extend_from_slice(unsafe { room[..length].assume_init_ref() });
}

fn encoded(record: &Record<'_>, out: &mut Vec<u8>) {
    let narrowed: Vec<u8>;
    let singles = match record.singles() {
        Some(singles) => singles,
        None => {
            narrowed = record.numbers().flat_map(|number| (number as f32).to_le_bytes()).collect();
            &narrowed
        }
    };
    out.push(b'"');
    let start = out.len();
    out.resize(start + singles.len().div_ceil(3) * 4, 0);
    let length = STANDARD.encode_slice(singles, &mut out[start..]).unwrap_or(0); // the room is what it needs
    out.truncate(start + length);
    out.push(b'"');
}

fn written(record: &Record<'_>, out: &mut Vec<u8>) {
    out.reserve(record.len() * (decimal::MAX_NUMBER_BYTES + 3) + 2);
    out.push(b'[');
    for (index, value) in record.numbers().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        number(value, record.form, out);
    }
    out.push(b']');
}

/// Appends a number as it was written.
#[inline]
pub fn number(value: f64, form: Form, out: &mut Vec<u8>) {
    match form {
        Form::ShortSingle => out.extend_from_slice(zmij::Buffer::new().format_finite(value as f32).as_bytes()),
        Form::Integer => double(value, out),
        Form::Single | Form::Double => float(value, out),
    }
}

/// A float stays one for who tells 1 from 1.0, and a zero keeps its sign.
#[inline]
fn float(value: f64, out: &mut Vec<u8>) {
    let start = out.len();
    double(value, out);
    if value == value.trunc() && !out[start..].iter().any(|byte| matches!(byte, b'.' | b'e')) {
        if value == 0.0 && value.is_sign_negative() {
            out.insert(start, b'-');
        }
        out.extend_from_slice(b".0");
    }
}

#[inline]
fn double(value: f64, out: &mut Vec<u8>) {
    let mut room = [MaybeUninit::uninit(); decimal::ROOM];
    let length = decimal::write_f64(value, &mut room);
    append(&room, length, out);
}
