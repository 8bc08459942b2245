"""Hashing on a GPU, from 4 KiB to 4 GiB: beside the copy to the host and its hash there, and a copy within the device.

`make bench-gpu` runs it on a machine with a GPU and writes the table of benches/README.md. It is a program of its own:
what is timed are events of a device, and the yardstick is the device itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infercache import DeviceError
from infercache.gpu import hashing
from infercache.gpu.hashing import enqueue

KIB, GIB = 1 << 10, 1 << 30
SIZES = [4 * KIB << 2 * step for step in range(11)]
AIMS = {"at least 600 GB/s at 1 GiB": 600e9, "past 1 TB/s at 1 GiB": 1e12}
DEVICE_TO_DEVICE = 3  # cudaMemcpyKind

# A block of 64 bytes in `chunks`, counted in the machine code for sm_90 (CUDA 13.5; docs/gpu.md): 721 instructions, of
# which 593 go to the integer units, whose 64 lanes a multiprocessor take one each a clock. The others go elsewhere.
BLOCK_BYTES = 64
INTEGER_INSTRUCTIONS = 593
INTEGER_LANES = 64
# A tile's joins keep 8 warps busy for a compression each, beside the 64 of its chunks.
SHARE_OF_CHUNKS = 64 / 72
CLOCK_RATE, MULTIPROCESSORS = 13, 16  # cudaDeviceAttr


class Measured(NamedTuple):
    """Seconds, medians."""

    size: int  # bytes
    device: float  # of the device alone, work following work
    whole: float  # from the call to the digest
    host: float  # copied to the host and hashed there
    copy: float  # copied within the device, which reads and writes as many bytes


def ceiling(multiprocessors: int, hertz: float) -> float:
    """Bytes a second at which the integer units would be busy all the time."""
    blocks = INTEGER_LANES / INTEGER_INSTRUCTIONS * multiprocessors * hertz
    return blocks * BLOCK_BYTES * SHARE_OF_CHUNKS


def crossover(rows: Sequence[Measured]) -> int | None:
    """The smallest size from which on the device is never slower than the host; None where it is at the largest."""
    found = None
    for row in sorted(rows, reverse=True):
        if row.whole > row.host:
            break
        found = row.size
    return found


def table(rows: Sequence[Measured], most: float) -> str:
    """Markdown."""
    lines = [
        "| size | call to digest | copied and hashed on the host | device | of the ceiling | copy in the device |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            amount(row.size),
            f"{row.whole * 1e6:,.0f} µs",
            f"{row.host * 1e6:,.0f} µs",
            f"{row.device * 1e6:,.0f} µs, {row.size / row.device / 1e9:,.0f} GB/s",
            f"{row.size / row.device / most:.0%}",
            f"{row.copy * 1e6:,.0f} µs, {row.size / row.copy / 1e9:,.0f} GB/s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Measured]) -> str:
    """What was wanted at 1 GiB, and whether it was reached."""
    speeds = [row.size / row.device for row in rows if row.size == GIB]
    return "\n".join(
        f"- {text}: {'not measured' if not speeds else 'reached' if speeds[0] >= speed else 'MISSED'}"
        for text, speed in AIMS.items()
    )


def amount(size: int) -> str:
    """With its unit."""
    for scale, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << scale:
            return f"{size / (1 << scale):g} {unit}"
    return f"{size} B"


def median(rounds: int, call: Callable[[], float]) -> float:
    """Of some rounds, after one that is not counted."""
    call()
    return statistics.median(call() for _ in range(rounds))


def clocked(call: Callable[[], object]) -> Callable[[], float]:
    """The seconds of a call, by the host's clock."""

    def timed() -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    return timed


def on_device(cupy: Any, stream: Any, call: Callable[[], object], times: int) -> Callable[[], float]:
    """The seconds of a call's work on the device, by its events around several."""

    def timed() -> float:
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record(stream)
        for _ in range(times):
            call()
        last.record(stream)
        last.synchronize()
        return float(cupy.cuda.get_elapsed_time(first, last)) / 1e3 / times

    return timed


def measured(cupy: Any, stream: Any, size: int, rounds: int) -> Measured:
    """One size."""
    source, target = cupy.empty(size, cupy.uint8), cupy.empty(size, cupy.uint8)
    source[...] = 0x5A  # what the bytes are changes no time
    buffers, times = [(source.data.ptr, size)], 3 if size >= GIB else 20
    pinned = cupy.cuda.alloc_pinned_memory(size)
    held = np.frombuffer(pinned, np.uint8, size)

    def hash_there() -> object:
        return enqueue(buffers, device=stream.device_id, stream=stream.ptr)

    def hash_here() -> object:
        source.data.copy_to_host_async(pinned.ptr, size, stream)
        stream.synchronize()
        return hashing._digest(held)

    def copy() -> object:
        return cupy.cuda.runtime.memcpyAsync(target.data.ptr, source.data.ptr, size, DEVICE_TO_DEVICE, stream.ptr)

    digest = hash_here()
    if enqueue(buffers, device=stream.device_id, stream=stream.ptr).join() != [digest]:
        sys.exit(f"the device's digest of {amount(size)} is not the host's: run `make test-gpu`")
    return Measured(
        size,
        median(rounds, on_device(cupy, stream, hash_there, times)),
        median(rounds, clocked(lambda: enqueue(buffers, device=stream.device_id, stream=stream.ptr).join())),
        median(rounds, clocked(hash_here)),
        median(rounds, on_device(cupy, stream, copy, times)),
    )


