"""One exchange with a server on this machine: GET and PTTL of a 1.5 KB value.

Beside it: redis-py's bare GET, its pipeline, and the least that a socket and hiredis cost. The server is started here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
import redis
import redis.asyncio

from infercache.tiers import Command, RedisTier
from measure import Measure, Wanted
from serving import serving

VALUE = bytes(range(256)) * 6  # 1,536 bytes: an answer of 384 float32
EXCHANGES = 200  # in one round
ITEMS = 256  # of a batch


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server's port."""
    with serving() as port:
        with redis.Redis(port=port) as client:
            for number in range(ITEMS):
                client.set(f"key{number}", VALUE, px=3_600_000)
        yield port


def repeated(call: Any) -> Any:
    """A loop of exchanges."""

    def loop() -> None:
        for _ in range(EXCHANGES):
            call()

    return loop


@pytest.fixture
def one(benchmark: Any) -> None:
    benchmark.group = "one exchange with a server, a 1.5 KB value"


@pytest.fixture
def batch(benchmark: Any) -> None:
    benchmark.group = f"a batch of {ITEMS} values of 1.5 KB"


@pytest.mark.usefixtures("one")
def bench_infercache_get_and_pttl(measure: Measure, port: int) -> None:
    tier = RedisTier(f"redis://127.0.0.1:{port}", timeout="10s")

    def call() -> list[Any]:
        return tier.exchange([Command("GET", "key0"), Command("PTTL", "key0")])

    assert call()[0] == VALUE
    wanted = [Wanted("redis_py_get", at_most=1.0), Wanted("redis_py_pipeline_get_and_pttl", at_most=0.5)]
    measure(repeated(call), operations=EXCHANGES, wanted=wanted)
    tier.close()


@pytest.mark.usefixtures("one")
def bench_infercache_get(measure: Measure, port: int) -> None:
    tier = RedisTier(f"redis://127.0.0.1:{port}", timeout="10s")
    assert tier.exchange([Command("GET", "key0")]) == [VALUE]
    measure(repeated(lambda: tier.exchange([Command("GET", "key0")])), operations=EXCHANGES)
    tier.close()


@pytest.mark.usefixtures("one")
def bench_redis_py_get(measure: Measure, port: int) -> None:
    client = redis.Redis(host="127.0.0.1", port=port)
    assert client.get("key0") == VALUE
    measure(repeated(lambda: client.get("key0")), operations=EXCHANGES)
    client.close()


@pytest.mark.usefixtures("one")
def bench_redis_py_pipeline_get_and_pttl(measure: Measure, port: int) -> None:
    client = redis.Redis(host="127.0.0.1", port=port)

    def call() -> list[Any]:
        return client.pipeline(transaction=False).get("key0").pttl("key0").execute()

    assert call()[0] == VALUE
    measure(repeated(call), operations=EXCHANGES)
    client.close()


@pytest.mark.usefixtures("one")
def bench_socket_and_hiredis_get_and_pttl(measure: Measure, port: int) -> None:
    reader = hiredis.Reader()
    buffer = bytearray(65_536)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> list[Any]:
            sock.sendall(hiredis.pack_command(("GET", "key0")) + hiredis.pack_command(("PTTL", "key0")))
            replies: list[Any] = []
            while len(replies) < 2:
                reader.feed(buffer, 0, sock.recv_into(buffer))
                while (reply := reader.gets()) is not False:
                    replies.append(reply)
            return replies

        assert call()[0] == VALUE
        measure(repeated(call), operations=EXCHANGES)


def awaited(call: Any) -> Any:
    """A loop of exchanges in an event loop that stays."""

    async def all_of_them() -> None:
        for _ in range(EXCHANGES):
            await call()

    return all_of_them


@pytest.fixture
def running(benchmark: Any) -> Iterator[asyncio.Runner]:
    benchmark.group = "one exchange with a server, awaited, a 1.5 KB value"
    with asyncio.Runner() as runner:
        yield runner


def bench_infercache_awaited_get_and_pttl(measure: Measure, port: int, running: asyncio.Runner) -> None:
    tier = RedisTier(f"redis://127.0.0.1:{port}", timeout="10s")
    loop = awaited(lambda: tier.aexchange([Command("GET", "key0"), Command("PTTL", "key0")]))
    measure(lambda: running.run(loop()), operations=EXCHANGES, wanted=Wanted("redis_py_awaited_get", at_most=1.0))
    running.run(tier.aclose())


def bench_redis_py_awaited_get(measure: Measure, port: int, running: asyncio.Runner) -> None:
    client = redis.asyncio.Redis(host="127.0.0.1", port=port)
    loop = awaited(lambda: client.get("key0"))
    measure(lambda: running.run(loop()), operations=EXCHANGES)
    running.run(client.aclose())


@pytest.mark.usefixtures("batch")
def bench_infercache_batch(measure: Measure, port: int) -> None:
    tier = RedisTier(f"redis://127.0.0.1:{port}", timeout="10s")
    commands = [Command(name, f"key{number}") for number in range(ITEMS) for name in ("GET", "PTTL")]
    assert tier.exchange(commands)[::2] == [VALUE] * ITEMS
    wanted = Wanted("redis_py_single_gets", at_most=0.05)
    measure(lambda: tier.exchange(commands), operations=ITEMS, wanted=wanted)
    tier.close()


@pytest.mark.usefixtures("batch")
def bench_redis_py_single_gets(measure: Measure, port: int) -> None:
    client = redis.Redis(host="127.0.0.1", port=port)

    def loop() -> None:
        for number in range(ITEMS):
            client.get(f"key{number}")

    measure(loop, operations=ITEMS)
    client.close()


@pytest.mark.usefixtures("batch")
def bench_redis_py_mget(measure: Measure, port: int) -> None:
    client = redis.Redis(host="127.0.0.1", port=port)
    keys = [f"key{number}" for number in range(ITEMS)]
    assert client.mget(keys) == [VALUE] * ITEMS
    measure(lambda: client.mget(keys), operations=ITEMS)
    client.close()
