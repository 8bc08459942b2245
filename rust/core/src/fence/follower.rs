//! The replica of another process's authority: questions, answers, and purges that are not acknowledged yet.
//!
//! Poll and purge are one question: "invalidate these tags (perhaps none), and tell me every change since what I have
//! applied". Whoever sends one takes a [`Question`] first, which dates it, and hands the [`Answer`] in with it. Any number may be
//! under way at once, in any order:
//!
//! - within an epoch answers merge by maximum, and each holds everything between what was applied when it was asked
//!   for and its `upto`, so `applied` never runs over a gap;
//! - an answer of another epoch begins that epoch here, with a map of its own, unless the epoch has changed since the
//!   question: then nobody knows which of the two is the later one, and the answer is discarded;
//! - an answer cut short is applied, but it is no proof.
//!
//! # Purges that are not acknowledged
//!
//! A purge that the authority could not be told of must still hold here, and without a number no fence can say so. Its
//! tags are *pending*: hidden (or stale) whatever the stamp, and sent along with each further question until one is
//! answered. A purge is idempotent, so one that had arrived after all is only repeated.
//!
//! tests/coherence_model.py explores this protocol across processes; tests/explore_fences.rs explores the order of
//! loads and stores against readers.

use super::map::{self, Map};
use super::{EpochId, Fences, Log, Stamp, next_epoch};
use crate::sync::atomic::Ordering;

/// A purge that the authority has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    number: u64,
    tag: u64,
    soft: bool,
}

/// What goes with a question to the authority.
#[derive(Clone, Debug)]
pub struct Question {
    /// The epoch that is known here; `None`: none is, so everything is asked for.
    pub epoch: Option<EpochId>,
    /// What is applied of it.
    pub applied: u64,
    /// Pending purges to be sent along: tags, and whether they are soft.
    pub pending: Vec<(u64, bool)>,
    generation: u64,
    /// Pending purges up to this number are sent along.
    purges: u64,
    /// A moment before it is sent.
    asked: u64,
}

impl Question {
    /// A moment before it is sent: what [`Fences::ask`] was given.
    pub fn asked(&self) -> u64 {
        self.asked
    }
}

#[cfg(all(test, not(feature = "explore")))]
impl Question {
    /// The same question, sent before any purge was pending.
    pub(super) fn without_purges(self) -> Question {
        Question { pending: Vec::new(), purges: 0, ..self }
    }
}

/// A change that the authority reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The tag that was purged.
    pub tag: u64,
    /// The number of its last purge.
    pub lsn: u64,
    /// Marks stale instead of hiding.
    pub soft: bool,
}

/// What the authority says.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// Its epoch.
    pub epoch: EpochId,
    /// The changes hold everything up to this number.
    pub upto: u64,
    /// There is nothing beyond.
    pub whole: bool,
    /// The highest number of a fence that the authority has dropped.
    pub horizon: u64,
    /// Changes since what the question said is applied, in any order; all of them if it named no epoch or another one.
    pub changes: &'a [Change],
}

impl Fences {
    /// Begins a question. `asked`: nanoseconds of [`counting`](crate::clock::counting) that lie before it is sent.
    pub fn ask(&self, asked: u64) -> Question {
        let log = self.log.lock();
        Question {
            epoch: log.id,
            applied: Stamp(self.applied.load(Ordering::Relaxed)).lsn(),
            pending: log.pending.iter().map(|pending| (pending.tag, pending.soft)).collect(),
            generation: log.generation,
            purges: log.purges,
            asked,
        }
    }

    /// Applies an answer, or part of one; `false`: it was discarded, for the epoch has changed since it was asked for, or
    /// there is no number left to know another epoch by.
    pub fn apply(&self, question: &Question, answer: &Answer<'_>) -> bool {
        let mut log = self.log.lock();
        if log.id == Some(answer.epoch) {
            let since = if question.epoch == log.id { question.applied } else { 0 };
            if since > Stamp(self.applied.load(Ordering::Relaxed)).lsn() {
                return false; // the epoch went and came back meanwhile, and less of it is applied now
            }
            self.merge(&mut log, answer);
        } else if log.generation != question.generation || !self.begin(&mut log, answer) {
            return false;
        }
        self.acknowledge(&mut log, question.purges);
        if answer.whole {
            self.proof.fetch_max(question.asked, Ordering::AcqRel);
        }
        self.out.store(false, Ordering::Release);
        true
    }

