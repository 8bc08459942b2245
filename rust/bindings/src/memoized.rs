//! A decorated function: hits are answered without a Python frame.
//!
//! A call writes its arguments' document, hashes it, looks the entry up and decodes it. Only where that does not end in
//! an answer is Python called: `_miss` and `_revalidate` of the subclass in `infercache/memoize.py`, with the key that was
//! formed here, so that nothing is done twice.

mod batch;
mod bound;
mod call;

use crate::arguments::Arguments;
use crate::document::Holes;
use crate::flight::{self, Entry, Terms};
use crate::key::{Formed, Key};
use crate::lazy::intern;
use crate::store::Store;
use crate::{document, errors};
use call::{Callable, Next, callable_type};
use infercache_core::cache::{Cache, Found};
use infercache_core::entry::{EntryRef, KeyBytes};
use infercache_core::key::Scope;
use infercache_core::stats::Count;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Different models and versions of one function whose scopes are kept; a function that makes up more forgets them all.
const MOST_SCOPES: usize = 256;

/// A model's name or version: text, or a callable of the bound arguments.
enum Name {
    Text(String),
    Callable(Py<PyAny>),
}

impl Name {
    fn new(name: &Bound<'_, PyAny>) -> PyResult<Name> {
        match name.cast::<PyString>() {
            Ok(text) => Ok(Name::Text(text.to_str()?.to_owned())),
            Err(_) => Ok(Name::Callable(name.clone().unbind())),
        }
    }

    fn of(&self, py: Python<'_>, what: &str, arguments: &Bound<'_, PyDict>) -> PyResult<String> {
        match self {
            Name::Text(text) => Ok(text.clone()),
            Name::Callable(callable) => {
                let name = callable.bind(py).call((), Some(arguments))?;
                let wrong = match name.cast::<PyString>().map(|text| text.to_str()) {
                    Ok(Ok(text)) => return Ok(text.to_owned()),
                    Ok(Err(_)) => "contains a lone surrogate, which has no UTF-8",
                    Err(_) => "is no text",
                };
                Err(invalid(py, format!("the callable given as {what} returned {}, which {wrong}", shown(&name))))
            }
        }
    }
}

/// A value for an error's text: in one line and not long, whatever its `__repr__` does.
fn shown(value: &Bound<'_, PyAny>) -> String {
    match value.repr() {
        Ok(text) => crate::document::shortened(&text.to_string_lossy()),
        Err(_) => format!("a {}", crate::document::type_name(value)),
    }
}

fn invalid(py: Python<'_>, reason: String) -> PyErr {
    errors::to_python(py, &infercache_core::error::Error::InvalidArgument { reason })
}

/// What a function's calls have in common, single or batch.
struct Common {
    store: Py<Store>,
    cache: Arc<Cache>,
    arguments: Py<Arguments>,
    model: Name,
    version: Name,
    operation: String,
    document: Option<Py<PyAny>>,
    terms: Py<Terms>,
    /// The scope, where model and version are text.
    fixed: Option<Arc<Scope>>,
    scopes: Mutex<HashMap<(String, String), Arc<Scope>>>,
    /// For how many milliseconds after its life an entry is served while it is computed anew.
    revalidate: Option<u64>,
    /// What attribute access binds it to: see `bound`.
    binds: u8,
}

/// The parts of a decorated function that the Python side gives.
struct Parts<'py> {
    store: Bound<'py, Store>,
    arguments: Py<Arguments>,
    model: Bound<'py, PyAny>,
    version: Bound<'py, PyAny>,
    operation: String,
    document: Option<Py<PyAny>>,
    terms: Py<Terms>,
    revalidate: Option<u64>,
    binds: u8,
}

// Not derived: PyO3 would look the names up at first use in a way that a fork can catch half-done (see `lazy`).
impl<'a, 'py> FromPyObject<'a, 'py> for Parts<'py> {
    type Error = PyErr;

    fn extract(parts: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let part = |name: &str| parts.get_item(name);
        Ok(Parts {
            store: part("store")?.extract()?,
            arguments: part("arguments")?.extract()?,
            model: part("model")?,
            version: part("version")?,
            operation: part("operation")?.extract()?,
            document: part("document")?.extract()?,
            terms: part("terms")?.extract()?,
            revalidate: part("revalidate")?.extract()?,
            binds: part("binds")?.extract()?,
        })
    }
}

