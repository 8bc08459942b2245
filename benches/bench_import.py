"""What `import infercache` costs above `import numpy`: whole interpreters, started again and again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from measure import Measure, Wanted

pytestmark = pytest.mark.benchmark(group="import, in a new interpreter")


def importing(modules: str) -> Callable[[], None]:
    """A function that starts an interpreter that imports `modules`."""
    command = [sys.executable, "-c", f"import {modules}"]

    def start() -> None:
        subprocess.run(command, check=True)

    return start


def bench_numpy_alone(measure: Measure) -> None:
    measure(importing("numpy"), rounds=25)


def bench_infercache_with_numpy(measure: Measure) -> None:
    measure(importing("numpy, infercache"), rounds=25, wanted=[Wanted("numpy_alone", at_most_more=0.1)])
