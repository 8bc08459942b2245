"""Functions of tensors on a device, and results that live on one: see device_results.py for the cases."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import device_results
import host_kernels

TESTS = Path(__file__).resolve().parent


def run(case: str) -> None:
    """Runs a case of device_results.py in a process of its own."""
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error::UserWarning", str(TESTS / "device_results.py"), case]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["torch_results", "torch_batches", "cupy_results", "cupy_out_of_memory"])
def test_on_a_stand_in(case: str) -> None:
    host_kernels.kernels()  # skips where nothing compiles them
    assert getattr(device_results, case).__doc__
    run(case)


@pytest.mark.parametrize("case", ["jax_results", "jax_without_64_bits"])
def test_with_jax_on_the_cpu(case: str) -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    run(case)
