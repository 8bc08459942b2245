//! Monotonic time in milliseconds, injected: a simulator and the tests replay the real code exactly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a cache's time comes from.
///
/// The system clock is read coarsely (about a third of the cost of a precise read, which would be a good part of a
/// hit): its reading lies up to one tick, 1 to 10 ms, in the past. So there are two readings: an entry is dated with
/// [`Clock::not_after`] and judged with [`Clock::not_before`], and a deadline is kept up to a tick early, never late.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's monotonic clock.
    System,
    /// Milliseconds that a test or a simulator sets.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A manual clock that starts at `milliseconds`, and the handle that moves it.
    pub fn manual(milliseconds: u64) -> (Clock, Arc<AtomicU64>) {
        let hand = Arc::new(AtomicU64::new(milliseconds));
        (Clock::Manual(hand.clone()), hand)
    }

    /// A time that is not after now, in milliseconds.
    pub fn not_after(&self) -> u64 {
        self.bounds().0
    }

    /// A time that is not before now, in milliseconds.
    pub fn not_before(&self) -> u64 {
        self.bounds().1
    }

    /// Both, of one reading.
    #[inline]
    pub fn bounds(&self) -> (u64, u64) {
        match self {
            Clock::System => {
                let reading = system::coarse();
                (reading, reading + system::tick())
            }
            Clock::Manual(hand) => {
                let reading = hand.load(Ordering::Relaxed);
                (reading, reading)
            }
        }
    }
}

/// Nanoseconds of a clock that also counts while the machine sleeps, as proofs of freshness need it: other machines go on
/// purging meanwhile. Never zero. (CLOCK_BOOTTIME on Linux; macOS's and Windows' monotonic clocks, which the standard
/// library offers, stop in some kinds of sleep: docs/coherence.md says what that costs.)
#[inline]
pub fn counting() -> u64 {
    system::counting().max(1)
}

#[cfg(target_os = "linux")]
mod system {
    use std::sync::atomic::{AtomicU64, Ordering};

    pub fn counting() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writing; the clock exists on every Linux since 2.6.39.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    fn milliseconds(time: libc::timespec) -> u64 {
        // Both fields of a monotonic reading are never negative.
        time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000
    }

    /// CLOCK_MONOTONIC_COARSE: about 10 ns where CLOCK_MONOTONIC takes 30.
    pub fn coarse() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writing; the clock exists on every Linux since 2.6.32.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
        milliseconds(time)
    }

    /// How far `coarse` may lag, rounded up, plus the millisecond that its own rounding may cut.
    pub fn tick() -> u64 {
        static TICK: AtomicU64 = AtomicU64::new(0);
        match TICK.load(Ordering::Relaxed) {
            0 => {
                let mut time = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                // SAFETY: as above.
                unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
                let tick = milliseconds(time) + 1;
                TICK.store(tick, Ordering::Relaxed);
                tick
            }
            tick => tick,
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    fn elapsed() -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    pub fn coarse() -> u64 {
        elapsed().as_millis() as u64
    }

    pub fn counting() -> u64 {
        elapsed().as_nanos() as u64
    }

    /// `coarse` is precise here but for its rounding.
    pub fn tick() -> u64 {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_readings_of_the_system_clock_enclose_now() {
        let clock = Clock::System;
        for _ in 0..1_000 {
            let (low, high) = (clock.not_after(), clock.not_before());
            assert!(low < high && high - low < 1_000, "{low} {high}");
        }
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::manual(7);
        assert_eq!((clock.not_after(), clock.not_before()), (7, 7));
        hand.store(9, Ordering::Relaxed);
        assert_eq!(clock.not_before(), 9);
    }
}
