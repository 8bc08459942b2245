"""`infercache stats`: the counters of gateways, side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateways import TOKEN, Gateway
from model_server import ModelServer

COMMAND = Path(sys.executable).with_name("infercache")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command."""
    return subprocess.run(
        [COMMAND, "stats", *arguments], check=False, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.network
def test_counters_of_gateways_stand_side_by_side(token: Path) -> None:
    with ModelServer() as model, Gateway(model.url) as one, Gateway(model.url, capacity="1GB") as other:
        urls = [f"http://127.0.0.1:{gateway.admin_port}" for gateway in (one, other)]
        done = run(*urls, "--admin-token-file", str(token))
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].split() == [url.removeprefix("http://") for url in urls]
        assert next(line for line in lines if line.startswith("bytes")).split() == [
            *("bytes", "0", "B", "of", "16.0", "MB", "0", "B", "of", "1.00", "GB")
        ]
        found = run(urls[0].removeprefix("http://"), "--json", INFERCACHE_ADMIN_TOKEN_FILE=str(token))
        told = json.loads(found.stdout)
        assert told["stats"]["hits_l1"] == 0
        assert told["tier"] == "none"
        assert "samples" not in told


@pytest.mark.network
def test_what_does_not_answer_is_told_and_the_others_are_shown(token: Path) -> None:
    with ModelServer() as model, Gateway(model.url) as gateway:
        url = f"http://127.0.0.1:{gateway.admin_port}"
        done = run(url, "http://127.0.0.1:1", model.url, "--admin-token-file", str(token))
        assert done.returncode == 1
        assert "http://127.0.0.1:1: no answer: " in done.stderr
        assert f"{model.url}: answered 404" in done.stderr or f"{model.url}: it is no gateway" in done.stderr
        assert "hit ratio" in done.stdout
        token.write_text("another-token-that-is-long-enough\n")
        done = run(url, "--admin-token-file", str(token))
        assert (done.returncode, done.stdout) == (1, "")
        assert "another token is asked for" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "whose counters? Give --admin-token-file FILE"),
        (["--admin-token-file", "no-file"], "no-file: No such file"),
        (["ftp://x", "--admin-token-file", "TOKEN"], "ftp://x: give http://HOST:PORT"),
        (["http://x:no", "--admin-token-file", "TOKEN"], "http://x:no: give http://HOST:PORT"),
        (["--watch", "0", "--admin-token-file", "TOKEN"], "0 is not between 1 and"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_exits_with_2(arguments: list[str], expected: str, token: Path) -> None:
    done = run(*(str(token) if each == "TOKEN" else each for each in arguments))
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
