"""Runs Python's tests side by side: those that mostly wait (for servers, faults, time) beside those that compute.

Two processes of pytest, a third of the time saved on two cores. What the first one said is shown when the second has
ended, so that neither's lines stand between the other's. Arguments, if any, go to one pytest with all tests.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests"
#: Files whose tests wait for other processes most of their time.
WAITING = ("test_tier_*.py", "test_coherence*.py", "test_lease*.py", "test_edge_*.py", "test_invalidate*.py")


def main(arguments: list[str]) -> int:
    """The exit status: pytest's, of the first of both that failed."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    waiting = sorted({str(file) for pattern in WAITING for file in TESTS.glob(pattern)})
    with tempfile.TemporaryFile("w+") as said:
        beside = subprocess.Popen([*pytest, *waiting], stdout=said, stderr=subprocess.STDOUT)
        try:
            status = subprocess.run([*pytest, *(f"--ignore={file}" for file in waiting)], check=False).returncode
            beside.wait()
        finally:
            beside.kill()
        said.seek(0)
        print("\n==> beside these, the tests that mostly wait\n")
        sys.stdout.write(said.read())
    return status or beside.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
