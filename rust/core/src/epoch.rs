//! Reclamation: when an unlinked entry may be freed.
//!
//! Readers of the table take no lock, so a writer that unlinks an entry must not free it while a reader may still look
//! at it. Epoch-based reclamation (K. Fraser, "Practical lock-freedom", 2004): a reader announces the epoch in which it
//! entered and withdraws the announcement when it leaves; the epoch moves on only when every announced reader has seen
//! it; what was unlinked in epoch `e` is unreachable once the epoch is `e + 2`.
//!
//! ```text
//!   reader:  announce e ── fence ── load a slot ── look at the entry ── withdraw
//!   writer:  unlink ── fence ── tag = epoch ─ … ─ epoch ≥ tag + 2: free
//! ```
//!
//! Why the second step is enough: a reader that could have loaded the slot before it was unlinked announced before the
//! writer's fence. If it announced `tag` or earlier, the epoch cannot pass `tag + 1` until it leaves. If it read the
//! epoch long ago and announced a stale value, that value is not the current epoch either, and blocks just the same.
//!
//! Why not crossbeam-epoch: there each thread keeps the garbage that it made, in bags that only this thread hands on. A
//! thread that retired a gigabyte and went to sleep would hold it against the byte budget with nobody able to free
//! it. Here the garbage lies with the shard that it came from, and whoever writes there next frees it, or writes a new
//! entry over it (limbo.rs; docs/decisions/0015-memory-written-over.md). See
//! docs/decisions/0003-own-epochs.md.

use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::cell::Cell;
use std::marker::PhantomData;

/// One thread's announcement: 0, or the epoch in which its reader entered (epochs start at 2). A cache line of its own.
#[repr(align(128))]
struct Announcement {
    epoch: AtomicU64,
    taken: AtomicBool,
    index: usize,
    next: *const Announcement,
}

/// All threads of the process share one domain: a pin is short, and one thread-local look-up serves every cache.
pub(crate) struct Domain {
    epoch: AtomicU64,
    first: AtomicPtr<Announcement>,
    count: AtomicUsize,
}

impl Domain {
    pub(crate) const fn new() -> Domain {
        Domain { epoch: AtomicU64::new(2), first: AtomicPtr::new(std::ptr::null_mut()), count: AtomicUsize::new(0) }
    }

    fn announcements(&self) -> impl Iterator<Item = &Announcement> {
        let mut at: *const Announcement = self.first.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: announcements are leaked when made, so every pointer of the list stays valid; Acquire shows what
            // the thread that pushed it wrote.
            let found = unsafe { at.as_ref() }?;
            at = found.next;
            Some(found)
        })
    }

    /// An announcement that a thread which ended has left behind, or a new one.
    fn enroll(&self) -> &Announcement {
        let free = self.announcements().find(|one| {
            !one.taken.load(Ordering::Relaxed)
                && one.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        if let Some(one) = free {
            return one;
        }
        let made = Box::leak(Box::new(Announcement {
            epoch: AtomicU64::new(0),
            taken: AtomicBool::new(true),
            index: self.count.fetch_add(1, Ordering::Relaxed),
            next: std::ptr::null(),
        }));
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            made.next = first;
            match self.first.compare_exchange_weak(first, made, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return made,
                Err(changed) => first = changed,
            }
        }
    }

    /// Moves the epoch on by one if every reader inside has seen the present one.
    fn try_advance(&self) {
        full_fence();
        let now = self.epoch.load(Ordering::Relaxed);
        for one in self.announcements() {
            let seen = one.epoch.load(Ordering::Relaxed);
            if seen != 0 && seen != now {
                return;
            }
        }
        // Pairs with the withdrawals that were seen as 0: what those readers did happened before what is freed now.
        fence(Ordering::Acquire);
        let _ = self.epoch.compare_exchange(now, now + 1, Ordering::Release, Ordering::Relaxed);
    }
}

#[cfg(not(feature = "explore"))]
fn domain() -> &'static Domain {
    static DOMAIN: Domain = Domain::new();
    &DOMAIN
}

#[cfg(feature = "explore")]
fn domain() -> &'static Domain {
    shuttle::lazy_static! { static ref DOMAIN: Domain = Domain::new(); }
    // SAFETY: shuttle keeps a lazy static for the whole execution that asks for it, and no guard outlives one.
    unsafe { &*(&*DOMAIN as *const Domain) }
}

/// This thread's announcement, and how many guards it has out.
struct Local {
    announcement: &'static Announcement,
    depth: Cell<u32>,
}

impl Local {
    fn new() -> Local {
        Local { announcement: domain().enroll(), depth: Cell::new(0) }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.announcement.epoch.store(0, Ordering::Release);
        self.announcement.taken.store(false, Ordering::Release);
    }
}

#[cfg(not(feature = "explore"))]
thread_local! { static LOCAL: Local = Local::new(); }
#[cfg(feature = "explore")]
shuttle::thread_local! { static LOCAL: Local = Local::new(); }

