//! Atomics, locks and threads: the standard ones, or shuttle's when schedules are explored (feature `explore`).

#[cfg(feature = "explore")]
pub use shuttle::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};

#[cfg(not(feature = "explore"))]
pub use std::{
    sync::{Arc, atomic},
    thread,
};

#[cfg(not(feature = "explore"))]
pub use parking_lot::{Condvar, Mutex, MutexGuard};
