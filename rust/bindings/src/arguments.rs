//! A call's arguments to their document, without `inspect.bind`.
//!
//! [`Arguments`] is made once for a function from its signature. The parameters' names are sorted and escaped then, so
//! that a call binds its arguments by position and writes the object in one pass.

use crate::document::{Fault, Hole, Holes, Outcome, Step, Walk, as_bytes, walked, with_document};
use infercache_core::document::{Writer, utf16_order};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

/// How a parameter takes its argument; the values are `inspect.Parameter.kind`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Position,
    PositionOrName,
    Positions,
    Name,
    Names,
}

struct Parameter {
    name: Py<PyString>,
    text: String,
    takes: Takes,
    default: Option<Py<PyAny>>,
    /// `"name":` as it stands in the document.
    member: Vec<u8>,
}

/// The parameters of a function, compiled from its signature: writes the document of a call's arguments.
#[pyclass(frozen, module = "infercache._core")]
pub struct Arguments {
    function: String,
    parameters: Vec<Parameter>,
    /// How many of the first parameters take an argument by position.
    positional: usize,
    /// The parameters that count, in canonical order of their names.
    order: Vec<usize>,
    rest: Option<usize>,
    named_rest: Option<usize>,
    /// Names that do not count, those of arguments that only `**kwargs` takes included.
    ignore: Vec<String>,
}

/// What a call gave each parameter.
struct Bindings<'py> {
    /// By parameter; `*args` and `**kwargs` are apart.
    values: Vec<Option<Bound<'py, PyAny>>>,
    rest: Option<Bound<'py, PyTuple>>,
    named_rest: Option<Bound<'py, PyDict>>,
}

/// The document of a batch call with a gap where the item stands, so that an item costs its own document only.
pub struct ItemTemplate {
    before: Vec<u8>,
    after: Vec<u8>,
    name: String,
    /// Where digests of the other arguments are missing: in `before`, and in `after` as if the gap were closed.
    holes: Holes,
}

impl ItemTemplate {
    /// Appends the document of the call with `item` in place of the list.
    pub fn write<'py>(&self, py: Python<'py>, item: &Bound<'py, PyAny>, out: &mut Writer) -> PyResult<Holes> {
        let mut length = 0;
        let mut holes = walked(py, out, "input", |walk| {
            walk.out.raw(&self.before)?;
            let start = walk.out.len();
            walk.inside(|walk| walk.value(item)).map_err(|fault| fault.at(|| Step::Name(self.name.clone())))?;
            length = walk.out.len() - start;
            Ok(walk.out.raw(&self.after)?)
        })?;
        let moved = |at: usize| if at < self.before.len() { at } else { at + length };
        holes.extend(self.holes.iter().map(|hole| Hole { at: moved(hole.at), tensor: hole.tensor.clone_ref(py) }));
        Ok(holes)
    }
}

#[pymethods]
impl Arguments {
    /// Compiles a signature.
    ///
    /// `signature` is an `inspect.Signature`, `name` the function's name for error texts, `ignore` the names of
    /// parameters that do not count. A name that the function cannot take is a `ValueError`.
    #[new]
    #[pyo3(signature = (signature, name, ignore = Vec::new()))]
    fn from_python(signature: &Bound<'_, PyAny>, name: String, ignore: Vec<String>) -> PyResult<Arguments> {
        let mut parameters = Vec::new();
        for parameter in signature.getattr("parameters")?.call_method0("values")?.try_iter()? {
            parameters.push(Parameter::from_python(&parameter?, signature)?);
        }
        let positional =
            parameters.iter().take_while(|p| matches!(p.takes, Takes::Position | Takes::PositionOrName)).count();
        let rest = parameters.iter().position(|p| p.takes == Takes::Positions);
        let named_rest = parameters.iter().position(|p| p.takes == Takes::Names);
        for ignored in &ignore {
            if named_rest.is_none() && !parameters.iter().any(|p| p.text == *ignored) {
                let text = format!("{name}() has no parameter {ignored:?} to ignore");
                return Err(PyValueError::new_err(text));
            }
        }
        let mut order: Vec<usize> =
            (0..parameters.len()).filter(|&at| !ignore.contains(&parameters[at].text)).collect();
        order.sort_by(|&a, &b| utf16_order(parameters[a].text.as_bytes(), parameters[b].text.as_bytes()));
        Ok(Arguments { function: name, parameters, positional, order, rest, named_rest, ignore })
    }

    /// The names of the parameters, in the signature's order.
    #[getter]
    fn names(&self) -> Vec<&str> {
        self.parameters.iter().map(|parameter| parameter.text.as_str()).collect()
    }