/// While it lives, nothing that this thread can reach in a table is freed. Keep it short: no Python, no lock, no I/O.
pub(crate) struct Guard {
    announcement: &'static Announcement,
    /// Set when the thread's local was already gone (a destructor of another thread-local reads the cache).
    passing: bool,
    not_send: PhantomData<*const ()>,
}

impl Guard {
    /// A small number that no other running thread has; small numbers are used again when a thread ends.
    pub(crate) fn thread_index(&self) -> usize {
        self.announcement.index
    }
}

/// Announces that this thread reads.
#[inline]
pub(crate) fn pin() -> Guard {
    let entered = LOCAL.try_with(|local| {
        let depth = local.depth.get();
        local.depth.set(depth + 1);
        if depth == 0 {
            announce(local.announcement);
        }
        local.announcement
    });
    match entered {
        Ok(announcement) => Guard { announcement, passing: false, not_send: PhantomData },
        Err(_) => {
            let announcement = domain().enroll();
            announce(announcement);
            Guard { announcement, passing: true, not_send: PhantomData }
        }
    }
}

/// A small number that no other running thread has, where no guard is needed.
pub(crate) fn thread_index() -> usize {
    LOCAL.try_with(|local| local.announcement.index).unwrap_or(usize::MAX)
}

#[inline]
fn announce(announcement: &Announcement) {
    let now = domain().epoch.load(Ordering::Relaxed);
    announcement.epoch.store(now, Ordering::Relaxed);
    // The announcement must be visible before any slot is loaded.
    full_fence();
}

/// A sequentially consistent fence. On x86 any locked instruction is one, and costs an eighth of the `mfence` that
/// `fence(SeqCst)` compiles to (2.4 against 20 ns on a Zen 3).
#[inline]
fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(feature = "explore"), not(miri)))]
    // SAFETY: adds nothing to a word of this thread's own stack; as an asm block without `nomem` it is a compiler fence.
    unsafe {
        std::arch::asm!("lock or qword ptr [rsp], 0", options(nostack));
    }
    #[cfg(not(all(target_arch = "x86_64", not(feature = "explore"), not(miri))))]
    fence(Ordering::SeqCst);
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        if self.passing {
            self.announcement.epoch.store(0, Ordering::Release);
            self.announcement.taken.store(false, Ordering::Release);
            return;
        }
        let _ = LOCAL.try_with(|local| {
            let depth = local.depth.get() - 1;
            local.depth.set(depth);
            if depth == 0 {
                self.announcement.epoch.store(0, Ordering::Release);
            }
        });
    }
}

/// The epoch in which something is being retired: taken after it was unlinked.
#[inline]
pub(crate) fn tag() -> u64 {
    full_fence();
    domain().epoch.load(Ordering::Relaxed)
}

/// Says which tags are free: those at most the answer.
#[inline]
pub(crate) fn passed() -> u64 {
    // Acquire: pairs with the step of whoever moved the epoch on, and so with the readers that it found gone.
    domain().epoch.load(Ordering::Acquire) - 2
}

/// The same after the epoch was moved on by one, if it can be.
pub(crate) fn passed_after_a_step() -> u64 {
    domain().try_advance();
    passed()
}

/// The same after two steps: what was retired just now is free then, unless a reader is inside.
pub(crate) fn passed_after_two_steps() -> u64 {
    domain().try_advance();
    passed_after_a_step()
}

/// In the child of a fork only the forking thread runs: the announcements of the others would block for ever.
///
/// # Safety
/// No other thread of this process may run (the child has just been forked).
pub(crate) unsafe fn after_fork() {
    let mine = LOCAL.try_with(|local| std::ptr::from_ref(local.announcement)).unwrap_or(std::ptr::null());
    for one in domain().announcements() {
        if !std::ptr::eq(one, mine) {
            one.epoch.store(0, Ordering::Relaxed);
            one.taken.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    // Other tests of this process pin too, so only statements that hold whatever they do are made here; the schedules
    // are explored in tests/explore.rs.

    #[test]
    fn nothing_retired_while_a_guard_is_out_becomes_passed_after_two_steps() {
        let guard = pin();
        let tag = tag();
        for _ in 0..1_000 {
            assert!(passed_after_two_steps() < tag);
        }
        drop(guard);
    }

    #[test]
    fn guards_nest() {
        let outer = pin();
        let tag = tag();
        drop(pin());
        assert!(passed_after_two_steps() < tag, "the inner guard must not withdraw the outer one");
        drop(outer);
    }

    #[test]
    fn retired_things_become_reclaimable_when_readers_leave() {
        let tag = tag();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while passed_after_two_steps() < tag {
            assert!(std::time::Instant::now() < deadline, "the epoch does not move");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_ended_threads_announcement_is_used_again() {
        let before = domain().count.load(Ordering::Relaxed);
        for _ in 0..64 {
            std::thread::spawn(|| drop(pin())).join().unwrap();
        }
        let made = domain().count.load(Ordering::Relaxed) - before;
        assert!(made < 64, "{made} announcements for 64 threads one after the other");
    }
}
