// Plain BLAKE3 of buffers where they lie on a device: the kernels that plan.py plans and hashing.py launches.
//
//   chunks   a tile of THREADS chunks a block: one thread hashes one chunk of 1,024 bytes, then the block joins its chaining
//            values in shared memory down to one
//   merge    2 * THREADS chaining values a block, down to one
//   gather   a range of the elements of a strided input, one behind the other
//
// A block pairs its nodes level by level, and an odd last one moves up as it is. That is the specification's left-heavy tree, since
// every tile but an input's last holds a power of two of chunks.
//
// Memory: if each thread walked its own chunk, a warp's load would touch 32 lines for 16 bytes of each. So the lanes of a
// warp fetch for one another: SLOTS neighbours take a whole line of one chunk, 16 bytes each, into shared memory, one piece
// ahead of the piece that is hashed (cp.async, which takes no registers). Slots of a row are swizzled, so that eight rows read
// at one column, and one row written along its columns, are eight different groups of banks.
//
// Phases: what threads do between two barriers stands in an EACH_THREAD block, and what they keep in LANES. So the
// same source runs on a host, a thread after the other in any order: tests/host_cuda.h has the other half of these macros.
// A phase in which one thread read what another writes would give another digest in another order.

#if defined(__CUDACC__)
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
#define INLINE __device__ __forceinline__
#define SHARED(type, name) __shared__ type name
#define LANES(type, name) type name[1]
#define SELF(thread) (thread - threadIdx.x)
#define EACH_THREAD(thread) for (u32 thread = threadIdx.x, once = 1; once; once = 0)
#define BLOCK_SYNC() __syncthreads()
#define WARP_SYNC() __syncwarp()
#define BLOCK blockIdx.x
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#else
#include "host_cuda.h"
#endif

#ifndef THREADS
#define THREADS 128  // of a block, and chunks of a tile
#endif
#ifndef PIECE
#define PIECE 128  // bytes of each chunk that are fetched at a time: 64, or 128, which is a line
#endif
#define SLOTS (PIECE / 16)  // 16 bytes each
#define CHUNK 1024u
#define BLOCK_BYTES 64u
#define TILE_BYTES (THREADS * CHUNK)
#define UNITS_A_THREAD 4  // of gather

constexpr u32 CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8;  // of a compression
constexpr u64 JOB_ROOT = 1, JOB_RELATIVE = 2;                        // of a job: plan.py's ROOT and RELATIVE

// plan.py's JOB.
struct Job {
    u64 input;        // an address, or an offset in the workspace
    u64 length;       // chunks: bytes; merge: chaining values
    u64 counter;      // chunks: the number of the first chunk
    u64 first_block;  // of the grid
    u64 output;       // an offset in the workspace: the first block's 32 bytes, the next block's behind them
    u64 flags;
};

struct Value {
    u32 words[8];
};

#define IV0 0x6A09E667u
#define IV1 0xBB67AE85u
#define IV2 0x3C6EF372u
#define IV3 0xA54FF53Au
#define IV4 0x510E527Fu
#define IV5 0x9B05688Cu
#define IV6 0x1F83D9ABu
#define IV7 0x5BE0CD19u

INLINE Value initial() { return Value{{IV0, IV1, IV2, IV3, IV4, IV5, IV6, IV7}}; }

// To the right. A byte permute for whole bytes, a funnel shift for the others: one instruction each.
INLINE u32 rotated16(u32 word) { return __byte_perm(word, 0, 0x1032); }
INLINE u32 rotated12(u32 word) { return __funnelshift_r(word, word, 12); }
INLINE u32 rotated8(u32 word) { return __byte_perm(word, 0, 0x0321); }
INLINE u32 rotated7(u32 word) { return __funnelshift_r(word, word, 7); }

INLINE void mix(u32 &a, u32 &b, u32 &c, u32 &d, u32 x, u32 y) {
    a = a + b + x;
    d = rotated16(d ^ a);
    c = c + d;
    b = rotated12(b ^ c);
    a = a + b + y;
    d = rotated8(d ^ a);
    c = c + d;
    b = rotated7(b ^ c);
}

// A round takes the message's words in the order of its row of the specification's schedule.
#define ROUND(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)       \
    mix(v0, v4, v8, v12, message[a], message[b]);                   \
    mix(v1, v5, v9, v13, message[c], message[d]);                   \
    mix(v2, v6, v10, v14, message[e], message[f]);                  \
    mix(v3, v7, v11, v15, message[g], message[h]);                  \
    mix(v0, v5, v10, v15, message[i], message[j]);                  \
    mix(v1, v6, v11, v12, message[k], message[l]);                  \
    mix(v2, v7, v8, v13, message[m], message[n]);                   \
    mix(v3, v4, v9, v14, message[o], message[p]);

