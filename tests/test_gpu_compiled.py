"""blake3.cu compiled for every generation of GPUs that is supported, from Turing to Blackwell, without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import nvrtc
from host_kernels import SOURCE
from infercache.gpu.hashing import OPTIONS
from infercache.gpu.plan import THREADS

ARCHITECTURES = [75, 80, 90, 100, 120]
KERNELS = {"chunks", "merge", "gather"}
REGISTERS = 65_536  # of a multiprocessor, on each of these
# A program that has to spill: more values alive in each thread than the registers that it may have.
SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spilling(unsigned *data) {
    unsigned values[128];
    #pragma unroll
    for (int at = 0; at < 128; ++at) values[at] = data[at * 1024 + threadIdx.x];
    __syncthreads();
    #pragma unroll
    for (int round = 0; round < 4; ++round)
        #pragma unroll
        for (int at = 0; at < 128; ++at) values[at] = values[at] * values[(at + 37) % 128] + round;
    #pragma unroll
    for (int at = 0; at < 128; ++at) data[at * 1024 + threadIdx.x] = values[at];
}
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture: int, record_property: Callable[[str, object], None]) -> None:
    log, cubin = nvrtc.compiled(SOURCE.read_text(), architecture, *OPTIONS)
    kernels = nvrtc.report(log, architecture)
    assert cubin.startswith(b"\x7fELF")
    assert set(kernels) == KERNELS
    assert "warning" not in log, log
    for name, kernel in kernels.items():
        print(f"CUDA {nvrtc.version()}, sm_{architecture}, {name}: {kernel}")
        record_property(f"sm_{architecture} {name}", str(kernel))
        assert kernel.spills == 0, f"sm_{architecture}: {name} spills {kernel.spills} bytes\n{log}"
        assert kernel.stack == 0, f"sm_{architecture}: {name} keeps {kernel.stack} bytes on its stack\n{log}"
    # Six blocks, 24 warps, of every multiprocessor: what hides the latency of a compression.
    assert kernels["chunks"].registers * THREADS * 6 <= REGISTERS


def test_a_spill_is_seen() -> None:
    """The report of a program that must spill says so: the test above can fail."""
    log, _ = nvrtc.compiled(SPILLING, 90)
    assert nvrtc.report(log, 90)["spilling"].spills > 0


def test_variant_that_the_benchmark_compares_compiles() -> None:
    log, _ = nvrtc.compiled(SOURCE.read_text(), 90, *OPTIONS, "-DPIECE=64")
    kernels = nvrtc.report(log, 90)
    assert set(kernels) == KERNELS
    assert not any(kernel.spills for kernel in kernels.values())
