"""What passes through the gateway arrives as it was sent, in both directions: byte for byte, and as it comes."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asgi import Call
from certificates import Certificates
from gateways import Gateway, head_of, read_all, read_one
from infercache.edge import Settings
from infercache.edge.upstream import Upstream
from model_server import ModelServer
from servers import free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(model: ModelServer) -> Iterator[Gateway]:
    with Gateway(model.url) as gateway:
        yield gateway


def raw(gateway: Gateway, answer: bytes, method: bytes = b"POST") -> bytes:
    """What the client gets if the model server answers these bytes."""
    head = b"%b /raw HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (method, len(answer))
    return gateway.exchange(head + answer)


def seen(gateway: Gateway, target: str = "/echo", *fields: bytes, body: bytes = b"") -> list[str]:
    """The head that the model server gets."""
    lines = [b"POST %b HTTP/1.1" % target.encode(), b"Host: client.example", b"Connection: close", *fields]
    answer = gateway.exchange(b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body]))
    return json.loads(head_of(answer)[2])["head"]


# ----------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    "target",
    [
        "/echo",
        "/a/../b",
        "/./x//y",
        "/%2e%2e/%2F",
        "/a%zz?x=%zz&&=",
        "/a?",
        "/a?b?c",
        "//host/x",
        "/;a=b,c",
        "/~!$'()*[]",
    ],
)
def test_a_target_arrives_as_it_was_sent(gateway: Gateway, target: str) -> None:
    assert seen(gateway, target)[0] in (f"POST {target} HTTP/1.1", f"POST {target.removesuffix('?')} HTTP/1.1")


def test_headers_arrive_in_their_order_and_number_with_the_bytes_they_had(gateway: Gateway) -> None:
    fields = [
        b"X-B: 1",
        b"X-A:  two  words ",
        "X-U: häß".encode(),
        b"X-B: 2",
        b"X-Empty:",
        b"Accept-Encoding: br;q=1, gzip",
    ]
    lines = [line for line in seen(gateway, "/echo", *fields) if line.lower().startswith(("x-", "accept"))]
    assert [[part.rstrip() for part in line.split(": ", 1)] for line in lines] == [
        ["x-b", "1"],
        ["x-a", "two  words"],
        ["x-u", "häß".encode().decode("latin-1")],
        ["x-b", "2"],
        ["x-empty", ""],
        ["accept-encoding", "br;q=1, gzip"],
    ]


def test_nothing_is_added_to_a_request(gateway: Gateway) -> None:
    names = {line.split(":")[0].lower() for line in seen(gateway)[1:]}
    assert names == {"host", "content-length"}


def test_hop_by_hop_headers_stay_on_their_connection(gateway: Gateway, model: ModelServer) -> None:
    fields = [
        b"Connection: X-Named , keep-alive",
        *(b"X-Named: 1", b"Keep-Alive: 5", b"TE: trailers", b"Trailer: X", b"Proxy-Authorization: p", b"Upgrade: x"),
        *(b"Proxy-Connection: close", b"Proxy-Authenticate: x", b"X-Stays: 1"),
    ]
    names = {line.split(":")[0].lower() for line in seen(gateway, "/echo", *fields)[1:]}
    assert names == {"host", "content-length", "x-stays"}
    answer = raw(
        gateway,
        b"HTTP/1.1 200 OK\r\nConnection: x-named, close\r\nX-Named: 1\r\nKeep-Alive: 5\r\nProxy-Authenticate: p\r\n"
        b"Upgrade: h2c\r\nTrailer: X\r\nX-Stays: 1\r\nContent-Length: 2\r\n\r\nok",
    )
    assert set(head_of(answer)[1]) - {"date"} == {"x-stays", "content-length", "connection"}, (
        "the last is the client's own"
    )


def test_a_connection_header_cannot_take_framing_or_the_host_away(gateway: Gateway) -> None:
    lines = seen(
        gateway, "/echo", b"Connection: Content-Length, Host, Content-Type", b"Content-Type: a/b", body=b"hello"
    )
    assert {line.split(":")[0].lower() for line in lines[1:]} == {"host", "content-length", "content-type"}


def test_the_host_is_the_upstreams_unless_it_is_preserved(gateway: Gateway, model: ModelServer) -> None:
    assert f"Host: 127.0.0.1:{model.port}" in seen(gateway)
    with Gateway(model.url, preserve_host=True) as other:
        assert "host: client.example" in [line.lower() for line in seen(other)]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_large_body_arrives_whole(gateway: Gateway, *, is_chunked: bool) -> None:
    body = bytes(range(256)) * 40_000
    if is_chunked:
        parts = [body[at : at + 70_001] for at in range(0, len(body), 70_001)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        head = b"Transfer-Encoding: chunked"
    else:
        sent, head = body, b"Content-Length: %d" % len(body)
    answer = gateway.exchange(b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n" + head + b"\r\n\r\n" + sent)
    told = json.loads(head_of(answer)[2])
    assert (told["length"], told["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_a_body_is_passed_on_as_it_comes(gateway: Gateway, model: ModelServer) -> None:
    before = model.control()["bytes"]
    with gateway.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello")
        until(lambda: model.control()["bytes"] == before + 5, "the first half is there before the second was sent")
        connection.sendall(b"world")
        assert b'"length": 10' in read_all(connection)


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"hello")
        assert b'"length": 5' in read_all(connection)


# ------------------------------------------------------------------------------------------------------------ answers

STATUSES = [
    200,
    201,
    202,
    206,
    226,
    299,
    300,
    301,
    302,
    307,
    308,
    400,
    401,
    404,
    418,
    422,
    429,
    451,
    499,
    500,
    503,
    599,
]
TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(lambda name: f"x-{name}".encode())
VALUE = st.binary(max_size=30).map(lambda value: bytes(b for b in value if 0x20 <= b != 0x7F).strip())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.sampled_from(STATUSES),
    fields=st.lists(st.tuples(TOKEN, VALUE), max_size=6),
    body=st.binary(max_size=3_000),
    framing=st.sampled_from(["length", "chunked", "end"]),
)
@example(200, [(b"content-encoding", b"gzip")], b"not gzip at all", "length")
@example(302, [(b"location", b"http://elsewhere/")], b"", "length")
@example(200, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2; Path=/")], b"x", "chunked")
def test_an_answer_passes_byte_for_byte(
    gateway: Gateway, status: int, fields: list[tuple[bytes, bytes]], body: bytes, framing: str
) -> None:
    head = [b"HTTP/1.1 %d Whatever" % status, *(b"%b: %b" % field for field in fields)]
    if framing == "length":
        head.append(b"content-length: %d" % len(body))
        sent = body
    elif framing == "chunked":
        head.append(b"transfer-encoding: chunked")
        sent = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + 700]), body[at : at + 700]) for at in range(0, len(body), 700)
        )
        sent += b"0\r\n\r\n"
    else:
        sent = body
    answer = raw(gateway, b"\r\n".join([*head, b"", sent]))
    got, _, rest = answer.partition(b"\r\n\r\n")
    lines = got.split(b"\r\n")
    assert lines[0].split(b" ")[1] == b"%d" % status
    own = (b"content-length:", b"transfer-encoding:", b"connection:", b"date:")
    assert [line for line in lines[1:] if not line.startswith(own)] == [b"%b: %b" % field for field in fields]
    assert (dechunked(rest) if b"transfer-encoding: chunked" in lines else rest) == body


def dechunked(text: bytes) -> bytes:
    parts = []
    while text:
        size, _, text = text.partition(b"\r\n")
        parts.append(text[: int(size, 16)])
        text = text[int(size, 16) + 2 :]
    return b"".join(parts)


def test_an_answer_has_one_date_the_upstreams_if_it_has_one(gateway: Gateway) -> None:
    date = b"Tue, 15 Nov 1994 08:12:31 GMT"
    assert raw(gateway, b"HTTP/1.1 200 OK\r\ndate: %b\r\n\r\n" % date).lower().count(b"date: ") == 1
    assert head_of(raw(gateway, b"HTTP/1.1 200 OK\r\ndate: %b\r\n\r\n" % date))[1]["date"] == date.decode().lower()
    assert raw(gateway, b"HTTP/1.1 200 OK\r\n\r\n").lower().count(b"date: ") == 1


def test_a_client_of_http_1_0_gets_no_chunks_and_the_end_with_the_connection(gateway: Gateway) -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    for answer, body in (
        (chunked, b"hello world"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No\r\n\r\n", b""),
    ):
        got = gateway.exchange(b"POST /raw HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        _, headers, rest = head_of(got)
        assert "transfer-encoding" not in headers and headers["connection"] == "close"
        assert rest == body


def test_an_answer_that_comes_before_the_body_is_passed_on(gateway: Gateway, model: ModelServer) -> None:
    with gateway.connect() as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
        assert head_of(read_one(connection))[2] == b"early"
        assert read_all(connection) == b"", "the connection is closed, since the rest never came"
    until(lambda: model.control()["busy"] == 0, "the model is let go")


async def test_what_may_be_repeated_is_when_an_idle_connection_was_just_closed(model: ModelServer) -> None:
    for repeatable, status in ((True, 200), (False, 502)):
        upstream = Upstream(Settings(upstream=model.url))
        try:
            assert (await Call("/once", b"x")(upstream)).status == 200
            again = await Call("/once", b"x")(upstream, **({"infercache.repeatable": True} if repeatable else {}))
            assert again.status == status
        finally:
            await upstream.aclose()


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_none(gateway: Gateway, status: int) -> None:
    length = b"content-length: 10\r\n" if status == 304 else b""
    answer = raw(gateway, b'HTTP/1.1 %d X\r\netag: "a"\r\n%b\r\n' % (status, length))
    got, headers, rest = head_of(answer)
    assert (got, headers["etag"], rest) == (status, '"a"', b"")
    assert "transfer-encoding" not in headers


def test_the_answer_to_head_tells_the_length_and_has_no_body(gateway: Gateway) -> None:
    answer = raw(gateway, b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\nx: y\r\n\r\n", b"HEAD")
    status, headers, rest = head_of(answer)
    assert (status, headers["content-length"], headers["x"], rest) == (200, "1234", "y", b"")


def test_a_connection_is_used_again_after_answers_of_every_kind(gateway: Gateway) -> None:
    kinds = [
        b"HTTP/1.1 204 X\r\n\r\n",
        b"HTTP/1.1 304 X\r\ncontent-length: 10\r\n\r\n",
        b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ]
    with gateway.connect() as connection:
        for answer in kinds:
            head = b"POST /raw?keep=1 HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(answer) + answer)
            got = connection.recv(1 << 16)
            assert got.startswith(b"HTTP/1.1 %b" % answer[9:12])
            if b"chunked" in answer and not got.endswith(b"0\r\n\r\n"):
                time.sleep(0.1)
                connection.recv(1 << 16)
        connection.sendall(b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert b'"head"' in read_all(connection)


def test_a_stream_is_passed_on_piece_by_piece(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(b"GET /pieces?n=3&pause=1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        delays: list[float] = []
        text = b""
        while part := connection.recv(1 << 16):
            now = time.time()
            text += part
            lines = [line for line in part.split(b"\n") if line.startswith(b"data: ")]
            delays += [now - float(line.split()[2]) for line in lines]
    assert len(delays) == 3
    assert max(delays) < 0.9, "no piece waits for the next"
    assert text.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("path", ["/cut", "/cut-chunked"])
def test_an_answer_that_breaks_off_breaks_off_at_the_client_too(gateway: Gateway, path: str) -> None:
    answer = gateway.exchange(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path.encode())
    status, headers, rest = head_of(answer)
    assert status == 200
    if "content-length" in headers:
        assert len(rest) < int(headers["content-length"])
    else:
        assert not rest.endswith(b"0\r\n\r\n"), "a client must see that it is not whole"


# ------------------------------------------------------------------------------------------------------------- faults


def test_an_upstream_that_is_not_there_is_told_502(model: ModelServer) -> None:
    with Gateway(f"http://127.0.0.1:{free_port()}") as gateway:
        answer = gateway.ask("/v1/embeddings", b"{}")
        assert answer.status == 502
        error = answer.json()["error"]
        assert error["code"] == "upstream_unreachable" and error["message"] and error["type"] == "api_error"
        assert gateway.operate("/-/readyz", token=None).status == 503
        assert gateway.ask("/v1/embeddings", b"{}").status == 502
        assert [line["message"] for line in gateway.lines()].count("the upstream cannot be reached") == 1


@pytest.mark.parametrize(
    "garbage", [b"garbage\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b""]
)
def test_an_answer_that_is_no_http_is_told_502(gateway: Gateway, garbage: bytes) -> None:
    assert head_of(raw(gateway, garbage))[0] == 502


def test_an_upstream_that_does_not_answer_in_time_is_told_504(model: ModelServer) -> None:
    with Gateway(model.url, upstream_timeout="300ms", upstream_idle_timeout="300ms") as gateway:
        answer = gateway.ask("/hang")
        assert (answer.status, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        # One that stops in the middle is cut.
        cut = gateway.exchange(b"GET /pieces?n=2&pause=5 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert cut.startswith(b"HTTP/1.1 200") and not cut.endswith(b"0\r\n\r\n")
        until(lambda: model.control()["busy"] == 0, "the model is let go")


def test_a_connection_that_cannot_be_opened_in_time_is_told_504() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.create_connection(deaf.getsockname()):
        # The queue is full: another connection is not taken.
        port = deaf.getsockname()[1]
        with (
            ThreadPoolExecutor(4) as pool,
            Gateway(f"http://127.0.0.1:{port}", upstream_connect_timeout="300ms") as gateway,
        ):
            statuses = [each.result().status for each in [pool.submit(gateway.ask, "/x") for _ in range(4)]]
            assert 504 in statuses or 502 in statuses


def test_more_requests_than_the_upstream_is_to_have_are_told_503(model: ModelServer) -> None:
    with Gateway(model.url, upstream_concurrency=2) as gateway, ThreadPoolExecutor(6) as pool:
        answers = [each.result() for each in [pool.submit(gateway.ask, "/slow?s=0.5") for _ in range(6)]]
        assert sorted(each.status for each in answers) == [200, 200, 503, 503, 503, 503]
        busy = next(each for each in answers if each.status == 503)
        assert busy.headers["retry-after"] == "1" and busy.json()["error"]["code"] == "upstream_busy"
        assert gateway.ask("/echo").status == 200


def test_a_header_that_cannot_be_passed_on_exactly_is_told_400(gateway: Gateway) -> None:
    answer = gateway.exchange(b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: \xff\r\n\r\n")
    assert head_of(answer)[0] == 400 and b"bad_header" in answer


# ---------------------------------------------------------------------------------------------------------------- TLS


def test_tls_to_the_upstream_is_checked_and_a_certificate_shown(tmp_path: Path) -> None:
    made = Certificates(tmp_path / "certificates")
    other = Certificates(tmp_path / "other")
    pair = (str(made.server.certificate), str(made.server.key))
    with ModelServer(tls=pair, client_authority=str(made.authority)) as model:
        trusted = {"upstream_ca": str(made.authority)}
        shown = {"upstream_certificate": str(made.client.certificate), "upstream_key": str(made.client.key)}
        with Gateway(model.url, **trusted, **shown) as gateway:
            assert gateway.ask("/echo").status == 200
            assert gateway.operate("/-/readyz", token=None).status == 200
        with Gateway(model.url, **trusted) as gateway:
            assert gateway.ask("/echo").status == 502, "it wants to see a certificate"
        with Gateway(model.url, upstream_ca=str(other.authority), **shown) as gateway:
            assert gateway.ask("/echo").status == 502, "its certificate is of another authority"
        with Gateway(model.url, upstream_verify=False, **shown) as gateway:
            assert gateway.ask("/echo").status == 200
