"""A tier's exchanges with real servers: replies in order, errors in their places, scripts, pools, many callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from asking import Asker, refused
from certificates import Certificates
from infercache.errors import TierError, TierUnavailable
from infercache.tiers import Command, RedisTier
from servers import NAMES, Binary, Server
from servers import binary as program
from together import Started

pytestmark = pytest.mark.network

#: A budget that no machine is too busy for.
AMPLE = "20s"


@pytest.fixture
def tier(server: Server, ask: Asker) -> Iterator[RedisTier]:
    tier = RedisTier(server.url, timeout=AMPLE)
    yield tier
    ask.close(tier)


@pytest.mark.parametrize("binary", NAMES, indirect=True)
def test_replies_come_in_order_and_errors_in_their_places(server: Server, ask: Asker) -> None:
    tier = RedisTier(server.url, timeout=AMPLE)
    replies = ask(
        tier,
        Command("SET", "k", b"\x00\xff"),
        Command("LPUSH", "k", 1),
        Command("GET", "k"),
        Command("GET", "missing"),
        Command("PTTL", "k"),
        Command("NOSUCH"),
        Command("HSET", "h", "f", 1.5),
        Command("HGETALL", "h"),
    )
    assert replies[0] == b"OK"
    assert isinstance(replies[1], TierError)
    assert replies[1].code == "WRONGTYPE"
    assert replies[2:5] == [b"\x00\xff", None, -1]
    assert isinstance(replies[5], TierError)
    assert replies[6:] == [1, {b"f": b"1.5"}]  # a map: RESP3 is spoken
    assert tier.stats() == {"error_replies": 2}
    ask.close(tier)


def test_an_error_inside_a_script_is_an_error_in_its_place(tier: RedisTier, ask: Asker) -> None:
    failing = tier.script(b"return redis.call('LPUSH', KEYS[1], 1)")
    first, second, third = ask(tier, Command("SET", "k", 1), failing.call(["k"]), Command("GET", "k"))
    assert (first, third) == (b"OK", b"1")
    assert isinstance(second, TierError)
    assert "WRONGTYPE" in str(second)


def test_nothing_to_ask_is_no_round_trip(ask: Asker) -> None:
    tier = RedisTier("redis://127.0.0.1:1")
    assert ask(tier) == []
    ask.close(tier)


def test_large_values_and_large_pipelines_go_through(tier: RedisTier, ask: Asker) -> None:
    large = bytes(range(256)) * 40_000  # 10 MB: more than any socket's buffer, in both directions
    assert ask(tier, Command("SET", "k", large), Command("GET", "k")) == [b"OK", large]
    assert ask(tier, *[Command("ECHO", number) for number in range(20_000)]) == [b"%d" % n for n in range(20_000)]


def test_a_script_unknown_to_the_server_is_sent_once_with_its_source(
    tier: RedisTier, server: Server, ask: Asker
) -> None:
    script = tier.script(b"return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}")
    assert ask(tier, script.call(["k"], ["a"])) == [[b"k", b"a", 1]]
    assert ask(tier, script.call(["k"], ["a"])) == [[b"k", b"a", 2]]
    assert (server.calls("evalsha"), server.calls("eval")) == (2, 1)
    server.flush_scripts()
    replies = ask(tier, Command("SET", "other", 1), script.call(["k"], ["a"]), Command("GET", "other"))
    assert replies == [b"OK", [b"k", b"a", 3], b"1"]
    # Only the script went again: the other two were not run twice.
    assert (server.calls("evalsha"), server.calls("eval"), server.calls("set")) == (3, 2, 1)
    assert tier.stats()["scripts_sent"] == 2


def test_a_server_that_restarted_without_the_script_is_sent_it_again(
    tier: RedisTier, server: Server, ask: Asker
) -> None:
    script = tier.script(b"return ARGV[1]")
    assert ask(tier, script.call([], ["a"], idempotent=True)) == [b"a"]
    server.restart(empty=True)
    assert ask(tier, script.call([], ["b"], idempotent=True)) == [b"b"]


def test_a_connection_that_died_while_idle_is_replaced_at_once_and_is_no_failure(
    tier: RedisTier, server: Server, ask: Asker
) -> None:
    ask.together(tier, [[Command("PING")]] * 4)
    server.restart(empty=True)
    # Not idempotent: it may be sent, since the dead connection is noticed before anything goes out on it.
    for number in range(1, 5):
        assert ask(tier, Command("INCR", "k")) == [number]
    assert not [name for name in tier.stats() if name.startswith(("errors", "breaker"))]


def test_connections_of_threads_are_bounded_and_made_when_needed(server: Server) -> None:
    tier = RedisTier(server.url, timeout=AMPLE, connections=3)
    assert server.info("clients")["connected_clients"] == 1  # the rig's own
    tier.exchange([Command("PING")])
    tier.exchange([Command("PING")])
    assert server.info("clients")["connected_clients"] == 2
    start = threading.Barrier(12)

    def work() -> list[object]:
        start.wait()
        return [tier.exchange([Command("ECHO", n), Command("DEBUG", "SLEEP", 0.002)])[0] for n in range(5)]

    threads = Started(*[work] * 12)
    assert threads.results() == [[b"%d" % n for n in range(5)]] * 12
    assert server.info("clients")["connected_clients"] == 4
    tier.close()


def test_connections_of_an_event_loop_are_bounded(server: Server) -> None:
    async def work() -> None:
        tier = RedisTier(server.url, timeout=AMPLE, connections=3)
        replies = await asyncio.gather(*[tier.aexchange([Command("ECHO", n)]) for n in range(100)])
        assert replies == [[b"%d" % n] for n in range(100)]
        assert server.info("clients")["connected_clients"] == 4
        await tier.aclose()

    asyncio.run(work())


def test_nobody_waits_longer_than_the_budget_for_a_connection(server: Server, ask: Asker) -> None:
    tier = RedisTier(server.url, timeout=AMPLE, connections=1)
    ask(tier, Command("PING"))
    slow = [Command("DEBUG", "SLEEP", 1)]
    took: list[float] = []
    if ask.kind == "thread":
        holder = Started(lambda: tier.exchange(slow))
        time.sleep(0.2)
        with refused("busy", within=0.2) as caught:
            tier.exchange([Command("PING")], budget=0.2)
        holder.results()
    else:

        async def both() -> None:
            holder = asyncio.create_task(tier.aexchange(slow))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            try:
                await tier.aexchange([Command("PING")], budget=0.2)
            finally:
                took.append(time.monotonic() - began)
                await holder

        with refused("busy") as caught:
            asyncio.run(both())
        assert took[0] < 0.6
    assert not caught.value.sent
    assert "connections=" in str(caught.value)
    ask.close(tier)


def test_many_threads_and_tasks_get_each_the_replies_to_what_they_asked(tier: RedisTier, ask: Asker) -> None:
    exchanges = [[Command("ECHO", f"{caller}-{n}") for n in range(20)] for caller in range(64)]
    for _ in range(5):
        replies = ask.together(tier, exchanges)
        assert replies == [[f"{caller}-{n}".encode() for n in range(20)] for caller in range(64)]


def test_threads_and_several_event_loops_share_a_tier(server: Server) -> None:
    tier = RedisTier(server.url, timeout=AMPLE)

    async def tasks(name: str) -> list[list[bytes]]:
        return await asyncio.gather(*[tier.aexchange([Command("ECHO", f"{name}{n}")]) for n in range(50)])

    def threads(name: str) -> list[list[bytes]]:
        return [tier.exchange([Command("ECHO", f"{name}{n}")]) for n in range(50)]

    work = [lambda name=name: asyncio.run(tasks(name)) for name in "ab"]
    work += [lambda name=name: threads(name) for name in "cd"]
    found = Started(*work).results()
    assert found == [[[f"{name}{n}".encode()] for n in range(50)] for name in "abcd"]
    tier.close()


def test_an_event_loop_that_ends_without_aclose_leaves_no_connection(server: Server) -> None:
    tier = RedisTier(server.url, timeout=AMPLE)
    for _ in range(3):
        assert asyncio.run(tier.aexchange([Command("PING")])) == [b"PONG"]  # a warning would be an error here
    deadline = time.monotonic() + 20
    while server.info("clients")["connected_clients"] != 1:
        assert time.monotonic() < deadline
    tier.close()


def test_a_closed_tier_says_so(server: Server, ask: Asker) -> None:
    tier = RedisTier(server.url, timeout=AMPLE)
    ask(tier, Command("PING"))
    ask.close(tier)
    ask.close(tier)
    with refused("shut") as caught:
        ask(tier, Command("PING"))
    assert not caught.value.sent


@pytest.mark.parametrize("binary", ["valkey-8.1", "redis-7.0"], indirect=True)
def test_a_unix_socket_serves(server: Server, ask: Asker) -> None:
    tier = RedisTier(server.unix_url, timeout=AMPLE)
    assert ask(tier, Command("ECHO", "x")) == [b"x"]
    ask.close(tier)


def test_a_database_is_selected(server: Server, ask: Asker) -> None:
    tier = RedisTier(server.url.replace("/0", "/3"), timeout=AMPLE)
    ask(tier, Command("SET", "k", 1))
    assert (server.admin.dbsize(), server.client(db=3).get("k")) == (0, b"1")
    ask.close(tier)


def test_a_user_and_a_password_with_any_characters_log_in(server: Server, ask: Asker) -> None:
    server.user("app", "p@ss:/?#%", "~ic:*", "+@all")
    tier = RedisTier(f"redis://app:p%40ss%3A%2F%3F%23%25@127.0.0.1:{server.port}/0", timeout=AMPLE)
    stored, denied = ask(tier, Command("SET", "ic:k", 1), Command("SET", "other", 1))
    assert stored == b"OK"
    assert isinstance(denied, TierError)
    assert denied.code == "NOPERM"
    ask.close(tier)


def test_a_wrong_password_is_named_and_not_shown(server: Server, ask: Asker) -> None:
    server.user("app", "right", "~*", "+@all")
    tier = RedisTier(f"redis://app:wrong@127.0.0.1:{server.port}/0", timeout=AMPLE)
    with refused("authentication") as caught:
        ask(tier, Command("PING"))
    assert not caught.value.sent
    assert "user and password" in str(caught.value)
    assert "wrong" not in str(caught.value)
    ask.close(tier)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def with_options(url: str, options: dict[str, str]) -> str:
    return url + "?" + "&".join(f"{name}={value}" for name, value in options.items())


@pytest.fixture
def encrypted(certificates: Certificates) -> Iterator[Server]:
    with Server(tls_program(), tls=certificates, client_auth="yes") as server:
        yield server


def tls_program() -> Binary:
    return program("redis-7.0")  # Debian's has TLS


def test_tls_with_certificates_of_both_sides_serves(encrypted: Server, certificates: Certificates, ask: Asker) -> None:
    url = with_options(encrypted.tls_url, certificates.client_options(with_certificate=True))
    tier = RedisTier(url, timeout=AMPLE)
    large = b"x" * 3_000_000
    assert ask(tier, Command("SET", "k", large), Command("GET", "k")) == [b"OK", large]
    assert ask(tier, Command("PING")) == [b"PONG"]
    assert encrypted.info("clients")["connected_clients"] == 2  # the connection was used again
    ask.close(tier)


def test_a_certificate_of_an_unknown_authority_is_named(encrypted: Server, ask: Asker) -> None:
    tier = RedisTier(encrypted.tls_url, timeout=AMPLE)
    with refused("certificate") as caught:
        ask(tier, Command("PING"))
    assert "ssl_ca_certs" in str(caught.value)
    assert not caught.value.sent
    ask.close(tier)


def test_a_certificate_that_the_server_wants_and_does_not_get_is_named(
    encrypted: Server, certificates: Certificates, ask: Asker
) -> None:
    tier = RedisTier(with_options(encrypted.tls_url, certificates.client_options()), timeout=AMPLE)
    with refused("certificate", "connect", "closed") as caught:
        ask(tier, Command("PING"))
    assert str(encrypted.tls_port) in str(caught.value)
    ask.close(tier)


def test_a_server_that_speaks_something_else_is_named(ask: Asker) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1_000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = Started(serve)
        tier = RedisTier(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=AMPLE, retries=0)
        with refused("protocol") as caught:
            ask(tier, Command("PING"))
        assert "something else" in str(caught.value)
        thread.results()
        ask.close(tier)


def test_an_error_tells_whether_anything_was_sent(server: Server, ask: Asker) -> None:
    tier = RedisTier(server.url, timeout="300ms", retries=0)
    ask(tier, Command("PING"))
    with server.paused(), refused("timeout") as caught:
        ask(tier, Command("INCR", "k"))
    assert caught.value.sent
    ask.close(tier)
    server.kill()
    tier = RedisTier(server.url, timeout="300ms", retries=0)
    with refused("connect") as caught:
        ask(tier, Command("INCR", "k"))
    assert not caught.value.sent
    assert isinstance(caught.value, ConnectionError)
    assert isinstance(caught.value, TierError)
    assert isinstance(caught.value, TierUnavailable)
    ask.close(tier)
