// The host's half of the macros of blake3.cu: a stand-in for a GPU, so that the kernels' arithmetic runs where there is none.
//
// A block's threads run one after the other between two barriers, in an order that the caller chooses: a phase in which
// a thread reads what another one writes gives another digest in another order. Asynchronous copies are made when they
// are begun, or not before they are waited for: both are what a GPU may do. Shared memory begins with garbage.
// What it cannot show: how fast it is, and what a GPU's compiler makes of it.
#include <cstdint>
#include <cstring>
#include <vector>

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef THREADS
#define THREADS 128
#endif

struct alignas(16) uint4 {
    u32 x, y, z, w;
};

static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return uint4{x, y, z, w}; }

// Of the eight bytes low, high, the four that the selector's nibbles name.
static inline u32 __byte_perm(u32 low, u32 high, u32 selector) {
    const u64 bytes = (u64)high << 32 | low;
    u32 result = 0;
    for (int at = 0; at < 4; ++at) result |= (u32)(bytes >> (selector >> 4 * at & 7) * 8 & 255) << 8 * at;
    return result;
}

static inline u32 __funnelshift_r(u32 low, u32 high, u32 shift) {
    return (u32)(((u64)high << 32 | low) >> (shift & 31));
}

namespace host {

struct Copy {
    uint4 *slot;
    const u8 *source;
    u32 size;
};

static thread_local u32 order[THREADS];                 // of the threads, in each phase
static thread_local bool late;                          // copies are made when they are waited for
static thread_local std::vector<Copy> begun[THREADS];   // copies of a thread that are not made yet
static thread_local u32 block;

static inline void make(const Copy &copy) {
    u8 bytes[16] = {};
    if (copy.size) memcpy(bytes, copy.source, copy.size);
    memcpy(copy.slot, bytes, 16);
}

static inline void fetch(u32 thread, uint4 *slot, const u8 *source, u32 size) {
    if ((u64)slot % 16 || (size && (u64)source % 16) || size > 16) __builtin_trap();  // cp.async refuses it as well
    const Copy copy = {slot, source, size};
    if (late)
        begun[thread].push_back(copy);
    else
        make(copy);
}

static inline void fetched(u32 thread) {
    for (const Copy &copy : begun[thread]) make(copy);
    begun[thread].clear();
}

}  // namespace host

#define INLINE static inline
#define SHARED(type, name)         \
    static thread_local type name; \
    memset((void *)&name, 0xA5, sizeof name)
#define LANES(type, name) type name[THREADS]
#define SELF(thread) thread
#define EACH_THREAD(thread) \
    for (u32 turn_ = 0, thread; turn_ < THREADS && (thread = host::order[turn_], true); ++turn_)
#define BLOCK_SYNC() ((void)0)
#define WARP_SYNC() ((void)0)
#define BLOCK host::block
#define KERNEL extern "C" void

KERNEL chunks(u8 *workspace, u64 table, u64 count);
KERNEL merge(u8 *workspace, u64 table, u64 count);
KERNEL gather(u8 *workspace, u64 layout, u64 first, u64 count, u64 destination);

// Runs the blocks [first, last) of a kernel's grid, the threads in the order `order`. 0 is returned, or 1 for an unknown kernel.
extern "C" int run_on_host(const char *kernel, u32 first, u32 last, u8 *workspace, const u64 *arguments,
                           const u32 *order, int late) {
    memcpy(host::order, order, sizeof host::order);
    host::late = late;
    for (host::block = first; host::block < last; ++host::block) {
        if (!strcmp(kernel, "chunks"))
            chunks(workspace, arguments[0], arguments[1]);
        else if (!strcmp(kernel, "merge"))
            merge(workspace, arguments[0], arguments[1]);
        else if (!strcmp(kernel, "gather"))
            gather(workspace, arguments[0], arguments[1], arguments[2], arguments[3]);
        else
            return 1;
    }
    return 0;
}
