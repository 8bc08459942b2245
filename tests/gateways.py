"""Real gateways for tests: `infercache serve` in a process of its own, and raw sockets to talk to it.

`Gateway(model.url, max_headers=4096, …)` takes every option of `infercache.edge.Settings`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from leash import Leashed
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "a-token-of-the-operators"
ROOT = Path(__file__).resolve().parent.parent


def toml(options: dict[str, Any]) -> str:
    def value(each: Any) -> str:
        if isinstance(each, dict):
            return "{ " + ", ".join(f"{json.dumps(name)} = {value(of)}" for name, of in each.items()) + " }"
        return json.dumps(list(each) if isinstance(each, tuple) else each)

    return "".join(f"{name} = {value(each)}\n" for name, each in options.items())


class Gateway:
    """`infercache serve`. As a context manager it waits until it listens, and ends with the block.

    Args:
        upstream: the model server's URL.
        options: of `infercache.edge.Settings`.
    """

    def __init__(self, upstream: str, **options: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "token").write_text(TOKEN + "\n")
        given = {
            "upstream": upstream,
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "admin_token_file": str(folder / "token"),
            "capacity": "16MB",
            **options,
        }
        (folder / "edge.toml").write_text(toml(given))
        self.log = (folder / "log").open("w+b")
        self.process = Leashed(
            [sys.executable, "-m", "infercache", "serve", "--config", str(folder / "edge.toml")],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])},
        )
        self.host, self.port, self.admin_port = "127.0.0.1", 0, 0

    def __enter__(self) -> Self:
        try:
            told = self.wait_for("listening")
        except BaseException:
            self.close()
            raise
        self.port = int(told["listen"].rpartition(":")[2])
        self.admin_port = int(told.get("admin_listen", ":0").rpartition(":")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.log.close()
        self._folder.cleanup()

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        found = []
        for line in self.text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def text(self) -> str:
        return os.pread(self.log.fileno(), 1 << 24, 0).decode(errors="replace")

    def wait_for(self, message: str) -> dict[str, Any]:
        """The first line of the log that says so."""
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            for line in self.lines():
                if line.get("message") == message:
                    return line
            assert self.process.is_alive, f"the gateway ended; it wrote:\n{self.text()}"
            time.sleep(0.01)
        raise AssertionError(f"the gateway did not say {message!r}; it wrote:\n{self.text()}")

    def connect(self) -> socket.socket:
        made = socket.create_connection((self.host, self.port), timeout=PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def exchange(self, sent: bytes) -> bytes:
        """Sends bytes, and returns all that comes until the gateway closes the connection."""
        with self.connect() as connection:
            connection.sendall(sent)
            return read_all(connection)

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        admin: bool = False,
    ) -> Answer:
        """One request on a connection of its own."""
        import http.client

        made = http.client.HTTPConnection(self.host, self.admin_port if admin else self.port, timeout=PATIENCE)
        try:
            made.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            got = made.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            made.close()

    def operate(self, path: str, body: Any = None, *, token: str | None = TOKEN, **options: Any) -> Answer:
        """One request to the operators' side."""
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return self.ask(
            path, None if body is None else json.dumps(body).encode(), headers=headers, admin=True, **options
        )


class Answer:
    """Status, headers (names in lower case) and body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        return json.loads(self.body)


def read_all(connection: socket.socket) -> bytes:
    """Until the other end closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def read_one(connection: socket.socket) -> bytes:
    """One answer that has a Content-Length."""
    found = b""
    while b"\r\n\r\n" not in found or len(head_of(found)[2]) < int(head_of(found)[1].get("content-length", "0")):
        part = connection.recv(1 << 16)
        if not part:
            break
        found += part
    return found


def head_of(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and the rest of an answer's bytes."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) if ": " in line else (line, "") for line in lines[1:])
    return int(lines[0].split(" ")[1]), fields, rest


@contextlib.contextmanager
def opened(gateway: Gateway, count: int) -> Iterator[list[socket.socket]]:
    """So many connections."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(gateway.connect()) for _ in range(count)]
