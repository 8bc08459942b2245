"""NVRTC, NVIDIA's run-time compiler, by ctypes: what CuPy calls on a machine with a GPU, here without one.

To CUBIN, machine code of one architecture, so that its report says what the assembler made of the registers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


class Kernel(NamedTuple):
    """What the report says of one entry function."""

    stack: int  # bytes a thread; arrays that did not go into registers
    spills: int  # bytes a thread, stores and loads
    registers: int  # a thread
    shared: int  # bytes a block


@lru_cache
def library() -> ctypes.CDLL:
    """The compiler; skips where it is not installed."""
    try:
        found = importlib.util.find_spec("nvidia")
    except ImportError:
        found = None
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    names = [
        path
        for folder in folders
        for pattern in ("*/lib/libnvrtc.so.*", "*/bin/**/nvrtc64_*.dll")
        for path in folder.glob(pattern)
    ]
    names = [path for path in names if "alt" not in path.name and "builtins" not in path.name]
    if not names:
        pytest.skip("NVRTC is not installed: pip install 'infercache[dev]' brings nvidia-cuda-nvrtc, except on macOS")
    return ctypes.CDLL(str(max(names)))


def version() -> tuple[int, int]:
    """Of CUDA."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return major.value, minor.value


def compiled(source: str, architecture: int, *options: str) -> tuple[str, bytes]:
    """The log and the machine code of a source; fails with the log where it does not compile."""
    nvrtc, program = library(), ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"blake3.cu", 0, None, None) == 0
    try:
        given = [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", *options]
        arguments = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        status = nvrtc.nvrtcCompileProgram(program, len(given), arguments)
        log = read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        assert status == 0, f"sm_{architecture}: status {status}\n{log}"
        return log, read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def read(size_of: ctypes._NamedFuncPointer, get: ctypes._NamedFuncPointer, program: ctypes.c_void_p) -> bytes:
    """One of the two results of a compilation."""
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert get(program, buffer) == 0
    return buffer.raw


def report(log: str, architecture: int) -> dict[str, Kernel]:
    """What the assembler says of each kernel."""
    kernels = {}
    name = ""
    stack = spills = -1
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            name = entry[1]
            assert int(entry[2]) == architecture
        elif found := SPILLS.search(line):
            stack, spills = int(found[1]), int(found[2]) + int(found[3])
        elif found := USED.search(line):
            assert name and stack >= 0, log
            kernels[name] = Kernel(stack, spills, int(found[1]), int(found[2] or 0))
            name, stack, spills = "", -1, -1
    return kernels
