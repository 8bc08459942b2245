"""Tensors of torch, JAX and others have the keys of arrays: docs/tensors.md.

JAX and torch are imported by the tests that need them, not before: the files whose tests fork come first, and a process
that has JAX warns when it forks.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from infercache import UnsupportedInput, canonical_json
from tensor_layouts import FLOAT8, RANDOM, SHAPES, OnlyDLPack, filled, scattered

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: bfloat16 and float8 are not tested")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed: `make torch` installs it")


@pytest.fixture(scope="module")
def jax() -> Any:
    return pytest.importorskip("jax", reason="JAX is not installed")


def dtype_of(value: Any) -> str:
    name = json.loads(canonical_json(value))["$tensor"]["dtype"]
    assert isinstance(name, str)
    return name


def of(dtype: str, content: bytes, shape: tuple[int, ...]) -> str:
    """The document of a tensor of these bytes."""
    lengths = ",".join(map(str, shape))
    return f'{{"$tensor":{{"blake3":"{reference.digest(content)}","dtype":"{dtype}","shape":[{lengths}]}}}}'


# ---- torch -----------------------------------------------------------------------------------------------------------

TORCH = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16"]
TORCH += ["float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"]
TORCH += ["float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("name", TORCH)
def test_every_torch_dtype_has_its_name_and_bits_in_every_layout(torch: Any, name: str) -> None:
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    content = bytes([1, 0] * 48) if name == "bool" else bytes(range(96))
    plain = torch.frombuffer(bytearray(content), dtype=dtype)
    count, item = plain.numel(), plain.element_size()
    raw = np.frombuffer(content, f"V{item}").reshape(count // 2, 2)
    assert canonical_json(plain).decode() == of(name, content, (count,))
    grid = plain.view(count // 2, 2)
    for tensor, elements in [
        (grid, raw),
        (grid.T, raw.T),
        (grid[1::2], raw[1::2]),
        (grid[:, 1], raw[:, 1]),
        (grid[0].expand(3, 2), np.broadcast_to(raw[0], (3, 2))),
        (grid[0, 1], raw[0, 1]),
        (grid[:0], raw[:0]),
        (grid.unsqueeze(1).permute(2, 1, 0), raw[:, None].transpose(2, 1, 0)),
    ]:
        assert canonical_json(tensor).decode() == of(name, elements.tobytes(), tuple(tensor.shape))
    known = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    assert canonical_json(plain) == canonical_json(np.frombuffer(content, known))


@given(shape=SHAPES, code=st.sampled_from(("?", "i1", "i4", "u2", "f2", "f4", "f8", "c8")), random=RANDOM)
def test_any_layout_of_torch_has_the_key_of_its_elements(torch: Any, shape: Any, code: str, random: Any) -> None:
    plain = filled(shape, code, random)
    spread = torch.from_numpy(scattered(plain, random, flips=False, bytes_too=False).copy(order="K"))
    spread = spread.clone(memory_format=torch.preserve_format)
    assert canonical_json(spread).decode() == reference.tensor(plain)
    wide = torch.zeros([2 * length for length in shape], dtype=spread.dtype)[tuple(slice(None, None, 2) for _ in shape)]
    wide.copy_(spread)
    assert canonical_json(wide).decode() == reference.tensor(plain)


def test_gradients_parameters_and_inference_mode_do_not_show(torch: Any) -> None:
    plain = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    expected = canonical_json(plain.numpy())
    needing = plain.clone().requires_grad_()
    assert canonical_json(needing) == expected
    assert canonical_json(needing * 1) == expected  # no leaf
    assert canonical_json(torch.nn.Parameter(plain)) == expected
    with torch.inference_mode():
        assert canonical_json(plain.clone()) == expected
    assert needing.grad is None and needing.requires_grad


def test_conjugate_and_negative_bits_are_resolved(torch: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.complex64, torch.complex128):
        plain = torch.randn(50, 40, dtype=dtype, generator=generator)
        plain[0, 0] = complex(float("nan"), float("nan"))
        plain[0, 1] = complex(0.0, -0.0)
        for made in (plain, plain.T, plain[::3, 1::2], plain[0, 0]):
            for tensor in (made.conj(), made.conj().imag):
                assert tensor.is_conj() or tensor.is_neg()
                resolved = tensor.resolve_conj().resolve_neg().contiguous()
                assert not (resolved.is_conj() or resolved.is_neg())
                assert canonical_json(tensor).decode() == reference.tensor(resolved.numpy())
            # torch's own negation of complex numbers gives -0.0 or 0.0 for 0.0 as the layout is; IEEE's turns the sign.
            negated = torch._neg_view(made)
            turned = made.numpy().copy(order="C").reshape(-1)
            turned.view("u1")[turned.itemsize // 2 - 1 :: turned.itemsize // 2] ^= 0x80
            assert canonical_json(negated).decode() == reference.tensor(turned.reshape(made.shape))
            assert canonical_json(negated.conj()).decode() == reference.tensor(turned.reshape(made.shape).conj())
    integers = torch._neg_view(torch.arange(5))
    assert canonical_json(integers) == canonical_json(-np.arange(5))
    zeros = torch._efficientzerotensor((2, 3))
    assert canonical_json(zeros) == canonical_json(np.zeros((2, 3), "f4"))


@pytest.mark.filterwarnings("ignore")  # torch warns of what is refused: quantized, nested, sparse CSR
def test_torch_tensors_without_elements_of_their_own_are_refused_clearly(torch: Any) -> None:
    plain = torch.ones(4, 4)

    class Tagged(torch.Tensor):  # type: ignore[misc, name-defined]
        """A subclass that might mean something else."""

    refused = {
        "layout torch.sparse_coo": plain.to_sparse(),
        "layout torch.sparse_csr": plain.to_sparse_csr(),
        "layout torch._mkldnn": plain.to_mkldnn(),
        "dtype quint8": torch.quantize_per_tensor(plain, 0.1, 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "subclass": plain.as_subclass(Tagged),
        "meta device": torch.empty(2, device="meta"),
        "dtype bits8": torch.empty(2, dtype=torch.bits8),
        "dtype uint4": torch.empty(2, dtype=torch.uint4),
    }
    for reason, value in refused.items():
        with pytest.raises(UnsupportedInput) as caught:
            canonical_json({"x": value})
        assert str(caught.value).startswith("input.x: torch") or "Tagged" in str(caught.value)
        assert reason in str(caught.value) or reason == "nested"

    seen: list[str] = []

    def inside(tensor: Any) -> Any:
        with pytest.raises(UnsupportedInput, match="cannot be read") as caught:
            canonical_json(tensor)
        seen.append(str(caught.value))
        return tensor.sum()

    torch.func.vmap(inside)(plain)
    torch.func.grad(inside)(plain)
    assert len(seen) == 2


def test_a_torch_tensor_can_still_be_resized_after_its_key_was_formed(torch: Any) -> None:
    tensor = torch.ones(10)
    before = canonical_json(tensor)
    tensor.resize_(1000)
    tensor.resize_(10)
    assert canonical_json(tensor) == before


def test_a_torch_tensor_whose_storage_was_shrunk_is_refused_and_nothing_beyond_it_is_read(torch: Any) -> None:
    for shape, left in (((1 << 20,), 16), ((8,), 4), ((4, 4), 60), ((4, 4), 0)):
        tensor = torch.ones(shape)
        for view in (tensor, tensor[1:], tensor.t(), tensor.expand(2, *shape)):
            tensor.untyped_storage().resize_(tensor.numel() * 4)
            before = canonical_json(view)
            tensor.untyped_storage().resize_(left)
            with pytest.raises(UnsupportedInput, match="it was shrunk"):
                canonical_json({"x": view})
            tensor.untyped_storage().resize_(tensor.numel() * 4)
            tensor.fill_(1)
            assert canonical_json(view) == before


def test_a_torch_tensor_that_is_mutated_afterwards_does_not_change_its_key(torch: Any) -> None:
    tensor = torch.zeros(5, 7).T
    before = canonical_json(tensor)
    kept = bytes(before)
    tensor[3, 2] = 1
    assert before == kept == canonical_json(torch.zeros(7, 5))
    assert canonical_json(tensor) != before


# ---- JAX -------------------------------------------------------------------------------------------------------------

JAX = ["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32", "complex64"]
JAX += FLOAT8


@pytest.mark.parametrize("name", JAX)
def test_every_jax_dtype_has_its_name_and_bits(jax: Any, name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    plain = np.frombuffer(bytes([1, 0] * 24), dtype).reshape(2, -1)
    made = jax.numpy.asarray(plain)
    expected = of(name, plain.tobytes(), plain.shape)
    assert canonical_json(made).decode() == expected
    assert canonical_json(OnlyDLPack(made)).decode() == expected
    assert canonical_json(OnlyDLPack(made, versioned=False)).decode() == expected
    assert canonical_json(plain).decode() == expected
    assert canonical_json(made.T).decode() == of(name, plain.T.tobytes(), plain.shape[::-1])
    assert canonical_json(made[:0]).decode() == of(name, b"", (0, plain.shape[1]))
    assert canonical_json(made[0, 1]).decode() == of(name, plain[0, 1].tobytes(), ())


@given(shape=SHAPES, code=st.sampled_from(("?", "i1", "i4", "u2", "f2", "f4", "c8")), random=RANDOM)
def test_any_array_of_jax_has_the_key_of_its_elements(jax: Any, shape: Any, code: str, random: Any) -> None:
    plain = filled(shape, code, random)
    made = jax.numpy.asarray(scattered(plain, random, bytes_too=False))
    assert canonical_json(made).decode() == reference.tensor(plain)
    assert canonical_json(OnlyDLPack(made)).decode() == reference.tensor(plain)


def test_an_array_of_jax_that_is_being_computed_is_waited_for(jax: Any) -> None:
    @jax.jit  # type: ignore[untyped-decorator]
    def slow(matrix: Any) -> Any:
        return jax.lax.fori_loop(0, 30, lambda _, so_far: so_far @ matrix / 300, matrix)

    matrix = jax.numpy.ones((300, 300))
    expected = reference.tensor(np.asarray(slow(matrix).block_until_ready()))
    for _ in range(3):
        assert canonical_json(slow(matrix)).decode() == expected
        assert canonical_json(OnlyDLPack(slow(matrix))).decode() == expected


def test_arrays_of_jax_without_elements_are_refused_clearly(jax: Any) -> None:
    deleted = jax.numpy.arange(3) + 1
    deleted.delete()
    with pytest.raises(UnsupportedInput, match="deleted"):
        canonical_json({"x": deleted})
    with pytest.raises(UnsupportedInput, match="int4"):
        canonical_json(jax.numpy.zeros(4, "int4"))
    with pytest.raises(UnsupportedInput, match="float4"):
        canonical_json(jax.numpy.zeros(4, "float4_e2m1fn"))
    with pytest.raises(UnsupportedInput, match="register_form"):
        canonical_json(jax.random.key(0))
    seen: list[str] = []

    def traced(value: Any) -> Any:
        with pytest.raises(UnsupportedInput, match="cannot be read") as caught:
            canonical_json([value])
        seen.append(str(caught.value))
        return value

    jax.jit(traced)(jax.numpy.ones(3))
    assert len(seen) == 1 and "\n" not in seen[0]


# ---- others ----------------------------------------------------------------------------------------------------------


class WithArray(OnlyDLPack):
    """As TensorFlow's and MLX's tensors: DLPack for what it can lend, `__array__` for all."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.held)


