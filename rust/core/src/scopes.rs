//! The implicit tags of entries, interned: an entry carries 24 bits instead of three hashes.

use crate::costs::MeanCost;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Entries of the first chunk; each further one is twice as large.
const FIRST: usize = 64;
const CHUNKS: usize = 18;
/// Different scopes of one cache: about as many as 24 bits tell apart.
pub const MAX_SCOPES: usize = FIRST * ((1 << CHUNKS) - 1);

/// Hashes of an entry's implicit tags, its key's aside. Zero: it has none such (a key that was read from text does not
/// know its model).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScopeTags {
    /// Of its namespace.
    pub namespace: u64,
    /// Of its model.
    pub model: u64,
    /// Of its model and version.
    pub version: u64,
}

/// An interned scope of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScopeId(pub(crate) u32);

/// What is known of a scope.
#[derive(Debug, Default)]
struct Scope {
    tags: OnceLock<ScopeTags>,
    cost: MeanCost,
}

/// Scopes by number (read without a lock) and numbers by scope.
#[derive(Debug, Default)]
pub(crate) struct Scopes {
    chunks: [OnceLock<Box<[Scope]>>; CHUNKS],
    numbers: Mutex<HashMap<ScopeTags, u32>>,
}

/// Which chunk, and where in it.
fn place(number: u32) -> (usize, usize) {
    let shifted = number as usize + FIRST;
    let chunk = (shifted / FIRST).ilog2() as usize;
    (chunk, shifted - (FIRST << chunk))
}

impl Scopes {
    /// The number of this scope; `None` when there are [`MAX_SCOPES`] others.
    pub(crate) fn intern(&self, tags: ScopeTags) -> Option<ScopeId> {
        let mut numbers = self.numbers.lock();
        if let Some(&number) = numbers.get(&tags) {
            return Some(ScopeId(number));
        }
        let number = numbers.len() as u32;
        if number as usize >= MAX_SCOPES {
            return None;
        }
        let (chunk, at) = place(number);
        let chunk = self.chunks[chunk].get_or_init(|| (0..FIRST << chunk).map(|_| Scope::default()).collect());
        let _ = chunk[at].tags.set(tags);
        numbers.insert(tags, number);
        Some(ScopeId(number))
    }

    pub(crate) fn tags(&self, id: u32) -> ScopeTags {
        self.known(id).expect("the number was handed out by intern")
    }

    /// The same of a number that another cache may have handed out.
    pub(crate) fn known(&self, id: u32) -> Option<ScopeTags> {
        self.scope(id)?.tags.get().copied()
    }

    /// What computing an answer of this scope costs.
    pub(crate) fn cost(&self, id: u32) -> Option<&MeanCost> {
        Some(&self.scope(id)?.cost)
    }

    fn scope(&self, id: u32) -> Option<&Scope> {
        let (chunk, at) = place(id);
        Some(&self.chunks.get(chunk)?.get()?[at])
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn a_scope_keeps_its_number_and_a_number_its_scope() {
        let scopes = Scopes::default();
        let tags = |n: u64| ScopeTags { namespace: 1, model: n, version: n + 1 };
        let ids: Vec<ScopeId> = (0..10_000).map(|n| scopes.intern(tags(n)).unwrap()).collect();
        for (n, &id) in ids.iter().enumerate() {
            assert_eq!(scopes.tags(id.0), tags(n as u64));
            assert_eq!(scopes.intern(tags(n as u64)), Some(id));
        }
    }
}
