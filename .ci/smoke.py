"""What a user does in the first minute, with the installed package alone; `wheel.py` runs it elsewhere."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np

import infercache
from infercache import Cache, Key

installed = Path(infercache.__file__).resolve().parent
assert "site-packages" in installed.parts, f"tried the source tree, not the installed package: {installed}"
assert (installed / "py.typed").is_file()
assert (installed / "_core.pyi").is_file()
assert (installed / "gpu" / "blake3.cu").is_file()
assert infercache._core.DETACHED_DROPS == "leak", "built without .cargo/config.toml: a child of a fork may hang"
version = importlib.metadata.version("infercache")
assert infercache.__version__ == version, (infercache.__version__, version)

cache = Cache(capacity="16MB", ttl="1h")
asked: list[list[str]] = []


@cache.memoize_batch(model="lengths", version="1", over="texts", operation="embed")
def embed(texts: list[str]) -> np.ndarray:
    """Stands for a model."""
    asked.append(texts)
    return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


first = embed(["a", "bb", "a"])
second = embed(["bb", "ccc"])
assert asked == [["a", "bb"], ["ccc"]], asked
assert first.tolist() == [[1.0, 1.0], [2.0, 1.0], [1.0, 1.0]], first
assert second.tolist() == [[2.0, 1.0], [3.0, 1.0]], second
assert cache.invalidate(model="lengths") is not None
embed(["a"])
assert asked[-1] == ["a"], "a purged answer was served"

key = infercache.key({"text": "hello"}, model="e5-small", version="1")
assert Key(str(key)) == key

command = Path(sys.executable).with_name("infercache")
printed = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
assert printed.split() == ["infercache", version], printed
print(f"infercache {version} from {installed}: works")
