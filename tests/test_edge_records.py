"""Kept answers: what is read is what was written, and nothing else is read; streams: which of them are whole."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.edge.events import events, refusal
from infercache.edge.exchange import Headers
from infercache.edge.records import Record, Replay, worth_replaying

DONE = frozenset({b"[DONE]"})
FIELDS = st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=60)), max_size=5)
RECORDS = st.one_of(
    st.builds(Record, FIELDS.map(Headers), st.binary(), st.none(), st.integers(0, 1 << 31), st.floats(0, 1e6)),
    st.builds(
        lambda fields, pieces: Record(Headers(fields), b"".join(pieces), tuple(map(len, pieces)) or None),
        FIELDS,
        st.lists(st.binary(min_size=1)),
    ),
)


@given(RECORDS)
def test_what_is_read_is_what_was_written(record: Record) -> None:
    assert Record.decode(record.encode()) == record


@given(RECORDS, st.data())
def test_what_was_cut_or_changed_is_a_miss_or_another_record_and_never_an_error(
    record: Record, data: st.DataObject
) -> None:
    encoded = record.encode()
    cut = encoded[: data.draw(st.integers(0, len(encoded)))]
    place = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:place] + bytes([data.draw(st.integers(0, 255))]) + encoded[place + 1 :]
    for wrong in (cut, changed):
        found = Record.decode(wrong)
        assert found is None or isinstance(found, Record)
    if record.sizes and len(cut) < len(encoded):
        assert Record.decode(cut) is None


@given(st.one_of(st.none(), st.integers(), st.text(), st.binary(max_size=40)))
def test_what_was_never_one_is_a_miss(kept: object) -> None:
    assert Record.decode(kept) is None


@given(st.lists(st.binary(min_size=1)))
def test_a_stream_is_replayed_in_its_pieces(pieces: list[bytes]) -> None:
    async def replayed() -> list[bytes]:
        return [piece async for piece in Replay(Record(Headers(), b"".join(pieces), [len(each) for each in pieces]))]

    assert asyncio.run(replayed()) == pieces


def test_headers_of_the_exchange_are_not_replayed() -> None:
    came = [
        (b"content-type", b"application/json"),
        (b"x-request-id", b"1"),
        (b"set-cookie", b"a=b"),
        (b"date", b"now"),
        (b"x-ratelimit-remaining-requests", b"9"),
        (b"surrogate-key", b"a b"),
        (b"x-model-version", b"7"),
    ]
    assert worth_replaying(came).raw == [came[0], came[5]]
    assert worth_replaying(came, (b"x-model-version",)).raw == [came[0], came[5], came[6]]


def test_events_are_read_as_browsers_read_them() -> None:
    text = b"\xef\xbb\xbf: hello\r\nevent: delta\r\ndata: a\r\ndata:b\r\n\r\n"
    text += b"data\n\nid: 1\rdata:  c\r\rretry: 9\n\ndata: d"
    assert list(events(text)) == [(b"delta", b"a\nb"), (b"", b""), (b"", b" c"), (b"", b"d")]


@pytest.mark.parametrize(
    "text",
    [
        b'data: {"a":1}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\r\n\r\ndata: [DONE]\r\n\r\n',
        b"data:[DONE]\n\n",
        b"data: [DONE]",
        b'data: {"choices":[{"delta":{"content":"an error, \\"error\\": 1"}}]}\n\ndata: [DONE]\n\n',
        b'data: {"error":null}\n\ndata: [DONE]\n\n',
        b"data: an error that is no JSON\n\ndata: [DONE]\n\n: bye\n\n",
    ],
)
def test_whole_streams_are_kept(text: bytes) -> None:
    assert refusal(text, DONE) == ""


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"overloaded"}}',
        b'data: {"error":"overloaded"}',
        b'event: error\ndata: {"message":"x"}',
        b'data: {"object":"error","message":"x"}',
        b'data: {"type":"error"}',
        b'data: {"choices":[{"delta":{},"finish_reason":"error"}]}',
        b"event: error\ndata: x",
    ],
)
def test_streams_that_tell_of_an_error_are_not(event: bytes) -> None:
    assert refusal(b'data: {"a":1}\n\n' + event + b"\n\ndata: [DONE]\n\n", DONE) == "stream-error"


@pytest.mark.parametrize(
    "text", [b"", b'data: {"a":1}\n\n', b"data: [DONE]\n\ndata: {}\n\n", b"data: [DON", b": [DONE]\n\n", b"[DONE]\n\n"]
)
def test_streams_without_their_last_event_are_not(text: bytes) -> None:
    assert refusal(text, DONE) == "stream-unfinished"


@given(st.lists(st.dictionaries(st.text(), st.integers(), max_size=3), max_size=5), st.data())
def test_no_part_of_a_stream_is_taken_for_the_whole(values: list[dict[str, int]], data: st.DataObject) -> None:
    text = b"".join(b"data: %b\n\n" % json.dumps({"x": value}).encode() for value in values) + b"data: [DONE]\n\n"
    assert refusal(text, DONE) == ""
    cut = data.draw(st.integers(0, len(text) - 3))
    assert refusal(text[:cut], DONE) == "stream-unfinished"


def test_an_operator_names_other_last_events() -> None:
    assert refusal(b"data: [DONE]\n\n", frozenset({b"end"})) == "stream-unfinished"
    assert refusal(b"data: end\n\n", frozenset({b"end", b"[DONE]"})) == ""