def test_what_dlpack_cannot_lend_is_read_through_array() -> None:
    swapped = np.arange(6, dtype=">f4").reshape(2, 3)  # NumPy lends the machine's byte order only
    assert canonical_json(WithArray(swapped)) == canonical_json(swapped)
    half = np.arange(6).astype(ml_dtypes.bfloat16)
    assert canonical_json(WithArray(half)) == canonical_json(half)
    assert dtype_of(WithArray(half)) == "bfloat16"
    with pytest.raises(UnsupportedInput, match="pass a NumPy array"):
        canonical_json(OnlyDLPack(half))


def test_an_array_that_may_hold_more_than_its_elements_is_refused() -> None:
    class Masked(WithArray):
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.ma.masked_array([1.0, 2.0], [True, False])

    class Unreadable:
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("locked")

    assert canonical_json(Masked(np.arange(2.0))) == canonical_json(np.arange(2.0))  # DLPack lends the elements
    with pytest.raises(UnsupportedInput, match="MaskedArray"):
        canonical_json(Masked(np.zeros(2, ">f8")))
    with pytest.raises(UnsupportedInput, match=r"cannot be read \(locked\)"):
        canonical_json(Unreadable())

    class OnlyArray:
        """As a pandas Series, whose index would be lost."""

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.zeros(3)

    with pytest.raises(UnsupportedInput, match="register_form"):
        canonical_json(OnlyArray())


