//! Flights under explored thread schedules: `cargo test -p infercache-core --features explore --test explore_flight`.
//!
//! shuttle runs every scenario under many schedules, reports a deadlock (a lost wake-up is one) and repeats a failing
//! schedule from its seed. The table and the model are reduced to what the guarantees speak of.
#![cfg(feature = "explore")]

use infercache_core::flight::{Caller, Computation, Flights, Join, Landing, Outcome, Place, Waits};
use infercache_core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use infercache_core::sync::{Arc, Mutex, thread};

type Test = Flights<u64, (u64, u64), &'static str>;

const SCHEDULES: usize = 20_000;
/// Scenarios purge once at most.
const LAST_PURGE: u64 = 1;

fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(scenario.clone(), SCHEDULES);
    shuttle::check_pct(scenario, SCHEDULES, 3);
}

fn key(name: u8) -> [u8; 32] {
    [name; 32]
}

/// A cache in miniature: a fence, one slot a key, a source that the model reads.
struct World {
    flights: Test,
    waits: Arc<Waits>,
    fence: AtomicU64,
    source: AtomicU64,
    slot: Mutex<Option<(u64, u64)>>,
    leading: AtomicUsize,
    runs: AtomicUsize,
    /// Runs whose stamp is the last fence: no purge came between them.
    fresh_runs: AtomicUsize,
    /// Whether a newcomer can see that a flight is doomed; not so where the result decides its own tags.
    tags_known: bool,
}

impl World {
    fn new() -> Arc<World> {
        World::with(true)
    }

    fn with(tags_known: bool) -> Arc<World> {
        let waits = Arc::new(Waits::new());
        Arc::new(World {
            flights: Flights::new(waits.clone()),
            waits,
            fence: AtomicU64::new(0),
            source: AtomicU64::new(0),
            slot: Mutex::new(None),
            leading: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
            fresh_runs: AtomicUsize::new(0),
            tags_known,
        })
    }

    fn caller<'a>(&self, thread: u64, within: Option<&'a Arc<Computation>>) -> Caller<'a> {
        Caller { arrival: self.flights.arrive(), within, place: Place::Thread(thread) }
    }

    fn look_up(&self) -> Option<(u64, u64)> {
        self.slot.lock().filter(|(stamp, _)| *stamp >= self.fence.load(Ordering::SeqCst))
    }

    fn store(&self, stamp: u64, value: u64) {
        let mut slot = self.slot.lock();
        if stamp >= self.fence.load(Ordering::SeqCst) {
            *slot = Some((stamp, value));
        }
    }

    /// Changes the source, then purges: whoever asks from now on is owed the new version.
    fn purge(&self) {
        let version = self.source.fetch_add(1, Ordering::SeqCst) + 1;
        self.fence.store(version, Ordering::SeqCst);
    }

    fn run(&self) -> (u64, u64) {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let stamp = self.fence.load(Ordering::SeqCst);
        (stamp, self.source.load(Ordering::SeqCst))
    }

    /// A whole request, as the Python layer makes it.
    fn ask(&self, thread: u64) -> u64 {
        if let Some((_, value)) = self.look_up() {
            return value;
        }
        let caller = self.caller(thread, None);
        loop {
            let doomed = |stamp: &u64| self.tags_known && *stamp < self.fence.load(Ordering::SeqCst);
            match self.flights.join(&key(1), caller, doomed) {
                Join::Lead(leader) => {
                    if let Some(found) = self.look_up() {
                        leader.land(Outcome::Value(found));
                        return found.1;
                    }
                    let stamp = self.fence.load(Ordering::SeqCst);
                    leader.take_off(stamp);
                    self.runs.fetch_add(1, Ordering::SeqCst);
                    self.fresh_runs.fetch_add(usize::from(stamp == LAST_PURGE), Ordering::SeqCst);
                    let value = self.source.load(Ordering::SeqCst);
                    self.store(stamp, value);
                    leader.land(Outcome::Value((stamp, value)));
                    return value;
                }
                Join::Follow(follower) => {
                    let Some(waiter) = follower.wait_from(None, &[Place::Thread(thread)]) else { return self.run().1 };
                    let Landing { outcome, began_after } = waiter.wait();
                    if let Outcome::Value((stamp, value)) = *outcome
                        && (began_after || stamp >= self.fence.load(Ordering::SeqCst))
                    {
                        return value;
                    }
                }
                Join::Recursion => panic!("nobody recurs here"),
            }
        }
    }

    fn is_quiet(&self) -> bool {
        self.flights.is_empty() && self.waits.is_empty()
    }
}

fn spawn_all(count: u64, work: impl Fn(u64) + Send + Sync + 'static) {
    let work = Arc::new(work);
    let threads: Vec<_> = (1..=count)
        .map(|number| {
            let work = work.clone();
            thread::spawn(move || work(number))
        })
        .collect();
    for thread in threads {
        thread.join().expect("the thread did not panic");
    }
}

#[test]
fn one_computation_per_key_whatever_the_schedule() {
    explore(|| {
        let world = World::new();
        let shared = world.clone();
        spawn_all(3, move |thread| assert_eq!(shared.ask(thread), 0));
        assert_eq!(world.runs.load(Ordering::SeqCst), 1);
        assert!(world.is_quiet());
    });
}

