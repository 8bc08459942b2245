//! An entry as bytes for a shared tier, checked when read back.
//!
//! Whoever can write to the server can write anything, and a server, a network and a disk can spoil what was right. So an
//! envelope says everything about its entry, carries a checksum or, with the deployment's secret, a MAC over all of it,
//! and is read with distrust: what is wrong in any way is [`Refused`], which a tier counts and treats as a miss.
//!
//! ```text
//! offset  size  field                                                                     (all integers little-endian)
//!      0     4  magic             89 49 43 45 ("\x89ICE")
//!      4     1  format            1
//!      5     1  codec             how the payload is stored: 0 raw, 2 LZ4 block; 1 is kept for zstd and never written
//!      6     1  flags             1: a MAC of 32 bytes ends it, else a checksum of 16 · 2: the payload holds tensors
//!      7     1  kind              how the payload is to be read, 0..=31: the table in `value`
//!      8    32  key               the entry's own
//!     40    16  epoch             of the authority that numbered the stamp
//!     56     8  stamp             the authority's log sequence number that the value carries
//!     64     8  life              ms that it is fresh, from when it was computed; 2^64 - 1: for ever
//!     72     8  stale             ms after that in which it may be served stale
//!     80     8  total             ms of life that the server was given with it (PX); 2^64 - 1: none
//!     88     8  age               ms since it was computed, when it was written
//!     96     8  namespace         hashes of the implicit tags, as `fence` makes them; the namespace's is never 0,
//!    104     8  model             those of model and version are 0 where the key knows neither
//!    112     8  version
//!    120     4  cost              seconds that computing it took: binary32, finite, not negative
//!    124     4  tags              how many; at most 4,096
//!    128     8  payload length    of the value's bytes
//!    136     8  stored length     of the bytes below
//!    144   8·t  tags              hashes of the caller's tags, none of them 0
//!      …     s  payload           as the codec stores it
//!      …  16/32 seal              BLAKE3 of every byte before it: the first 16 bytes of the plain hash, or all 32 of the
//!                                 keyed hash under derive_key("infercache 2026-11-23 envelope v1 mac", secret)
//! ```
//!
//! # What the reader makes sure of, in this order
//!
//! 1. It is as long as the shortest envelope; magic and format are known.
//! 2. The seal is of the kind that *the reader* expects: with a secret an envelope that claims to need no MAC is refused,
//!    and one with a MAC is refused where there is no secret to check it with. Then the seal itself, in constant time.
//! 3. Only now the fields: the key is the one that was asked for; tags and payload fill exactly what lies between header
//!    and seal; a value longer than the reader's cap, or longer than LZ4 can make of so few bytes, is refused before
//!    anything is allocated for it; decompression gives exactly the announced length.
//!
//! A raw payload is borrowed, so that whoever promotes it into a cache copies it once.
//!
//! # Time
//!
//! No wall clock is in it, for those of two machines never agree. The server keeps the remaining life (`PTTL`), and
//! `total` is what it was given, so a reader knows how long the envelope has lain there: [`Envelope::lifetime_with`].

mod codec; // LZ4, where it pays
mod reader;
mod writer;

pub use reader::{Reader, Refused, Unsealed, decode, unseal_all};
pub use writer::{COMPRESS_FROM, Options, encode};

use crate::limits::KEY_BYTES;
use crate::scopes::ScopeTags;
use std::borrow::Cow;
use std::fmt;

/// What every envelope begins with: not text, and not what another format begins with.
pub const MAGIC: [u8; 4] = *b"\x89ICE";
/// The version of the layout. It changes when anything in the layout does; a reader refuses every other one.
pub const FORMAT: u8 = 1;
/// Bytes before the tags.
pub const HEADER_BYTES: usize = 144;
/// Bytes of the checksum.
pub const CHECKSUM_BYTES: usize = 16;
/// Bytes of the MAC.
pub const MAC_BYTES: usize = 32;
/// Separates the sub-key of MACs from every other use of the deployment's secret.
pub const MAC_CONTEXT: &str = "infercache 2026-11-23 envelope v1 mac";

/// Where a field begins.
mod at {
    pub const FORMAT: usize = 4;
    pub const CODEC: usize = 5;
    pub const FLAGS: usize = 6;
    pub const KIND: usize = 7;
    pub const KEY: usize = 8;
    pub const EPOCH: usize = 40;
    pub const LSN: usize = 56;
    pub const LIFE: usize = 64;
    pub const STALE: usize = 72;
    pub const TOTAL: usize = 80;
    pub const AGE: usize = 88;
    pub const NAMESPACE: usize = 96;
    pub const MODEL: usize = 104;
    pub const VERSION: usize = 112;
    pub const COST: usize = 120;
    pub const TAGS: usize = 124;
    pub const PAYLOAD_LENGTH: usize = 128;
    pub const STORED_LENGTH: usize = 136;
}

