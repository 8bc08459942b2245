//! Classes of the caller's own that a return annotation names.
//!
//! A record is stored as the place of its class in the annotation's list, a fingerprint of the class's fields, and the
//! field values; Python's side of this is `infercache/values.py`, which makes the list. No class is looked up by a name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lazy::Lazy;
use crate::lazy::intern;
use infercache_core::value::Group;
use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

use super::decode::{Decoder, as_dict, as_text};
use super::encode::{Done, Encoder, refuse, step, type_name};

/// How instances of a class are taken apart and put together again, always without running the class's own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Fields as the attributes hold them, then whatever else the instance's `__dict__` holds.
    Dataclass,
    /// The items, then the `__dict__`, if it has one.
    NamedTuple,
    /// A Pydantic model: fields, the rest of `__dict__`, extras, names of the fields set, private attributes.
    Model,
    /// The member's name.
    Enum,
    /// The value: members may be combined.
    Flag,
}

struct Class {
    class: Py<PyType>,
    form: Form,
    names: Vec<Py<PyString>>,
    fingerprint: u64,
}

/// The classes that a return annotation names, compiled once when decorating; made by ``infercache.values.schema_of``.
///
/// ``classes`` lists ``(class, form, field names, fingerprint)``; ``resolve`` is asked again for such a list, when a class is
/// met that is not in it (an annotation may name what is defined further down), and a list that is longer takes its place.
#[pyclass(frozen, module = "infercache._core")]
pub struct Schema {
    early: Classes,
    /// What each attempt found, if it was more. References into older lists stay good.
    late: [Lazy<Classes>; ATTEMPTS],
    resolve: Option<Py<PyAny>>,
    attempts: AtomicUsize,
}

/// What is wrong with a record that is read without an annotation.
const UNNAMED: &str = "it holds a record, whose class only the return annotation of the function that stored it names: \
                       call that function, or its peek";

/// Times that an annotation which could not be resolved is tried again.
const ATTEMPTS: usize = 8;

#[derive(Default)]
struct Classes {
    list: Vec<Class>,
    by_address: HashMap<usize, usize>,
}

impl Classes {
    fn new(classes: &Bound<'_, PyAny>) -> PyResult<Classes> {
        let mut made = Classes::default();
        for row in classes.try_iter()? {
            let (class, form, names, fingerprint): (Bound<'_, PyType>, String, Vec<Bound<'_, PyString>>, u64) =
                row?.extract()?;
            let form = match form.as_str() {
                "dataclass" => Form::Dataclass,
                "namedtuple" => Form::NamedTuple,
                "model" => Form::Model,
                "enum" => Form::Enum,
                "flag" => Form::Flag,
                other => return Err(PyValueError::new_err(format!("unknown form of class: {other}"))),
            };
            made.by_address.insert(class.as_ptr() as usize, made.list.len());
            let names = names.into_iter().map(Bound::unbind).collect();
            made.list.push(Class { class: class.unbind(), form, names, fingerprint });
        }
        Ok(made)
    }
}

#[pymethods]
impl Schema {
    #[new]
    #[pyo3(signature = (classes, resolve=None))]
    fn new(classes: &Bound<'_, PyAny>, resolve: Option<Py<PyAny>>) -> PyResult<Schema> {
        let early = Classes::new(classes)?;
        Ok(Schema { early, late: Default::default(), resolve, attempts: AtomicUsize::new(0) })
    }

    /// The classes, in the order of their places.
    #[getter]
    fn classes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.now(py).list.iter().map(|class| class.class.bind(py).clone()).collect::<Vec<_>>())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("Schema{}", self.classes(py)?.repr()?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // The classes break a cycle (a class whose method returns the class) themselves when they are cleared.
        self.early.list.iter().try_for_each(|class| visit.call(&class.class))?;
        self.resolve.iter().try_for_each(|resolve| visit.call(resolve))
    }
}

impl Schema {
    fn now<'a>(&'a self, py: Python<'_>) -> &'a Classes {
        if self.resolve.is_none() {
            return &self.early;
        }
        self.late.iter().rev().find_map(|classes| classes.get(py)).unwrap_or(&self.early)
    }

