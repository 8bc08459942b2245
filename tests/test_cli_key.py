"""`infercache key`: a file or standard input, scope fields, a secret that is never shown, and errors that lead on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import infercache

QUESTION = b'{"query": "caf\xc3\xa9 \xf0\x9f\x98\x80", "limit": 10.0}'


def run(*arguments: str, given: bytes = b"", encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit status, output and errors of the command."""
    command = [sys.executable, "-X", f"utf8={int(encoding == 'utf-8')}", "-m", "infercache", "key", *arguments]
    done = subprocess.run(command, check=False, input=given, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_a_file_and_standard_input_have_the_key_of_the_value(tmp_path: Path) -> None:
    path = tmp_path / "question.json"
    path.write_bytes(QUESTION)
    expected = infercache.key({"query": "café 😀", "limit": 10}, model="m", version="1")
    for arguments, given in (((str(path),), b""), (("-",), QUESTION)):
        assert run(*arguments, "--model", "m", "--version", "1", given=given) == (0, f"{expected}\n", "")


def test_the_scope_comes_from_the_options(tmp_path: Path) -> None:
    secret = bytes(range(32))
    raw, hexadecimal = tmp_path / "raw", tmp_path / "hex"
    raw.write_bytes(secret)
    hexadecimal.write_text(secret.hex() + "\n")
    expected = infercache.key(1, model="m", version="2", namespace="n", operation="o", secret=secret)
    scope = ("--model", "m", "--version", "2", "--namespace", "n", "--operation", "o")
    for path in (raw, hexadecimal):
        assert run("-", *scope, "--secret-file", str(path), given=b"1")[:2] == (0, f"{expected}\n")


def test_explain_shows_the_document_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\xab" * 32)
    status, shown, _ = run("-", "--model", "m", "--version", "1", "--explain", given=QUESTION)
    assert status == 0
    assert '{"limit":10,"query":"café 😀"}' in shown
    assert infercache.explain(1, model="m", version="1").scope in shown.split()
    status, hidden, _ = run("-", "--model", "m", "--version", "1", "--secret-file", str(path), "--explain", given=b"1")
    assert status == 0
    assert "ab" * 32 not in hidden
    assert "not shown" in hidden


@pytest.mark.parametrize(
    ("arguments", "given", "status", "text"),
    [
        (("-", "--model", "m"), b"1", 2, "--version"),
        (("-", "--version", "1"), b"1", 2, "--model"),
        (("-", "--model", "", "--version", "1"), b"1", 2, "model must not be empty"),
        (("-", "--model", "m", "--version", "1"), b"[1,]", 1, "invalid JSON at byte 3"),
        (("-", "--model", "m", "--version", "1"), b"", 1, "invalid JSON at byte 0"),
        (("missing.json", "--model", "m", "--version", "1"), b"", 2, "missing.json"),
        (("-", "--model", "m", "--version", "1", "--secret-file", __file__), b"1", 2, "a secret is 32 bytes"),
    ],
)
def test_what_is_wrong_is_told(arguments: tuple[str, ...], given: bytes, status: int, text: str) -> None:
    found, _, told = run(*arguments, given=given)
    assert found == status
    assert text in told
    assert "Traceback" not in told


def test_without_a_file_standard_input_is_read() -> None:
    expected = infercache.key(1, model="m", version="1")
    assert run("--model", "m", "--version", "1", given=b"1") == (0, f"{expected}\n", "")
