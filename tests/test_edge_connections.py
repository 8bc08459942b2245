"""What a client may do to the gateway over a raw socket: nothing that another request would notice.

Framing that two servers could read differently is refused and the connection closed, so that no request can hide
another one; whatever takes too much or too long is ended, and what it held is free again.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest

from gateways import Gateway, head_of, opened, read_all, read_one
from model_server import ModelServer
from servers import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.network

HEAD = b"POST /echo HTTP/1.1\r\nHost: h\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
#: What would be a request of its own if the framing before it were read in another way.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(model: ModelServer) -> Iterator[Gateway]:
    with Gateway(
        model.url,
        max_body="100kB",
        max_headers="8KiB",
        header_timeout="1s",
        body_timeout="1s",
        write_timeout="1s",
        keep_alive="2s",
    ) as gateway:
        yield gateway


def idle(model: ModelServer) -> None:
    until(lambda: model.control()["busy"] == 0, "the model server has nothing under way")


REFUSED = {
    "Content-Length twice, equal": HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "Content-Length twice, different": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "Content-Length as a list": HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    "Content-Length with a sign": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "Content-Length below zero": HEAD + b"Content-Length: -5\r\n\r\nhello",
    "Content-Length in hexadecimal": HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    "Content-Length in two words": HEAD + b"Content-Length: 5 5\r\n\r\nhello",
    "Content-Length empty": HEAD + b"Content-Length: \r\n\r\nhello",
    "Content-Length beyond 64 bits": HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "length, then chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "coding that is no coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "another coding before chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, and another line of it": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked behind a vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "white space before a colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "white space before the coding's colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "obsolete folding": HEAD + b"X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello",
    "obsolete folding of the coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "obsolete folding by a tab": HEAD + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
    "folding of the first line": b"POST /echo HTTP/1.1\r\n Host: h\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in a value": HEAD + b"X: a\0b\r\nContent-Length: 5\r\n\r\nhello",
    "NUL in a name": HEAD + b"X\0: a\r\nContent-Length: 5\r\n\r\nhello",
    "carriage return in a value": HEAD + b"X: a\rb\r\nContent-Length: 5\r\n\r\nhello",
    "lines that end with a line feed": b"POST /echo HTTP/1.1\nHost: h\nContent-Length: 5\n\nhello",
    "chunk size that is no number": CHUNKED + b"\r\nzz\r\nhello\r\n0\r\n\r\n",
    "chunk size below zero": CHUNKED + b"\r\n-5\r\nhello\r\n0\r\n\r\n",
    "chunk size with a prefix": CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": CHUNKED + b"\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "chunk size ended by a line feed": CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"\r\n5\r\nhelloX\r\n0\r\n\r\n",
    "chunk extension with a line feed": CHUNKED + b"\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "no Host": b"GET /echo HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /echo HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
    "HTTP/0.9": b"GET /echo\r\n\r\n",
    "HTTP/2 without its preface": b"GET /echo HTTP/2.0\r\nHost: h\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a target with a space": b"GET /ec ho HTTP/1.1\r\nHost: h\r\n\r\n",
    "a target that is a host": b"CONNECT inside:80 HTTP/1.1\r\nHost: h\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "chunked before an upgrade": CHUNKED + b"Connection: upgrade\r\nUpgrade: x\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
def test_framing_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    gateway: Gateway, model: ModelServer, name: str
) -> None:
    before = model.control()["served"]
    answer = gateway.exchange(REFUSED[name] + HIDDEN)
    status, headers, body = head_of(answer)
    assert status == 400
    assert headers["connection"] == "close"
    assert b'"code": "bad_request"' in body
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is never answered"
    idle(model)
    assert model.control()["served"] == before, "and nothing of it has reached the model server"


def test_an_answer_under_way_is_not_broken_into_by_what_is_wrong_after_it(gateway: Gateway) -> None:
    slow = b"GET /slow?s=0.3 HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = gateway.exchange(slow + b"GET / HTTP/1.1\r\nbad\r\n\r\n")
    status, headers, body = head_of(answer)
    assert (status, body, headers.get("connection")) == (200, b"slow", "close")


def test_a_refused_body_in_a_pipeline_lets_the_request_before_it_be_answered(gateway: Gateway) -> None:
    slow = b"GET /slow?s=0.3 HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = gateway.exchange(slow + CHUNKED + b"\r\nzz\r\n")
    assert head_of(answer)[2] == b"slow"
    assert answer.count(b"HTTP/1.1 ") == 1


def test_trailers_are_no_headers(gateway: Gateway) -> None:
    trailers = b"Authorization: Bearer stolen\r\nX-Trailer: 1\r\n"
    with gateway.connect() as connection:
        connection.sendall(CHUNKED + b"Connection: close\r\n\r\n5\r\nhello\r\n0\r\n" + trailers + b"\r\n")
        status, _, body = head_of(read_all(connection))
    assert status == 200
    assert b"stolen" not in body and b"railer" not in body
    assert b'"length": 5' in body


def test_endless_trailers_and_chunk_extensions_are_refused(gateway: Gateway) -> None:
    for endless in (b"\r\n5\r\nhello\r\n0\r\nX: ", b"\r\n5;x="):
        with gateway.connect() as connection:
            connection.sendall(CHUNKED + endless)
            time.sleep(0.1)
            for _ in range(4):
                connection.sendall(b"x" * 4_096)
                time.sleep(0.02)
            assert head_of(read_all(connection))[0] == 431


def test_an_offer_of_another_protocol_is_ignored_and_what_follows_is_no_request(gateway: Gateway) -> None:
    offer = b"Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n"
    answer = gateway.exchange(HEAD + offer + b"hello" + HIDDEN)
    status, headers, body = head_of(answer)
    assert (status, headers["connection"]) == (200, "close")
    assert b'"length": 5' in body and b"upgrade" not in body.lower()
    assert answer.count(b"HTTP/1.1 ") == 1
    # The body in pieces.
    with gateway.connect() as connection:
        for part in (HEAD + offer, b"he", b"ll", b"o" + HIDDEN):
            connection.sendall(part)
            time.sleep(0.05)
        assert b'"length": 5' in read_all(connection)


def test_a_head_beyond_the_limit_is_told_431(gateway: Gateway) -> None:
    for large in (
        b"GET /echo HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 8_192 + b"\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 2_000 + b"\r\n",
        b"GET /" + b"x" * 8_192 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000,  # without an end
    ):
        status, headers, body = head_of(gateway.exchange(large))
        assert (status, headers["connection"]) == (431, "close")
        assert b'"code": "headers_too_large"' in body
    just = b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: " + b"x" * 8_000 + b"\r\n\r\n"
    assert head_of(gateway.exchange(just))[0] == 200


def test_a_body_beyond_the_limit_is_told_413_and_does_not_reach_the_model(gateway: Gateway, model: ModelServer) -> None:
    before = model.control()["bytes"]
    with gateway.connect() as connection:  # declared: told at once
        connection.sendall(HEAD + b"Content-Length: 100001\r\n\r\n")
        status, _, body = head_of(read_all(connection))
        assert status == 413
        assert b'"code": "body_too_large"' in body
    assert model.control()["bytes"] == before
    with gateway.connect() as connection:  # not declared: told when it is
        connection.sendall(CHUNKED + b"\r\n")
        for _ in range(11):
            connection.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert head_of(read_all(connection))[0] == 413
    idle(model)
    assert gateway.ask("/echo", b"x" * 100_000).status == 200


def test_a_slow_head_is_told_408_and_a_silent_connection_is_closed(gateway: Gateway) -> None:
    with gateway.connect() as slow, gateway.connect() as silent:
        began = time.monotonic()
        slow.sendall(b"GET /echo HTTP/1.1\r\nHo")
        for letter in (b"s", b"t", b":", b" "):
            time.sleep(0.15)
            slow.sendall(letter)
        status, headers, _ = head_of(read_all(slow))
        assert (status, headers["connection"]) == (408, "close")
        assert read_all(silent) == b""
        assert 0.9 < time.monotonic() - began < 30


def test_a_slow_body_is_told_408_and_frees_the_model(gateway: Gateway, model: ModelServer) -> None:
    with gateway.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 50\r\n\r\nhello")
        status, _, body = head_of(read_all(connection))
        assert status == 408
        assert b'"code": "body_too_slow"' in body
    idle(model)


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        for pause in (0, 0.7, 0.7, 0.7):
            time.sleep(pause)
            connection.sendall(b"GET /slow?s=0 HTTP/1.1\r\nHost: h\r\n\r\n")
            assert head_of(read_one(connection))[2] == b"slow"
        began = time.monotonic()
        assert read_all(connection) == b""
        assert 1.5 < time.monotonic() - began < 30


def test_a_reader_that_takes_nothing_is_cut_off_and_frees_the_model(gateway: Gateway, model: ModelServer) -> None:
    with gateway.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.sendall(b"GET /endless?size=100000&pause=0 HTTP/1.1\r\nHost: h\r\n\r\n")
        until(lambda: model.control()["busy"] == 1, "the answer is on its way")
        idle(model)
    until(lambda: gauges(gateway)["in_flight"] == 0, "the gateway has nothing under way")


@pytest.mark.parametrize("path", ["/hang", "/endless"])
@pytest.mark.parametrize("how", ["closes", "resets", "half-closes"])
def test_a_client_that_leaves_frees_what_it_held(gateway: Gateway, model: ModelServer, path: str, how: str) -> None:
    with gateway.connect() as connection:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
        if path == "/endless":
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200")
        until(lambda: model.control()["busy"] == 1, "the model is being asked")
        if how == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "half-closes":
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)
        else:
            connection.close()
        idle(model)
    until(lambda: gauges(gateway) == {"in_flight": 0, "busy": 0}, "the gateway has nothing under way")


def test_a_client_that_leaves_in_the_middle_of_its_body_frees_what_it_held(
    gateway: Gateway, model: ModelServer
) -> None:
    for sent in (HEAD + b"Content-Length: 50\r\n\r\nhello", CHUNKED + b"\r\n5\r\nhello\r\n"):
        with gateway.connect() as connection:
            connection.sendall(sent)
            until(lambda: gauges(gateway)["in_flight"] == 1, "the gateway reads its body")
    until(lambda: gauges(gateway) == {"in_flight": 0, "busy": 0}, "the gateway has nothing under way")
    idle(model)


def test_many_connections_are_served_at_once_and_more_than_the_limit_are_told_503(model: ModelServer) -> None:
    with Gateway(model.url, max_connections=600) as gateway, opened(gateway, 500) as connections:
        for connection in connections:
            connection.sendall(b"GET /slow?s=0.5 HTTP/1.1\r\nHost: h\r\n\r\n")
        for connection in connections:
            assert head_of(read_one(connection))[2] == b"slow"
        with opened(gateway, 150) as more:
            for connection in more:
                connection.sendall(b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n")
            assert {head_of(read_one(connection))[0] for connection in more} == {200, 503}


def gauges(gateway: Gateway) -> dict[str, int]:
    """Requests under way at the upstream, and connections to it that carry one."""
    text = gateway.operate("/-/metrics").body.decode()
    found = {}
    for name in ("in_flight", "busy"):
        line = next(line for line in text.splitlines() if line.startswith(f"infercache_edge_upstream_{name} "))
        found[name] = int(float(line.split()[1]))
    return found
