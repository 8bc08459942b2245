"""On a GPU: keys of tensors of CuPy, torch and JAX, and results that live there. `make test-gpu` runs it.

What needs no GPU is in test_device.py and test_device_memoize.py.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import infercache
from infercache import Cache, Key
from infercache.gpu.tensors import locate

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'infercache[gpu-cuda12]', or -cuda13")


def unusable() -> str | None:
    """Why there is no GPU here."""
    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "CUDA finds no device"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return str(error)


pytestmark = pytest.mark.skipif(unusable() is not None, reason=f"no GPU that can be used: {unusable()}")

RNG = np.random.default_rng(7)
SHAPES = [(), (0, 3), (3, 4), (300, 200), (2_000, 1_001)]
LIBRARIES = ["cupy", "torch", "jax"]


def key(value: object) -> Key:
    return infercache.key(value, model="m", version="1")


def to_device(name: str) -> Callable[[np.ndarray], Any]:
    """What puts an array on the GPU with a library; skips where that has none."""
    if name == "cupy":
        return cupy.asarray  # type: ignore[no-any-return]
    try:
        library: Any = importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")
    if name == "torch":
        if not library.cuda.is_available():
            pytest.skip("torch finds no GPU")
        return lambda host: library.from_numpy(host.copy()).to("cuda")
    if library.default_backend() != "gpu":
        pytest.skip("JAX finds no GPU")
    return library.device_put  # type: ignore[no-any-return]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32", "complex64", "bool"])
def test_a_tensor_has_the_key_of_the_array_on_the_host(library: str, shape: tuple[int, ...], dtype: str) -> None:
    host = np.asarray(RNG.integers(0, 2, shape)).astype(dtype)
    tensor = to_device(library)(host)
    assert locate(tensor) is not None
    assert key({"image": tensor}) == key({"image": host})


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_told_from_float16(library: str, shape: tuple[int, ...]) -> None:
    host = np.asarray(RNG.random(shape)).astype(ml_dtypes.bfloat16)
    if library == "torch":
        bits = to_device("torch")(host.view(np.int16))
        tensor = bits.view(importlib.import_module("torch").bfloat16)
    else:
        tensor = to_device("jax")(host)
    assert key(tensor) == key(host)
    assert key(tensor) != key(host.view(np.float16))


def test_float8_of_jax() -> None:
    host = RNG.random((300, 500)).astype(ml_dtypes.float8_e5m2)
    assert key(to_device("jax")(host)) == key(host)


@pytest.mark.parametrize("library", ["cupy", "torch"])
@pytest.mark.parametrize("shape", [(30, 40), (3_000, 2_000), (6_000, 2_000)])
def test_layouts(library: str, shape: tuple[int, int]) -> None:
    host = RNG.random(shape, dtype=np.float32)
    tensor = to_device(library)(host)
    views = [lambda t: t.T, lambda t: t[::2, 1::3], lambda t: t[5:], lambda t: t[:, :1]]
    if library == "cupy":
        views.append(lambda t: t[::-1, ::-1])
    for view in views:
        assert key(view(tensor)) == key(view(host))


def test_conjugate_and_negative_bits_of_torch() -> None:
    host = (RNG.random((300, 300)) + 1j * RNG.random((300, 300))).astype(np.complex64)
    tensor = to_device("torch")(host)
    assert key(tensor.conj()) == key(host.conj())
    assert key(tensor.conj().imag) == key(host.conj().imag)


@pytest.mark.parametrize("library", ["cupy", "torch"])
@pytest.mark.parametrize("shape", [(30, 40), (5_000, 5_000)])
@pytest.mark.parametrize("own_stream", [False, True])
def test_a_tensor_that_is_overwritten_later_on_the_stream_keeps_the_key_of_what_it_was(
    library: str, shape: tuple[int, int], own_stream: bool
) -> None:
    host = RNG.random(shape, dtype=np.float32)
    put = to_device(library)
    if library == "cupy":
        stream: Any = cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null
        within: Any = stream
    else:
        torch = importlib.import_module("torch")
        stream = torch.cuda.Stream() if own_stream else torch.cuda.current_stream()
        within = torch.cuda.stream(stream)
    with within:
        tensor = put(host)
        tensor *= 2
        doubled = key(tensor)
        tensor *= 0
        zeroed = key(tensor)
    assert doubled == key(host * 2)
    assert zeroed == key(host * 0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_result_comes_back_on_the_device(library: str) -> None:
    put, cache, runs = to_device(library), Cache("256MB"), []

    @cache.memoize(model="m", version="1", operation="double")
    def double(image: Any) -> Any:
        runs.append(1)
        return image + image

    host = RNG.random((300, 200), dtype=np.float32)
    missed, hit = double(put(host)), double(put(host))
    assert runs == [1]
    for found in (missed, hit):
        assert type(found) is type(put(host))
        assert locate(found) is not None
        assert key(found) == key(host + host)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_batch_asks_for_what_is_new(library: str) -> None:
    put, cache, runs = to_device(library), Cache("256MB"), []

    @cache.memoize_batch(model="m", version="1", operation="sums", over="rows")
    def sums(rows: Any) -> Any:
        runs.append(len(rows))
        return rows.sum(1)

    host = RNG.random((6, 30_000), dtype=np.float32)
    sums(put(host[:2]))
    found = sums(put(host))
    assert runs == [2, 4]
    assert locate(found) is not None
    assert np.allclose(cupy.asnumpy(cupy.from_dlpack(found)), host.sum(1), rtol=1e-4)


@pytest.mark.parametrize("bits", ["conjugated", "negated", "both"])
def test_torchs_promises_of_signs_have_the_key_of_the_host(bits: str) -> None:
    to_device("torch")
    torch: Any = importlib.import_module("torch")
    host = torch.randn(300, 400, dtype=torch.complex64)
    host[0, 0] = complex(float("nan"), float("nan"))
    there = host.to("cuda")
    for tensors in ((host, there), (host.T, there.T), (host[::2, 1::3], there[::2, 1::3])):
        for change in {"conjugated": [torch.conj], "negated": [torch._neg_view], "both": [torch.conj, torch._neg_view]}[
            bits
        ]:
            tensors = tuple(change(tensor) for tensor in tensors)
        assert key(tensors[1]) == key(tensors[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_state_dict_on_the_device_has_the_fingerprint_of_the_host(library: str) -> None:
    put = to_device(library)
    state = {f"p{number}": RNG.random((100 + number, 300), np.float32) for number in range(100)}
    there = {name: put(value) for name, value in state.items()}
    assert infercache.model_fingerprint(there) == infercache.model_fingerprint(state)


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_event_loop_goes_on_while_the_device_computes_a_key(library: str) -> None:
    put, cache, runs = to_device(library), Cache("16MB"), []

    @cache.memoize(model="m", version="1", operation="f")
    async def double(image: Any) -> Any:
        runs.append(1)
        return image * 2

    async def ask() -> int:
        image = put(RNG.random((4_000, 4_000), np.float32))
        waiting = asyncio.ensure_future(double(image))
        turns = 0
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0)
        assert float((await double(image)).sum()) == float((await waiting).sum())
        return turns

    assert asyncio.run(ask()) > 2
    assert len(runs) == 1
