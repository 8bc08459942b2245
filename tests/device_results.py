"""What test_device_memoize.py runs in processes of its own: a library's tensor class is looked up once a process, so
one that has seen a stand-in for torch is of no use to the tests of the real one; and JAX's threads warn of every fork.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from infercache import Cache, UncacheableResult, UnreadableEntry

RANDOM = np.random.default_rng(3)
DTYPES = ["bool", "int8", "uint16", "int32", "float16", "float32", "complex64", "bfloat16", "float8_e5m2"]


def _elements(dtype: str, *shape: int) -> np.ndarray:
    drawn = RANDOM.integers(0, 2 if dtype == "bool" else 100, shape)
    return drawn.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def torch_results() -> None:
    """A torch tensor on a device comes back as one, by one copy to the device."""
    from device_stand_in import fresh

    with pytest.MonkeyPatch.context() as patch:
        device = fresh(patch)
        patch.setitem(sys.modules, "torch", device.torch)
        cache, runs = Cache("16MB"), []

        @cache.memoize(model="m", version="1", operation="f")
        def double(image: Any, nested: bool = False) -> Any:
            runs.append(image)
            made = device.torch.Tensor(np.zeros(image.shape, np.float32))
            device.give(lambda: np.multiply(image.elements, 2, out=made.elements))
            return {"made": made, "n": 1} if nested else made

        host = _elements("float32", 300, 200)
        for nested in (False, True):
            runs.clear()
            image = device.torch.Tensor(host.copy())
            missed = double(image, nested)
            device.count.clear()
            hit = double(device.torch.Tensor(host.copy()), nested)
            assert len(runs) == 1, (runs, cache.stats())
            assert device.count["to device"] == 1
            assert device.count["pinned"] == 1
            assert device.count["to host"] == 0
            for found in (missed, hit):
                tensor = found["made"] if nested else found
                assert type(tensor) is device.torch.Tensor
                assert tensor.where == "cuda"
                assert tensor.dtype == "torch.float32"
                assert np.array_equal(tensor.elements, host * 2)
        assert cache.stats().hits_l1 == 2


def torch_batches() -> None:
    """A batch of device tensors: one launch for the keys, one copy for the result, rows asked for once."""
    from device_stand_in import fresh

    with pytest.MonkeyPatch.context() as patch:
        device = fresh(patch)
        patch.setitem(sys.modules, "torch", device.torch)
        cache, runs = Cache("16MB"), []

        @cache.memoize_batch(model="m", version="1", operation="f", over="images")
        def means(images: Any, scale: Any = None) -> Any:
            runs.append(len(images))
            device.finish()
            return device.torch.Tensor(np.array([[image.elements.mean()] for image in images], np.float32))

        hosts = [_elements("float32", 300 + n, 100) for n in range(5)]
        expected = np.array([[host.mean()] for host in hosts], np.float32)

        def ask(some: list[np.ndarray]) -> Any:
            return means(
                [device.torch.Tensor(host.copy()) for host in some], scale=device.torch.Tensor(hosts[0].copy())
            )

        assert np.array_equal(ask(hosts[:3]).elements, expected[:3])
        device.count.clear()
        answer = ask(hosts)
        assert runs == [3, 2]
        assert np.array_equal(answer.elements, expected)
        assert answer.where == "cuda"
        device.count.clear()
        assert np.array_equal(ask(hosts[::-1]).elements, expected[::-1])
        assert runs == [3, 2]
        assert device.count["chunks"] == 1  # of six tensors, one of which stands in every document
        assert device.count["copies back"] == 1
        assert device.count["to device"] == 1
        # Their keys by themselves wait for nothing.
        device.count.clear()
        keys = means.key(
            [device.torch.Tensor(host.copy()) for host in hosts], scale=device.torch.Tensor(hosts[0].copy())
        )
        assert device.count["waits"] == 0
        assert [cache.get(key) is not None for key in keys] == [True] * 5
        # One tensor whose rows are the items.
        runs.clear()
        stack = np.stack([host[:300] for host in hosts])
        means(device.torch.Tensor(stack[:2].copy()))
        assert np.array_equal(means(device.torch.Tensor(stack.copy())).elements, stack.mean((1, 2))[:, None])
        assert runs == [2, 3], runs


def _check_jax(jax: Any) -> None:
    import jax.numpy as jnp

    cache, runs = Cache("16MB"), []

    @cache.memoize(model="m", version="1", operation="f")
    def same(array: Any, nested: bool = False) -> Any:
        runs.append(1)
        return [array, "x"] if nested else array

    for dtype in DTYPES:
        host = _elements(dtype, 3, 4)
        for nested in (False, True):
            found = [same(host_array, nested) for host_array in (jax.device_put(host), jax.device_put(host))]
            for value in found:
                array = value[0] if nested else value
                assert isinstance(array, jax.Array)
                assert array.dtype == host.dtype
                assert np.array_equal(np.asarray(array).view(np.uint8), host.view(np.uint8))
    assert len(runs) == 2 * len(DTYPES)
    assert same(jnp.float32(2.5)).shape == same(jnp.float32(2.5)).shape == ()

    @cache.memoize_batch(model="m", version="1", operation="g", over="texts")
    def embed(texts: list[str]) -> Any:
        return jnp.array([[len(text), 1.0] for text in texts])

    first, second = embed(["a", "bb"]), embed(["bb", "ccc", "a"])
    assert isinstance(second, jax.Array)
    assert first.tolist() == [[1.0, 1.0], [2.0, 1.0]]
    assert second.tolist() == [[2.0, 1.0], [3.0, 1.0], [1.0, 1.0]]

    @cache.memoize_batch(model="m", version="1", operation="h", over="rows")
    def total(rows: Any) -> Any:
        assert isinstance(rows, jax.Array)
        runs.append(len(rows))
        return rows.sum(1)

    runs.clear()
    rows = jnp.arange(12.0).reshape(4, 3)
    total(rows[:2])
    assert total(rows).tolist() == [3.0, 12.0, 21.0, 30.0]
    assert runs == [2, 2]


def jax_results() -> None:
    """JAX arrays come back as such, of every dtype, from real JAX on the CPU."""
    import jax

    _check_jax(jax)
    cache = Cache("16MB")

    @cache.memoize(model="m", version="1", operation="weak")
    def weak() -> Any:
        made = jax.numpy.asarray(1.0)
        assert made.weak_type
        return made

    with pytest.warns(UncacheableResult, match="weak type"):
        weak()


def jax_without_64_bits() -> None:
    """A result of 64 bits, stored where JAX had them, is a miss where it has not, and says so."""
    import jax

    jax.config.update("jax_enable_x64", True)
    cache, runs = Cache("16MB"), []

    @cache.memoize(model="m", version="1", operation="f")
    def wide() -> Any:
        runs.append(1)
        return jax.numpy.ones(3)

    assert wide().dtype == wide().dtype == np.float64
    jax.config.update("jax_enable_x64", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert wide().dtype == np.float32
    assert len(runs) == 2
    assert cache.stats().misses == 2


def cupy_results() -> None:
    """CuPy arrays come back as such; without a device the entry is a miss, warned of once."""
    from device_stand_in import fresh

    with pytest.MonkeyPatch.context() as patch:
        device = fresh(patch)
        cache, runs = Cache("16MB"), []

        @cache.memoize(model="m", version="1", operation="f")
        def scaled(image: Any, order: str = "C") -> Any:
            runs.append(1)
            device.finish()
            return device.cupy.ndarray(np.array(image.elements * 2, order=order))

        host = _elements("float32", 300, 200)
        for order in ("C", "F"):
            scaled(device.cupy.ndarray(host), order)
            device.count.clear()
            hit = scaled(device.cupy.ndarray(host), order)
            assert device.count["to device"] == 1
            assert device.count["to host"] == 0
            assert type(hit) is device.cupy.ndarray
            assert np.array_equal(hit.elements, host * 2)
            assert hit.elements.flags.f_contiguous == (order == "F")
        assert len(runs) == 2

        @cache.memoize_batch(model="m", version="1", operation="g", over="rows")
        def sums(rows: Any) -> Any:
            assert type(rows) is device.cupy.ndarray
            runs.append(len(rows))
            device.finish()
            return device.cupy.ndarray(rows.elements.sum(1))

        runs.clear()
        sums(device.cupy.ndarray(host[:2]))
        assert np.array_equal(sums(device.cupy.ndarray(host[:5])).elements, host[:5].sum(1))
        assert runs == [2, 3], runs

        def gone(*_: Any, **__: Any) -> Any:
            raise device.cupy.cuda.runtime.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

        patch.setattr(device.cupy, "array", gone)
        keys = [scaled.key(device.cupy.ndarray(host), order) for order in ("C", "F")]
        before = cache.stats()
        with pytest.warns(UnreadableEntry, match="result of CuPy on a device.*no CUDA-capable device") as warned:
            assert [cache.get(key) for key in keys] == [None, None]
        assert len(warned) == 2  # and one of `Cache.get` itself
        assert cache.stats().misses == before.misses + 2
        assert cache.stats().hits_l1 == before.hits_l1


def cupy_out_of_memory() -> None:
    """A hit for which the device has no memory is a miss: the model is asked."""
    from device_stand_in import fresh

    with pytest.MonkeyPatch.context() as patch:
        device = fresh(patch)
        cache = Cache("16MB")

        @cache.memoize(model="m", version="1", operation="f")
        def made(n: int) -> Any:
            return device.cupy.ndarray(np.full(n, n, np.float32))

        made(3)
        array = device.cupy.array

        def full(*_: Any, **__: Any) -> Any:
            patch.setattr(device.cupy, "array", array)
            raise device.cupy.cuda.memory.OutOfMemoryError("Out of memory allocating 12 bytes")

        patch.setattr(device.cupy, "array", full)
        with pytest.warns(UnreadableEntry, match="no memory for the 12 bytes of a stored result of CuPy"):
            assert made(3).elements.tolist() == [3.0, 3.0, 3.0]
        assert cache.stats().misses == 2


if __name__ == "__main__":
    globals()[sys.argv[1]]()
