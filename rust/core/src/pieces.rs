//! BLAKE3 of bytes of any length on a stack of any size.
//!
//! The blake3 crate goes one level deeper, by 1.4 KiB of stack, each time its input is twice as long: 25 KiB for 256 MiB.
//! Where a thread has less left than the longest input takes, the bytes go in by pieces, which is as fast but for the
//! first and the last level of the tree.

use crate::stack::Stack;
use blake3::Hasher;

/// Bytes of stack with which nothing needs pieces: for the longest input that an address space holds.
const ROOM: usize = 64 << 10;
/// Bytes of a piece: three levels for eight chunks side by side.
const PIECE: usize = 64 << 10;

/// Whether a run of bytes is to be hashed by pieces on this thread.
#[inline]
pub(crate) fn needed(length: usize) -> bool {
    length > PIECE && !Stack::of_this_thread().has_room(ROOM)
}

/// Adds the bytes to a hash, by pieces.
pub(crate) fn update(hasher: &mut Hasher, bytes: &[u8]) {
    for piece in bytes.chunks(PIECE) {
        hasher.update(piece);
    }
}

/// The hash of a keyed or plain hasher to which only these bytes are added, by pieces.
#[cold]
#[inline(never)]
pub(crate) fn hash(mut hasher: Hasher, bytes: &[u8]) -> [u8; 32] {
    update(&mut hasher, bytes);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_pieces_or_at_once_the_hash_is_the_same() {
        let bytes: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at % 251) as u8).collect();
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, bytes.len()] {
            assert_eq!(hash(Hasher::new(), &bytes[..length]), *blake3::hash(&bytes[..length]).as_bytes());
            let key = [7; 32];
            let keyed = blake3::keyed_hash(&key, &bytes[..length]);
            assert_eq!(hash(Hasher::new_keyed(&key), &bytes[..length]), *keyed.as_bytes());
        }
    }

    #[test]
    fn only_small_stacks_need_pieces() {
        /// Whether a long run needs pieces where fewer than `left` bytes of the stack are left.
        fn needed_with(left: usize) -> bool {
            if Stack::of_this_thread().has_room(left) {
                let frame = std::hint::black_box([0u8; 256]);
                let needed = needed_with(left);
                std::hint::black_box(&frame);
                needed
            } else {
                needed(1 << 20)
            }
        }
        let thread = std::thread::Builder::new().stack_size(1 << 20);
        let needed = thread.spawn(|| [needed(1 << 20), needed_with(2 * ROOM), needed_with(ROOM), needed(PIECE)]);
        assert_eq!(needed.unwrap().join().unwrap(), [false, false, true, false]);
    }
}
