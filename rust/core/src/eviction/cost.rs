//! What is cheapest to make again per byte goes first: S3-FIFO's queues, a pair for each class of cost per byte.
//!
//! ```text
//!   cost ÷ bytes          small      main               the next victim's price
//!   64 … 128 ns a byte    ───────►   ──────────────►    7,311
//!    2 …   4              ───────►   ──────────────►    7,254  ◄── goes; the level rises to 7,254
//!    …
//! ```
//!
//! Entries whose cost per byte is within a factor of two are a class with queues of its own, and within a class S3-FIFO
//! does what it always does. In a first-in-first-out queue of equal worth the first is the one with the least priority
//! (S. Ghandeharizadeh, S. Irani, J. Lam, J. Yap: "CAMP", Middleware 2014, rounds GreedyDual to LRU lists the same
//! way). So there is no sample to be drawn and no heap: the *price* of a class is the level at which its next victim
//! came plus how much the level may rise meanwhile, and the class with the least price gives the victim. Being asked
//! for means another round, so four uses stay four times as long, as in GreedyDual. The level at which an entry came is
//! kept once for the many that came at about the same (queue.rs), so an entry takes no more bytes than before. Where
//! all entries are worth the same there is one class, and what is left is S3-FIFO.
//!
//! An entry of the small queue, which has not proved itself yet, has a tenth of the time.
//!
//! # What becomes of victims
//!
//! Requests do not come at random. A search is asked again by the same user within a minute or never; the pages of a
//! shop all day. So the ghost remembers the victims of both queues, and each class counts how many of its victims are
//! wanted again, and how many soon (class.rs). If keeping each class a little longer would save as much model time per
//! byte, the split is the best one. A class whose victims return more often than that is favoured, another one curbed,
//! in proportion, eightfold at most. The same counts say whether a class's small queue is too small: where its victims
//! are wanted again clearly more often than those of the main queue, it may grow to two fifths. Where next to none is
//! wanted again neither is believed: that is a scan or a loop.
//!
//! # What an entry cost
//!
//! Its own computation, as recorded (entry.rs); of a batch its share. Where nobody measured it, since a caller stored
//! the value by hand, the smoothed mean of its model's answers (costs.rs). It does not change while the entry lives, so
//! the class of an entry follows from its header and need not be kept.
//!
//! # How it is kept
//!
//! Shares are counted in bytes, since results differ in size: a tenth of what the class holds now. Before anything had
//! to go, new entries beyond that share of the shard fill the main queue; a loop longer than the cache then keeps
//! finding them there.
//!
//! The constants were found by experiment, on real traces and mixtures of models (decision 0031): one use is enough to
//! enter main, uses count to fifteen, and as many victims are remembered as 1.8 times the entries held.
//!
//! Each shard has classes, levels and counts of its own, and needs a few dozen entries of each class to tell anything.

mod class; // entries of about the same cost per byte
mod ghost; // what had to go not long ago
mod queue; // one queue, and how high the level stood when its elements came

use super::Resolve;
use crate::chunks::Chunks;
use crate::entry::Entry;
use class::{Class, Returns};
use ghost::Ghost;

/// The small queue's share of the bytes while the cache fills, as a divisor.
const FILLING_SHARE: u64 = 10;
/// Classes without entries are kept, with what is known of them, while a shard has no more than so many.
const FEW_CLASSES: usize = 8;
/// The rank of a nanosecond per byte, so that none is negative.
const MIDDLE_RANK: i32 = 64;

/// The class of an entry: log₂ of its cost per byte.
fn rank(entry: Entry) -> u8 {
    let difference = log2(entry.price_nanoseconds()) - log2(entry.weight());
    ((difference >> 8) + MIDDLE_RANK) as u8
}

/// Victims to be remembered while so many entries are held.
fn remembered(entries: usize) -> usize {
    entries * 9 / 5
}

/// log₂ in 256ths, straight between the powers of two; of zero as of one.
fn log2(number: u64) -> i32 {
    let number = number.max(1);
    let whole = number.ilog2();
    // The eight bits behind the leading one.
    let fraction = (number << (63 - whole) >> 55 & 0xff) as i32;
    (whole as i32) << 8 | fraction
}

