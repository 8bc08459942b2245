//! A tensor's elements between JSON and native bytes (little-endian, row-major, without padding).

use super::super::embeddings::{Form, write_number};
use super::super::scan;
use crate::document::Writer;
use crate::json;
use std::ops::Range;

/// A datatype of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the protocol's names
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

const ALL: [(Datatype, &str, usize); 14] = [
    (Datatype::Bool, "BOOL", 1),
    (Datatype::Uint8, "UINT8", 1),
    (Datatype::Uint16, "UINT16", 2),
    (Datatype::Uint32, "UINT32", 4),
    (Datatype::Uint64, "UINT64", 8),
    (Datatype::Int8, "INT8", 1),
    (Datatype::Int16, "INT16", 2),
    (Datatype::Int32, "INT32", 4),
    (Datatype::Int64, "INT64", 8),
    (Datatype::Fp16, "FP16", 2),
    (Datatype::Bf16, "BF16", 2),
    (Datatype::Fp32, "FP32", 4),
    (Datatype::Fp64, "FP64", 8),
    (Datatype::Bytes, "BYTES", 0),
];

impl Datatype {
    /// By the protocol's name.
    pub fn named(name: &[u8]) -> Option<Datatype> {
        ALL.iter().find(|(_, known, _)| known.as_bytes() == name).map(|(datatype, ..)| *datatype)
    }

    /// By its number, as stored.
    pub fn numbered(number: u8) -> Option<Datatype> {
        ALL.get(usize::from(number)).map(|(datatype, ..)| *datatype)
    }

    /// Bytes of an element; 0: each has a length of its own.
    pub fn size(self) -> usize {
        ALL[self as usize].2
    }

    /// Whether native bytes are what a tensor of so many elements has.
    pub fn fits(self, bytes: &[u8], elements: usize) -> bool {
        match self {
            Datatype::Bytes => texts(bytes).is_some_and(|texts| texts.len() == elements),
            // Any byte but 0 and 1 is no value that JSON could say.
            Datatype::Bool => bytes.len() == elements && bytes.iter().all(|&byte| byte < 2),
            _ => Some(bytes.len()) == elements.checked_mul(self.size()),
        }
    }
}

/// How an answer's numbers were written, so that they are written so again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Of floats.
    pub form: Form,
    /// In nested lists, as the shape has it.
    pub nested: bool,
    /// Booleans as 0 and 1.
    pub digits: bool,
}

/// A tensor's native bytes, and how they were written.
pub struct Parsed {
    pub bytes: Vec<u8>,
    pub written: Written,
    /// Numbers of FP32 that no binary32 keeps as they were written.
    pub wide: Option<Vec<f64>>,
}

/// Reads JSON data of a datatype; `None` if it is none that such a tensor can hold. FP16 and BF16 have no JSON form.
pub fn parse(text: &[u8], data: Range<usize>, datatype: Datatype) -> Option<Parsed> {
    let mut parsed =
        Parsed { bytes: Vec::new(), written: Written { form: Form::Single, nested: false, digits: false }, wide: None };
    let mut numbers = Vec::new();
    let mut whole = true;
    // The text nests no deeper than was checked when it was read; elements are taken in row-major order.
    let mut lists = vec![scan::elements(text, data)?.into_iter()];
    while let Some(list) = lists.last_mut() {
        let Some(element) = list.next() else {
            lists.pop();
            continue;
        };
        if text[element.start] == b'[' {
            parsed.written.nested = true;
            lists.push(scan::elements(text, element)?.into_iter());
            continue;
        }
        let word = std::str::from_utf8(&text[element]).ok()?;
        match datatype {
            Datatype::Bool => {
                parsed.written.digits = matches!(word, "0" | "1");
                parsed.bytes.push(match word {
                    "true" | "1" => 1,
                    "false" | "0" => 0,
                    _ => return None,
                });
            }
            Datatype::Fp32 | Datatype::Fp64 => {
                let number: f64 =
                    word.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(word)?.parse().ok()?;
                whole &= !word.contains(['.', 'e', 'E']) && word != "-0" && number.abs() < (1u64 << 53) as f64;
                let fits = if datatype == Datatype::Fp32 { (number as f32).is_finite() } else { number.is_finite() };
                numbers.push(fits.then_some(number)?);
            }
            Datatype::Bytes => {
                let text = unescaped(word.as_bytes())?;
                parsed.bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
                parsed.bytes.extend_from_slice(&text);
            }
            _ => integer(word, datatype, &mut parsed.bytes)?,
        }
    }
    if matches!(datatype, Datatype::Fp32 | Datatype::Fp64) {
        floats(numbers, whole, datatype, &mut parsed);
    }
    Some(parsed)
}

fn floats(numbers: Vec<f64>, whole: bool, datatype: Datatype, parsed: &mut Parsed) {
    let form = Form::of(&numbers, whole);
    parsed.written.form = form;
    if datatype == Datatype::Fp64 {
        parsed.bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        return;
    }
    parsed.bytes = numbers.iter().flat_map(|number| (*number as f32).to_le_bytes()).collect();
    let kept = numbers.iter().all(|&number| f64::from(number as f32) == number);
    if form == Form::Double || (form == Form::Integer && !kept) {
        parsed.wide = Some(numbers);
    }
}