    /// The canonical document of a call with these arguments.
    #[pyo3(signature = (*args, **kwargs))]
    fn document<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
        let write = |out: &mut Writer| self.write(py, args, kwargs, out);
        with_document(py, write, |document, holes| as_bytes(py, document, holes))
    }

    /// Name to value of a call with these arguments, defaults applied, ignored ones included.
    #[pyo3(name = "bind", signature = (*args, **kwargs))]
    fn bind_python<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.bind(py, args, kwargs)
    }
}

impl Parameter {
    fn from_python(parameter: &Bound<'_, PyAny>, signature: &Bound<'_, PyAny>) -> PyResult<Parameter> {
        let name = parameter.getattr("name")?.cast_into::<PyString>()?;
        let text = name.to_str()?.to_owned();
        let takes = match parameter.getattr("kind")?.extract::<u8>()? {
            0 => Takes::Position,
            1 => Takes::PositionOrName,
            2 => Takes::Positions,
            3 => Takes::Name,
            _ => Takes::Names,
        };
        let default = parameter.getattr("default")?;
        let empty = signature.getattr("empty")?;
        let mut member = Writer::new();
        member.name(&text).map_err(|limit| PyValueError::new_err(limit.to_string()))?;
        Ok(Parameter {
            name: name.unbind(),
            text,
            takes,
            default: (!default.is(&empty)).then(|| default.unbind()),
            member: member.into_bytes(),
        })
    }
}

