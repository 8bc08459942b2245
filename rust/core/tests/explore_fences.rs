//! Explored thread schedules of a follower, its readers and its fills.
//!
//!     cargo test -p infercache-core --features explore --test explore_fences
//!
//! A question is dated before it is sent; a purge is acknowledged at a later moment than it is numbered. Whoever begins a
//! read after a purge was acknowledged, and accepts no proof older than that, must not be answered with what was computed
//! from the source before the purge, whatever the order in which the follower's stores become visible.
#![cfg(feature = "explore")]

use infercache_core::cache::{Cache, Found, Options, Trust, Write};
use infercache_core::clock::Clock;
use infercache_core::fence::follower::{Answer, Change};
use infercache_core::fence::{EpochId, Fences, Judgement};
use infercache_core::sync::atomic::{AtomicU64, Ordering};
use infercache_core::sync::{Arc, Mutex, thread};

const SCHEDULES: usize = 4_000;
const KEY: [u8; 32] = [9; 32];
const TAG: u64 = 77;
const NOISE: u64 = 78;

/// The authority on its server, and the source that it speaks of.
#[derive(Default)]
struct World {
    epoch: u8,
    lsn: u64,
    /// The last purges of the tag, and of another one.
    fences: [u64; 2],
    source: u8,
    /// The version that whoever begins a read now is owed.
    owed: u8,
}

impl World {
    fn purge(&mut self, which: usize) {
        self.lsn += 1;
        self.fences[which] = self.lsn;
    }
}

struct Scene {
    cache: Cache,
    fences: Arc<Fences>,
    world: Mutex<World>,
    /// Moments, in order.
    time: AtomicU64,
}

impl Scene {
    fn new() -> Arc<Scene> {
        let (clock, _) = Clock::manual(1_000);
        let fences = Arc::new(Fences::following(100));
        let trust = Some(Trust { max_staleness: 0, untagged: 0, tagged: 0 });
        let options =
            Options { clock, shards: Some(1), authority: Some(fences.clone()), trust, ..Options::new(64 << 10, 7) };
        let world = World { epoch: 1, source: 1, ..World::default() };
        let cache = Cache::new(options);
        Arc::new(Scene { cache, fences, world: Mutex::new(world), time: AtomicU64::new(1) })
    }

    fn now(&self) -> u64 {
        self.time.fetch_add(1, Ordering::SeqCst)
    }

    /// One question, with everything that there is.
    fn poll(&self) {
        let question = self.fences.ask(self.now());
        let (epoch, upto, changes): (EpochId, u64, Vec<Change>) = {
            let mut world = self.world.lock();
            if !question.pending.is_empty() {
                world.purge(0);
            }
            let change = |(tag, &lsn): (u64, &u64)| Change { tag, lsn, soft: false };
            let changes = [TAG, NOISE].into_iter().zip(&world.fences).filter(|(_, lsn)| **lsn > 0).map(change);
            ([world.epoch; 16], world.lsn, changes.collect())
        };
        thread::yield_now();
        self.fences.apply(&question, &Answer { epoch, upto, whole: true, horizon: 0, changes: &changes });
    }

    /// The source changes, its tag is purged, and that is acknowledged.
    fn purge(&self) {
        let version = {
            let mut world = self.world.lock();
            world.source += 1;
            world.purge(0);
            world.source
        };
        self.now();
        thread::yield_now();
        self.world.lock().owed = version;
        self.now();
    }

    fn fill(&self) {
        let stamp = self.cache.stamp();
        let version = self.world.lock().source;
        thread::yield_now();
        let scope = self.cache.intern("n", Some(("m", "1"))).unwrap();
        let (payload, tags) = ([version; 8], [TAG]);
        let life = None;
        let write =
            Write { kind: 0, aligned: false, payload: &payload, scope, tags: &tags, stamp, life, stale: 0, cost: 0.0 };
        self.cache.store(&KEY, &write);
    }

    /// The server is lost with every purge that it knew; the source has changed before that was seen.
    fn lose(&self) {
        let version = {
            let mut world = self.world.lock();
            *world = World { epoch: 2, source: world.source + 1, ..World::default() };
            world.source
        };
        self.world.lock().owed = version;
        self.now();
    }

