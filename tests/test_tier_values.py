"""Whatever stands under a value's name on the server: if anything is wrong with it, it is a miss and a counter.

The model runs, the answer is right, nothing is raised, and no length is believed before it was checked.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import pytest

from infercache import Cache, Key
from infercache._core import envelope_decode, envelope_encode
from infercache.errors import UnreadableEntry

if TYPE_CHECKING:
    from servers import Server

pytestmark = pytest.mark.network

SCOPE = {"model": "m", "version": "1"}
SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)
CAPACITY = 4 << 20
#: Bytes of an envelope's header, and where its lengths stand (docs/envelope.md).
PAYLOAD_LENGTH = 128


class Fixed:
    """A cache whose model answers always the same, and what the server has of one of its answers."""

    def __init__(self, server: Server, secret: bytes | None) -> None:
        self.server = server
        self.secret = secret
        self.runs = 0
        self.cache = cache = Cache(
            CAPACITY, l2=server.url, secret=secret, timeout="2s", max_staleness="5s", ttl="60s", namespace="values"
        )

        @cache.memoize(operation="ask", tags=["t"], **SCOPE)
        def ask(question: str) -> str:
            self.runs += 1
            return f"answer to {question}"

        @cache.memoize_batch(over="questions", operation="batch", tags=["t"], **SCOPE)
        def batch(questions: list[str]) -> list[str]:
            self.runs += 1
            return [f"answer to {question}" for question in questions]

        self.ask, self.batch = ask, batch

    def good(self, question: str = "q", *, of_batch: bool = False) -> tuple[Key, bytes]:
        """A key, and the envelope that stands under its name when it has been computed anew."""
        key = self.batch.key([question])[0] if of_batch else self.ask.key(question)
        name = self.cache.shared.name_of(key)  # type: ignore[union-attr]
        self.server.admin.delete(name)
        self.cache._empty()
        if of_batch:
            self.batch([question])
        else:
            self.ask(question)
        value = self.server.admin.get(name)
        assert isinstance(value, bytes)
        return key, value

    def put(self, key: Key, value: bytes, px: int | None = 50_000) -> None:
        """Under a key's name, and takes the key out of memory."""
        self.server.admin.set(self.cache.shared.name_of(key), value, px=px)  # type: ignore[union-attr]
        self.cache._empty()

    @property
    def errors(self) -> dict[str, int]:
        return dict(self.cache.shared.errors)  # type: ignore[union-attr]

    def asked(self, way: str, key: Key) -> None:
        """Asks in one way; what comes is right, and it ran the model or said that there is nothing."""
        before = self.runs
        match way:
            case "memoized":
                assert self.ask("q") == "answer to q"
                assert self.runs == before + 1
            case "batch":
                assert self.batch(["q"]) == ["answer to q"]
                assert self.runs == before + 1
            case "get":
                assert self.cache.get(key) is None
            case "get_many":
                assert self.cache.get_many([key]) == [None]
            case "lookup":
                assert self.cache.lookup(key).source == "miss"
            case "aget":
                assert asyncio.run(self.cache.aget(key)) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_refresh_cannot_keep_leaves_nothing_older_with_the_tier(server: Server) -> None:
    state: list[Any] = ["old"]
    with Cache("1MB", l2=server.url, timeout="2s") as cache, Cache("1MB", l2=server.unix_url, timeout="2s") as other:

        def one(question: str) -> Any:
            return state[0]

        def batch(questions: list[str]) -> Any:
            return {"no": "items"} if state[0] is None else [state[0] for _ in questions]

        def decorated(at: Cache) -> tuple[Any, Any]:
            return at.memoize(operation="one", **SCOPE)(one), at.memoize_batch(
                over="questions", operation="batch", **SCOPE
            )(batch)

        for unstorable in (object(), None, b"x" * 2_000_000):
            state[0] = "old"
            functions = decorated(cache)
            assert functions[0]("q") == "old"
            assert functions[1](["q"]) == ["old"]
            state[0] = unstorable
            assert functions[0].refresh("q") == unstorable
            functions[1].refresh(["q"])
            state[0] = "newer"
            for there in (cache, other):
                there._empty()
                for function, question in zip(decorated(there), ("q", ["q"]), strict=True):
                    assert function(question) not in ("old", ["old"])
            cache.invalidate(all=True)


WAYS = ("memoized", "batch", "get", "get_many", "lookup", "aget")


@pytest.fixture(params=[None, SECRET], ids=["checksum", "mac"])
def fixed(server: Server, request: pytest.FixtureRequest) -> Iterator[Fixed]:
    one = Fixed(server, request.param)
    with one.cache:
        yield one


