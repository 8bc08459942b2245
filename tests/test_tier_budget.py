"""No operation of a tier waits longer than its budget, whatever the server or the network does, and no late reply is
ever taken for another command's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asking import LATE, Asker, refused
from certificates import Certificates
from infercache import Cache
from infercache.errors import TierUnavailable
from infercache.tiers import Command, RedisTier
from proxy import BlackHole, Cut, Delay, Fault, Hold, Proxy, Trickle
from servers import Server, binary
from together import Started

pytestmark = pytest.mark.network

BUDGET = 0.25
STUCK = {
    "answers after 5 s": {"replies": Delay(5)},
    "trickles a byte every 100 ms": {"replies": Trickle(1, 0.1)},
    "takes a byte every 100 ms": {"requests": Trickle(1, 0.1)},
    "answers nothing": {"replies": BlackHole()},
    "hears nothing": {"requests": BlackHole()},
    "holds the replies": {"replies": Hold()},
}


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.address) as proxy:
        yield proxy


@pytest.fixture
def tier(proxy: Proxy, ask: Asker) -> Iterator[RedisTier]:
    tier = RedisTier(proxy.url.replace("localhost", "127.0.0.1"), timeout="250ms")
    yield tier
    ask.close(tier)


@pytest.mark.parametrize("how", STUCK)
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "connecting"])
def test_no_operation_outlasts_its_budget_when_the_server(
    how: str, connected: bool, tier: RedisTier, proxy: Proxy, ask: Asker
) -> None:
    faults: dict[str, Fault] = STUCK[how]
    if connected:
        ask(tier, Command("SET", "k", b"x" * 2_000), budget=20)
    with proxy.fault(**faults):
        for _ in range(3):
            with refused("timeout", within=BUDGET) as caught:
                ask(tier, Command("GET", "k"))
            if not connected:
                assert not caught.value.sent


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "connecting"])
def test_no_operation_outlasts_its_budget_when_the_server_is_stopped(
    connected: bool, server: Server, ask: Asker
) -> None:
    tier = RedisTier(server.url, timeout="250ms")
    if connected:
        ask(tier, Command("PING"), budget=20)
    with server.paused():
        for _ in range(3):
            with refused("timeout", within=BUDGET):
                ask(tier, Command("GET", "k"))
    ask.close(tier)


def test_no_operation_outlasts_its_budget_when_the_server_accepts_no_more(ask: Asker) -> None:
    # The queue of a listener that never accepts is full: the kernel drops what would connect, as a black hole does.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        time.sleep(0.1)
        tier = RedisTier(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout="250ms")
        with refused("timeout", within=BUDGET) as caught:
            ask(tier, Command("PING"))
        assert not caught.value.sent
        ask.close(tier)
        for one in waiting:
            one.close()


@pytest.mark.parametrize("budget", [0.0, 0.0003, BUDGET])
def test_a_unix_socket_that_is_not_connected_within_the_budget_is_a_timeout_like_any_other(
    budget: float, tmp_path: Path, ask: Asker
) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as opened:
        listener.bind(path)
        listener.listen(0)
        for _ in range(4):  # as above; one end more than the queue holds would wait
            one = opened.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(path)
        tier = RedisTier(f"unix://{path}", timeout="250ms")
        for _ in range(3):
            with refused("timeout", "connect", within=budget) as caught:
                ask(tier, Command("PING"), budget=budget)
            assert not caught.value.sent
        with Cache("1MB", l2=tier) as cache:
            key = cache.key("q", model="m", version="1")
            assert cache.get_or_compute(key, lambda: "the model's") == "the model's", "no fault of a tier fails it"
        ask.close(tier)
    gc.collect()  # a socket that was left open would tell of itself now


def test_no_operation_outlasts_its_budget_when_the_server_reads_nothing(ask: Asker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"%1\r\n$5\r\nproto\r\n:3\r\n")  # HELLO is answered, nothing else is read
                done.wait(30)

        thread = Started(serve)
        tier = RedisTier(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout="250ms")
        with refused("timeout", within=BUDGET) as caught:
            ask(tier, Command("SET", "k", b"x" * 10_000_000))
        assert caught.value.sent
        done.set()
        thread.results()
        ask.close(tier)


def test_no_operation_outlasts_its_budget_in_a_tls_handshake(tmp_path: Path, ask: Asker) -> None:
    certificates = Certificates(tmp_path / "certificates")
    with Server(binary("redis-7.0"), tls=certificates) as server, Proxy(("127.0.0.1", server.tls_port)) as proxy:
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={certificates.authority}"
        tier = RedisTier(url, timeout="250ms")
        for fault in (BlackHole(), Trickle(1, 0.05)):
            with proxy.fault(replies=fault):
                with refused("timeout", within=BUDGET) as caught:
                    ask(tier, Command("PING"))
                assert not caught.value.sent
        ask.close(tier)


def test_no_operation_outlasts_its_budget_when_names_are_not_resolved(
    monkeypatch: pytest.MonkeyPatch, server: Server, ask: Asker
) -> None:
    tier = RedisTier(server.url.replace("127.0.0.1", "localhost"), timeout="250ms")
    blocked = threading.Event()
    resolve = socket.getaddrinfo

    def hanging(*arguments: object, **options: object) -> object:  # a resolver whose server is gone: not to be had here
        blocked.wait(20)
        return resolve(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    with refused("timeout", within=BUDGET) as caught:
        ask(tier, Command("PING"))
    assert not caught.value.sent
    blocked.set()
    assert ask(tier, Command("PING"), budget=20) == [b"PONG"]
    ask.close(tier)


def test_retries_share_the_budget(proxy: Proxy, ask: Asker) -> None:
    tier = RedisTier(proxy.url.replace("localhost", "127.0.0.1"), timeout="250ms", retries=1_000)
    with proxy.fault(replies=Cut(after=0, when="GET")), refused("closed", "connect", "timeout", within=BUDGET):
        ask(tier, Command("GET", "k"))
    assert tier.stats()["retries"] >= 1
    ask.close(tier)


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.05])
def test_a_budget_of_the_caller_s_own_holds(budget: float, tier: RedisTier, proxy: Proxy, ask: Asker) -> None:
    ask(tier, Command("PING"), budget=20)
    with proxy.fault(replies=BlackHole()), refused("timeout", within=budget):
        ask(tier, Command("GET", "k"), budget=budget)


def test_a_caller_s_short_budget_says_nothing_about_the_server(tier: RedisTier, proxy: Proxy, ask: Asker) -> None:
    ask(tier, Command("PING"), budget=20)
    with proxy.fault(replies=Delay(0.1)):
        for _ in range(20):
            with refused("timeout"):
                ask(tier, Command("GET", "k"), budget=0.001)
    assert not tier.is_out
    assert ask(tier, Command("PING"), budget=20) == [b"PONG"]


def test_an_answer_that_is_slow_but_in_time_is_taken(tier: RedisTier, proxy: Proxy, ask: Asker) -> None:
    with proxy.fault(replies=Delay(0.3)):
        assert ask(tier, Command("ECHO", "x"), budget=20) == [b"x"]
    with proxy.fault(replies=Trickle(1, 0.01)):
        assert ask(tier, Command("ECHO", "x" * 20), budget=20) == [b"x" * 20]


def test_a_late_reply_is_never_taken_for_another_command_s(proxy: Proxy, ask: Asker) -> None:
    tier = RedisTier(proxy.url.replace("localhost", "127.0.0.1"), connections=3, breaker={"failures": 1_000_000})
    seeded = random.Random(7)
    proxy.set(replies=Delay(0.0, jitter=0.03))  # budgets run out before, in the middle of, and after the replies
    answered = timed_out = 0
    for turn in range(2_000):
        if min(answered, timed_out) >= 30:
            break
        exchanges = [[Command("ECHO", f"{turn}-{caller}-{part}") for part in range(3)] for caller in range(6)]
        found = ask.together(tier, exchanges, budget=seeded.uniform(0.005, 0.06))
        for caller, replies in enumerate(found):
            if isinstance(replies, TierUnavailable):
                timed_out += 1
            else:
                answered += 1
                assert replies == [f"{turn}-{caller}-{part}".encode() for part in range(3)]
    assert min(answered, timed_out) >= 30
    ask.close(tier)


def test_a_reply_that_nobody_asked_for_is_never_taken_for_an_answer(ask: Asker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for number in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"%1\r\n$5\r\nproto\r\n:3\r\n")
                    connection.recv(65_536)
                    # With the reply, in the same piece (0) or some time after it (1), comes one too many.
                    connection.sendall(b"+yes\r\n" + b"+stray\r\n" * (number == 0))
                    if number == 1:
                        time.sleep(0.2)
                        connection.sendall(b"+stray\r\n")
                    if number < 2:
                        with contextlib.suppress(ConnectionResetError):
                            assert connection.recv(65_536) == b""  # it is closed, not used again

        thread = Started(serve)
        tier = RedisTier(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout="20s")
        assert ask(tier, Command("GET", "a")) == [b"yes"]
        assert ask(tier, Command("GET", "b")) == [b"yes"]
        time.sleep(0.5)
        assert ask(tier, Command("GET", "c")) == [b"yes"]
        thread.results()
        ask.close(tier)


def test_a_task_that_is_cancelled_leaves_no_reply_behind(proxy: Proxy) -> None:
    async def work() -> None:
        tier = RedisTier(proxy.url.replace("localhost", "127.0.0.1"), timeout="20s", connections=1)
        await tier.aexchange([Command("PING")])
        proxy.set(replies=Delay(0.2))
        for number in range(5):
            task = asyncio.create_task(tier.aexchange([Command("ECHO", f"cancelled{number}")]))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        proxy.set()
        assert await tier.aexchange([Command("ECHO", "x")]) == [b"x"]
        assert not tier.is_out
        await tier.aclose()

    asyncio.run(work())


@pytest.mark.parametrize("command", [Command("GET", "k"), Command("EVALSHA", "0" * 40, 0, idempotent=True)], ids=repr)
def test_what_may_run_twice_is_sent_again_after_a_cut(
    command: Command, tier: RedisTier, proxy: Proxy, ask: Asker
) -> None:
    with proxy.fault(replies=Cut(after=0, when=command.name, times=1)):
        (reply,) = ask(tier, command, budget=20)
    assert not isinstance(reply, TierUnavailable)
    assert proxy.commands[command.name] == 2


def test_what_may_not_run_twice_is_not_sent_again_and_its_outcome_is_unknown(
    tier: RedisTier, proxy: Proxy, server: Server, ask: Asker
) -> None:
    with proxy.fault(replies=Cut(after=0, when="INCR", times=1)), refused("closed") as caught:
        ask(tier, Command("GET", "k"), Command("INCR", "k"), budget=20)
    assert caught.value.sent
    assert server.admin.get("k") == b"1"
    assert proxy.commands["INCR"] == 1


def test_an_outage_costs_each_caller_no_time_once_the_breaker_is_open(server: Server, ask: Asker) -> None:
    # No probe falls into the test, however long the machine takes for it.
    tier = RedisTier(server.url, timeout="250ms", breaker={"shortest_pause": 600.0, "longest_pause": 600.0})
    with server.paused():
        for _ in range(5):
            with refused("timeout", within=BUDGET):
                ask(tier, Command("GET", "k"))
        assert tier.is_out
        began = time.monotonic()
        for _ in range(100):
            with refused("out") as caught:
                ask(tier, Command("GET", "k"))
            assert not caught.value.sent
        assert time.monotonic() - began < 20 * BUDGET, "a hundred would have waited for a hundred budgets"
    assert tier.stats()["breaker_openings"] == 1
    ask.close(tier)


@pytest.mark.parametrize("outage", ["killed", "stopped"])
def test_a_server_that_returns_is_used_again_within_five_seconds(outage: str, server: Server, ask: Asker) -> None:
    tier = RedisTier(server.url, timeout="250ms")
    server.kill() if outage == "killed" else server.pause()
    gone = time.monotonic()
    while time.monotonic() < gone + 6:  # long enough for the longest pause between probes
        with refused("connect", "timeout", "out", within=BUDGET):
            ask(tier, Command("PING"))
        time.sleep(0.02)
    server.start() if outage == "killed" else server.resume()
    back = time.monotonic()
    while True:
        try:
            assert ask(tier, Command("PING")) == [b"PONG"]
            break
        except TierUnavailable:
            assert time.monotonic() < back + 5
            time.sleep(0.02)
    assert not tier.is_out
    ask.close(tier)


def test_an_operation_that_is_probing_is_the_only_one_to_wait(server: Server) -> None:
    tier = RedisTier(server.url, timeout="250ms")
    with server.paused():
        while not tier.is_out:
            with refused("timeout"):
                tier.exchange([Command("PING")])
        time.sleep(0.6)
        start = threading.Barrier(16)

        def call() -> str:
            start.wait()
            with pytest.raises(TierUnavailable) as caught:
                tier.exchange([Command("PING")])
            return caught.value.reason

        reasons = Started(*[call] * 16).results()
    assert sorted(set(reasons)) == ["out", "timeout"]
    assert reasons.count("timeout") == 1
    tier.close()


def test_a_server_that_is_loading_or_busy_counts_as_failing(server: Server, ask: Asker) -> None:
    server.config(busy_reply_threshold=1)
    tier = RedisTier(server.url, timeout="20s")
    blocker = server.client(socket_timeout=None)
    thread = Started(lambda: blocker.eval("local n = 0 while true do n = n + 1 end", 0))
    time.sleep(0.3)
    began = time.monotonic()
    while not tier.is_out:
        (reply,) = ask(tier, Command("GET", "k"))
        assert reply.code == "BUSY"
        assert time.monotonic() < began + 20
    server.admin.script_kill()
    thread.join()
    ask.close(tier)


def test_late_is_less_than_any_budget_that_is_tested_against_five_seconds() -> None:
    assert BUDGET + LATE < 1