    /// A read that accepts proofs from its own beginning on.
    fn read(&self) {
        let owed = self.world.lock().owed;
        let since = self.now();
        for _ in 0..3 {
            if let Found::Fresh(hit) = self.cache.peek_since(&KEY, Some(since)) {
                let version = hit.entry.payload()[0];
                assert!(version >= owed, "a reader who is owed version {owed} got version {version}");
                return;
            }
            thread::yield_now();
        }
    }
}

fn explore(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_random(scenario.clone(), SCHEDULES / 2);
    shuttle::check_pct(scenario, SCHEDULES / 2, 3);
}

type Act = Box<dyn Fn(&Scene) + Send>;

/// Everybody's acts, each on a thread of its own.
fn together(scene: &Arc<Scene>, acts: Vec<Act>) {
    let spawn = |act: Act| {
        let scene = scene.clone();
        thread::spawn(move || act(&scene))
    };
    let handles: Vec<_> = acts.into_iter().map(spawn).collect();
    handles.into_iter().for_each(|handle| handle.join().unwrap());
}

#[test]
fn a_reader_with_proof_never_gets_what_a_purge_before_it_hid() {
    explore(|| {
        let scene = Scene::new();
        scene.poll();
        scene.fill();
        together(
            &scene,
            vec![
                Box::new(|scene| (0..3).for_each(|_| scene.poll())),
                Box::new(|scene| {
                    scene.purge();
                    scene.world.lock().purge(1);
                }),
                Box::new(|scene| (0..2).for_each(|_| scene.read())),
                Box::new(Scene::fill),
            ],
        );
        scene.poll();
        scene.read();
    });
}

#[test]
fn raised_stamps_hide_nothing_that_came_after_them() {
    explore(|| {
        let scene = Scene::new();
        scene.poll();
        scene.fill();
        scene.world.lock().purge(1);
        together(
            &scene,
            vec![
                Box::new(|scene| (0..2).for_each(|_| scene.poll())),
                Box::new(|scene| (0..2).for_each(|_| scene.read())),
                Box::new(Scene::purge),
                Box::new(Scene::read),
            ],
        );
        scene.poll();
        let before = scene.world.lock().owed;
        assert_eq!(before, 2);
        scene.read();
    });
}

#[test]
fn another_epoch_hides_what_was_stamped_in_the_one_before() {
    explore(|| {
        let scene = Scene::new();
        scene.poll();
        scene.fill();
        together(
            &scene,
            vec![
                Box::new(|scene| (0..2).for_each(|_| scene.poll())),
                Box::new(Scene::lose),
                Box::new(|scene| (0..2).for_each(|_| scene.read())),
                Box::new(|scene| (0..2).for_each(|_| scene.poll())),
                Box::new(Scene::fill),
            ],
        );
        scene.poll();
        scene.read();
    });
}

#[test]
fn what_an_epoch_hid_stays_hidden_while_the_next_one_begins() {
    explore(|| {
        let scene = Scene::new();
        scene.poll();
        let stamp = scene.fences.applied();
        scene.purge();
        scene.poll();
        together(
            &scene,
            vec![
                // By itself: among the steps of a whole read the few that matter would hardly ever meet.
                Box::new(move |scene| {
                    for _ in 0..4 {
                        assert_eq!(scene.fences.judge(stamp, [TAG]), Judgement::Hidden);
                    }
                }),
                // The map of the new epoch knows nothing of the purge, and is seen before anything else of it.
                Box::new(|scene| {
                    scene.lose();
                    scene.poll();
                }),
            ],
        );
    });
}

#[test]
fn a_pending_purge_hides_from_the_moment_at_which_it_is_pending() {
    explore(|| {
        let scene = Scene::new();
        scene.poll();
        scene.fill();
        together(
            &scene,
            vec![
                Box::new(|scene| (0..2).for_each(|_| scene.poll())),
                Box::new(|scene| {
                    scene.world.lock().source += 1;
                    scene.fences.hide(&[TAG], false);
                    // Nobody was told, but this process knows.
                    let version = scene.world.lock().source;
                    scene.world.lock().owed = version;
                    scene.now();
                    scene.read();
                }),
                Box::new(Scene::fill),
            ],
        );
    });
}
