//! The base class of `Cache`: look-ups and stores that need no Python frame.

use crate::authority::{self, Authority, authority};
use crate::clock::{ManualClock, milliseconds};
use crate::errors;
use crate::flight::{self, Entry};
use crate::key::{Key, secret_bytes};
use crate::opened::{Opened, eviction_named, key_argument, random_seed};
use crate::released::{COPY_FROM, released_from};
use crate::tiered::Places;
use crate::value;
use infercache_core::cache::{Cache, Eviction, Found, Hit, Options, Stored, Trust, Write};
use infercache_core::clock::Clock;
use infercache_core::entry::{EntryRef, KeyMap};
use infercache_core::error::Error;
use infercache_core::fence::{Judgement, Stamp, Target};
use infercache_core::stats::Count;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use std::sync::{Arc, OnceLock};

/// Values, the keys that memory has none for, and their places: pairs of a place and the number of its key.
type Missing<'py> = (Bound<'py, PyList>, Vec<Bound<'py, PyAny>>, Places);

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
) -> PyResult<Option<(Stored, Option<Entry>)>> {
    let Some(scope) = opened.scope_id(key) else {
        // Sixteen million scopes: nothing new can be told apart from them, so nothing new is kept.
        opened.cache.count(Count::Rejected, 1);
        return Ok(Some((Stored::Refused, None)));
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
    Ok(prepared.map(|prepared| {
        let stored = cache.store_prepared(&prepared);
        (stored, Some(Entry { entry: prepared, stamp: terms.stamp.to_word() }))
    }))
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
            unreadable(store, entry, Some(Count::Hits), error)?;
            Ok(default.unwrap_or_else(|| py.None().into_bound(py)))
        }
    }
}

/// What was counted as a hit (`None`: as nothing) is a miss if its value cannot be built here, and whoever asks is told once.
#[cold]
pub fn unreadable(store: &Bound<'_, Store>, entry: &EntryRef, hit: Option<Count>, error: PyErr) -> PyResult<()> {
    let py = store.py();
    if !error.is_instance(py, errors::class(py, "CorruptValue")?.as_any()) {
        return Err(error);
    }
    if let Some(hit) = hit {
        store.get().opened()?.cache.recount_as_miss(entry, hit);
    }
    store.call_method1("_unreadable", (error,)).map(drop)
}

/// Makes sure that this process knows of the purge that gave the token; false: it could not find out. With it comes what is
/// left of the read's budget, if anything was asked.
#[inline]
fn reach<'py>(
    store: &Bound<'py, Store>,
    token: Option<Bound<'py, PyAny>>,
) -> PyResult<(bool, Option<Bound<'py, PyAny>>)> {
    match token {
        Some(token) if !token.is_none() => store.call_method1("_reach", (token,))?.extract(),
        _ => Ok((true, None)),
    }
}

/// `(value, age, left, past, softly_purged, stamp)`, times in seconds.
fn describe<'py>(py: Python<'py>, hit: &Hit) -> PyResult<Bound<'py, PyTuple>> {
    let seconds = |milliseconds: u64| milliseconds as f64 / 1e3;
    let value = value::decode(py, &hit.entry, None, false)?;
    flight::used(py, hit.stamp.to_word())?;
    let (age, left, past) = (seconds(hit.age), hit.left.map(seconds), seconds(hit.past));
    let cost = f64::from(hit.entry.cost());
    (value, age, left, past, hit.softly_purged, hit.stamp.to_word(), cost).into_pyobject(py)
}

#[pymethods]
impl Store {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Store {
        Store(OnceLock::new())
    }

