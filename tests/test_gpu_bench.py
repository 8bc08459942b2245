"""What `make bench-gpu` works out of its times; taking them needs a GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import bench_gpu
from bench_gpu import GIB, Measured, ceiling, crossover, table, verdicts


def row(size: int, whole: float, host: float) -> Measured:
    """A size whose device alone takes as long as the whole."""
    return Measured(size, whole, whole, host, whole / 4)


def test_crossover_is_where_the_device_stays_faster() -> None:
    rows = [row(1, 2.0, 1.0), row(2, 1.0, 1.5), row(4, 2.0, 1.9), row(8, 2.0, 3.0), row(16, 2.0, 6.0)]
    assert crossover(rows) == 8
    assert crossover(rows[::-1]) == 8
    assert crossover(rows[:1]) is None


def test_ceiling_is_what_the_design_expects_of_an_h200() -> None:
    """132 multiprocessors at 1.755 to 1.98 GHz: about 1.3 to 1.8 TB/s."""
    assert 1.3e12 < ceiling(132, 1.755e9) < ceiling(132, 1.98e9) < 1.8e12


def test_aims_are_judged_at_one_gib() -> None:
    assert verdicts([row(GIB, GIB / 700e9, 1.0)]).splitlines() == [
        "- at least 600 GB/s at 1 GiB: reached",
        "- past 1 TB/s at 1 GiB: MISSED",
    ]
    assert "not measured" in verdicts([row(GIB // 4, 1.0, 1.0)])


def test_a_size_is_a_line_of_the_table() -> None:
    line = table([row(GIB, 1e-3, 2e-2)], 1.5e12).splitlines()[-1]
    assert line == "| 1 GiB | 1,000 µs | 20,000 µs | 1,000 µs, 1,074 GB/s | 72% | 250 µs, 4,295 GB/s |"


def test_without_a_gpu_it_says_so(root: Path) -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed: there may be a GPU")
    done = subprocess.run([sys.executable, bench_gpu.__file__], check=False, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no GPU to measure" in done.stderr
