//! `Key`, and the functions that make one from a value or from raw JSON text.

use crate::attached::Attached;
use crate::document::{Draft, Holes};
use crate::released::{WORK_FROM, released};
use crate::{document, errors};
use infercache_core::document::Writer;
use infercache_core::entry::KeyBytes;
use infercache_core::error::Error;
use infercache_core::key::{Scope, from_text, to_text};
use infercache_core::limits::KEY_BYTES;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyString, PyType};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The key of a question to a model: 32 bytes. Its text form is `ic1:` and 64 hexadecimal digits.
///
/// Made by `infercache.key`, or from a text form or 32 bytes. Keys are equal, sorted and hashed by their bytes, which the key
/// of a tensor on a device waits for when they are first asked for.
#[pyclass(frozen, module = "infercache", freelist = 64)]
pub struct Key {
    state: State,
    /// What it was made in; a key read from its text has none.
    pub scope: Option<Arc<Scope>>,
}

#[derive(Clone)]
enum State {
    Known(KeyBytes),
    Open(Arc<Open>),
}

/// A key whose bytes nobody has asked for; shared by its copies.
struct Open {
    bytes: OnceLock<KeyBytes>,
    /// What the bytes are made from, until they are. Locked only to look: never while Python code runs.
    draft: Mutex<Option<Arc<Draft>>>,
}

impl Key {
    /// A key and the scope that it was made in.
    #[inline]
    pub fn new(bytes: KeyBytes, scope: Arc<Scope>) -> Key {
        Key::known(bytes, Some(scope))
    }

    #[inline]
    fn known(bytes: KeyBytes, scope: Option<Arc<Scope>>) -> Key {
        Key { state: State::Known(bytes), scope }
    }

    /// A key of no question, for who needs an instance.
    pub fn empty() -> Key {
        Key::known([0; KEY_BYTES], None)
    }

    /// The key's bytes; waits for the digests of tensors on a device.
    #[inline]
    pub fn bytes(&self, py: Python<'_>) -> PyResult<&KeyBytes> {
        match &self.state {
            State::Known(bytes) => Ok(bytes),
            State::Open(open) => open.bytes(py, self.scope.as_deref()),
        }
    }
}

impl Open {
    #[cold]
    #[inline(never)]
    fn bytes(&self, py: Python<'_>, scope: Option<&Scope>) -> PyResult<&KeyBytes> {
        // Whoever holds the interpreter and finds no draft finds the bytes. Several threads may find one at once: each joins
        // the same digests, which are waited for once, and hashes them.
        let draft = self.draft.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((draft, scope)) = draft.zip(scope) {
            let bytes = of_document(py, scope, &draft.whole(py)?);
            let _ = self.bytes.set(bytes);
            let done = self.draft.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(done); // outside the lock
        }
        self.bytes.get().ok_or_else(|| PyRuntimeError::new_err("a key without bytes"))
    }
}

/// What a question's document gave: its key, or what the key will be made from.
pub enum Formed {
    /// The key.
    Known(KeyBytes),
    /// The document has digests that a device computes.
    Open(Box<Draft>),
}

impl Formed {
    /// Hashes a document, unless digests are missing in it, which are begun.
    #[inline]
    pub fn of(py: Python<'_>, scope: &Scope, document: &[u8], holes: Holes) -> PyResult<Formed> {
        if holes.is_empty() {
            return Ok(Formed::Known(of_document(py, scope, document)));
        }
        Formed::open(py, document, holes)
    }

    #[cold]
    #[inline(never)]
    fn open(py: Python<'_>, document: &[u8], holes: Holes) -> PyResult<Formed> {
        Ok(Formed::Open(Box::new(Draft::begin(py, document, holes)?)))
    }

    /// The key's bytes, for who needs them at once.
    #[inline]
    pub fn bytes(py: Python<'_>, scope: &Scope, document: &[u8], holes: Holes) -> PyResult<KeyBytes> {
        if holes.is_empty() { Ok(of_document(py, scope, document)) } else { joined(py, scope, document, holes) }
    }

    /// The key, which waits for nothing before its bytes are asked for.
    #[inline]
    pub fn key(self, scope: Arc<Scope>) -> Key {
        match self {
            Formed::Known(bytes) => Key::new(bytes, scope),
            Formed::Open(draft) => {
                let open = Open { bytes: OnceLock::new(), draft: Mutex::new(Some(Arc::new(*draft))) };
                Key { state: State::Open(Arc::new(open)), scope: Some(scope) }
            }
        }
    }
}