    /// Everything up to `upto` is known: fences, horizon, then `applied`.
    fn merge(&self, log: &mut Log, answer: &Answer<'_>) {
        let index = Stamp(self.applied.load(Ordering::Relaxed)).epoch();
        // In their order, as `prune` expects; what is known already changes nothing.
        let mut changes: Vec<&Change> = answer.changes.iter().collect();
        changes.sort_unstable_by_key(|change| change.lsn);
        for change in changes {
            let (stamp, known) = (Stamp::new(index, change.lsn), self.map().get(change.tag));
            if stamp.0 > if change.soft { known.soft } else { known.hard } {
                self.raise(log, change.tag, stamp, change.soft);
            }
        }
        self.horizon.fetch_max(Stamp::new(index, answer.horizon).0, Ordering::Release);
        self.applied.fetch_max(Stamp::new(index, answer.upto).0, Ordering::AcqRel);
        self.prune(log);
    }

    /// Another epoch: every stamp of before is hidden from now on. `false`: there is no index left for it.
    fn begin(&self, log: &mut Log, answer: &Answer<'_>) -> bool {
        let Some(index) = next_epoch() else { return false };
        // Until it is answered in full nothing is proven of the new epoch.
        self.proof.store(0, Ordering::Release);
        log.id = Some(answer.epoch);
        log.generation += 1;
        log.order.clear();
        self.publish(log, Map::new(index, answer.changes.len() * 4), 0);
        for pending in log.pending.clone() {
            self.mark(log, pending.tag);
        }
        self.horizon.store(Stamp::new(index, answer.horizon).0, Ordering::Release);
        let mut changes: Vec<&Change> = answer.changes.iter().collect();
        changes.sort_unstable_by_key(|change| change.lsn);
        for change in changes {
            self.raise(log, change.tag, Stamp::new(index, change.lsn), change.soft);
        }
        self.applied.store(Stamp::new(index, answer.upto).0, Ordering::Release);
        self.prune(log);
        true
    }

    /// Hides these tags (or marks them stale) here until the authority has acknowledged their purge.
    pub fn hide(&self, tags: &[u64], soft: bool) {
        let mut log = self.log.lock();
        log.purges += 1;
        let number = log.purges;
        for &tag in tags {
            log.pending.retain(|pending| (pending.tag, pending.soft) != (tag, soft));
            log.pending.push(Pending { number, tag, soft });
            self.mark(&mut log, tag);
        }
        self.pending.store(log.pending.len() as u64, Ordering::Release);
    }

    /// The purges up to this number have fences now.
    fn acknowledge(&self, log: &mut Log, upto: u64) {
        let (done, left) = log.pending.iter().copied().partition(|pending: &Pending| pending.number <= upto);
        log.pending = left;
        for pending in done {
            self.mark(log, pending.tag);
        }
        self.pending.store(log.pending.len() as u64, Ordering::Release);
    }

    /// Writes down in the map what is pending of a tag.
    fn mark(&self, log: &mut Log, tag: u64) {
        self.make_room(log);
        let of_tag = log.pending.iter().filter(|pending| pending.tag == tag);
        let bits = of_tag.fold(0, |bits, pending| bits | if pending.soft { map::SOFT } else { map::HARD });
        log.used += usize::from(self.map().mark(tag, bits));
    }

    /// When the question was sent that was last answered in full, in nanoseconds of [`counting`](crate::clock::counting): no purge
    /// acknowledged before that is unknown here. `u64::MAX` where the process is its own authority; zero: never.
    #[inline]
    pub fn proof(&self) -> u64 {
        self.proof.load(Ordering::Acquire)
    }

    /// Takes note that the authority is out of reach. The next answer ends it.
    pub fn set_out(&self) {
        self.out.store(true, Ordering::Release);
    }

    /// Is the authority out of reach, as far as is known?
    #[inline]
    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }

    /// Purges that the authority has not acknowledged.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire) as usize
    }
}
