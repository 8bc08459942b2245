//! Following: a flight that another leads.

use super::computation::Computation;
use super::entry::Entry;
use super::run::{Failure, Landed, Plan};
use infercache_core::cache::Cache;
use infercache_core::entry::KeyBytes;
use infercache_core::fence::Judgement;
use infercache_core::flight::{Follower, Outcome, Place, Waiter};
use infercache_core::scopes::ScopeId;
use infercache_core::stats::Count;
use pyo3::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

type CoreFollower = Follower<Plan, Landed, Failure>;

enum Wait {
    Follows(CoreFollower),
    Waits(Waiter<Plan, Landed, Failure>),
    Closed,
}

/// Another one's flight, to be waited for.
#[pyclass(frozen, module = "infercache._core")]
pub struct Waiting {
    cache: Arc<Cache>,
    key: KeyBytes,
    scope: Option<ScopeId>,
    /// The event loop whose task leads; 0: a thread does.
    #[pyo3(get)]
    event_loop: u64,
    state: Mutex<Wait>,
}

impl Waiting {
    /// Another one's flight for this key.
    pub(super) fn new(cache: Arc<Cache>, key: KeyBytes, scope: Option<ScopeId>, follower: CoreFollower) -> Waiting {
        let event_loop = match follower.place() {
            Place::Loop(event_loop) => event_loop,
            Place::Thread(_) => 0,
        };
        Waiting { cache, key, scope, event_loop, state: Mutex::new(Wait::Follows(follower)) }
    }

    fn replace(&self, state: Wait) -> Wait {
        std::mem::replace(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), state)
    }
}

/// What `Waiting.take` brings; no number is also one of those that `Flights.join` brings.
pub const VALUE: u8 = 3;
pub const AGAIN: u8 = 4;
pub const UNSHARED: u8 = 5;
pub const FAILED: u8 = 6;

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

    /// Has `call` called without arguments, once, when the flight lands: on the thread that ends it, or now if
    /// it has.
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

    /// Nobody carries the flight on: it ends as if its leader had gone away, and all that wait for it wake.
    fn abandon(&self) {
        match self.replace(Wait::Closed) {
            Wait::Follows(follower) => follower.abandon(),
            Wait::Waits(waiter) => {
                waiter.abandon();
                self.replace(Wait::Waits(waiter));
            }
            Wait::Closed => {}
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
        // The proof first: see rust/core/src/fence.rs on the order of a reader's loads.
        let assured = self.cache.is_assured(!landed.tags.is_empty(), None);
        assured
            && self.scope.is_some_and(|scope| {
                self.cache.judge_stamp(landed.stamp, scope, &self.key, &landed.tags) == Judgement::Valid
            })
    }
}