#[pymethods]
impl Key {
    #[new]
    #[pyo3(signature = (text, /))]
    fn from_python(py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Key> {
        if let Ok(key) = text.cast_exact::<Key>() {
            let key = key.get();
            return Ok(Key { state: key.state.clone(), scope: key.scope.clone() });
        }
        let invalid = |reason: String| errors::to_python(py, &Error::InvalidArgument { reason });
        if let Ok(bytes) = text.cast::<PyBytes>() {
            let bytes = bytes.as_bytes();
            let length = bytes.len();
            let bytes = bytes.try_into().map_err(|_| invalid(format!("a key has {KEY_BYTES} bytes, not {length}")))?;
            return Ok(Key::known(bytes, None));
        }
        let Ok(text) = text.cast::<PyString>() else {
            let kind = document::type_name(text);
            return Err(PyTypeError::new_err(format!(
                "a key is made from its text form or {KEY_BYTES} bytes, not {kind}"
            )));
        };
        let text = text.to_str().map_err(|_| invalid("the text form of a key is ASCII".to_owned()))?;
        let bytes = from_text(text).map_err(|error| errors::to_python(py, &error))?;
        Ok(Key::known(bytes, None))
    }

    /// The `infercache.gpu.digests.Digests` that the key's bytes wait for; None if they are there.
    fn _digests(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let State::Open(open) = &self.state else { return None };
        let draft = open.draft.lock().unwrap_or_else(PoisonError::into_inner).clone();
        draft.map(|draft| draft.digests(py))
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, self.bytes(py)?))
    }

    fn __str__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(to_text(self.bytes(py)?))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("Key('{}')", to_text(self.bytes(py)?)))
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<u64> {
        // The bytes are a hash already.
        Ok(u64::from_le_bytes(self.bytes(py)?[..8].try_into().expect("eight of 32 bytes")))
    }

    fn __richcmp__(&self, other: &Bound<'_, PyAny>, operation: pyo3::basic::CompareOp) -> PyResult<Py<PyAny>> {
        let py = other.py();
        let Ok(other) = other.cast_exact::<Key>() else { return Ok(py.NotImplemented()) };
        let order = self.bytes(py)?.cmp(other.get().bytes(py)?);
        Ok(pyo3::types::PyBool::new(py, operation.matches(order)).to_owned().into_any().unbind())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyType>, (String,))> {
        Ok((py.get_type::<Key>(), (to_text(self.bytes(py)?),)))
    }

    fn __copy__(slf: Py<Key>) -> Py<Key> {
        slf
    }

    fn __deepcopy__(slf: Py<Key>, _memo: &Bound<'_, PyAny>) -> Py<Key> {
        slf
    }
}

/// Scopes that a thread remembers: more than a process serves models, and bounded where versions come and go.
const MAX_SCOPES: usize = 1024;

/// The scopes of one thread by their material: the fields with their lengths, and the secret.
#[derive(Default)]
struct Scopes {
    material: Vec<u8>,
    known: HashMap<Box<[u8]>, Arc<Scope>>,
    /// The one asked for last, which is nearly always the one asked for next.
    last: Option<(Box<[u8]>, Arc<Scope>)>,
}

thread_local! {
    static SCOPES: RefCell<Scopes> = RefCell::default();
}

impl Scopes {
    fn find(&mut self, fields: [&str; 4], secret: Option<&[u8; KEY_BYTES]>) -> Result<Arc<Scope>, Error> {
        self.material.clear();
        for field in fields {
            self.material.extend_from_slice(&(field.len() as u64).to_le_bytes());
            self.material.extend_from_slice(field.as_bytes());
        }
        self.material.extend_from_slice(secret.map_or(&[], |secret| secret));
        if let Some((material, scope)) = &self.last
            && **material == *self.material
        {
            return Ok(scope.clone());
        }
        let scope = match self.known.get(self.material.as_slice()) {
            Some(scope) => scope.clone(),
            None => {
                let [namespace, model, version, operation] = fields;
                let scope = Arc::new(Scope::new(namespace, model, version, operation, secret)?);
                if self.known.len() >= MAX_SCOPES {
                    self.known.clear();
                }
                self.known.insert(self.material.as_slice().into(), scope.clone());
                scope
            }
        };
        self.last = Some((self.material.as_slice().into(), scope.clone()));
        Ok(scope)
    }
}

/// The scope of these fields; computed once and remembered.
pub fn scope(fields: [&str; 4], secret: Option<&[u8; KEY_BYTES]>) -> Result<Arc<Scope>, Error> {
    SCOPES.with_borrow_mut(|scopes| scopes.find(fields, secret))
}

/// The key of a document in a scope; a long one is hashed without the interpreter.
#[inline]
pub fn of_document(py: Python<'_>, scope: &Scope, document: &[u8]) -> [u8; KEY_BYTES] {
    if document.len() < WORK_FROM { scope.key(document) } else { of_long_document(py, scope, document) }
}

