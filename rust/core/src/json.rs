//! Raw JSON text (RFC 8259) to its canonical document, in one pass over the text and no tree of values.
//!
//! The pieces of the text go to the writer in the order in which they come. Objects whose members came in canonical
//! order, as most machine-made ones do, are finished by that. For the others the sorted order of their members is noted, and
//! one more pass at the end lays the document out: each byte moves once, however deep the objects nest.
//!
//! Stricter than RFC 8259, as the key specification says: duplicate names (after unescaping), lone surrogates, a byte
//! order mark, bytes that are not UTF-8 and numbers beyond binary64 are errors.

mod layout;

use crate::document::{Limit, Writer, scan, utf16_order};
use crate::error::{Error, Result};
use crate::limits::{MAX_DEPTH, MAX_INTEGER_DIGITS};
use crate::stack::{Floor, SmallStack};
use layout::{Layout, Unsorted};
use std::ops::Range;

/// Appends the canonical document of raw JSON `text` to `out`.
///
/// # Errors
///
/// [`Error::InvalidJson`] with the byte offset and the fault; [`Error::UnsupportedInput`] where the text nests deeper than
/// this thread's stack allows. `out` then ends where it ended before.
pub fn write(text: &[u8], out: &mut Writer) -> Result<()> {
    let start = out.len();
    let written = parse(text, out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn parse(text: &[u8], out: &mut Writer) -> Result<()> {
    if text.starts_with(b"\xef\xbb\xbf") {
        return Err(fault(0, "begins with a byte order mark; remove it"));
    }
    let valid = std::str::from_utf8(text).map_err(|error| fault(error.valid_up_to(), "not UTF-8"))?;
    let base = out.len();
    let mut parser = Parser {
        text: valid,
        at: 0,
        depth: 0,
        out,
        names: Vec::new(),
        open: Vec::with_capacity(16),
        sorted: Vec::with_capacity(16),
        unsorted: Vec::with_capacity(16),
        floor: Floor::of_this_thread(),
        fault: None,
    };
    parser.space();
    if parser.value().is_err() {
        return Err(parser.fault.unwrap_or_else(|| fault(parser.at, "not acceptable")));
    }
    parser.space();
    if parser.at < text.len() {
        return Err(fault(parser.at, "something follows the value"));
    }
    if !parser.unsorted.is_empty() {
        let (sorted, mut unsorted) = (parser.sorted, parser.unsorted);
        unsorted.sort_unstable_by_key(|object| object.span.start);
        let rough = out.as_bytes()[base..].to_vec();
        out.truncate(base);
        let layout =
            Layout { rough: &rough, base, sorted: &sorted, unsorted: &unsorted, floor: Floor::of_this_thread() };
        layout.copy(base..base + rough.len(), out).map_err(|limit| beyond(0, limit))?;
    }
    out.finish().map_err(|limit| beyond(0, limit))
}

#[cold]
fn beyond(offset: usize, limit: Limit) -> Error {
    match limit {
        Limit::SmallStack(_) => Error::UnsupportedInput { path: "input".to_owned(), reason: limit.to_string() },
        limit => fault(offset, limit.to_string()),
    }
}

#[cold]
fn fault(offset: usize, reason: impl Into<String>) -> Error {
    Error::InvalidJson { offset, reason: reason.into() }
}

/// A member of an object that is still open, or of one that is not in order.
struct Member {
    /// Its name as the caller means it: a place in the text where it is written without escapes, else in `names`.
    name: Range<usize>,
    unescaped: bool,
    /// Where its name begins in the text, for the error of a duplicate.
    offset: usize,
    /// Where its name, colon and value lie in the rough document.
    span: Range<usize>,
}

/// The text is not acceptable; [`Parser::fault`] says why. Nothing in it, so that results stay in a register.
struct Refused;

type Parsed<T = ()> = std::result::Result<T, Refused>;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    out: &'a mut Writer,
    names: Vec<u8>,
    open: Vec<Member>,
    sorted: Vec<Range<usize>>,
    unsorted: Vec<Unsorted>,
    floor: Floor,
    fault: Option<Error>,
}

impl Parser<'_> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[cold]
    #[inline(never)]
    fn refuse(&mut self, offset: usize, reason: impl Into<String>) -> Refused {
        self.fault = Some(fault(offset, reason));
        Refused
    }

    #[cold]
    #[inline(never)]
    fn limit(&mut self, limit: Limit) -> Refused {
        self.fault = Some(beyond(self.at, limit));
        Refused
    }

    #[inline]
    fn put(&mut self, byte: u8) -> Parsed {
        self.out.byte(byte).map_err(|limit| self.limit(limit))
    }

    fn value(&mut self) -> Parsed {
        match self.peek() {
            Some(b'"') => {
                self.put(b'"')?;
                self.string(None)?;
                self.put(b'"')
            }
            Some(b'{') => self.object(),
            Some(b'[') => self.array(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(b'N' | b'I') => Err(self.refuse(self.at, "NaN and Infinity are not JSON")),
            Some(_) => Err(self.refuse(self.at, "expected a value")),
            None => Err(self.refuse(self.at, "the text ends where a value was expected")),
        }
    }

    fn literal(&mut self, word: &str) -> Parsed {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(self.refuse(self.at, format!("expected {word}")));
        }
        self.at += word.len();
        self.out.raw(word.as_bytes()).map_err(|limit| self.limit(limit))
    }

    fn enter(&mut self) -> Parsed {
        self.at += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.refuse(self.at - 1, Limit::TooDeep.to_string()));
        }
        if self.floor.is_near() {
            return Err(self.limit(Limit::SmallStack(SmallStack::of_this_thread())));
        }
        self.space();
        Ok(())
    }

    /// After a member or item: `true` if another one follows.
    #[inline]
    fn another(&mut self, close: u8) -> Parsed<bool> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.space();
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(_) => Err(self.refuse(self.at, format!("expected ',' or '{}'", close as char))),
            None => Err(self.refuse(self.at, format!("the text ends where ',' or '{}' was expected", close as char))),
        }
    }

    fn array(&mut self) -> Parsed {
        self.enter()?;
        self.put(b'[')?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                self.value()?;
                if !self.another(b']')? {
                    break;
                }
                self.put(b',')?;
            }
        }
        self.depth -= 1;
        self.put(b']')
    }

    fn object(&mut self) -> Parsed {
        let start = self.out.len();
        self.enter()?;
        self.put(b'{')?;
        let (first, names) = (self.open.len(), self.names.len());
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                self.member()?;
                if !self.another(b'}')? {
                    break;
                }
                self.put(b',')?;
            }
        }
        self.depth -= 1;
        self.put(b'}')?;
        self.close(start, first)?;
        self.open.truncate(first);
        self.names.truncate(names);
        Ok(())
    }

    fn member(&mut self) -> Parsed {
        if self.peek() != Some(b'"') {
            return Err(self.refuse(self.at, "expected a member name in double quotes"));
        }
        let (offset, start) = (self.at, self.out.len());
        self.put(b'"')?;
        if self.begins_with_dollar() {
            self.put(b'$')?;
        }
        let mut decoded = std::mem::take(&mut self.names);
        let before = decoded.len();
        let plain = self.string(Some(&mut decoded));
        self.names = decoded;
        let (name, unescaped) = match plain? {
            Some(span) => (span, false),
            None => (before..self.names.len(), true),
        };
        self.out.raw(b"\":").map_err(|limit| self.limit(limit))?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.refuse(self.at, "expected ':' after a member name"));
        }
        self.at += 1;
        self.space();
        self.value()?;
        self.open.push(Member { name, unescaped, offset, span: start..self.out.len() });
        Ok(())
    }

    /// Whether the name that begins here starts with `$`, which may stand there as `\u0024`.
    fn begins_with_dollar(&self) -> bool {
        let rest = &self.text.as_bytes()[self.at + 1..];
        rest.starts_with(b"$") || rest.starts_with(b"\\u0024")
    }

    /// Notes the canonical order of the members from `first` on, if they are not in it; refuses duplicates.
    fn close(&mut self, start: usize, first: usize) -> Parsed {
        let (text, names) = (self.text.as_bytes(), self.names.as_slice());
        let members = &mut self.open[first..];
        let name =
            |member: &Member| if member.unescaped { &names[member.name.clone()] } else { &text[member.name.clone()] };
        if members.windows(2).all(|pair| utf16_order(name(&pair[0]), name(&pair[1])).is_lt()) {
            return Ok(());
        }
        members.sort_unstable_by(|a, b| utf16_order(name(a), name(b)).then(a.offset.cmp(&b.offset)));
        if let Some(pair) = members.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            let shown = String::from_utf8_lossy(name(&pair[1])).chars().take(60).collect::<String>();
            let offset = pair[1].offset;
            return Err(self.refuse(offset, format!("duplicate member name {shown:?}")));
        }
        let from = self.sorted.len();
        self.sorted.extend(self.open[first..].iter().map(|member| member.span.clone()));
        self.unsorted.push(Unsorted { span: start..self.out.len(), members: from..self.sorted.len() });
        Ok(())
    }

    /// The inside of a string, from its opening to after its closing quote. Gives the place of its text where that has
    /// no escape; else the unescaped text is appended to `decoded`, where that is asked for.
    fn string(&mut self, mut decoded: Option<&mut Vec<u8>>) -> Parsed<Option<Range<usize>>> {
        let opening = self.at;
        self.at += 1;
        let first = self.at;
        let mut plain = true;
        loop {
            let clean = scan::clean_prefix(&self.text.as_bytes()[self.at..]);
            let piece = self.at..self.at + clean;
            self.out.raw(&self.text.as_bytes()[piece.clone()]).map_err(|limit| self.limit(limit))?;
            self.at = piece.end;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    if plain {
                        return Ok(Some(piece));
                    }
                    if let Some(decoded) = decoded {
                        decoded.extend_from_slice(&self.text.as_bytes()[piece]);
                    }
                    return Ok(None);
                }
                Some(b'\\') => {
                    plain = false;
                    let character = self.escape()?;
                    if let Some(decoded) = decoded.as_deref_mut() {
                        decoded.extend_from_slice(&self.text.as_bytes()[piece]);
                        decoded.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    self.character(character)?;
                }
                Some(_) => return Err(self.refuse(self.at, "a control character in a string must be escaped")),
                None => return Err(self.refuse(opening.min(first), "a string that does not end")),
            }
        }
    }

    fn character(&mut self, character: char) -> Parsed {
        let mut utf8 = [0; 4];
        let bytes = character.encode_utf8(&mut utf8).as_bytes();
        let written = if scan::needs_escape(bytes[0]) { self.out.escape(bytes[0]) } else { self.out.raw(bytes) };
        written.map_err(|limit| self.limit(limit))
    }

    /// The character of an escape sequence, which begins here.
    fn escape(&mut self) -> Parsed<char> {
        let start = self.at;
        let kind = self.text.as_bytes().get(start + 1).copied();
        self.at += 2;
        Ok(match kind {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.hex(start)?;
                let low = match unit {
                    0xd800..0xdc00 if self.text.as_bytes()[self.at..].starts_with(b"\\u") => {
                        self.at += 2;
                        self.hex(start)?
                    }
                    _ => 0,
                };
                let code = match (unit, low) {
                    (0xd800..0xdc00, 0xdc00..0xe000) => 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00),
                    _ => unit, // a surrogate without its pair is no character
                };
                let Some(character) = char::from_u32(code) else {
                    return Err(self.refuse(start, "a lone surrogate is no character"));
                };
                character
            }
            _ => return Err(self.refuse(start, "unknown escape sequence")),
        })
    }

    /// Four hexadecimal digits.
    fn hex(&mut self, start: usize) -> Parsed<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let hexadecimal = digits.len() == 4 && digits.iter().all(u8::is_ascii_hexdigit);
        if !hexadecimal {
            return Err(self.refuse(start, "\\u needs four hexadecimal digits"));
        }
        let unit =
            digits.iter().filter_map(|&digit| (digit as char).to_digit(16)).fold(0, |unit, digit| unit << 4 | digit);
        self.at += 4;
        Ok(unit)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Parsed {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let whole = self.at;
        match self.digits() {
            0 => return Err(self.refuse(self.at, "expected a digit")),
            1 => {}
            _ if self.text.as_bytes()[whole] == b'0' => {
                return Err(self.refuse(whole, "a number must not begin with a zero"));
            }
            _ => {}
        }
        let integer = whole..self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.refuse(self.at, "expected a digit after the decimal point"));
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.refuse(self.at, "expected a digit in the exponent"));
            }
        }
        if integer.end == self.at { self.integer(negative, integer) } else { self.float(start) }
    }

    fn integer(&mut self, negative: bool, digits: Range<usize>) -> Parsed {
        let text = &self.text[digits.clone()];
        let written = match text.parse::<i64>() {
            Ok(value) => self.out.integer(if negative { -value } else { value }),
            Err(_) => self.out.integer_text(negative, text),
        };
        written.map_err(|limit| match limit {
            Limit::TooManyDigits => {
                self.refuse(digits.start, format!("an integer of more than {MAX_INTEGER_DIGITS} digits"))
            }
            limit => self.limit(limit),
        })
    }

    fn float(&mut self, start: usize) -> Parsed {
        // The grammar was checked, so what does not parse cannot occur; it is refused all the same.
        let value: f64 = self.text[start..self.at].parse().unwrap_or(f64::INFINITY);
        if value.is_infinite() {
            return Err(self.refuse(start, "a number beyond the range of a binary64"));
        }
        self.out.float(value).map_err(|limit| self.limit(limit))
    }
}

#[cfg(test)]
mod tests;