impl Common {
    fn new(py: Python<'_>, parts: Parts<'_>) -> PyResult<Common> {
        let mut common = Common {
            cache: parts.store.get().opened()?.cache.clone(),
            arguments: parts.arguments,
            model: Name::new(&parts.model)?,
            version: Name::new(&parts.version)?,
            operation: parts.operation,
            document: parts.document,
            terms: parts.terms,
            fixed: None,
            scopes: Mutex::default(),
            revalidate: parts.revalidate,
            binds: parts.binds,
            store: parts.store.unbind(),
        };
        if let (Name::Text(model), Name::Text(version)) = (&common.model, &common.version) {
            common.fixed = Some(common.derive(py, model, version)?);
        }
        Ok(common)
    }

    fn derive(&self, py: Python<'_>, model: &str, version: &str) -> PyResult<Arc<Scope>> {
        let opened = self.store.get().opened()?;
        match Scope::new(&opened.namespace, model, version, &self.operation, opened.secret.as_ref()) {
            Ok(scope) => Ok(Arc::new(scope)),
            Err(error) => Err(errors::to_python(py, &error)),
        }
    }

    /// The scope of a call; `arguments` binds them, where that is needed.
    fn scope<'py>(
        &self,
        py: Python<'py>,
        arguments: impl FnOnce() -> PyResult<Bound<'py, PyDict>>,
    ) -> PyResult<Arc<Scope>> {
        if let Some(scope) = &self.fixed {
            return Ok(scope.clone());
        }
        let arguments = arguments()?;
        let name = (self.model.of(py, "model", &arguments)?, self.version.of(py, "version", &arguments)?);
        if let Some(scope) = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(scope.clone());
        }
        let scope = self.derive(py, &name.0, &name.1)?;
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if scopes.len() >= MOST_SCOPES {
            scopes.clear();
        }
        scopes.insert(name, scope.clone());
        Ok(scope)
    }

    /// What `finish` makes of the call's document, and its scope.
    #[inline]
    fn form<'py, R>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        finish: impl Fn(Python<'py>, &Scope, &[u8], Holes) -> PyResult<R>,
    ) -> PyResult<(R, Arc<Scope>)> {
        let arguments = self.arguments.get();
        let scope = self.scope(py, || arguments.bind(py, args, kwargs))?;
        let hash = |bytes: &[u8], holes| finish(py, &scope, bytes, holes);
        let formed = match &self.document {
            None => document::with_document(py, |out| arguments.write(py, args, kwargs, out), hash)?,
            Some(function) => {
                let value = function.bind(py).call((), Some(&arguments.bind(py, args, kwargs)?))?;
                document::with_document(py, |out| document::write(py, &value, out), hash)?
            }
        };
        Ok((formed, scope))
    }

    /// Whether the call's model or version is not the key's any more: somebody has put another in its place.
    fn is_renamed(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        key: &Key,
    ) -> PyResult<bool> {
        let now = self.scope(py, || self.arguments.get().bind(py, args, kwargs))?;
        let same = |then: &Arc<Scope>| then.model() == now.model() && then.version() == now.version();
        Ok(!key.scope.as_ref().is_some_and(same))
    }

    /// A stored value that does not decode is no answer: it goes, and the call misses.
    fn is_corrupt(&self, py: Python<'_>, error: &PyErr) -> PyResult<bool> {
        Ok(error.is_instance(py, errors::class(py, "CorruptValue")?.as_any()))
    }

    fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        for name in [&self.model, &self.version] {
            if let Name::Callable(callable) = name {
                visit.call(callable)?;
            }
        }
        visit.call(&self.document)?;
        visit.call(&self.store)
    }
}

/// What a look-up for a call found.
enum Looked<'py> {
    Fresh(Bound<'py, PyAny>),
    Stale(Bound<'py, PyAny>, Key),
    Miss(Key),
}

/// Key, value, and whether that is stale; see `Memoized::_look`.
type Parted<'py> = (Option<Key>, Option<Bound<'py, PyAny>>, Option<bool>);

impl<'py> Looked<'py> {
    /// As `_look` gives it.
    fn into_parts(self) -> Parted<'py> {
        match self {
            Looked::Fresh(value) => (None, Some(value), Some(false)),
            Looked::Stale(value, key) => (Some(key), Some(value), Some(true)),
            Looked::Miss(key) => (Some(key), None, Some(false)),
        }
    }
}

/// A decorated function but for its being callable: `Memoized` in Python is the class below it that is.
#[pyclass(frozen, subclass, module = "infercache._core", name = "_Memoized")]
pub struct Memoized(Common);

impl Callable for Memoized {
    fn next<'py>(
        slf: &Bound<'py, Self>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Next<'py>> {
        let py = slf.py();
        match slf.get().look(py, args, kwargs)? {
            Looked::Fresh(value) => Ok(Next::Answer(value)),
            Looked::Stale(value, key) => {
                Ok(Next::Call(slf.getattr(intern!(py, "_stale"))?, (args, kwargs, key, value).into_pyobject(py)?))
            }
            Looked::Miss(key) => {
                Ok(Next::Call(slf.getattr(intern!(py, "_miss"))?, (args, kwargs, key).into_pyobject(py)?))
            }
        }
    }
}