impl Arguments {
    /// Appends the arguments object of a call: parameter name to value, defaults applied, ignored ones left out.
    ///
    /// A call that the function would not take is a `TypeError` like Python's own.
    pub fn write<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        out: &mut Writer,
    ) -> PyResult<Holes> {
        let bindings = self.bound(py, args, kwargs)?;
        walked(py, out, "input", |walk| walk.inside(|walk| self.members(walk, &bindings, None).map(drop)))
    }

    /// Appends the document of one item of a batch call: `item` stands in place of what parameter `over` was given.
    pub fn write_item<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        over: &str,
        item: &Bound<'py, PyAny>,
        out: &mut Writer,
    ) -> PyResult<Holes> {
        self.items(py, args, kwargs, over)?.write(py, item, out)
    }

    /// The document of a batch call with a gap in place of what parameter `over` was given.
    pub fn items<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        over: &str,
    ) -> PyResult<ItemTemplate> {
        let Some(gap) = self.order.iter().copied().find(|&at| self.parameters[at].text == over) else {
            return Err(PyValueError::new_err(format!("{}() has no parameter {over:?} that counts", self.function)));
        };
        let bindings = self.bound(py, args, kwargs)?;
        let mut out = Writer::new();
        let mut split = 0;
        let holes = walked(py, &mut out, "input", |walk| {
            walk.inside(|walk| {
                split = self.members(walk, &bindings, Some(gap))?;
                Ok(())
            })
        })?;
        let (mut before, name) = (out.into_bytes(), over.to_owned());
        let after = before.split_off(split);
        Ok(ItemTemplate { before, after, name, holes })
    }

    /// Name to value, defaults applied, ignored ones included; for templates and callables, not for keys.
    pub fn bind<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let bindings = self.bound(py, args, kwargs)?;
        let named = PyDict::new(py);
        for (at, parameter) in self.parameters.iter().enumerate() {
            let name = parameter.name.bind(py);
            match parameter.takes {
                Takes::Positions => {
                    named.set_item(name, bindings.rest.clone().unwrap_or_else(|| PyTuple::empty(py)))?
                }
                Takes::Names => {
                    named.set_item(name, bindings.named_rest.clone().unwrap_or_else(|| PyDict::new(py)))?;
                }
                _ => named.set_item(name, &bindings.values[at])?,
            }
        }
        Ok(named)
    }

    /// The members of the arguments object and its braces. Where the value of parameter `gap` would stand nothing is
    /// written; gives the place of that gap in the writer.
    fn members<'py>(&self, walk: &mut Walk<'_, 'py>, bindings: &Bindings<'py>, gap: Option<usize>) -> Outcome<usize> {
        let mut split = 0;
        for (order, &at) in self.order.iter().enumerate() {
            walk.out.byte(if order == 0 { b'{' } else { b',' })?;
            let parameter = &self.parameters[at];
            walk.out.raw(&parameter.member)?;
            if gap == Some(at) {
                split = walk.out.len();
                continue;
            }
            let written = match parameter.takes {
                Takes::Positions => match &bindings.rest {
                    Some(rest) => walk.value(rest.as_any()),
                    None => Ok(walk.out.raw(b"[]")?),
                },
                Takes::Names => match &bindings.named_rest {
                    Some(named) => {
                        self.counting(named).map_err(Into::into).and_then(|named| walk.value(named.as_any()))
                    }
                    None => Ok(walk.out.raw(b"{}")?),
                },
                _ => match &bindings.values[at] {
                    Some(value) => walk.value(value),
                    None => Err(Fault::unsupported("a parameter without an argument")),
                },
            };
            written.map_err(|fault| fault.at(|| Step::Name(parameter.text.clone())))?;
        }
        if self.order.is_empty() {
            walk.out.byte(b'{')?;
        }
        walk.out.byte(b'}')?;
        Ok(split)
    }

    /// What `**kwargs` took, without the ignored names.
    fn counting<'py>(&self, named: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyDict>> {
        if !self.ignore.iter().any(|ignored| named.contains(ignored).unwrap_or(true)) {
            return Ok(named.clone());
        }
        let counting = named.copy()?;
        for ignored in &self.ignore {
            if counting.contains(ignored)? {
                counting.del_item(ignored)?;
            }
        }
        Ok(counting)
    }

    /// Gives each parameter its argument, as Python would.
    fn bound<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bindings<'py>> {
        let given = args.len();
        if given > self.positional && self.rest.is_none() {
            return Err(self.too_many(given));
        }
        let mut values: Vec<Option<Bound<'py, PyAny>>> = Vec::with_capacity(self.parameters.len());
        values.extend(args.iter().take(self.positional).map(Some));
        values.resize_with(self.parameters.len(), || None);
        let mut named_rest = None;
        if let Some(kwargs) = kwargs.filter(|kwargs| !kwargs.is_empty()) {
            named_rest = self.by_name(py, kwargs, &mut values)?;
        }
        let mut missing = Vec::new();
        for (value, parameter) in values.iter_mut().zip(&self.parameters) {
            if value.is_none() && !matches!(parameter.takes, Takes::Positions | Takes::Names) {
                match &parameter.default {
                    Some(default) => *value = Some(default.bind(py).clone()),
                    None => missing.push(parameter.text.as_str()),
                }
            }
        }
        if !missing.is_empty() {
            return Err(self.missing(&missing));
        }
        let rest = match self.rest {
            Some(_) if given > self.positional => Some(args.get_slice(self.positional, given)),
            _ => None,
        };
        Ok(Bindings { values, rest, named_rest })
    }

    /// Gives the arguments that were passed by name to their parameters; the others are `**kwargs`.
    fn by_name<'py>(
        &self,
        py: Python<'py>,
        kwargs: &Bound<'py, PyDict>,
        values: &mut [Option<Bound<'py, PyAny>>],
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let mut named_rest: Option<Bound<'py, PyDict>> = None;
        for (name, value) in kwargs {
            let text =
                name.cast::<PyString>().map_err(|_| PyTypeError::new_err("keywords must be strings"))?.to_str()?;
            let by_name = |p: &Parameter| matches!(p.takes, Takes::PositionOrName | Takes::Name) && p.text == text;
            if let Some(at) = self.parameters.iter().position(by_name) {
                if values[at].is_some() {
                    return Err(self.error(&format!("got multiple values for argument '{text}'")));
                }
                values[at] = Some(value);
            } else if self.named_rest.is_some() {
                named_rest.get_or_insert_with(|| PyDict::new(py)).set_item(&name, &value)?;
            } else if self.parameters.iter().any(|p| p.takes == Takes::Position && p.text == text) {
                let reason = format!("got some positional-only arguments passed as keyword arguments: '{text}'");
                return Err(self.error(&reason));
            } else {
                return Err(self.error(&format!("got an unexpected keyword argument '{text}'")));
            }
        }
        Ok(named_rest)
    }

    #[cold]
    fn error(&self, reason: &str) -> PyErr {
        PyTypeError::new_err(format!("{}() {reason}", self.function))
    }

    #[cold]
    fn too_many(&self, given: usize) -> PyErr {
        let takes = self.positional;
        let required = self.parameters[..takes].iter().filter(|p| p.default.is_none()).count();
        let range = if required == takes { takes.to_string() } else { format!("from {required} to {takes}") };
        let plural = if takes == 1 { "" } else { "s" };
        let verb = if given == 1 { "was" } else { "were" };
        self.error(&format!("takes {range} positional argument{plural} but {given} {verb} given"))
    }

    #[cold]
    fn missing(&self, names: &[&str]) -> PyErr {
        // Python tells of missing positional arguments first, and of keyword-only ones only if none of those is missing.
        let positional = |name: &&&str| self.parameters[..self.positional].iter().any(|p| p.text == ***name);
        let (kind, names): (&str, Vec<&&str>) = match names.iter().filter(positional).collect::<Vec<_>>() {
            found if found.is_empty() => ("keyword-only", names.iter().collect()),
            found => ("positional", found),
        };
        let quoted: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
        let list = match quoted.as_slice() {
            [only] => only.clone(),
            [first, second] => format!("{first} and {second}"),
            [head @ .., last] => format!("{}, and {last}", head.join(", ")),
            [] => String::new(),
        };
        let plural = if quoted.len() == 1 { "" } else { "s" };
        self.error(&format!("missing {} required {kind} argument{plural}: {list}", quoted.len()))
    }
}

/// Adds this module's class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Arguments>()
}
