//! Leading: the right, and the duty, to compute one key.

use super::computation::Computation;
use super::entry::{Encoded, Entry, Terms};
use crate::released::{COPY_FROM, released, released_from};
use crate::value;
use infercache_core::cache::{Cache, Stored, Write};
use infercache_core::entry::{EntryRef, KeyBytes};
use infercache_core::fence::{Stamp, Target};
use infercache_core::flight::{FlightId, Leader, Outcome};
use infercache_core::scopes::ScopeId;
use infercache_core::stats::Count;
use pyo3::exceptions::PyBaseException;
use pyo3::prelude::*;
use pyo3::types::PyTraceback;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What a newcomer must know of a run to see whether a purge has doomed it.
#[derive(Debug)]
pub struct Plan {
    pub(super) stamp: Stamp,
    pub(super) tags: Box<[u64]>,
}

/// A result that waiters may share.
#[derive(Debug)]
pub struct Landed {
    pub(super) entry: EntryRef,
    pub(super) stamp: Stamp,
    pub(super) tags: Box<[u64]>,
}

/// The leader's error, with the traceback it had: every waiter that raises it would otherwise lengthen the next one's.
#[derive(Debug)]
pub struct Failure {
    pub(super) error: Py<PyBaseException>,
    pub(super) traceback: Option<Py<PyTraceback>>,
}

type CoreLeader = Leader<Plan, Landed, Failure>;

/// The right, and the duty, to compute one key: a leader's, or that of a caller who could not wait and computes alone.
#[pyclass(frozen, module = "infercache._core")]
pub struct Run {
    cache: Arc<Cache>,
    pub(super) key: KeyBytes,
    scope: Option<ScopeId>,
    namespace: Arc<str>,
    leader: Mutex<Option<CoreLeader>>,
    plan: OnceLock<Plan>,
}

impl Run {
    /// The run of a flight's leader, or of nobody's flight.
    pub(super) fn new(
        cache: Arc<Cache>,
        key: KeyBytes,
        scope: Option<ScopeId>,
        namespace: Arc<str>,
        leader: Option<CoreLeader>,
    ) -> Run {
        Run { cache, key, scope, namespace, leader: Mutex::new(leader), plan: OnceLock::new() }
    }

    /// Its flight, while it has one.
    pub(super) fn flight(&self) -> Option<FlightId> {
        self.leader.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Leader::id)
    }

    /// Stores a value; one that takes long to copy is copied without the interpreter.
    fn store(&self, py: Python<'_>, write: &Write<'_>) -> (Stored, EntryRef) {
        let large = write.payload.len() >= COPY_FROM;
        let prepare = || self.cache.prepare(&self.key, write, &[]);
        match large.then(|| released(py, prepare)).flatten() {
            Some(entry) => (self.cache.store_prepared(&entry), entry),
            None => self.cache.store(&self.key, write),
        }
    }

    fn leader(&self) -> Option<CoreLeader> {
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

    /// The model is about to run: reads the stamp, and lets newcomers know it and the tags that are known before.
    pub(super) fn take_off(&self, tags: &[String]) -> Stamp {
        let plan = |stamp| Plan { stamp, tags: self.hash(tags).collect() };
        // One reading for both: a smaller stamp is always safe.
        let stamp = self.cache.stamp();
        let _ = self.plan.set(plan(stamp));
        if let Some(leader) = &*self.leader.lock().unwrap_or_else(PoisonError::into_inner) {
            leader.take_off(plan(stamp));
        }
        stamp
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
        let (stored, entry) = self.store(py, &write);
        if stored == Stored::Refused {
            self.cache.remove(&self.key); // what cannot be kept leaves nothing older in its place
        }
        self.finish(Outcome::Value(Landed { entry: entry.clone(), stamp, tags: all.into() }));
        Entry { entry, stamp: stamp.to_word() }
    }

    /// The tier had the answer: it is handed to the waiters, who check its stamp for themselves.
    pub(super) fn adopt(&self, entry: &Entry) {
        let (stamp, tags) = (Stamp::from_word(entry.stamp), entry.entry.tags().into());
        self.finish(Outcome::Value(Landed { entry: entry.entry.clone(), stamp, tags }));
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
    pub(super) fn abandon(&self) {
        drop(self.leader());
    }
}