INLINE void compress(Value &value, const u32 (&message)[16], u64 counter, u32 length, u32 flags) {
    u32 v0 = value.words[0], v1 = value.words[1], v2 = value.words[2], v3 = value.words[3];
    u32 v4 = value.words[4], v5 = value.words[5], v6 = value.words[6], v7 = value.words[7];
    u32 v8 = IV0, v9 = IV1, v10 = IV2, v11 = IV3;
    u32 v12 = (u32)counter, v13 = (u32)(counter >> 32), v14 = length, v15 = flags;
    ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
    ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1)
    ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6)
    ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4)
    ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7)
    ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)
    value.words[0] = v0 ^ v8;
    value.words[1] = v1 ^ v9;
    value.words[2] = v2 ^ v10;
    value.words[3] = v3 ^ v11;
    value.words[4] = v4 ^ v12;
    value.words[5] = v5 ^ v13;
    value.words[6] = v6 ^ v14;
    value.words[7] = v7 ^ v15;
}

INLINE u32 smaller(u64 size, u32 most) { return size < most ? (u32)size : most; }

// The job whose blocks `block` is one of.
INLINE Job job_of(const u8 *workspace, u64 table, u64 count, u64 block) {
    const Job *jobs = (const Job *)(workspace + table);
    u64 first = 0, last = count - 1;
    while (first < last) {
        const u64 middle = (first + last + 1) / 2;
        if (jobs[middle].first_block <= block)
            first = middle;
        else
            last = middle - 1;
    }
    return jobs[first];
}

INLINE const u8 *input_of(const Job &job, const u8 *workspace) {
    return job.flags & JOB_RELATIVE ? workspace + job.input : (const u8 *)job.input;
}

// ---- Fetching: from the input to shared memory, 16 bytes a slot, zeros behind the input's end.

// `size` of 16 bytes, the rest zero; both addresses are multiples of 16. Seen by its own lane after `fetched`.
INLINE void fetch(u32 thread, uint4 *slot, const u8 *source, u32 size) {
#if !defined(__CUDACC__)
    host::fetch(thread, slot, source, size);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(slot)), "l"(source), "r"(size) : "memory");
#else
    uint4 found = make_uint4(0, 0, 0, 0);
    if (size == 16) {
        found = *(const uint4 *)source;
    } else {
        u32 *words = &found.x;
#pragma unroll
        for (u32 at = 0; at < 16; ++at)
            if (at < size) words[at / 4] |= (u32)source[at] << (at % 4 * 8);
    }
    *slot = found;
#endif
}

