"""blake3.cu as host C++, compiled once a session: a stand-in for a GPU, where tests have none; see host_cuda.h."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from infercache.gpu import plan as planning
from infercache.gpu.plan import DIGEST, THREADS, Plan

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "python" / "infercache" / "gpu" / "blake3.cu"
FLAGS = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
# Every shift and every access inside bounds that the compiler knows; ends the process where one is not.
CHECKED = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
AS_WRITTEN = tuple(range(THREADS))


def found_compiler() -> str:
    """The C++ compiler's name; skips where none is."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ["g++", "clang++", "c++"]), None)
    if compiler is None:
        pytest.skip("no C++ compiler (g++, clang++ or c++, or CXX) compiles blake3.cu for the host")
    return compiler


@lru_cache
def kernels(*options: str) -> ctypes.CDLL:
    """The kernels, for ctypes; skips where no compiler is."""
    compiler = found_compiler()
    with TemporaryDirectory() as folder:
        library = Path(folder) / "blake3.so"
        command = [compiler, *FLAGS, *CHECKED, *options, "-I", str(TESTS), "-x", "c++", str(SOURCE), "-o", str(library)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(library))


def launch(
    kernel: str,
    blocks: range,
    workspace: int,
    arguments: Sequence[int],
    *,
    order: Sequence[int] = AS_WRITTEN,
    late: bool = False,
    options: tuple[str, ...] = (),
) -> None:
    """Runs blocks of a kernel's grid; see host_cuda.h for `order` and `late`."""
    assert sorted(order) == list(AS_WRITTEN)
    failed = kernels(*options).run_on_host(
        kernel.encode(),
        ctypes.c_uint32(blocks.start),
        ctypes.c_uint32(blocks.stop),
        ctypes.c_void_p(workspace),
        (ctypes.c_uint64 * len(arguments))(*arguments),
        (ctypes.c_uint32 * THREADS)(*order),
        ctypes.c_int(late),
    )
    assert failed == 0, f"blake3.cu has no kernel {kernel}"


def execute(
    plan: Plan, *, order: Sequence[int] = AS_WRITTEN, late: bool = False, options: tuple[str, ...] = ()
) -> list[bytes]:
    """The digests of a plan, and that it kept to its workspace."""
    guard = 4096
    room = np.full(plan.workspace + 2 * guard, 0xA5, np.uint8)
    begin = guard + -(room.ctypes.data + guard) % planning.ALIGNMENT
    room[begin + plan.table_at :][: len(plan.table)] = np.frombuffer(plan.table, np.uint8)
    for kernel, blocks, arguments in plan.launches:
        launch(kernel, range(blocks), room.ctypes.data + begin, arguments, order=order, late=late, options=options)
    assert (room[:begin] == 0xA5).all(), "written before the workspace"
    assert (room[begin + plan.workspace :] == 0xA5).all(), "written behind the workspace"
    found = room[begin:][: plan.digests * DIGEST].tobytes()
    return [found[at : at + DIGEST] for at in range(0, len(found), DIGEST)]