    /// Asks again for the classes of an annotation that could not be resolved when decorating.
    fn retry(&self, py: Python<'_>) -> PyResult<()> {
        let Some(resolve) = &self.resolve else { return Ok(()) };
        let Some(place) = self.late.get(self.attempts.fetch_add(1, Ordering::Relaxed)) else {
            self.attempts.store(ATTEMPTS, Ordering::Relaxed);
            return Ok(());
        };
        let classes = Classes::new(&resolve.bind(py).call0()?)?;
        if classes.list.len() > self.now(py).list.len() {
            place.keep(py, classes); // no other thread has this attempt
        }
        Ok(())
    }

    fn find<'a>(&'a self, class: &Bound<'_, PyType>) -> PyResult<Option<(usize, &'a Class)>> {
        let py = class.py();
        let look = || {
            let classes = self.now(py);
            let place = *classes.by_address.get(&(class.as_ptr() as usize))?;
            Some((place, &classes.list[place]))
        };
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        self.retry(py)?;
        Ok(look())
    }

    fn at<'a>(&'a self, py: Python<'_>, index: usize, fingerprint: u64) -> PyResult<Option<&'a Class>> {
        let look = || self.now(py).list.get(index).filter(|class| class.fingerprint == fingerprint);
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        self.retry(py)?;
        Ok(look())
    }
}

/// Adds a value whose class the schema names; whether it does.
pub(super) fn write<'py>(to: &mut Encoder<'_, 'py>, value: &Bound<'py, PyAny>) -> Done<bool> {
    let Some(schema) = to.schema else { return Ok(false) };
    let Some((index, class)) = schema.find(&value.get_type())? else { return Ok(false) };
    to.within(value, |to| match class.form {
        Form::Dataclass => write_dataclass(to, value, class, index),
        Form::NamedTuple => write_named_tuple(to, value, class, index),
        Form::Model => write_model(to, value, class, index),
        Form::Enum | Form::Flag => write_member(to, value, class, index),
    })?;
    Ok(true)
}

fn write_dataclass<'py>(to: &mut Encoder<'_, 'py>, value: &Bound<'py, PyAny>, class: &Class, index: usize) -> Done {
    let mark = to.writer.record(index as u32, class.fingerprint, class.names.len() as u32 + 1);
    for name in &class.names {
        write_attribute(to, stored_attribute(value, name.bind(to.py))?, name)?;
    }
    let dict = stored_attribute(value, intern!(to.py, "__dict__"))?;
    write_rest(to, dict, class)?;
    to.writer.close(mark);
    Ok(())
}

fn write_named_tuple<'py>(to: &mut Encoder<'_, 'py>, value: &Bound<'py, PyAny>, class: &Class, index: usize) -> Done {
    let items = value.cast::<PyTuple>().map_err(PyErr::from)?;
    if items.len() != class.names.len() {
        return refuse("a named tuple with another number of items than its class");
    }
    let mark = to.writer.record(index as u32, class.fingerprint, items.len() as u32 + 1);
    for (place, item) in items.iter().enumerate() {
        step(to.value(&item), || format!(".{}", class.names[place]))?;
    }
    let dict = stored_attribute(value, intern!(to.py, "__dict__"))?;
    write_rest(to, dict, class)?;
    to.writer.close(mark);
    Ok(())
}

fn write_model<'py>(to: &mut Encoder<'_, 'py>, value: &Bound<'py, PyAny>, class: &Class, index: usize) -> Done {
    let py = to.py;
    let mark = to.writer.record(index as u32, class.fingerprint, class.names.len() as u32 + 4);
    let Some(dict) = stored_attribute(value, intern!(py, "__dict__"))? else { return refuse("a model without state") };
    let fields = dict.cast_exact::<PyDict>().map_err(PyErr::from)?.copy()?;
    for name in &class.names {
        write_attribute(to, fields.get_item(name)?, name)?;
    }
    write_rest(to, Some(fields.into_any()), class)?;
    for name in PYDANTIC_STATE {
        let state = stored_attribute(value, &PyString::intern(py, name))?.unwrap_or_else(|| py.None().into_bound(py));
        step(to.value(&state), || format!(".{name}"))?;
    }
    to.writer.close(mark);
    Ok(())
}