INLINE void fetched(u32 thread) {
#if !defined(__CUDACC__)
    host::fetched(thread);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// The same for a source at any address: words around it and a funnel shift, or bytes where a word would reach outside the
// input. `before` and `behind` are the input's bytes before and from `source`.
INLINE void fetch_unaligned(uint4 *slot, const u8 *source, u64 before, u64 behind) {
    u32 words[5] = {0, 0, 0, 0, 0};
    const u32 shift = (u32)((u64)source & 3) * 8;
    if (before >= 3 && behind >= 20) {
        const u32 *from = (const u32 *)((u64)source & ~(u64)3);
#pragma unroll
        for (u32 at = 0; at < 5; ++at) words[at] = from[at];
#pragma unroll
        for (u32 at = 0; at < 4; ++at) words[at] = __funnelshift_r(words[at], words[at + 1], shift);
    } else {
#pragma unroll
        for (u32 at = 0; at < 16; ++at)
            if (at < behind) words[at / 4] |= (u32)source[at] << (at % 4 * 8);
    }
    *slot = make_uint4(words[0], words[1], words[2], words[3]);
}

// Where the slot of a row at a column lies.
INLINE u32 place(u32 row, u32 column) { return row * SLOTS + (column ^ (row / (8 / SLOTS) % SLOTS)); }

struct Tile {
    const u8 *source;  // of the first chunk
    u64 before;        // bytes of the input before it
    u64 behind;        // bytes of the input from it on
    bool aligned;      // `source` is a multiple of 16
};

// One thread's part of what its warp fetches: the warp's 32 rows, and no others.
INLINE void fetch_piece(uint4 *stage, const Tile &tile, u32 thread, u32 piece) {
    const u32 lane = thread % 32, column = lane % SLOTS;
    const u32 first = thread / 32 * 32 + lane / SLOTS;
    const bool whole = tile.aligned && tile.behind >= TILE_BYTES;
#pragma unroll
    for (u32 turn = 0; turn < SLOTS; ++turn) {
        const u32 row = first + turn * (32 / SLOTS);
        const u64 at = row * CHUNK + piece * PIECE + column * 16;
        uint4 *slot = stage + place(row, column);
        if (whole) {
            fetch(thread, slot, tile.source + at, 16);
            continue;
        }
        const u64 behind = tile.behind > at ? tile.behind - at : 0;
        const u8 *source = behind ? tile.source + at : tile.source;
        if (tile.aligned)
            fetch(thread, slot, source, smaller(behind, 16));
        else
            fetch_unaligned(slot, source, tile.before + at, behind);
    }
}

// ---- Hashing

// A thread's chunk: the blocks of one piece.
INLINE void hash_piece(Value &value, const uint4 *stage, u32 thread, u32 piece, u32 length, u64 counter, u32 last_flags) {
#pragma unroll 1
    for (u32 block = 0; block < PIECE / BLOCK_BYTES; ++block) {
        const u32 begin = piece * PIECE + block * BLOCK_BYTES;
        if (begin && begin >= length) break;  // an empty chunk has one block too
        u32 message[16];
#pragma unroll
        for (u32 part = 0; part < 4; ++part) {
            const uint4 found = stage[place(thread, block * 4 + part)];
            message[part * 4] = found.x;
            message[part * 4 + 1] = found.y;
            message[part * 4 + 2] = found.z;
            message[part * 4 + 3] = found.w;
        }
        const u32 left = length - begin;
        const u32 flags = (begin ? 0u : CHUNK_START) | (left <= BLOCK_BYTES ? last_flags : 0u);
        compress(value, message, counter, left < BLOCK_BYTES ? left : BLOCK_BYTES, flags);
    }
}

// Nodes lie word by word: neighbours' words are in neighbouring banks.
INLINE void store_node(u32 *nodes, u32 node, const Value &value) {
#pragma unroll
    for (u32 word = 0; word < 8; ++word) nodes[word * THREADS + node] = value.words[word];
}

INLINE void join(Value &value, const u32 (&message)[16], bool root) {
    value = initial();
    compress(value, message, 0, BLOCK_BYTES, PARENT | (root ? ROOT : 0u));
}

// Takes `count` nodes, at most THREADS, down to one and writes it. The caller has synchronised the block.
INLINE void join_nodes(u32 *nodes, u32 count, bool root, u8 *output) {
    LANES(Value, values);
#pragma unroll 1
    while (count > 1) {
        const u32 pairs = count / 2, left = count - pairs;
        EACH_THREAD(thread) {
            Value &value = values[SELF(thread)];
            if (thread < pairs) {
                u32 message[16];
#pragma unroll
                for (u32 word = 0; word < 8; ++word) {
                    message[word] = nodes[word * THREADS + 2 * thread];
                    message[word + 8] = nodes[word * THREADS + 2 * thread + 1];
                }
                join(value, message, root && count == 2);
            } else if (thread < left) {
#pragma unroll
                for (u32 word = 0; word < 8; ++word) value.words[word] = nodes[word * THREADS + 2 * thread];
            }
        }
        BLOCK_SYNC();
        EACH_THREAD(thread) {
            if (thread < left) store_node(nodes, thread, values[SELF(thread)]);
        }
        BLOCK_SYNC();
        count = left;
    }
    EACH_THREAD(thread) {
        if (thread < 8) ((u32 *)output)[thread] = nodes[thread * THREADS];
    }
}

struct Nodes {
    u32 nodes[8 * THREADS];
};

union Space {
    uint4 stages[2][THREADS * SLOTS];
    u32 nodes[8 * THREADS];
};

// The chaining value, or digest, of each tile of each job.
KERNEL chunks(u8 *workspace, u64 table, u64 count) {
    SHARED(Space, space);
    const Job job = job_of(workspace, table, count, BLOCK);
    const u64 number = BLOCK - job.first_block;
    const u8 *input = input_of(job, workspace);
    const u64 before = number * TILE_BYTES;
    const Tile tile = {input + before, before, job.length - before, ((u64)input & 15) == 0};
    const u32 length = smaller(tile.behind, TILE_BYTES);
    const u32 nodes = length ? (length + CHUNK - 1) / CHUNK : 1;
    const u32 pieces = length ? (smaller(length, CHUNK) + PIECE - 1) / PIECE : 1;
    const bool root = job.flags & JOB_ROOT;
    const u32 last_flags = CHUNK_END | (root && nodes == 1 ? ROOT : 0u);
    LANES(Value, values);
    EACH_THREAD(thread) values[SELF(thread)] = initial();
#pragma unroll 1
    for (u32 turn = 0; turn <= pieces; ++turn) {  // fetches piece `turn` and hashes the one before it
        EACH_THREAD(thread) fetched(thread);
        WARP_SYNC();  // the piece before is there, and nobody reads the one before that any more
        EACH_THREAD(thread) {
            if (turn < pieces) fetch_piece(space.stages[turn % 2], tile, thread, turn);
            if (turn && thread < nodes) {
                const u32 mine = smaller(length - thread * CHUNK, CHUNK);
                hash_piece(values[SELF(thread)], space.stages[(turn - 1) % 2], thread, turn - 1, mine,
                           job.counter + number * THREADS + thread, last_flags);
            }
        }
    }
    BLOCK_SYNC();  // the nodes take the place of the pieces
    EACH_THREAD(thread) {
        if (thread < nodes) store_node(space.nodes, thread, values[SELF(thread)]);
    }
    BLOCK_SYNC();
    join_nodes(space.nodes, nodes, root, workspace + job.output + number * 32);
}

// The chaining value, or digest, of each 2 * THREADS chaining values of each job.
KERNEL merge(u8 *workspace, u64 table, u64 count) {
    SHARED(Nodes, space);
    const Job job = job_of(workspace, table, count, BLOCK);
    const u64 number = BLOCK - job.first_block, first = number * (2 * THREADS);
    const uint4 *input = (const uint4 *)(input_of(job, workspace) + first * 32);
    const u32 nodes = smaller(job.length - first, 2 * THREADS), pairs = nodes / 2, left = nodes - pairs;
    const bool root = job.flags & JOB_ROOT;
    EACH_THREAD(thread) {
        if (thread < left) {
            u32 message[16];
#pragma unroll
            for (u32 part = 0; part < 4; ++part) {
                const uint4 found = part < 2 || thread < pairs ? input[thread * 4 + part] : make_uint4(0, 0, 0, 0);
                message[part * 4] = found.x;
                message[part * 4 + 1] = found.y;
                message[part * 4 + 2] = found.z;
                message[part * 4 + 3] = found.w;
            }
            Value value;
            if (thread < pairs) {
                join(value, message, root && nodes == 2);
            } else {
#pragma unroll
                for (u32 word = 0; word < 8; ++word) value.words[word] = message[word];
            }
            store_node(space.nodes, thread, value);
        }
    }
    BLOCK_SYNC();
    join_nodes(space.nodes, left, root && nodes > 2, workspace + job.output + number * 32);
}

// ---- Strided input

// plan.py's description of it: five words, then the extents, then the strides. `low` and `high` are the bits of each unit
// that are turned, its first eight bytes and its second.
struct Layout {
    u64 pointer, unit, dimensions, low, high;
};

// `Index` of 32 bits where the units fit: a division of 64 bits takes some 70 instructions.
template <typename Index>
INLINE u64 offset_of(u64 unit, const u64 *extents, const u64 *strides, u32 dimensions) {
    Index rest = (Index)unit;
    u64 offset = 0;
#pragma unroll 1
    for (u32 dimension = dimensions; dimension-- > 0;) {
        const Index extent = (Index)extents[dimension];
        const Index next = dimension ? rest / extent : 0;
        offset += (u64)(rest - next * extent) * strides[dimension];  // negative ones wrap, and the sum does back
        rest = next;
    }
    return offset;
}

// Units [first, first + count) of the input, in C order, with the signs turned that are to be, to `destination`.
KERNEL gather(u8 *workspace, u64 layout, u64 first, u64 count, u64 destination) {
    const Layout &input = *(const Layout *)(workspace + layout);
    const u64 *extents = (const u64 *)(&input + 1), *strides = extents + input.dimensions;
    const u32 dimensions = (u32)input.dimensions;
    EACH_THREAD(thread) {
#pragma unroll 1
        for (u32 turn = 0; turn < UNITS_A_THREAD; ++turn) {
            const u64 at = ((u64)BLOCK * UNITS_A_THREAD + turn) * THREADS + thread;
            if (at >= count) break;
            const u64 offset = first + count <= 0xFFFFFFFFu ? offset_of<u32>(first + at, extents, strides, dimensions)
                                                            : offset_of<u64>(first + at, extents, strides, dimensions);
            const u8 *from = (const u8 *)(input.pointer + offset);
            u8 *to = workspace + destination + at * input.unit;
            switch (input.unit) {
                case 1: *to = (u8)(*from ^ input.low); break;
                case 2: *(unsigned short *)to = (unsigned short)(*(const unsigned short *)from ^ input.low); break;
                case 4: *(u32 *)to = *(const u32 *)from ^ (u32)input.low; break;
                case 8: *(u64 *)to = *(const u64 *)from ^ input.low; break;
                default: {
                    const uint4 found = *(const uint4 *)from;
                    *(uint4 *)to = make_uint4(found.x ^ (u32)input.low, found.y ^ (u32)(input.low >> 32),
                                              found.z ^ (u32)input.high, found.w ^ (u32)(input.high >> 32));
                }
            }
        }
    }
}
