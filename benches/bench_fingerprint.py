"""Fingerprints of a model's files in a warm page cache, beside sha256 and the blake3 package, and from what is kept.

The limit is the memory: reading copies each byte once from the page cache, and hashing reads it again from the
processor's. From a disk that gives less than some gigabytes a second, the disk is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from safetensors.numpy import save_file

from infercache import model_fingerprint
from measure import Measure, Wanted

BYTES = 512 << 20
SHARDS = 64
TENSORS = 256
ROUNDS = 9


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    """512 MiB of parameters in tensors of 2 MiB."""
    noise = np.random.default_rng(1).integers(0, 1 << 32, BYTES // 4, dtype="u4").reshape(TENSORS, -1)
    return {f"layer.{number}.weight": noise[number] for number in range(TENSORS)}


@pytest.fixture(scope="module")
def one(weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them in one file."""
    path = tmp_path_factory.mktemp("one") / "model.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def shards(weights: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in 64 files."""
    folder = tmp_path_factory.mktemp("shards")
    names = list(weights)
    for number in range(SHARDS):
        part = {name: weights[name] for name in names[number::SHARDS]}
        save_file(part, folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors")
    return folder


def read(path: Path) -> Callable[[], str]:
    """The fingerprint, every byte read."""
    return lambda: model_fingerprint(path, cache_dir=False, progress=False)


def mapped(paths: list[Path], threads: int) -> Callable[[], list[bytes]]:
    """What b3sum does: the files mapped, hashed by the blake3 package."""
    return lambda: [blake3.blake3(max_threads=threads).update_mmap(path).digest() for path in paths]


def sha256(path: Path) -> Callable[[], str]:
    """What the standard library offers, with OpenSSL's SHA instructions."""

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return digest


FILE = "fingerprint of a 512 MiB safetensors file"


@pytest.mark.benchmark(group=FILE)
def bench_infercache_file(measure: Measure, one: Path) -> None:
    wanted = [
        Wanted("hashlib_sha256", at_most=1 / 2),
        Wanted("sha256sum", at_most=1 / 2),
        Wanted("blake3_package_mapped", at_most=1.25),
    ]
    measure(read(one), rounds=ROUNDS, wanted=wanted, headline="the fingerprint of 512 MiB of weights")


@pytest.mark.benchmark(group=FILE)
def bench_blake3_package_mapped(measure: Measure, one: Path) -> None:
    measure(mapped([one], blake3.blake3.AUTO), rounds=ROUNDS)


@pytest.mark.benchmark(group=FILE)
def bench_blake3_package_one_thread(measure: Measure, one: Path) -> None:
    measure(mapped([one], 1), rounds=ROUNDS)


@pytest.mark.benchmark(group=FILE)
def bench_hashlib_sha256(measure: Measure, one: Path) -> None:
    measure(sha256(one), rounds=ROUNDS)


@pytest.mark.benchmark(group=FILE)
def bench_sha256sum(measure: Measure, one: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("this machine has no sha256sum")
    measure(lambda: subprocess.run(["sha256sum", one], check=True, capture_output=True), rounds=ROUNDS)


@pytest.mark.benchmark(group=FILE)
def bench_read_alone(measure: Measure, one: Path) -> None:
    """The file read by one thread into 256 KiB, and nothing done with it."""
    buffer = bytearray(256 << 10)

    def through() -> None:
        with one.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    measure(through, rounds=ROUNDS)


@pytest.mark.benchmark(group="fingerprint of 512 MiB in 64 shards")
def bench_infercache_shards(measure: Measure, shards: Path) -> None:
    measure(read(shards), rounds=ROUNDS, wanted=Wanted("blake3_package_mapped_shards", at_most=1.25))


@pytest.mark.benchmark(group="fingerprint of 512 MiB in 64 shards")
def bench_blake3_package_mapped_shards(measure: Measure, shards: Path) -> None:
    measure(mapped(sorted(shards.iterdir()), blake3.blake3.AUTO), rounds=ROUNDS)


@pytest.mark.benchmark(group="fingerprint of a state dict of 512 MiB")
def bench_infercache_state_dict(measure: Measure, weights: dict[str, Any]) -> None:
    measure(lambda: model_fingerprint(weights), rounds=ROUNDS, wanted=Wanted("joblib_hash", at_most=1 / 8))


@pytest.mark.benchmark(group="fingerprint of a state dict of 512 MiB")
def bench_joblib_hash(measure: Measure, weights: dict[str, Any]) -> None:
    import joblib

    measure(lambda: joblib.hash(weights), rounds=3)


@pytest.mark.benchmark(group="fingerprint of a state dict of 512 MiB")
def bench_blake3_package_arrays(measure: Measure, weights: dict[str, Any]) -> None:
    measure(lambda: [blake3.blake3(value.view("u1")).digest() for value in weights.values()], rounds=ROUNDS)


def settled(path: Path, folder: Path) -> Callable[[], str]:
    """The fingerprint from what is kept, once it is."""
    for file in [path] if path.is_file() else path.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    time.sleep(2.1)  # a file that was modified just now is not written down
    model_fingerprint(path, cache_dir=folder)
    return lambda: model_fingerprint(path, cache_dir=folder)


@pytest.mark.benchmark(group="fingerprint of an unchanged file")
def bench_infercache_unchanged_file(measure: Measure, one: Path, tmp_path: Path) -> None:
    measure(settled(one, tmp_path), wanted=Wanted(under=5e-3))


@pytest.mark.benchmark(group="fingerprint of 64 unchanged shards")
def bench_infercache_unchanged_shards(measure: Measure, shards: Path, tmp_path: Path) -> None:
    measure(settled(shards, tmp_path), wanted=Wanted(under=50e-3))
