"""The wheel holds what its users need: the extension for the stable ABI, stubs, licence, one version."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import infercache


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this source tree."""
    pytest.importorskip("maturin", reason="maturin builds the wheel: pip install 'infercache[dev]'")
    if shutil.which("cargo") is None:
        pytest.skip("cargo builds the wheel, and it is not on the PATH")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "maturin", "build", "--release", "--locked", "--quiet", "--out", str(folder)]
    subprocess.run(command, check=True, cwd=root, stdin=subprocess.DEVNULL)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    """The wheel's METADATA."""
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_serves_every_cpython_from_3_11(wheel: Path, names: set[str]) -> None:
    assert re.match(r"infercache-[^-]+-cp311-abi3-", wheel.name), wheel.name
    (extension,) = (name for name in names if name.startswith("infercache/_core.") and not name.endswith(".pyi"))
    assert extension in {"infercache/_core.abi3.so", "infercache/_core.pyd"}


def test_wheel_is_typed(names: set[str]) -> None:
    assert {"infercache/py.typed", "infercache/_core.pyi"} <= names


def test_wheel_carries_the_gpus_kernels(names: set[str]) -> None:
    assert "infercache/gpu/blake3.cu" in names


def test_wheel_carries_the_licence(wheel: Path, names: set[str], metadata: Message, root: Path) -> None:
    (licence,) = (name for name in names if name.endswith(".dist-info/licenses/LICENSE"))
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(licence) == (root / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"


def test_wheel_carries_every_module_and_nothing_else(names: set[str], root: Path) -> None:
    package = root / "python"
    ours = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.suffix in {".py", ".pyi", ".typed", ".cu", ".lua", ".html"}
    }
    packed = {name for name in names if ".dist-info/" not in name and "/_core." not in name}
    assert packed == {name for name in ours if "/_core." not in name} | {"infercache/py.typed"}


def test_one_version_everywhere(metadata: Message, root: Path) -> None:
    version = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert metadata["Version"] == version == infercache.__version__


def test_every_extra_is_in_the_metadata(metadata: Message, root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    assert metadata["Requires-Python"] == ">=3.11"


def test_every_dependency_of_an_extra_is_pinned(root: Path) -> None:
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (root / "constraints.txt").read_text().splitlines()
    }
    for extra, requirements in extras.items():
        if extra == "dev-torch":  # its wheels differ by platform: whatever is newest
            continue
        for requirement in requirements:
            name = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert name is not None
            normal = name.group().lower().replace("_", "-")
            assert normal in pinned or normal == "infercache", f"{extra}: {requirement} is not in constraints.txt"
