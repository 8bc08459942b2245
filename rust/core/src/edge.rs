//! What an edge before a model server does with bodies: from the request's text to the keys of its items, and from stored
//! records to the answer's text.
//!
//! ```text
//! request ── query ──┬─ keys ── look-up ── all found ── render ── answer
//!                    └─ ask: the request for the missing ones ── upstream ── records ── store
//! ```

pub mod embeddings; // OpenAI's /v1/embeddings: an entry for each item
pub mod infer; // Open Inference Protocol v2's infer: JSON and binary tensors under one key
pub mod scan; // places of members and elements in JSON text that was checked

pub use scan::depth;
