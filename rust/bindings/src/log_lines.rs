//! Lines of a log to columns: the usual ones here, many at a time and without the interpreter; every other one is told by
//! its place, and `infercache.workload` reads it (or says what is wrong with it).
//!
//! A key here is the key there: the canonical document of the value, in the scope of model and version.

use crate::released::released;
use infercache_core::document::Writer;
use infercache_core::edge::scan;
use infercache_core::json;
use infercache_core::key::{Scope, TEXT_PREFIX, from_text};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyTuple};
use std::collections::HashMap;

/// What a line may say, in the order in which Python names the members.
const TIME: usize = 0;
const MODEL: usize = 1;
const VERSION: usize = 2;
const WORKLOAD: usize = 3;
const QUESTION: usize = 4;
const BYTES: usize = 5;
const COST: usize = 6;
const FIELDS: usize = 7;

/// The fields of a line: the text of each value, without quotes where it is text; `None`: there is none.
type Line<'a> = [Option<&'a [u8]>; FIELDS];

/// Seconds of the units of times and costs, the largest size and cost; of lines that name none, the workload.
struct Terms {
    /// The log has times: a line without one is odd.
    timed: bool,
    units: [f64; 2],
    most: [f64; 2],
    workload: String,
}

/// Columns, an element a line that was understood.
#[derive(Default)]
struct Columns {
    /// Which line of the block it is.
    lines: Vec<u32>,
    keys: Vec<u8>,
    groups: Vec<u32>,
    /// Times, sizes, costs; NaN where the line has none.
    amounts: [Vec<f64>; 3],
    /// Workload and model of each group.
    names: Vec<(String, String)>,
    /// Lines that Python is to look at.
    odd: Vec<u32>,
}

/// Makes columns of lines, and remembers whose they are.
struct Reader {
    terms: Terms,
    columns: Columns,
    /// By model, version and workload: the scope and the group.
    known: HashMap<Vec<u8>, (Scope, u32)>,
    /// Those three, to be looked for.
    sought: Vec<u8>,
}

