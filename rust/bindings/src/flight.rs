//! The Python face of flights: who computes, who waits, and how a result is stored and handed over.
//!
//! `infercache/flights.py` describes the steps; each object here is one of its nouns. Nothing here holds a lock while
//! Python code runs: outcomes are taken out of the flights before they are decoded or dropped.

use crate::key::Key;
use crate::lazy::Lazy;
use crate::released::{COPY_FROM, released, released_from};
use crate::store::Store;
use crate::value;
use infercache_core::cache::{Cache, Found, Stored, Write};
use infercache_core::entry::{EntryRef, KeyBytes};
use infercache_core::fence::{Judgement, Stamp, Target};
use infercache_core::flight::{self, Arrival, Caller, Follower, Join, Leader, Outcome, Place, Waiter, Waits};
use infercache_core::key::Scope;
use infercache_core::scopes::ScopeId;
use infercache_core::stats::Count;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::PyTraceback;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// What a newcomer must know of a run to see whether a purge has doomed it.
#[derive(Debug)]
struct Plan {
    stamp: Stamp,
    tags: Box<[u64]>,
}

/// A result that waiters may share.
#[derive(Debug)]
struct Landed {
    entry: EntryRef,
    stamp: Stamp,
    tags: Box<[u64]>,
}

/// The leader's error, with the traceback it had: every waiter that raises it would otherwise lengthen the next one's.
#[derive(Debug)]
struct Failure {
    error: Py<PyBaseException>,
    traceback: Option<Py<PyTraceback>>,
}

type CoreFlights = flight::Flights<Plan, Landed, Failure>;

/// The graph of waits of this process. Replaced in the child of a fork, where nobody waits.
static WAITS: Mutex<Option<Arc<Waits>>> = Mutex::new(None);
/// Computations that run now, anywhere in the process. While there are none, a hit has nobody to tell its stamp to.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

fn waits() -> Arc<Waits> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Arc::default).clone()
}

/// The context variable that carries the computation which code is part of: tasks and `asyncio.to_thread` inherit it.
fn current(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static CURRENT: Lazy<Py<PyAny>> = Lazy::new();
    let made = || -> PyResult<Py<PyAny>> {
        let options = pyo3::types::PyDict::new(py);
        options.set_item("default", py.None())?;
        Ok(py.import("contextvars")?.call_method("ContextVar", ("infercache_computation",), Some(&options))?.unbind())
    };
    Ok(CURRENT.get_or_make(py, made)?.bind(py))
}

/// A cached answer of this stamp is handed to whoever runs here: a computation that uses it carries the smaller stamp.
#[inline]
pub fn used(py: Python<'_>, stamp: u64) -> PyResult<()> {
    if RUNNING.load(Ordering::Relaxed) == 0 { Ok(()) } else { tell_current(py, stamp) }
}

#[cold]
fn tell_current(py: Python<'_>, stamp: u64) -> PyResult<()> {
    let computation = current(py)?.call_method0("get")?;
    if let Ok(computation) = computation.cast_exact::<Computation>() {
        computation.get().inner.used(Stamp::from_word(stamp));
    }
    Ok(())
}

/// How results are stored and served: times in milliseconds, the schema of the return annotation, copies or not.
#[pyclass(frozen, module = "infercache._core")]
pub struct Terms {
    pub life: Option<u64>,
    pub stale: u64,
    pub schema: Option<Py<PyAny>>,
    pub copy: bool,
}

#[pymethods]
impl Terms {
    #[new]
    #[pyo3(signature = (life, stale, schema, copy))]
    fn new(life: Option<u64>, stale: u64, schema: Option<Py<PyAny>>, copy: bool) -> Terms {
        Terms { life, stale, schema, copy }
    }
}

impl Terms {
    /// The value of an entry, as these terms have it.
    pub fn decode<'py>(&self, py: Python<'py>, entry: &EntryRef) -> PyResult<Bound<'py, PyAny>> {
        value::decode(py, entry, self.schema.as_ref().map(|schema| schema.bind(py)), self.copy)
    }
}

/// A result in the form in which it is stored.
#[pyclass(frozen, module = "infercache._core")]
pub struct Encoded(pub value::Encoded);

/// The stored form of `result`, or text that says why it has none.
#[pyfunction]
fn encode<'py>(py: Python<'py>, result: &Bound<'py, PyAny>, terms: &Terms) -> PyResult<Bound<'py, PyAny>> {
    match value::encode(py, result, terms.schema.as_ref().map(|schema| schema.bind(py)))? {
        Ok(encoded) => Ok(Bound::new(py, Encoded(encoded))?.into_any()),
        Err(reason) => Ok(reason.into_pyobject(py)?.into_any()),
    }
}

