//! An opened cache, and the keys that callers pass to it.

use crate::errors;
use crate::key::Key;
use infercache_core::cache::{Cache, Eviction};
use infercache_core::error::Error;
use infercache_core::fence::Target;
use infercache_core::key::Scope;
use infercache_core::scopes::ScopeId;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::sync::Arc;

/// An opened cache.
pub struct Opened {
    /// The core.
    pub cache: Arc<Cache>,
    /// Enters every key.
    pub namespace: String,
    /// Milliseconds of freshness where a caller says nothing.
    pub life: Option<u64>,
    /// The deployment's secret.
    pub secret: Option<[u8; 32]>,
    /// There is a shared tier to be asked what memory has not.
    pub tiered: bool,
}

/// The scope that was asked for last: keys of one function follow one another, and its tags need not be hashed each time.
#[derive(Default)]
pub struct LastScope(Option<(Arc<Scope>, ScopeId)>);

impl LastScope {
    /// The number of a key's implicit tags. A key that was read from its text knows no model, only the cache's namespace.
    pub fn id(&mut self, cache: &Cache, namespace: &str, key: &Key) -> Option<ScopeId> {
        let Some(scope) = &key.scope else { return cache.intern(namespace, None) };
        match &self.0 {
            Some((known, id)) if Arc::ptr_eq(known, scope) => Some(*id),
            _ => {
                let id = cache.intern(scope.namespace(), Some((scope.model(), scope.version())))?;
                self.0 = Some((scope.clone(), id));
                Some(id)
            }
        }
    }
}

impl Opened {
    /// The number of a key's implicit tags; see [`LastScope::id`].
    pub fn scope_id(&self, key: &Key) -> Option<ScopeId> {
        LastScope::default().id(&self.cache, &self.namespace, key)
    }

    /// The hash of a caller's tag.
    pub fn tag(&self, tag: &str) -> u64 {
        self.cache.tag(&self.namespace, Target::Tag(tag))
    }

    /// The hashes of a caller's tags.
    pub fn tags(&self, tags: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
        tags.try_iter()?.map(|tag| Ok(self.tag(tag?.cast::<PyString>()?.to_str()?))).collect()
    }
}

/// The `Key` that a caller passed, or an error that says what a key is.
#[inline]
pub fn key_argument<'a>(key: &'a Bound<'_, PyAny>) -> PyResult<&'a Key> {
    match key.cast_exact::<Key>() {
        Ok(key) => Ok(key.get()),
        Err(_) => Err(PyTypeError::new_err(format!(
            "a key is an infercache.Key, not {}: make one with cache.key(…), or Key(text) from its text form",
            key.get_type().name()?
        ))),
    }
}

/// What is given up first, by the name that `Cache(eviction=)` gives it.
pub fn eviction_named(py: Python<'_>, name: &str) -> PyResult<Eviction> {
    Eviction::named(name).ok_or_else(|| {
        let known = Eviction::NAMED.map(|(known, _)| format!("'{known}'")).join(" or ");
        errors::to_python(py, &Error::InvalidArgument { reason: format!("eviction='{name}': give {known}") })
    })
}

/// A seed that nobody outside can know: the standard library seeds its hash maps from the system.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}