def batches(cupy: Any, stream: Any, rounds: int) -> str:
    """Many tensors at once, beside one after the other."""
    size, count = 256 * KIB, 512
    data = cupy.zeros(size * count, cupy.uint8)
    buffers = [(data.data.ptr + at * size, size) for at in range(count)]
    place = {"device": stream.device_id, "stream": stream.ptr}
    together = median(rounds, clocked(lambda: enqueue(buffers, **place).join()))
    alone = median(rounds, clocked(lambda: [enqueue([buffer], **place).join() for buffer in buffers]))
    return (
        f"{count} tensors of {amount(size)}: {together * 1e6:,.0f} µs in one batch, {alone * 1e6:,.0f} µs one by one "
        f"({alone / together:.1f} times)."
    )


def pieces(cupy: Any, stream: Any, rounds: int) -> str:
    """The kernel's one knob: how much of each chunk is fetched at a time."""
    size, lines = GIB // 4, []
    data = cupy.zeros(size, cupy.uint8)
    for piece in (64, 128):
        hashing._forget(stream.device_id)
        hashing.OPTIONS = ("--std=c++17", f"-DPIECE={piece}")

        def call() -> object:
            return enqueue([(data.data.ptr, size)], device=stream.device_id, stream=stream.ptr)

        seconds = median(rounds, on_device(cupy, stream, call, 10))
        lines.append(f"{piece} bytes: {size / seconds / 1e9:,.0f} GB/s")
    return f"By bytes of a chunk that are fetched at a time, at {amount(size)}: {', '.join(lines)}."


def report(cupy: Any, rounds: int, largest: int) -> str:
    """Everything, as Markdown."""
    device = cupy.cuda.Device(0)
    with device, cupy.cuda.Stream(non_blocking=True) as stream:
        attribute = cupy.cuda.runtime.deviceGetAttribute
        multiprocessors, hertz = attribute(MULTIPROCESSORS, 0), attribute(CLOCK_RATE, 0) * 1e3
        most = ceiling(multiprocessors, hertz)
        rows = []
        for size in SIZES:
            free, _ = cupy.cuda.runtime.memGetInfo()
            if size > largest or 2 * size + GIB > free:
                print(f"{amount(size)}: left out, {amount(free)} free", file=sys.stderr)
                continue
            rows.append(measured(cupy, stream, size, rounds))
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()
        batched, variants = batches(cupy, stream, rounds), pieces(cupy, stream, rounds)
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    found = crossover(rows)
    machine = (
        f"{name}, {multiprocessors} multiprocessors at up to {hertz / 1e9:.2f} GHz, CUDA driver "
        f"{cupy.cuda.runtime.driverGetVersion()}, CuPy {cupy.__version__}. Medians of {rounds} rounds."
    )
    arithmetic = (
        f"Ceiling of the integer units: {INTEGER_LANES} lanes ÷ {INTEGER_INSTRUCTIONS} instructions × "
        f"{BLOCK_BYTES} bytes × {multiprocessors} × {hertz / 1e9:.2f} GHz × {SHARE_OF_CHUNKS:.2f} = "
        f"{most / 1e12:.2f} TB/s."
    )
    crossed = f"Crossover: {amount(found) if found else 'none'}; `HOST_BELOW` is {amount(hashing.HOST_BELOW)}."
    return "\n\n".join([machine, arithmetic, table(rows, most), crossed, verdicts(rows), batched, variants])


def main() -> None:
    """Measures, prints, and writes the table where that is asked for."""
    parser = argparse.ArgumentParser(description="Hashing on a GPU beside the host.")
    parser.add_argument("--write", action="store_true", help="put the table into benches/README.md")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--largest", type=int, default=4 * GIB, metavar="BYTES")
    arguments = parser.parse_args()
    try:
        enqueue([(0, 0)], device=0, stream=0).join()
    except DeviceError as error:
        sys.exit(f"no GPU to measure: {error}")
    import cupy

    text = report(cupy, arguments.rounds, arguments.largest)
    print(text)
    if arguments.write:
        from report import write

        write(Path(__file__).resolve().parent / "README.md", "gpu", text)


if __name__ == "__main__":
    main()
