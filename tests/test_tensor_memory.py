"""A key copies no tensor: the memory of a process at its highest, before and after a key of 256 MiB was formed.

tracemalloc sees neither NumPy's memory in other libraries nor the extension's own, so the operating system is asked.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
SIZE = 256 * MIB
# Blocks of each thread, a library's own small objects, pages of code that are used for the first time.
ALLOWED = 24 * MIB

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much memory a process had at most"
)

PROGRAM = """
import json, re, sys
import numpy as np
from infercache import canonical_json
from tensor_layouts import OnlyDLPack

SIDE = 1 << 13  # 8,192 × 8,192 × 4 bytes

def highest():
    found = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
    return int(found[1]) << 10

def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

def measured(make):
    small, large = make(64), make(SIDE)
    canonical_json(small)
    reset()
    before = highest()
    canonical_json(large)
    return highest() - before

def base(side):
    array = np.empty((side, side), "f4")
    array.reshape(-1).view("u1")[:] = 1
    return array

"""

CASES = {
    "numpy": """
        contiguous=base, transposed=lambda n: base(n).T, sliced=lambda n: base(n)[:, 1:],
        reversed=lambda n: base(n)[::-1],
        swapped=lambda n: base(n).view(">f4"), broadcast=lambda n: np.broadcast_to(base(n)[:1], (n, n)),
        unaligned=lambda n: base(n).reshape(-1).view("u1")[1:-3].view("f4"),
    """,
    "memoryview": """
        contiguous=lambda n: memoryview(base(n)), bytes=lambda n: memoryview(base(n).reshape(-1).view("u1")),
        sliced=lambda n: memoryview(base(n).reshape(-1).view("u1"))[::2], transposed=lambda n: memoryview(base(n).T),
    """,
    "dlpack": """
        contiguous=lambda n: OnlyDLPack(base(n)), transposed=lambda n: OnlyDLPack(base(n).T),
        sliced=lambda n: OnlyDLPack(base(n)[:, 1:]), unversioned=lambda n: OnlyDLPack(base(n), versioned=False),
    """,
    "torch": """
        contiguous=tensor, transposed=lambda n: tensor(n).T, sliced=lambda n: tensor(n)[:, 1:],
        expanded=lambda n: tensor(n)[:1].expand(n, n), gradient=lambda n: tensor(n).requires_grad_().T,
        bfloat16=lambda n: tensor(n).view(torch.bfloat16), float8=lambda n: tensor(n).view(torch.float8_e4m3fn).T,
        conjugate=lambda n: tensor(n).view(torch.complex64).conj(),
        negative=lambda n: tensor(n).view(torch.complex64).conj().imag,
        parameter=lambda n: torch.nn.Parameter(tensor(n)), lent=lambda n: OnlyDLPack(tensor(n).T),
    """,
    "jax": """
        contiguous=array, bfloat16=lambda n: array(n, "bfloat16"), lent=lambda n: OnlyDLPack(array(n)),
        lent_bfloat16=lambda n: OnlyDLPack(array(n, "bfloat16")),
    """,
    # What the test is there to see.
    "copies": """
        contiguous=lambda n: Copied(base(n)), transposed=lambda n: Copied(base(n).T),
    """,
}
PREPARED = {
    "torch": "import torch\ndef tensor(side): return torch.from_numpy(base(side))\n",
    "jax": "import jax.numpy\ndef array(side, dtype='float32'): return jax.numpy.full((side, side), 1, dtype)"
    ".block_until_ready()\n",
    "copies": "class Copied(OnlyDLPack):\n    def __dlpack__(self, **_):\n"
    "        return self.held.copy().__dlpack__(max_version=(1, 1))\n",
}


def measured(library: str) -> dict[str, int]:
    """Bytes by which the highest memory of a process grew, for each case."""
    program = PROGRAM + PREPARED.get(library, "") + f"cases = dict({CASES[library]})\n"
    program += "print(json.dumps({name: measured(make) for name, make in cases.items()}))\n"
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("library", [name for name in CASES if name != "copies"])
def test_no_tensor_is_copied_whatever_its_layout(library: str) -> None:
    if library in ("torch", "jax") and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    grown = measured(library)
    assert len(grown) >= 4
    assert {name: bytes_ for name, bytes_ in grown.items() if bytes_ > ALLOWED} == {}


def test_a_copy_would_have_been_seen() -> None:
    assert min(measured("copies").values()) > SIZE - ALLOWED
