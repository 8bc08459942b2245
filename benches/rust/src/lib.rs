//! Benchmarks of the core beside its peers; see benches/rust/benches.
