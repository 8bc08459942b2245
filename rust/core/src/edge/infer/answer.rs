//! The model server's answer to a record, and a record to the answer that a request wants.
//!
//! ```text
//! version ‖ 0 (3 bytes) ‖ age (u32) ‖ outputs (u32) ‖ texts' length (u32) ‖ the answer's other members
//! each output: datatype ‖ form ‖ flags ‖ 0 ‖ lengths: other members, parameters, name (3 × u32) ‖ dims (u32) ‖ bytes (u64)
//!              ‖ wide bytes (u64) ‖ other members ‖ parameters ‖ name ‖ dims (u64 each) ‖ bytes ‖ wide bytes
//! ```
//! All integers are little-endian; members are `"name":value` with commas between.

use super::super::embeddings::Form;
use super::super::scan::{self, joined};
use super::query::{Query, dimensions};
use super::tensor::{self, Datatype, Written};
use crate::document::Writer;
use crate::json;
use std::ops::Range;

/// Version of this layout.
const VERSION: u8 = 1;
const NESTED: u8 = 1;
const DIGITS: u8 = 2;

/// An output as stored.
struct Output<'a> {
    datatype: Datatype,
    written: Written,
    others: &'a [u8],
    parameters: &'a [u8],
    name: &'a [u8],
    shape: Vec<usize>,
    bytes: &'a [u8],
    wide: Option<&'a [u8]>,
}

/// The record of an answer: its JSON object and the bytes behind it; `age`: how many seconds old it came. `None`: it is no
/// complete answer of this protocol, or one that lies in memory which is shared.
pub fn record(head: &[u8], mut tensors: &[u8], age: u32) -> Option<Vec<u8>> {
    json::write(head, &mut Writer::new()).ok()?;
    let members = scan::members(head, scan::whole(head)?)?;
    let outputs = members.iter().find(|member| member.is(head, "outputs"))?;
    let others = joined(head, &members, &["id", "outputs"]);
    let outputs = scan::elements(head, outputs.value.clone())?;
    let mut out = vec![VERSION, 0, 0, 0];
    word(age as usize, &mut out)?;
    word(outputs.len(), &mut out)?;
    word(others.len(), &mut out)?;
    out.extend_from_slice(&others);
    for output in outputs {
        write_output(head, output, &mut tensors, &mut out)?;
    }
    tensors.is_empty().then_some(out)
}

fn word(value: usize, out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(&u32::try_from(value).ok()?.to_le_bytes());
    Some(())
}

fn write_output(head: &[u8], span: Range<usize>, tensors: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    let members = scan::members(head, span)?;
    let named = |name: &str| members.iter().find(|member| member.is(head, name)).map(|member| member.value.clone());
    let datatype = Datatype::named(&tensor::unescaped(&head[named("datatype")?])?)?;
    let shape = dimensions(head, named("shape")?)?;
    let name = tensor::unescaped(&head[named("name")?])?;
    let parameters = match named("parameters") {
        Some(parameters) => scan::members(head, parameters)?,
        None => Vec::new(),
    };
    let parameter = |name: &str| parameters.iter().find(|member| member.is(head, name));
    if parameter("shared_memory_region").is_some() {
        return None;
    }
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    let as_it_is = Written { form: Form::Single, nested: false, digits: false };
    let (bytes, written, wide) = match (named("data"), parameter("binary_data_size")) {
        (Some(data), None) => {
            let parsed = tensor::parse(head, data, datatype)?;
            let wide: Vec<u8> = parsed.wide.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
            (parsed.bytes, parsed.written, wide)
        }
        (None, Some(size)) => {
            let size = std::str::from_utf8(&head[size.value.clone()]).ok()?.parse().ok()?;
            let (bytes, rest) = tensors.split_at_checked(size)?;
            *tensors = rest;
            (bytes.to_vec(), as_it_is, Vec::new())
        }
        _ => return None,
    };
    datatype.fits(&bytes, elements).then_some(())?;
    let others = joined(head, &members, &["data", "parameters"]);
    let parameters = joined(head, &parameters, &["binary_data_size"]);
    let flags = if written.nested { NESTED } else { 0 } | if written.digits { DIGITS } else { 0 };
    out.extend_from_slice(&[datatype as u8, written.form as u8, flags, 0]);
    for length in [others.len(), parameters.len(), name.len(), shape.len()] {
        word(length, out)?;
    }
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(&(wide.len() as u64).to_le_bytes());
    for text in [&others, &parameters, &name] {
        out.extend_from_slice(text);
    }
    shape.iter().for_each(|&dim| out.extend_from_slice(&(dim as u64).to_le_bytes()));
    out.extend_from_slice(&bytes);
    out.extend_from_slice(&wide);
    Some(())
}

