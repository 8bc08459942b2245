//! Found | Lead | Wait: one leader a key.
//!
//! Whoever misses a key *joins* it. The first becomes its [`Leader`] and computes; whoever comes while that computation
//! runs is a [`Follower`] and, once it has nothing else to do, a [`Waiter`] that is handed the outcome: a batch computes
//! what it leads itself before it waits for what others compute, so that two batches never hold each other up. What a
//! look-up finds never comes here.
//!
//! ```text
//!            join ──────── nobody leads ────────▶ Leader ── take_off(run) ── model ── land(outcome)
//!             │  ╲                                                                        │
//!             │   ╲── its own key, within itself ▶ Recursion                              ▼
//!             └────── somebody leads ───────────▶ Follower                             Landing
//!                                                  │   ╲                                  ▲
//!                              the wait may begin ▶│    ╲─ it would never end ▶ alone:     │
//!                                                  ▼                          compute,     │
//!                                                Waiter ── wait | on_landing  tell nobody  │
//!                                                  └───────────────────────────────────────┘
//! ```
//!
//! **What a landing brings.** A value (the waiter still asks whether it may take it, see below); [`Outcome::Unshared`]
//! (the result exists but is nobody else's: every waiter computes for itself, all at once); [`Outcome::Failed`] (every
//! waiter gets the leader's error); [`Outcome::Abandoned`] (the leader was cancelled: the waiters join again and one of
//! them leads). A leader that is dropped abandons its flight, so no waiter is ever forgotten. One that is kept, but never
//! carried on, cannot: whoever follows it and sees that, from where it leads ([`Follower::place`]), abandons the flight in
//! its stead. Should it come back, it lands for nobody.
//!
//! **The join rule** (DESIGN section 6). A waiter takes a value only if the stamp that the value carries passes the
//! ordinary check when it is delivered, or if the model's run began after the waiter came ([`Landing::began_after`]);
//! otherwise it joins again and, its [`Arrival`] being the old one, is content with the next flight at the latest.
//! A newcomer that finds a flight which an invalidation has doomed already does not wait for it: it leads at once. The
//! old flight goes on for those who came before, but nobody new can reach it.
//!
//! **Waits end.** A leader may itself wait, from within its model. [`Waits`] keeps who waits for whom and refuses a wait
//! that would close a cycle; the refused caller computes alone. See [`waits`].
//!
//! **Locks.** A shard's map, then a flight's state; never the other way round, and the graph's lock under the shard's
//! only. No caller's code runs and nothing of a caller's is dropped under any of them: outcomes and wake-ups may own
//! objects of an interpreter. The one exception is the `doomed` test, which is asked under the shard's lock and must be
//! a plain comparison.

mod computation;
pub mod waits;

pub use computation::Computation;
pub use waits::{FlightId, Place, Waits};

use crate::entry::{KeyBytes, KeyMap};
use crate::limits::KEY_BYTES;
use crate::sync::{Arc, Condvar, Mutex};

/// Shards of the map of flights: joins are misses, a model run each, so a few are enough.
const SHARDS: usize = 16;

/// How a flight ended.
#[derive(Debug)]
pub enum Outcome<T, E> {
    /// A result that waiters may share, once they have checked it.
    Value(T),
    /// The leader has a result that nobody may share (it cannot be stored, or the caller's rule refused it).
    Unshared,
    /// The computation failed.
    Failed(E),
    /// The leader went away without a result.
    Abandoned,
}

/// When a caller came, on the order that all flights of a [`Waits`] share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(u64);

/// Who joins.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// When its request came: from [`Flights::arrive`], once a request, kept when it joins again.
    pub arrival: Arrival,
    /// The computation that it asks from within.
    pub within: Option<&'a Arc<Computation>>,
    /// Where it would lead.
    pub place: Place,
}

/// What came of joining.
#[derive(Debug)]
pub enum Join<R, T, E> {
    /// Compute, and [`Leader::land`].
    Lead(Leader<R, T, E>),
    /// Another computes: [`Follower::wait_from`].
    Follow(Follower<R, T, E>),
    /// The caller is being computed by the very computation that it asks for.
    Recursion,
}

/// The flights of one cache. `R` is what a newcomer needs to know of a run to see whether it is doomed (its stamp and
/// tags), `T` a result, `E` an error.
#[derive(Debug)]
pub struct Flights<R, T, E>(Arc<Shared<R, T, E>>);

#[derive(Debug)]
struct Shared<R, T, E> {
    id: u64,
    waits: Arc<Waits>,
    shards: Box<[Shard<R, T, E>]>,
}

type Shard<R, T, E> = Mutex<KeyMap<Arc<Flight<R, T, E>>>>;

#[derive(Debug)]
struct Flight<R, T, E> {
    id: FlightId,
    key: KeyBytes,
    place: Place,
    state: Mutex<State<R, T, E>>,
    landed: Condvar,
}

#[derive(Debug)]
struct State<R, T, E> {
    run: Option<(u64, R)>,
    outcome: Option<Arc<Outcome<T, E>>>,
    wake: Wake,
}