#[cold]
#[inline(never)]
fn of_long_document(py: Python<'_>, scope: &Scope, document: &[u8]) -> [u8; KEY_BYTES] {
    released(py, || scope.key(document))
}

#[cold]
#[inline(never)]
fn joined(py: Python<'_>, scope: &Scope, document: &[u8], holes: Holes) -> PyResult<KeyBytes> {
    Ok(of_document(py, scope, &Draft::begin(py, document, holes)?.whole(py)?))
}

/// The scope of a call's fields, whichever thread made it. Programs name the same model with the same text objects again and again, so the
/// objects of the last call are remembered: texts and bytes never change, so the same objects mean the same scope.
struct Last {
    fields: [Option<Py<PyAny>>; 4],
    secret: Option<Py<PyAny>>,
    scope: Arc<Scope>,
}

static LAST: Attached<Option<Last>> = Attached::new(None);

impl Last {
    fn is_of(&self, fields: [&Given<'_, '_>; 4], secret: Option<&Bound<'_, PyAny>>) -> bool {
        let address = |object: &Option<Py<PyAny>>| object.as_ref().map(Py::as_ptr);
        self.fields.iter().zip(fields).all(|(last, given)| address(last) == given.address())
            && address(&self.secret) == secret.map(|secret| secret.as_ptr())
    }
}

/// The scope of the fields that Python gave.
#[inline]
fn scope_of<'py>(
    py: Python<'py>,
    fields: [&Given<'_, 'py>; 4],
    secret: Option<&Bound<'py, PyAny>>,
) -> PyResult<Arc<Scope>> {
    let same = |last: &mut Option<Last>| {
        last.as_ref().filter(|last| last.is_of(fields, secret)).map(|last| last.scope.clone())
    };
    match LAST.with(py, same) {
        Some(scope) => Ok(scope),
        None => scope_of_others(py, fields, secret),
    }
}

#[cold]
#[inline(never)]
fn scope_of_others<'py>(
    py: Python<'py>,
    fields: [&Given<'_, 'py>; 4],
    secret: Option<&Bound<'py, PyAny>>,
) -> PyResult<Arc<Scope>> {
    let scope = derived(py, fields, secret)?;
    // A secret in a bytearray may change; and a subclass of bytes might.
    if secret.is_none_or(|secret| secret.is_exact_instance_of::<PyBytes>()) {
        let last = Last {
            fields: fields.map(|given| given.object().map(|object| object.to_owned().unbind())),
            secret: secret.map(|secret| secret.clone().unbind()),
            scope: scope.clone(),
        };
        let before = LAST.with(py, |kept| kept.replace(last));
        drop(before); // outside: the last reference to a text of a subclass runs Python code
    }
    Ok(scope)
}

fn derived<'py>(
    py: Python<'py>,
    [namespace, model, version, operation]: [&Given<'_, 'py>; 4],
    secret: Option<&Bound<'py, PyAny>>,
) -> PyResult<Arc<Scope>> {
    let fields = [
        namespace.text("namespace")?.unwrap_or("default"),
        model.text("model")?.ok_or_else(|| missing("model"))?,
        version.text("version")?.ok_or_else(|| missing("version"))?,
        operation.text("operation")?.unwrap_or(""),
    ];
    let secret = secret.map(secret_bytes).transpose()?;
    scope(fields, secret.as_ref()).map_err(|error| errors::to_python(py, &error))
}

#[cold]
fn missing(name: &str) -> PyErr {
    let why = if name == "model" {
        "two models must never share an answer, so each key names its model"
    } else {
        "a new version of a model must never serve the answers of the old one, so each key names the version"
    };
    PyTypeError::new_err(format!("{name} is missing and has no default: {why}; pass {name}=\"…\""))
}

/// The 32 bytes of a deployment's secret.
pub fn secret_bytes(secret: &Bound<'_, PyAny>) -> PyResult<[u8; KEY_BYTES]> {
    let bytes: PyBackedBytes = secret
        .extract()
        .map_err(|_| PyTypeError::new_err(format!("secret must be {KEY_BYTES} bytes, or None for keys without one")))?;
    <[u8; KEY_BYTES]>::try_from(&bytes[..]).map_err(|_| {
        let reason = format!(
            "secret must have {KEY_BYTES} bytes, not {}; secrets.token_bytes({KEY_BYTES}) makes one",
            bytes.len()
        );
        errors::to_python(secret.py(), &Error::InvalidArgument { reason })
    })
}

