//! A request's body to its key, and what it wants of the answer.
//!
//! The document is the request without `id`, `binary_data_size`, `binary_data` and `binary_data_output`, which say how
//! tensors travel, and with the digest of its native bytes in place of each input's data. Everything else enters the key,
//! and inputs count by name, not by order.

use super::super::scan::{self, Member};
use super::tensor::{self, Datatype};
use crate::document::{Writer, utf16_order};
use crate::error::Result;
use crate::json;
use crate::key::Scope;
use crate::limits::KEY_BYTES;
use std::ops::Range;

/// A request for inference.
pub struct Query {
    /// The caller's own identifier, as JSON.
    pub(super) id: Option<Vec<u8>>,
    /// Whether outputs are wanted as binary, if nothing else is said of one.
    pub(super) binary: bool,
    /// What is said of single ones, by name.
    pub(super) outputs: Vec<(Vec<u8>, bool)>,
    document: Vec<u8>,
}

/// Members as canonical name and value.
type Members = Vec<(Vec<u8>, Vec<u8>)>;

/// Parameters that make an answer depend on more than the request: state of the server's, memory that others write.
const STATEFUL: [&str; 6] = [
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
];
/// Parameters that say how tensors travel.
const TRANSPORT: [&str; 3] = ["binary_data_size", "binary_data", "binary_data_output"];

impl Query {
    /// Reads a request: its JSON object and the bytes behind it. `None`: it is JSON, but no request whose answer depends on
    /// it alone, or none of this protocol.
    ///
    /// # Errors
    /// [`Error::InvalidJson`](crate::error::Error::InvalidJson): the head is none.
    pub fn parse(head: &[u8], tensors: &[u8]) -> Result<Option<Query>> {
        json::write(head, &mut Writer::new())?;
        Ok(Query::of_valid(head, tensors))
    }

    fn of_valid(head: &[u8], tensors: &[u8]) -> Option<Query> {
        let mut query = Query { id: None, binary: false, outputs: Vec::new(), document: Vec::new() };
        let mut members: Members = Vec::new();
        for member in scan::members(head, scan::whole(head)?)? {
            if member.is(head, "id") {
                query.id = Some(head[member.value].to_vec());
            } else if member.is(head, "inputs") {
                members.push((b"\"inputs\"".to_vec(), inputs(head, member.value, tensors)?));
            } else if member.is(head, "outputs") {
                members.push((b"\"outputs\"".to_vec(), query.read_outputs(head, member.value)?));
            } else if member.is(head, "parameters") {
                let flags = parameters(head, member.value, &mut members)?;
                query.binary = flags.output.unwrap_or(false);
            } else {
                members.push(canonical(head, &member)?);
            }
        }
        members.iter().any(|(name, _)| name == b"\"inputs\"").then_some(())?;
        query.document = object(members);
        Some(query)
    }

    fn read_outputs(&mut self, head: &[u8], span: Range<usize>) -> Option<Vec<u8>> {
        let mut texts = Vec::new();
        for output in scan::elements(head, span)? {
            let (mut members, mut binary, mut named) = (Members::new(), None, None);
            for member in scan::members(head, output)? {
                if member.is(head, "parameters") {
                    binary = parameters(head, member.value, &mut members)?.each;
                } else {
                    if member.is(head, "name") {
                        named = tensor::unescaped(&head[member.value.clone()]);
                    }
                    members.push(canonical(head, &member)?);
                }
            }
            if let Some(binary) = binary {
                self.outputs.push((named?, binary));
            }
            texts.push(object(members));
        }
        Some(array(texts))
    }

    /// The key in a scope.
    pub fn key(&self, scope: &Scope) -> [u8; KEY_BYTES] {
        scope.key(&self.document)
    }

    /// What the key is the hash of.
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// Whether an output is wanted as binary.
    pub(super) fn wants_binary(&self, output: &[u8]) -> bool {
        self.outputs.iter().find(|(name, _)| name == output).map_or(self.binary, |(_, binary)| *binary)
    }
}

