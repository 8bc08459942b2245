//! Atomics, locks and threads: the standard ones, or shuttle's when schedules are explored (feature `explore`).
//!
//! Both faces have parking_lot's shape (no poisoning: every critical section of the core leaves its data whole even
//! if a thread dies in it, and a poisoned mutex would turn one fault into many).

#[cfg(not(feature = "explore"))]
pub use parking_lot::{Condvar, Mutex, MutexGuard};
#[cfg(not(feature = "explore"))]
pub use std::{
    sync::{Arc, atomic},
    thread,
};

#[cfg(feature = "explore")]
pub use explored::{Condvar, Mutex, MutexGuard};
#[cfg(feature = "explore")]
pub use shuttle::{
    sync::{Arc, atomic},
    thread,
};

#[cfg(feature = "explore")]
mod explored {
    pub use shuttle::sync::MutexGuard;

    /// shuttle's mutex behind parking_lot's shape.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A new mutex around `value`.
        pub const fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        /// The lock, if nobody has it.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }

        /// The value, by the exclusive borrow.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    /// shuttle's condition variable behind parking_lot's shape.
    #[derive(Debug, Default)]
    pub struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        /// A new condition variable.
        pub fn new() -> Condvar {
            Condvar(shuttle::sync::Condvar::new())
        }

        /// Releases the lock, waits for a notice, and takes the lock again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            replace_guard(guard, |held| self.0.wait(held).unwrap_or_else(|poisoned| poisoned.into_inner()));
        }

        /// Wakes one waiter.
        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Wakes every waiter.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Passes the guard by value through `wait`, as the standard library's condition variables ask.
    fn replace_guard<'a, T>(slot: &mut MutexGuard<'a, T>, wait: impl FnOnce(MutexGuard<'a, T>) -> MutexGuard<'a, T>) {
        // SAFETY: the guard is read out and another one written back before anybody can look; shuttle's `wait` unwinds
        // only when a whole execution is being torn down, and `Abort` then stops the process instead of a double drop.
        unsafe {
            let abort = Abort;
            let held = std::ptr::read(slot);
            std::ptr::write(slot, wait(held));
            std::mem::forget(abort);
        }
    }

    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
}
