//! What is being computed, and within what: the chain that tells recursion from company.

use super::waits::FlightId;
use crate::limits::KEY_BYTES;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One run of a model, and the run from within which it was asked for, if any.
///
/// The caller carries it along whatever its runs are made of (threads, tasks); nothing here knows how. It outlives the
/// run where somebody still holds it, a task left behind for instance, and then counts no longer.
#[derive(Debug)]
pub struct Computation {
    within: Option<Arc<Computation>>,
    flights: u64,
    keys: Box<[[u8; KEY_BYTES]]>,
    ids: Box<[FlightId]>,
    running: AtomicBool,
    least_stamp: AtomicU64,
}

impl Computation {
    pub(super) fn new(
        within: Option<Arc<Computation>>,
        flights: u64,
        keys: Vec<[u8; KEY_BYTES]>,
        ids: Vec<FlightId>,
    ) -> Computation {
        Computation {
            within,
            flights,
            keys: keys.into(),
            ids: ids.into(),
            running: AtomicBool::new(true),
            least_stamp: AtomicU64::new(u64::MAX),
        }
    }

    /// This computation and those around it that still run, innermost first.
    fn running(&self) -> impl Iterator<Item = &Computation> {
        std::iter::successors(Some(self), |inner| inner.within.as_deref())
            .filter(|computation| computation.running.load(Ordering::Acquire))
    }

    /// Whether `key` of `flights` is being computed here.
    pub(super) fn computes(&self, flights: u64, key: &[u8; KEY_BYTES]) -> bool {
        self.running().any(|computation| computation.flights == flights && computation.keys.contains(key))
    }

    /// The flights that land only when this computation ends.
    pub(super) fn flights(&self) -> Vec<FlightId> {
        self.running().flat_map(|computation| computation.ids.iter().copied()).collect()
    }

    /// Notes that the computation used a cached answer of this stamp.
    pub fn used(&self, stamp: u64) {
        self.least_stamp.fetch_min(stamp, Ordering::AcqRel);
    }

    /// The stamp that the result carries: the one read before the run, or the smallest among the answers it used.
    pub fn stamp(&self, read_before: u64) -> u64 {
        read_before.min(self.least_stamp.load(Ordering::Acquire))
    }

    /// The run is over; what still carries this computation is not part of it any more.
    pub fn end(&self) {
        self.running.store(false, Ordering::Release);
    }
}
