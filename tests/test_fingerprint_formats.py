"""Safetensors, GGUF and ONNX: what real libraries write is read as they read it; what is malformed is a clear error."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

import fingerprints
import reference
from infercache import InvalidModel, model_fingerprint
from infercache.fingerprint.gguf import TYPES
from infercache.fingerprint.onnx import SCHEMA
from infercache.fingerprint.safetensors import BITS, DTYPES

STATE = fingerprints.state()


def fingerprint(path: Path) -> str:
    return model_fingerprint(path, cache_dir=False, progress=False)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ---- safetensors -----------------------------------------------------------------------------------------------------


def test_every_dtype_of_safetensors_has_its_bits_and_a_name_of_its_own(tmp_path: Path) -> None:
    assert DTYPES.keys() == BITS.keys()
    assert len(set(DTYPES.values())) == len(DTYPES)
    assert {name for name in DTYPES.values() if name.islower()} <= reference.DTYPES
    path = tmp_path / "m.safetensors"
    for dtype, bits in BITS.items():
        path.write_bytes(fingerprints.safetensors({"x": entry(dtype, (8,), (0, bits))}, bytes(bits)))
        with safetensors.safe_open(path, "np") as opened:
            assert opened.get_slice("x").get_dtype() == dtype
        form = f'{{"blake3":"{reference.digest(bytes(bits))}","dtype":"{DTYPES[dtype]}","shape":[8]}}'
        assert fingerprint(path) == fingerprints.text(f'{{"parameters":{{"x":{{"$tensor":{form}}}}}}}')


GOOD = {"a": entry(), "b": entry("U8", (2, 0), (8, 8)), "c": entry("I16", (), (8, 10))}
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "its header would have"),
    "too short for a length": (b"\1\0\0", "its header would have"),
    "header beyond the end": (struct.pack("<Q", 100) + b"{}", "its header would have 100 bytes"),
    "absurd header": (b"\xff" * 16, "its header would have"),
    "not JSON": (struct.pack("<Q", 2) + b"[]", "begin with"),
    "not UTF-8": (struct.pack("<Q", 4) + b'{"\xff"', "JSON cannot be read"),
    "deep JSON": (struct.pack("<Q", 100_002) + b"{" + b'"a":[' * 20_000 + b" ", "JSON cannot be read"),
    "huge number": (struct.pack("<Q", 9_006) + b'{"a":' + b"9" * 9_000 + b"}", "JSON cannot be read"),
    "duplicate name": (struct.pack("<Q", 15) + b'{"a":1,"a":2}  ', "stands there twice"),
    "no entry": (fingerprints.safetensors({"a": 1}, b""), "dtype None"),
    "unknown dtype": (fingerprints.safetensors({"a": entry("F33")}, bytes(8)), "'F33', which is not known"),
    "dtype of another kind": (fingerprints.safetensors({"a": entry([1])}, bytes(8)), "which is not known"),
    "negative axis": (fingerprints.safetensors({"a": entry(shape=[-2])}, bytes(8)), "whole numbers"),
    "axis that is true": (fingerprints.safetensors({"a": entry(shape=[True, 2])}, bytes(8)), "whole numbers"),
    "axis that is a fraction": (fingerprints.safetensors({"a": entry(shape=[2.0])}, bytes(8)), "whole numbers"),
    "three offsets": (fingerprints.safetensors({"a": entry(offsets=[0, 8, 8])}, bytes(8)), "whole numbers"),
    "backward offsets": (fingerprints.safetensors({"a": entry(offsets=[8, 0])}, bytes(8)), "does not take"),
    "wrong length": (fingerprints.safetensors({"a": entry(offsets=[0, 7])}, bytes(7)), "does not take"),
    "too many elements": (fingerprints.safetensors({"a": entry(shape=[1 << 62] * 9)}, bytes(8)), "more elements"),
    "gap": (fingerprints.safetensors({"a": entry(offsets=[1, 9])}, bytes(9)), "begins at byte 1"),
    "overlap": (fingerprints.safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "begins at byte 4"),
    "bytes behind": (fingerprints.safetensors({"a": entry()}, bytes(9)), "end at byte 8 of the data, which has 9"),
    "cut off": (fingerprints.safetensors({"a": entry()}, bytes(7)), "end at byte 8 of the data, which has 7"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_safetensors_file_is_refused_and_may_be_hashed_by_content(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    content, why = MALFORMED[what]
    path.write_bytes(content)
    for asked in (path, tmp_path):
        with pytest.raises(InvalidModel, match=rf'm\.safetensors: .*{why}.*pass by="content"'):
            fingerprint(asked)
    assert model_fingerprint(path, by="content", cache_dir=False) == fingerprints.text(fingerprints.content(path))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(content)


@given(st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 400))
def test_a_damaged_safetensors_file_is_refused_or_read_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, at: int, patch: bytes, cut: int
) -> None:
    content = bytearray(fingerprints.safetensors(GOOD, bytes(range(10)), padding=5))
    at %= len(content)
    content[at : at + len(patch)] = patch
    if cut % 4 == 0:
        del content[max(len(content) - cut, 0) :]
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        found = fingerprint(path)
    except InvalidModel:
        return
    read = dict(safetensors.deserialize(bytes(content)))
    forms = []
    for one, its in read.items():
        digest, shape = reference.digest(bytes(its["data"])), ",".join(map(str, its["shape"]))
        form = f'{{"blake3":"{digest}","dtype":"{DTYPES[its["dtype"]]}","shape":[{shape}]}}'
        forms.append((one, f'{{"$tensor":{form}}}'))
    assert found == fingerprints.text('{"parameters":' + reference.object_of(forms) + "}")


# ---- GGUF ------------------------------------------------------------------------------------------------------------

SCALARS = {gguf.GGUFValueType.UINT32: "<I", gguf.GGUFValueType.UINT16: "<H", gguf.GGUFValueType.INT32: "<i"}


def write_gguf(path: Path, *, split: int = 0, seed: int = 1, note: str = "é") -> None:
    """A model with values and tensors of many types, by the real library."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_uint32("llama.block_count", 2)
    writer.add_string("note", note)
    writer.add_bool("flag", True)
    writer.add_float64("rate", 0.5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    numbers = np.random.default_rng(seed)
    for number in range(5):
        writer.add_tensor(f"blk.{number}.w", numbers.random((number + 1, 32), dtype=np.float32))
    packed = gguf.quantize(numbers.random((4, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("half", numbers.random(7).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_document(path: Path) -> str:
    """The document of a GGUF file, as the real library reads it."""
    reader = gguf.GGUFReader(path)
    values, tensors = [], []
    for key, field in reader.fields.items():
        if key.startswith(("GGUF.", "split.")):
            continue
        encoded = b"".join(bytes(part.tobytes()) for part in field.parts[2:])  # behind the key: the type and the value
        values.append((key, f'"{reference.digest(encoded)}"'))
    for one in reader.tensors:
        shape = ",".join(str(int(axis)) for axis in one.shape)
        its = f'{{"blake3":"{reference.digest(one.data.tobytes())}","shape":[{shape}],"type":{int(one.tensor_type)}}}'
        tensors.append((one.name, its))
    return f'{{"gguf":{{"metadata":{reference.object_of(values)},"tensors":{reference.object_of(tensors)}}}}}'


def test_a_gguf_file_counts_by_its_metadata_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    expected = fingerprints.text(gguf_document(path))
    assert fingerprint(path) == fingerprint(tmp_path) == expected
    found = {expected}
    for options in ({"seed": 2}, {"note": "e"}):
        write_gguf(path, **options)  # type: ignore[arg-type]
        found.add(fingerprint(path))
    assert len(found) == 3


def test_the_splits_of_a_gguf_model_have_the_fingerprint_of_the_whole(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "split").mkdir()
    write_gguf(tmp_path / "whole" / "m.gguf")
    write_gguf(tmp_path / "split" / "m.gguf", split=2)
    parts = sorted((tmp_path / "split").iterdir())
    assert [path.name for path in parts] == [f"m-0000{number}-of-00004.gguf" for number in (1, 2, 3, 4)]
    expected = fingerprint(tmp_path / "whole" / "m.gguf")
    for asked in (tmp_path / "split", *parts):
        assert fingerprint(asked) == expected
    parts[3].unlink()
    with pytest.raises(InvalidModel, match="not those of one model"):
        fingerprint(parts[0])
    alone = tmp_path / "alone.gguf"
    parts[1].rename(alone)
    with pytest.raises(InvalidModel, match="part 2 of 4"):
        fingerprint(alone)


def test_splits_of_different_models_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", split=2)
    first, second = tmp_path / "m-00001-of-00004.gguf", tmp_path / "m-00002-of-00004.gguf"
    swapped = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(swapped)
    with pytest.raises(InvalidModel, match="it says that it is part 2 of 4, its name that it is part 1"):
        fingerprint(tmp_path)


def test_the_block_sizes_are_those_of_the_library() -> None:
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: sizes for number, sizes in TYPES.items() if number in theirs} == {
        number: sizes for number, sizes in theirs.items() if number in TYPES
    }
    assert TYPES.keys() >= theirs.keys() - {gguf.GGMLQuantizationType.Q8_1}


def head(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def name(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def info(its: bytes = b"t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return name(its) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends within its header"),
    "another magic": (b"GGML" + bytes(60), "does not begin with GGUF"),
    "version 1": (head(version=1) + bytes(64), "version 1 is not known"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "absurd tensors": (head(tensors=1 << 60) + bytes(64), "do not fit"),
    "absurd values": (head(values=1 << 60) + bytes(64), "do not fit"),
    "long name": (head(values=1) + struct.pack("<Q", 1 << 50) + bytes(64), "a name at byte"),
    "name that is not UTF-8": (head(values=1) + name(b"\xff\xfe") + bytes(64), "not UTF-8"),
    "unknown value": (head(values=1) + name(b"k") + struct.pack("<I", 99) + bytes(64), "type 99, which is not known"),
    "long text": (head(values=1) + name(b"k") + struct.pack("<IQ", 8, 1 << 60) + bytes(64), "beyond the end"),
    "long array": (head(values=1) + name(b"k") + struct.pack("<IIQ", 9, 4, 1 << 62) + bytes(64), "beyond the end"),
    "long array of texts": (head(values=1) + name(b"k") + struct.pack("<IIQ", 9, 8, 1 << 40) + bytes(64), "items"),
    "deep arrays": (head(values=1) + name(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 99, "type 9"),
    "twice": (head(values=2) + (name(b"k") + struct.pack("<IB", 0, 1)) * 2 + bytes(64), "stands there twice"),
    "odd alignment": (
        head(values=1) + name(b"general.alignment") + struct.pack("<II", 4, 24) + bytes(64), "no power of two"),
    "alignment of text": (
        head(values=1) + name(b"general.alignment") + struct.pack("<I", 8) + name(b"32") + bytes(64), "whole number"),
    "a tensor twice": (head(tensors=2) + info() + info(offset=32) + bytes(128), "stands there twice"),
    "many axes": (head(tensors=1) + info(shape=(1,) * 9) + bytes(64), "9 axes"),
    "unknown type": (head(tensors=1) + info(kind=77) + bytes(64), "type 77, which is not known"),
    "part of a block": (head(tensors=1) + info(shape=(33,), kind=8) + bytes(128), "blocks of 32"),
    "not aligned": (head(tensors=1) + info(offset=4) + bytes(128), "not aligned"),
    "overlap": (head(tensors=2) + info(shape=(64,)) + info(b"u", offset=32) + bytes(512), "overlaps"),
    "beyond the end": (head(tensors=1) + info(shape=(1 << 40,)) + bytes(128), "ends beyond the end"),
    "absurd shape": (head(tensors=1) + info(shape=(1 << 63,) * 8) + bytes(128), "ends beyond the end"),
    "far away": (head(tensors=1) + info(offset=1 << 60) + bytes(128), "ends beyond the end"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_gguf_file_is_refused_and_may_be_hashed_by_content(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content, why = BROKEN[what]
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match=rf'm\.gguf: .*{why}.*pass by="content"'):
        fingerprint(path)
    assert model_fingerprint(path, by="content", cache_dir=False) == fingerprints.text(fingerprints.content(path))


@pytest.fixture(scope="module")
def real_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "m.gguf"
    write_gguf(path)
    return path


@given(st.data())
def test_a_damaged_gguf_file_is_refused_or_has_another_fingerprint_unless_padding_was_hit(
    real_gguf: Path, data: st.DataObject
) -> None:
    content = bytearray(real_gguf.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    bit = data.draw(st.integers(0, 7))
    content[at] ^= 1 << bit
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = real_gguf.with_name("damaged.gguf")
    path.write_bytes(content)
    try:
        found = fingerprint(path)
    except InvalidModel:
        return
    original = real_gguf.read_bytes()
    # Versions 2 and 3 are laid out alike; between the tensors there are zeros that no loader looks at.
    outside = at < 8 or original[at] == 0
    assert found != fingerprint(real_gguf) or outside


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def onnx_model(folder: Path, *, seed: int = 1, external: bool = True) -> Path:
    """A model with tensors in every place that the schema has for one, each in a file of its own where `external`."""
    numbers = np.random.default_rng(seed)

    def tensor(its: str) -> onnx.TensorProto:
        made = onnx.numpy_helper.from_array(numbers.random(4, dtype=np.float32), its)
        if external:
            (folder / f"{its}.data").write_bytes(made.raw_data)
            onnx.external_data_helper.set_external_data(made, f"{its}.data", 0, 16)
            made.ClearField("raw_data")
            made.data_location = onnx.TensorProto.EXTERNAL
        return made

    def constant(its: str) -> onnx.NodeProto:
        return onnx.helper.make_node("Constant", [], [its], value=tensor(its))

    inner = onnx.helper.make_graph([constant("inner")], "inner", [], [])
    branch = onnx.helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph([constant("node"), branch], "g", [], [], initializer=[tensor("initializer")])
    graph.sparse_initializer.add().values.CopyFrom(tensor("sparse"))
    function = onnx.helper.make_function("d", "f", [], ["y"], [constant("function")], [])
    model = onnx.helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.initializer.append(tensor("training"))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_the_way_to_every_tensor_is_that_of_the_schema() -> None:
    leads: dict[str, dict[int, str]] = {}

    def walk(message: Any) -> bool:
        """Whether a tensor's external data can be reached from this message."""
        if message.name in leads:
            return True
        leads[message.name] = {}
        fields = [field for field in message.fields if field.message_type is not None]
        if message.name == "TensorProto":
            fields = [field for field in fields if field.name == "external_data"]
        reached = {field.number: field.message_type.name for field in fields if walk(field.message_type)}
        if not reached and message.name != "StringStringEntryProto":
            del leads[message.name]
            return False
        leads[message.name] = reached
        return True

    walk(onnx.ModelProto.DESCRIPTOR)
    tensors = {"TensorProto", "SparseTensorProto", "GraphProto", "NodeProto", "AttributeProto", "FunctionProto",
               "TrainingInfoProto", "ModelProto"}  # fmt: skip
    # Metadata properties and annotations are entries of the same kind, but no tensor's.
    theirs = {
        kind: {number: its for number, its in fields.items() if its in tensors or kind == "TensorProto"}
        for kind, fields in leads.items()
        if kind in tensors
    }
    assert theirs == {kind: fields for kind, fields in SCHEMA.items() if kind != "StringStringEntryProto"}


def test_an_onnx_model_counts_by_its_bytes_and_those_of_its_external_data(tmp_path: Path) -> None:
    path = onnx_model(tmp_path)
    names = ["function", "initializer", "inner", "node", "sparse", "training"]
    others = [(f"{its}.data", f'"{reference.digest((tmp_path / f"{its}.data").read_bytes())}"') for its in names]
    own = reference.digest(path.read_bytes())
    expected = fingerprints.text(f'{{"content":"{own}","external":{reference.object_of(others)}}}')
    assert fingerprint(path) == expected
    found = {expected}
    for its in names:
        data = tmp_path / f"{its}.data"
        kept = data.read_bytes()
        data.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        found.add(fingerprint(path))
        data.write_bytes(kept)
    assert len(found) == len(names) + 1
    assert fingerprint(path) == expected
    (tmp_path / "node.data").unlink()
    with pytest.raises(InvalidModel, match=r"'node\.data' is missing"):
        fingerprint(path)


def test_an_onnx_model_without_external_data_counts_by_its_bytes(tmp_path: Path) -> None:
    path = onnx_model(tmp_path, external=False)
    assert fingerprint(path) == fingerprint(tmp_path / "model.onnx") == fingerprints.text(fingerprints.content(path))
    folder = {"model.onnx": fingerprints.content(path)}
    assert fingerprint(tmp_path) == fingerprints.text(fingerprints.folder(folder))


@pytest.mark.parametrize("location", ["../x", "/etc/passwd", "a/../../x", "", "..\\x"])
def test_external_data_outside_the_models_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = onnx_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    for asked in (path, tmp_path):
        with pytest.raises(InvalidModel, match="outside its folder"):
            fingerprint(asked)


@pytest.mark.parametrize("location", [".w.data", "license.txt", "NOTICE", "__pycache__/w", "w.pyc", "w.data"])
def test_a_folder_counts_by_what_its_onnx_models_refer_to_whatever_the_name(location: str, tmp_path: Path) -> None:
    below = tmp_path / "model" / "onnx"
    below.mkdir(parents=True)
    path = onnx_model(below)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="is missing"):
        fingerprint(tmp_path / "model")
    (below / location).parent.mkdir(exist_ok=True)
    seen = set()
    for content in (b"one", b"other"):
        (below / location).write_bytes(content)
        seen.add(fingerprint(tmp_path / "model"))
        files = {f"onnx/{its.relative_to(below).as_posix()}": its for its in below.rglob("*") if its.is_file()}
        expected = fingerprints.folder({name: fingerprints.content(its) for name, its in files.items()})
        assert fingerprint(tmp_path / "model") == fingerprints.text(expected)
    assert len(seen) == 2


def test_what_is_no_onnx_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nested = b""
    for _ in range(200):  # attribute of a node of a graph of an attribute …
        for field in (6, 5, 1):
            nested = bytes([field * 8 + 2]) + varint(len(nested)) + nested
    for content in (b"\xff" * 20, b"\x3a\x05", b"\x0b", b"\x3a\x02\x0a\x7f", b"\x02\x00", b"\x80", bytes([58])
                    + varint(len(nested)) + nested):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(InvalidModel, match=r'm\.onnx: not a readable ONNX file.*pass by="content"'):
            fingerprint(path)
        assert model_fingerprint(path, by="content", cache_dir=False) == fingerprints.text(fingerprints.content(path))


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def test_a_damaged_onnx_file_is_refused_or_hashed_and_never_hangs(tmp_path: Path) -> None:
    path = onnx_model(tmp_path)
    content = path.read_bytes()
    chance = random.Random(1)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        try:
            outcomes.add(fingerprint(path)[:4])
        except InvalidModel as error:
            outcomes.add("refused")
            assert "model.onnx" in str(error)
    assert outcomes == {"fp1:", "refused"}