/// An entry as a look-up, a flight or a run gave it.
#[pyclass(frozen, module = "infercache._core")]
pub struct Entry {
    pub entry: EntryRef,
    pub stamp: u64,
}

#[pymethods]
impl Entry {
    /// The value, handed to whoever runs here.
    fn value<'py>(&self, py: Python<'py>, terms: &Terms) -> PyResult<Bound<'py, PyAny>> {
        used(py, self.stamp)?;
        terms.decode(py, &self.entry)
    }
}

/// A run of a model, carried by a context variable: see `infercache_core::flight`.
#[pyclass(frozen, module = "infercache._core")]
pub struct Computation {
    inner: Arc<flight::Computation>,
    began: Instant,
    seconds: OnceLock<f32>,
}

#[pymethods]
impl Computation {
    /// The model has returned: nothing that still carries this computation is part of it. Idempotent.
    fn end(&self) {
        if self.seconds.set(self.began.elapsed().as_secs_f32()).is_ok() {
            self.inner.end();
            // In the child of a fork the count began anew, while this computation may be of the parent's.
            let _ = RUNNING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |running| running.checked_sub(1));
        }
    }

    /// Seconds that the run took.
    #[getter]
    fn seconds(&self) -> f32 {
        self.seconds.get().copied().unwrap_or_else(|| self.began.elapsed().as_secs_f32())
    }
}

impl Drop for Computation {
    fn drop(&mut self) {
        self.end();
    }
}

/// The right, and the duty, to compute one key: a leader's, or that of a caller who could not wait and computes alone.
#[pyclass(frozen, module = "infercache._core")]
pub struct Run {
    cache: Arc<Cache>,
    key: KeyBytes,
    scope: Option<ScopeId>,
    namespace: Arc<str>,
    leader: Mutex<Option<Leader<Plan, Landed, Failure>>>,
    plan: OnceLock<Plan>,
}

impl Run {
    /// Stores a value; one that takes long to copy is copied without the interpreter.
    fn store(&self, py: Python<'_>, write: &Write<'_>) -> (Stored, EntryRef) {
        let large = write.payload.len() >= COPY_FROM;
        let prepare = || self.cache.prepare(&self.key, write, &[]);
        match large.then(|| released(py, prepare)).flatten() {
            Some(entry) => (self.cache.store_prepared(&entry), entry),
            None => self.cache.store(&self.key, write),
        }
    }

    fn leader(&self) -> Option<Leader<Plan, Landed, Failure>> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn finish(&self, outcome: Outcome<Landed, Failure>) {
        // Taken out first: landing calls Python.
        if let Some(leader) = self.leader() {
            leader.land(outcome);
        }
    }

    fn hash<'a>(&'a self, tags: &'a [String]) -> impl Iterator<Item = u64> + 'a {
        tags.iter().map(|tag| self.cache.tag(&self.namespace, Target::Tag(tag)))
    }

    fn take_off(&self, tags: &[String]) {
        let plan = |stamp| Plan { stamp, tags: self.hash(tags).collect() };
        // One reading for both: a smaller stamp is always safe.
        let stamp = self.cache.stamp();
        let _ = self.plan.set(plan(stamp));
        if let Some(leader) = &*self.leader.lock().unwrap_or_else(PoisonError::into_inner) {
            leader.take_off(plan(stamp));
        }
    }
}

