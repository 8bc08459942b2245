//! Bytes to an envelope, with distrust.

use super::codec::{self, Codec};
use super::{ALIGNED, Envelope, FOR_EVER, FORMAT, HAS_MAC, HEADER_BYTES, Lifetime, MAGIC, MAX_KIND, MacKey};
use super::{CHECKSUM_BYTES, at, checksum, hash_many, seal_bytes};
use crate::entry::{KeyBytes, MAX_PAYLOAD_BYTES};
use crate::limits::{KEY_BYTES, MAX_ENVELOPE_TAGS};
use crate::scopes::ScopeTags;
use std::borrow::Cow;
use std::fmt;

/// What a reader knows and demands.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    /// With it every envelope must carry a MAC under it; without it none may carry one.
    pub mac: Option<&'a MacKey>,
    /// The longest value that is accepted, in bytes: nothing longer is ever decompressed. The capacity of the cache that it
    /// is for.
    pub cap: u64,
}

/// Why bytes are not the envelope that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Shorter than any envelope.
    Truncated,
    /// It begins with something else.
    Magic,
    /// Of another version of the format.
    Format,
    /// It carries no MAC, and the reader has a secret.
    Unsigned,
    /// It carries a MAC, and the reader has no secret to check it with.
    Signed,
    /// The checksum is not that of the bytes.
    Checksum,
    /// The MAC is not that of the bytes under the reader's secret.
    Mac,
    /// A codec that this version does not read.
    Codec,
    /// A flag without a meaning.
    Flags,
    /// A kind that no entry has.
    Kind,
    /// It is another key's.
    Key,
    /// Its lengths do not fill it exactly.
    Lengths,
    /// Too many tags, one that no tag hashes to, or no namespace.
    Tags,
    /// Durations that cannot be.
    Times,
    /// A cost that is none.
    Cost,
    /// Its value would be longer than the reader's cap, or than so few bytes can be decompressed to.
    Bomb,
    /// Its payload does not decompress to what it announces.
    Compression,
}

impl Refused {
    /// Every reason, in the order in which they are looked for.
    pub const ALL: [Refused; 17] = [
        Refused::Truncated,
        Refused::Magic,
        Refused::Format,
        Refused::Unsigned,
        Refused::Signed,
        Refused::Checksum,
        Refused::Mac,
        Refused::Codec,
        Refused::Flags,
        Refused::Kind,
        Refused::Key,
        Refused::Lengths,
        Refused::Tags,
        Refused::Times,
        Refused::Cost,
        Refused::Bomb,
        Refused::Compression,
    ];

    /// The name of its counter.
    pub fn name(self) -> &'static str {
        match self {
            Refused::Truncated => "truncated",
            Refused::Magic => "magic",
            Refused::Format => "format",
            Refused::Unsigned => "unsigned",
            Refused::Signed => "signed",
            Refused::Checksum => "checksum",
            Refused::Mac => "mac",
            Refused::Codec => "codec",
            Refused::Flags => "flags",
            Refused::Kind => "kind",
            Refused::Key => "key",
            Refused::Lengths => "lengths",
            Refused::Tags => "tags",
            Refused::Times => "times",
            Refused::Cost => "cost",
            Refused::Bomb => "bomb",
            Refused::Compression => "compression",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::Truncated => "shorter than any envelope",
            Refused::Magic => "not an envelope: it begins with other bytes",
            Refused::Format => "an envelope of another version of the format",
            Refused::Unsigned => "an envelope without a MAC, where the deployment has a secret",
            Refused::Signed => "an envelope with a MAC, where there is no secret to check it with",
            Refused::Checksum => "an envelope whose checksum is not that of its bytes",
            Refused::Mac => "an envelope whose MAC is not that of its bytes under this secret",
            Refused::Codec => "an envelope with an unknown codec",
            Refused::Flags => "an envelope with unknown flags",
            Refused::Kind => "an envelope of an unknown kind of value",
            Refused::Key => "the envelope of another key",
            Refused::Lengths => "an envelope whose lengths do not fill it",
            Refused::Tags => "an envelope with impossible tags",
            Refused::Times => "an envelope with impossible durations",
            Refused::Cost => "an envelope with an impossible cost",
            Refused::Bomb => "an envelope whose value is too long, or longer than its bytes can decompress to",
            Refused::Compression => "an envelope whose payload does not decompress to what it announces",
        })
    }
}