/// What a Pydantic model holds besides its fields, in the order in which it is stored.
const PYDANTIC_STATE: [&str; 3] = ["__pydantic_extra__", "__pydantic_fields_set__", "__pydantic_private__"];

fn write_member<'py>(to: &mut Encoder<'_, 'py>, value: &Bound<'py, PyAny>, class: &Class, index: usize) -> Done {
    let mark = to.writer.record(index as u32, class.fingerprint, 1);
    let name = if class.form == Form::Enum { "_name_" } else { "_value_" };
    let content = value.getattr(name)?;
    if !member(class, &content)?.is(value) {
        return refuse("a member that its own Enum does not give back");
    }
    to.value(&content)?;
    to.writer.close(mark);
    Ok(())
}

/// The member of an Enum by its name, or of a Flag by its value.
fn member<'py>(class: &Class, content: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = content.py();
    let class_object = class.class.bind(py);
    if class.form == Form::Enum {
        let name = as_text(content)?;
        return class_object.getattr(intern!(py, "_member_map_"))?.get_item(name);
    }
    class_object.call1((content,))
}

fn write_attribute<'py>(to: &mut Encoder<'_, 'py>, value: Option<Bound<'py, PyAny>>, name: &Py<PyString>) -> Done {
    match value {
        Some(value) => step(to.value(&value), || format!(".{name}")),
        None => {
            to.writer.absent();
            Ok(())
        }
    }
}

/// Adds what an instance's `__dict__` holds besides the fields (what `__post_init__` or a cached property left there).
fn write_rest<'py>(to: &mut Encoder<'_, 'py>, dict: Option<Bound<'py, PyAny>>, class: &Class) -> Done {
    let Some(dict) = dict else {
        to.writer.none();
        return Ok(());
    };
    let rest = dict.cast_exact::<PyDict>().map_err(PyErr::from)?.copy()?;
    for name in &class.names {
        if rest.contains(name)? {
            rest.del_item(name)?;
        }
    }
    if rest.is_empty() {
        to.writer.none();
        return Ok(());
    }
    to.value(rest.as_any())
}

/// What an instance itself holds under a name, past any `__getattribute__` or `__getattr__` of its class.
fn stored_attribute<'py>(
    value: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = value.py();
    // SAFETY: two live objects, the second a str; the result is a new reference, or null with an exception set.
    let found =
        unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyObject_GenericGetAttr(value.as_ptr(), name.as_ptr())) };
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_instance_of::<PyAttributeError>(py) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets what an instance itself holds under a name, past any `__setattr__` of its class (frozen dataclasses).
fn store_attribute(object: &Bound<'_, PyAny>, name: &Bound<'_, PyString>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    // SAFETY: three live objects, the second a str; a result other than 0 comes with an exception set.
    let status = unsafe { ffi::PyObject_GenericSetAttr(object.as_ptr(), name.as_ptr(), value.as_ptr()) };
    if status == 0 { Ok(()) } else { Err(PyErr::fetch(object.py())) }
}

/// Builds a record: `group` holds its field values.
#[inline(never)]
pub(super) fn build<'py>(
    from: &mut Decoder<'_, 'py>,
    index: u64,
    fingerprint: u64,
    group: Group,
) -> PyResult<Bound<'py, PyAny>> {
    from.look_down()?;
    let Some(schema) = from.schema else { return Err(from.corrupt(UNNAMED)) };
    let place = usize::try_from(index).unwrap_or(usize::MAX);
    let Some(class) = schema.at(from.py, place, fingerprint)? else {
        return Err(from.corrupt("a record of a class that is not the one that the annotation names now"));
    };
    let more = match class.form {
        Form::Dataclass | Form::NamedTuple => class.names.len() + 1,
        Form::Model => class.names.len() + 1 + PYDANTIC_STATE.len(),
        Form::Enum | Form::Flag => 1,
    };
    if group.len != more {
        return Err(from.corrupt("a record with another number of fields than its class"));
    }
    let object = match class.form {
        Form::Dataclass => read_dataclass(from, class),
        Form::NamedTuple => read_named_tuple(from, class),
        Form::Model => read_model(from, class),
        Form::Enum | Form::Flag => {
            let content = from.value()?;
            let found = member(class, &content)?;
            if !found.get_type().is(&class.class) {
                return Err(from.corrupt("no member of its Enum"));
            }
            Ok(found)
        }
    }?;
    from.close(group)?;
    Ok(object)
}

