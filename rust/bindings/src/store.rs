//! The base class of `Cache`: look-ups and stores that need no Python frame.

use crate::errors;
use crate::flight;
use crate::key::{Key, secret_bytes};
use crate::released::{COPY_FROM, released_from};
use crate::value;
use infercache_core::cache::{Cache, Found, Hit, Options, Stored, Write};
use infercache_core::clock::Clock;
use infercache_core::entry::EntryRef;
use infercache_core::error::Error;
use infercache_core::fence::{FENCES, Fences, Judgement, Stamp, Target};
use infercache_core::scopes::ScopeId;
use infercache_core::stats::Count;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// Milliseconds that only the caller moves: for tests and simulators.
#[pyclass(frozen, module = "infercache._core")]
pub struct ManualClock(Arc<AtomicU64>);

#[pymethods]
impl ManualClock {
    /// A clock that stands at `seconds`.
    #[new]
    #[pyo3(signature = (seconds = 0.0))]
    fn new(py: Python<'_>, seconds: f64) -> PyResult<ManualClock> {
        Ok(ManualClock(Arc::new(AtomicU64::new(passed(py, seconds)?))))
    }

    /// Moves the clock on by `seconds`.
    fn advance(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        self.0.fetch_add(passed(py, seconds)?, Ordering::Relaxed);
        Ok(())
    }
}

/// The milliseconds of a clock that moves by `seconds`: forwards, and not for longer than a clock can count.
fn passed(py: Python<'_>, seconds: f64) -> PyResult<u64> {
    const MOST: f64 = 1e12; // thirty thousand years
    if (0.0..=MOST).contains(&seconds) {
        return Ok(milliseconds(seconds));
    }
    let reason = format!("seconds={seconds:?}: a clock moves forwards, by at most {MOST:?} seconds");
    Err(errors::to_python(py, &Error::InvalidArgument { reason }))
}

/// Seconds to whole milliseconds; the caller has checked that they are not negative.
pub fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

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
}

/// The native part of `infercache.Cache`.
#[pyclass(subclass, frozen, weakref, module = "infercache._core")]
pub struct Store(OnceLock<Opened>);

impl Store {
    /// The cache, once `_open` was called.
    #[inline]
    pub fn opened(&self) -> PyResult<&Opened> {
        self.0.get().ok_or_else(|| PyRuntimeError::new_err("the cache is not open: Cache.__init__ was not called"))
    }
}

impl Opened {
    /// The number of a key's implicit tags. A key that was read from its text knows no model.
    pub fn scope_id(&self, key: &Key) -> Option<ScopeId> {
        match &key.scope {
            Some(scope) => self.cache.intern(scope.namespace(), Some((scope.model(), scope.version()))),
            None => self.cache.intern(&self.namespace, None),
        }
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

/// What is to be stored, as Python says it.
struct Terms {
    life: Option<u64>,
    stale: u64,
    tags: Vec<u64>,
    stamp: Stamp,
    cost: f32,
}

/// Stores a value, copying it once: without the interpreter if it is large. `None`: there is no memory for it.
fn store(
    py: Python<'_>,
    opened: &Opened,
    key: &Key,
    payload: &value::Payload<'_>,
    terms: &Terms,
) -> PyResult<Option<Stored>> {
    let Some(scope) = opened.scope_id(key) else {
        // Sixteen million scopes: nothing new can be told apart from them, so nothing new is kept.
        opened.cache.count(Count::Rejected, 1);
        return Ok(Some(Stored::Refused));
    };
    let bytes = key.bytes(py)?;
    let write = Write {
        kind: payload.kind,
        aligned: payload.aligned,
        payload: payload.content(),
        scope,
        tags: &terms.tags,
        stamp: terms.stamp,
        life: terms.life,
        stale: terms.stale,
        cost: terms.cost,
    };
    let (cache, tail) = (&opened.cache, payload.tail.as_slice());
    let prepared = released_from(py, COPY_FROM, payload.len(), || cache.prepare(bytes, &write, tail));
    Ok(prepared.map(|prepared| cache.store_prepared(&prepared)))
}

/// The value of an entry that was found, or `default` if it does not decode here: it may be of classes that only a
/// decorated function's annotation names.
#[inline]
fn decode_or<'py>(
    store: &Bound<'py, Store>,
    entry: &EntryRef,
    default: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = store.py();
    match value::decode(py, entry, None, false) {
        Ok(value) => {
            flight::used(py, entry.stamp())?;
            Ok(value)
        }
        Err(error) => {
            unreadable(store, entry, false, error)?;
            Ok(default.unwrap_or_else(|| py.None().into_bound(py)))
        }
    }
}

/// What was counted as a hit is a miss if its value cannot be built here, and whoever asks is told once.
#[cold]
fn unreadable(store: &Bound<'_, Store>, entry: &EntryRef, stale: bool, error: PyErr) -> PyResult<()> {
    let py = store.py();
    if !error.is_instance(py, errors::class(py, "CorruptValue")?.as_any()) {
        return Err(error);
    }
    store.get().opened()?.cache.recount_as_miss(entry, stale);
    store.call_method1("_unreadable", (error,)).map(drop)
}

/// Makes sure that this process knows of the purge that gave the token.
#[inline]
fn reach<'py>(store: &Bound<'py, Store>, token: Option<Bound<'py, PyAny>>) -> PyResult<()> {
    match token {
        Some(token) if !token.is_none() => store.call_method1("_reach", (token,)).map(drop),
        _ => Ok(()),
    }
}

