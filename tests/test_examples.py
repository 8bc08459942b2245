"""The programs of examples/ do what their first lines say."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from databases import Database
from infercache import Cache, Token
from servers import free_port, until

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network

SECRET = b"shared by sender and receiver"
SCOPE = {"model": "m", "version": "1"}


def example(root: Path, name: str) -> ModuleType:
    """A program of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, root / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cache(server: Server) -> Iterator[Cache]:
    with Cache("8MB", l2=server.url, timeout="500ms") as cache:
        yield cache


def stored(cache: Cache, product: int) -> Any:
    """The key of an answer about a product."""
    key = cache.key(product, operation="test", **SCOPE)
    assert cache.set(key, "answer", tags=["catalogue", f"product:{product}"])
    return key


class TestWebhook:
    @pytest.fixture
    def port(self, root: Path, cache: Cache) -> Iterator[int]:
        hooks = example(root, "webhook_purges").Hooks(("127.0.0.1", 0), cache, SECRET)
        thread = threading.Thread(target=hooks.serve_forever, args=(0.01,))
        thread.start()
        yield hooks.server_address[1]
        hooks.shutdown()
        thread.join()
        hooks.server_close()

    def post(self, port: int, body: bytes, signature: str | None = None, path: str = "/purge") -> tuple[int, Any]:
        right = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("POST", path, body, {"X-Signature": right if signature is None else signature})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def test_a_signed_request_purges_and_is_answered_with_the_token(self, port: int, cache: Cache) -> None:
        key = stored(cache, 42)
        status, said = self.post(port, b'{"tags": ["product:42"]}')
        assert status == 200
        assert Token.parse(said["token"]) == cache.token()
        assert cache.get(key) is None

    @pytest.mark.parametrize("signature", ["", "sha256=", "sha256=" + "0" * 64, "sha1=" + "0" * 40, "\xff"])
    def test_a_request_that_is_not_signed_purges_nothing(self, port: int, cache: Cache, signature: str) -> None:
        key = stored(cache, 42)
        status, said = self.post(port, b'{"tags": ["product:42"]}', signature)
        assert (status, said) == (401, {"error": "the signature is not the body's"})
        assert cache.get(key) == "answer"

    def test_another_body_under_a_signature_purges_nothing(self, port: int, cache: Cache) -> None:
        key = stored(cache, 42)
        signature = "sha256=" + hmac.new(SECRET, b'{"tags": ["product:43"]}', hashlib.sha256).hexdigest()
        assert self.post(port, b'{"tags": ["product:42"]}', signature)[0] == 401
        assert cache.get(key) == "answer"

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"no JSON", 400),
            (b"[]", 400),
            (b"{}", 400),
            (b'{"tags": "product:42"}', 400),
            (b'{"tags": [7]}', 400),
            (b"\xff", 400),
            (b" " * 70_000, 413),
        ],
    )
    def test_a_malformed_body_is_told(self, port: int, body: bytes, status: int) -> None:
        assert self.post(port, body)[0] == status

    def test_another_path_is_told(self, port: int) -> None:
        assert self.post(port, b"{}", path="/")[0] == 404

    def test_a_purge_that_is_not_acknowledged_asks_the_sender_to_come_again(
        self, port: int, cache: Cache, server: Server
    ) -> None:
        key = stored(cache, 42)
        with server.paused():
            status, said = self.post(port, b'{"tags": ["product:42"]}')
        assert status == 503
        assert "the purge holds in this process only" in said["error"]
        assert self.post(port, b'{"tags": ["product:42"]}')[0] == 200
        assert cache.get(key) is None

    def test_the_program_runs_as_its_first_lines_say(self, root: Path, server: Server, cache: Cache) -> None:
        key, port = stored(cache, 42), free_port()
        command = [sys.executable, str(root / "examples" / "webhook_purges.py"), "127.0.0.1", str(port), server.url]
        process = subprocess.Popen(command, env={**_environment(), "WEBHOOK_SECRET": SECRET.decode()})
        try:
            status, said = until(lambda: self.post(port, b'{"tags": ["product:42"]}'), "it answers")
        finally:
            process.kill()
            process.wait()
        assert status == 200
        assert cache.get(key, min_token=Token.parse(said["token"])) is None


