//! Places of members and elements in JSON text that [`crate::json::write`] has accepted.
//!
//! No grammar is checked here again: text that is not what was accepted gives wrong places or none, never a panic.

use crate::document::Writer;
use crate::document::scan::clean_prefix;
use crate::json;
use std::ops::Range;

/// A member of an object: its name with the quotes, and its value.
pub struct Member {
    /// Where its name stands, quotes included.
    pub name: Range<usize>,
    /// Where its value stands.
    pub value: Range<usize>,
}

impl Member {
    /// Whether the name is `wanted`, however it is escaped.
    pub fn is(&self, text: &[u8], wanted: &str) -> bool {
        let name = &text[self.name.clone()];
        let inside = &name[1..name.len().max(2) - 1];
        if !inside.contains(&b'\\') {
            return inside == wanted.as_bytes();
        }
        let mut plain = Writer::new();
        json::write(name, &mut plain).is_ok()
            && plain.as_bytes().get(1..plain.len() - 1).is_some_and(|inside| inside == wanted.as_bytes())
    }
}

/// The value that the text consists of, without the space around it.
pub fn whole(text: &[u8]) -> Option<Range<usize>> {
    let start = space(text, 0);
    Some(start..value(text, start)?)
}

/// The members of the object that `span` is; `None` if it is no object.
pub fn members(text: &[u8], span: Range<usize>) -> Option<Vec<Member>> {
    let mut found = Vec::with_capacity(8);
    each(text, span, b'{', |at| {
        let name = at..string(text, at)?;
        let colon = space(text, name.end);
        let start = space(text, colon + 1);
        let end = value(text, start)?;
        found.push(Member { name, value: start..end });
        Some(end)
    })?;
    Some(found)
}

/// Members but for the named ones, as they stand there: `"name":value`, with commas between.
pub fn joined(text: &[u8], members: &[Member], but: &[&str]) -> Vec<u8> {
    joined_if(text, members, |member| !but.iter().any(|name| member.is(text, name)))
}

/// Those members that are `wanted`, likewise.
pub fn joined_if(text: &[u8], members: &[Member], wanted: impl Fn(&Member) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members.iter().filter(|member| wanted(member)) {
        if !out.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(&text[member.name.clone()]);
        out.push(b':');
        out.extend_from_slice(&text[member.value.clone()]);
    }
    out
}

/// How deep the brackets of any text nest, those in strings aside.
pub fn depth(text: &[u8]) -> usize {
    let (mut at, mut depth, mut deepest) = (0, 0usize, 0);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => match string(text, at) {
                Some(end) => {
                    at = end;
                    continue;
                }
                None => break,
            },
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    deepest
}

/// The elements of the array that `span` is; `None` if it is no array.
pub fn elements(text: &[u8], span: Range<usize>) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    each(text, span, b'[', |at| {
        let end = value(text, at)?;
        found.push(at..end);
        Some(end)
    })?;
    Some(found)
}

/// Calls `take` where each element begins; it says where the element ends.
#[inline]
fn each(text: &[u8], span: Range<usize>, open: u8, mut take: impl FnMut(usize) -> Option<usize>) -> Option<()> {
    if text.get(span.start) != Some(&open) || span.len() < 2 {
        return None;
    }
    let mut at = space(text, span.start + 1);
    let last = span.end - 1;
    while at < last {
        at = space(text, take(at)?);
        if text.get(at) == Some(&b',') {
            at = space(text, at + 1);
        }
    }
    Some(())
}

#[inline]
fn space(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

/// After the value that begins at `at`.
#[inline]
fn value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at)? {
        b'"' => string(text, at),
        b'{' | b'[' => container(text, at),
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t');
            Some(text[at..].iter().position(ends).map_or(text.len(), |length| at + length)).filter(|&end| end > at)
        }
    }
}

/// After the string whose opening quote stands at `at`.
#[inline]
fn string(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += clean_prefix(text.get(at..)?);
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// After the object or array that begins at `at`: brackets outside strings are counted.
fn container(text: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0usize);
    loop {
        match text.get(at)? {
            b'"' => {
                at = string(text, at)?;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_found_however_they_are_escaped() {
        let text = br#" { "a" : [1, "]"] , "inp\u0075t":{"x":"}\""}, "" : null} "#;
        let found = members(text, whole(text).unwrap()).unwrap();
        let values: Vec<&[u8]> = found.iter().map(|member| &text[member.value.clone()]).collect();
        assert_eq!(values, [&b"[1, \"]\"]"[..], br#"{"x":"}\""}"#, b"null"]);
        assert!(found[1].is(text, "input") && !found[1].is(text, "inp") && found[2].is(text, ""));
    }

    #[test]
    fn elements_keep_their_text() {
        let text = b"[ 1.50 ,-2e3,[3 , 4], \"a,b\" ,{}]";
        let found = elements(text, whole(text).unwrap()).unwrap();
        let texts: Vec<&[u8]> = found.iter().map(|span| &text[span.clone()]).collect();
        assert_eq!(texts, [&b"1.50"[..], b"-2e3", b"[3 , 4]", b"\"a,b\"", b"{}"]);
        assert!(elements(b"[]", 0..2).unwrap().is_empty() && members(b"[]", 0..2).is_none());
    }

    #[test]
    fn brackets_in_strings_are_no_nesting() {
        for (text, wanted) in
            [("", 0), ("[]", 1), (r#"{"a[[":[{"b":"]\"[["}]}"#, 3), ("[[[", 3), ("]]][", 1), ("\"[[[", 0)]
        {
            assert_eq!(depth(text.as_bytes()), wanted, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_that_nobody_checked_never_panics(text in "[\\[\\]{}\",: a\\\\1u]{0,40}") {
            let text = text.as_bytes();
            if let Some(span) = whole(text) {
                for member in members(text, span.clone()).unwrap_or_default() {
                    member.is(text, "a");
                }
                elements(text, span);
            }
        }
    }
}
