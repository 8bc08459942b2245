//! Each guarantee of flights on real threads; tests/explore_flight.rs explores their schedules.

use super::*;
use crate::fence::Stamp;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

type Test = Flights<u64, u32, &'static str>;

const A: KeyBytes = [1; 32];
const B: KeyBytes = [2; 32];

fn flights() -> (Test, Arc<Waits>) {
    let waits = Arc::new(Waits::new());
    (Flights::new(waits.clone()), waits)
}

fn caller<'a>(flights: &Test, within: Option<&'a Arc<Computation>>, thread: u64) -> Caller<'a> {
    Caller { arrival: flights.arrive(), within, place: Place::Thread(thread) }
}

fn fine(_: &u64) -> bool {
    false
}

fn lead(join: Join<u64, u32, &'static str>) -> Leader<u64, u32, &'static str> {
    match join {
        Join::Lead(leader) => leader,
        other => panic!("expected to lead, got {other:?}"),
    }
}

fn follow(join: Join<u64, u32, &'static str>) -> Follower<u64, u32, &'static str> {
    match join {
        Join::Follow(follower) => follower,
        other => panic!("expected to follow, got {other:?}"),
    }
}

fn wait(join: Join<u64, u32, &'static str>) -> Waiter<u64, u32, &'static str> {
    match join {
        Join::Follow(follower) => follower.wait_from(None, &[]).expect("a wait that ends"),
        other => panic!("expected to wait, got {other:?}"),
    }
}

fn value(landing: &Landing<u32, &'static str>) -> u32 {
    match &*landing.outcome {
        Outcome::Value(value) => *value,
        other => panic!("expected a value, got {other:?}"),
    }
}

#[test]
fn the_first_leads_and_the_others_wait_for_its_value() {
    let (flights, waits) = flights();
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let waiter = wait(flights.join(&A, caller(&flights, None, 2), fine));
    let other = lead(flights.join(&B, caller(&flights, None, 2), fine));
    assert!(waiter.landing().is_none());
    leader.land(Outcome::Value(7));
    assert_eq!(value(&waiter.wait()), 7);
    other.land(Outcome::Unshared);
    assert!(flights.is_empty());
    drop(waiter);
    assert!(waits.is_empty());
}

#[test]
fn a_landed_flight_is_reached_by_nobody_new() {
    let (flights, _) = flights();
    lead(flights.join(&A, caller(&flights, None, 1), fine)).land(Outcome::Value(7));
    lead(flights.join(&A, caller(&flights, None, 1), fine));
}

#[test]
fn a_dropped_leader_abandons_and_one_of_the_waiters_leads() {
    let (flights, _) = flights();
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let first = wait(flights.join(&A, caller(&flights, None, 2), fine));
    let second = wait(flights.join(&A, caller(&flights, None, 3), fine));
    drop(leader);
    for waiter in [&first, &second] {
        assert!(matches!(*waiter.wait().outcome, Outcome::Abandoned));
    }
    let _leader = lead(flights.join(&A, caller(&flights, None, 2), fine));
    wait(flights.join(&A, caller(&flights, None, 3), fine));
}

#[test]
fn a_leader_that_nobody_carries_on_is_abandoned_by_whoever_follows_it() {
    let (flights, waits) = flights();
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    leader.take_off(5);
    let early = wait(flights.join(&A, caller(&flights, None, 2), fine));
    let newcomer = follow(flights.join(&A, caller(&flights, None, 3), fine));
    assert_eq!(newcomer.place(), Place::Thread(1));
    newcomer.abandon();
    assert!(matches!(*early.wait().outcome, Outcome::Abandoned));
    let second = lead(flights.join(&A, caller(&flights, None, 3), fine));
    let late = wait(flights.join(&A, caller(&flights, None, 2), fine));
    leader.land(Outcome::Value(1)); // it comes back, for nobody
    assert!(matches!(*early.wait().outcome, Outcome::Abandoned), "of two ends the first counts");
    assert!(late.landing().is_none());
    second.land(Outcome::Value(2));
    assert_eq!(value(&late.wait()), 2);
    late.abandon(); // too late
    assert_eq!(value(&late.wait()), 2);
    drop((early, late));
    assert!(flights.is_empty() && waits.is_empty());
}

#[test]
fn who_waits_for_a_leader_that_nobody_carries_on_wakes_all_others() {
    let (flights, waits) = flights();
    let _leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let first = wait(flights.join(&A, caller(&flights, None, 2), fine));
    let mut second = wait(flights.join(&A, caller(&flights, None, 3), fine));
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = woken.clone();
    second.on_landing(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    first.abandon();
    first.abandon();
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(matches!(*second.wait().outcome, Outcome::Abandoned));
    assert!(flights.is_empty() && waits.is_empty());
}

#[test]
fn an_error_reaches_every_waiter() {
    let (flights, _) = flights();
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let waiters: Vec<_> = (2..5).map(|t| wait(flights.join(&A, caller(&flights, None, t), fine))).collect();
    leader.land(Outcome::Failed("no"));
    for waiter in waiters {
        assert!(matches!(*waiter.wait().outcome, Outcome::Failed("no")));
    }
}

#[test]
fn a_wake_up_is_called_once_and_outside_the_locks() {
    let (flights, _) = flights();
    let called = Arc::new(AtomicUsize::new(0));
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let mut waiter = wait(flights.join(&A, caller(&flights, None, 2), fine));
    let mut cancelled = wait(flights.join(&A, caller(&flights, None, 3), fine));
    let count = |by: usize| {
        let (called, flights) = (called.clone(), flights.clone());
        // Joining from within the call would hang if a lock of the flight were held.
        move || {
            called.fetch_add(by, Ordering::Relaxed);
            drop(flights.join(&A, Caller { arrival: Arrival(0), within: None, place: Place::Thread(9) }, fine));
        }
    };
    waiter.on_landing(count(100));
    waiter.on_landing(count(1)); // takes the first one's place
    cancelled.on_landing(count(10_000));
    drop(cancelled);
    leader.land(Outcome::Value(1));
    assert_eq!(called.load(Ordering::Relaxed), 1);
    waiter.on_landing(count(1)); // landed already: at once
    assert_eq!(called.load(Ordering::Relaxed), 2);
}

#[test]
fn the_join_rule_knows_whether_the_run_began_after_the_waiter_came() {
    let (flights, _) = flights();
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let before = wait(flights.join(&A, caller(&flights, None, 2), fine));
    leader.take_off(5);
    let after = wait(flights.join(&A, caller(&flights, None, 3), fine));
    leader.land(Outcome::Value(1));
    assert!(before.wait().began_after);
    assert!(!after.wait().began_after);
}

#[test]
fn a_newcomer_does_not_wait_for_a_doomed_flight() {
    let (flights, _) = flights();
    let doomed = |stamp: &u64| *stamp < 6;
    let old = lead(flights.join(&A, caller(&flights, None, 1), doomed));
    wait(flights.join(&A, caller(&flights, None, 2), doomed)); // not taken off: it will run after the purge
    old.take_off(5);
    let early = wait(flights.join(&A, caller(&flights, None, 2), fine));
    let new = lead(flights.join(&A, caller(&flights, None, 3), doomed));
    new.take_off(6);
    let late = wait(flights.join(&A, caller(&flights, None, 4), doomed));
    old.land(Outcome::Value(1));
    assert_eq!(value(&early.wait()), 1);
    assert!(late.landing().is_none(), "the doomed flight's end is not the new one's");
    wait(flights.join(&A, caller(&flights, None, 5), doomed));
    new.land(Outcome::Value(2));
    assert_eq!(value(&late.wait()), 2);
    assert!(flights.is_empty());
}

#[test]
fn recursion_on_the_same_key_is_told_at_once() {
    let (flights, waits) = flights();
    let leader = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let outer = flights.computation(None, vec![A], vec![leader.id()]);
    let inner_leader = lead(flights.join(&B, caller(&flights, Some(&outer), 1), fine));
    let inner = flights.computation(Some(outer.clone()), vec![B], vec![inner_leader.id()]);
    assert!(matches!(flights.join(&A, caller(&flights, Some(&inner), 1), fine), Join::Recursion));
    assert!(matches!(flights.join(&B, caller(&flights, Some(&inner), 1), fine), Join::Recursion));
    // Another cache's key of the same bytes is another key.
    let elsewhere = Test::new(waits);
    lead(elsewhere.join(&A, caller(&elsewhere, Some(&inner), 1), fine));
    // A task that outlives the computation is not within it any more.
    outer.end();
    leader.land(Outcome::Value(1));
    lead(flights.join(&A, caller(&flights, Some(&inner), 1), fine));
}

#[test]
fn a_computation_without_a_flight_recurs_too() {
    let (flights, _) = flights();
    let alone = flights.computation(None, vec![A], vec![]);
    assert!(matches!(flights.join(&A, caller(&flights, Some(&alone), 1), fine), Join::Recursion));
}

#[test]
fn of_two_computations_that_need_each_other_one_computes_alone() {
    let (flights, waits) = flights();
    let a = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let b = lead(flights.join(&B, caller(&flights, None, 2), fine));
    let in_a = flights.computation(None, vec![A], vec![a.id()]);
    let in_b = flights.computation(None, vec![B], vec![b.id()]);
    let waiter = follow(flights.join(&B, caller(&flights, Some(&in_a), 1), fine)).wait_from(Some(&in_a), &[]);
    assert!(waiter.is_some());
    let refused = follow(flights.join(&A, caller(&flights, Some(&in_b), 2), fine));
    assert!(refused.wait_from(Some(&in_b), &[]).is_none());
    b.land(Outcome::Value(2));
    drop(waiter);
    a.land(Outcome::Value(1));
    assert!(waits.is_empty());
}

#[test]
fn a_blocking_wait_on_a_loops_thread_for_a_flight_of_that_loop_is_refused() {
    let (flights, _) = flights();
    let task = Caller { place: Place::Loop(1), ..caller(&flights, None, 0) };
    let _leader = lead(flights.join(&A, task, fine));
    let on_the_loop = follow(flights.join(&A, caller(&flights, None, 7), fine));
    assert!(on_the_loop.wait_from(None, &[Place::Thread(7), Place::Loop(1)]).is_none());
    let elsewhere = follow(flights.join(&A, caller(&flights, None, 8), fine));
    assert!(elsewhere.wait_from(None, &[Place::Thread(8)]).is_some());
}

#[test]
fn two_batches_that_lead_half_of_each_others_keys_do_not_hold_each_other_up() {
    let (flights, waits) = flights();
    let blocks = [[Place::Thread(1)], [Place::Thread(2)]];
    let a = lead(flights.join(&A, caller(&flights, None, 1), fine));
    let b = lead(flights.join(&B, caller(&flights, None, 2), fine));
    let first = follow(flights.join(&B, caller(&flights, None, 1), fine));
    let second = follow(flights.join(&A, caller(&flights, None, 2), fine));
    a.land(Outcome::Value(1)); // each lands what it leads, and only then waits
    let first = first.wait_from(None, &blocks[0]).expect("b needs nothing of the first batch");
    b.land(Outcome::Value(2));
    let second = second.wait_from(None, &blocks[1]).expect("a has landed");
    assert_eq!((value(&first.wait()), value(&second.wait())), (2, 1));
    drop((first, second));
    assert!(waits.is_empty());
}

#[test]
fn a_computation_carries_the_smallest_stamp_of_what_it_used() {
    let (flights, _) = flights();
    let computation = flights.computation(None, vec![A], vec![]);
    let stamp = |lsn| Stamp::new(1, lsn);
    assert_eq!(computation.stamp(stamp(9)), stamp(9));
    computation.used(stamp(12));
    assert_eq!(computation.stamp(stamp(9)), stamp(9));
    computation.used(stamp(4));
    computation.used(stamp(6));
    assert_eq!(computation.stamp(stamp(9)), stamp(4));
    // What another authority's purges have done says nothing here.
    computation.used(Stamp::new(2, 1));
    assert_eq!(computation.stamp(stamp(9)), stamp(4));
    assert_eq!(computation.stamp(Stamp::new(2, 7)), Stamp::new(2, 1));
}

#[test]
fn one_computation_per_key_whatever_the_threads() {
    let (flights, waits) = flights();
    let (runs, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for t in 0..8 {
            let (flights, runs, found) = (&flights, &runs, &found);
            scope.spawn(move || {
                for round in 0..200u32 {
                    let mut key = [0; 32];
                    key[..4].copy_from_slice(&(round / 2).to_le_bytes());
                    match flights.join(&key, caller(flights, None, t), fine) {
                        Join::Lead(leader) => {
                            runs.fetch_add(1, Ordering::Relaxed);
                            leader.take_off(0);
                            leader.land(Outcome::Value(round / 2));
                        }
                        Join::Follow(follower) => {
                            let waiter = follower.wait_from(None, &[Place::Thread(t)]).expect("a wait that ends");
                            assert_eq!(value(&waiter.wait()), round / 2);
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    assert_eq!(runs.into_inner() + found.into_inner(), 8 * 200);
    assert!(flights.is_empty() && waits.is_empty());
}
