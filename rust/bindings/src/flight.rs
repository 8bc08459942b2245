//! The Python face of flights: who computes, who waits, and how a result is stored and handed over.
//!
//! `infercache/flights.py` describes the steps; each object here is one of its nouns. Nothing here holds a lock while
//! Python code runs: outcomes are taken out of the flights before they are decoded or dropped.

mod computation;
mod entry;
mod run;
mod waiting;

pub use computation::{stamp_here, used};
pub use entry::{Encoded, Entry, Terms};

use crate::key::Key;
use crate::opened::LastScope;
use crate::store::Store;
use crate::tiered::Finds;
use computation::{Computation, current, forget_running};
use entry::encode;
use infercache_core::cache::{Cache, Found};
use infercache_core::entry::KeyBytes;
use infercache_core::fence::Judgement;
use infercache_core::flight::{self, Arrival, Caller, Join, Leader, Outcome, Place, Waits};
use infercache_core::scopes::ScopeId;
use infercache_core::stats::Count;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use run::{Failure, Landed, Plan, Run};
use std::sync::{Arc, Mutex, PoisonError};
use waiting::{AGAIN, FAILED, UNSHARED, VALUE, Waiting};

type CoreFlights = flight::Flights<Plan, Landed, Failure>;

/// The graph of waits of this process. Replaced in the child of a fork, where nobody waits.
static WAITS: Mutex<Option<Arc<Waits>>> = Mutex::new(None);

fn waits() -> Arc<Waits> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Arc::default).clone()
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
    last: Mutex<LastScope>,
}

/// What joining a key brings.
enum Joined {
    Found(Entry),
    Lead(Run),
    Follow(Waiting),
}

/// What joining many brings.
type JoinedAll<'py> = (Vec<(Bound<'py, Key>, Run)>, Vec<(Bound<'py, Key>, Waiting)>, Vec<(Bound<'py, Key>, Entry)>);

impl Flights {
    fn caller<'a>(arrived: &'a Arrived, within: Option<&'a Computation>, thread: u64, event_loop: u64) -> Caller<'a> {
        let place = if thread == 0 { Place::Loop(event_loop) } else { Place::Thread(thread) };
        Caller { arrival: arrived.0, within: within.map(|computation| &computation.inner), place }
    }

    fn join_one(&self, py: Python<'_>, key: &Key, caller: Caller<'_>, fresh: bool) -> PyResult<Joined> {
        let (bytes, scope) = (key.bytes(py)?, self.scope(key));
        let doomed = |plan: &Plan| {
            let judge = |scope| self.cache.judge_stamp(plan.stamp, scope, bytes, &plan.tags);
            scope.is_none_or(|scope| judge(scope) != Judgement::Valid)
        };
        match self.flights.join(bytes, caller, doomed) {
            Join::Recursion => Err(recursion(py)?),
            Join::Follow(follower) => Ok(Joined::Follow(Waiting::new(self.cache.clone(), *bytes, scope, follower))),
            Join::Lead(leader) => {
                // Between the look-up that missed and this moment another leader may have stored and landed.
                if !fresh && let Found::Fresh(hit) = self.cache.peek(bytes) {
                    let landed = Landed { entry: hit.entry.clone(), stamp: hit.stamp, tags: hit.entry.tags().into() };
                    leader.land(Outcome::Value(landed));
                    self.cache.count(Count::Coalesced, 1);
                    return Ok(Joined::Found(Entry { entry: hit.entry, stamp: hit.stamp.to_word() }));
                }
                Ok(Joined::Lead(self.run(*bytes, scope, Some(leader))))
            }
        }
    }

    fn run(&self, key: KeyBytes, scope: Option<ScopeId>, leader: Option<Leader<Plan, Landed, Failure>>) -> Run {
        Run::new(self.cache.clone(), key, scope, self.namespace.clone(), leader)
    }