def sealed(body: bytes, secret: bytes | None) -> bytes:
    """What a forger who knows the format (and the secret) would write."""
    if secret is None:
        return body + blake3.blake3(body).digest(16)
    key = blake3.blake3(secret, derive_key_context="infercache 2026-11-23 envelope v1 mac").digest()
    return body + blake3.blake3(body, key=key).digest()


def body_of(value: bytes, secret: bytes | None) -> bytes:
    return value[: -16 if secret is None else -32]


def altered(value: bytes, secret: bytes | None, at: int, new: bytes) -> bytes:
    """With other bytes in one place, and sealed all the same."""
    body = bytearray(body_of(value, secret))
    body[at : at + len(new)] = new
    return sealed(bytes(body), secret)


def bomb(key: Key, value: bytes, secret: bytes | None, size: int) -> bytes:
    parts: Any = envelope_decode(value, key, secret=secret)
    return envelope_encode(key, **{**parts, "payload": bytes(size)}, secret=secret)


Spoil = Callable[[Key, bytes, bytes | None], bytes]
#: What is put in place of a value, and the counter of the reason why it is refused.
SPOILED: dict[str, tuple[str | tuple[str, str], Spoil]] = {
    "nothing at all": ("truncated", lambda key, value, secret: b""),
    "something else": ("magic", lambda key, value, secret: b"\x80\x04K\x01." * 60),
    "cut in the header": ("truncated", lambda key, value, secret: value[:100]),
    "cut in the payload": (("checksum", "mac"), lambda key, value, secret: value[:-3]),
    "another format": ("format", lambda key, value, secret: altered(value, secret, 4, b"\x02")),
    "another codec": ("codec", lambda key, value, secret: altered(value, secret, 5, b"\x01")),
    "unknown flags": ("flags", lambda key, value, secret: altered(value, secret, 6, bytes([value[6] | 128]))),
    "a length beyond all memory": (
        "lengths",
        lambda key, value, secret: altered(value, secret, PAYLOAD_LENGTH, struct.pack("<QQ", 1 << 60, 1 << 60)),
    ),
    "a length that is said to be compressed": (
        "bomb",
        lambda key, value, secret: altered(
            altered(value, secret, 5, b"\x02"), secret, PAYLOAD_LENGTH, struct.pack("<Q", 1 << 60)
        ),
    ),
    "a decompression bomb": ("bomb", lambda key, value, secret: bomb(key, value, secret, 64 << 20)),
    "another way of sealing": (
        ("signed", "unsigned"),
        lambda key, value, secret: sealed(
            altered(value, secret, 6, bytes([value[6] ^ 1]))[: len(body_of(value, secret))],
            None if secret else OTHER_SECRET,
        ),
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_wrong_with_a_value_is_a_miss_and_a_counter(fixed: Fixed, how: str) -> None:
    expected, spoil = SPOILED[how]
    reason = expected if isinstance(expected, str) else expected[fixed.secret is not None]
    for count, way in enumerate(WAYS, start=1):
        key, value = fixed.good(of_batch=way == "batch")
        fixed.put(key, spoil(key, value, fixed.secret))
        fixed.asked(way, key)
        assert fixed.errors == {reason: count}, way
        assert fixed.cache.stats().l2_errors == count


def test_a_flipped_bit_anywhere_is_a_miss_and_a_counter(fixed: Fixed) -> None:
    key, value = fixed.good()
    for place in range(len(value)):
        spoiled = bytearray(value)
        spoiled[place] ^= 1 << (place % 8)
        fixed.put(key, bytes(spoiled))
        fixed.asked("memoized", key)
        fixed.put(key, bytes(spoiled))
        fixed.asked("get", key)
        assert sum(fixed.errors.values()) == 2 * (place + 1), f"byte {place}"
    assert len(fixed.errors) >= 3


def test_a_value_cut_short_anywhere_is_a_miss_and_a_counter(fixed: Fixed) -> None:
    key, value = fixed.good()
    for length in range(len(value)):
        fixed.put(key, value[:length])
        fixed.asked("get", key)
        assert sum(fixed.errors.values()) == length + 1, f"{length} bytes"


def test_another_keys_value_is_a_miss_and_a_counter(fixed: Fixed) -> None:
    _, others = fixed.good("another question")
    for count, way in enumerate(WAYS, start=1):
        key, _ = fixed.good(of_batch=way == "batch")
        fixed.put(key, others)
        fixed.asked(way, key)
        assert fixed.errors == {"key": count}


@pytest.mark.parametrize("forged", [None, OTHER_SECRET], ids=["missing", "of another secret"])
def test_a_mac_that_is_missing_or_forged_is_a_miss_and_a_counter(server: Server, forged: bytes | None) -> None:
    fixed = Fixed(server, SECRET)
    with fixed.cache:
        for count, way in enumerate(WAYS, start=1):
            key, value = fixed.good(of_batch=way == "batch")
            parts: Any = envelope_decode(value, key, secret=SECRET)
            fixed.put(key, envelope_encode(key, **parts, secret=forged))
            fixed.asked(way, key)
            assert fixed.errors == {"unsigned" if forged is None else "mac": count}


@pytest.mark.parametrize("px", [None, 3_600_000], ids=["none", "longer"])
def test_a_life_on_the_server_that_is_missing_or_longer_than_declared_is_a_miss_and_a_counter(
    fixed: Fixed, px: int | None
) -> None:
    for count, way in enumerate(WAYS, start=1):
        key, value = fixed.good(of_batch=way == "batch")
        fixed.put(key, value, px=px)
        fixed.asked(way, key)
        assert fixed.errors == {"times": count}


def test_a_value_of_another_type_is_a_miss_and_a_counter(fixed: Fixed) -> None:
    for count, way in enumerate(WAYS, start=1):
        key, _ = fixed.good(of_batch=way == "batch")
        name = fixed.cache.shared.name_of(key)  # type: ignore[union-attr]
        fixed.server.admin.delete(name)
        fixed.server.admin.rpush(name, "a list")
        fixed.cache._empty()
        fixed.asked(way, key)
        assert fixed.errors == {"type": count}
        fixed.server.admin.delete(name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::infercache.errors.UnreadableEntry")
def test_a_payload_that_does_not_decode_is_a_miss_and_a_counter(fixed: Fixed, way: str) -> None:
    key, value = fixed.good(of_batch=way == "batch")
    parts: Any = envelope_decode(value, key, secret=fixed.secret)
    for count in range(1, 4):
        before = fixed.cache.stats()
        fixed.put(key, envelope_encode(key, **{**parts, "payload": b"\xff\xfe"}, secret=fixed.secret))
        fixed.asked(way, key)
        stats = fixed.cache.stats()
        assert fixed.errors == {"payload": count}
        assert (stats.hits_l1, stats.hits_l2, stats.misses) == (before.hits_l1, before.hits_l2, before.misses + 1)
        assert stats.saved_seconds == pytest.approx(before.saved_seconds)


@pytest.mark.parametrize("way", ["memoized", "batch"])
def test_what_was_computed_in_place_of_a_payload_that_does_not_decode_is_kept(fixed: Fixed, way: str) -> None:
    key, value = fixed.good(of_batch=way == "batch")
    parts: Any = envelope_decode(value, key, secret=fixed.secret)
    for count in range(1, 4):
        fixed.put(key, envelope_encode(key, **{**parts, "payload": b"\xff\xfe"}, secret=fixed.secret))
        fixed.asked(way, key)
        assert fixed.errors == {"payload": count}
        before = fixed.runs
        assert (fixed.ask("q") if way == "memoized" else fixed.batch(["q"])) in ("answer to q", ["answer to q"])
        assert fixed.runs == before, "what was computed instead is kept"
        fixed.cache._empty()
        assert (fixed.ask("q") if way == "memoized" else fixed.batch(["q"])) in ("answer to q", ["answer to q"])
        assert fixed.runs == before, "and was told the server"


def test_of_a_batch_only_what_does_not_decode_is_a_miss(fixed: Fixed) -> None:
    keys = []
    for number in range(4):
        key, value = fixed.good(f"q {number}")
        parts: Any = envelope_decode(value, key, secret=fixed.secret)
        if number % 2:
            name = fixed.cache.shared.name_of(key)  # type: ignore[union-attr]
            fixed.server.admin.set(
                name, envelope_encode(key, **{**parts, "payload": b"\xff\xfe"}, secret=fixed.secret), px=50_000
            )
        keys.append(key)
    fixed.cache._empty()
    before = fixed.cache.stats()
    with pytest.warns(UnreadableEntry):
        found = fixed.cache.get_many([*keys, *keys])
    assert found == 2 * ["answer to q 0", None, "answer to q 2", None]
    stats = fixed.cache.stats()
    assert fixed.errors == {"payload": 2}, "each was asked for once"
    assert (stats.hits_l2 - before.hits_l2, stats.misses - before.misses) == (4, 4)


def test_spoiled_values_leave_memory_as_it_was(fixed: Fixed) -> None:
    key, value = fixed.good()
    spoiled = [spoil(key, value, fixed.secret) for _, spoil in SPOILED.values()]

    def rounds(count: int) -> int:
        for _ in range(count):
            for data in spoiled:
                fixed.put(key, data)
                fixed.asked("get", key)
        return resident()

    before = rounds(10)
    # Each round offers a bomb of 64 MiB and lengths beyond all memory: one believed would show at once.
    assert rounds(60) - before < 16 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("no /proc here to ask for the memory of this process")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