@pytest.fixture(scope="module")
def database(root: Path) -> Iterator[Database]:
    psycopg = pytest.importorskip("psycopg", reason="psycopg speaks to PostgreSQL: pip install 'psycopg[binary]'")
    with Database() as database:
        with psycopg.connect(database.conninfo, autocommit=True) as connection:
            connection.execute("CREATE TABLE product (id int PRIMARY KEY, stock int)")
            connection.execute("INSERT INTO product SELECT n, 10 FROM generate_series(1, 100) n")
            connection.execute(example(root, "postgres_purges").TRIGGER)
        yield database


class TestPostgres:
    @pytest.fixture
    def sql(self, database: Database) -> Iterator[Any]:
        import psycopg

        with psycopg.connect(database.conninfo) as connection:
            yield connection

    @pytest.fixture
    def listening(self, root: Path, database: Database, cache: Cache) -> Iterator[None]:
        stopped = threading.Event()
        module = example(root, "postgres_purges")
        module.PAUSE = 0.05
        first = stored(cache, 100)
        thread = threading.Thread(target=module.listen, args=(cache, database.conninfo, stopped))
        thread.start()
        until(lambda: cache.get(first) is None, "it listens, and has purged everything once")
        yield
        stopped.set()
        thread.join()

    @pytest.mark.usefixtures("listening")
    def test_a_change_purges_once_it_is_committed(self, cache: Cache, sql: Any) -> None:
        keys = [stored(cache, number) for number in (1, 2, 3)]
        sql.execute("UPDATE product SET stock = stock - 1 WHERE id IN (1, 2)")
        stored(cache, 1)  # computed from what was there before the commit
        assert cache.get(keys[0]) == "answer"
        sql.commit()
        until(lambda: cache.get_many(keys) == [None, None, "answer"], "what was changed is purged, and nothing else")

    @pytest.mark.usefixtures("listening")
    def test_a_change_that_is_rolled_back_purges_nothing(self, cache: Cache, sql: Any) -> None:
        keys = [stored(cache, number) for number in (1, 2)]
        sql.execute("UPDATE product SET stock = 0 WHERE id = 1")
        sql.rollback()
        sql.execute("DELETE FROM product WHERE id = 2")
        sql.execute("INSERT INTO product VALUES (2, 10)")
        sql.commit()
        until(lambda: cache.get(keys[1]) is None, "the later change is purged")
        assert cache.get(keys[0]) == "answer"

    @pytest.mark.usefixtures("listening")
    def test_what_was_notified_while_the_connection_was_down_is_purged_with_everything(
        self, cache: Cache, sql: Any
    ) -> None:
        keys = [stored(cache, number) for number in (1, 2)]
        ended = sql.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        ).fetchone()
        assert ended == (1,)
        until(lambda: cache.get_many(keys) == [None, None], "both, whatever was notified")
        key = stored(cache, 3)
        sql.execute("UPDATE product SET stock = 0 WHERE id = 3")
        sql.commit()
        until(lambda: cache.get(key) is None, "it listens again")

    @pytest.mark.usefixtures("listening")
    def test_a_notification_waits_while_the_authority_cannot_be_told(
        self, cache: Cache, sql: Any, server: Server
    ) -> None:
        other = Cache("8MB", l2=server.unix_url, timeout="500ms")
        key = stored(cache, 1)
        assert other.get(key) == "answer"
        with server.paused():
            sql.execute("UPDATE product SET stock = 0 WHERE id = 1")
            sql.commit()
            until(lambda: cache.shared.coherence.authority.pending, "it was tried")  # type: ignore[union-attr]
        until(lambda: other.get(key) is None, "the authority was told")
        other.close()

    def test_the_program_runs_as_its_first_lines_say(
        self, root: Path, server: Server, cache: Cache, database: Database, sql: Any
    ) -> None:
        everything, key = stored(cache, 2), stored(cache, 1)
        command = [sys.executable, str(root / "examples" / "postgres_purges.py"), database.conninfo, server.url]
        process = subprocess.Popen(command, env=_environment())
        try:
            until(lambda: cache.get(everything) is None, "it has begun")
            stored(cache, 1)
            sql.execute("UPDATE product SET stock = 0 WHERE id = 1")
            sql.commit()
            until(lambda: cache.get(key) is None, "it purges")
        finally:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}
