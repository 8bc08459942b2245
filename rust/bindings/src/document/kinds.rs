//! Which row of the key specification (section 2) a type belongs to.
//!
//! The rows are asked in the specification's order. What a type is decides, never what an instance claims to be
//! (`__class__`, `__instancecheck__`). Libraries are looked up in `sys.modules` and never imported: an object of a
//! library that nobody imported cannot exist.

use super::fault::Outcome;
use crate::attached::Attached;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{
    PyByteArray, PyBytes, PyDict, PyFloat, PyFrozenSet, PyInt, PyList, PyMappingProxy, PySet, PyString, PyTuple, PyType,
};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

/// A row of the specification, or why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An Enum member: the form of its `.value`.
    EnumMember,
    /// A NumPy scalar whose `.item()` is an ordinary object.
    NumpyScalar,
    /// A float of ml_dtypes: the form of `float(x)`.
    MlFloat,
    /// A subclass of str.
    Text,
    /// A subclass of int.
    Integer,
    /// A subclass of float.
    Float,
    /// A list or a subclass.
    List,
    /// A tuple or a subclass.
    Tuple,
    /// A dict or a subclass.
    Mapping,
    /// A mappingproxy.
    Proxy,
    /// A set, frozenset or a subclass.
    Set,
    /// bytes or a subclass.
    Bytes,
    /// bytearray or a subclass.
    ByteArray,
    /// NumPy's ndarray, memmap or matrix.
    Array,
    /// A tensor of another library.
    ForeignTensor,
    /// Something else that offers the buffer protocol: `$bytes` or a tensor, as its format and shape say.
    Buffer,
    /// A PIL image.
    Image,
    /// Exactly `datetime.datetime`.
    DateTime,
    /// Exactly `datetime.date`.
    Date,
    /// Exactly `datetime.time`.
    Time,
    /// A Decimal or a subclass.
    Decimal,
    /// A UUID or a subclass.
    Uuid,
    /// A dataclass instance.
    Dataclass,
    /// A Pydantic model instance.
    Model,
    /// None, for this reason.
    Refused(&'static str),
    /// None.
    Unsupported,
}

/// Types remembered; more than any program uses in its arguments, and bounded for one that makes types as it goes.
const MAX_TYPES: usize = 1024;

/// By the type's address, which the reference beside it keeps from being used again.
type Kinds = HashMap<usize, (Py<PyType>, Kind), BuildHasherDefault<DefaultHasher>>;

static KINDS: Attached<Kinds> = Attached::new(HashMap::with_hasher(BuildHasherDefault::new()));

/// The row of this value's type.
pub fn of(value: &Bound<'_, PyAny>) -> Outcome<Kind> {
    // SAFETY: every object has a type.
    let address = unsafe { ffi::Py_TYPE(value.as_ptr()) } as usize;
    if let Some(kind) = KINDS.with(value.py(), |kinds| kinds.get(&address).map(|known| known.1)) {
        return Ok(kind);
    }
    let kind = classify(value)?;
    if kind != Kind::Unsupported {
        // What fits no row today may be decorated with @dataclass tomorrow, so only found rows are remembered.
        let known = (value.get_type().unbind(), kind);
        let forgotten = KINDS.with(value.py(), |kinds| {
            let forgotten = if kinds.len() >= MAX_TYPES { std::mem::take(kinds) } else { Kinds::default() };
            (forgotten, kinds.insert(address, known))
        });
        drop(forgotten); // outside: the last reference to a type runs Python code
    }
    Ok(kind)
}

/// What `infercache` asks of a type, in the specification's order.
fn classify(value: &Bound<'_, PyAny>) -> Outcome<Kind> {
    let class = value.get_type();
    if value.is_instance_of::<PyType>() {
        return Ok(Kind::Refused("it is a class; pass an instance or its name"));
    }
    let dataclass = class.hasattr(crate::lazy::intern!(value.py(), "__dataclass_fields__"))?;
    let model = derives(&class, "pydantic", "BaseModel");
    let other = row(value, &class)?;
    Ok(match (other, dataclass, model) {
        (Some(kind), false, false) => kind,
        (None, true, false) => Kind::Dataclass,
        (None, false, true) => Kind::Model,
        (None, false, false) => Kind::Unsupported,
        _ => Kind::Refused(
            "it is a dataclass or Pydantic model and another kind of value at once; say with register_form which counts",
        ),
    })
}

