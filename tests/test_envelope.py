"""Envelopes of a shared tier: any language reads them, golden files of each format are read, purges win over them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache import Cache, Key
from infercache._core import (
    Entry,
    Finds,
    Flights,
    Terms,
    _encode_value,
    envelope_decode,
    envelope_encode,
    envelope_refusals,
    tier_envelope,
    tier_take,
)
from infercache.errors import InvalidArgument
from infercache.testing import ManualClock

GOLDEN = Path(__file__).resolve().parent / "vectors" / "envelope"
SECRET = bytes(range(32))
EPOCH = bytes(range(16))
KEY = Key(bytes(range(32)))
FOR_EVER = 2**64 - 1
HEADER = struct.Struct("<4sBBBB32s16sQQQQQQQQfIQQ")


def lz4_block(stored: bytes, length: int) -> bytes:
    """What an LZ4 block decompresses to, from the block format's description: sequences of literals and a match."""
    out, at = bytearray(), 0

    def extended(size: int) -> int:
        nonlocal at
        while size >= 15:
            size += stored[at]
            at += 1
            if stored[at - 1] != 255:
                break
        return size

    while at < len(stored):
        token = stored[at]
        at += 1
        literals = extended(token >> 4)
        out += stored[at : at + literals]
        at += literals
        if at == len(stored):
            break
        offset = int.from_bytes(stored[at : at + 2], "little")
        at += 2
        for _ in range(extended(token & 15) + 4):
            out.append(out[-offset])
    assert len(out) == length
    return bytes(out)


def reference(data: bytes, secret: bytes | None) -> dict[str, Any]:
    """An envelope read by docs/envelope.md alone."""
    fields = HEADER.unpack_from(data)
    magic, version, codec, flags, kind, key, epoch, lsn, life, stale, total, age, *scope, cost, many, length, stored = (
        fields
    )
    assert (magic, version, flags & ~3, HEADER.size) == (b"\x89ICE", 1, 0, 144)
    seal = 32 if flags & 1 else 16
    body = data[:-seal]
    if flags & 1:
        assert secret is not None
        sub_key = blake3.blake3(secret, derive_key_context="infercache 2026-11-23 envelope v1 mac").digest()
        assert blake3.blake3(body, key=sub_key).digest() == data[-seal:]
    else:
        assert secret is None
        assert blake3.blake3(body).digest(16) == data[-seal:]
    tags = list(struct.unpack_from(f"<{many}Q", data, HEADER.size))
    payload = body[HEADER.size + 8 * many :]
    assert len(payload) == stored
    if codec:
        assert codec == 2
        payload = lz4_block(payload, length)
    return {
        "key": key,
        "payload": payload,
        "kind": kind,
        "aligned": bool(flags & 2),
        "epoch": epoch,
        "lsn": lsn,
        "life": None if life == FOR_EVER else life,
        "stale": stale,
        "age": age,
        "total": None if total == FOR_EVER else total,
        "scope": tuple(scope),
        "tags": tags,
        "cost": cost,
    }


fields = st.fixed_dictionaries(
    {
        "payload": st.binary(max_size=300) | st.binary(max_size=20).map(lambda some: some * 100),
        "kind": st.integers(0, 31),
        "aligned": st.booleans(),
        "epoch": st.binary(min_size=16, max_size=16),
        "lsn": st.integers(0, 2**64 - 1),
        "life": st.none() | st.integers(0, FOR_EVER - 1),
        "stale": st.integers(0, FOR_EVER),
        "age": st.integers(0, FOR_EVER),
        "total": st.integers(1, FOR_EVER - 1),
        "scope": st.just((1, 0, 0)) | st.tuples(*[st.integers(1, 2**64 - 1)] * 3),
        "tags": st.lists(st.integers(1, 2**64 - 1), max_size=5),
        "cost": st.floats(0, 1e6, width=32),
    }
)