impl std::error::Error for Refused {}

/// The header's fields, once it is known to be there.
struct Header<'a>(&'a [u8; HEADER_BYTES]);

impl Header<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("a range of N bytes")
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    /// Milliseconds; `None`: for ever.
    fn duration(&self, at: usize) -> Option<u64> {
        Some(self.u64(at)).filter(|&milliseconds| milliseconds != FOR_EVER)
    }
}

/// The envelope of `key` in these bytes.
///
/// # Errors
/// Why they are not one that this reader accepts.
pub fn decode<'a>(bytes: &'a [u8], key: &KeyBytes, reader: &Reader<'_>) -> Result<Envelope<'a>, Refused> {
    unseal(bytes, reader)?.decode(key, reader)
}

/// An envelope whose seal is that of its bytes; its fields are still to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct Unsealed<'a>(&'a [u8]);

impl<'a> Unsealed<'a> {
    /// Its bytes, but for the seal.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// The envelope of `key`, by the reader for which it was unsealed.
    ///
    /// # Errors
    /// Why it is not one that this reader accepts.
    pub fn decode(self, key: &KeyBytes, reader: &Reader<'_>) -> Result<Envelope<'a>, Refused> {
        let (header, rest) = self.0.split_first_chunk().ok_or(Refused::Truncated)?;
        let header = Header(header);
        let codec = Codec::from_byte(header.0[at::CODEC]).ok_or(Refused::Codec)?;
        if header.0[at::FLAGS] & !(HAS_MAC | ALIGNED) != 0 {
            return Err(Refused::Flags);
        }
        if header.0[at::KIND] > MAX_KIND {
            return Err(Refused::Kind);
        }
        if header.bytes::<KEY_BYTES>(at::KEY) != *key {
            return Err(Refused::Key);
        }
        let (tags, stored) = parts_of(&header, rest)?;
        let scope = ScopeTags {
            namespace: header.u64(at::NAMESPACE),
            model: header.u64(at::MODEL),
            version: header.u64(at::VERSION),
        };
        if scope.namespace == 0 || (scope.model == 0) != (scope.version == 0) {
            return Err(Refused::Tags);
        }
        let (life, total) = (header.duration(at::LIFE), header.duration(at::TOTAL));
        if total == Some(0) || (life.is_some() && total.is_none()) {
            return Err(Refused::Times);
        }
        let cost = f32::from_le_bytes(header.bytes(at::COST));
        if !cost.is_finite() || cost.is_sign_negative() {
            return Err(Refused::Cost);
        }
        let length = header.u64(at::PAYLOAD_LENGTH);
        if length > reader.cap.min(MAX_PAYLOAD_BYTES as u64) {
            return Err(Refused::Bomb);
        }
        let payload = match codec {
            Codec::Raw if length == stored.len() as u64 => Cow::Borrowed(stored),
            Codec::Raw => return Err(Refused::Lengths),
            Codec::Lz4 => Cow::Owned(codec::decompress(stored, length as usize)?),
        };
        Ok(Envelope {
            key: *key,
            kind: header.0[at::KIND],
            aligned: header.0[at::FLAGS] & ALIGNED != 0,
            epoch: header.bytes(at::EPOCH),
            lsn: header.u64(at::LSN),
            lifetime: Lifetime { life, stale: header.u64(at::STALE), age: header.u64(at::AGE) },
            total,
            scope,
            tags: Cow::Owned(tags),
            cost,
            payload,
        })
    }
}

/// What the seal ends, and the seal.
type Sealed<'a> = (&'a [u8], &'a [u8]);

/// Checks the seals of many; `None`: there are no bytes. Nothing else of them is looked at before, and nothing is allocated
/// for what they hold.
///
/// # Errors
/// Each has its own: why it is no envelope that this reader accepts.
pub fn unseal_all<'a>(many: &[Option<&'a [u8]>], reader: &Reader<'_>) -> Vec<Option<Result<Unsealed<'a>, Refused>>> {
    let apart: Vec<_> = many.iter().map(|bytes| bytes.map(|bytes| take_apart(bytes, reader))).collect();
    let bodies: Vec<&[u8]> = apart.iter().flatten().flatten().map(|(body, _)| *body).collect();
    let mut hashes = hash_many(reader.mac, &bodies).into_iter();
    let mut check = |sealed| checked(sealed, hashes.next().expect("one for each"), reader);
    apart.into_iter().map(|apart| apart.map(|apart| apart.and_then(&mut check))).collect()
}

