//! BLAKE3 of short messages, up to eight chunks side by side in one pass of AVX2: those of one message, or of many.
//!
//! The blake3 crate hashes eight whole chunks of a message side by side, or four, and what remains chunk by chunk, the last
//! and partial one alone: 5.7 KB take 1.7 times as long as 8 KB, and many messages of 1.7 KB eight times as long as they
//! could. Here every chunk has a lane, a partial one too: it stops at its last block, and from then on computes what nobody
//! reads. The parents are the crate's ([`blake3::hazmat`]).
//!
//! Names follow the BLAKE3 paper (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), section 2.

use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_loadu_si256, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi32,
    _mm256_setr_epi8, _mm256_shuffle_epi8, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_si256,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

/// Chunks side by side.
const LANES: usize = 8;
const CHUNK: usize = 1024;
const BLOCK: usize = 64;

const CHUNK_START: i32 = 1;
const CHUNK_END: i32 = 2;
const ROOT: i32 = 8;
const KEYED_HASH: i32 = 16;

/// Chunks of many messages from which a pass for them pays: it takes as long as the crate for about three.
const LEAST: usize = 4;

/// The initialisation vector: SHA-256's.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// Which word of the block each step of a round takes: the permutation, applied once more each round.
const SCHEDULE: [[usize; 16]; 7] = {
    const PERMUTATION: [usize; 16] = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
    let mut rounds = [[0; 16]; 7];
    let mut word = 0;
    while word < 16 {
        rounds[0][word] = word;
        word += 1;
    }
    let mut round = 1;
    while round < 7 {
        let mut word = 0;
        while word < 16 {
            rounds[round][word] = rounds[round - 1][PERMUTATION[word]];
            word += 1;
        }
        round += 1;
    }
    rounds
};

/// Lengths that are hashed faster here than by the crate: see docs/decisions/0009-hash-lanes.md.
///
/// All lengths take about as long here. The crate is as fast for up to three chunks, for four, for four and a bit, and
/// for eight.
#[inline]
fn pays(length: usize) -> bool {
    (3 * CHUNK..4 * CHUNK).contains(&length) || (5 * CHUNK - 256..LANES * CHUNK).contains(&length)
}

/// `BLAKE3.keyed_hash` of a message, where this is the faster way and the processor has AVX2.
#[inline]
pub(crate) fn keyed_hash(key: &[u8; 32], message: &[u8]) -> Option<[u8; 32]> {
    // Where there is AVX-512 the crate hashes sixteen chunks at once, and fewer ones well.
    if !pays(message.len()) || !is_x86_feature_detected!("avx2") || is_x86_feature_detected!("avx512f") {
        return None;
    }
    // SAFETY: the processor has AVX2.
    Some(unsafe { side_by_side(key, message) })
}

/// The BLAKE3 of each message, keyed if there is a key; `None` for one of more than eight chunks, and for all where nothing
/// is won.
pub(crate) fn hash_many(key: Option<&[u8; 32]>, messages: &[&[u8]]) -> Vec<Option<[u8; 32]>> {
    let chunks: usize = messages.iter().map(|message| chunks_of(message).unwrap_or(0)).sum();
    if chunks < LEAST || !is_x86_feature_detected!("avx2") {
        return vec![None; messages.len()];
    }
    // SAFETY: the processor has AVX2.
    unsafe { many_side_by_side(key, messages, chunks) }
}

/// How many chunks a message has; `None`: more than there are lanes.
fn chunks_of(message: &[u8]) -> Option<usize> {
    Some(message.len().div_ceil(CHUNK).max(1)).filter(|&chunks| chunks <= LANES)
}

/// What a lane hashes.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    bytes: &'a [u8],
    /// Which of its message it is.
    number: usize,
    /// It is all of its message.
    is_root: bool,
}

impl Chunk<'_> {
    /// How many blocks it has; an empty one has one.
    fn blocks(&self) -> usize {
        self.bytes.len().div_ceil(BLOCK).max(1)
    }
}

/// The chunks of a message, which has at most eight.
fn split(message: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let is_root = message.len() <= CHUNK;
    let bytes = |number| &message[number * CHUNK..message.len().min((number + 1) * CHUNK)];
    (0..message.len().div_ceil(CHUNK).max(1)).map(move |number| Chunk { bytes: bytes(number), number, is_root })
}

/// `BLAKE3.keyed_hash` of a message of two to eight chunks.
#[target_feature(enable = "avx2")]
fn side_by_side(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let chunks = chunks_of(message).expect("as many chunks as lanes, at most");
    let empty = Chunk { bytes: &[], number: 0, is_root: false };
    let mut lanes = [empty; LANES];
    for (lane, chunk) in lanes.iter_mut().zip(split(message)) {
        *lane = chunk;
    }
    let mut values = chaining_values(Some(key), &lanes[..chunks]);
    merged(Mode::KeyedHash(key), &mut values[..chunks])
}