/// The inputs, by name, each with its data's digest.
fn inputs(head: &[u8], span: Range<usize>, mut tensors: &[u8]) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    for input in scan::elements(head, span)? {
        let (mut members, mut data, mut shape, mut size) = (Members::new(), None, None, None);
        let (mut datatype, mut name) = (None, None);
        for member in scan::members(head, input)? {
            if member.is(head, "data") {
                data = Some(member.value);
                continue;
            } else if member.is(head, "parameters") {
                size = parameters(head, member.value, &mut members)?.size;
                continue;
            } else if member.is(head, "shape") {
                shape = dimensions(head, member.value.clone());
            } else if member.is(head, "datatype") {
                datatype = Datatype::named(&tensor::unescaped(&head[member.value.clone()])?);
            } else if member.is(head, "name") {
                name = tensor::unescaped(&head[member.value.clone()]);
            }
            members.push(canonical(head, &member)?);
        }
        let (datatype, shape) = (datatype?, shape?);
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        let parsed;
        let bytes = match (data, size) {
            (Some(data), None) => {
                parsed = tensor::parse(head, data, datatype)?.bytes;
                parsed.as_slice()
            }
            (None, Some(size)) => {
                let (bytes, rest) = tensors.split_at_checked(size)?;
                tensors = rest;
                bytes
            }
            _ => return None,
        };
        datatype.fits(bytes, elements).then_some(())?;
        let digest = blake3::hash(bytes).to_hex();
        members.push((b"\"data\"".to_vec(), format!("\"{digest}\"").into_bytes()));
        found.push((name?, object(members)));
    }
    found.sort();
    let distinct = found.windows(2).all(|pair| pair[0].0 != pair[1].0);
    (tensors.is_empty() && !found.is_empty() && distinct)
        .then(|| array(found.into_iter().map(|(_, text)| text).collect()))
}

/// What parameters say of how tensors travel.
#[derive(Default)]
struct Flags {
    size: Option<usize>,
    each: Option<bool>,
    output: Option<bool>,
}

/// Adds the parameters that are left to the members, if any.
fn parameters(head: &[u8], span: Range<usize>, members: &mut Members) -> Option<Flags> {
    let (mut flags, mut left) = (Flags::default(), Members::new());
    for member in scan::members(head, span)? {
        if STATEFUL.iter().any(|name| member.is(head, name)) {
            return None;
        }
        let value = &head[member.value.clone()];
        let flag = || match value {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        };
        match TRANSPORT.iter().position(|name| member.is(head, name)) {
            Some(0) => flags.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            Some(1) => flags.each = Some(flag()?),
            Some(_) => flags.output = Some(flag()?),
            None => left.push(canonical(head, &member)?),
        }
    }
    if !left.is_empty() {
        members.push((b"\"parameters\"".to_vec(), object(left)));
    }
    Some(flags)
}

/// The sizes that a shape is a list of.
pub(super) fn dimensions(text: &[u8], span: Range<usize>) -> Option<Vec<usize>> {
    let size = |element: Range<usize>| std::str::from_utf8(&text[element]).ok()?.parse().ok();
    scan::elements(text, span)?.into_iter().map(size).collect()
}

fn canonical(head: &[u8], member: &Member) -> Option<(Vec<u8>, Vec<u8>)> {
    // As a member, so that what begins with `$` is what it is in any document.
    let mut out = Writer::new();
    let alone = [b"{", &head[member.name.clone()], b":", &head[member.value.clone()], b"}"].concat();
    json::write(&alone, &mut out).ok()?;
    let text = out.as_bytes();
    let member = scan::members(text, 0..text.len())?.pop()?;
    Some((text[member.name].to_vec(), text[member.value].to_vec()))
}

fn object(mut members: Members) -> Vec<u8> {
    members.sort_by(|(a, _), (b, _)| utf16_order(&a[1..a.len() - 1], &b[1..b.len() - 1]));
    let texts: Vec<Vec<u8>> = members.into_iter().map(|(name, value)| [&name[..], b":", &value].concat()).collect();
    [&b"{"[..], &texts.join(&b','), b"}"].concat()
}

fn array(texts: Vec<Vec<u8>>) -> Vec<u8> {
    [&b"["[..], &texts.join(&b','), b"]"].concat()
}