LIBRARIES = "torch", "jax", "jaxlib", "cupy", "tensorflow", "mlx", "ml_dtypes", "PIL", "pandas", "pydantic"

NOTHING_IMPORTED = """
import array, json, sys
import numpy as np
from infercache import Cache, key
from tensor_layouts import OnlyDLPack

plain = np.arange(12, dtype="f4").reshape(3, 4)
made = [plain, plain.T, plain.astype(">f4"), memoryview(plain), OnlyDLPack(plain), array.array("d", [1.0]), b"bytes",
        np.float32(1), np.array(["text"]), {"a": [1, 2.5, None]}, bytearray(5), np.zeros((0, 3))]
for value in made:
    key(value, model="m", version="1")
cache = Cache("16MB")

@cache.memoize(model="m", version="1")
def model(tensor: object) -> np.ndarray:
    return np.zeros(3)

model(plain), model(OnlyDLPack(plain)), model(plain)
try:
    key(object(), model="m", version="1")
except TypeError as error:
    pass
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_no_library_is_imported_that_the_caller_has_not_imported() -> None:
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_IMPORTED], check=True, capture_output=True, text=True, env=environment
    )
    loaded = set(json.loads(done.stdout))
    assert "infercache" in loaded
    assert not loaded & set(LIBRARIES)
