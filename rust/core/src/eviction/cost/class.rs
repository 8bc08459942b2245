//! Entries of about the same cost per byte: their two queues, and what keeping them is worth.

use super::queue::{Place, Queue};
use crate::entry::Entry;
use crate::eviction::{LATER, Resolve, SOON};

/// Uses that carry an entry from the small queue to the main one.
const USES_TO_MAIN: u8 = 1;

/// The small queue's share of a class's bytes, at least and, where its victims are wanted again more often, at most.
const SMALL_AT_LEAST: u64 = 10;
const SMALL_AT_MOST: (u64, u64) = (2, 5);
/// How much sooner an entry of the small queue has to prove itself than one of the main queue.
const SMALL_PATIENCE: f64 = 0.1;
/// A queue keeps so many levels in the time for which its class keeps an entry.
const STAMPS: f64 = 8.0;
/// How much more, or less, than their cost alone entries of a class may count for what is seen of their returns.
const MOST_FAVOUR: f64 = 8.0;
/// Victims of a class that are assumed to have been wanted as often as everybody's, until more is known.
const ASSUMED_SOON: f64 = 10.0;
/// The same when the class's two queues are compared, in which the main one has the doubt for it.
const ASSUMED: f64 = 50.0;
const DOUBT: f64 = 0.7;
/// Where fewer of the small queue's victims are wanted again, more time there would help nobody.
const SPARING: f64 = 0.05;
/// Victims of a class between two looks at what is known of them.
const VICTIMS_PER_LOOK: u8 = 8;
/// Weight of a new entry in the mean of its class's cost per byte.
const SMOOTHING: f64 = 1.0 / 64.0;
/// Victims of a shard that are remembered with full weight; then all counts are halved.
const WINDOW: f64 = 20_000.0;

/// What became of victims: how many there were, of each queue, and how many of them were wanted again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Returns {
    left: [f64; 2],
    returned: [f64; 2],
    /// Of those that returned, those that did so soon; of everybody's, what they cost to make again.
    soon: f64,
    /// Bytes of the victims.
    bytes: f64,
}

impl Returns {
    pub(super) fn count_victim(&mut self, main: bool, weight: u64) {
        self.left[usize::from(main)] += 1.0;
        self.bytes += weight as f64;
    }

    pub(super) fn count_return(&mut self, main: bool, soon: f64) {
        self.returned[usize::from(main)] += 1.0;
        self.soon += soon;
    }

    pub(super) fn is_full(&self) -> bool {
        self.victims() >= WINDOW
    }

    pub(super) fn halve(&mut self) {
        let Returns { left, returned, soon, bytes } = self;
        left.iter_mut().chain(returned).chain([soon, bytes]).for_each(|count| *count *= 0.5);
    }

    fn victims(&self) -> f64 {
        self.left[0] + self.left[1]
    }
}

/// The queues of entries whose cost per byte is within a factor of two.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) rank: u8,
    pub(super) small: Queue,
    pub(super) main: Queue,
    /// Mean cost per byte of its entries.
    value: f64,
    /// How far the level rises while an entry of the main queue is kept that nobody asks for.
    worth: f64,
    /// Victims of the main queue return less often than those of the small one, by enough.
    spares_small: bool,
    /// What had to leave the main queue and is wanted again goes there at once.
    pub(super) readmits: bool,
    returns: Returns,
    victims: u8,
}

impl Class {
    pub(super) fn new(rank: u8, value: f64) -> Class {
        let (small, main) = (Queue::default(), Queue::default());
        let returns = Returns::default();
        Class { rank, small, main, value, worth: value, spares_small: false, readmits: true, returns, victims: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.order.is_empty() && self.main.order.is_empty()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.small.bytes() + self.main.bytes()
    }

    /// Bytes by which the arrays may grow when an entry is admitted, at most. Entries that go over from the small queue
    /// to the main one may open a chunk there before they close one here.
    pub(super) fn growth(&self) -> u64 {
        self.small.growth() + self.main.growth()
    }

    pub(super) fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }

    /// Puts an element in at this level.
    pub(super) fn push(&mut self, low: u32, main: bool, weight: u64, level: f64) {
        let grain = self.patience(main) / STAMPS;
        let queue = self.queue(main);
        queue.push(low, level, grain);
        queue.weight += weight;
    }