@given(fields, st.none() | st.just(SECRET), st.sampled_from([0, 512, 2**63]))
def test_any_language_reads_what_is_written(given: dict[str, Any], secret: bytes | None, compress_from: int) -> None:
    data = envelope_encode(KEY, **given, secret=secret, compress_from=compress_from)
    assert envelope_decode(data, KEY, secret=secret) == given
    assert reference(data, secret) == {**given, "key": bytes(KEY)}


@given(st.binary(max_size=400), st.none() | st.just(SECRET))
def test_any_other_bytes_are_refused_by_a_named_reason(data: bytes, secret: bytes | None) -> None:
    assert envelope_decode(data, KEY, secret=secret) in envelope_refusals()
    assert envelope_decode(b"\x89ICE\x01" + data, KEY, secret=secret) in envelope_refusals()


def golden() -> list[dict[str, Any]]:
    """What each golden file holds."""
    return list(json.loads((GOLDEN / "envelopes.json").read_text())["envelopes"])


def arguments(one: dict[str, Any]) -> dict[str, Any]:
    """A golden file's fields as `envelope_encode` takes them."""
    found = dict(one["fields"])
    return {
        **found,
        "payload": bytes.fromhex(found["payload"]),
        "epoch": bytes.fromhex(found["epoch"]),
        "scope": tuple(found["scope"]),
    }


@pytest.mark.parametrize("one", golden(), ids=lambda one: one["file"])
def test_every_golden_file_is_read(one: dict[str, Any]) -> None:
    data = (GOLDEN / one["file"]).read_bytes()
    key, secret = Key(one["key"]), bytes.fromhex(one["secret"]) if one["secret"] else None
    assert envelope_decode(data, key, secret=secret) == arguments(one)
    assert reference(data, secret) == {**arguments(one), "key": bytes(key)}


@pytest.mark.parametrize("one", golden(), ids=lambda one: one["file"])
def test_todays_writer_makes_the_golden_files_of_its_format(one: dict[str, Any]) -> None:
    data = (GOLDEN / one["file"]).read_bytes()
    key, secret = Key(one["key"]), bytes.fromhex(one["secret"]) if one["secret"] else None
    assert data[4] == one["format"]
    written = envelope_encode(key, **arguments(one), secret=secret, compress_from=one["compress_from"])
    if one["codec"] == 0:
        assert written == data
    else:
        # Another release of the compressor may find other matches; what they expand to is the same.
        assert written[5] == data[5] == one["codec"]
        assert reference(written, secret) == reference(data, secret)


def test_there_are_golden_files_of_each_kind_of_seal_and_codec() -> None:
    shapes = {(one["format"], one["codec"], bool(one["secret"])) for one in golden()}
    assert shapes == {(1, codec, secret) for codec in (0, 2) for secret in (False, True)}


def test_a_wrong_argument_is_an_error_that_says_so() -> None:
    with pytest.raises(InvalidArgument, match="at most 31, not 32"):
        envelope_encode(KEY, b"v", kind=32)
    with pytest.raises(InvalidArgument, match="at least 1 ms"):
        envelope_encode(KEY, b"v", life=1)
    with pytest.raises(InvalidArgument, match="at most 4096 tags, not 4097"):
        envelope_encode(KEY, b"v", tags=[1] * 4097)
    with pytest.raises(InvalidArgument, match="32 bytes"):
        envelope_decode(b"", KEY, secret=b"short")
    with pytest.raises(ValueError, match="16"):
        envelope_encode(KEY, b"v", epoch=b"short")


def found(cache: Cache, key: Key) -> Entry:
    """The entry of a key, as a flight finds it."""
    flights = Flights(cache)
    _, entry = flights.join(key, flights.arrive(), None, 1, 0, False)
    assert isinstance(entry, Entry)
    return entry


def tier_promote(reader: Cache, key: Key, data: bytes, remaining: int | None) -> tuple[str, Entry | None]:
    """What becomes of a value of the tier, which the server keeps for so many milliseconds; None: for ever."""
    finds = Finds([key])
    why = tier_take(reader, finds, 0, 1, [data], [-1 if remaining is None else remaining], 0, None)
    if (found := finds[0]) is None:
        ((reason, times),) = why.items()
        assert times == 1
        return reason, None
    assert why == {}
    return found[1], found[0]