const HAS_MAC: u8 = 1;
const ALIGNED: u8 = 2;
/// The largest kind that an entry's header holds.
const MAX_KIND: u8 = 31;
/// A duration without end.
const FOR_EVER: u64 = u64::MAX;

/// How long a value lives and how old it is, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// How long it is fresh, from when it was computed; `None`: for ever.
    pub life: Option<u64>,
    /// How long after that it may be served stale.
    pub stale: u64,
    /// How long ago it was computed.
    pub age: u64,
}

impl Lifetime {
    /// Milliseconds until it may not be served in any way, which a server is given as `PX`; `None`: for ever; `Some(0)`:
    /// that time is over.
    pub fn left(&self) -> Option<u64> {
        Some(self.life?.saturating_add(self.stale).saturating_sub(self.age))
    }
}

/// What an envelope holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope<'a> {
    /// The key under which the entry stands.
    pub key: [u8; KEY_BYTES],
    /// How the payload is to be read, 0..=31 (see [`crate::value`]).
    pub kind: u8,
    /// The payload holds tensors and is to be aligned in memory.
    pub aligned: bool,
    /// The epoch of the authority that numbered `lsn`.
    pub epoch: [u8; 16],
    /// The log sequence number of the stamp that the value carries.
    pub lsn: u64,
    /// Its life, and its age when it was written.
    pub lifetime: Lifetime,
    /// Milliseconds of life that the server is given with it; `None`: it is given none. Never zero, and there must be one if
    /// the life ends.
    pub total: Option<u64>,
    /// Hashes of its implicit tags.
    pub scope: ScopeTags,
    /// Hashes of the caller's tags.
    pub tags: Cow<'a, [u64]>,
    /// Seconds that computing it took.
    pub cost: f32,
    /// The value's bytes; borrowed from what was decoded unless they were compressed there.
    pub payload: Cow<'a, [u8]>,
}

impl Envelope<'_> {
    /// The lifetime with the age that the value has now, if the server still keeps the envelope for `remaining`
    /// milliseconds (`PTTL` less the time since it was asked; `None`: for ever).
    ///
    /// # Errors
    /// [`Refused::Times`] where the server's answer cannot be: no end where one was set, or a later one.
    pub fn lifetime_with(&self, remaining: Option<u64>) -> Result<Lifetime, Refused> {
        let lain = match (self.total, remaining) {
            (Some(total), Some(remaining)) => total.checked_sub(remaining).ok_or(Refused::Times)?,
            (Some(_), None) => return Err(Refused::Times),
            // How long it has lain there nobody knows, and nothing depends on it: its life has no end.
            (None, _) => 0,
        };
        Ok(Lifetime { age: self.lifetime.age.saturating_add(lain), ..self.lifetime })
    }
}

/// The sub-key under which a deployment's envelopes carry a MAC.
#[derive(Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// The one that belongs to a deployment's secret.
    pub fn new(secret: &[u8; 32]) -> MacKey {
        MacKey(blake3::derive_key(MAC_CONTEXT, secret))
    }

    fn mac(&self, bytes: &[u8]) -> blake3::Hash {
        hash(Some(self), bytes)
    }
}

/// Shows nothing: whoever has it can forge envelopes.
impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacKey").finish_non_exhaustive()
    }
}

/// The plain hash whose beginning is the checksum.
fn checksum(bytes: &[u8]) -> blake3::Hash {
    hash(None, bytes)
}

fn hash(key: Option<&MacKey>, bytes: &[u8]) -> blake3::Hash {
    let mut hasher = key.map_or_else(blake3::Hasher::new, |key| blake3::Hasher::new_keyed(&key.0));
    if crate::pieces::needed(bytes.len()) {
        return blake3::Hash::from_bytes(crate::pieces::hash(hasher, bytes));
    }
    hasher.update(bytes).finalize()
}

/// [`hash`] of each of many, short ones side by side.
fn hash_many(key: Option<&MacKey>, many: &[&[u8]]) -> Vec<blake3::Hash> {
    #[cfg(target_arch = "x86_64")]
    let hashed = crate::lanes::hash_many(key.map(|key| &key.0), many);
    #[cfg(not(target_arch = "x86_64"))]
    let hashed = vec![None; many.len()];
    let each = many.iter().zip(hashed);
    each.map(|(bytes, hashed)| hashed.map_or_else(|| hash(key, bytes), blake3::Hash::from_bytes)).collect()
}

/// Bytes of the seal that ends an envelope.
fn seal_bytes(has_mac: bool) -> usize {
    if has_mac { MAC_BYTES } else { CHECKSUM_BYTES }
}