/// Called once when the flight lands, on the thread that ends it (the leader's, mostly), with no lock held.
type WakeUp = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Wake {
    next: u64,
    calls: Vec<(u64, WakeUp)>,
}

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wake({})", self.calls.len())
    }
}

impl<R, T, E> Clone for Flights<R, T, E> {
    fn clone(&self) -> Self {
        Flights(self.0.clone())
    }
}

impl<R, T, E> Flights<R, T, E> {
    /// No flights yet; their waits are kept in `waits`, which all caches of a process share.
    pub fn new(waits: Arc<Waits>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(KeyMap::default())).collect();
        Flights(Arc::new(Shared { id: waits.next(), waits, shards }))
    }

    /// A request came.
    pub fn arrive(&self) -> Arrival {
        Arrival(self.0.waits.next())
    }

    /// Whether the caller asks for `key` from within its own computation. [`Flights::join`] looks for itself.
    pub fn recurs(&self, key: &KeyBytes, within: Option<&Arc<Computation>>) -> bool {
        within.is_some_and(|computation| computation.computes(self.0.id, key))
    }

    /// Leads `key`, waits for who does, or neither. `doomed` says of a run that no newcomer may have its result; it is
    /// called under a lock and must only compare.
    pub fn join(&self, key: &KeyBytes, caller: Caller<'_>, doomed: impl FnOnce(&R) -> bool) -> Join<R, T, E> {
        if self.recurs(key, caller.within) {
            return Join::Recursion;
        }
        let mut shard = self.0.shard(key).lock();
        let running = shard.get(key);
        let free = running.is_none_or(|flight| flight.state.lock().run.as_ref().is_some_and(|(_, run)| doomed(run)));
        let flight = match running {
            Some(flight) if !free => flight.clone(),
            _ => {
                let leader = self.lead(key, caller);
                let doomed = shard.insert(*key, leader.flight.clone());
                drop(shard);
                drop(doomed);
                return Join::Lead(leader);
            }
        };
        drop(shard);
        Join::Follow(Follower { flight, shared: self.0.clone(), arrival: caller.arrival })
    }

    fn lead(&self, key: &KeyBytes, caller: Caller<'_>) -> Leader<R, T, E> {
        let flight = Arc::new(Flight {
            id: self.0.waits.next(),
            key: *key,
            place: caller.place,
            state: Mutex::new(State { run: None, outcome: None, wake: Wake::default() }),
            landed: Condvar::new(),
        });
        self.0.waits.lead(flight.id, flight.place);
        Leader { flight, shared: self.0.clone(), landed: false }
    }

    /// The computation of `keys` on behalf of the flights `led` (all that its caller leads and has not landed), within
    /// another or not. Its code carries it, hands it to [`Flights::join`] as [`Caller::within`], and
    /// [`ends`](Computation::end) it.
    pub fn computation(
        &self,
        within: Option<Arc<Computation>>,
        keys: Vec<KeyBytes>,
        led: Vec<FlightId>,
    ) -> Arc<Computation> {
        Arc::new(Computation::new(within, self.0.id, keys, led))
    }

    /// Flights that newcomers can reach now.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Nobody computes anything that a newcomer could reach.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R, T, E> Shared<R, T, E> {
    fn shard(&self, key: &KeyBytes) -> &Shard<R, T, E> {
        &self.shards[key[KEY_BYTES - 1] as usize % SHARDS]
    }

    /// The flight is over: no newcomer reaches it any more, and its waiters wake. Of two ends the first counts.
    fn end(&self, flight: &Arc<Flight<R, T, E>>, outcome: Outcome<T, E>) {
        let mut shard = self.shard(&flight.key).lock();
        // A doomed or abandoned flight has been replaced by another one, which is not ours to remove.
        let ours = shard.get(&flight.key).is_some_and(|current| Arc::ptr_eq(current, flight));
        let removed = if ours { shard.remove(&flight.key) } else { None };
        drop(shard);
        drop(removed);
        self.waits.land(flight.id, flight.place);
        let mut state = flight.state.lock();
        let late = match state.outcome {
            None => {
                state.outcome = Some(Arc::new(outcome));
                None
            }
            Some(_) => Some(outcome),
        };
        let calls = std::mem::take(&mut state.wake.calls);
        drop(state);
        drop(late);
        flight.landed.notify_all();
        for (_, call) in calls {
            call();
        }
    }
}

/// The one who computes. Dropped without landing, it abandons the flight.
#[derive(Debug)]
pub struct Leader<R, T, E> {
    flight: Arc<Flight<R, T, E>>,
    shared: Arc<Shared<R, T, E>>,
    landed: bool,
}

impl<R, T, E> Leader<R, T, E> {
    /// The flight, for [`Flights::computation`].
    pub fn id(&self) -> FlightId {
        self.flight.id
    }

    /// The key that is led.
    pub fn key(&self) -> &KeyBytes {
        &self.flight.key
    }

