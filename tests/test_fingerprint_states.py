"""The fingerprint of a state dict: its tensors hashed together, on the host and on a device of a kind."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import device_stand_in
import infercache
from device_stand_in import Exporter, StandIn
from infercache import DeviceError, _core, model_fingerprint
from infercache.fingerprint import states
from infercache.gpu import hashing

RNG = np.random.default_rng(17)
UNITS = st.sampled_from(["u1", "<f4", ">i2", "<c8", "?", "<f8"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A device of a kind."""
    return device_stand_in.fresh(monkeypatch)


def floats(*shape: int) -> np.ndarray:
    return RNG.random(shape, np.float32)


# ---- on the host -----------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> np.ndarray:
    array = RNG.integers(0, 2, draw(st.lists(st.integers(0, 4), max_size=3)), np.uint8).astype(draw(UNITS))
    return draw(st.sampled_from([array, array.T, array[::-1] if array.ndim else array, np.asfortranarray(array)]))


LEAVES = tensors() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])) | st.binary(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=2), inside, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_an_opened_document_filled_in_is_the_canonical_one(value: Any) -> None:
    try:
        expected = infercache.canonical_json(value)
    except infercache.UnsupportedInput:
        with pytest.raises(infercache.UnsupportedInput):
            _core._open_document(value)
        return
    document, holes = _core._open_document(value)
    arrays = [array for _, array in holes]
    assert all(isinstance(array, np.ndarray) and array.flags.c_contiguous for array in arrays)
    for (place, _), digest in zip(holes, _core._hash_arrays(arrays), strict=True):
        assert document[place : place + 64] == b"0" * 64
        document[place : place + 64] = digest.hex().encode()
    assert document == expected


def test_tensors_whose_digests_decide_an_order_are_hashed_at_once() -> None:
    class Member(np.ndarray):
        pass

    first, second = (bytes(RNG.integers(0, 256, 10, np.uint8)) for _ in range(2))
    value = [{(1, memoryview(first)): floats(3)}, frozenset([(memoryview(second), 1)]), floats(2)]
    document, holes = _core._open_document(value)
    assert len(holes) == 2
    for (place, _), digest in zip(holes, _core._hash_arrays([array for _, array in holes]), strict=True):  # type: ignore[misc]
        document[place : place + 64] = digest.hex().encode()
    assert document == infercache.canonical_json(value)
    with pytest.raises(infercache.UnsupportedInput, match="subclass of ndarray"):
        _core._open_document([floats(3).view(Member)])


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
def test_arrays_hashed_together_have_their_digests(threads: int | None) -> None:
    arrays = [RNG.integers(0, 256, size, np.uint8) for size in (0, 1, 1024, 262_144, 262_145, 3_000_000)]
    arrays += [floats(), floats(0, 3), floats(700, 300)]
    told: list[int] = []
    found = _core._hash_arrays(arrays, told.append, threads)
    assert [digest.hex() for digest in found] == [_core._blake3(array.tobytes()).hex() for array in arrays]
    assert told == sorted(told)
    assert _core._hash_arrays([], None, threads) == []
    with pytest.raises(ValueError, match="one after another"):
        _core._hash_arrays([floats(3, 4).T])


