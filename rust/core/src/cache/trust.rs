//! May what is known of the authority's purges be relied on? Each reader asks for itself, at every read.
//!
//! Where the process is its own authority it knows every purge. A follower's replica is as good as its last proof
//! (fence/follower.rs), and nobody's promise that a newer one will come in time is worth anything: the follower's thread
//! may be paused, and the whole machine may have slept.

use super::Cache;
use crate::clock;

/// How old a proof may be, in nanoseconds of [`clock::counting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// A purge that was acknowledged anywhere is unseen here for no longer; zero: every read asks.
    pub max_staleness: u64,
    /// The same for entries without tags of their own while the authority is out of reach; `u64::MAX`: no limit.
    pub untagged: u64,
    /// The same for entries with tags.
    pub tagged: u64,
}

/// How good the proof is that a reader loaded, before anything else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assurance {
    /// For entries without tags, and with.
    untagged: bool,
    tagged: bool,
}

impl Assurance {
    const WHOLE: Assurance = Assurance { untagged: true, tagged: true };

    #[inline]
    pub(super) fn covers(self, tagged: bool) -> bool {
        if tagged { self.tagged } else { self.untagged }
    }
}

impl Cache {
    /// Asks for the proof. `since`: a proof of no earlier moment will do, whatever its age: the caller has just
    /// asked the authority.
    #[inline]
    pub(super) fn assurance(&self, since: Option<u64>) -> Assurance {
        match &self.trust {
            None => Assurance::WHOLE,
            Some(trust) => self.follower_assurance(trust, since),
        }
    }

    fn follower_assurance(&self, trust: &Trust, since: Option<u64>) -> Assurance {
        let proof = self.fences.proof();
        if proof != 0 && since.is_some_and(|since| proof >= since) {
            return Assurance::WHOLE;
        }
        // A clock that goes backwards would be a broken one; such a proof counts as just given, not as an old one.
        let age = clock::counting().saturating_sub(proof);
        if proof != 0 && age < trust.max_staleness {
            return Assurance::WHOLE;
        }
        let out = self.fences.is_out();
        let within = |bound: u64| out && (bound == u64::MAX || proof != 0 && age < bound);
        Assurance { untagged: within(trust.untagged), tagged: within(trust.tagged) }
    }

    /// Would an entry with or without tags of its own be served now, as far as the proof goes?
    pub fn is_assured(&self, tagged: bool, since: Option<u64>) -> bool {
        self.assurance(since).covers(tagged)
    }
}