#[pymethods]
impl Run {
    /// Stores a result, hands it to the waiters, and returns it as an entry. `tags` are those that the result decides,
    /// besides those of the take-off; `items` is how many results the computation gave; without `share` the result is
    /// neither stored nor given to others.
    #[pyo3(signature = (encoded, terms, tags, computation, items, share))]
    fn land(
        &self,
        py: Python<'_>,
        encoded: &Encoded,
        terms: &Terms,
        tags: Vec<String>,
        computation: &Computation,
        items: u32,
        share: bool,
    ) -> Entry {
        let value::Encoded { kind, aligned, bytes } = &encoded.0;
        let plan = self.plan.get_or_init(|| Plan { stamp: self.cache.stamp(), tags: Box::default() });
        let stamp = computation.inner.stamp(plan.stamp);
        let mut all: Vec<u64> = plan.tags.iter().copied().chain(self.hash(&tags)).collect();
        all.sort_unstable();
        all.dedup();
        let Some(scope) = self.scope.filter(|_| share) else {
            self.finish(Outcome::Unshared);
            let detached = || EntryRef::detached(*kind, bytes, *aligned);
            return Entry { entry: released_from(py, COPY_FROM, bytes.len(), detached), stamp: stamp.to_word() };
        };
        let cost = computation.seconds() / items.max(1) as f32;
        let (life, stale) = (terms.life, terms.stale);
        let write =
            Write { kind: *kind, aligned: *aligned, payload: bytes, scope, tags: &all, stamp, life, stale, cost };
        // Whether it was kept does not matter to the waiters: they check the stamp and the tags for themselves.
        let (Stored::Kept | Stored::Fenced | Stored::Refused, entry) = self.store(py, &write);
        self.finish(Outcome::Value(Landed { entry: entry.clone(), stamp, tags: all.into() }));
        Entry { entry, stamp: stamp.to_word() }
    }

    /// The result cannot be stored: every waiter computes for itself.
    fn uncacheable(&self) {
        self.cache.count(Count::Uncacheable, 1);
        self.finish(Outcome::Unshared);
    }

    /// The model raised: every waiter gets the error.
    fn fail(&self, py: Python<'_>, error: Bound<'_, PyBaseException>) {
        let traceback = PyErr::from_value(error.clone().into_any()).traceback(py).map(Bound::unbind);
        self.finish(Outcome::Failed(Failure { error: error.unbind(), traceback }));
    }

    /// Whoever computes goes away: one of the waiters leads. Without effect where the run has ended in another way.
    fn abandon(&self) {
        drop(self.leader());
    }
}

enum Wait {
    Follows(Follower<Plan, Landed, Failure>),
    Waits(Waiter<Plan, Landed, Failure>),
    Closed,
}

/// Another one's flight, to be waited for.
#[pyclass(frozen, module = "infercache._core")]
pub struct Waiting {
    cache: Arc<Cache>,
    key: KeyBytes,
    scope: Option<ScopeId>,
    state: Mutex<Wait>,
}

impl Waiting {
    fn replace(&self, state: Wait) -> Wait {
        std::mem::replace(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), state)
    }
}

/// What `Waiting.take` brings; no number is also one of those that `Flights.join` brings.
const VALUE: u8 = 3;
const AGAIN: u8 = 4;
const UNSHARED: u8 = 5;
const FAILED: u8 = 6;

#[pymethods]
impl Waiting {
    /// Begins the wait; False if it would never end. `thread` and `event_loop` (0: none) are what it blocks.
    #[pyo3(signature = (within, thread, event_loop))]
    fn begin(&self, within: Option<&Computation>, thread: u64, event_loop: u64) -> bool {
        let Wait::Follows(follower) = self.replace(Wait::Closed) else { return false };
        let blocks = [Place::Thread(thread), Place::Loop(event_loop)];
        let blocks = match (thread, event_loop) {
            (0, _) => &[],
            (_, 0) => &blocks[..1],
            _ => &blocks[..],
        };
        match follower.wait_from(within.map(|computation| &computation.inner), blocks) {
            None => false,
            Some(waiter) => {
                self.replace(Wait::Waits(waiter));
                true
            }
        }
    }

    /// Has `call` called without arguments, once, when the flight lands: on the leader's thread, or now if it has.
    fn on_landing(&self, call: Py<PyAny>) {
        let Wait::Waits(mut waiter) = self.replace(Wait::Closed) else { return };
        let wake = move || {
            // At the end of the process nobody waits any more.
            Python::try_attach(|py| {
                // The leader may be going away with an exception of its own on the way.
                let pending = PyErr::take(py);
                if let Err(error) = call.call0(py) {
                    error.write_unraisable(py, Some(call.bind(py)));
                }
                if let Some(pending) = pending {
                    pending.restore(py);
                }
            });
        };
        waiter.on_landing(wake);
        self.replace(Wait::Waits(waiter));
    }