fn integer(word: &str, datatype: Datatype, out: &mut Vec<u8>) -> Option<()> {
    macro_rules! put {
        ($kind:ty) => {
            out.extend_from_slice(&word.parse::<$kind>().ok()?.to_le_bytes())
        };
    }
    match datatype {
        Datatype::Uint8 => put!(u8),
        Datatype::Uint16 => put!(u16),
        Datatype::Uint32 => put!(u32),
        Datatype::Uint64 => put!(u64),
        Datatype::Int8 => put!(i8),
        Datatype::Int16 => put!(i16),
        Datatype::Int32 => put!(i32),
        Datatype::Int64 => put!(i64),
        _ => return None,
    }
    Some(())
}

/// The text of a JSON string that was accepted.
pub fn unescaped(string: &[u8]) -> Option<Vec<u8>> {
    let inside = string.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !inside.contains(&b'\\') {
        return Some(inside.to_vec());
    }
    // The canonical text knows few escapes.
    let mut canonical = Writer::new();
    json::write(string, &mut canonical).ok()?;
    let text = canonical.as_bytes();
    let mut out = Vec::with_capacity(text.len());
    let mut rest = &text[1..text.len() - 1];
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&kind, after) = rest.split_first()?;
        rest = after;
        out.push(match kind {
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'f' => 12,
            b'r' => b'\r',
            b'u' => {
                let (digits, after) = rest.split_at_checked(4)?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(out)
}

/// The elements of native BYTES; `None` if a length does not fit.
pub fn texts(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        found.push(text);
        bytes = rest;
    }
    Some(found)
}

/// Appends a tensor as JSON data; `None` if it has no such form: FP16, BF16, bytes that are no UTF-8, infinities, NaN.
pub fn write(
    bytes: &[u8],
    wide: Option<&[u8]>,
    datatype: Datatype,
    written: Written,
    shape: &[usize],
    out: &mut Vec<u8>,
) -> Option<()> {
    let elements = elements_of(bytes, wide, datatype, written)?;
    let flat = [elements.len()];
    let dims = if written.nested && !shape.is_empty() { shape } else { &flat };
    let mut elements = elements.into_iter();
    nest(dims, &mut elements, out)
}

fn nest(dims: &[usize], elements: &mut impl Iterator<Item = Vec<u8>>, out: &mut Vec<u8>) -> Option<()> {
    out.push(b'[');
    for index in 0..dims[0] {
        if index > 0 {
            out.push(b',');
        }
        match dims.get(1..).filter(|rest| !rest.is_empty()) {
            Some(rest) => nest(rest, elements, out)?,
            None => out.extend_from_slice(&elements.next()?),
        }
    }
    out.push(b']');
    Some(())
}

/// The text of each element.
fn elements_of(bytes: &[u8], wide: Option<&[u8]>, datatype: Datatype, written: Written) -> Option<Vec<Vec<u8>>> {
    let text = |number: f64, form: Form| {
        let mut out = Vec::new();
        write_number(number, form, &mut out);
        number.is_finite().then_some(out)
    };
    macro_rules! each {
        ($kind:ty) => {{
            let (elements, _) = bytes.as_chunks::<{ size_of::<$kind>() }>();
            Some(elements.iter().map(|element| <$kind>::from_le_bytes(*element).to_string().into_bytes()).collect())
        }};
    }
    match datatype {
        Datatype::Bool => {
            let words: [&[u8]; 2] = if written.digits { [b"0", b"1"] } else { [b"false", b"true"] };
            Some(bytes.iter().map(|&byte| words[usize::from(byte & 1)].to_vec()).collect())
        }
        Datatype::Uint8 => each!(u8),
        Datatype::Uint16 => each!(u16),
        Datatype::Uint32 => each!(u32),
        Datatype::Uint64 => each!(u64),
        Datatype::Int8 => each!(i8),
        Datatype::Int16 => each!(i16),
        Datatype::Int32 => each!(i32),
        Datatype::Int64 => each!(i64),
        Datatype::Fp32 => match wide {
            Some(wide) => {
                let (elements, _) = wide.as_chunks::<8>();
                elements.iter().map(|element| text(f64::from_le_bytes(*element), written.form)).collect()
            }
            None => {
                let (elements, _) = bytes.as_chunks::<4>();
                elements.iter().map(|element| text(f64::from(f32::from_le_bytes(*element)), written.form)).collect()
            }
        },
        Datatype::Fp64 => {
            let (elements, _) = bytes.as_chunks::<8>();
            // The shortest text of a binary32 is that of no other number's; of this one it is the binary64's, too.
            let form = if written.form == Form::Integer { Form::Integer } else { Form::Double };
            elements.iter().map(|element| text(f64::from_le_bytes(*element), form)).collect()
        }
        Datatype::Bytes => texts(bytes)?.into_iter().map(quoted).collect(),
        Datatype::Fp16 | Datatype::Bf16 => None,
    }
}

/// A text as a JSON string; `None` if it is no UTF-8.
pub fn quoted(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Writer::new();
    out.string(std::str::from_utf8(text).ok()?).ok()?;
    Some(out.into_bytes())
}
