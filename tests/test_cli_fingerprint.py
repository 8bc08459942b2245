"""`infercache fingerprint`, and what tells how far it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import save_file

import fingerprints
from infercache import model_fingerprint, progress
from terminals import shown_on_a_terminal

STATE = fingerprints.state()
EXPECTED = fingerprints.text(fingerprints.parameters(STATE))


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the command."""
    command = [sys.executable, "-m", "infercache", "fingerprint", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model" / "m.safetensors"
    path.parent.mkdir()
    save_file(STATE, path)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_the_command_prints_the_fingerprint_and_nothing_else(model: Path) -> None:
    assert run(model) == run(model.parent, "--no-progress") == (0, f"{EXPECTED}\n", "")
    assert run(model, "--by", "content")[1] == fingerprints.text(fingerprints.content(model)) + "\n"


def test_the_cache_is_where_it_is_said_to_be_or_nowhere(model: Path, tmp_path: Path) -> None:
    time.sleep(2.1)  # ctime, which nobody can set, has to lie back
    chosen, other = tmp_path / "chosen", tmp_path / "other"
    assert run(model, "--no-cache", INFERCACHE_CACHE_DIR=str(other))[0] == 0
    assert not other.exists()
    assert run(model, "--cache-dir", chosen, INFERCACHE_CACHE_DIR=str(other))[0] == 0
    assert not other.exists()
    assert len(list((chosen / "fingerprints").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((), 2, "PATH"),
        (("missing",), 1, "no file or folder at 'missing'"),
        ((__file__, "--by", "name"), 2, "--by"),
        ((__file__, "--no-cache", "--cache-dir", "x"), 2, "exclude each other"),
        ((str(Path(__file__).parent / "__pycache__"), "--no-cache"), 2, "no file in this folder counts"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(arguments: tuple[str, ...], status: int, text: str) -> None:
    Path(__file__).with_name("__pycache__").mkdir(exist_ok=True)
    found, printed, told = run(*arguments)
    assert (found, printed) == (status, "")
    assert text in told
    assert "Traceback" not in told


def test_a_malformed_file_is_told_in_a_line(model: Path) -> None:
    model.write_bytes(b"{}")
    found, printed, told = run(model, "--no-cache")
    assert (found, printed) == (1, "")
    assert told.startswith(f"infercache fingerprint: {model}: not a readable safetensors file")
    assert told.count("\n") == 1


# ---- progress --------------------------------------------------------------------------------------------------------


def test_a_function_is_told_the_beginning_the_way_and_the_end(tmp_path: Path) -> None:
    size = 256 << 20
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(size)
    told: list[tuple[int, int]] = []
    model_fingerprint(tmp_path / "m.bin", progress=lambda *found: told.append(found), cache_dir=False)
    assert told[0] == (0, size)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    told.clear()
    model_fingerprint(STATE, progress=lambda *found: told.append(found))
    assert (told[0], told[-1]) == ((0, 144), (144, 144))


def test_what_the_function_raises_ends_the_work(tmp_path: Path) -> None:
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(64 << 30)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyError(done)

    began = time.monotonic()
    with pytest.raises(KeyError):
        model_fingerprint(tmp_path / "m.bin", progress=stop, cache_dir=False)
    assert time.monotonic() - began < 5  # the whole file takes far longer


def test_ctrl_c_ends_the_work(tmp_path: Path) -> None:
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(256 << 30)
    script = (
        "import signal, sys, infercache\n"
        # What a shell runs in the background ignores the signal, and so do its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try: infercache.model_fingerprint(sys.argv[1], cache_dir=False, progress=lambda *n: print(*n, flush=True))\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m.bin")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for _ in range(2):  # the beginning, and that it goes on
            assert running.stdout.readline().endswith(f"{256 << 30}\n")
        running.send_signal(signal.SIGINT)
        told = running.stdout.read()
    assert told.endswith("interrupted\n")


def shown(path: Path, *, without_rich: bool, wish: object = None) -> str:
    """What asking for a file's fingerprint writes to a terminal."""
    hidden = "sys.modules['rich'] = None; " if without_rich else ""
    call = f"import infercache; infercache.model_fingerprint(sys.argv[1], cache_dir=False, progress={wish})"
    return shown_on_a_terminal(hidden + call, str(path))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_a_terminal_shows_a_bar_or_plain_lines_or_nothing(tmp_path: Path) -> None:
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    for path, size in ((large, 2 << 30), (small, 1 << 20)):
        with path.open("wb") as file:
            file.truncate(size)
    lines = shown(large, without_rich=True).splitlines()
    assert lines
    assert all(line.startswith("fingerprint: ") and line.endswith("of 2.1 GB") for line in lines), lines
    pytest.importorskip("rich", reason="rich is not installed")
    assert "━" in shown(large, without_rich=False)
    assert shown(large, without_rich=False, wish=False) == ""
    assert shown(small, without_rich=False) == ""


def test_where_nobody_looks_nothing_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(progress._LARGE)
    script = (
        "import infercache, sys\n"
        "from infercache import progress\n"
        "progress._PATIENCE = 0.0\n"
        "infercache.model_fingerprint(sys.argv[1], cache_dir=False)\n"
        "sys.stderr.close()\n"
        "infercache.model_fingerprint(sys.argv[1], cache_dir=False)\n"
        "sys.stderr = None\n"
        "infercache.model_fingerprint(sys.argv[1], cache_dir=False)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m.bin")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
