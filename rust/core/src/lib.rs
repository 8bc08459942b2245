//! The core of infercache. The modules stand in the order of a request's flow.
//!
//! input ─ document ─ key ─ table ─ flight ─ model ─ store ─ answer
#![warn(missing_docs)]

pub mod document; // RFC 8785 writer: numbers, strings, member order; `$` forms
pub mod number; // ECMAScript text of a binary64
pub mod json; // raw JSON text to document, duplicates rejected
pub mod tensor; // digest of a strided tensor's elements, blockwise
pub mod key; // scope and key
pub mod fingerprint; // a model's version: its parameters as one text
pub mod entry; // an entry: payload, stamp, deadlines, tags, cost, weight
pub mod epoch; // reclamation: when an unlinked entry may be freed
pub mod table; // the sharded table: reads without locks
pub(crate) mod chunks; // queues of hash bits
pub(crate) mod costs; // what an answer costs where nobody measured it
pub mod eviction; // the policy, headed by its essay
pub mod expiry; // deadlines and their bounded reclaim
pub mod budget; // the byte budget that shards share
pub mod scopes; // implicit tags, interned
pub mod fence; // logical clock, tag fences: what an invalidation hides
pub(crate) mod limbo; // what was unlinked, and its memory for the next entry
pub(crate) mod shard; // one shard: what a writer does under its mutex
pub mod flight; // Found | Lead | Wait: one leader a key
pub mod value; // typed values and tensors as bytes
pub mod envelope; // an entry as bytes for a shared tier, checked when read back
pub mod cache; // look-up and store: the only module that calls several stages
pub mod edge; // bodies of requests and answers before a model server
pub mod stats; // counters, exact once the threads have stopped
#[cfg(target_arch = "x86_64")]
pub(crate) mod lanes; // BLAKE3 of short messages, chunks side by side
pub(crate) mod pieces; // BLAKE3 on a small stack
pub mod stack; // how near a walk is to the end of its thread's stack
pub mod limits; // every bound in one place
pub mod clock; // monotonic time, injected
pub mod sync; // atomics, locks and threads; shuttle's under `explore`
pub mod error; // what can go wrong, one enum
