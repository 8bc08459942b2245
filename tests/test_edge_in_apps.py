"""The middleware in a model server's own process: in FastAPI by one line, by name, and under another ASGI server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leash import Leashed
from servers import free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("fastapi", reason="fastapi (the extra 'dev') is not installed")
pytestmark = pytest.mark.network

UVICORN = [sys.executable, "-m", "uvicorn", "served_apps:app", "--log-level", "warning", "--port"]
GRANIAN = [
    sys.executable,
    "-m",
    "granian",
    "served_apps:app",
    "--interface",
    "asgi",
    "--log-level",
    "warning",
    "--port",
]


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[str]:
    """The URL of an application in a server's process."""
    port = free_port()
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "python")]
    served = Leashed(
        [*command, str(port)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SERVE_APP": "1", **environment},
        stdout=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: fetch(f"{url}/asked")[1] == b"0", "the server answers")
        yield url
    finally:
        served.kill()


def fetch(url: str, body: object = None) -> tuple[str, bytes]:
    """`Cache-Status` and body."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return answer.headers.get("cache-status", ""), answer.read()


def is_cached(url: str) -> None:
    """Repeated items are answered by the middleware, the others by the application."""
    asked = {"model": "m", "input": ["a", "bb"]}
    came, first = fetch(f"{url}/v1/embeddings", asked)
    assert came.startswith("infercache; fwd=miss")
    came, second = fetch(f"{url}/v1/embeddings", asked)
    assert came.startswith("infercache; hit")
    assert json.loads(second) == json.loads(first)
    came, third = fetch(f"{url}/v1/embeddings", {"model": "m", "input": ["bb", "ccc"]})
    assert came.startswith("infercache; fwd=partial")
    assert [item["embedding"] for item in json.loads(third)["data"]] == [[2 / 7, 0.5], [3 / 7, 0.5]]
    assert fetch(f"{url}/asked")[1] == b"2"


def test_one_line_in_a_fastapi_application() -> None:
    with serving(UVICORN) as url:
        is_cached(url)


def test_by_its_name_with_options_from_the_environment(tmp_path: Path) -> None:
    options = tmp_path / "edge.toml"
    options.write_text('capacity = "4MB"\nmodel_versions = { "*" = "1" }\n')
    with serving(UVICORN, MIDDLEWARE="infercache.edge.CacheMiddleware", INFERCACHE_EDGE_CONFIG=str(options)) as url:
        is_cached(url)


def test_under_another_asgi_server(tmp_path: Path) -> None:
    pytest.importorskip("granian", reason="granian (the extra 'dev') is not installed")
    options = tmp_path / "edge.toml"
    options.write_text('capacity = "4MB"\nmodel_versions = { "*" = "1" }\n')
    with serving(GRANIAN, MIDDLEWARE="infercache.edge.CacheMiddleware", INFERCACHE_EDGE_CONFIG=str(options)) as url:
        is_cached(url)
