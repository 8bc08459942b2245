"""`model_fingerprint`: equal for equal parameters, however they are held; different for all that changes answers."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

import fingerprints
import infercache
from infercache import Cache, InvalidArgument, InvalidModel, ModelNotFound, UnsupportedInput, model_fingerprint

STATE = fingerprints.state()
EXPECTED = fingerprints.text(fingerprints.parameters(STATE))
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8"]


def sharded(folder: Path, state: dict[str, Any], shards: int, name: str = "model", *, index: bool = True) -> None:
    """The parameters in so many files, as transformers writes them."""
    names = list(state)
    where = {}
    for number in range(shards):
        file = f"{name}-{number + 1:05}-of-{shards:05}.safetensors"
        part = {one: state[one] for one in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "np", "part": str(number)})
        where.update(dict.fromkeys(part, file))
    if index:
        listed = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(listed))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.sampled_from(DTYPES).flatmap(lambda code: arrays.arrays(code, arrays.array_shapes(min_dims=0, min_side=0))),
        max_size=6,
    ),
    st.integers(1, 3),
)
def test_a_state_dict_and_the_files_that_hold_it_have_one_fingerprint(state: dict[str, Any], shards: int) -> None:
    import tempfile

    state.pop("__metadata__", None)  # the one name that the format keeps for itself
    with tempfile.TemporaryDirectory() as folder:
        expected = fingerprints.text(fingerprints.parameters(state))
        assert model_fingerprint(state) == expected
        save_file(state, Path(folder) / "one.safetensors")
        assert model_fingerprint(Path(folder) / "one.safetensors", cache_dir=False) == expected
        (Path(folder) / "s").mkdir()
        sharded(Path(folder) / "s", state, min(shards, max(1, len(state))), index=bool(state))
        assert model_fingerprint(Path(folder) / "s", cache_dir=False) == expected


def test_order_of_names_and_layout_do_not_count() -> None:
    backwards = {name: np.asfortranarray(STATE[name]) for name in reversed(STATE)}
    assert model_fingerprint(backwards) == model_fingerprint(OrderedDict(STATE)) == EXPECTED
    assert model_fingerprint(MappingProxyType(STATE)) == EXPECTED


def test_names_dtypes_shapes_and_bits_count() -> None:
    first = STATE["a.weight"]
    flipped = first.copy()
    flipped.view("u4")[2, 3] ^= 1
    others: list[dict[str, Any]] = [
        {},
        {"a.weight": first},
        {**STATE, "a.weight": flipped},
        {**STATE, "a.weight": first.reshape(4, 3)},
        {**STATE, "a.weight": first.view("u4")},
        {**STATE, "a.weight": STATE["a.bias"], "a.bias": first},
        {name.upper(): value for name, value in STATE.items()},
        {**STATE, "extra": first},
        {"a": {"weight": first, "bias": STATE["a.bias"]}, "b": {"weight": STATE["b.weight"]}},
        {"parameters": STATE},
    ]
    assert len({EXPECTED, *map(model_fingerprint, others)}) == len(others) + 1


def test_nested_mappings_and_values_that_are_no_tensors_count_by_their_canonical_form() -> None:
    state = {
        "model": STATE,
        "optimizer": {"state": {0: {"step": 7, "exp_avg": STATE["a.bias"]}}, "param_groups": [{"lr": 1e-3}]},
        "$odd": {"deep": {"er": {"and": {"deeper": np.float32(1.5)}}}},
        "_extra_state": None,
        "packed": b"bytes",
        "\U0001f600": 1,
        "\ufb33": 2,
    }
    assert model_fingerprint(state) == fingerprints.text(fingerprints.parameters(state))
    assert model_fingerprint({**state, "_extra_state": 0}) != model_fingerprint(state)


def test_tied_parameters_count_under_each_of_their_names() -> None:
    tied = {**STATE, "head.weight": STATE["a.weight"]}
    assert model_fingerprint(tied) == model_fingerprint({**STATE, "head.weight": STATE["a.weight"].copy()})
    assert model_fingerprint(tied) != EXPECTED


def test_a_value_without_a_form_is_refused_and_led_to() -> None:
    with pytest.raises(UnsupportedInput, match=r"^state_dict\['model'\]\['hook'\]: "):
        model_fingerprint({"model": {"hook": object()}})
    with pytest.raises(UnsupportedInput, match=r"^state_dict\['a'\]\[1\]"):
        model_fingerprint({"a": [1, object()]})
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(UnsupportedInput, match="contains itself"):
        model_fingerprint(endless)
    with pytest.raises(UnsupportedInput, match="lone surrogate"):
        model_fingerprint({"\ud800": 1})


def test_torch_tensors_have_the_fingerprint_of_arrays(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from safetensors.torch import save_file as save_torch

    state = {name: torch.from_numpy(value) for name, value in STATE.items()}
    assert model_fingerprint(state) == EXPECTED
    mixed = {
        code: torch.arange(6).reshape(2, 3).to(getattr(torch, code)) for code in ("bfloat16", "float8_e4m3fn", "bool")
    }
    save_torch(mixed, tmp_path / "m.safetensors")
    assert model_fingerprint(mixed) == model_fingerprint(tmp_path / "m.safetensors")
    layer = torch.nn.Linear(2, 2)
    assert model_fingerprint(layer.state_dict()) == model_fingerprint(layer.state_dict())
    with pytest.raises(TypeError, match=r"pass its state_dict\(\)"):
        model_fingerprint(layer)


def test_the_dtypes_that_numpy_lacks_have_the_names_of_the_key_specification(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    codes = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
    for code, name in codes.items():
        value = np.arange(1, 7).astype(getattr(ml_dtypes, name)).reshape(2, 3)
        entry = {"dtype": code, "shape": [2, 3], "data_offsets": [0, value.nbytes]}
        (tmp_path / "m.safetensors").write_bytes(fingerprints.safetensors({"x": entry}, value.tobytes()))
        assert model_fingerprint(tmp_path / "m.safetensors", cache_dir=False) == model_fingerprint({"x": value})


def test_metadata_and_padding_of_safetensors_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(STATE, path, metadata={"format": "np", "made": "today"})
    assert model_fingerprint(path) == EXPECTED
    assert model_fingerprint(path, by="content") == fingerprints.text(fingerprints.content(path)) != EXPECTED


def test_an_index_or_any_shard_stands_for_all_shards(tmp_path: Path) -> None:
    sharded(tmp_path, STATE, 3)
    for name in (
        "model.safetensors.index.json",
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ):
        assert model_fingerprint(tmp_path / name) == EXPECTED, name
    one = tmp_path / "model-00002-of-00003.safetensors"
    assert model_fingerprint(one, by="content") == fingerprints.text(fingerprints.content(one))
    assert model_fingerprint(str(tmp_path)) == model_fingerprint(tmp_path, by="parameters") == EXPECTED


def test_a_path_relative_to_the_current_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharded(tmp_path, STATE, 2)
    monkeypatch.chdir(tmp_path)
    assert model_fingerprint(".") == model_fingerprint("model-00001-of-00002.safetensors") == EXPECTED


def test_shards_that_are_missing_too_many_or_doubled_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path, STATE, 3)
    lost = tmp_path / "model-00002-of-00003.safetensors"
    kept = lost.read_bytes()
    lost.unlink()
    for asked in (tmp_path, tmp_path / "model.safetensors.index.json", tmp_path / "model-00001-of-00003.safetensors"):
        with pytest.raises(InvalidModel, match="missing"):
            model_fingerprint(asked)
    lost.write_bytes((tmp_path / "model-00001-of-00003.safetensors").read_bytes())
    for asked in (tmp_path, lost):
        with pytest.raises(InvalidModel, match="stands in two of its parts"):
            model_fingerprint(asked)
    lost.write_bytes(kept)
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match="index, which does not list this file"):
        model_fingerprint(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(InvalidModel, match="not those of one model"):
        model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path, by="content").startswith("fp1:")
    (tmp_path / "model.safetensors").unlink()
    assert model_fingerprint(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        ([], "weight_map|begin with"),
        ({"weight_map": 1}, "weight_map"),
        ({"weight_map": {"a": 1}}, "weight_map"),
        ({"weight_map": {"a": "../m.safetensors"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "m.bin"}}, "no safetensors file beside it"),
        ({"weight_map": {"a": "gone.safetensors"}}, "missing"),
        ({"weight_map": {"a": "m.safetensors"}}, "does not say which files"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(listed: Any, why: str, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    index = tmp_path / "other.safetensors.index.json"
    index.write_text(json.dumps(listed))
    for asked in (tmp_path, index):
        with pytest.raises(InvalidModel, match=why):
            model_fingerprint(asked)


def test_one_file_of_a_model_of_several_other_files_is_refused(tmp_path: Path) -> None:
    for name in ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"):
        (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(InvalidArgument, match="name their folder"):
            model_fingerprint(tmp_path / name)
        assert model_fingerprint(tmp_path / name, by="content").startswith("fp1:")
    assert model_fingerprint(tmp_path).startswith("fp1:")


def plain_folder(root: Path) -> dict[str, str]:
    """A model as a hub gives it; what counts of it, as documents."""
    (root / "tokenizer" / "more").mkdir(parents=True)
    save_file(STATE, root / "model.safetensors")
    contents = {
        "config.json": "{}",
        "tokenizer/vocab.txt": "a b",
        "tokenizer/more/x.py": "1",
        "weights.pt": "\x80\x04.",
    }
    for name, inside in {**contents, "$odd": "$", "pictures.md.json": "1", "readme_data.bin": "2"}.items():
        (root / name).write_text(inside)
    counted = [*contents, "$odd", "pictures.md.json", "readme_data.bin"]
    return {
        "model.safetensors": fingerprints.parameters(STATE),
        **{name: fingerprints.content(root / name) for name in counted},
    }


def test_a_folder_counts_by_what_is_in_it_and_its_relative_names(tmp_path: Path) -> None:
    root = tmp_path / "model"
    documents = plain_folder(root)
    expected = fingerprints.text(fingerprints.folder(documents))
    assert model_fingerprint(root) == model_fingerprint(str(root) + os.sep) == expected
    by_content = {name: fingerprints.content(root / name) for name in documents}
    assert model_fingerprint(root, by="content") == fingerprints.text(fingerprints.folder(by_content))
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert model_fingerprint(moved) == expected
    changes = {"tokenizer/vocab.txt": "a c", "config.json": '{"a":1}', "tokenizer/new.json": "", "weights.pt": ""}
    found = {expected}
    for name, inside in changes.items():
        shutil.rmtree(moved)
        shutil.copytree(root, moved)
        (moved / name).write_text(inside)
        found.add(model_fingerprint(moved))
    (moved / "config.json").rename(moved / "configuration.json")
    found.add(model_fingerprint(moved))
    assert len(found) == len(changes) + 2


def test_resharding_the_weights_of_a_folder_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "model"
    plain_folder(root)
    (root / "unet").mkdir()
    save_file(fingerprints.state(2), root / "unet" / "model.safetensors")
    expected = model_fingerprint(root)
    (root / "model.safetensors").unlink()
    sharded(root, STATE, 2)
    (root / "unet" / "model.safetensors").unlink()
    sharded(root / "unet", fingerprints.state(2), 3, index=False)
    assert model_fingerprint(root) == expected
    # Two sets of weights are told apart by where they lie.
    for name in [path.name for path in root.iterdir() if "safetensors" in path.name]:
        (root / name).unlink()
    shutil.rmtree(root / "unet")
    (root / "unet").mkdir()
    save_file(fingerprints.state(2), root / "model.safetensors")
    save_file(STATE, root / "unet" / "model.safetensors")
    assert model_fingerprint(root) != expected


def test_hidden_files_documentation_and_clutter_do_not_count(tmp_path: Path) -> None:
    root = tmp_path / "model"
    plain_folder(root)
    expected = model_fingerprint(root)
    for name in (".git/HEAD", ".cache/x", ".gitattributes", "README.md", "readme_zh.md", "LICENSE", "LICENCE.txt",
                 "NOTICE", "CITATION.cff", "tokenizer/README", "__pycache__/x.cpython-311.pyc", "x.pyc", "Thumbs.db",
                 "USE_POLICY.md", "tokenizer/.DS_Store"):  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
        assert model_fingerprint(root) == expected, name


@pytest.mark.parametrize("name", ["license.onnx.data", "NOTICE.pt", "readme.py", "README.json", "LICENSE-plate"])
def test_weights_and_code_that_share_a_name_with_documentation_count(name: str, tmp_path: Path) -> None:
    root = tmp_path / "model"
    plain_folder(root)
    seen = {model_fingerprint(root)}
    for content in ("one", "other"):
        (root / name).write_text(content)
        seen.add(model_fingerprint(root))
    assert len(seen) == 3


def test_the_snapshot_of_a_hubs_cache_has_the_fingerprint_of_the_plain_folder(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain_folder(plain)
    hub = tmp_path / "models--owner--name"
    snapshot = hub / "snapshots" / "0123abc"
    for path in [path for path in plain.rglob("*") if path.is_file()]:
        blob = hub / "blobs" / fingerprints.stamp(path)[-64:]
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (hub / "refs").mkdir()
    assert model_fingerprint(snapshot) == model_fingerprint(plain)
    assert model_fingerprint(snapshot / "model.safetensors") == EXPECTED
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot, target_is_directory=True)
    assert model_fingerprint(linked) == model_fingerprint(plain)
    with pytest.raises(InvalidArgument, match="0123abc"):
        model_fingerprint(hub)


def test_links_that_lead_nowhere_or_in_a_circle_and_pipes_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "model"
    plain_folder(root)
    odd = root / "tokenizer" / "odd"
    odd.symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidModel, match="leads nowhere"):
        model_fingerprint(root)
    odd.unlink()
    odd.symlink_to(root, target_is_directory=True)
    with pytest.raises(InvalidModel, match="circle"):
        model_fingerprint(root)
    odd.unlink()
    os.mkfifo(odd)
    for asked in (root, odd):
        with pytest.raises(InvalidModel, match="neither a file nor a folder"):
            model_fingerprint(asked)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.json")).write_text("{}")
    with pytest.raises(InvalidModel, match="not Unicode text"):
        model_fingerprint(tmp_path)


def test_pickles_are_hashed_and_never_loaded(tmp_path: Path) -> None:
    trap = tmp_path / "model.pt"
    trap.write_bytes(b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "sprung") + b"'\ntR.")
    assert model_fingerprint(trap) == fingerprints.text(fingerprints.content(trap))
    assert not (tmp_path / "sprung").exists()


def test_a_single_file_counts_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    (tmp_path / "empty").write_bytes(b"")
    assert model_fingerprint(tmp_path / "a.bin") == model_fingerprint(tmp_path / "b")
    assert model_fingerprint(tmp_path / "empty") == fingerprints.text(fingerprints.content(tmp_path / "empty"))


def test_an_empty_folder_a_missing_path_and_wrong_arguments_are_errors(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(InvalidArgument, match="no file in this folder counts"):
        model_fingerprint(tmp_path)
    for missing in (tmp_path / "gone", "", "a\0b"):
        with pytest.raises(ModelNotFound, match="no file or folder at"):
            model_fingerprint(missing)
    assert issubclass(ModelNotFound, FileNotFoundError)
    for wrong in (None, 1, b"x", [STATE], np.zeros(2)):
        with pytest.raises(TypeError, match=r"a state dict|fsdecode"):
            model_fingerprint(wrong)  # type: ignore[arg-type]
    for options in ({"by": "name"}, {"progress": True}, {"cache_dir": 3}, {"cache_dir": True}, {"cache_dir": ""}):
        with pytest.raises(InvalidArgument, match=str(next(iter(options)))):
            model_fingerprint(Path(__file__), **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="state dict"):
        model_fingerprint(STATE, by="content")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_the_operating_systems_error(tmp_path: Path) -> None:
    path = tmp_path / "secret.bin"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(PermissionError):
        model_fingerprint(path)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path, other = tmp_path / "m.bin", tmp_path / "other"
    for change in (
        lambda: os.truncate(path, (1 << 20) + 5),
        lambda: os.truncate(path, 5),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: os.replace(other, path),
        path.unlink,
    ):
        path.write_bytes(bytes(1 << 20))
        other.write_bytes(bytes(1 << 20))

        def meddle(done: int, total: int, change: Any = change) -> None:
            if done == 0:
                change()

        with pytest.raises((InvalidModel, FileNotFoundError), match=r"changed while|m\.bin"):
            model_fingerprint(path, progress=meddle)


def test_many_threads_get_the_same_fingerprint(tmp_path: Path) -> None:
    sharded(tmp_path, {f"p{number}": np.full(50_000, number, "f4") for number in range(40)}, 20)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(model_fingerprint(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_more_files_than_a_process_may_open_are_no_difficulty(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    for number in range(300):
        (tmp_path / f"{number}.bin").write_bytes(number.to_bytes(2, "little"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    expected = {f"{number}.bin": fingerprints.content(tmp_path / f"{number}.bin") for number in range(300)}
    in_use = len(os.listdir("/dev/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 100, before[1]))
        assert model_fingerprint(tmp_path) == fingerprints.text(fingerprints.folder(expected))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    import subprocess
    import sys

    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(1 << 30)  # sparse: nothing but zeros, no room on the disk
    script = (
        "import resource, sys, infercache\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "infercache.model_fingerprint(sys.argv[1], cache_dir=False)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "large.bin")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64  # MiB, of 1,024


def test_the_gil_is_released_while_files_are_hashed(tmp_path: Path) -> None:
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(1 << 29)
    ticks = []
    finished = threading.Event()

    def tick() -> None:
        while not finished.wait(0.001):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    model_fingerprint(tmp_path / "large.bin", cache_dir=False)
    finished.set()
    thread.join()
    assert len(ticks) >= 2


def test_a_fingerprint_is_a_version(cache: Cache) -> None:
    runs: list[str] = []

    @cache.memoize(model="m", version=model_fingerprint(STATE), operation="ask")
    def ask(question: str) -> str:
        runs.append(question)
        return question.upper()

    assert ask("a") == ask("a") == "A"
    assert runs == ["a"]
    assert infercache.key("a", model="m", version=EXPECTED, operation="ask") != infercache.key(
        "a", model="m", version=model_fingerprint({}), operation="ask"
    )
