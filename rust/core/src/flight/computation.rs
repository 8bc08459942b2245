//! What is being computed, and within what: the chain that tells recursion from company.

use super::waits::FlightId;
use crate::fence::Stamp;
use crate::limits::KEY_BYTES;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Mutex};

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
    /// The smallest stamps among the cached answers used, one of each authority.
    least: Mutex<Vec<Stamp>>,
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
            least: Mutex::new(Vec::new()),
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
    pub fn used(&self, stamp: Stamp) {
        let mut least = self.least.lock();
        match least.iter_mut().find(|least| least.epoch() == stamp.epoch()) {
            Some(least) => *least = stamp.min(*least),
            None => least.push(stamp),
        }
    }

    /// The stamp that the result carries: the one read before the run, or the smallest among the answers it used. Stamps of
    /// another authority say nothing about this one's purges.
    pub fn stamp(&self, read_before: Stamp) -> Stamp {
        let least = self.least.lock();
        least
            .iter()
            .copied()
            .find(|least| least.epoch() == read_before.epoch())
            .map_or(read_before, |s| s.min(read_before))
    }

    /// The run is over; what still carries this computation is not part of it any more.
    pub fn end(&self) {
        self.running.store(false, Ordering::Release);
    }
}
