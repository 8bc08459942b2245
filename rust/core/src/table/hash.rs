//! Where a key stands: its shard, and its place there.
//!
//! Keys are BLAKE3 output, but whoever may choose the questions can choose keys that agree in a few bits. So a key is
//! mixed with a secret seed of this process by one 64×64→128 bit multiplication, as wyhash does. 32 of the bits stand for
//! the entry in the queues of the policy and the wheel; the position in the index follows from them, so that a queue of
//! four bytes an entry is enough to find the entry again.

use crate::entry::KeyBytes;

/// A key's hash: the shard, and the 32 bits that stand for the entry within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hash {
    pub(crate) shard: usize,
    pub(crate) low: u32,
}

/// Mixes keys with the seed of this cache.
#[derive(Clone, Debug)]
pub(crate) struct Hasher {
    seed: [u64; 2],
    shard_mask: usize,
}

impl Hasher {
    /// `shards` is a power of two, at most 2¹⁶.
    pub(crate) fn new(seed: u64, shards: usize) -> Hasher {
        // Two words from one by splitmix64 (G. Steele et al., 2014).
        let split = |step: u64| {
            let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        };
        Hasher { seed: [split(1), split(2)], shard_mask: shards - 1 }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &KeyBytes) -> Hash {
        let word = |at: usize| u64::from_le_bytes(key[at..at + 8].try_into().expect("eight bytes"));
        let product = u128::from(word(0) ^ self.seed[0]) * u128::from(word(8) ^ self.seed[1]);
        let mixed = (product as u64) ^ (product >> 64) as u64;
        Hash { shard: (mixed >> 48) as usize & self.shard_mask, low: mixed as u32 }
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn hashes_spread_over_shards_and_depend_on_the_seed() {
        let (one, other) = (Hasher::new(1, 16), Hasher::new(2, 16));
        let mut shards = [0; 16];
        let mut same = 0;
        for number in 0..u16::MAX {
            let mut key = [0; 32];
            key.copy_from_slice(blake3::hash(&number.to_le_bytes()).as_bytes());
            shards[one.hash(&key).shard] += 1;
            same += usize::from(one.hash(&key).low == other.hash(&key).low);
        }
        assert!(shards.iter().all(|&count| (3_700..4_500).contains(&count)), "{shards:?}");
        assert!(same < 4, "{same}");
    }
}