    /// How the flight ended, as a pair: `(VALUE, entry)`; `(AGAIN, None)`: join again; `(UNSHARED, None)`: compute for
    /// yourself; `(FAILED, error)`. `fresh` takes only what was computed after the caller came.
    fn take<'py>(&self, py: Python<'py>, fresh: bool) -> PyResult<(u8, Bound<'py, PyAny>)> {
        let none = || py.None().into_bound(py);
        let Wait::Waits(waiter) = self.replace(Wait::Closed) else { return Ok((AGAIN, none())) };
        let Some(landing) = waiter.landing() else { return Ok((AGAIN, none())) };
        drop(waiter);
        match &*landing.outcome {
            Outcome::Value(landed) if landing.began_after || !fresh && self.passes(landed) => {
                self.cache.count(Count::Coalesced, 1);
                let entry = Entry { entry: landed.entry.clone(), stamp: landed.stamp.to_word() };
                Ok((VALUE, Bound::new(py, entry)?.into_any()))
            }
            Outcome::Failed(failure) if landing.began_after || !fresh => {
                let error = failure.error.bind(py);
                let traceback = failure.traceback.as_ref().map(|traceback| traceback.bind(py));
                error.call_method1("with_traceback", (traceback,))?;
                Ok((FAILED, error.clone().into_any()))
            }
            Outcome::Unshared => Ok((UNSHARED, none())),
            _ => Ok((AGAIN, none())),
        }
    }

    /// Stops waiting. Without effect where the wait has ended.
    fn close(&self) {
        drop(self.replace(Wait::Closed));
    }
}

impl Waiting {
    /// The ordinary check, at delivery, of the stamp that the result carries.
    fn passes(&self, landed: &Landed) -> bool {
        self.scope.is_some_and(|scope| {
            self.cache.judge_stamp(landed.stamp, scope, &self.key, &landed.tags) == Judgement::Valid
        })
    }
}

/// What `Flights.join` brings.
const FOUND: u8 = 0;
const LEAD: u8 = 1;
const FOLLOW: u8 = 2;

/// The flights of one cache.
#[pyclass(frozen, module = "infercache._core")]
pub struct Flights {
    cache: Arc<Cache>,
    namespace: Arc<str>,
    flights: CoreFlights,
    last: Mutex<Option<(Arc<Scope>, ScopeId)>>,
}

impl Flights {
    fn run(&self, key: &Key, scope: Option<ScopeId>, leader: Option<Leader<Plan, Landed, Failure>>) -> Run {
        Run {
            cache: self.cache.clone(),
            key: key.bytes,
            scope,
            namespace: self.namespace.clone(),
            leader: Mutex::new(leader),
            plan: OnceLock::new(),
        }
    }

    /// The implicit tags of a key's entry; one read from its text knows the cache's namespace only.
    fn scope(&self, key: &Key) -> Option<ScopeId> {
        let Some(scope) = &key.scope else { return self.cache.intern(&self.namespace, None) };
        // One function's misses follow one another: its scope need not be hashed each time.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((known, id)) if Arc::ptr_eq(known, scope) => Some(*id),
            _ => {
                let id = self.cache.intern(scope.namespace(), Some((scope.model(), scope.version())))?;
                *last = Some((scope.clone(), id));
                Some(id)
            }
        }
    }
}

#[pymethods]
impl Flights {
    #[new]
    fn new(store: &Store) -> PyResult<Flights> {
        let opened = store.opened()?;
        let flights = flight::Flights::new(waits());
        Ok(Flights {
            cache: opened.cache.clone(),
            namespace: opened.namespace.as_str().into(),
            flights,
            last: Mutex::default(),
        })
    }

    /// A request came: its number, to be kept while it joins again.
    fn arrive(&self) -> Arrived {
        Arrived(self.flights.arrive())
    }