/// See [`hash_many`]; `chunks` is how many there are in all.
#[target_feature(enable = "avx2")]
fn many_side_by_side(key: Option<&[u8; 32]>, messages: &[&[u8]], chunks: usize) -> Vec<Option<[u8; 32]>> {
    let short = || messages.iter().filter(|message| chunks_of(message).is_some());
    let mut lanes: Vec<(usize, Chunk<'_>)> = Vec::with_capacity(chunks);
    lanes.extend(short().flat_map(|message| split(message)).enumerate());
    // A pass takes as long as its longest chunk.
    lanes.sort_unstable_by_key(|(_, chunk)| chunk.blocks());
    let mut values = vec![[0; 32]; chunks];
    for pass in lanes.chunks(LANES) {
        let mut together = [pass[0].1; LANES];
        for (lane, (_, chunk)) in together.iter_mut().zip(pass) {
            *lane = *chunk;
        }
        let passed = chaining_values(key, &together[..pass.len()]);
        for ((place, _), value) in pass.iter().zip(passed) {
            values[*place] = value;
        }
    }
    let mode = key.map_or(Mode::Hash, Mode::KeyedHash);
    let mut rest = values.as_mut_slice();
    messages
        .iter()
        .map(|message| {
            let (its, others) = std::mem::take(&mut rest).split_at_mut(chunks_of(message).unwrap_or(0));
            rest = others;
            (!its.is_empty()).then(|| merged(mode, its))
        })
        .collect()
}

/// The hash of a message from the chaining values of its chunks; the one of a single chunk is the root's already.
fn merged(mode: Mode<'_>, values: &mut [ChainingValue]) -> [u8; 32] {
    // Neighbours are merged level by level; one that is left over goes up as it is: the tree of section 2.1.
    let mut left = values.len();
    while left > 2 {
        for pair in 0..left / 2 {
            values[pair] = merge_subtrees_non_root(&values[2 * pair], &values[2 * pair + 1], mode);
        }
        if left % 2 == 1 {
            values[left / 2] = values[left - 1];
        }
        left = left.div_ceil(2);
    }
    if left == 1 { values[0] } else { *merge_subtrees_root(&values[0], &values[1], mode).as_bytes() }
}

/// The chaining values of one to eight chunks; what is beyond them means nothing.
#[target_feature(enable = "avx2")]
fn chaining_values(key: Option<&[u8; 32]>, chunks: &[Chunk<'_>]) -> [ChainingValue; LANES] {
    let ends: [usize; LANES] = std::array::from_fn(|lane| chunks.get(lane).map_or(0, Chunk::blocks));
    // The last block of each, filled up with zeros; one that has ended hashes it over and over.
    let mut last = [[0u8; BLOCK]; LANES];
    for (chunk, last) in chunks.iter().zip(&mut last) {
        let bytes = &chunk.bytes[(chunk.blocks() - 1) * BLOCK..];
        last[..bytes.len()].copy_from_slice(bytes);
    }
    let words =
        |key: &[u8; 32]| std::array::from_fn(|at| i32::from_le_bytes([0, 1, 2, 3].map(|byte| key[4 * at + byte])));
    let words: [i32; 8] = key.map_or_else(|| IV.map(|word| word as i32), words);
    let mut values = words.map(|word| _mm256_set1_epi32(word));
    let numbers = load(&std::array::from_fn(|lane| chunks.get(lane).map_or(0, |chunk| chunk.number as i32)));
    let keyed = if key.is_some() { KEYED_HASH } else { 0 };
    let mut ended = [[0u8; 32]; LANES];
    for block in 0..ends.into_iter().max().unwrap_or(0) {
        let start = if block == 0 { CHUNK_START } else { 0 };
        let (mut lengths, mut flags) = ([BLOCK as i32; LANES], [keyed | start; LANES]);
        let mut ending = false;
        for (lane, chunk) in chunks.iter().enumerate().filter(|&(lane, _)| ends[lane] == block + 1) {
            lengths[lane] = (chunk.bytes.len() - block * BLOCK) as i32;
            flags[lane] |= CHUNK_END | if chunk.is_root { ROOT } else { 0 };
            ending = true;
        }
        let blocks: [&[u8; BLOCK]; LANES] = std::array::from_fn(|lane| {
            if block + 1 < ends[lane] {
                chunks[lane].bytes[block * BLOCK..].first_chunk().expect("it is not the last")
            } else {
                &last[lane]
            }
        });
        let (low, high) = (transposed(&blocks, 0), transposed(&blocks, BLOCK / 2));
        let message = std::array::from_fn(|word| if word < 8 { low[word] } else { high[word - 8] });
        compress(&mut values, &message, numbers, load(&lengths), load(&flags));
        if ending {
            let now = by_lane(&values);
            for lane in (0..LANES).filter(|&lane| ends[lane] == block + 1) {
                ended[lane] = now[lane];
            }
        }
    }
    ended
}

/// Compresses one block of each lane.
#[target_feature(enable = "avx2")]
#[inline]
fn compress(values: &mut [__m256i; 8], message: &[__m256i; 16], numbers: __m256i, lengths: __m256i, flags: __m256i) {
    let iv = IV.map(|word| _mm256_set1_epi32(word as i32));
    let [a, b, c, d, e, f, g, h] = *values;
    let zero = _mm256_set1_epi32(0);
    let mut v = [a, b, c, d, e, f, g, h, iv[0], iv[1], iv[2], iv[3], numbers, zero, lengths, flags];
    round::<0>(&mut v, message);
    round::<1>(&mut v, message);
    round::<2>(&mut v, message);
    round::<3>(&mut v, message);
    round::<4>(&mut v, message);
    round::<5>(&mut v, message);
    round::<6>(&mut v, message);
    for word in 0..8 {
        values[word] = _mm256_xor_si256(v[word], v[word + 8]);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn round<const ROUND: usize>(v: &mut [__m256i; 16], message: &[__m256i; 16]) {
    let m = SCHEDULE[ROUND].map(|word| message[word]);
    quarter(v, [0, 4, 8, 12], m[0], m[1]);
    quarter(v, [1, 5, 9, 13], m[2], m[3]);
    quarter(v, [2, 6, 10, 14], m[4], m[5]);
    quarter(v, [3, 7, 11, 15], m[6], m[7]);
    quarter(v, [0, 5, 10, 15], m[8], m[9]);
    quarter(v, [1, 6, 11, 12], m[10], m[11]);
    quarter(v, [2, 7, 8, 13], m[12], m[13]);
    quarter(v, [3, 4, 9, 14], m[14], m[15]);
}

/// The paper's G.
#[target_feature(enable = "avx2")]
#[inline]
fn quarter(v: &mut [__m256i; 16], [a, b, c, d]: [usize; 4], x: __m256i, y: __m256i) {
    #[rustfmt::skip]
    let by_16 = _mm256_setr_epi8(
        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
    );
    #[rustfmt::skip]
    let by_8 = _mm256_setr_epi8(
        1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12,
    );
    v[a] = _mm256_add_epi32(_mm256_add_epi32(v[a], x), v[b]);
    v[d] = _mm256_shuffle_epi8(_mm256_xor_si256(v[d], v[a]), by_16);
    v[c] = _mm256_add_epi32(v[c], v[d]);
    let turned = _mm256_xor_si256(v[b], v[c]);
    v[b] = _mm256_or_si256(_mm256_srli_epi32::<12>(turned), _mm256_slli_epi32::<20>(turned));
    v[a] = _mm256_add_epi32(_mm256_add_epi32(v[a], y), v[b]);
    v[d] = _mm256_shuffle_epi8(_mm256_xor_si256(v[d], v[a]), by_8);
    v[c] = _mm256_add_epi32(v[c], v[d]);
    let turned = _mm256_xor_si256(v[b], v[c]);
    v[b] = _mm256_or_si256(_mm256_srli_epi32::<7>(turned), _mm256_slli_epi32::<25>(turned));
}

/// Eight words of each lane from byte `at` on: word by word, the lanes side by side.
#[target_feature(enable = "avx2")]
#[inline]
fn transposed(sources: &[&[u8; BLOCK]; LANES], at: usize) -> [__m256i; 8] {
    swap_axes(sources.map(|source| {
        let words: &[u8; 32] = source[at..].first_chunk().expect("half a block is left");
        // SAFETY: 32 bytes, which may lie anywhere.
        unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
    }))
}

/// The chaining value of each lane.
#[target_feature(enable = "avx2")]
#[inline]
fn by_lane(values: &[__m256i; 8]) -> [ChainingValue; LANES] {
    swap_axes(*values).map(|value| {
        let mut bytes = [0u8; 32];
        // SAFETY: room for 32 bytes, which may lie anywhere.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) };
        bytes
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(words: &[i32; LANES]) -> __m256i {
    // SAFETY: 32 bytes, which may lie anywhere.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

/// Rows of eight words to columns, by pairs of words, of two words, of four.
#[target_feature(enable = "avx2")]
#[inline]
fn swap_axes(r: [__m256i; 8]) -> [__m256i; 8] {
    let words = |a, b| (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let doubles = |a, b| (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let halves = |a, b| (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
    let ((a0, a2), (b0, b2), (c0, c2), (d0, d2)) =
        (words(r[0], r[1]), words(r[2], r[3]), words(r[4], r[5]), words(r[6], r[7]));
    let ((e0, e1), (e2, e3)) = (doubles(a0, b0), doubles(a2, b2));
    let ((f0, f1), (f2, f3)) = (doubles(c0, d0), doubles(c2, d2));
    let ((o0, o4), (o1, o5), (o2, o6), (o3, o7)) = (halves(e0, f0), halves(e1, f1), halves(e2, f2), halves(e3, f3));
    [o0, o1, o2, o3, o4, o5, o6, o7]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251) as u8 ^ (at / 251) as u8).collect()
    }

    #[test]
    fn every_length_has_the_crates_hash() {
        let key: [u8; 32] = std::array::from_fn(|at| (at * 37) as u8 ^ 0xa5);
        let whole = message(20_000);
        let avx2 = is_x86_feature_detected!("avx2");
        for length in 0..=whole.len() {
            let message = &whole[whole.len() - length..]; // every alignment
            let expected = *blake3::keyed_hash(&key, message).as_bytes();
            if avx2 && (CHUNK + 1..=LANES * CHUNK).contains(&length) {
                // SAFETY: the processor has AVX2.
                assert_eq!(unsafe { side_by_side(&key, message) }, expected, "{length}");
            }
            if let Some(hash) = keyed_hash(&key, message) {
                assert_eq!(hash, expected, "{length}");
            }
        }
    }

    #[test]
    fn many_messages_of_any_lengths_have_the_crates_hashes() {
        let key: [u8; 32] = std::array::from_fn(|at| (at * 37) as u8 ^ 0xa5);
        let whole = message(12_000);
        let lengths = [0, 1, 63, 64, 65, 300, 1023, 1024, 1025, 1708, 2047, 2048, 2049, 4000, 8191, 8192, 8193, 12_000];
        for count in 0..40 {
            for shift in 0..lengths.len() {
                let of = |at: usize| &whole[at % 7..at % 7 + lengths[(at * 5 + shift) % lengths.len()].min(11_990)];
                let messages: Vec<&[u8]> = (0..count).map(of).collect();
                for key in [None, Some(&key)] {
                    let hashes = hash_many(key, &messages);
                    assert_eq!(hashes.len(), count);
                    for (message, hash) in messages.iter().zip(hashes) {
                        let expected =
                            key.map_or_else(|| blake3::hash(message), |key| blake3::keyed_hash(key, message));
                        assert!(message.len() <= LANES * CHUNK || hash.is_none());
                        assert_eq!(hash.unwrap_or(*expected.as_bytes()), *expected.as_bytes(), "{}", message.len());
                    }
                }
            }
        }
        let passed = hash_many(None, &[&whole[..1700]; 2]);
        assert_eq!(passed.iter().all(Option::is_some), is_x86_feature_detected!("avx2"));
    }

    #[test]
    fn the_official_vectors_agree() {
        if !is_x86_feature_detected!("avx2") {
            return; // nothing here runs on such a processor
        }
        // test_vectors.json of the BLAKE3 project: the input repeats 0 to 250; the first 32 bytes of keyed_hash.
        let vectors = [
            (2049, "9f29700902f7c86e514ddc4df1e3049f258b2472b6dd5267f61bf13983b78dd5"),
            (3072, "044a0e7b172a312dc02a4c9a818c036ffa2776368d7f528268d2e6b5df191770"),
            (3073, "68dede9bef00ba89e43f31a6825f4cf433389fedae75c04ee9f0cf16a427c95a"),
            (5120, "2c493e48e9b9bf31e0553a22b23503c0a3388f035cece68eb438d22fa1943e20"),
            (5121, "6ccf1c34753e7a044db80798ecd0782a8f76f33563accaddbfbb2e0ea4b2d024"),
            (6144, "3d6b6d21281d0ade5b2b016ae4034c5dec10ca7e475f90f76eac7138e9bc8f1d"),
            (6145, "9ac301e9e39e45e3250a7e3b3df701aa0fb6889fbd80eeecf28dbc6300fbc539"),
            (7168, "b42835e40e9d4a7f42ad8cc04f85a963a76e18198377ed84adddeaecacc6f3fc"),
            (7169, "ed9b1a922c046fdb3d423ae34e143b05ca1bf28b710432857bf738bcedbfa511"),
            (8192, "dc9637c8845a770b4cbf76b8daec0eebf7dc2eac11498517f08d44c8fc00d58a"),
        ];
        for (length, expected) in vectors {
            let message: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            // SAFETY: the processor has AVX2.
            let hash = unsafe { side_by_side(b"whats the Elvish word for friend", &message) };
            assert_eq!(blake3::Hash::from_bytes(hash).to_hex().as_str(), expected, "{length}");
        }
    }
}