fn unseal<'a>(bytes: &'a [u8], reader: &Reader<'_>) -> Result<Unsealed<'a>, Refused> {
    let sealed = take_apart(bytes, reader)?;
    checked(sealed, reader.mac.map_or_else(|| checksum(sealed.0), |key| key.mac(sealed.0)), reader)
}

/// An envelope and its seal, which is of the kind that the reader expects.
fn take_apart<'a>(bytes: &'a [u8], reader: &Reader<'_>) -> Result<Sealed<'a>, Refused> {
    if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES {
        return Err(Refused::Truncated);
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(Refused::Magic);
    }
    if bytes[at::FORMAT] != FORMAT {
        return Err(Refused::Format);
    }
    let has_mac = bytes[at::FLAGS] & HAS_MAC != 0;
    if bytes.len() < HEADER_BYTES + seal_bytes(has_mac) {
        return Err(Refused::Truncated);
    }
    match (reader.mac, has_mac) {
        (Some(_), false) => Err(Refused::Unsigned),
        (None, true) => Err(Refused::Signed),
        _ => Ok(bytes.split_at(bytes.len() - seal_bytes(has_mac))),
    }
}

/// Compares the seal with the hash of what it ends.
fn checked<'a>((body, seal): Sealed<'a>, hash: blake3::Hash, reader: &Reader<'_>) -> Result<Unsealed<'a>, Refused> {
    if reader.mac.is_some() {
        let seal = seal.try_into().map_err(|_| Refused::Truncated)?;
        // Comparing two `Hash`es takes the same time whatever they hold.
        return if hash == blake3::Hash::from_bytes(seal) { Ok(Unsealed(body)) } else { Err(Refused::Mac) };
    }
    // No secret is in it, so the time may tell.
    if hash.as_bytes().starts_with(seal) { Ok(Unsealed(body)) } else { Err(Refused::Checksum) }
}

/// The caller's tags and the stored payload, which fill what is behind the header exactly.
fn parts_of<'a>(header: &Header<'_>, rest: &'a [u8]) -> Result<(Vec<u64>, &'a [u8]), Refused> {
    let count = header.u32(at::TAGS) as usize;
    if count > MAX_ENVELOPE_TAGS {
        return Err(Refused::Tags);
    }
    let (tags, stored) = rest.split_at_checked(8 * count).ok_or(Refused::Lengths)?;
    if header.u64(at::STORED_LENGTH) != stored.len() as u64 {
        return Err(Refused::Lengths);
    }
    let (tags, _) = tags.as_chunks::<8>();
    let tags: Vec<u64> = tags.iter().map(|&tag| u64::from_le_bytes(tag)).collect();
    if tags.contains(&0) { Err(Refused::Tags) } else { Ok((tags, stored)) }
}