/// A scope field as Python gave it, or left it out. `None` is given, and refused: a tenant that is `None` by mistake must
/// not become the default one.
enum Given<'a, 'py> {
    LeftOut,
    As(Borrowed<'a, 'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Given<'a, 'py> {
    type Error = PyErr;

    fn extract(given: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Given::As(given))
    }
}

impl<'a, 'py> Given<'a, 'py> {
    fn object(&self) -> Option<Borrowed<'a, 'py, PyAny>> {
        match self {
            Given::LeftOut => None,
            Given::As(object) => Some(*object),
        }
    }

    #[inline]
    fn address(&self) -> Option<*mut pyo3::ffi::PyObject> {
        self.object().map(|object| object.as_ptr())
    }

    fn text(&self, name: &str) -> PyResult<Option<&str>> {
        let Given::As(field) = self else { return Ok(None) };
        let Ok(text) = field.cast::<PyString>() else {
            let kind = document::type_name(field);
            return Err(PyTypeError::new_err(format!("{name} must be text (str), not {kind}")));
        };
        // SAFETY: a str object, which `field` borrows for longer than the result is used.
        let text = unsafe { document::utf8_of(field.py(), text.as_ptr()) };
        text.map(Some).map_err(|()| {
            let reason = format!("{name} contains a lone surrogate, which has no UTF-8");
            errors::to_python(field.py(), &Error::InvalidArgument { reason })
        })
    }
}

/// The key of the document that `fill` writes, in the scope of these fields.
#[inline]
fn form<'py>(
    py: Python<'py>,
    fields: [&Given<'_, 'py>; 4],
    secret: Option<&Bound<'py, PyAny>>,
    fill: impl FnOnce(&mut Writer) -> PyResult<Holes>,
) -> PyResult<Key> {
    let scope = scope_of(py, fields, secret)?;
    let formed = document::with_document(py, fill, |document, holes| Formed::of(py, &scope, document, holes))?;
    Ok(formed.key(scope))
}

/// The key of a value for a model: equal in every process and on every machine (docs/key-specification.md).
#[pyfunction]
#[pyo3(signature = (value, /, *, model=Given::LeftOut, version=Given::LeftOut, namespace=Given::LeftOut, operation=Given::LeftOut, secret=None))]
#[pyo3(text_signature = "(value, /, *, model, version, namespace='default', operation='', secret=None)")]
fn key<'py>(
    py: Python<'py>,
    value: &Bound<'py, PyAny>,
    model: Given<'_, 'py>,
    version: Given<'_, 'py>,
    namespace: Given<'_, 'py>,
    operation: Given<'_, 'py>,
    secret: Option<&Bound<'py, PyAny>>,
) -> PyResult<Key> {
    form(py, [&namespace, &model, &version, &operation], secret, |out| document::write(py, value, out))
}

/// The key of raw JSON text (bytes or str): that of the value it parses to, without making the value.
#[pyfunction]
#[pyo3(signature = (text, /, *, model=Given::LeftOut, version=Given::LeftOut, namespace=Given::LeftOut, operation=Given::LeftOut, secret=None))]
#[pyo3(text_signature = "(text, /, *, model, version, namespace='default', operation='', secret=None)")]
fn key_from_json<'py>(
    py: Python<'py>,
    text: &Bound<'py, PyAny>,
    model: Given<'_, 'py>,
    version: Given<'_, 'py>,
    namespace: Given<'_, 'py>,
    operation: Given<'_, 'py>,
    secret: Option<&Bound<'py, PyAny>>,
) -> PyResult<Key> {
    form(py, [&namespace, &model, &version, &operation], secret, |out| document::write_json(py, text, out))
}

/// Whether an object is a key whose bytes wait for a device.
#[pyfunction]
#[pyo3(signature = (key, /))]
fn _is_open(key: &Bound<'_, PyAny>) -> bool {
    let Ok(key) = key.cast_exact::<Key>() else { return false };
    matches!(&key.get().state, State::Open(open) if open.bytes.get().is_none())
}

/// The 32 bytes of the scope of these fields as hexadecimal digits, for a person; only without a secret.
#[pyfunction]
#[pyo3(signature = (model, version, namespace, operation))]
fn _scope_hex(py: Python<'_>, model: &str, version: &str, namespace: &str, operation: &str) -> PyResult<String> {
    let scope = scope([namespace, model, version, operation], None).map_err(|error| errors::to_python(py, &error))?;
    let bytes = scope.public_bytes().copied().unwrap_or_default();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Adds this module's class and functions.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Key>()?;
    module.add_function(wrap_pyfunction!(key, module)?)?;
    module.add_function(wrap_pyfunction!(key_from_json, module)?)?;
    module.add_function(wrap_pyfunction!(_is_open, module)?)?;
    module.add_function(wrap_pyfunction!(_scope_hex, module)?)
}
