"""BLAKE3 written from its specification, slow and plain, for what the `blake3` package does not show: chaining values.

The tree is split from the top (the left subtree is the largest power of two of chunks that leaves some for the right),
not joined from the bottom as on a GPU.
"""

from __future__ import annotations

import struct

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
CHUNK = 1024
MASK = 0xFFFFFFFF
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def compress(value: tuple[int, ...], block: bytes, counter: int, flags: int) -> tuple[int, ...]:
    """The first eight words of the compression function's output."""
    message = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    state = [*value, *IV[:4], counter & MASK, counter >> 32, len(block), flags]
    for _ in range(7):
        for number, (a, b, c, d) in enumerate(COLUMNS + DIAGONALS):
            for word, first, second in ((message[2 * number], 16, 12), (message[2 * number + 1], 8, 7)):
                state[a] = (state[a] + state[b] + word) & MASK
                state[d] = rotated(state[d] ^ state[a], first)
                state[c] = (state[c] + state[d]) & MASK
                state[b] = rotated(state[b] ^ state[c], second)
        message = [message[at] for at in PERMUTATION]
    return tuple(state[at] ^ state[at + 8] for at in range(8))


def rotated(word: int, bits: int) -> int:
    """To the right."""
    return (word >> bits | word << 32 - bits) & MASK


def chunk(data: bytes, counter: int, last: int) -> tuple[int, ...]:
    """The chaining value of a chunk; `last` are flags of its last block."""
    value: tuple[int, ...] = IV
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks):
        flags = (CHUNK_START if number == 0 else 0) | (CHUNK_END | last if number == len(blocks) - 1 else 0)
        value = compress(value, block, counter, flags)
    return value


def subtree(data: bytes, counter: int = 0, last: int = 0) -> tuple[int, ...]:
    """The chaining value of the chunks of `data`, the first of which has the number `counter`."""
    chunks = max(-(-len(data) // CHUNK), 1)
    if chunks == 1:
        return chunk(data, counter, last)
    left = 1 << (chunks - 1).bit_length() - 1
    pair = subtree(data[: left * CHUNK], counter), subtree(data[left * CHUNK :], counter + left)
    return compress(IV, struct.pack("<16I", *pair[0], *pair[1]), 0, PARENT | last)


def chaining_value(data: bytes, counter: int) -> bytes:
    """Of a subtree that is not the whole."""
    return struct.pack("<8I", *subtree(data, counter))


def digest(data: bytes) -> bytes:
    """Of the whole."""
    return struct.pack("<8I", *subtree(data, 0, ROOT))