/// A new instance without `__init__`, by `object.__new__` or `tuple.__new__`.
fn bare<'py>(
    class: &Class,
    base: &Bound<'py, PyType>,
    items: Option<Bound<'py, PyTuple>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = base.py();
    let new = base.getattr(intern!(py, "__new__"))?;
    match items {
        Some(items) => new.call1((&class.class, items)),
        None => new.call1((&class.class,)),
    }
}

fn read_dataclass<'py>(from: &mut Decoder<'_, 'py>, class: &Class) -> PyResult<Bound<'py, PyAny>> {
    let object = bare(class, &from.py.get_type::<PyAny>(), None)?;
    for name in &class.names {
        if let Some(value) = from.field()? {
            store_attribute(&object, name.bind(from.py), &value)?;
        }
    }
    read_rest(from, &object)?;
    Ok(object)
}

fn read_named_tuple<'py>(from: &mut Decoder<'_, 'py>, class: &Class) -> PyResult<Bound<'py, PyAny>> {
    let items = class.names.iter().map(|_| from.value()).collect::<PyResult<Vec<_>>>()?;
    let items = PyTuple::new(from.py, items)?;
    let object = bare(class, &from.py.get_type::<PyTuple>(), Some(items))?;
    read_rest(from, &object)?;
    Ok(object)
}

fn read_model<'py>(from: &mut Decoder<'_, 'py>, class: &Class) -> PyResult<Bound<'py, PyAny>> {
    let py = from.py;
    let object = bare(class, &py.get_type::<PyAny>(), None)?;
    let fields = PyDict::new(py);
    for name in &class.names {
        if let Some(value) = from.field()? {
            fields.set_item(name, value)?;
        }
    }
    let rest = from.value()?;
    if !rest.is_none() {
        fields.update(as_dict(&rest)?.as_mapping())?;
    }
    store_attribute(&object, intern!(py, "__dict__"), fields.as_any())?;
    for name in PYDANTIC_STATE {
        let state = from.value()?;
        let expected = match name {
            "__pydantic_fields_set__" => state.is_exact_instance_of::<pyo3::types::PySet>(),
            _ => state.is_none() || state.is_exact_instance_of::<PyDict>(),
        };
        if !expected {
            return Err(from.corrupt(format!("a model whose {name} is of another type")));
        }
        let name = PyString::intern(py, name);
        // A RootModel has None in its class instead of a slot: setting it would show in the instance's __dict__.
        if !stored_attribute(&object, &name)?.is_some_and(|there| there.is(&state)) {
            store_attribute(&object, &name, &state)?;
        }
    }
    Ok(object)
}

fn read_rest<'py>(from: &mut Decoder<'_, 'py>, object: &Bound<'py, PyAny>) -> PyResult<()> {
    let rest = from.value()?;
    if rest.is_none() {
        return Ok(());
    }
    for (name, value) in as_dict(&rest)?.iter() {
        store_attribute(object, &as_text(&name)?, &value)?;
    }
    Ok(())
}

/// The reason for a value of a class that nobody declared.
pub(super) fn advice(value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> PyResult<String> {
    if let Ok(class) = value.cast::<PyType>() {
        return Ok(format!("a class, {}, cannot be stored; return its name, or an instance", type_name(class)));
    }
    let name = type_name(class);
    let has = |attribute: &str| class.hasattr(attribute);
    let what = if has("__dataclass_fields__")? {
        "dataclass"
    } else if has("__pydantic_fields__")? {
        "Pydantic model"
    } else if has("_member_map_")? {
        "Enum"
    } else if has("_fields")? && value.is_instance_of::<PyTuple>() {
        "named tuple"
    } else {
        return Ok(format!("a value of type {name} cannot be stored; register_value({name}, …) can say how"));
    };
    Ok(format!("{name} is a {what} that the return annotation does not name; name it there, or use register_value"))
}
