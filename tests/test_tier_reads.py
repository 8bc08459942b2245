"""Many values at once: what is sent, what comes back, and what is done while the rest is on its way."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import hiredis
import pytest

from infercache import Cache, Key, RedisTier, _core
from infercache.effects import drive
from infercache.errors import TierError
from infercache.tiers import Command
from infercache.tiers.commands import Reads
from proxy import Cut, Delay, Proxy, Trickle
from servers import NAMES, until
from sharing import key, make

if TYPE_CHECKING:
    from asking import Asker
    from servers import Server

pytestmark = pytest.mark.network

COUNTS = (1, 2, Reads.CHUNK - 1, Reads.CHUNK, Reads.CHUNK + 1, 2 * Reads.CHUNK + 1)


def names_of(count: int) -> _core.Names:
    return _core.Names("name ", [Key(number.to_bytes(32, "big")) for number in range(count)])


def test_names_are_the_prefix_and_the_digits_of_each_key() -> None:
    names = names_of(300)
    assert list(names) == [b"name %064x" % number for number in range(300)]
    assert len(names) == 300
    with pytest.raises(TypeError, match=r"a key is an infercache.Key, not str"):
        _core.Names("name ", ["0" * 64])  # type: ignore[list-item]


@pytest.mark.parametrize("count", COUNTS)
def test_each_life_is_asked_for_before_its_value(count: int) -> None:
    reads = Reads(names_of(count))
    reader = hiredis.Reader()
    parts = reads.packed()
    assert len(parts) == -(-count // Reads.CHUNK)
    reader.feed(b"".join(parts))
    sent = []
    while (command := reader.gets()) is not False:
        sent.append(command)
    assert len(sent) == reads.replies
    lives: list[bytes] = []
    values: list[bytes] = []
    for name, *arguments in sent:
        if name == b"PTTL":
            lives += arguments
        else:
            assert name == (b"GET" if len(arguments) == 1 else b"MGET")
            values += arguments
            assert values == lives, "a value that comes in between must not be taken for younger than it is"
    assert values == list(names_of(count))
    first = names_of(1)[0]
    assert [part.args for part in reads.parts()[:2]] == [("PTTL", first), ("GET", first)]


@pytest.mark.parametrize("binary", NAMES, indirect=True)
@pytest.mark.parametrize("count", [1, Reads.CHUNK + 1])
def test_values_and_lives_come_in_the_order_of_their_names(server: Server, ask: Asker, count: int) -> None:
    tier, names = RedisTier(server.url, timeout="20s"), names_of(count)
    for name in list(names)[::2]:
        server.admin.set(name, b"value of " + name, px=60_000)
    before, (values, lives), after = ask(tier, Command("ECHO", "a"), Reads(names), Command("ECHO", "b"))
    assert (before, after) == (b"a", b"b")
    assert values == [None if number % 2 else b"value of " + name for number, name in enumerate(names)]
    assert [life == -2 if number % 2 else 50_000 < life <= 60_000 for number, life in enumerate(lives)] == [
        True
    ] * count
    ask.close(tier)


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_stands_in_the_place_of_what_it_befell(server: Server, ask: Asker, count: int) -> None:
    server.user("app", "secret", "~*", "&*", "+@all", "-get", "-mget")
    server.admin.set(names_of(1)[0], "v")
    tier = RedisTier(f"redis://app:secret@127.0.0.1:{server.port}/0", timeout="20s")
    ((values, lives),) = ask(tier, Reads(names_of(count)))
    assert lives == [-1, -2, -2][:count]
    assert all(isinstance(value, TierError) and value.code == "NOPERM" for value in values)
    assert len(values) == count
    assert tier.stats()["error_replies"] == 1
    ask.close(tier)


@pytest.mark.parametrize("trickles", [False, True])
def test_what_has_come_is_told_while_the_rest_is_on_its_way(server: Server, ask: Asker, trickles: bool) -> None:
    names = names_of(3 * Reads.CHUNK)
    for name in names:
        server.admin.set(name, name * 13)
    with Proxy(server.address) as proxy:
        proxy.set(replies=Trickle(20_000, 0.05) if trickles else Delay(0))
        tier = RedisTier(proxy.url, timeout="20s")
        told: list[tuple[float, Any]] = []
        first, reads = Command("ECHO", "first"), Reads(names)
        first.heed = reads.heed = lambda reply: told.append((time.monotonic(), reply))
        _, (values, _) = ask(tier, first, reads)
        ended = time.monotonic()
        ask.close(tier)
    chunks = [reply for _, reply in told[1:]]
    assert values == [name * 13 for name in names]
    if trickles:
        assert told[0][1] == b"first"
        assert ended - told[0][0] > 0.05
        assert [start for start, _, _ in chunks] == [0, Reads.CHUNK, 2 * Reads.CHUNK][: len(chunks)]
        assert chunks
    for start, some, lives in chunks:
        assert some == values[start : start + Reads.CHUNK]
        assert lives == [-1] * Reads.CHUNK


def filled(cache: Cache, count: int) -> list[Any]:
    keys = [key(cache, number) for number in range(count)]
    assert cache.set_many([(each, "answer " * 200) for each in keys]) == count
    return keys


def test_a_batch_asks_for_each_key_once_however_often_it_stands_there(
    server: Server, pair: tuple[Cache, Cache]
) -> None:
    one, other = pair
    keys = filled(one, 100)
    assert other.get_many([*keys, *reversed(keys), *keys[:5]]) == ["answer " * 200] * 205
    assert server.calls("pttl") == 100
    assert (server.calls("mget"), server.calls("get")) == (2, 0)
    stats = other.stats()
    assert (stats.hits_l2, stats.misses) == (205, 0)
    assert other.get_many([*keys, *keys]) == ["answer " * 200] * 200
    assert other.stats().hits_l1 == 200
    missing = key(other, "missing")
    assert other.get_many([missing, missing, keys[0]], "no") == ["no", "no", "answer " * 200]
    assert other.stats().misses == 2


def test_what_came_before_the_connection_broke_is_not_lost(server: Server) -> None:
    with make(server.url) as one, Proxy(server.address) as proxy:
        keys = filled(one, 4 * Reads.CHUNK)
        size = len(server.admin.get(one.shared.name_of(keys[0])))  # type: ignore[union-attr, arg-type]
        tier = RedisTier(proxy.url, timeout="5s", retries=0)
        with contextlib.closing(tier), Cache("8MB", l2=tier, timeout="5s") as other:
            until(lambda: other.get(keys[0]) is not None, "it is connected, and knows the epoch")
            other._empty()
            before = other.stats()
            proxy.set(replies=Cut(after=int(2.5 * Reads.CHUNK * size)))
            found = other.get_many(keys)
            there = [value is not None for value in found]
            assert there[: 2 * Reads.CHUNK] == [True] * 2 * Reads.CHUNK
            assert there[3 * Reads.CHUNK :] == [False] * Reads.CHUNK
            stats = other.stats()
            assert stats.hits_l2 - before.hits_l2 == sum(there)
            assert stats.misses - before.misses == len(keys) - sum(there)


def test_a_purge_between_two_chunks_is_heeded(pair: tuple[Cache, Cache], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    keys = filled(one, 3 * Reads.CHUNK)
    other.get(key(other, "so that the epoch is known"))
    take, taken = _core.tier_take, 0

    def purged_after_the_first(*arguments: Any, **named: Any) -> Any:
        nonlocal taken
        found = take(*arguments, **named)
        taken += 1
        if taken == 1:
            one.invalidate(all=True)
            drive(other.shared.coherence.poll(5.0, other.shared.tier))  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(_core, "tier_take", purged_after_the_first)
    found = other.get_many(keys)
    assert taken == 3
    assert found[Reads.CHUNK :] == [None] * 2 * Reads.CHUNK, "they were purged before they were looked at"
