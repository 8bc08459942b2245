//! A request's text: which items it asks for, and what their keys are made from.
//!
//! The document of an item is the request without `model` (which is of the scope), `encoding_format` and `user` (which
//! change no number), and with the item in place of all items. So `"a"` and `["a"]`, `[1,2]` and `[[1,2]]` have one
//! key, and every member that nobody here knows enters it. Tokens are written as integers: `1.0` is 1 to some servers
//! and an error to others, so a request that writes one so is none for items.

use super::super::scan::{self, Member};
use crate::document::Writer;
use crate::error::Result;
use crate::json;
use crate::key::Scope;
use crate::limits::KEY_BYTES;
use std::ops::Range;

/// A request for embeddings.
pub struct Query {
    /// The model's name as the request gives it.
    pub model: String,
    /// The answer is wanted in base64: binary32, little-endian.
    pub base64: bool,
    /// The canonical document, where the items lie.
    canonical: Vec<u8>,
    items: Vec<Range<usize>>,
    /// What stands before and behind an item in its document.
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Query {
    /// Reads a request. `None`: it is JSON, but no request whose items have answers of their own, or has none.
    ///
    /// # Errors
    /// [`Error::InvalidJson`](crate::error::Error::InvalidJson): the text is none.
    pub fn parse(body: &[u8]) -> Result<Option<Query>> {
        let mut canonical = Writer::new();
        json::write(body, &mut canonical)?;
        Ok(Query::of_canonical(canonical.into_bytes()).filter(|query| query.is_written_as_read(body)))
    }

    /// Whether the body has the items that its canonical form has: texts stay texts, numbers may become integers.
    fn is_written_as_read(&self, body: &[u8]) -> bool {
        self.item(0)[0] == b'"' || written_items(body).is_some_and(|items| items.len() == self.len())
    }

    fn of_canonical(canonical: Vec<u8>) -> Option<Query> {
        let text = canonical.as_slice();
        let (mut model, mut base64, mut items) = (None, false, None);
        let (mut before, mut after) = (vec![b'{'], Vec::new());
        for member in scan::members(text, 0..text.len())? {
            let value = &text[member.value.clone()];
            match &text[member.name.clone()] {
                b"\"input\"" => {
                    items = Some(items_of(text, member.value.clone())?);
                    before.extend_from_slice(b"\"input\":");
                    continue;
                }
                b"\"model\"" => {
                    model = Some(plain_text(value)?);
                    continue;
                }
                b"\"encoding_format\"" => {
                    base64 = match value {
                        b"\"base64\"" => true,
                        b"\"float\"" | b"null" => false,
                        _ => return None,
                    };
                    continue;
                }
                // Anything but text is for the model server to refuse.
                b"\"user\"" if value[0] == b'"' || value == b"null" => continue,
                _ => {}
            }
            let member = &text[member.name.start..member.value.end];
            if items.is_none() {
                before.extend_from_slice(member);
                before.push(b',');
            } else {
                after.push(b',');
                after.extend_from_slice(member);
            }
        }
        after.push(b'}');
        let (model, items) = (model?, items?);
        Some(Query { model, base64, items, before, after, canonical })
    }

    /// How many items are asked for, each counted as often as it stands there.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing is asked for; [`Query::parse`] gives no such request.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The canonical text of an item.
    pub fn item(&self, place: usize) -> &[u8] {
        &self.canonical[self.items[place].clone()]
    }

    /// The document of an item, which its key is the hash of.
    pub fn document(&self, place: usize, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.before);
        out.extend_from_slice(self.item(place));
        out.extend_from_slice(&self.after);
    }

    /// The keys of all items.
    pub fn keys(&self, scope: &Scope) -> Vec<[u8; KEY_BYTES]> {
        let mut document = Vec::new();
        let key = |place| {
            self.document(place, &mut document);
            scope.key(&document)
        };
        (0..self.len()).map(key).collect()
    }

    /// The request for the items at these places alone, from the text that [`Query::parse`] was given: everything else
    /// stays as the caller wrote it, but that numbers are asked for as numbers: base64 would lose those of binary64.
    /// `None`: there is no such place.
    pub fn ask(&self, body: &[u8], places: &[usize]) -> Option<Vec<u8>> {
        let members = scan::members(body, scan::whole(body)?)?;
        let mut asked = Vec::with_capacity(body.len());
        asked.push(b'{');
        for member in members {
            if asked.len() > 1 {
                asked.push(b',');
            }
            asked.extend_from_slice(&body[member.name.clone()]);
            asked.push(b':');
            if member.is(body, "input") {
                write_items(body, member, places, &mut asked)?;
            } else if self.base64 && member.is(body, "encoding_format") {
                asked.extend_from_slice(b"\"float\"");
            } else {
                asked.extend_from_slice(&body[member.value]);
            }
        }
        asked.push(b'}');
        Some(asked)
    }
}

/// The items of a request as they are written.
fn written_items(body: &[u8]) -> Option<Vec<Range<usize>>> {
    let members = scan::members(body, scan::whole(body)?)?;
    let input = members.into_iter().find(|member| member.is(body, "input"))?;
    items_of(body, input.value)
}

fn write_items(body: &[u8], input: Member, places: &[usize], out: &mut Vec<u8>) -> Option<()> {
    let raw = items_of(body, input.value.clone())?;
    if raw.len() == 1 && raw[0] == input.value {
        out.extend_from_slice(&body[input.value]);
        return Some(());
    }
    out.push(b'[');
    for (order, &place) in places.iter().enumerate() {
        if order > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&body[raw.get(place)?.clone()]);
    }
    out.push(b']');
    Some(())
}

/// The items of an input: text or token numbers, or a list of texts, or a list of lists of token numbers.
fn items_of(text: &[u8], input: Range<usize>) -> Option<Vec<Range<usize>>> {
    match text[input.start] {
        b'"' => Some(vec![input]),
        b'[' => {
            let elements = scan::elements(text, input.clone())?;
            match text[elements.first()?.start] {
                b'"' => elements.iter().all(|element| text[element.start] == b'"').then_some(elements),
                b'[' => elements.iter().all(|element| is_tokens(text, element.clone())).then_some(elements),
                _ => is_tokens(text, input.clone()).then(|| vec![input]),
            }
        }
        _ => None,
    }
}

/// A list, not empty, of integers.
fn is_tokens(text: &[u8], span: Range<usize>) -> bool {
    let is_integer = |element: &Range<usize>| text[element.clone()].iter().all(u8::is_ascii_digit);
    scan::elements(text, span).is_some_and(|elements| !elements.is_empty() && elements.iter().all(is_integer))
}

/// The text of a canonical string without escapes: names of models have none.
fn plain_text(value: &[u8]) -> Option<String> {
    let inside = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inside.is_empty() || inside.contains(&b'\\') {
        return None;
    }
    String::from_utf8(inside.to_vec()).ok()
}
