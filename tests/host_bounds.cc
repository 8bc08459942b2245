// Runs `chunks` over inputs and workspaces of exactly their size, for AddressSanitizer, which sees every byte outside them.
#include "../python/infercache/gpu/blake3.cu"

#include <cstdlib>

int main() {
    const u32 lengths[] = {0, 1, 3, 15, 16, 17, 19, 20, 63, 64, 65, 100, 1000, 1023, 1024, 1027, 5000, THREADS * 1024 - 1,
                           THREADS * 1024, THREADS * 1024 + 77};
    u32 order[THREADS];
    for (u32 thread = 0; thread < THREADS; ++thread) order[thread] = thread;
    u32 runs = 0;
    for (const u32 length : lengths) {
        for (u32 alignment = 0; alignment < 17; ++alignment, ++runs) {
            u8 *buffer = (u8 *)malloc(alignment + length);
            memset(buffer, 7, alignment + length);
            const u32 tiles = length > TILE_BYTES ? 2 : 1;
            u8 *workspace = (u8 *)malloc(sizeof(Job) + tiles * 32);
            *(Job *)workspace = Job{(u64)(buffer + alignment), length, 0, 0, sizeof(Job), tiles == 1 ? JOB_ROOT : 0};
            const u64 arguments[] = {0, 1};
            if (run_on_host("chunks", 0, tiles, workspace, arguments, order, alignment % 2)) return 1;
            free(workspace);
            free(buffer);
        }
    }
    return runs == 17 * sizeof lengths / sizeof *lengths ? 0 : 2;
}
