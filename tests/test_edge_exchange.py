"""Headers as they stand on the wire, and what is read out of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercache.edge.exchange import Headers, Refused, error_reply

PAIRS = st.lists(st.tuples(st.sampled_from([b"a", b"b", b"vary"]), st.binary(max_size=6)), max_size=6)


@given(PAIRS)
def test_headers_are_what_they_were_made_of(pairs: list[tuple[bytes, bytes]]) -> None:
    headers = Headers(pairs)
    assert list(headers) == headers.raw == pairs and len(headers) == len(pairs)
    assert headers.lines(b"a") == [value for name, value in pairs if name == b"a"]
    assert headers.get(b"a") == next(iter(headers.lines(b"a")), None)
    assert (b"a" in headers) is any(name == b"a" for name, _ in pairs)
    assert list(headers.without(b"a", b"b")) == [pair for pair in pairs if pair[0] == b"vary"]
    changed = headers.replacing((b"a", b"1"), (b"a", b"2"))
    assert changed.lines(b"a") == [b"1", b"2"] and changed.lines(b"b") == headers.lines(b"b")
    assert list(headers) == pairs, "none of that changed them"
    assert headers == Headers(tuple(pairs)) and hash(headers) == hash(Headers(tuple(pairs)))


def test_names_are_lower_case_whatever_an_application_gives() -> None:
    assert Headers.of([(b"X-Odd", b"V"), [b"a", bytearray(b"b")]]).raw == [(b"x-odd", b"V"), (b"a", b"b")]


@pytest.mark.parametrize(
    ("lines", "members"),
    [
        ([b"a, b", b"c"], [b"a", b"b", b"c"]),
        ([b" a ,\tb\t,,", b""], [b"a", b"b"]),
        ([b'no-cache="a, b", x'], [b'no-cache="a, b"', b"x"]),
        ([b'"a\\", b", c'], [b'"a\\", b"', b"c"]),
        ([b'"never closed, x'], [b'"never closed, x']),
        ([], []),
    ],
)
def test_a_list_is_every_lines_members(lines: list[bytes], members: list[bytes]) -> None:
    assert Headers([(b"vary", line) for line in lines]).all(b"vary") == members


def test_values_do_not_show_in_a_representation() -> None:
    assert "secret" not in repr(Headers([(b"authorization", b"secret")]))


def test_an_error_has_the_form_of_openais() -> None:
    reply = error_reply(503, 'not "now"', "busy", (b"retry-after", b"1"))
    assert isinstance(reply.body, bytes)
    assert json.loads(reply.body) == {
        "error": {"message": 'not "now"', "type": "api_error", "param": None, "code": "busy"}
    }
    assert (reply.status, reply.headers.get(b"retry-after"), reply.outcome.kind) == (503, b"1", "error")
    assert b"invalid_request_error" in Refused(400, "x", "y").reply().body  # type: ignore[operator]
