"""A PostgreSQL server of a test's own, in a folder of its own, on a unix socket alone; it ends with the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from leash import Held, Leashed
from servers import until
from together import PATIENCE


def program(name: str) -> str:
    """A program of the server's; a test whose program is missing is skipped, and says why."""
    found = [*Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    path = shutil.which(name) or (str(max(found)) if found else None)
    return path or pytest.skip(f"no program {name} here: Debian's package postgresql has it")


class Database(Held):
    """One server. As a context manager it starts, and takes its folder with it when it ends."""

    def __init__(self) -> None:
        self.programs = program("initdb"), program("postgres")
        # Not pytest's folder: the path of a unix socket ends at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="ic-"))
        self.options: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            try:
                shutil.chown(self.folder, "postgres", "postgres")
            except LookupError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            self.options = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self.process: Leashed | None = None

    @property
    def conninfo(self) -> str:
        return f"host={self.folder} dbname=postgres user=test"

    def ready(self) -> None:
        initdb, _ = self.programs
        command = [initdb, "--pgdata", str(self.folder / "data"), "--username", "test", "--auth", "trust", "--no-sync"]
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE, **self.options
        )
        assert done.returncode == 0, done.stderr
        self.start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        import psycopg

        settings = [f"-cunix_socket_directories={self.folder}", "-clisten_addresses=", "-cfsync=off"]
        with (self.folder / "log").open("ab") as log:
            self.process = Leashed(
                [self.programs[1], "-D", str(self.folder / "data"), *settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self.options,
            )

        def answers() -> bool:
            try:
                psycopg.connect(self.conninfo).close()
            except psycopg.OperationalError:
                return False
            return True

        until(answers, "PostgreSQL answers")

    def kill(self) -> None:
        """SIGKILL to it and the processes that it has started."""
        if self.process is not None:
            self.process.kill()
            self.process = None