/// The row, dataclasses and Pydantic models aside.
fn row(value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> Outcome<Option<Kind>> {
    if derives(class, "enum", "Enum") {
        return Ok(Some(Kind::EnumMember));
    }
    if let Some(kind) = numpy_scalar(class) {
        return Ok(Some(kind));
    }
    if let Some(kind) = builtin(value) {
        return Ok(Some(kind));
    }
    if let Some(kind) = tensor(value, class)? {
        return Ok(Some(kind));
    }
    if derives(class, "PIL.Image", "Image") {
        return Ok(Some(Kind::Image));
    }
    for (name, kind) in [("datetime", Kind::DateTime), ("date", Kind::Date), ("time", Kind::Time)] {
        if is(class, "datetime", name) {
            return Ok(Some(kind));
        }
        if derives(class, "datetime", name) {
            return Ok(Some(Kind::Refused(
                "a subclass of datetime, date or time may say more than its text; pass the plain type or use register_form",
            )));
        }
    }
    if derives(class, "decimal", "Decimal") {
        return Ok(Some(Kind::Decimal));
    }
    Ok(derives(class, "uuid", "UUID").then_some(Kind::Uuid))
}

fn builtin(value: &Bound<'_, PyAny>) -> Option<Kind> {
    Some(if value.is_instance_of::<PyString>() {
        Kind::Text
    } else if value.is_instance_of::<PyInt>() {
        Kind::Integer
    } else if value.is_instance_of::<PyFloat>() {
        Kind::Float
    } else if value.is_instance_of::<PyList>() {
        Kind::List
    } else if value.is_instance_of::<PyTuple>() {
        Kind::Tuple
    } else if value.is_instance_of::<PyDict>() {
        Kind::Mapping
    } else if value.is_exact_instance_of::<PyMappingProxy>() {
        Kind::Proxy
    } else if value.is_instance_of::<PySet>() || value.is_instance_of::<PyFrozenSet>() {
        Kind::Set
    } else if value.is_instance_of::<PyBytes>() {
        Kind::Bytes
    } else if value.is_instance_of::<PyByteArray>() {
        Kind::ByteArray
    } else {
        return None;
    })
}

/// Floats of ml_dtypes, which are NumPy scalars whose `.item()` is themselves.
const ML_FLOATS: [&str; 12] = [
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float6_e2m3fn",
    "float6_e3m2fn",
    "float4_e2m1fn",
];

fn numpy_scalar(class: &Bound<'_, PyType>) -> Option<Kind> {
    if ML_FLOATS.iter().any(|name| is(class, "ml_dtypes", name)) {
        return Some(Kind::MlFloat);
    }
    if !derives(class, "numpy", "generic") {
        return None;
    }
    let any = |names: &[&str]| names.iter().any(|name| derives(class, "numpy", name));
    // timedelta64 is a subclass of NumPy's signed integers, so it is asked for first.
    if any(&["timedelta64", "datetime64"]) {
        return Some(Kind::Refused("a NumPy date or duration has no form; convert it to datetime, text or an integer"));
    }
    if any(&["bool_", "integer", "float16", "float32", "float64", "str_", "bytes_"]) {
        return Some(Kind::NumpyScalar);
    }
    Some(Kind::Refused("this NumPy scalar type has no form; convert it to an ordinary number, text or bytes"))
}

fn tensor(value: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> Outcome<Option<Kind>> {
    if derives(class, "numpy", "ndarray") {
        let plain = ["ndarray", "memmap", "matrix"].iter().any(|name| is(class, "numpy", name));
        return Ok(Some(if plain {
            Kind::Array
        } else {
            Kind::Refused(
                "a subclass of ndarray may hold more than its elements (a mask, a unit); pass the plain array or use register_form",
            )
        }));
    }
    if derives(class, "torch", "Tensor") {
        let plain = is(class, "torch", "Tensor") || is(class, "torch.nn.parameter", "Parameter");
        return Ok(Some(if plain {
            Kind::ForeignTensor
        } else {
            Kind::Refused(
                "a subclass of torch.Tensor may hold more than its elements; pass the plain tensor or use register_form",
            )
        }));
    }
    if derives(class, "cupy", "ndarray") && !is(class, "cupy", "ndarray") {
        return Ok(Some(Kind::Refused(
            "a subclass of cupy.ndarray may hold more than its elements; pass the plain array or use register_form",
        )));
    }
    if class.hasattr(crate::lazy::intern!(value.py(), "__dlpack__"))? {
        return Ok(Some(Kind::ForeignTensor));
    }
    // SAFETY: any object may be asked.
    let buffer = unsafe { ffi::PyObject_CheckBuffer(value.as_ptr()) } != 0;
    Ok(buffer.then_some(Kind::Buffer))
}

/// The attribute of a module that somebody has imported already.
pub fn attribute<'py>(py: Python<'py>, module: &str, name: &str) -> Option<Bound<'py, PyAny>> {
    // `sys.modules` itself: PyImport_GetModule waits for a module that another thread is importing, and a child of a fork
    // for one that nobody imports any more.
    // SAFETY: gives a borrowed reference, or null without an exception.
    let modules = unsafe { Bound::from_borrowed_ptr_or_opt(py, ffi::PySys_GetObject(c"modules".as_ptr())) }?;
    let module = modules.cast_into::<PyDict>().ok()?.get_item(module).ok()??;
    module.getattr(name).ok() // a module that is still being imported may lack it
}

fn derives(class: &Bound<'_, PyType>, module: &str, name: &str) -> bool {
    attribute(class.py(), module, name).is_some_and(|base| {
        base.cast::<PyType>().is_ok_and(|base| {
            // SAFETY: both are types; this walks the real bases, whatever __subclasscheck__ says.
            unsafe { ffi::PyType_IsSubtype(class.as_type_ptr(), base.as_type_ptr()) != 0 }
        })
    })
}

fn is(class: &Bound<'_, PyType>, module: &str, name: &str) -> bool {
    attribute(class.py(), module, name).is_some_and(|other| other.is(class))
}
