//! The fingerprint of a model: one text for its parameters, however they are sharded (docs/model-fingerprint.md).
//!
//! What counts is written as a canonical document, in which each tensor and each file stands as its plain BLAKE3. The
//! fingerprint is the hash of that document under a context of its own, so it is no key and no other digest. The weights
//! themselves are hashed by [`Hashing`], where they lie in their files.

mod hashing; // regions of files, hashed by several threads

pub use hashing::{Failure, Hashing, PIECE, Region, workers};

/// Tells fingerprints of this version from every other hash; a change of what docs/model-fingerprint.md says is a new one.
pub const CONTEXT: &str = "infercache 2026-11-24 model fingerprint v1";
/// What the text form begins with.
pub const PREFIX: &str = "fp1:";

/// The fingerprint of a canonical document: the prefix and 64 hexadecimal digits.
pub fn of_document(document: &[u8]) -> String {
    let digest = blake3::Hasher::new_derive_key(CONTEXT).update(document).finalize();
    format!("{PREFIX}{}", digest.to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_the_prefix_and_the_derived_hash() {
        let expected = blake3::derive_key(CONTEXT, b"{}");
        let text = of_document(b"{}");
        assert_eq!(text, format!("fp1:{}", blake3::Hash::from(expected).to_hex()));
        assert_eq!(text.len(), 68);
        assert!(!text.contains(blake3::hash(b"{}").to_hex().as_str()));
    }
}