/// The queues of one shard.
#[derive(Debug, Default)]
pub(crate) struct ByCost {
    classes: Vec<Class>,
    /// Of each class, the level at which its next victim has to go.
    prices: Vec<f64>,
    /// The price of the last victim.
    level: f64,
    ghost: Ghost,
    /// What became of everybody's victims.
    returns: Returns,
    /// Live entries.
    live: usize,
    /// Bytes of the classes' arrays.
    bytes: u64,
    /// Bytes by which the arrays of a class may grow when an entry is admitted, at most, and the class.
    growth: (u64, usize),
    /// Something has had to go already.
    warm: bool,
}

impl ByCost {
    /// Puts a new entry into the queue where it belongs, and marks it so. Before it is published. `share` is what the
    /// shard may come to hold, in bytes.
    pub(super) fn admit(&mut self, low: u32, entry: Entry, share: u64) {
        let at = self.class(entry);
        let found = self.ghost.take(low, self.live / 2);
        if let Some(found) = found {
            self.classes[at].count_return(found.from_main, if found.soon { 1.0 } else { 0.0 });
            let cost = if found.soon { entry.price_nanoseconds() as f64 } else { 0.0 };
            self.returns.count_return(found.from_main, cost);
        }
        // While the cache fills, what the small queue's share does not hold fills the main queue.
        let overflow = !self.warm && self.classes[at].small.weight * FILLING_SHARE >= share;
        let returns = found.is_some_and(|found| !found.from_main || self.classes[at].readmits);
        let (main, level) = (returns || overflow, self.level);
        entry.set_in_main(main);
        self.live += 1;
        self.change(at, |class| class.push(low, main, entry.weight(), level));
    }

    /// The class of an entry, which may be a new one; it learns the entry's cost per byte.
    fn class(&mut self, entry: Entry) -> usize {
        let rank = rank(entry);
        let value = entry.price_nanoseconds().max(1) as f64 / entry.weight() as f64;
        if let Some(at) = self.classes.iter().position(|class| class.rank == rank) {
            self.classes[at].learn(value);
            return at;
        }
        let class = Class::new(rank, value);
        if self.classes.len() >= FEW_CLASSES
            && let Some(at) = self.classes.iter().position(Class::is_empty)
        {
            self.bytes -= self.classes[at].bytes();
            self.classes[at] = class;
            return at;
        }
        self.classes.reserve_exact(1);
        self.prices.reserve_exact(1);
        self.classes.push(class);
        self.prices.push(f64::INFINITY);
        self.classes.len() - 1
    }

    /// The class in which an entry stands.
    fn known(&self, entry: Entry) -> usize {
        let rank = rank(entry);
        self.classes.iter().position(|class| class.rank == rank).expect("a class that has entries is kept")
    }

    /// Changes a class, and what is kept of all of them.
    fn change<T>(&mut self, at: usize, change: impl FnOnce(&mut Class) -> T) -> T {
        let class = &mut self.classes[at];
        let before = class.bytes();
        let result = change(class);
        let (after, growth) = (class.bytes(), class.growth());
        self.prices[at] = class.price();
        self.bytes = self.bytes - before + after;
        if growth >= self.growth.0 {
            self.growth = (growth, at);
        } else if at == self.growth.1 {
            let all = self.classes.iter().enumerate().map(|(at, class)| (class.growth(), at));
            self.growth = all.max().expect("there is this one");
        }
        result
    }

    /// Before room is made for an entry of these bits: asks for what `admit` will look at.
    pub(super) fn prefetch(&self, low: u32) {
        self.ghost.prefetch(low);
    }

    /// `new` has taken the place of `old` (whose marks it took over). `true`: it costs so much more or less per byte that
    /// it stands in another queue now, and the arrays may have grown.
    pub(super) fn replace(&mut self, low: u32, old: Entry, new: Entry, resolve: &impl Resolve) -> bool {
        if new.is_as_dear_as(old) {
            return false;
        }
        let (main, level) = (new.in_main(), self.level);
        if rank(old) == rank(new) {
            let at = self.known(new);
            self.change(at, |class| {
                let queue = class.queue(main);
                queue.weight = queue.weight - old.weight() + new.weight();
            });
            return false;
        }
        let at = self.known(old);
        self.change(at, |class| class.forget(main, old.weight(), false, resolve));
        let at = self.class(new);
        self.change(at, |class| class.push(low, main, new.weight(), level));
        true
    }

