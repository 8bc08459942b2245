//! Scope and key (key specification, section 1).
//!
//! ```text
//! material  = field(namespace) ‖ field(model) ‖ field(version) ‖ field(operation)
//! field(s)  = length of UTF-8(s) in bytes, unsigned 64-bit little-endian ‖ UTF-8(s)
//! scope     = BLAKE3.derive_key(CONTEXT, material), then keyed by the secret where there is one
//! key       = BLAKE3.keyed_hash(scope, canonical document)
//! ```
//!
//! Each field carries its length, so `("ab", "c")` and `("a", "bc")` are different materials.

use crate::error::{Error, Result};
use crate::limits::KEY_BYTES;
use crate::pieces;
use std::fmt;

/// Separates keys of this version of the specification from every other use of BLAKE3.
pub const CONTEXT: &str = "infercache 2026-11-23 key v1 scope";
/// What the text form of a key begins with.
pub const TEXT_PREFIX: &str = "ic1:";

/// Namespace, model, version and operation, and the 32 bytes derived from them: computed once, kept, used for many keys.
pub struct Scope {
    fields: [String; 4],
    derived: [u8; KEY_BYTES],
    secret: bool,
}

impl Scope {
    /// Derives a scope. Only `operation` may be empty; `secret` makes keys that nobody else can compute.
    pub fn new(
        namespace: &str,
        model: &str,
        version: &str,
        operation: &str,
        secret: Option<&[u8; KEY_BYTES]>,
    ) -> Result<Scope> {
        for (name, field) in [("namespace", namespace), ("model", model), ("version", version)] {
            if field.is_empty() {
                return Err(Error::InvalidArgument { reason: format!("{name} must not be empty") });
            }
        }
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        for field in [namespace, model, version, operation] {
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
        }
        let mut derived = *hasher.finalize().as_bytes();
        if let Some(secret) = secret {
            derived = *blake3::keyed_hash(secret, &derived).as_bytes();
        }
        Ok(Scope {
            fields: [namespace, model, version, operation].map(str::to_owned),
            derived,
            secret: secret.is_some(),
        })
    }

    /// The key of a canonical document in this scope: one pass over its bytes.
    #[inline]
    pub fn key(&self, document: &[u8]) -> [u8; KEY_BYTES] {
        #[cfg(target_arch = "x86_64")]
        if let Some(key) = crate::lanes::keyed_hash(&self.derived, document) {
            return key;
        }
        if pieces::needed(document.len()) {
            return pieces::hash(blake3::Hasher::new_keyed(&self.derived), document);
        }
        *blake3::keyed_hash(&self.derived, document).as_bytes()
    }

    /// Tenant or application.
    pub fn namespace(&self) -> &str {
        &self.fields[0]
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.fields[1]
    }

    /// The model's version.
    pub fn version(&self) -> &str {
        &self.fields[2]
    }

    /// What the model is asked to do; may be empty.
    pub fn operation(&self) -> &str {
        &self.fields[3]
    }

    /// Whether a secret went into it.
    pub fn is_secret(&self) -> bool {
        self.secret
    }

    /// The derived 32 bytes, for a person to compare with another implementation's; `None` where a secret went into them.
    pub fn public_bytes(&self) -> Option<&[u8; KEY_BYTES]> {
        (!self.secret).then_some(&self.derived)
    }
}

/// Prints the fields only: a scope made with a secret is itself a secret.
impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("namespace", &self.namespace())
            .field("model", &self.model())
            .field("version", &self.version())
            .field("operation", &self.operation())
            .finish_non_exhaustive()
    }
}

/// The text form: `ic1:` and 64 lower-case hexadecimal digits.
pub fn to_text(key: &[u8; KEY_BYTES]) -> String {
    let mut text = String::with_capacity(TEXT_PREFIX.len() + 2 * KEY_BYTES);
    text.push_str(TEXT_PREFIX);
    text.push_str(&blake3::Hash::from_bytes(*key).to_hex());
    text
}

/// The key of a text form, which has exactly one spelling.
pub fn from_text(text: &str) -> Result<[u8; KEY_BYTES]> {
    let invalid = || Error::InvalidArgument {
        reason: format!(
            "not the text form of a key: expected \"{TEXT_PREFIX}\" and 64 lower-case hexadecimal digits, got {:?}",
            text.chars().take(80).collect::<String>()
        ),
    };
    let digits = text.strip_prefix(TEXT_PREFIX).ok_or_else(invalid)?.as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return Err(invalid());
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut key = [0u8; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0]).ok_or_else(invalid)? << 4 | value(pair[1]).ok_or_else(invalid)?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_specifications_first_vector() {
        let scope = Scope::new("default", "m", "1", "", None).unwrap();
        let key = scope.key(b"{\"text\":\"hello world\"}");
        assert_eq!(to_text(&key), "ic1:891849752b89a59f92b001a306ba35b388b9ba98a57b9d5946d2997bb42de33e");
    }

    #[test]
    fn the_specifications_secret_vector() {
        let secret: [u8; 32] = std::array::from_fn(|i| i as u8);
        let scope = Scope::new("tenant-7", "m", "2", "embed", Some(&secret)).unwrap();
        let key = scope.key(b"{\"text\":\"hello world\"}");
        assert_eq!(to_text(&key), "ic1:1f3a214ea48dc8b9e21b166235f67717ce8911467b032c14ed25a2c9c092f9ab");
        assert!(scope.public_bytes().is_none());
    }

    #[test]
    fn only_the_operation_may_be_empty() {
        assert!(Scope::new("n", "m", "1", "", None).is_ok());
        for fields in [["", "m", "1"], ["n", "", "1"], ["n", "m", ""]] {
            assert!(Scope::new(fields[0], fields[1], fields[2], "o", None).is_err());
        }
    }

    #[test]
    fn nothing_prints_the_derived_bytes() {
        let scope = Scope::new("n", "m", "1", "o", Some(&[7; 32])).unwrap();
        let shown = format!("{scope:?}");
        assert!(shown.contains("\"m\"") && !shown.contains("derived") && !shown.contains("secret"));
    }

    #[test]
    fn a_text_form_has_one_spelling() {
        let text = to_text(&[0xab; 32]);
        assert_eq!(from_text(&text).unwrap(), [0xab; 32]);
        for wrong in
            [text.to_uppercase(), text[4..].to_owned(), text.clone() + "0", text.replace('a', "g"), String::new()]
        {
            assert!(from_text(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn moving_a_field_boundary_changes_the_key(fields in prop::collection::vec("[a-c]{1,4}", 4), cut in 0usize..3) {
            let mut moved = fields.clone();
            let (left, right) = (moved[cut].clone(), moved[cut + 1].clone());
            moved[cut] = left[..1].to_owned();
            moved[cut + 1] = left[1..].to_owned() + &right;
            prop_assume!(moved != fields);
            let key = |f: &[String]| Scope::new(&f[0], &f[1], &f[2], &f[3], None).unwrap().key(b"1");
            prop_assert_ne!(key(&fields), key(&moved));
        }

        #[test]
        fn text_forms_read_back(key in any::<[u8; 32]>()) {
            prop_assert_eq!(from_text(&to_text(&key)).unwrap(), key);
        }
    }
}
