"""DLPack capsules, read as their specification has them: versions, strides, types, and given back once."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import reference
from infercache import UnsupportedInput, canonical_json
from infercache._core import DLPackTensor
from tensor_layouts import FLOAT8

CPU, CUDA, PINNED, METAL = 1, 2, 3, 8
READ_ONLY = 1
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype = ctypes.c_char_p
capsule_name.argtypes = [ctypes.py_object]
Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Unversioned(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", Deleter)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    ]


class Lender:
    """A library's tensor, told in C by hand; counts how often it is given back."""

    def __init__(
        self,
        content: bytes,
        code: int,
        bits: int,
        shape: tuple[int, ...],
        *,
        strides: tuple[int, ...] | None = None,
        version: tuple[int, int] | None = (1, 1),
        device: int = CPU,
        lanes: int = 1,
        offset: int = 0,
        deleter: bool = True,
        address: int | None = None,
        axes: int | None = None,
    ) -> None:
        self.returned = 0
        self.asked: list[dict[str, Any]] = []
        self.version, self.device = version, device
        self.memory = ctypes.create_string_buffer(content, len(content) or 1)
        self.shape = (ctypes.c_int64 * len(shape))(*shape)
        self.strides = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
        self.managed = Unversioned() if version is None else Versioned()
        self.deleter = Deleter(self.give_back) if deleter else Deleter()
        self.managed.deleter = self.deleter
        if version is not None:
            self.managed.major, self.managed.minor = version
            self.managed.flags = READ_ONLY
        tensor = self.managed.tensor
        tensor.data = ctypes.addressof(self.memory) if address is None else address
        tensor.device_type, tensor.ndim = device, len(shape) if axes is None else axes
        tensor.code, tensor.bits, tensor.lanes, tensor.byte_offset = code, bits, lanes, offset
        tensor.shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        if self.strides is not None:
            tensor.strides = ctypes.cast(self.strides, ctypes.POINTER(ctypes.c_int64))

    def give_back(self, managed: int) -> None:
        assert managed == ctypes.addressof(self.managed)
        self.returned += 1

    def capsule(self) -> Any:
        name = b"dltensor" if self.version is None else b"dltensor_versioned"
        return new_capsule(ctypes.addressof(self.managed), name, None)

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        if self.version is None and options:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        return self.capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)


FLOATS = np.arange(24, dtype="f4")
PLAIN = FLOATS.tobytes()


@pytest.mark.parametrize("version", [None, (1, 0), (1, 1), (1, 9)])
def test_every_version_of_the_struct_is_read_and_given_back_once(version: tuple[int, int] | None) -> None:
    lender = Lender(PLAIN, 2, 32, (4, 6), version=version)
    assert canonical_json(lender) == canonical_json(FLOATS.reshape(4, 6))
    assert lender.returned == 1
    assert lender.asked[0] == {"max_version": (1, 1)}
    assert len(lender.asked) == (2 if version is None else 1)


@pytest.mark.parametrize(
    ("strides", "offset", "shape", "expected"),
    [
        (None, 0, (4, 6), FLOATS.reshape(4, 6)),
        ((6, 1), 0, (4, 6), FLOATS.reshape(4, 6)),
        ((1, 4), 0, (4, 6), FLOATS.reshape(6, 4).T),
        ((0, 1), 0, (3, 5), np.broadcast_to(FLOATS[:5], (3, 5))),
        ((-6, -1), 92, (4, 6), FLOATS.reshape(4, 6)[::-1, ::-1]),
        ((5,), 8, (4,), FLOATS[2::5][:4]),
        ((), 12, (), FLOATS[3]),
        (None, 12, (), FLOATS[3]),
        ((1, 1), 0, (0, 3), np.zeros((0, 3), "f4")),
    ],
)
def test_strides_and_offset_are_heeded(strides: Any, offset: int, shape: Any, expected: Any) -> None:
    lender = Lender(PLAIN, 2, 32, shape, strides=strides, offset=offset)
    assert canonical_json(lender).decode() == reference.tensor(np.asarray(expected))
    assert lender.returned == 1


CODES = [
    *[(0, bits, f"int{bits}") for bits in (8, 16, 32, 64)],
    *[(1, bits, f"uint{bits}") for bits in (8, 16, 32, 64)],
    *[(2, bits, f"float{bits}") for bits in (16, 32, 64)],
    (4, 16, "bfloat16"),
    *[(5, bits, f"complex{bits}") for bits in (64, 128)],
    (6, 8, "bool"),
    *[(code, 8, name) for code, name in enumerate(FLOAT8, start=7)],
]