impl Memoized {
    fn look<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Looked<'py>> {
        let (key, scope) = self.0.form(py, args, kwargs, Formed::bytes)?;
        self.look_at(py, key, scope)
    }

    fn look_at<'py>(&self, py: Python<'py>, key: KeyBytes, scope: Arc<Scope>) -> PyResult<Looked<'py>> {
        let common = &self.0;
        let (entry, stamp, stale): (EntryRef, u64, bool) = match common.revalidate {
            None => match common.cache.get(&key) {
                Some(entry) => {
                    let stamp = entry.stamp();
                    (entry, stamp, false)
                }
                None => return Ok(Looked::Miss(Key::new(key, scope))),
            },
            most => match common.cache.find(&key, most) {
                Found::Fresh(hit) => (hit.entry, hit.stamp.to_word(), false),
                Found::Stale(hit) => (hit.entry, hit.stamp.to_word(), true),
                Found::Miss => return Ok(Looked::Miss(Key::new(key, scope))),
            },
        };
        match common.terms.get().decode(py, &entry) {
            Ok(value) => {
                flight::used(py, stamp)?;
                Ok(if stale { Looked::Stale(value, Key::new(key, scope)) } else { Looked::Fresh(value) })
            }
            Err(error) if common.is_corrupt(py, &error)? => {
                common.cache.remove(&key);
                common.cache.recount_as_miss(&entry, Count::hit(stale));
                Ok(Looked::Miss(Key::new(key, scope)))
            }
            Err(error) => Err(error),
        }
    }
}

#[pymethods]
impl Memoized {
    #[new]
    fn new(py: Python<'_>, parts: Parts<'_>) -> PyResult<Memoized> {
        Ok(Memoized(Common::new(py, parts)?))
    }

    /// The look-up of a call by itself, which waits for no device: `(key, value, stale)`; without a key the value is
    /// fresh, with a key and without `stale` there is none, and where `stale` is None the key is yet to be looked up.
    fn _look<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Parted<'py>> {
        match self.0.form(py, args, kwargs, Formed::of)? {
            (Formed::Known(key), scope) => Ok(self.look_at(py, key, scope)?.into_parts()),
            (open, scope) => Ok((Some(open.key(scope)), None, None)),
        }
    }

    /// The same for a key that was formed before.
    fn _look_at<'py>(&self, py: Python<'py>, key: &Key) -> PyResult<Parted<'py>> {
        let scope = key.scope.clone().ok_or_else(|| invalid(py, "a key that no call has formed".to_owned()))?;
        Ok(self.look_at(py, *key.bytes(py)?, scope)?.into_parts())
    }

    /// The key of a call with these arguments.
    #[pyo3(signature = (*args, **kwargs))]
    fn key(&self, py: Python<'_>, args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Key> {
        let (formed, scope) = self.0.form(py, args, kwargs, Formed::of)?;
        Ok(formed.key(scope))
    }

    /// The entry that a call would be answered with, or None; counts nothing.
    fn _peek(&self, py: Python<'_>, key: &Key) -> PyResult<Option<Entry>> {
        peek(py, &self.0, key)
    }

    /// Whether a call's model or version is not the key's any more.
    #[pyo3(signature = (args, kwargs, key))]
    fn _renamed(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        key: &Key,
    ) -> PyResult<bool> {
        self.0.is_renamed(py, args, kwargs, key)
    }

    /// The arguments of a call by name, defaults applied.
    #[pyo3(signature = (args, kwargs))]
    fn _bind<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.0.arguments.get().bind(py, args, kwargs)
    }

    fn __get__<'py>(
        slf: Bound<'py, Self>,
        instance: Option<Bound<'py, PyAny>>,
        owner: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let kind = slf.get().0.binds;
        bound::bind(slf.into_any(), kind, instance, owner)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.0.traverse(&visit)
    }
}

fn peek(py: Python<'_>, common: &Common, key: &Key) -> PyResult<Option<Entry>> {
    let hit = match common.cache.peek(key.bytes(py)?) {
        Found::Fresh(hit) => hit,
        Found::Stale(hit) if common.revalidate.is_some_and(|most| hit.past < most || hit.past == 0) => hit,
        _ => return Ok(None),
    };
    Ok(Some(Entry { stamp: hit.stamp.to_word(), entry: hit.entry }))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Memoized", callable_type::<Memoized>(module.py(), c"infercache._core.Memoized")?)?;
    batch::register(module)?;
    bound::register(module)
}
