//! Who waits for whom, in the whole process: a wait that would close a cycle is never begun.
//!
//! Nodes are flights. An edge `l → b` says that flight `l` cannot land before `b` does. While a caller waits for `b`,
//! there is such an edge from every flight that the wait holds up: those whose computation the caller is part of (it
//! asks for `b` from within them) and, where the wait blocks a thread, those that this thread, or an event loop that
//! runs on it, was to carry on. Before a wait begins, the graph is searched from `b`; if that reaches any flight of the
//! caller's own, the wait would never end, and the caller computes for itself instead.
//!
//! Search and new edges are one critical section, so of two callers whose waits would close a cycle together the
//! second always sees the first. The graph is small (its edges are callers that wait at this moment) and only misses
//! that meet a running flight come here, so one mutex serves the process.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::collections::HashMap;

/// A flight, unique in its graph of waits.
pub type FlightId = u64;

/// What carries a flight on, and stands still while a wait blocks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A thread, by an identity of the caller's choice: its leader computes on that thread's stack.
    Thread(u64),
    /// An event loop: its leader is a task of that loop.
    Loop(u64),
}

/// The graph of waits. One for all caches of a process: a function of one cache may need a function of another.
#[derive(Debug, Default)]
pub struct Waits {
    graph: Mutex<Graph>,
    sequence: AtomicU64,
}

#[derive(Debug, Default)]
struct Graph {
    /// For each flight, the flights that it waits for, once for each caller that waits.
    awaited: HashMap<FlightId, Vec<FlightId>>,
    led: HashMap<Place, Vec<FlightId>>,
}

impl Waits {
    /// An empty graph.
    pub fn new() -> Waits {
        Waits::default()
    }

    /// The next number of one order in which callers arrive, flights take off and models start.
    pub(super) fn next(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Notes that `flight` is led at `place`.
    pub(super) fn lead(&self, flight: FlightId, place: Place) {
        self.graph.lock().led.entry(place).or_default().push(flight);
    }

    /// Takes `flight` out again.
    pub(super) fn land(&self, flight: FlightId, place: Place) {
        let mut graph = self.graph.lock();
        if let Some(led) = graph.led.get_mut(&place) {
            remove_one(led, flight);
            if led.is_empty() {
                graph.led.remove(&place);
            }
        }
    }

    /// Begins a wait for `flight` that holds up the flights `within` and whatever is led at `places`.
    ///
    /// Returns the flights held up, to be given to [`Waits::end`], or `None` if the wait would never end.
    pub(super) fn begin(&self, flight: FlightId, mut within: Vec<FlightId>, places: &[Place]) -> Option<Vec<FlightId>> {
        let mut graph = self.graph.lock();
        for place in places {
            within.extend(graph.led.get(place).into_iter().flatten());
        }
        within.sort_unstable();
        within.dedup();
        if graph.reaches(flight, &within) {
            return None;
        }
        for held in &within {
            graph.awaited.entry(*held).or_default().push(flight);
        }
        Some(within)
    }

    /// Ends a wait.
    pub(super) fn end(&self, flight: FlightId, held: &[FlightId]) {
        if held.is_empty() {
            return;
        }
        let mut graph = self.graph.lock();
        for held in held {
            if let Some(awaited) = graph.awaited.get_mut(held) {
                remove_one(awaited, flight);
                if awaited.is_empty() {
                    graph.awaited.remove(held);
                }
            }
        }
    }

    /// No flight is led and nobody waits. For tests: what a quiet process must come back to.
    pub fn is_empty(&self) -> bool {
        let graph = self.graph.lock();
        graph.awaited.is_empty() && graph.led.is_empty()
    }
}

impl Graph {
    /// Whether one of `goals` (sorted) can be reached from `start`, itself included.
    fn reaches(&self, start: FlightId, goals: &[FlightId]) -> bool {
        let mut seen = vec![start];
        let mut next = 0;
        while let Some(&flight) = seen.get(next) {
            next += 1;
            if goals.binary_search(&flight).is_ok() {
                return true;
            }
            for awaited in self.awaited.get(&flight).into_iter().flatten() {
                if !seen.contains(awaited) {
                    seen.push(*awaited);
                }
            }
        }
        false
    }
}

fn remove_one(flights: &mut Vec<FlightId>, flight: FlightId) {
    if let Some(at) = flights.iter().position(|other| *other == flight) {
        flights.swap_remove(at);
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_would_close_a_cycle_is_not_begun() {
        let waits = Waits::new();
        let first = waits.begin(2, vec![1], &[]).expect("1 may wait for 2");
        let second = waits.begin(3, vec![2], &[]).expect("2 may wait for 3");
        assert_eq!(waits.begin(1, vec![3], &[]), None, "1 → 2 → 3 → 1");
        waits.end(2, &first);
        let third = waits.begin(1, vec![3], &[]).expect("the cycle is broken");
        waits.end(3, &second);
        waits.end(1, &third);
        assert!(waits.is_empty());
    }

    #[test]
    fn a_blocked_thread_holds_up_everything_led_on_it_and_on_its_loop() {
        let waits = Waits::new();
        let (here, event_loop) = (Place::Thread(7), Place::Loop(9));
        waits.lead(1, here);
        waits.lead(2, event_loop);
        assert_eq!(
            waits.begin(2, vec![], &[here, event_loop]),
            None,
            "a loop cannot carry on what its thread waits for"
        );
        assert_eq!(waits.begin(1, vec![], &[here, event_loop]), None);
        let held = waits.begin(3, vec![], &[here, event_loop]).expect("3 is led elsewhere");
        assert_eq!(held, [1, 2]);
        assert_eq!(waits.begin(2, vec![3], &[]), None, "3 must not wait for what waits for it");
        waits.end(3, &held);
        waits.land(1, here);
        waits.land(2, event_loop);
        assert!(waits.is_empty());
    }

    #[test]
    fn two_waits_for_the_same_flight_are_counted() {
        let waits = Waits::new();
        let one = waits.begin(2, vec![1], &[]).expect("free");
        let two = waits.begin(2, vec![1], &[]).expect("a second task of the same computation");
        waits.end(2, &one);
        assert_eq!(waits.begin(1, vec![2], &[]), None, "the other task still waits");
        waits.end(2, &two);
        assert!(waits.is_empty());
    }
}
