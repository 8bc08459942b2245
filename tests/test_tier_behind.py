"""Writing behind: nobody waits, the queue is bounded, and every write is sent, or counted as dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from asking import eventually
from infercache.errors import InvalidArgument
from infercache.tiers import Command, RedisTier, behind
from together import PATIENCE, Started

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network


@pytest.fixture
def tier(server: Server) -> Iterator[RedisTier]:
    tier = RedisTier(server.url, timeout="5s", write_behind=1_000)
    yield tier
    tier.close()


def test_what_is_queued_is_sent_in_order(tier: RedisTier, server: Server) -> None:
    for number in range(500):
        assert tier.behind([Command("RPUSH", "list", number)])
    assert tier.flush("20s")
    assert server.admin.lrange("list", 0, -1) == [b"%d" % number for number in range(500)]
    assert tier.stats() == {}


def test_writes_go_together_in_pipelines(tier: RedisTier, server: Server) -> None:
    with server.paused():
        for number in range(1_000):
            assert tier.behind([Command("SET", number, number)])
    assert tier.flush("20s")
    assert server.admin.dbsize() == 1_000


def test_nobody_waits_for_a_server_that_does_not_answer(server: Server) -> None:
    tier = RedisTier(server.url, timeout="1s", write_behind=100)
    with server.paused():
        began = time.monotonic()
        for number in range(100):
            tier.behind([Command("SET", number, number)])
        assert time.monotonic() - began < 0.5
    tier.close()


def test_what_does_not_fit_is_dropped_whole_and_counted(server: Server) -> None:
    tier = RedisTier(server.url, timeout="20s", write_behind=10)
    with server.paused():
        assert tier.behind([Command("SET", "first", 1)])
        eventually(lambda: tier._queue is not None and not tier._queue._queue, "the thread sends the first", PATIENCE)
        assert tier.behind([Command("SET", number, 1) for number in range(8)])
        assert not tier.behind([Command("SET", f"lost{number}", 1) for number in range(3)])
        assert tier.behind([Command("SET", number, 1) for number in range(8, 10)])
        assert not tier.behind([Command("SET", "lost", 1)])
        assert tier.stats() == {"dropped_writes": 4}
    assert tier.flush("20s")
    assert server.admin.dbsize() == 11
    assert tier.behind([Command("SET", "again", 1)])
    tier.close()


def test_the_bytes_that_wait_are_bounded_too(server: Server) -> None:
    tier = RedisTier(server.url, timeout="20s", write_behind=1_000, write_behind_bytes="1MB")
    with server.paused():
        assert not tier.behind([Command("SET", "k", b"x" * 1_000_001)])
        taken = sum(tier.behind([Command("SET", n, memoryview(b"x" * 300_000))]) for n in range(20))
    assert 3 <= taken <= 7  # three wait, and the thread may hold a pipeline of up to four
    assert tier.flush("20s")
    assert tier.stats()["dropped_writes"] == 21 - taken
    tier.close()


def test_every_write_is_sent_or_counted_as_dropped(server: Server) -> None:
    tier = RedisTier(server.url, timeout="250ms", write_behind=50)
    done = threading.Event()

    def trouble() -> None:
        while not done.wait(0.05):
            with server.paused():
                done.wait(0.1)

    def write(writer: int) -> int:
        taken = 0
        for number in range(300):
            taken += tier.behind([Command("SET", f"{writer}-{number}", 1)])
            time.sleep(0.0005)
        return taken

    breaking = Started(trouble)
    taken = sum(Started(*[lambda writer=writer: write(writer) for writer in range(4)]).results())
    assert tier.flush("60s")
    done.set()
    breaking.results()
    tier.close()
    dropped = tier.stats().get("dropped_writes", 0)
    assert 1_200 - taken <= dropped
    # A pipeline whose outcome is unknown is counted as dropped, and may have arrived.
    assert 1_200 - dropped <= server.admin.dbsize() <= 1_200


def test_a_write_that_the_server_refuses_is_counted_and_the_others_are_sent(tier: RedisTier, server: Server) -> None:
    tier.behind([Command("SET", "a", 1), Command("LPUSH", "a", 1), Command("SET", "b", 1)])
    assert tier.flush("20s")
    assert server.admin.mget("a", "b") == [b"1", b"1"]
    assert tier.stats() == {"failed_writes": 1, "error_replies": 1}


def test_a_write_that_cannot_be_sent_does_not_end_the_thread(tier: RedisTier, server: Server) -> None:
    tier.behind([Command("SET", "a", None)])  # type: ignore[arg-type]
    assert tier.flush("20s")
    tier.behind([Command("SET", "b", 1)])
    assert tier.flush("20s")
    assert server.admin.get("b") == b"1"
    assert tier.stats() == {"failed_writes": 1}


def test_closing_flushes_and_takes_nothing_more(tier: RedisTier, server: Server) -> None:
    for number in range(500):
        tier.behind([Command("SET", number, 1)])
    tier.close()
    assert server.admin.dbsize() == 500
    assert not tier.behind([Command("SET", "late", 1)])
    assert tier.stats() == {"dropped_writes": 1}


def test_closing_takes_bounded_time_when_the_server_is_gone(server: Server) -> None:
    tier = RedisTier(server.url, timeout="250ms", write_behind=1_000, breaker={"failures": 1_000})
    with server.paused():
        for number in range(1_000):
            tier.behind([Command("SET", number, 1)])
        began = time.monotonic()
        tier.close()
        assert time.monotonic() - began < 3
        eventually(lambda: tier.stats()["dropped_writes"] == 1_000, "every write was counted", PATIENCE)


def test_a_flush_that_is_not_done_in_time_says_so(server: Server) -> None:
    tier = RedisTier(server.url, timeout="20s", write_behind=10)
    with server.paused():
        tier.behind([Command("SET", "a", 1)])
        assert not tier.flush("50ms")
    assert tier.flush("20s")
    tier.close()


def test_the_thread_ends_when_there_is_nothing_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "_IDLE", 0.05)
    tier = RedisTier(server.url, timeout="5s", write_behind=10)

    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "infercache-tier-writes"]

    for number in range(3):
        assert tier.behind([Command("SET", number, 1)])
        assert tier.flush("20s")
        eventually(lambda: not threads(), "the thread has ended", PATIENCE)
    assert server.admin.dbsize() == 3
    tier.close()


def test_a_tier_without_a_queue_says_how_to_have_one() -> None:
    tier = RedisTier("redis://127.0.0.1:1")
    assert not tier.writes_behind
    with pytest.raises(InvalidArgument, match="write_behind=1000"):
        tier.behind([Command("SET", "k", 1)])
    assert tier.flush()
    tier.close()
