"""Builds the wheel and the sdist into dist/, installs each into an empty virtual environment and tries it there.

The environments, and the folder in which `smoke.py` runs, are away from the source tree: what works here works for
whoever runs `pip install infercache`. The wheel is installed as it is; the sdist the way any PEP 517 front end does it,
but with the settings of cargo that are given as arguments (NAME=VALUE), since nothing fast is asked of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
SMOKE = Path(__file__).resolve().with_name("smoke.py")


def run(*command: str | Path, cwd: Path, settings: dict[str, str] | None = None) -> None:
    """Runs a command and ends the whole script where it fails."""
    print("+", *command, flush=True)
    # One target folder for every build of this script, so that the sdist's does not compile the dependencies again.
    environment = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target"), **(settings or {})}
    environment.pop("PYTHONPATH", None)
    subprocess.run([str(part) for part in command], check=True, cwd=cwd, env=environment)


def try_installed(package: Path, scratch: Path, settings: dict[str, str]) -> None:
    """Installs `package` into an empty virtual environment below `scratch` and runs the smoke test there."""
    home = scratch / package.suffix.lstrip(".")
    venv.create(home / "venv", with_pip=True)
    python = home / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
    run(*pip, "--constraint", ROOT / "constraints.txt", package, cwd=home, settings=settings)
    shutil.copy(SMOKE, home / "smoke.py")
    run(python, "-I", "smoke.py", cwd=home)


def main(arguments: list[str]) -> None:
    """Builds both, tries both."""
    settings = dict(argument.split("=", 1) for argument in arguments)
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "maturin", "build", "--release", "--strip", "--sdist", "--out", DIST, cwd=ROOT)
    packages = sorted(DIST.iterdir())
    print(*(f"{package.name}  {package.stat().st_size:,} bytes" for package in packages), sep="\n")
    with tempfile.TemporaryDirectory(prefix="infercache-") as scratch:
        for package in packages:
            try_installed(package, Path(scratch), settings)


if __name__ == "__main__":
    main(sys.argv[1:])
