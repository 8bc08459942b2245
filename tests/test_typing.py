"""A type checker sees the wrapped signatures of methods, batches and `async def`, as `typed_methods.py` uses them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_mypy_sees_the_signatures_of_methods_batches_and_async_functions(root: Path) -> None:
    pytest.importorskip("mypy", reason="mypy checks the types: pip install 'infercache[dev]'")
    # The project's own configuration is strict, so an error that is expected and does not come is an error too.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-incremental", "tests/typed_methods.py"],
        check=False,
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