    /// The implicit tags of a key's entry; one read from its text knows the cache's namespace only.
    fn scope(&self, key: &Key) -> Option<ScopeId> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).id(&self.cache, &self.namespace, key)
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
        let caller = Flights::caller(arrived, within, thread, event_loop);
        Ok(match self.join_one(py, key, caller, fresh)? {
            Joined::Found(entry) => (FOUND, Bound::new(py, entry)?.into_any()),
            Joined::Lead(run) => (LEAD, Bound::new(py, run)?.into_any()),
            Joined::Follow(waiting) => (FOLLOW, Bound::new(py, waiting)?.into_any()),
        })
    }

    /// `join` of many keys: the runs to lead, the waits for who leads, and the entries that have come meanwhile, each with
    /// its key.
    #[pyo3(signature = (keys, arrived, within, thread, event_loop, fresh))]
    fn join_all<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<Bound<'py, Key>>,
        arrived: &Arrived,
        within: Option<&Computation>,
        thread: u64,
        event_loop: u64,
        fresh: bool,
    ) -> PyResult<JoinedAll<'py>> {
        let caller = Flights::caller(arrived, within, thread, event_loop);
        let (mut led, mut followed, mut found) = (Vec::with_capacity(keys.len()), Vec::new(), Vec::new());
        for key in keys {
            // Should one of them raise, the runs that were led are dropped, and with them abandoned.
            match self.join_one(py, key.get(), caller, fresh)? {
                Joined::Found(entry) => found.push((key, entry)),
                Joined::Lead(run) => led.push((key, run)),
                Joined::Follow(waiting) => followed.push((key, waiting)),
            }
        }
        Ok((led, followed, found))
    }

    /// A run that nobody follows.
    fn alone(&self, py: Python<'_>, key: &Key, within: Option<&Computation>) -> PyResult<Run> {
        let bytes = key.bytes(py)?;
        if self.flights.recurs(bytes, within.map(|computation| &computation.inner)) {
            return Err(recursion(py)?);
        }
        Ok(self.run(*bytes, self.scope(key), None))
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
        let (ids, keys) = (led.iter().filter_map(|run| run.flight()), runs.iter().map(|run| run.key));
        let within = within.map(|computation| computation.inner.clone());
        let inner = self.flights.computation(within, keys.collect(), ids.collect());
        for (run, tags) in runs.iter().zip(&tags) {
            // A request to another process from within carries it: see `Cache.token`.
            inner.used(run.take_off(tags));
        }
        Computation::begin(inner)
    }

    /// The entry of a key whose life has been over for less than `most` milliseconds, or that a soft purge marked, or
    /// that is fresh after all; None if a hard purge hides it or there is none. Counted as a stale hit.
    fn stale(&self, py: Python<'_>, key: &Key, most: u64) -> PyResult<Option<Entry>> {
        let hit = match self.cache.peek(key.bytes(py)?) {
            Found::Fresh(hit) => hit,
            Found::Stale(hit) if hit.past < most => hit,
            _ => return Ok(None),
        };
        self.cache.count(Count::StaleHits, 1);
        self.cache.count(Count::SavedNanoseconds, (f64::from(hit.entry.cost()) * 1e9) as u64);
        Ok(Some(Entry { stamp: hit.stamp.to_word(), entry: hit.entry }))
    }

    /// Flights that newcomers can reach now.
    fn __len__(&self) -> usize {
        self.flights.len()
    }
}

fn recursion(py: Python<'_>) -> PyResult<PyErr> {
    Ok(PyErr::from_type(
        crate::errors::class(py, "RecursiveComputation")?,
        "this computation asks the cache for its own result; call the undecorated function (__wrapped__) instead",
    ))
}

/// Hands what was found of led keys (an entry, and where it is from) to those who wait for it, and writes it down among the
/// answers and the sources. What is "stale" is handed to nobody: who waits for it asks for itself. The places of the keys
/// that nothing was found of, and of the stale ones.
#[pyfunction]
fn adopt_all(
    led: Vec<(Bound<'_, Key>, Bound<'_, Run>)>,
    found: &Finds,
    answers: &Bound<'_, PyDict>,
    sources: &Bound<'_, PyDict>,
) -> PyResult<(Vec<usize>, Vec<usize>)> {
    let (mut left, mut stale) = (Vec::new(), Vec::new());
    for (place, (key, run)) in led.iter().enumerate() {
        let Some(find) = found.at(place) else {
            left.push(place);
            continue;
        };
        let (entry, source) = find.shown(key.py());
        if find.hit == Count::StaleHits {
            run.get().abandon();
            stale.push(place);
        } else {
            run.get().adopt(&entry);
        }
        answers.set_item(key, entry)?;
        sources.set_item(key, source)?;
    }
    Ok((left, stale))
}

/// When a request came.
#[pyclass(frozen, module = "infercache._core")]
pub struct Arrived(Arrival);

/// The child of a fork waits for nobody: its flights are made anew, on a graph of their own.
#[pyfunction]
fn _forget_waits() {
    *WAITS.lock().unwrap_or_else(PoisonError::into_inner) = None;
    forget_running();
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
    module.add_function(wrap_pyfunction!(adopt_all, module)?)?;
    module.add_function(wrap_pyfunction!(_forget_waits, module)?)
}