#[test]
fn at_most_one_leads_at_any_time() {
    explore(|| {
        let world = World::new();
        let shared = world.clone();
        spawn_all(3, move |thread| {
            let caller = shared.caller(thread, None);
            match shared.flights.join(&key(1), caller, |_| false) {
                Join::Lead(leader) => {
                    assert_eq!(shared.leading.fetch_add(1, Ordering::SeqCst), 0, "two lead");
                    leader.take_off(0);
                    assert_eq!(shared.leading.fetch_sub(1, Ordering::SeqCst), 1, "two lead");
                    leader.land(Outcome::Unshared);
                }
                Join::Follow(follower) => {
                    let waiter = follower.wait_from(None, &[]).expect("a wait that ends");
                    assert!(matches!(*waiter.wait().outcome, Outcome::Unshared));
                }
                other => panic!("{other:?}"),
            }
        });
        assert!(world.is_quiet());
    });
}

/// Three requests and a purge: nobody who came after the purge gets what was read before it.
fn purged(tags_known: bool) {
    let world = World::with(tags_known);
    let shared = world.clone();
    spawn_all(4, move |thread| {
        if thread == 1 {
            return shared.purge();
        }
        let owed = shared.fence.load(Ordering::SeqCst);
        let got = shared.ask(thread);
        assert!(got >= owed, "owed version {owed}, got {got}");
    });
    assert!(world.is_quiet());
    assert!(world.ask(9) >= LAST_PURGE);
    assert!(world.fresh_runs.load(Ordering::SeqCst) <= 1, "two computed the same at once");
}

#[test]
fn a_result_that_arrives_after_a_purge_is_not_served_to_later_callers() {
    explore(|| purged(true));
}

#[test]
fn a_result_whose_own_tags_were_purged_is_not_served_to_later_joiners() {
    explore(|| purged(false));
}

#[test]
fn an_abandoned_flight_is_led_by_one_of_its_waiters() {
    explore(|| {
        let world = World::new();
        let shared = world.clone();
        let Join::Lead(leader) = world.flights.join(&key(1), world.caller(0, None), |_| false) else { panic!("first") };
        let cancelled = thread::spawn(move || {
            leader.take_off(0);
            drop(leader);
        });
        spawn_all(2, move |thread| assert_eq!(shared.ask(thread), 0));
        cancelled.join().expect("no panic");
        assert_eq!(world.runs.load(Ordering::SeqCst), 1);
        assert!(world.is_quiet());
    });
}

#[test]
fn a_leader_that_comes_back_while_its_flight_is_abandoned_harms_nobody() {
    explore(|| {
        let world = World::new();
        let shared = world.clone();
        let Join::Lead(leader) = world.flights.join(&key(1), world.caller(0, None), |_| false) else { panic!("first") };
        leader.take_off(0);
        let back = thread::spawn(move || leader.land(Outcome::Value((0, 0))));
        spawn_all(2, move |thread| {
            if let Join::Follow(follower) = shared.flights.join(&key(1), shared.caller(thread, None), |_| false) {
                follower.abandon();
            }
            assert_eq!(shared.ask(thread), 0);
        });
        back.join().expect("no panic");
        assert!(world.is_quiet());
    });
}

#[test]
fn a_cancelled_waiter_harms_no_other() {
    explore(|| {
        let world = World::new();
        let shared = world.clone();
        spawn_all(3, move |thread| {
            if thread == 1 {
                // Joins and goes away at once, waiting or leading.
                return drop(shared.flights.join(&key(1), shared.caller(thread, None), |_| false));
            }
            assert_eq!(shared.ask(thread), 0);
        });
        assert!(world.is_quiet());
    });
}

#[test]
fn a_wake_up_is_called_exactly_once() {
    explore(|| {
        let world = World::new();
        let called = Arc::new(AtomicUsize::new(0));
        let Join::Lead(leader) = world.flights.join(&key(1), world.caller(0, None), |_| false) else { panic!("first") };
        let Join::Follow(follower) = world.flights.join(&key(1), world.caller(1, None), |_| false) else {
            panic!("2nd")
        };
        let mut waiter = follower.wait_from(None, &[]).expect("a wait that ends");
        let landing = thread::spawn(move || leader.land(Outcome::Failed("no")));
        let count = called.clone();
        waiter.on_landing(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        landing.join().expect("no panic");
        assert_eq!(called.load(Ordering::SeqCst), 1);
        assert!(matches!(waiter.landing().expect("landed").outcome.as_ref(), Outcome::Failed("no")));
    });
}

/// `size` threads, each of which leads a key and needs the next one's: without the graph of waits all would wait.
fn cycle(size: u8) {
    let world = World::new();
    let shared = world.clone();
    let alone = Arc::new(AtomicUsize::new(0));
    let counted = alone.clone();
    spawn_all(u64::from(size), move |thread| {
        let own = key(thread as u8);
        let Join::Lead(leader) = shared.flights.join(&own, shared.caller(thread, None), |_| false) else {
            return; // a neighbour came first for this key, alone or not: nothing to show
        };
        let within = shared.flights.computation(None, vec![own], vec![leader.id()]);
        let next = key(thread as u8 % size + 1);
        match shared.flights.join(&next, shared.caller(thread, Some(&within)), |_| false) {
            Join::Follow(follower) => match follower.wait_from(Some(&within), &[]) {
                Some(waiter) => drop(waiter.wait()),
                None => drop(counted.fetch_add(1, Ordering::SeqCst)),
            },
            Join::Lead(inner) => inner.land(Outcome::Value((0, 0))),
            Join::Recursion => panic!("not its own key"),
        }
        within.end();
        leader.land(Outcome::Value((0, 0)));
    });
    assert!(alone.load(Ordering::SeqCst) <= 1, "one refusal breaks the cycle");
    assert!(world.is_quiet());
}

#[test]
fn a_cycle_of_two_waits_is_never_closed() {
    explore(|| cycle(2));
}

#[test]
fn a_cycle_of_three_waits_is_never_closed() {
    explore(|| cycle(3));
}
