"""Keys of tensors on a device: those of the same tensors on the host, lazy, and of what the tensors were when asked."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import infercache
from device_stand_in import Exporter, StandIn, fresh
from infercache import Cache, DeviceError, Key, UnsupportedInput
from infercache.gpu import digests, hashing
from infercache.gpu.tensors import DeviceTensor, locate

LARGE = hashing.HOST_BELOW  # bytes from which the device hashes
RNG = np.random.default_rng(7)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device of a kind."""
    return fresh(monkeypatch)


def key(value: object) -> Key:
    return infercache.key(value, model="m", version="1")


def floats(*shape: int) -> np.ndarray:
    return RNG.random(shape, dtype=np.float32)


LAYOUTS: dict[str, Callable[[], np.ndarray]] = {
    "small": lambda: floats(3, 4),
    "large": lambda: floats(300, 200),
    "0-d": lambda: np.array(1.5),
    "empty": lambda: floats(0, 7),
    "fortran": lambda: np.asfortranarray(floats(300, 200)),
    "transposed": lambda: floats(200, 300).T,
    "sliced": lambda: floats(400, 400)[::2, 1::3],
    "reversed": lambda: floats(300, 200)[::-1, ::-1],
    "broadcast": lambda: np.broadcast_to(floats(1, 200), (300, 200)),
    "bool": lambda: RNG.random((600, 400)) > 0.5,
    "complex": lambda: (floats(200, 200) + 1j * floats(200, 200)).astype(np.complex128),
    "int8": lambda: RNG.integers(-128, 128, 200_001, dtype=np.int8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cupy_array_has_the_key_of_the_array_on_the_host(stand_in: StandIn, layout: str) -> None:
    host = LAYOUTS[layout]()
    array = stand_in.cupy.ndarray(host)
    assert key(["x", array, 1]) == key(["x", host, 1])
    assert infercache.canonical_json(array) == infercache.canonical_json(host)
    assert stand_in.count["to host"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_torch_tensor_has_the_key_of_the_array_on_the_host(
    stand_in: StandIn, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    host = LAYOUTS[layout]()
    assert key(stand_in.torch.Tensor(host)) == key(host)
    assert stand_in.count["to host"] == 0


@settings(max_examples=40)
@given(data=st.data())
def test_any_strides_give_the_key_of_the_host(data: st.DataObject) -> None:
    base = RNG.integers(0, 256, 16_384, dtype=np.uint8).view(data.draw(st.sampled_from(["u1", "i2", "f4", "c8"])))
    axes = data.draw(st.integers(0, 4))
    shape = tuple(data.draw(st.integers(0, 5)) for _ in range(axes))
    steps = tuple(data.draw(st.integers(-20, 20)) for _ in range(axes))
    low = sum(min(0, (n - 1) * step) for n, step in zip(shape, steps, strict=True) if n)
    host = np.lib.stride_tricks.as_strided(base[-low:], shape, tuple(step * base.itemsize for step in steps))
    with pytest.MonkeyPatch.context() as patch:
        device = fresh(patch)
        patch.setattr(hashing, "HOST_BELOW", data.draw(st.sampled_from([0, LARGE])))
        patch.setattr(digests, "COMPACT_UP_TO", data.draw(st.sampled_from([0, 1 << 20])))
        assert key(device.cupy.ndarray(host)) == key(host.copy())


def test_the_dtype_is_the_owners_word(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    bits = RNG.integers(0, 1 << 16, (300, 300), dtype=np.uint16)
    assert key(stand_in.torch.Tensor(bits, dtype="bfloat16")) == key(bits.view(ml_dtypes.bfloat16))
    assert key(stand_in.torch.Tensor(bits, dtype="float16")) == key(bits.view(np.float16))
    octets = bits.view(np.uint8)
    assert key(stand_in.torch.Tensor(octets, dtype="float8_e5m2")) == key(octets.view(ml_dtypes.float8_e5m2))


def test_a_dtype_without_a_form_is_refused_with_the_path(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    tensor = stand_in.torch.Tensor(np.zeros(4, np.uint8), dtype="bits8")
    with pytest.raises(UnsupportedInput, match=r"^input\.image: torch\.Tensor: a tensor of dtype bits8 has no form"):
        key({"image": tensor})
    with pytest.raises(UnsupportedInput, match=r"^input\[0\]: .*Exporter: a tensor of dtype of DLPack's code 3"):
        key([Exporter(stand_in, np.zeros(4, np.uint8), code=3)])


def test_sparse_and_quantized_tensors_are_refused_as_on_the_host(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    sparse, quantized = (stand_in.torch.Tensor(floats(3, 3)) for _ in range(2))
    sparse.layout, quantized.is_quantized = "torch.sparse_coo", True
    for tensor in (sparse, quantized):
        assert locate(tensor) is None
        with pytest.raises(UnsupportedInput, match=r"pass tensor\.to_dense\(\) or its dequantized values"):
            key(tensor)


# ---- DLPack ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["small", "large", "sliced", "reversed", "0-d", "empty"])
@pytest.mark.parametrize("kind", [2, 13])
def test_whatever_exports_cuda_memory_has_the_key_of_the_host(stand_in: StandIn, layout: str, kind: int) -> None:
    host = LAYOUTS[layout]()
    exporter = Exporter(stand_in, host, code=2, kind=kind)
    assert bytes(key(exporter)) == bytes(key(host))
    assert exporter.exports == 0  # given back


@pytest.mark.parametrize(("current", "told"), [(0, 1), (2, 2), (0x77, 0x77)])
def test_an_exporter_is_told_the_consumers_stream(stand_in: StandIn, current: int, told: int) -> None:
    host = floats(300, 200)
    exporter = Exporter(stand_in, np.zeros_like(host), code=2)
    stand_in.give(lambda: np.copyto(exporter.elements, host), exporter.stream)  # which ours has to wait for
    with stand_in.cupy.cuda.ExternalStream(current):
        found = key(exporter)
    assert exporter.consumers == [told]
    assert found == key(host)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0, "int16"), (1, "uint16"), (2, "float16"), (4, "bfloat16"), (5, "complex64"), (6, "bool"), (7, "float8_e3m4")]
    + [(8, "float8_e4m3"), (9, "float8_e4m3b11fnuz"), (10, "float8_e4m3fn"), (11, "float8_e4m3fnuz")]
    + [(12, "float8_e5m2"), (13, "float8_e5m2fnuz"), (14, "float8_e8m0fnu")],
)
def test_dlpacks_dtypes_are_the_specifications(stand_in: StandIn, code: int, dtype: str) -> None:
    host = RNG.integers(0, 2, (40, 50), dtype=np.uint8).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    assert key(Exporter(stand_in, host, code=code)) == key(host)


def test_an_export_lives_until_the_key_is_joined(stand_in: StandIn) -> None:
    host = floats(300, 200)
    exporter = Exporter(stand_in, host, code=2)
    lazy = key(exporter)
    assert exporter.exports == 1
    str(lazy)
    assert exporter.exports == 0


class _Gpu:
    platform = "gpu"


class _JaxArray(Exporter):
    dtype: Any
    exportable = True

    def __dlpack__(self, *, stream: Any = None) -> Any:
        if not self.exportable:
            raise BufferError("no such type in DLPack")
        return super().__dlpack__(stream=stream)

    shape = property(lambda self: self.elements.shape)

    def devices(self) -> set[Any]:
        return {_Gpu()}

    def block_until_ready(self) -> None:
        self.stream.synchronize()

    def unsafe_buffer_pointer(self) -> int:
        return int(self.elements.ctypes.data)


@pytest.mark.parametrize("exportable", [True, False])
def test_a_jax_array_has_the_key_of_the_host(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, exportable: bool
) -> None:
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(Array=_JaxArray))
    host = RNG.random((300, 300)).astype(ml_dtypes.float8_e5m2)
    array = _JaxArray(stand_in, np.zeros_like(host), code=12)
    array.dtype, array.exportable = host.dtype, exportable
    stand_in.give(lambda: np.copyto(array.elements, host), array.stream)
    assert key(array) == key(host)


def test_memory_that_is_not_cudas_is_not_located(stand_in: StandIn) -> None:
    for kind in (1, 3, 8, 10, 11):
        assert locate(Exporter(stand_in, floats(3), code=2, kind=kind)) is None


def test_a_real_tensor_of_torch_or_jax_on_the_host_is_not_located() -> None:
    located = []
    for name, make in (("torch", "ones"), ("jax.numpy", "ones")):
        try:
            library = __import__(name, fromlist=["ones"])
        except ImportError:
            continue
        located.append(locate(getattr(library, make)((3, 2))))
    if not located:
        pytest.skip("neither torch nor JAX is installed")
    assert located == [None] * len(located)


# ---- lazy keys -------------------------------------------------------------------------------------------------------

CACHE = Cache("16MB")
ASKS: dict[str, Callable[[Key], object]] = {
    "bytes": bytes,
    "str": str,
    "repr": repr,
    "hash": hash,
    "==": lambda lazy: lazy == Key(bytes(32)),
    "<": lambda lazy: lazy < Key(bytes(32)),
    "pickle": pickle.dumps,
    "get": CACHE.get,
    "in": lambda lazy: lazy in CACHE,
    "set": lambda lazy: CACHE.set(lazy, 1),
    "delete": CACHE.delete,
    "lookup": CACHE.lookup,
    "get_many": lambda lazy: CACHE.get_many([lazy]),
    "get_or_compute": lambda lazy: CACHE.get_or_compute(lazy, lambda: 1),
    "invalidate": lambda lazy: CACHE.invalidate(key=lazy),
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("shape", [(3, 4), (300, 200)])
def test_nothing_is_joined_until_a_keys_bytes_are_asked_for(
    stand_in: StandIn, ask: str, shape: tuple[int, int]
) -> None:
    host = floats(*shape)
    lazy = key({"image": stand_in.cupy.ndarray.of(host), "text": "x"})
    copy = Key(lazy)
    assert stand_in.count["waits"] == 0
    ASKS[ask](lazy)
    waits = stand_in.count["waits"]
    assert waits == 1
    assert lazy == key({"image": host, "text": "x"}) == copy
    ASKS[ask](lazy)
    assert stand_in.count["waits"] == waits, "joined once, by the copy too"


@pytest.mark.parametrize("shape", [(3, 4), (300, 200)])
@pytest.mark.parametrize("strided", [False, True])
def test_a_tensor_that_is_overwritten_later_on_the_stream_keeps_the_key_of_what_it_was(
    stand_in: StandIn, shape: tuple[int, int], strided: bool
) -> None:
    host = floats(*shape)
    array = stand_in.cupy.ndarray(host.copy().T if strided else host.copy())
    expected = key(host.T if strided else host)
    array.fill_(host.T * 2 if strided else host * 2)  # work that comes before the key
    doubled = key(array)
    array.fill_(0)
    zeroed = key(array)
    stand_in.finish()
    assert bytes(doubled) == bytes(key(host.T * 2 if strided else host * 2))
    assert bytes(zeroed) == bytes(key(np.zeros_like(host.T if strided else host)))
    assert expected not in (doubled, zeroed)


def test_a_key_is_formed_on_the_current_stream(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    for make in (stand_in.cupy.ndarray, stand_in.torch.Tensor):
        host = floats(300, 200)
        tensor, lane = make(np.zeros_like(host)), stand_in.new_stream()
        with lane:
            tensor.fill_(host)
            lazy = key(tensor)
        assert lazy == key(host)


def test_many_threads_may_ask_a_key_for_its_bytes_at_once(stand_in: StandIn) -> None:
    host = floats(300, 200)
    lazy = key(stand_in.cupy.ndarray(host))
    found: list[bytes] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        found.append(bytes(lazy))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [bytes(key(host))] * 8
    assert stand_in.count["waits"] == 1


def test_other_threads_run_while_a_key_is_joined(stand_in: StandIn) -> None:
    host = floats(300, 200)
    lazy = key(stand_in.cupy.ndarray(host))
    reached, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        reached.set()
        assert go_on.wait(60)

    # As a stream that is not finished yet; the stand-in's waits are Python's, which release the interpreter too.
    stand_in.queue(0).operations.appendleft(stop)
    joining = threading.Thread(target=bytes, args=(lazy,))
    joining.start()
    assert reached.wait(60)
    assert key(host) is not None
    go_on.set()
    joining.join()
    assert lazy == key(host)


@pytest.mark.filterwarnings(
    "ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning"
)  # other libraries' threads
def test_the_child_of_a_fork_is_told_that_it_cannot_join(stand_in: StandIn) -> None:
    joined, open_ = (key(stand_in.cupy.ndarray(floats(300, 200))) for _ in range(2))
    text = str(joined)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"no error"
        try:
            assert str(joined) == text
            bytes(open_)
        except DeviceError as error:
            answer = str(error).encode()
        except BaseException as error:
            answer = repr(error).encode()
        finally:
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert b"child of a fork" in pipe.read()
    os.waitpid(child, 0)


# ---- one launch ------------------------------------------------------------------------------------------------------


def test_all_tensors_of_a_document_go_in_one_launch_with_one_copy_back(stand_in: StandIn) -> None:
    hosts = [floats(100 + n, 50) for n in range(20)]
    single = key(stand_in.cupy.ndarray(hosts[0]))
    str(single)
    stand_in.count.clear()
    lazy = key({"images": [stand_in.cupy.ndarray(host) for host in hosts], "mask": stand_in.cupy.ndarray(hosts[3].T)})
    assert stand_in.count["chunks"] == 1
    assert stand_in.count["copies back"] == 1
    assert lazy == key({"images": hosts, "mask": hosts[3].T})


def test_tensors_of_several_streams_go_in_one_launch_each(stand_in: StandIn) -> None:
    host, lane = floats(300, 200), stand_in.new_stream()
    exporter = Exporter(stand_in, host, code=2)
    tensors = [locate(stand_in.cupy.ndarray(host)), locate(stand_in.cupy.ndarray(host * 2))]
    with lane:
        tensors += [locate(stand_in.cupy.ndarray(host * 3)), locate(exporter)]
    begun = digests.begin([tensor for tensor in tensors if tensor is not None])
    assert stand_in.count["chunks"] == 2
    expected = [infercache.canonical_json(array) for array in (host, host * 2, host * 3, host)]
    assert [digest.hex() for digest in begun.join()] == [document[22:86].decode() for document in expected]


def test_a_small_tensor_is_hashed_by_the_host_from_one_copy(stand_in: StandIn) -> None:
    host = floats(3, 4)
    assert key([stand_in.cupy.ndarray(host), 1]) == key([host, 1])
    assert stand_in.count["launches"] == 0
    assert stand_in.to_host == [host.nbytes]


# ---- order that depends on digests -----------------------------------------------------------------------------------


def test_members_of_sets_and_names_of_maps_are_in_the_order_of_their_digests(stand_in: StandIn) -> None:
    hosts = [floats(200, 200) for _ in range(6)]
    arrays = [stand_in.cupy.ndarray(host) for host in hosts]
    forms = sorted(infercache.canonical_json(host) for host in hosts)
    assert infercache.canonical_json(set(arrays)) == b'{"$set":[' + b",".join(forms) + b"]}"
    numbered = {array: at for at, array in enumerate(arrays)}
    pairs = sorted((infercache.canonical_json(host), at) for at, host in enumerate(hosts))
    inside = b",".join(b"[" + form + b"," + str(at).encode() + b"]" for form, at in pairs)
    assert infercache.canonical_json(numbered) == b'{"$map":[' + inside + b"]}"
    # What follows, and what stands as a value, is filled in later, at its own place.
    mixed = infercache.canonical_json([{(1, arrays[0]): arrays[1]}, arrays[2], {frozenset(arrays[:2]): 1}])
    plain = [infercache.canonical_json(host) for host in hosts]
    first = b'{"$map":[[[1,' + plain[0] + b"]," + plain[1] + b"]]}"
    last = b'{"$map":[[{"$set":[' + b",".join(sorted(plain[:2])) + b"]},1]]}"
    assert mixed == b"[" + first + b"," + plain[2] + b"," + last + b"]"


def test_two_members_of_a_set_with_the_same_elements_are_an_error(stand_in: StandIn) -> None:
    host = floats(200, 200)
    with pytest.raises(UnsupportedInput, match="two members of one set have the form"):
        key({stand_in.cupy.ndarray(host), stand_in.cupy.ndarray(host)})


def test_explain_shows_the_digest(stand_in: StandIn) -> None:
    host = floats(300, 200)
    explained = infercache.explain({"image": stand_in.cupy.ndarray(host)}, model="m", version="1")
    assert explained == infercache.explain({"image": host}, model="m", version="1")


def test_a_subclass_of_cupys_arrays_is_refused_as_one_of_numpys_is(stand_in: StandIn) -> None:
    class Masked(stand_in.cupy.ndarray):  # type: ignore[misc, name-defined]
        """Elements, and some that do not count."""

    with pytest.raises(UnsupportedInput, match=r"^input\.image: .*subclass of cupy\.ndarray may hold more"):
        key({"image": Masked(np.zeros((3, 4), np.float32))})
    assert stand_in.count["waits"] == 0
    cache = Cache("1MB")

    @cache.memoize(model="m", version="1", operation="masked")
    def masked() -> Any:
        return Masked(np.zeros(3, np.float32))

    with pytest.warns(infercache.UncacheableResult):
        assert type(masked()) is Masked


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_without_cupy_the_error_names_the_extra(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    monkeypatch.setitem(sys.modules, "cupy", None)
    for shape in ((3, 4), (300, 200)):
        with pytest.raises(DeviceError, match=r"CuPy.*infercache\[gpu-cuda12\].*infercache\[gpu-cuda13\]") as raised:
            key({"image": stand_in.torch.Tensor(floats(*shape))})
    assert stand_in.count["to host"] == 0
    assert raised.value.args


def test_where_the_device_has_no_memory_the_bytes_go_through_the_host_and_that_is_counted(stand_in: StandIn) -> None:
    cache = Cache("1MB")
    before = cache.stats().hashed_on_host
    hosts = [floats(300, 200), floats(400, 400)[::2, 1::3]]
    stand_in.room = 512
    lazy = [key(stand_in.cupy.ndarray(host)) for host in hosts]
    stand_in.room = 1 << 40
    assert lazy == [key(host) for host in hosts]
    assert stand_in.count["launches"] == stand_in.count["gather"] == 1  # of the strided one, to the host's memory
    assert cache.stats().hashed_on_host == before + 2


@pytest.mark.parametrize(
    ("name", "says"), [("cudaErrorInsufficientDriver", "CUDA versions"), ("cudaErrorContextIsDestroyed", "context")]
)
def test_what_cuda_says_is_explained(stand_in: StandIn, name: str, says: str) -> None:
    stand_in.faults["launch"] = [stand_in.cupy.cuda.runtime.CUDARuntimeError(f"{name}: …")]
    array = stand_in.cupy.ndarray(floats(300, 200))
    with pytest.raises(DeviceError, match=says):
        key(array)
    assert key(array) == key(array.elements)  # the next one is not spoilt


def test_a_device_tensor_knows_whether_it_is_contiguous() -> None:
    def whole(host: np.ndarray) -> bool:
        return DeviceTensor("float32", host.shape, host.strides, host.itemsize, 0, 0, 0, None).whole

    for layout, make in LAYOUTS.items():
        host = make()
        assert whole(host) == (host.flags.c_contiguous or host.size == 0), layout