@pytest.mark.parametrize(("code", "bits", "name"), CODES, ids=[name for *_, name in CODES])
def test_every_element_type_of_the_specification_has_its_bits(code: int, bits: int, name: str) -> None:
    content = bytes([1, 0] * 24)
    lender = Lender(content, code, bits, (48 * 8 // bits,))
    expected = f'{{"$tensor":{{"blake3":"{reference.digest(content)}","dtype":"{name}","shape":[{48 * 8 // bits}]}}}}'
    assert canonical_json(lender).decode() == expected


def test_no_other_element_type_is_read() -> None:
    known = {(code, bits) for code, bits, _ in CODES}
    for code, bits in itertools.product(range(20), (0, 1, 2, 4, 6, 8, 16, 32, 64, 128, 255)):
        if (code, bits) not in known:
            lender = Lender(PLAIN, code, bits, (3,))
            with pytest.raises(UnsupportedInput, match=rf"code {code}, {bits} bits, 1 lanes"):
                canonical_json(lender)
            assert lender.returned == 1


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: Lender(PLAIN, 2, 32, (3,), lanes=4), "4 lanes"),
        (lambda: Lender(PLAIN, 17, 4, (3,)), "float4, which is smaller than a byte"),
        (lambda: Lender(PLAIN, 16, 6, (3,)), "float6, which is smaller than a byte"),
        (lambda: Lender(PLAIN, 3, 64, (3,)), "opaque handle"),
        (lambda: Lender(PLAIN, 18, 8, (3,)), "later version of DLPack"),
        (lambda: Lender(PLAIN, 2, 32, (3,), version=(2, 0)), "version 2.0"),
        (lambda: Lender(PLAIN, 2, 32, (-3,)), r"shape \[-3"),
        (lambda: Lender(PLAIN, 2, 32, (1 << 40, 1 << 40)), r"shape \[1099"),
        (lambda: Lender(PLAIN, 2, 32, (3,), strides=(1 << 62,)), "strides"),
        (lambda: Lender(PLAIN, 2, 32, (3,), address=0), "no address"),
        (lambda: Lender(PLAIN, 2, 32, (1,) * 65), "65 axes"),
        (lambda: Lender(PLAIN, 2, 32, (1,), axes=-1), "-1 axes"),
    ],
)
def test_what_cannot_be_read_is_told_and_given_back_once(made: Callable[[], Lender], reason: str) -> None:
    lender = made()
    with pytest.raises(UnsupportedInput, match=reason) as caught:
        canonical_json({"x": [lender]})
    assert str(caught.value).startswith(f"input.x[0]: {Lender.__module__}.Lender: ")
    assert lender.returned == 1


def test_memory_of_a_device_is_never_read_as_the_hosts() -> None:
    with pytest.raises(UnsupportedInput, match=r"device \(2, 0\)"):
        DLPackTensor(Lender(PLAIN, 2, 32, (3,), device=CUDA).capsule())
    with pytest.raises(UnsupportedInput, match=r"device \(8, 0\)"):
        canonical_json(Lender(PLAIN, 2, 32, (3,), device=METAL))  # asked for a copy on the host, and gave none
    pinned = Lender(PLAIN, 2, 32, (24,), device=PINNED)
    assert canonical_json(pinned) == canonical_json(FLOATS)


def test_a_device_is_asked_for_a_copy_on_the_host() -> None:
    class OnDevice(Lender):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (METAL, 0)

    lender = OnDevice(PLAIN, 2, 32, (24,))
    assert canonical_json(lender) == canonical_json(FLOATS)
    assert lender.asked == [{"max_version": (1, 1), "dl_device": (1, 0)}]


def test_a_capsule_is_consumed_and_only_once() -> None:
    for version, name in ((None, b"used_dltensor"), ((1, 1), b"used_dltensor_versioned")):
        lender = Lender(PLAIN, 2, 32, (24,), version=version)
        capsule = lender.capsule()
        lent = DLPackTensor(capsule)
        assert capsule_name(capsule) == name
        with pytest.raises(UnsupportedInput, match="consumed before"):
            DLPackTensor(capsule)
        assert lender.returned == 0
        elements = np.asarray(lent)
        del lent
        gc.collect()
        assert lender.returned == 0  # the array holds it
        assert np.array_equal(elements, FLOATS)
        assert not elements.flags.writeable
        del elements
        gc.collect()
        assert lender.returned == 1


def test_a_tensor_without_a_deleter_is_read() -> None:
    lender = Lender(PLAIN, 2, 32, (24,), deleter=False)
    assert canonical_json(lender) == canonical_json(FLOATS)


@pytest.mark.parametrize("given", [None, 1, new_capsule(1, b"something_else", None)])
def test_what_is_no_tensors_capsule_is_refused(given: object) -> None:
    class Wrong(Lender):
        def __dlpack__(self, **options: Any) -> Any:
            return given

    with pytest.raises(UnsupportedInput, match=r"capsule"):
        canonical_json(Wrong(PLAIN, 2, 32, (24,)))


def test_numpy_itself_agrees() -> None:
    for made in (FLOATS, FLOATS.reshape(4, 6).T, FLOATS[::3], np.zeros((), "c16"), np.ones(3, "?")):
        assert np.array_equal(np.asarray(DLPackTensor(made.__dlpack__(max_version=(1, 1)))), np.from_dlpack(made))