class Lazy(Mapping[str, Any]):
    """Parameters that are read when they are asked for, as of a model that does not fit into memory."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.count, self.shape = count, shape
        self.alive = self.most = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        return (f"p{number}" for number in range(self.count))

    def __getitem__(self, name: str) -> Any:
        made = np.full(self.shape, float(name[1:]), np.float32)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self.gone)
        return made

    def gone(self) -> None:
        self.alive -= 1


def test_a_mapping_that_reads_its_parameters_lazily_is_never_in_memory_as_a_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lazy = Lazy(60, (100, 100))
    expected = model_fingerprint(dict(lazy))
    monkeypatch.setattr(states, "MOST_BYTES", 10 * 40_000)
    lazy = Lazy(60, (100, 100))
    assert model_fingerprint(lazy) == expected
    assert lazy.most <= 12


def test_progress_of_a_state_dict_begins_grows_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MOST_TENSORS", 3)
    state = {"a": {f"w{number}": floats(100, 100) for number in range(10)}, "text": "x", "b": floats(7).astype(">f4")}
    told: list[tuple[int, int]] = []
    model_fingerprint(state, progress=lambda done, total: told.append((done, total)))
    total = 10 * 40_000 + 28
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert told == sorted(told)
    with pytest.raises(ZeroDivisionError):
        model_fingerprint(state, progress=lambda done, total: 1 / 0)


def test_a_registered_form_counts_for_a_tensor_of_a_state_dict() -> None:
    class Quantized:
        def __init__(self, codes: np.ndarray) -> None:
            self.codes = codes

    infercache.register_form(Quantized, "test.states.Quantized", lambda tensor: {"codes": tensor.codes})
    codes = RNG.integers(0, 256, (64, 64), np.uint8)
    assert model_fingerprint({"w": Quantized(codes)}) == model_fingerprint({"w": Quantized(codes.copy())})
    assert model_fingerprint({"w": Quantized(codes)}) != model_fingerprint({"w": codes})


# ---- on a device -----------------------------------------------------------------------------------------------------


def on_device(device: StandIn, state: dict[str, Any]) -> dict[str, Any]:
    """The same with its arrays on the device, as layers of a model have them."""
    return {
        name: on_device(device, value)
        if isinstance(value, dict)
        else device.cupy.ndarray(value)
        if isinstance(value, np.ndarray)
        else value
        for name, value in state.items()
    }


def test_a_state_dict_on_a_device_goes_in_one_launch_with_one_copy_back(stand_in: StandIn) -> None:
    state = {f"layers.{number}.weight": floats(200 + number, 64) for number in range(50)}
    state |= {"model": {"bias": floats(7), "strided": floats(300, 200).T, "empty": floats(0, 3)}, "step": 5}  # type: ignore[dict-item]
    assert model_fingerprint(on_device(stand_in, state)) == model_fingerprint(state)
    assert stand_in.count["chunks"] == 1
    assert stand_in.count["copies back"] == 1
    assert stand_in.count["waits"] == 1
    assert stand_in.count["to host"] == 0
    assert not stand_in.to_host


def test_a_launch_takes_a_bounded_number_of_parameters(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "HOST_BELOW", 0)
    state = {f"p{number}": floats(50, 50) for number in range(25)}
    for name, most, launches in (("MOST_TENSORS", 10, 3), ("MOST_BYTES", 70_000, 4)):
        stand_in.count.clear()
        with monkeypatch.context() as bounded:
            bounded.setattr(states, name, most)
            assert model_fingerprint(on_device(stand_in, state)) == model_fingerprint(state)
        assert stand_in.count["chunks"] == launches


def test_parameters_of_several_libraries_and_of_the_host_are_one_state_dict(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", stand_in.torch)
    hosts = [floats(300, 100) for _ in range(5)]
    state = {
        "cupy": stand_in.cupy.ndarray(hosts[0]),
        "torch": stand_in.torch.Tensor(hosts[1]),
        "other": Exporter(stand_in, hosts[2], code=2),
        "host": hosts[3],
        "strided": hosts[4].T,
    }
    plain = {"cupy": hosts[0], "torch": hosts[1], "other": hosts[2], "host": hosts[3], "strided": hosts[4].T}
    assert model_fingerprint(state) == model_fingerprint(plain)


def test_without_device_memory_a_state_dict_goes_through_the_host(stand_in: StandIn) -> None:
    state = {f"p{number}": floats(200, 200) for number in range(5)}
    before = infercache.Cache("1MB").stats().hashed_on_host
    stand_in.room = 0
    assert model_fingerprint(on_device(stand_in, state)) == model_fingerprint(state)
    assert infercache.Cache("1MB").stats().hashed_on_host == before + 1


def test_a_device_that_cannot_be_used_is_an_error(stand_in: StandIn) -> None:
    stand_in.faults["launch"] = [stand_in.cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: …")]
    with pytest.raises(DeviceError, match="freed"):
        model_fingerprint({"w": stand_in.cupy.ndarray(floats(300, 200))})