    /// The model is about to run. `run` holds the stamp, which was read before this call.
    pub fn take_off(&self, run: R) {
        let began = self.shared.waits.next();
        let old = self.flight.state.lock().run.replace((began, run));
        drop(old);
    }

    /// The flight is over: no newcomer reaches it any more, and its waiters wake. A value that is stored must have been
    /// stored before, so that a newcomer that finds no flight finds the value.
    pub fn land(mut self, outcome: Outcome<T, E>) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome<T, E>) {
        if !std::mem::replace(&mut self.landed, true) {
            self.shared.end(&self.flight, outcome);
        }
    }
}

impl<R, T, E> Drop for Leader<R, T, E> {
    fn drop(&mut self) {
        self.finish(Outcome::Abandoned);
    }
}

/// One who may wait, and has not begun to.
#[derive(Debug)]
pub struct Follower<R, T, E> {
    flight: Arc<Flight<R, T, E>>,
    shared: Arc<Shared<R, T, E>>,
    arrival: Arrival,
}

impl<R, T, E> Follower<R, T, E> {
    /// Where the flight is led.
    pub fn place(&self) -> Place {
        self.flight.place
    }

    /// Nobody carries the flight on: it ends as if its leader had gone away.
    pub fn abandon(self) {
        self.shared.end(&self.flight, Outcome::Abandoned);
    }

    /// Begins the wait, from within a computation or not. `blocks` is what stands still meanwhile: the caller's thread
    /// and the event loop that runs there if waiting blocks, else nothing.
    ///
    /// `None`: the wait would never end, because what is waited for needs the caller, or whatever the wait holds up.
    /// The caller then computes for itself.
    pub fn wait_from(self, within: Option<&Arc<Computation>>, blocks: &[Place]) -> Option<Waiter<R, T, E>> {
        let landed = self.flight.state.lock().outcome.is_some();
        let held = if landed {
            Vec::new()
        } else {
            let within = within.map_or_else(Vec::new, |computation| computation.flights());
            self.shared.waits.begin(self.flight.id, within, blocks)?
        };
        Some(Waiter { flight: self.flight, shared: self.shared, held, arrival: self.arrival, wake: None })
    }
}

/// One who waits. Dropped, it waits no longer and harms nobody.
#[derive(Debug)]
pub struct Waiter<R, T, E> {
    flight: Arc<Flight<R, T, E>>,
    shared: Arc<Shared<R, T, E>>,
    held: Vec<FlightId>,
    arrival: Arrival,
    wake: Option<u64>,
}

/// A flight's end, as one waiter sees it.
#[derive(Debug)]
pub struct Landing<T, E> {
    /// How it ended, shared by all waiters.
    pub outcome: Arc<Outcome<T, E>>,
    /// The model's run began after this waiter came, so its value needs no other proof.
    pub began_after: bool,
}

impl<R, T, E> Waiter<R, T, E> {
    /// Waits, blocking the thread, until the flight has landed.
    pub fn wait(&self) -> Landing<T, E> {
        let mut state = self.flight.state.lock();
        loop {
            if let Some(landing) = self.landing_of(&state) {
                return landing;
            }
            self.flight.landed.wait(&mut state);
        }
    }

    /// How the flight ended, if it did.
    pub fn landing(&self) -> Option<Landing<T, E>> {
        self.landing_of(&self.flight.state.lock())
    }

    /// Has `call` made once, when the flight lands: on the thread that ends it, or here and now if it has landed. A second
    /// call takes the first one's place. Dropping the waiter takes it back, unless it is being made already.
    pub fn on_landing(&mut self, call: impl FnOnce() + Send + 'static) {
        let call: WakeUp = Box::new(call);
        let mut state = self.flight.state.lock();
        let replaced = take_call(&mut state.wake, self.wake.take());
        let due = if state.outcome.is_some() {
            Some(call)
        } else {
            state.wake.next += 1;
            let number = state.wake.next;
            state.wake.calls.push((number, call));
            self.wake = Some(number);
            None
        };
        drop(state);
        drop(replaced);
        if let Some(call) = due {
            call();
        }
    }

    /// As [`Follower::abandon`], for one who waits already: it is woken with the others.
    pub fn abandon(&self) {
        self.shared.end(&self.flight, Outcome::Abandoned);
    }

    fn landing_of(&self, state: &State<R, T, E>) -> Option<Landing<T, E>> {
        let outcome = state.outcome.clone()?;
        let began_after = state.run.as_ref().is_some_and(|(began, _)| *began > self.arrival.0);
        Some(Landing { outcome, began_after })
    }
}

fn take_call(wake: &mut Wake, number: Option<u64>) -> Option<WakeUp> {
    let number = number?;
    let at = wake.calls.iter().position(|(other, _)| *other == number)?;
    Some(wake.calls.swap_remove(at).1)
}

impl<R, T, E> Drop for Waiter<R, T, E> {
    fn drop(&mut self) {
        self.shared.waits.end(self.flight.id, &self.held);
        if self.wake.is_some() {
            let mut state = self.flight.state.lock();
            let call = take_call(&mut state.wake, self.wake.take());
            drop(state);
            drop(call);
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests;