/// Reads a record piece by piece; every length is compared with what is there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn word(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.chunk()?) as usize)
    }

    fn long(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(self.chunk()?)).ok()
    }

    fn output(&mut self) -> Option<Output<'a>> {
        let [datatype, form, flags, _] = self.chunk()?;
        let lengths = [self.word()?, self.word()?, self.word()?];
        let (dims, bytes, wide) = (self.word()?, self.long()?, self.long()?);
        let (others, parameters, name) = (self.take(lengths[0])?, self.take(lengths[1])?, self.take(lengths[2])?);
        let (shape, _) = self.take(dims.checked_mul(8)?)?.as_chunks::<8>();
        let shape: Vec<usize> =
            shape.iter().map(|dim| usize::try_from(u64::from_le_bytes(*dim)).ok()).collect::<Option<_>>()?;
        let (bytes, wide) = (self.take(bytes)?, self.take(wide)?);
        let datatype = Datatype::numbered(datatype)?;
        let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
        let fits = datatype.fits(bytes, elements) && (wide.is_empty() || wide.len() / 8 == elements);
        let written = Written { form: Form::numbered(form)?, nested: flags & NESTED != 0, digits: flags & DIGITS != 0 };
        let wide = Some(wide).filter(|wide| !wide.is_empty());
        fits.then_some(Output { datatype, written, others, parameters, name, shape, bytes, wide })
    }
}

/// Seconds that the answer of a record was old when it came; `None` if these bytes are none.
pub fn age(record: &[u8]) -> Option<u32> {
    let mut reader = Reader(record);
    (reader.chunk::<4>()? == [VERSION, 0, 0, 0]).then_some(())?;
    Some(reader.word()? as u32)
}

impl Query {
    /// The answer that this request wants, made of a record: the body, and the length of its JSON object if bytes follow
    /// it. `None`: these bytes are no record, or an output has no form of the kind that is asked for.
    pub fn render(&self, record: &[u8]) -> Option<(Vec<u8>, Option<usize>)> {
        age(record)?;
        let mut reader = Reader(&record[8..]);
        let outputs = reader.word()?;
        let others = reader.word()?;
        let others = reader.take(others)?;
        let (mut out, mut tail) = (vec![b'{'], Vec::new());
        if let Some(id) = &self.id {
            out.extend_from_slice(b"\"id\":");
            out.extend_from_slice(id);
            out.push(b',');
        }
        out.extend_from_slice(others);
        if !others.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(b"\"outputs\":[");
        let mut binary = false;
        for index in 0..outputs {
            if index > 0 {
                out.push(b',');
            }
            let output = reader.output()?;
            let as_binary = self.wants_binary(output.name);
            render_output(&output, as_binary, &mut out, &mut tail)?;
            binary |= as_binary;
        }
        out.extend_from_slice(b"]}");
        reader.0.is_empty().then_some(())?;
        let head = binary.then_some(out.len());
        out.extend_from_slice(&tail);
        Some((out, head))
    }
}

fn render_output(output: &Output<'_>, binary: bool, out: &mut Vec<u8>, tail: &mut Vec<u8>) -> Option<()> {
    out.push(b'{');
    out.extend_from_slice(output.others);
    let size = if binary { format!("\"binary_data_size\":{}", output.bytes.len()) } else { String::new() };
    if !output.parameters.is_empty() || binary {
        out.extend_from_slice(b",\"parameters\":{");
        out.extend_from_slice(output.parameters);
        if !output.parameters.is_empty() && binary {
            out.push(b',');
        }
        out.extend_from_slice(size.as_bytes());
        out.push(b'}');
    }
    if binary {
        tail.extend_from_slice(output.bytes);
    } else {
        out.extend_from_slice(b",\"data\":");
        tensor::write(output.bytes, output.wide, output.datatype, output.written, &output.shape, out)?;
    }
    out.push(b'}');
    Some(())
}
