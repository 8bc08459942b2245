"""The log: lines of JSON, in which neither an input nor a credential ever stands."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from infercache.edge.logs import JSONLines, Once

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "the-callers-own-words"


@pytest.fixture
def written() -> Iterator[tuple[logging.Handler, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    yield handler, stream
    handler.close()


def line(
    written: tuple[logging.Handler, io.StringIO], name: str, message: str, *given: object, **options: object
) -> dict[str, object]:
    handler, stream = written
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        logger.warning(message, *given, **options)  # type: ignore[arg-type]
    finally:
        logger.removeHandler(handler)
    found: dict[str, object] = json.loads(stream.getvalue().splitlines()[-1])
    return found


def test_a_line_is_one_object_with_its_facts(written: tuple[logging.Handler, io.StringIO]) -> None:
    found = line(written, "infercache.edge", "what\nhappened", extra={"edge": {"route": "/r", "n": 1, "odd": b"x"}})
    assert found["message"] == "what\nhappened"
    assert (found["level"], found["route"], found["n"], found["odd"]) == ("warning", "/r", 1, "bytes")
    assert str(found["time"]).endswith("+00:00")


def test_an_exception_is_shown_by_its_type_and_place_only(written: tuple[logging.Handler, io.StringIO]) -> None:
    try:
        try:
            raise ValueError(f"cannot parse {SECRET}")
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError as error:
        found = line(written, "infercache.edge", "failed", exc_info=error)
    assert SECRET not in json.dumps(found)
    assert [each["type"] for each in found["error"]] == ["KeyError", "ValueError"]  # type: ignore[attr-defined]
    assert "test_edge_logs.py" in json.dumps(found["error"])


def test_other_packages_lines_are_shown_without_what_was_put_into_them(
    written: tuple[logging.Handler, io.StringIO],
) -> None:
    found = line(written, "aiohttp.client", "cannot parse %s", SECRET)
    assert found["message"] == "cannot parse %s"
    found = line(written, "asyncio", f"Task exception was never retrieved\nfuture: <Task {SECRET}>")
    assert found["message"] == "Task exception was never retrieved"


def test_what_happens_with_every_request_is_told_once() -> None:
    once = Once(2)
    assert [once(each) for each in ("a", "a", "b", "c", "b")] == [True, False, True, False, False]


@pytest.mark.network
def test_a_gateways_log_holds_no_input_and_no_credential() -> None:
    from gateways import TOKEN, Gateway
    from model_server import ModelServer

    word = SECRET.encode()
    with (
        ModelServer() as model,
        Gateway(model.url, access_log=True, log_level="debug", body_timeout="500ms") as gateway,
    ):
        headers = {"authorization": f"Bearer {SECRET}", "cookie": SECRET, "x-other": SECRET}
        for path in (f"/echo/{SECRET}?q={SECRET}", "/cut", "/cut-chunked", "/raw", f"/{SECRET}"):
            for body in (word, b"HTTP/1.1 200 " + word + b"\r\nbroken " + word + b"\r\n\r\n"):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    gateway.ask(path, body, headers=headers)
        gateway.exchange(b"GET /" + word + b" HTTP/1.1\r\nHost: h\r\nbad " + word + b"\r\n\r\n")
        gateway.exchange(word + b"\r\n\r\n")
        gateway.exchange(b"POST /" + word + b" HTTP/1.1\r\nHost: " + word + b"\r\nContent-Length: 99\r\n\r\n" + word)
        gateway.operate("/-/invalidate", {"tags": [SECRET]})
        gateway.operate("/-/invalidate", {SECRET: SECRET})
        gateway.operate(f"/-/{SECRET}", token=SECRET)
        model.process.kill()
        gateway.ask("/echo", word, headers=headers)
        lines = [json.loads(each) for each in gateway.text().splitlines()]
        assert len([each for each in lines if each["message"] == "answered"]) >= 10
        answered = next(each for each in lines if each["message"] == "answered")
        assert set(answered) == {
            *("time", "level", "logger", "message", "method", "route", "status", "kind", "model", "items", "hits"),
            *("detail", "ms"),
        }
        assert SECRET not in gateway.text() and TOKEN not in gateway.text()


def test_an_answer_that_the_upstream_cuts_short_is_no_error_of_the_gateways() -> None:
    from gateways import Gateway
    from model_server import ModelServer

    with ModelServer() as model, Gateway(model.url) as gateway:
        cut = gateway.exchange(b"GET /cut-chunked HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"hello" in cut and not cut.endswith(b"0\r\n\r\n")
        assert gateway.ask("/echo").status == 200
        assert "Traceback" not in gateway.text() and "Exception in ASGI" not in gateway.text()
        told = gateway.wait_for("an answer broke off")
        assert (told["level"], told["route"], told["model"]) == ("warning", "other", "")
        assert told["why"] == "the upstream's answer broke off"
        assert told["cause"].endswith("Error"), "the client library's, which names it anew now and then"


def test_a_stream_that_the_upstream_cuts_is_one_line_of_the_log_for_each_who_read_it() -> None:
    from chat_server import ChatServer
    from gateways import Gateway, read_all

    asked = {"model": "m", "temperature": 0, "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({**asked, "test": {"how": "cut", "pieces": 3, "pause": 0.1}}).encode()
    sent = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    with ChatServer() as model, Gateway(model.url, model_versions={"*": "1"}) as gateway:
        gateway.ask("/v1/chat/completions", body.replace(b'"cut"', b'""'))  # lets the credential in
        with gateway.connect() as one, gateway.connect() as other:
            one.sendall(sent)
            other.sendall(sent)
            for each in (one, other):
                came = read_all(each)
                assert b"answer 2" in came and not came.endswith(b"0\r\n\r\n")
        assert gateway.ask("/v1/models").status == 200
        gateway.wait_for("an answer broke off")
        told = [line for line in gateway.lines() if line["message"] != "listening"]
        assert [(line["message"], line["route"], line["model"]) for line in told] == [
            ("an answer broke off", "/v1/chat/completions", "m")
        ] * 2
        assert "Traceback" not in gateway.text() and SECRET not in gateway.text()