    /// Leads a key or follows who does: `(FOUND, entry)` where the value has come meanwhile (never with `fresh`),
    /// `(LEAD, run)`, `(FOLLOW, waiting)`. `thread` is where a blocking caller would lead; without, `event_loop` is.
    #[pyo3(signature = (key, arrived, within, thread, event_loop, fresh))]
    fn join<'py>(
        &self,
        py: Python<'py>,
        key: &Key,
        arrived: &Arrived,
        within: Option<&Computation>,
        thread: u64,
        event_loop: u64,
        fresh: bool,
    ) -> PyResult<(u8, Bound<'py, PyAny>)> {
        let scope = self.scope(key);
        let doomed = |plan: &Plan| {
            let judge = |scope| self.cache.judge_stamp(plan.stamp, scope, &key.bytes, &plan.tags);
            scope.is_none_or(|scope| judge(scope) != Judgement::Valid)
        };
        let place = if thread == 0 { Place::Loop(event_loop) } else { Place::Thread(thread) };
        let caller = Caller { arrival: arrived.0, within: within.map(|computation| &computation.inner), place };
        match self.flights.join(&key.bytes, caller, doomed) {
            Join::Recursion => Err(PyErr::from_type(
                crate::errors::class(py, "RecursiveComputation")?,
                "this computation asks the cache for its own result; call the undecorated function (__wrapped__) instead",
            )),
            Join::Follow(follower) => {
                let state = Mutex::new(Wait::Follows(follower));
                let waiting = Waiting { cache: self.cache.clone(), key: key.bytes, scope, state };
                Ok((FOLLOW, Bound::new(py, waiting)?.into_any()))
            }
            Join::Lead(leader) => {
                // Between the look-up that missed and this moment another leader may have stored and landed.
                if !fresh && let Found::Fresh(hit) = self.cache.peek(&key.bytes) {
                    let landed = Landed { entry: hit.entry.clone(), stamp: hit.stamp, tags: hit.entry.tags().into() };
                    leader.land(Outcome::Value(landed));
                    self.cache.count(Count::Coalesced, 1);
                    let entry = Entry { entry: hit.entry, stamp: hit.stamp.to_word() };
                    return Ok((FOUND, Bound::new(py, entry)?.into_any()));
                }
                Ok((LEAD, Bound::new(py, self.run(key, scope, Some(leader)))?.into_any()))
            }
        }
    }

    /// A run that nobody follows.
    fn alone(&self, key: &Key) -> Run {
        self.run(key, self.scope(key), None)
    }

    /// The model is about to run for these: reads the stamp, lets newcomers know it and the tags that are known before.
    /// `led` are all runs that the caller has not landed yet.
    fn take_off(
        &self,
        runs: Vec<PyRef<'_, Run>>,
        tags: Vec<Vec<String>>,
        led: Vec<PyRef<'_, Run>>,
        within: Option<&Computation>,
    ) -> Computation {
        let ids = led.iter().filter_map(|run| {
            let leader = run.leader.lock().unwrap_or_else(PoisonError::into_inner);
            leader.as_ref().map(Leader::id)
        });
        let (ids, keys) = (ids.collect(), runs.iter().map(|run| run.key).collect());
        let inner = self.flights.computation(within.map(|computation| computation.inner.clone()), keys, ids);
        RUNNING.fetch_add(1, Ordering::Relaxed);
        for (run, tags) in runs.iter().zip(&tags) {
            run.take_off(tags);
        }
        Computation { inner, began: Instant::now(), seconds: OnceLock::new() }
    }

    /// The entry of a key whose life has been over for less than `most` milliseconds, or that a soft purge marked, or
    /// that is fresh after all; None if a hard purge hides it or there is none. Counted as a stale hit.
    fn stale(&self, key: &Key, most: u64) -> Option<Entry> {
        let hit = match self.cache.peek(&key.bytes) {
            Found::Fresh(hit) => hit,
            Found::Stale(hit) if hit.past < most => hit,
            _ => return None,
        };
        self.cache.count(Count::StaleHits, 1);
        self.cache.count(Count::SavedNanoseconds, (f64::from(hit.entry.cost()) * 1e9) as u64);
        Some(Entry { stamp: hit.stamp.to_word(), entry: hit.entry })
    }

    /// Flights that newcomers can reach now.
    fn __len__(&self) -> usize {
        self.flights.len()
    }
}

/// When a request came.
#[pyclass(frozen, module = "infercache._core")]
pub struct Arrived(Arrival);

/// The child of a fork waits for nobody: its flights are made anew, on a graph of their own.
#[pyfunction]
fn _forget_waits() {
    *WAITS.lock().unwrap_or_else(PoisonError::into_inner) = None;
    RUNNING.store(0, Ordering::Relaxed);
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Flights>()?;
    module.add_class::<Arrived>()?;
    module.add_class::<Run>()?;
    module.add_class::<Waiting>()?;
    module.add_class::<Computation>()?;
    module.add_class::<Terms>()?;
    module.add_class::<Encoded>()?;
    module.add_class::<Entry>()?;
    module.add("current_computation", current(module.py())?)?;
    for (name, code) in [
        ("VALUE", VALUE),
        ("AGAIN", AGAIN),
        ("UNSHARED", UNSHARED),
        ("FAILED", FAILED),
        ("FOUND", FOUND),
        ("LEAD", LEAD),
        ("FOLLOW", FOLLOW),
    ] {
        module.add(name, code)?;
    }
    module.add_function(wrap_pyfunction!(encode, module)?)?;
    module.add_function(wrap_pyfunction!(_forget_waits, module)?)
}
