"""The key of a tensor: an image, 64 MB by one thread and by two, strided ones, beside what people hash tensors with.

`vllm_…` is what vLLM's `MultiModalHasher.hash_kwargs` does with an array (vllm/multimodal/hasher.py, 2026): the tensor
on the host, one BLAKE3 over the name, `dtype.str`, the shape as NumPy's bytes, and the elements, copied first where
they are not contiguous. Ours takes the namespace, the model and its version as well and gives a `Key`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import blake3
import joblib
import numpy as np
import pytest

import infercache
from infercache._core import _hash_threads
from measure import Measure, Wanted

RANDOM = np.random.default_rng(1)
IMAGE = RANDOM.integers(0, 255, (480, 417, 3), dtype="u1")  # 600,480 bytes
LARGE = RANDOM.integers(0, 255, 64_000_000, dtype="u1")
BATCH = (
    RANDOM.integers(0, 255, (32, 224, 224, 3), dtype="u1").astype("f4").transpose(0, 3, 1, 2)
)  # 19 MB, channels first
MATRIX = RANDOM.random((3000, 4000), dtype="f4").T  # 48 MB
CALLS = 20


def times(count: int, make: Callable[[], Any]) -> Callable[[], None]:
    """A loop of calls."""

    def loop() -> None:
        for _ in range(count):
            make()

    return loop


def ours(value: Any) -> Callable[[], Any]:
    """The key of a tensor."""
    key = infercache.key
    return lambda: key(value, model="bench", version="1")


def vllm(array: np.ndarray[Any, Any]) -> Callable[[], str]:
    """What vLLM does with an argument `image`."""

    def make() -> str:
        hasher = blake3.blake3()
        hasher.update(b"image")
        hasher.update(b"ndarray.dtype")
        hasher.update(array.dtype.str.encode())
        for axis, length in enumerate(array.shape):
            hasher.update(f"ndarray.shape.{axis}".encode())
            hasher.update(np.array(length).tobytes())
        hasher.update(b"ndarray.data")
        hasher.update(array.view(np.uint8).data if array.flags.c_contiguous else array.tobytes())
        return hasher.hexdigest()

    return make


@pytest.fixture
def threads() -> Iterator[Callable[[int], int]]:
    """Chooses how many threads hash, until the benchmark is over."""
    yield _hash_threads
    _hash_threads(0)


# ---- an image --------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="key of a 600 KB image")
def bench_infercache_image(measure: Measure) -> None:
    wanted = [Wanted("sha256_image", at_most=1 / 3), Wanted("joblib_hash_image", at_most=1 / 8)]
    measure(times(CALLS, ours(IMAGE)), operations=CALLS, wanted=wanted)


@pytest.mark.benchmark(group="key of a 600 KB image")
def bench_infercache_image_of_one_thread(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(1)
    measure(times(CALLS, ours(IMAGE)), operations=CALLS)


@pytest.mark.benchmark(group="key of a 600 KB image")
def bench_sha256_image(measure: Measure) -> None:
    measure(times(CALLS, lambda: hashlib.sha256(IMAGE).digest()), operations=CALLS)


@pytest.mark.benchmark(group="key of a 600 KB image")
def bench_joblib_hash_image(measure: Measure) -> None:
    measure(times(CALLS, lambda: joblib.hash(IMAGE)), operations=CALLS)


@pytest.mark.benchmark(group="key of a 600 KB image")
def bench_vllm_image(measure: Measure) -> None:
    measure(times(CALLS, vllm(IMAGE)), operations=CALLS)


# ---- 64 MB, and what memory allows -----------------------------------------------------------------------------------


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_infercache_two_threads(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(2)
    wanted = [Wanted("infercache_one_thread", at_most=1 / 1.5), Wanted("vllm", at_most=1.0)]
    measure(ours(LARGE), rounds=15, wanted=wanted)


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_infercache_one_thread(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(1)
    measure(ours(LARGE), rounds=15)


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_infercache_as_is_best(measure: Measure) -> None:
    measure(ours(LARGE), rounds=15)


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_vllm(measure: Measure) -> None:
    measure(vllm(LARGE), rounds=15)


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_sha256(measure: Measure) -> None:
    measure(lambda: hashlib.sha256(LARGE).digest(), rounds=5)


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_read_only_pass_of_one_thread(measure: Measure) -> None:
    words = LARGE.view("u8")
    measure(words.max, rounds=15)


@pytest.mark.benchmark(group="key of a 64 MB array")
def bench_memcpy_of_one_thread(measure: Measure) -> None:
    target = np.empty_like(LARGE)
    measure(lambda: np.copyto(target, LARGE), rounds=15)


# ---- strided ---------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="key of a batch of 32 images, 19 MB, channels first by transpose")
def bench_infercache_batch(measure: Measure) -> None:
    wanted = [Wanted("vllm_batch", at_most=0.8), Wanted("contiguous_copy_and_blake3_batch", at_most=0.8)]
    measure(ours(BATCH), rounds=15, wanted=wanted)


@pytest.mark.benchmark(group="key of a batch of 32 images, 19 MB, channels first by transpose")
def bench_infercache_batch_of_one_thread(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(1)
    measure(ours(BATCH), rounds=15)


@pytest.mark.benchmark(group="key of a batch of 32 images, 19 MB, channels first by transpose")
def bench_infercache_batch_of_two_threads(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(2)
    measure(ours(BATCH), rounds=15)


def copied(array: np.ndarray[Any, Any]) -> Callable[[], bytes]:
    """A contiguous copy, then its BLAKE3."""
    return lambda: blake3.blake3(np.ascontiguousarray(array).reshape(-1).view("u1")).digest()


@pytest.mark.benchmark(group="key of a batch of 32 images, 19 MB, channels first by transpose")
def bench_contiguous_copy_and_blake3_batch(measure: Measure) -> None:
    measure(copied(BATCH), rounds=15)


@pytest.mark.benchmark(group="key of a batch of 32 images, 19 MB, channels first by transpose")
def bench_vllm_batch(measure: Measure) -> None:
    measure(vllm(BATCH), rounds=15)


@pytest.mark.benchmark(group="key of a transposed 4000 × 3000 matrix of float32")
def bench_infercache_transposed(measure: Measure) -> None:
    wanted = [Wanted("vllm_transposed", at_most=0.5), Wanted("contiguous_copy_and_blake3_transposed", at_most=0.5)]
    measure(ours(MATRIX), rounds=10, wanted=wanted)


@pytest.mark.benchmark(group="key of a transposed 4000 × 3000 matrix of float32")
def bench_infercache_transposed_one_thread(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(1)
    measure(ours(MATRIX), rounds=10)


@pytest.mark.benchmark(group="key of a transposed 4000 × 3000 matrix of float32")
def bench_infercache_transposed_two_threads(measure: Measure, threads: Callable[[int], int]) -> None:
    threads(2)
    wanted = Wanted("infercache_transposed_one_thread", at_most=1 / 1.5)
    measure(ours(MATRIX), rounds=10, wanted=wanted)


@pytest.mark.benchmark(group="key of a transposed 4000 × 3000 matrix of float32")
def bench_contiguous_copy_and_blake3_transposed(measure: Measure) -> None:
    measure(copied(MATRIX), rounds=10)


@pytest.mark.benchmark(group="key of a transposed 4000 × 3000 matrix of float32")
def bench_vllm_transposed(measure: Measure) -> None:
    measure(vllm(MATRIX), rounds=10)