    /// The entry is about to be taken out by somebody else: deleted, or expired.
    pub(super) fn forget(&mut self, entry: Entry, resolve: &impl Resolve) {
        self.live -= 1;
        let at = self.known(entry);
        self.change(at, |class| class.forget(entry.in_main(), entry.weight(), true, resolve));
    }

    /// The entry that has to go, already out of its queue.
    pub(super) fn victim(&mut self, resolve: &impl Resolve) -> Option<(u32, Entry)> {
        self.warm = true;
        loop {
            let cheapest = |&(_, one): &(usize, &f64), &(_, other): &(usize, &f64)| one.total_cmp(other);
            let (at, &price) = self.prices.iter().enumerate().min_by(cheapest)?;
            if price == f64::INFINITY {
                return None;
            }
            self.level = self.level.max(price);
            let (level, mut returns) = (self.level, self.returns);
            let gone = self.change(at, |class| {
                let (low, entry, main) = class.turn(level, resolve)?;
                returns.count_victim(main, entry.weight());
                class.count_victim(main, entry.weight(), &returns);
                Some((low, entry, main))
            });
            let Some((low, entry, main)) = gone else { continue };
            self.live -= 1;
            self.returns = returns;
            if self.returns.is_full() {
                self.returns.halve();
                self.classes.iter_mut().for_each(Class::halve);
            }
            self.ghost.put(low, main, remembered(self.live));
            return Some((low, entry));
        }
    }

    /// Bytes of the queues' own arrays.
    pub(super) fn bytes(&self) -> u64 {
        let classes = self.classes.capacity() * size_of::<Class>() + self.prices.capacity() * size_of::<f64>();
        self.bytes + classes as u64 + self.ghost.bytes()
    }

    /// Bytes by which the arrays may grow when an entry is admitted, and another one leaves for it: a class, a chunk in
    /// each of two queues of it, and what the ghost and the fullest queues take.
    pub(super) fn growth(&self) -> u64 {
        let class = size_of::<Class>() as u64 + size_of::<f64>() as u64;
        self.growth.0 + class + 2 * Chunks::BYTES + self.ghost.growth(remembered(self.live))
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl ByCost {
        /// What has to hold while so many entries that weigh so much together are held.
        pub(crate) fn check(&self, entries: usize, weight: u64) -> Result<(), TestCaseError> {
            let counted: u64 = self.classes.iter().map(Class::bytes).sum();
            prop_assert_eq!(self.bytes, counted, "the arrays are what was counted");
            prop_assert!(self.growth.0 >= self.classes.iter().map(Class::growth).max().unwrap_or(0));
            prop_assert_eq!(self.live, entries);
            let live: usize = self.classes.iter().map(|class| class.small.live() + class.main.live()).sum();
            prop_assert_eq!(live, entries, "each entry has an element");
            let weighed: u64 = self.classes.iter().map(|class| class.small.weight + class.main.weight).sum();
            prop_assert_eq!(weighed, weight);
            for (class, &price) in self.classes.iter().zip(&self.prices) {
                prop_assert_eq!(class.price(), price, "the price is kept up to date");
                prop_assert!(!price.is_nan());
            }
            Ok(())
        }
    }

    #[test]
    fn the_logarithm_is_monotonic_and_within_a_tenth() {
        let mut last = log2(0);
        for number in (0..100_000).chain((0..64).map(|shift| u64::MAX >> (63 - shift))) {
            let (found, exact) = (log2(number), 256.0 * (number.max(1) as f64).log2());
            assert!((f64::from(found) - exact).abs() <= 26.0, "{number}: {found}, {exact}");
            assert!(number >= 100_000 || found >= last || number == 1, "{number}");
            last = found;
        }
    }
}