    /// Opens the cache: bytes, seconds of freshness, namespace, secret, deployment; seed and clock for tests and
    /// simulators; the name in `EVICTIONS` of what is given up for new entries. With a shared tier: the authority, and
    /// how many seconds old its proof may be: always, and for untagged and tagged entries while it is out of reach (inf:
    /// no limit).
    #[pyo3(signature = (
        capacity, ttl, namespace, secret = None, *, prefix = "ic", seed = None, clock = None, shards = None,
        follows = None, trust = None, eviction = "s3-fifo"
    ))]
    #[allow(clippy::too_many_arguments)] // as many as a cache has options of its own
    fn _open(
        &self,
        py: Python<'_>,
        capacity: u64,
        ttl: Option<f64>,
        namespace: String,
        secret: Option<&Bound<'_, PyAny>>,
        prefix: &str,
        seed: Option<u64>,
        clock: Option<&ManualClock>,
        shards: Option<usize>,
        follows: Option<&Authority>,
        trust: Option<(f64, f64, f64)>,
        eviction: &str,
    ) -> PyResult<()> {
        let eviction = eviction_named(py, eviction)?;
        let secret = secret.map(secret_bytes).transpose()?;
        let seed = seed.unwrap_or_else(random_seed);
        let clock = clock.map_or(Clock::System, |clock| Clock::Manual(clock.0.clone()));
        let tiered = follows.is_some();
        // A float that is too large becomes the largest integer, which means "no limit".
        let nanoseconds = |seconds: f64| (seconds * 1e9) as u64;
        let trust = trust.filter(|_| tiered).map(|(max_staleness, untagged, tagged)| Trust {
            max_staleness: nanoseconds(max_staleness),
            untagged: nanoseconds(untagged),
            tagged: nanoseconds(tagged),
        });
        let authority = Some(follows.map_or_else(|| authority(prefix, secret, None), |follows| follows.0.clone()));
        let deployment = prefix.to_owned();
        let options =
            Options { clock, secret, shards, authority, trust, deployment, eviction, ..Options::new(capacity, seed) };
        let cache = Arc::new(Cache::new(options));
        let opened = Opened { cache, namespace, life: ttl.map(milliseconds), secret, tiered };
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
        let default = default.unwrap_or_else(|| py.None().into_bound(py));
        let (known, budget) = reach(slf, min_token)?;
        if !known {
            return Ok(default);
        }
        let opened = slf.get().opened()?;
        match opened.cache.get(key_argument(key)?.bytes(py)?) {
            Some(entry) => decode_or(slf, &entry, Some(default)),
            None if opened.tiered => slf.call_method1("_get_shared", (key, default, budget)),
            None => Ok(default),
        }
    }

    /// `get` from memory alone.
    fn _get_near<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        default: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match slf.get().opened()?.cache.get(key_argument(key)?.bytes(slf.py())?) {
            Some(entry) => decode_or(slf, &entry, Some(default)),
            None => Ok(default),
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
        let py = slf.py();
        let default = default.unwrap_or_else(|| py.None().into_bound(py));
        let (known, budget) = reach(slf, min_token)?;
        let (values, missing, places) = Store::_get_many_near(slf, keys, &default, known)?;
        if known && slf.get().opened()?.tiered && !missing.is_empty() {
            slf.call_method1("_get_many_shared", (&values, missing, places, budget))?;
        }
        Ok(values)
    }

    /// `get_many` from memory alone: the values, which keys miss, each once, and the places where they are to stand. Unless
    /// `known` none is looked for.
    fn _get_many_near<'py>(
        slf: &Bound<'py, Self>,
        keys: &Bound<'py, PyAny>,
        default: &Bound<'py, PyAny>,
        known: bool,
    ) -> PyResult<Missing<'py>> {
        let opened = slf.get().opened()?;
        let (values, mut missing, mut places) = (PyList::empty(slf.py()), Vec::new(), Vec::new());
        let mut numbers = KeyMap::default();
        for (place, key) in keys.try_iter()?.enumerate() {
            let key = key?;
            let bytes = key_argument(&key)?.bytes(slf.py())?;
            match if known { opened.cache.get(bytes) } else { None } {
                Some(entry) => values.append(decode_or(slf, &entry, Some(default.clone()))?)?,
                None => {
                    values.append(default)?;
                    let number = *numbers.entry(*bytes).or_insert(missing.len());
                    if number == missing.len() {
                        missing.push(key);
                    }
                    places.push((place, number));
                }
            }
        }
        Ok((values, missing, Places(places)))
    }

    /// Is there a fresh entry under this key? Counts nothing, and does not look into the entry: `get` cannot build the
    /// value of one that holds records of a decorated function, which the function can.
    fn __contains__(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(matches!(self.opened()?.cache.peek(key_argument(key)?.bytes(key.py())?), Found::Fresh(_)))
    }

    /// `(state, details)` of a key: "fresh", "stale" or "miss"; of the first two the value and what is known of it.
    /// Stale ones are found if their life has been over for at most `stale` seconds (None: none).
    /// Unless `counted` it counts nothing, finds all stale ones, and says "unreadable" of one whose value it cannot build.
    #[pyo3(signature = (key, stale = None, counted = true))]
    fn _find<'py>(
        slf: &Bound<'py, Self>,
        key: &Bound<'py, PyAny>,
        stale: Option<f64>,
        counted: bool,
    ) -> PyResult<(&'static str, Option<Bound<'py, PyTuple>>)> {
        let (cache, key) = (&slf.get().opened()?.cache, key_argument(key)?.bytes(slf.py())?);
        let found = if counted { cache.find(key, stale.map(milliseconds)) } else { cache.peek(key) };
        let (state, hit) = match found {
            Found::Fresh(hit) => ("fresh", hit),
            Found::Stale(hit) => ("stale", hit),
            Found::Miss => return Ok(("miss", None)),
        };
        match describe(slf.py(), &hit) {
            Ok(details) => Ok((state, Some(details))),
            Err(error) => {
                let counted_as = counted.then(|| Count::hit(state == "stale"));
                unreadable(slf, &hit.entry, counted_as, error)?;
                Ok((if counted { "miss" } else { "unreadable" }, None))
            }
        }
    }

    /// Stores a value: `(outcome, reason, entry)`. The outcome is "kept", "fenced" (a purge came after `stamp`), "refused" (too
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
    ) -> PyResult<(&'static str, Option<String>, Option<Entry>)> {
        let (opened, key) = (self.opened()?, key_argument(key)?);
        let stamp = stamp.map_or_else(|| opened.cache.stamp(), Stamp::from_word);
        let tags = tags.map_or_else(|| Ok(Vec::new()), |tags| opened.tags(tags))?;
        let terms = Terms { life: ttl.map(milliseconds), stale: milliseconds(stale), tags, stamp, cost };
        let stored = match value::lend(py, value, None)? {
            Ok(payload) => store(py, opened, key, &payload, &terms)?.ok_or_else(|| value::no_memory(payload.len())),
            Err(reason) => Err(reason),
        };
        Ok(match stored {
            Ok((Stored::Kept, entry)) => ("kept", None, entry),
            Ok((Stored::Fenced, _)) => ("fenced", None, None),
            // The shared tier may have room for it.
            Ok((Stored::Refused, entry)) => ("refused", None, entry),
            Err(reason) => {
                opened.cache.count(Count::Uncacheable, 1);
                ("unstorable", Some(reason), None)
            }
        })
    }

    /// Takes the value under a key out of memory, hiding nothing; says whether there was one that could be served.
    fn _remove(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (opened, key) = (self.opened()?, key_argument(key)?.bytes(key.py())?);
        let there = matches!(opened.cache.peek(key), Found::Fresh(_) | Found::Stale(_));
        opened.cache.remove(key);
        Ok(there)
    }

    /// Takes everything out of memory, hiding nothing.
    fn _empty(&self) -> PyResult<()> {
        self.opened()?.cache.empty();
        Ok(())
    }

    /// Numbers a purge of what `_members` names, where this process is the authority. The stamp's word comes back.
    fn _invalidate(&self, members: Vec<[u8; 9]>) -> PyResult<u64> {
        let cache = &self.opened()?.cache;
        let tags: Vec<u64> =
            members.iter().filter_map(|member| authority::tag_of(member)).map(|(tag, _)| tag).collect();
        Ok(cache.invalidate(&tags, members.first().is_some_and(|member| member[0] == b's')).to_word())
    }

    /// What a purge names, as members of the authority's set: tags, keys, models, (model, version) pairs, the namespace, everything.
    #[pyo3(signature = (*, tags = None, keys = None, models = None, versions = None, namespace = false, all = false, soft = false))]
    #[allow(clippy::too_many_arguments)] // one a kind of target
    fn _members<'py>(
        &self,
        py: Python<'py>,
        tags: Option<&Bound<'py, PyAny>>,
        keys: Option<&Bound<'py, PyAny>>,
        models: Option<Vec<String>>,
        versions: Option<Vec<(String, String)>>,
        namespace: bool,
        all: bool,
        soft: bool,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
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
        Ok(purged.into_iter().map(|tag| PyBytes::new(py, &authority::member(tag, soft))).collect())
    }

    /// A stamp's word as another process understands it: `(epoch, LSN)`. None: its epoch is over, or none is known yet.
    fn _position<'py>(&self, py: Python<'py>, stamp: u64) -> PyResult<Option<(Bound<'py, PyBytes>, u64)>> {
        Ok(authority::position(py, self.opened()?.cache.fences(), stamp))
    }

    /// The reverse: the word of a position's stamp. None: it is of another epoch than the authority is in.
    fn _stamp_at(&self, epoch: [u8; 16], lsn: u64) -> PyResult<Option<u64>> {
        Ok(self.opened()?.cache.fences().stamp_at(&epoch, lsn).map(Stamp::to_word))
    }

    /// The word of the stamp for a value whose computation starts now.
    fn _stamp(&self) -> PyResult<u64> {
        Ok(self.opened()?.cache.stamp().to_word())
    }

    /// The word of the stamp that what runs here would be stored with if it ended now: the computation's, or of now.
    fn _stamp_of_computation(&self, py: Python<'_>) -> PyResult<u64> {
        let now = self.opened()?.cache.stamp();
        Ok(flight::stamp_here(py, now)?.to_word())
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

    /// What was counted as hits is misses: these entries, of which those at the places in `stale` were, served nobody.
    fn _unserved(&self, entries: Vec<Option<PyRef<'_, Entry>>>, stale: Vec<usize>) -> PyResult<()> {
        for (place, entry) in entries.iter().enumerate() {
            if let Some(entry) = entry {
                self.opened()?.cache.recount_as_miss(&entry.entry, Count::hit(stale.contains(&place)));
            }
        }
        Ok(())
    }

    /// Counters and gauges by name.
    fn _stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.opened()?.cache.stats();
        let named = PyDict::new(py);
        for (name, value) in [
            ("hits_l1", stats.hits),
            ("hits_l2", stats.tier_hits),
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

/// Adds this module's class, and the names that `_open` knows.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("EVICTIONS", PyTuple::new(module.py(), Eviction::NAMED.map(|(name, _)| name))?)?;
    module.add_class::<Store>()
}