def two(secret: bytes | None = None) -> tuple[Cache, Cache, ManualClock]:
    """Two processes' caches of one deployment, which here have the same authority, and their clock."""
    clock = ManualClock(100)
    return Cache("1MB", secret=secret, clock=clock), Cache("1MB", secret=secret, clock=clock), clock


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("value", [np.arange(400, dtype=np.float32), {"a": [1.5] * 300, "b": "text"}, b"bytes", None])
def test_a_promoted_value_is_what_the_other_process_stored(value: Any, secret: bytes | None) -> None:
    writer, reader, clock = two(secret)
    key = writer.key("question", model="m", version="1")
    writer.set(key, value, ttl=60, tags=["t"])
    clock.advance(1)
    wrapped = tier_envelope(writer, found(writer, key), Terms(60_000, 0, None, False))
    assert wrapped is not None
    data, total = wrapped
    assert total == 60_000
    outcome, entry = tier_promote(reader, key, data, 49_000)
    assert outcome == "l2"
    assert entry is not None
    for promoted in (entry.value(Terms(None, 0, None, False)), reader.get(key, "miss")):
        assert _encode_value(promoted) == _encode_value(value)
    seen = reader.lookup(key)
    assert (seen.age, seen.ttl) == (11, 49)
    reader.invalidate(tags=["t"])
    assert reader.get(key, "miss") == "miss"
    again = tier_promote(reader, key, data, 49_000)
    assert again == ("fenced", None), "the purge wins over what is promoted after it"


def test_what_is_not_promoted_says_why() -> None:
    writer, reader, _ = two()
    key, other = (writer.key(text, model="m", version="1") for text in ("a", "b"))
    writer.set(key, "v", ttl=60)
    entry = found(writer, key)
    wrapped = tier_envelope(writer, entry, Terms(30_000, 0, None, False))
    assert wrapped is not None
    data, total = wrapped
    assert total == 30_000
    position = reader._position(reader._stamp())
    assert position is not None
    epoch, lsn = position

    def promote(data: bytes, key: Key, remaining: int | None = 29_000) -> str:
        outcome, entry = tier_promote(reader, key, data, remaining)
        assert entry is None
        return outcome

    assert promote(envelope_encode(key, b"v", epoch=EPOCH), key, None) == "epoch"
    assert promote(data, other) == "key"
    assert promote(data[:-1], key) == "checksum"
    assert promote(b"", key) == "truncated"
    assert promote(data, key, remaining=None) == "times"
    assert promote(data, key, remaining=30_001) == "times"
    assert promote(envelope_encode(key, b"v", epoch=epoch, life=5, total=9, age=5), key, remaining=9) == "over"
    assert promote(envelope_encode(key, bytes(2 << 20), epoch=epoch), key, remaining=None) == "bomb"
    large = envelope_encode(key, np.random.default_rng(1).bytes(1_000_000), epoch=epoch, lsn=lsn)
    outcome, served = tier_promote(reader, key, large, None)
    assert (outcome, served is None) == ("l2", False), "one that memory has no room for is still an answer"
    assert reader.get(key, "miss") == "miss"
    reader._after_fork()
    assert tier_envelope(reader, entry, Terms(30_000, 0, None, False)) is None, "its epoch is over"


def test_each_refusal_leaves_the_cache_as_it_was() -> None:
    _, reader, _ = two(SECRET)
    key = reader.key("a", model="m", version="1")
    data = envelope_encode(key, b"value", epoch=EPOCH, secret=SECRET)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        outcome, entry = tier_promote(reader, key, bytes(flipped), None)
        assert outcome in envelope_refusals()
        assert entry is None
    assert reader.stats().entries == 0
    assert math.isclose(reader.stats().stores, 0)