    /// How far the level rises while an entry is kept that nobody asks for.
    fn patience(&self, main: bool) -> f64 {
        if main { self.worth } else { self.worth * SMALL_PATIENCE }
    }

    /// Which queue gives the next victim.
    pub(super) fn gives_main(&self) -> bool {
        let (small, all) = (self.small.weight, self.small.weight + self.main.weight);
        if self.small.order.is_empty() || self.main.order.is_empty() {
            return self.small.order.is_empty();
        }
        let (part, of) = SMALL_AT_MOST;
        small * SMALL_AT_LEAST <= all || (self.spares_small && small * of < all * part)
    }

    /// The level at which its next victim has to go.
    pub(super) fn price(&self) -> f64 {
        if self.is_empty() {
            return f64::INFINITY;
        }
        let main = self.gives_main();
        let queue = if main { &self.main } else { &self.small };
        queue.level() + self.patience(main)
    }

    /// Another entry of this cost per byte came.
    pub(super) fn learn(&mut self, value: f64) {
        let mean = self.value + (value - self.value) * SMOOTHING;
        self.worth *= mean / self.value;
        self.value = mean;
    }

    /// The entry of one of its elements is going; `here`: it still resolves to that element.
    pub(super) fn forget(&mut self, main: bool, weight: u64, here: bool, resolve: &impl Resolve) {
        let place = Place { rank: self.rank, main };
        self.queue(main).forget(weight, place, here, resolve);
    }

    /// Takes the element whose turn it is. Its entry has to go (the bits, the entry, whether it stood in the main queue),
    /// or is given more time, or went before.
    pub(super) fn turn(&mut self, level: f64, resolve: &impl Resolve) -> Option<(u32, Entry, bool)> {
        let main = self.gives_main();
        let place = Place { rank: self.rank, main };
        let queue = self.queue(main);
        let low = queue.pop()?;
        // What lies at the end of a queue has long left the processor's caches: two misses, one behind the other.
        if let (Some(soon), Some(later)) = (queue.order.ahead(SOON), queue.order.ahead(LATER)) {
            resolve.prefetch(soon, true);
            resolve.prefetch(later, false);
        }
        let Some(entry) = place.find(low, false, resolve) else {
            queue.pass_left_over();
            return None;
        };
        let (uses, weight) = (entry.frequency(), entry.weight());
        queue.weight -= weight;
        if main && uses > 0 {
            entry.set_frequency(uses - 1);
        } else if !main && uses >= USES_TO_MAIN {
            entry.set_in_main(true);
            entry.set_frequency(0);
        } else {
            return Some((low, entry, main));
        }
        self.push(low, true, weight, level);
        None
    }

    /// A victim that left is wanted again; `soon`: 1, or 0.
    pub(super) fn count_return(&mut self, main: bool, soon: f64) {
        self.returns.count_return(main, soon);
    }

    /// An entry left for others. Looks now and then at what has become of the class's victims; `all` is everybody's.
    pub(super) fn count_victim(&mut self, main: bool, weight: u64, all: &Returns) {
        self.returns.count_victim(main, weight);
        self.victims += 1;
        if self.victims >= VICTIMS_PER_LOOK {
            self.victims = 0;
            self.judge(all);
        }
    }

    fn judge(&mut self, all: &Returns) {
        let own = &self.returns;
        let usual = (all.returned[0] + all.returned[1]) / all.victims();
        let rate = |main: usize| (own.returned[main] + ASSUMED * usual) / (own.left[main] + ASSUMED);
        self.readmits = rate(0) >= SPARING;
        self.spares_small = self.readmits && rate(1) < rate(0) * DOUBT;
        // What everybody's victims cost that were wanted again soon, per byte of all of them.
        let lost = all.soon / all.bytes;
        if lost > 0.0 {
            let expected = (lost / self.value).min(1.0);
            let found = (own.soon + ASSUMED_SOON * expected) / (own.victims() + ASSUMED_SOON);
            let favour = found.min(1.0) * self.value / lost;
            self.worth = self.value * favour.clamp(1.0 / MOST_FAVOUR, MOST_FAVOUR);
        }
    }

    pub(super) fn halve(&mut self) {
        self.returns.halve();
    }
}