/// A finite number, as JSON and tables write it.
fn number(text: &[u8]) -> Option<f64> {
    let plain = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
    if !text.iter().all(plain) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Seconds since 1970 of `YYYY-MM-DDThh:mm:ss`, with or without a fraction, in UTC or with an offset.
fn moment(text: &[u8]) -> Option<f64> {
    let digits = |from: usize, to: usize| -> Option<i64> {
        let text = text.get(from..to).filter(|text| text.iter().all(u8::is_ascii_digit))?;
        Some(text.iter().fold(0, |sum, digit| 10 * sum + i64::from(digit - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if text.len() < 19 || marks.iter().any(|&(at, mark)| text[at] != mark) || !matches!(text[10], b'T' | b' ') {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    // Leap days and leap seconds are left to who knows the calendar, and so is what binary64 cannot tell apart.
    let last = match month {
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_date = (1900..2200).contains(&year) && (1..=12).contains(&month) && (1..=last).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = &text[19..];
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        for place in 0..6 {
            micros = 10 * micros + fraction[..length].get(place).map_or(0, |digit| i64::from(digit - b'0'));
        }
        rest = &fraction[length..];
    }
    let offset = match rest {
        b"" | b"Z" => 0,
        [sign @ (b'+' | b'-'), h @ b'0'..=b'1', hh @ b'0'..=b'9', b':', m @ b'0'..=b'5', mm @ b'0'..=b'9'] => {
            let two = |one: u8, other: u8| i64::from(one - b'0') * 10 + i64::from(other - b'0');
            (two(*h, *hh) * 3_600 + two(*m, *mm) * 60) * if *sign == b'-' { -1 } else { 1 }
        }
        _ => return None,
    };
    // Days since 1970 of the proleptic Gregorian calendar (H. Hinnant, "chrono-compatible low-level date algorithms").
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    Some((seconds * 1_000_000 + micros) as f64 / 1e6)
}

/// What stands in a scope for a name that a line has not.
fn or_dash(name: &str) -> &str {
    if name.is_empty() { "-" } else { name }
}

impl Reader {
    fn new(terms: Terms) -> Reader {
        Reader { terms, columns: Columns::default(), known: HashMap::new(), sought: Vec::new() }
    }

    /// Takes a line whose question has this document; `None`: it is none of the usual ones.
    fn take(&mut self, place: u32, line: &Line<'_>, document: &[u8]) -> Option<()> {
        let time = match line[TIME] {
            None if self.terms.timed => return None,
            None => f64::NAN,
            Some(text) => number(text).map(|time| time * self.terms.units[0]).or_else(|| moment(text))?,
        };
        let amount = |text: Option<&[u8]>, unit: f64, most: f64| match text {
            None | Some(b"") => Some(f64::NAN),
            Some(text) => number(text).map(|number| number * unit).filter(|number| (0.0..=most).contains(number)),
        };
        let size = amount(line[BYTES], 1.0, self.terms.most[0])?;
        let cost = amount(line[COST], self.terms.units[1], self.terms.most[1])?;
        let name = |field: usize| std::str::from_utf8(line[field].unwrap_or_default()).ok();
        let (model, version, workload) = (name(MODEL)?, name(VERSION)?, name(WORKLOAD)?);
        let text = document.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
        let given = match text {
            Some(b"") => return None,
            Some(text) if text.starts_with(TEXT_PREFIX.as_bytes()) => {
                Some(from_text(std::str::from_utf8(text).ok()?).ok()?)
            }
            _ => None,
        };
        let (scope, group) = self.whose(model, version, workload)?;
        let key = given.unwrap_or_else(|| scope.key(document));
        let columns = &mut self.columns;
        columns.lines.push(place);
        columns.keys.extend_from_slice(&key);
        columns.groups.push(group);
        for (column, amount) in columns.amounts.iter_mut().zip([time, size, cost]) {
            column.push(amount);
        }
        Some(())
    }

    /// The scope of a line's keys, and its group.
    fn whose(&mut self, model: &str, version: &str, workload: &str) -> Option<(&Scope, u32)> {
        self.sought.clear();
        for name in [model, version, workload] {
            self.sought.extend_from_slice(&(name.len() as u64).to_le_bytes());
            self.sought.extend_from_slice(name.as_bytes());
        }
        if !self.known.contains_key(&self.sought) {
            let scope = Scope::new("default", or_dash(model), or_dash(version), "log", None).ok()?;
            let workload = if workload.is_empty() { &self.terms.workload } else { workload };
            let names = &mut self.columns.names;
            let group = names.iter().position(|pair| pair.0 == workload && pair.1 == model).unwrap_or_else(|| {
                names.push((workload.to_owned(), model.to_owned()));
                names.len() - 1
            });
            self.known.insert(self.sought.clone(), (scope, group as u32));
        }
        let (scope, group) = &self.known[&self.sought];
        Some((scope, *group))
    }

    /// Takes each line that `take` understands; of the others, those that are not blank are odd.
    fn lines(mut self, block: &[u8], mut take: impl FnMut(&mut Reader, u32, &[u8]) -> Option<()>) -> Columns {
        for (place, line) in block.split(|&byte| byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if !line.is_empty() && take(&mut self, place as u32, line).is_none() {
                self.columns.odd.push(place as u32);
            }
        }
        self.columns
    }
}

/// What a value says, without quotes where it is text; `None`: it has escapes, and is for others to read.
fn plain(value: &[u8]) -> Option<&[u8]> {
    match value {
        [b'"', inner @ .., b'"'] => (!inner.contains(&b'\\')).then_some(inner),
        _ => Some(value),
    }
}

/// Takes a line of JSON. `names` are the members of the fields, as JSON has them.
fn take_object(
    reader: &mut Reader,
    document: &mut Writer,
    names: &[Option<String>],
    place: u32,
    text: &[u8],
) -> Option<()> {
    document.clear();
    json::write(text, document).ok()?;
    let text = document.as_bytes();
    let mut line: Line<'_> = [None; FIELDS];
    let mut question = None;
    for member in scan::members(text, 0..text.len())? {
        let name = &text[member.name];
        let Some(field) = names.iter().position(|one| one.as_ref().is_some_and(|one| one.as_bytes() == name)) else {
            continue;
        };
        let value = &text[member.value];
        match field {
            _ if value == b"null" => {}
            QUESTION => question = Some(value),
            // Names are text; amounts are numbers, or text that is one.
            MODEL | VERSION | WORKLOAD if value[0] != b'"' => return None,
            _ => line[field] = Some(plain(value)?),
        }
    }
    reader.take(place, &line, question?)
}

/// Takes a line of a table without quotes; `places` are the columns of the fields.
fn take_row(
    reader: &mut Reader,
    document: &mut Writer,
    (places, columns, delimiter): (&[Option<usize>], usize, u8),
    place: u32,
    text: &[u8],
) -> Option<()> {
    let mut line: Line<'_> = [None; FIELDS];
    let mut count = 0;
    for (column, value) in text.split(|&byte| byte == delimiter).enumerate() {
        count += 1;
        if let Some(field) = places.iter().position(|&one| one == Some(column)) {
            line[field] = Some(value);
        }
    }
    if count != columns {
        return None;
    }
    document.clear();
    document.string(std::str::from_utf8(line[QUESTION]?).ok()?).ok()?;
    reader.take(place, &line, document.as_bytes())
}

impl Columns {
    /// `(lines, keys, groups, times, sizes, costs, names, odd)`, numbers as bytes.
    fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let whole = |column: &[u32]| -> Vec<u8> { column.iter().flat_map(|one| one.to_ne_bytes()).collect() };
        let [times, sizes, costs] =
            self.amounts.map(|column| -> Vec<u8> { column.iter().flat_map(|one| one.to_ne_bytes()).collect() });
        (
            PyBytes::new(py, &whole(&self.lines)),
            PyBytes::new(py, &self.keys),
            PyBytes::new(py, &whole(&self.groups)),
            PyBytes::new(py, &times),
            PyBytes::new(py, &sizes),
            PyBytes::new(py, &costs),
            self.names,
            PyBytes::new(py, &whole(&self.odd)),
        )
            .into_pyobject(py)
    }
}

/// Columns of a block of lines of JSON. `names`: the members of time, model, version, workload, question, bytes and cost;
/// None: the log has none. `units`: seconds of those of time and cost. `most`: the largest size and cost.
#[pyfunction]
#[pyo3(signature = (block, names, units, most, workload))]
fn _log_objects<'py>(
    py: Python<'py>,
    block: PyBackedBytes,
    names: [Option<String>; FIELDS],
    units: [f64; 2],
    most: [f64; 2],
    workload: String,
) -> PyResult<Bound<'py, PyTuple>> {
    let mut document = Writer::new();
    let quoted = names.map(|name| {
        document.clear();
        document.string(&name?).ok()?;
        String::from_utf8(document.as_bytes().to_vec()).ok()
    });
    let reader = Reader::new(Terms { timed: quoted[TIME].is_some(), units, most, workload });
    let take = |reader: &mut Reader, place: u32, line: &[u8]| take_object(reader, &mut document, &quoted, place, line);
    released(py, || reader.lines(&block, take)).into_python(py)
}

/// Columns of a block of lines of a table without quotes, of so many columns, parted by a byte; `places`: those of the fields.
#[pyfunction]
#[pyo3(signature = (block, places, columns, delimiter, units, most, workload))]
#[allow(clippy::too_many_arguments)] // the form of a table
fn _log_rows<'py>(
    py: Python<'py>,
    block: PyBackedBytes,
    places: [Option<usize>; FIELDS],
    columns: usize,
    delimiter: u8,
    units: [f64; 2],
    most: [f64; 2],
    workload: String,
) -> PyResult<Bound<'py, PyTuple>> {
    let mut document = Writer::new();
    let reader = Reader::new(Terms { timed: places[TIME].is_some(), units, most, workload });
    let form = (&places[..], columns, delimiter);
    let take = |reader: &mut Reader, place: u32, line: &[u8]| take_row(reader, &mut document, form, place, line);
    released(py, || reader.lines(&block, take)).into_python(py)
}

/// Adds this module's functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_log_objects, module)?)?;
    module.add_function(wrap_pyfunction!(_log_rows, module)?)
}