/// `(value, age, left, past, softly_purged, stamp)`, times in seconds.
fn describe<'py>(py: Python<'py>, hit: &Hit) -> PyResult<Bound<'py, PyTuple>> {
    let seconds = |milliseconds: u64| milliseconds as f64 / 1e3;
    let value = value::decode(py, &hit.entry, None, false)?;
    flight::used(py, hit.stamp.to_word())?;
    let (age, left, past) = (seconds(hit.age), hit.left.map(seconds), seconds(hit.past));
    (value, age, left, past, hit.softly_purged, hit.stamp.to_word()).into_pyobject(py)
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Store {
        Store(OnceLock::new())
    }

    /// Opens the cache: bytes, seconds of freshness, namespace, secret, deployment; seed and clock for tests and simulators.
    #[pyo3(signature = (capacity, ttl, namespace, secret = None, *, prefix = "ic", seed = None, clock = None, shards = None))]
    #[allow(clippy::too_many_arguments)] // as many as a cache has options of its own
    fn _open(
        &self,
        capacity: u64,
        ttl: Option<f64>,
        namespace: String,
        secret: Option<&Bound<'_, PyAny>>,
        prefix: &str,
        seed: Option<u64>,
        clock: Option<&ManualClock>,
        shards: Option<usize>,
    ) -> PyResult<()> {
        let secret = secret.map(secret_bytes).transpose()?;
        let seed = seed.unwrap_or_else(random_seed);
        let clock = clock.map_or(Clock::System, |clock| Clock::Manual(clock.0.clone()));
        let authority = Some(authority(prefix, secret));
        let deployment = prefix.to_owned();
        let options = Options { clock, secret, shards, authority, deployment, ..Options::new(capacity, seed) };
        let cache = Arc::new(Cache::new(options));
        let opened = Opened { cache, namespace, life: ttl.map(milliseconds), secret };
        self.0.set(opened).map_err(|_| PyRuntimeError::new_err("the cache is open already"))
    }

    /// The value under a key, or `default`. Of an entry that holds instances of a class which only a decorated function's
    /// annotation names, it cannot build the value: a miss, and a warning once.
    #[pyo3(signature = (key, default = None, *, min_token = None))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
        min_token: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        reach(slf, min_token)?;
        match slf.get().opened()?.cache.get(key_argument(key)?.bytes(py)?) {
            Some(entry) => decode_or(slf, &entry, default),
            None => Ok(default.unwrap_or_else(|| py.None().into_bound(py))),
        }
    }

    /// The values under many keys, in their order, `default` where there is none.
    #[pyo3(signature = (keys, default = None, *, min_token = None))]
    fn get_many<'py>(
        slf: &Bound<'py, Self>,
        keys: &Bound<'py, PyAny>,
        default: Option<Bound<'py, PyAny>>,
        min_token: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (py, opened) = (slf.py(), slf.get().opened()?);
        reach(slf, min_token)?;
        let default = default.unwrap_or_else(|| py.None().into_bound(py));
        let values = PyList::empty(py);
        for key in keys.try_iter()? {
            values.append(match opened.cache.get(key_argument(&key?)?.bytes(py)?) {
                Some(entry) => decode_or(slf, &entry, Some(default.clone()))?,
                None => default.clone(),
            })?;
        }
        Ok(values)
    }

    /// Is there a fresh entry under this key? Counts nothing, and does not look into the entry: `get` cannot build the
    /// value of one that holds records of a decorated function, which the function can.
    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(matches!(self.opened()?.cache.peek(key_argument(key)?.bytes(key.py())?), Found::Fresh(_)))
    }

    /// `(state, details)` of a key: "fresh", "stale" or "miss"; of the first two the value and what is known of it.
    /// Stale ones are found if their life has been over for at most `stale` seconds (None: none).
    #[pyo3(signature = (key, stale = None))]
    fn _find<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        stale: Option<f64>,
    ) -> PyResult<(&'static str, Option<Bound<'py, PyTuple>>)> {
        let (state, hit) =
            match slf.get().opened()?.cache.find(key_argument(key)?.bytes(slf.py())?, stale.map(milliseconds)) {
                Found::Fresh(hit) => ("fresh", hit),
                Found::Stale(hit) => ("stale", hit),
                Found::Miss => return Ok(("miss", None)),
            };
        match describe(slf.py(), &hit) {
            Ok(details) => Ok((state, Some(details))),
            Err(error) => {
                unreadable(slf, &hit.entry, state == "stale", error)?;
                Ok(("miss", None))
            }
        }
    }

    /// Stores a value: `(outcome, reason)`. The outcome is "kept", "fenced" (a purge came after `stamp`), "refused" (too
    /// large) or "unstorable" (`reason` says why).
    #[pyo3(signature = (key, value, ttl, stale = 0.0, tags = None, stamp = None, cost = 0.0))]
    #[allow(clippy::too_many_arguments)] // the terms of a store
    fn _store(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        ttl: Option<f64>,
        stale: f64,
        tags: Option<&Bound<'_, PyAny>>,
        stamp: Option<u64>,
        cost: f32,
    ) -> PyResult<(&'static str, Option<String>)> {
        let (opened, key) = (self.opened()?, key_argument(key)?);
        let stamp = stamp.map_or_else(|| opened.cache.stamp(), Stamp::from_word);
        let tags = tags.map_or_else(|| Ok(Vec::new()), |tags| opened.tags(tags))?;
        let terms = Terms { life: ttl.map(milliseconds), stale: milliseconds(stale), tags, stamp, cost };
        let stored = match value::lend(py, value, None)? {
            Ok(payload) => store(py, opened, key, &payload, &terms)?.ok_or_else(|| value::no_memory(payload.len())),
            Err(reason) => Err(reason),
        };
        Ok(match stored {
            Ok(Stored::Kept) => ("kept", None),
            Ok(Stored::Fenced) => ("fenced", None),
            Ok(Stored::Refused) => ("refused", None),
            Err(reason) => {
                opened.cache.count(Count::Uncacheable, 1);
                ("unstorable", Some(reason))
            }
        })
    }

    /// Hides the value under a key and takes it out; says whether there was one.
    fn _delete(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (opened, key) = (self.opened()?, key_argument(key)?.bytes(key.py())?);
        let there = matches!(opened.cache.peek(key), Found::Fresh(_) | Found::Stale(_));
        opened.cache.invalidate(&[opened.cache.tag("", Target::Key(key))], false);
        opened.cache.remove(key);
        Ok(there)
    }

    /// Numbers a purge: of tags, keys, models, (model, version) pairs, the namespace, everything. The stamp's word comes
    /// back.
    #[pyo3(signature = (*, tags = None, keys = None, models = None, versions = None, namespace = false, all = false, soft = false))]
    #[allow(clippy::too_many_arguments)] // one a kind of target
    fn _invalidate(
        &self,
        tags: Option<&Bound<'_, PyAny>>,
        keys: Option<&Bound<'_, PyAny>>,
        models: Option<Vec<String>>,
        versions: Option<Vec<(String, String)>>,
        namespace: bool,
        all: bool,
        soft: bool,
    ) -> PyResult<u64> {
        let opened = self.opened()?;
        let tag = |target: Target<'_>| opened.cache.tag(&opened.namespace, target);
        let mut purged = tags.map_or_else(|| Ok(Vec::new()), |tags| opened.tags(tags))?;
        for key in keys.map(|keys| keys.try_iter()).transpose()?.into_iter().flatten() {
            let key = key?;
            purged.push(tag(Target::Key(key_argument(&key)?.bytes(key.py())?)));
        }
        purged.extend(models.iter().flatten().map(|model| tag(Target::Model(model))));
        purged.extend(versions.iter().flatten().map(|(model, version)| tag(Target::ModelVersion(model, version))));
        if namespace {
            purged.push(tag(Target::Namespace));
        }
        if all {
            purged.push(tag(Target::All));
        }
        Ok(opened.cache.invalidate(&purged, soft).to_word())
    }

    /// The word of the stamp for a value whose computation starts now.
    fn _stamp(&self) -> PyResult<u64> {
        Ok(self.opened()?.cache.stamp().to_word())
    }

    /// Would a value with this stamp, key and tags be served now? "valid", "soft" or "hidden".
    fn _judge(&self, stamp: u64, key: &Bound<'_, PyAny>, tags: &Bound<'_, PyAny>) -> PyResult<&'static str> {
        let (opened, py, key) = (self.opened()?, key.py(), key_argument(key)?);
        let Some(scope) = opened.scope_id(key) else { return Ok("hidden") };
        Ok(match opened.cache.judge_stamp(Stamp::from_word(stamp), scope, key.bytes(py)?, &opened.tags(tags)?) {
            Judgement::Valid => "valid",
            Judgement::Soft => "soft",
            Judgement::Hidden => "hidden",
        })
    }

    /// Adds to "coalesced" or "uncacheable", which the layers above decide.
    fn _count(&self, py: Python<'_>, counter: &str, amount: u64) -> PyResult<()> {
        let count = match counter {
            "coalesced" => Count::Coalesced,
            "uncacheable" => Count::Uncacheable,
            _ => {
                let reason = format!("there is no counter {counter:?} to add to");
                return Err(errors::to_python(py, &Error::InvalidArgument { reason }));
            }
        };
        self.opened()?.cache.count(count, amount);
        Ok(())
    }

    /// Counters and gauges by name.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.opened()?.cache.stats();
        let named = PyDict::new(py);
        for (name, value) in [
            ("hits_l1", stats.hits),
            ("stale_hits", stats.stale_hits),
            ("misses", stats.misses),
            ("coalesced", stats.coalesced),
            ("stores", stats.stores),
            ("rejected", stats.rejected),
            ("uncacheable", stats.uncacheable),
            ("evictions", stats.evictions),
            ("expirations", stats.expirations),
            ("invalidated", stats.invalidated),
            ("entries", stats.entries),
            ("bytes", stats.bytes),
            ("pinned_bytes", stats.pinned_bytes),
        ] {
            named.set_item(name, value)?;
        }
        named.set_item("saved_seconds", stats.saved_seconds)?;
        Ok(named)
    }

    /// Hides every entry, those being computed included, and gives their bytes back.
    fn _clear(&self) -> PyResult<u64> {
        Ok(self.opened()?.cache.clear().to_word())
    }

    /// Makes the child of a fork start cold.
    fn _after_fork(&self) -> PyResult<()> {
        // SAFETY: called by os.register_at_fork in the child, where only this thread runs; but for `prepare` no call into
        // the cache gives up the GIL, so at the fork no other thread was inside one.
        unsafe { self.opened()?.cache.after_fork() };
        Ok(())
    }
}

/// What tells deployments apart.
type Deployment = (String, Option<[u8; 32]>);

/// The authority of a deployment in this process: its caches share one, so that a purge on any of them holds for all.
fn authority(prefix: &str, secret: Option<[u8; 32]>) -> Arc<Fences> {
    static KNOWN: Mutex<Option<HashMap<Deployment, Weak<Fences>>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_with(HashMap::new);
    known.retain(|_, authority| authority.strong_count() > 0);
    let deployment = (prefix.to_owned(), secret);
    if let Some(authority) = known.get(&deployment).and_then(Weak::upgrade) {
        return authority;
    }
    let authority = Arc::new(Fences::new(FENCES));
    known.insert(deployment, Arc::downgrade(&authority));
    authority
}

/// A seed that nobody outside can know: the standard library seeds its hash maps from the system.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}

/// Adds this module's classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ManualClock>()?;
    module.add_class::<Store>()
}
