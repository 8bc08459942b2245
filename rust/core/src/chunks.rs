//! A double-ended queue of 32-bit numbers in small chunks: it grows and shrinks without copying, without slack, and
//! without leaving holes of all sizes to the allocator. The policy's queues and the wheel's slots are made of it.

use std::collections::VecDeque;

/// Numbers of a chunk: 256 bytes.
const WIDTH: usize = 64;

/// A queue of hash bits.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    chunks: VecDeque<Box<[u32; WIDTH]>>,
    /// Numbers taken from the front of the first chunk.
    skipped: usize,
    length: usize,
}

impl Chunks {
    /// Bytes of a chunk.
    pub(crate) const BYTES: u64 = (WIDTH * size_of::<u32>()) as u64;

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes of the chunks and of the list of them.
    pub(crate) fn bytes(&self) -> u64 {
        (self.chunks.len() * WIDTH * size_of::<u32>() + self.chunks.capacity() * size_of::<usize>()) as u64
    }

    /// Bytes by which the next push grows it, at most.
    pub(crate) fn growth(&self) -> u64 {
        if !(self.skipped + self.length).is_multiple_of(WIDTH) {
            return 0;
        }
        let list = if self.chunks.len() == self.chunks.capacity() { self.chunks.len().max(4) } else { 0 };
        (WIDTH * size_of::<u32>() + list * size_of::<usize>()) as u64
    }

    /// The number that `pop_front` gives after so many others.
    pub(crate) fn ahead(&self, distance: usize) -> Option<u32> {
        let at = self.skipped + distance;
        (distance < self.length).then(|| self.chunks[at / WIDTH][at % WIDTH])
    }

    pub(crate) fn push_back(&mut self, number: u32) {
        let end = self.skipped + self.length;
        if end == self.chunks.len() * WIDTH {
            self.chunks.push_back(Box::new([0; WIDTH]));
        }
        self.chunks[end / WIDTH][end % WIDTH] = number;
        self.length += 1;
    }

    pub(crate) fn pop_back(&mut self) -> Option<u32> {
        self.length = self.length.checked_sub(1)?;
        let end = self.skipped + self.length;
        let number = self.chunks[end / WIDTH][end % WIDTH];
        if self.length == 0 {
            *self = Chunks::default();
        } else if end.is_multiple_of(WIDTH) {
            self.chunks.pop_back();
        }
        Some(number)
    }

    pub(crate) fn pop_front(&mut self) -> Option<u32> {
        self.length = self.length.checked_sub(1)?;
        let number = self.chunks[0][self.skipped];
        self.skipped += 1;
        if self.length == 0 {
            *self = Chunks::default();
        } else if self.skipped == WIDTH {
            self.chunks.pop_front();
            self.skipped = 0;
            if self.chunks.capacity() > 4 * self.chunks.len() + 4 {
                self.chunks.shrink_to(2 * self.chunks.len());
            }
        }
        Some(number)
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((0u8..8, 1usize..200), 0..200)) {
            let mut queue = Chunks::default();
            let mut model = VecDeque::new();
            for (step, count) in steps {
                for number in 0..count as u32 {
                    match step {
                        0..4 => {
                            let (before, growth) = (queue.bytes(), queue.growth());
                            queue.push_back(number);
                            model.push_back(number);
                            prop_assert!(queue.bytes() <= before + growth);
                        }
                        4..6 => {
                            prop_assert_eq!(queue.ahead(70), model.get(70).copied());
                            prop_assert_eq!(queue.pop_front(), model.pop_front());
                        }
                        _ => prop_assert_eq!(queue.pop_back(), model.pop_back()),
                    }
                    prop_assert_eq!(queue.len(), model.len());
                }
                // Four bytes a number, a chunk that is not full at either end, the list of chunks.
                prop_assert!(queue.bytes() <= 5 * queue.len() as u64 + 3 * Chunks::BYTES + 256);
            }
        }
    }
}
