"""Versions of models: from where they come, and that a change of any makes another version."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from asgi import Model
from infercache.edge import Settings
from infercache.edge.exchange import EdgeRequest, Headers, Reply
from infercache.edge.versions import Versions

SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/embeddings",
    "raw_path": b"/v1/embeddings",
    "query_string": b"x=1",
}


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def make(app: Any = None, clock: Clock | None = None, **options: Any) -> Versions:
    return Versions(Settings(**options), app or Model(), clock=clock or Clock())


def request(tenant: str = "t", *headers: tuple[bytes, bytes]) -> EdgeRequest:
    found = Headers([(b"host", b"h"), (b"content-type", b"application/json"), *headers])
    scope = {**SCOPE, "headers": found.raw}
    return EdgeRequest("POST", SCOPE["path"], b"", b"", found, b"{}", scope, tenant, b"", None)  # type: ignore[arg-type]


def reply(*headers: tuple[bytes, bytes]) -> Reply:
    return Reply(200, Headers(headers))


def listing(**models: Any) -> bytes:
    return json.dumps({"data": [{"id": name, **fields} for name, fields in models.items()]}).encode()


async def test_configured_versions_are_by_name_with_a_star_for_the_others() -> None:
    versions = make(model_versions={"a": "1", "*": "2"})
    assert await versions.before("a", request()) == "1"
    assert await versions.before("b", request()) == await versions.after("b", request(), reply()) == "2"


async def test_a_model_without_a_version_is_unknown_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    versions = make(model_versions={"a": "1"})
    for _ in range(3):
        assert await versions.before("b", request()) is None
        assert await versions.after("b", request(), reply()) is None
    assert await versions.before("c", request()) is None
    assert versions.unknown == {"b", "c"}
    assert len(caplog.records) == 2
    assert "--model-version 'NAME=VERSION'" in caplog.records[0].getMessage()


async def test_versions_of_several_sources_count_together() -> None:
    found = set()
    for configured in ({}, {"a": "1"}, {"a": "2"}, {"a": "1;path1=1"}):
        versions = make(model_versions=configured)
        for path in (None, "1", "2"):
            version = await versions.before("a", request(), path=path)
            assert version == await versions.after("a", request(), reply(), path=path)
            found.add(version)
    # "1" and "2" of one source alone are the same text, whichever it is.
    assert len(found) == 12 - 2
    assert None in found


async def test_a_header_of_the_upstream_tells_it_after_the_first_answer_and_for_version_ttl() -> None:
    clock = Clock()
    versions = make(clock=clock, version_header="X-Version", version_ttl="5s")
    assert await versions.before("a", request()) is None
    assert await versions.after("a", request(), reply()) is None
    assert await versions.after("a", request(), reply((b"x-version", b"7"))) == "7"
    assert await versions.before("a", request()) == "7"
    assert await versions.before("b", request()) is None
    assert await versions.before("a", request("other")) is None, "another tenant may be answered by another model"
    clock.now += 6
    assert await versions.before("a", request()) is None, "it is time to ask again"
    assert await versions.after("a", request(), reply((b"x-version", b"8"))) == "8"
    assert await versions.before("a", request()) == "8"
    assert not versions.unknown


async def test_a_field_of_the_model_list_tells_it() -> None:
    clock = Clock()
    model = Model(
        listing(a={"root": "7", "meta": {"sha": "x"}}, b={"root": 5}, c={}, d={"root": None}, e={"root": True})
    )
    versions = make(model, clock, version_field="root")
    expected = {"a": "7", "b": "5", "c": None, "d": None, "e": None, "f": None}
    assert {name: await versions.before(name, request()) for name in expected} == expected
    assert model.asked == 1, "asked once for all of them"
    scope = model.scopes[0]
    assert (scope["method"], scope["path"], scope["raw_path"], scope["query_string"]) == (
        "GET",
        "/v1/models",
        b"/v1/models",
        b"",
    )
    nested = make(model, clock, version_field="meta.sha")
    assert await nested.before("a", request()) == "x"
    assert await nested.before("b", request()) is None


async def test_the_list_is_asked_with_the_callers_credentials_and_no_body() -> None:
    model = Model(listing(a={"root": "7"}))
    versions = make(model, version_field="root")
    await versions.before("a", request("t", (b"authorization", b"Bearer x")))
    await versions.before("a", request("u"))
    assert model.asked == 2, "each tenant may have models of its own"
    assert dict(model.scopes[0]["headers"]) == {
        b"host": b"h",
        b"authorization": b"Bearer x",
        b"accept": b"application/json",
    }
    assert model.bodies == [b"", b""]


async def test_after_an_answer_the_list_is_asked_anew_and_together() -> None:
    clock = Clock()
    model = Model(listing(a={"root": "1"}))
    versions = make(model, clock, version_field="root", version_ttl="5s")
    assert await versions.before("a", request()) == "1"
    model.pieces = [listing(a={"root": "2"})]
    clock.now += 1
    assert await versions.before("a", request()) == "1", "remembered"
    found = await asyncio.gather(*(versions.after("a", request(), reply()) for _ in range(5)))
    assert found == ["2"] * 5, "an answer of the new model is not taken for one of the old"
    assert model.asked == 2
    assert await versions.before("a", request()) == "2"
    clock.now += 6
    assert await versions.before("a", request()) == "2"
    assert model.asked == 3


@pytest.mark.parametrize(
    ("body", "status", "headers"),
    [
        (b"no json", 200, []),
        (b"[]", 200, []),
        (b'{"data": 5}', 200, []),
        (b'{"data": [5, {"id": 6, "root": "x"}]}', 200, []),
        (b"[" * 100_000, 200, []),
        (listing(a={"root": "7"}), 500, []),
        (listing(a={"root": "7"}), 200, [(b"content-encoding", b"gzip")]),
        (listing(a={"root": "7"}), 200, [(b"content-length", b"1000")]),
        (listing(a={"root": "7" * 1_000}), 200, []),
    ],
)
async def test_a_list_that_cannot_be_read_tells_nothing(body: bytes, status: int, headers: Any) -> None:
    versions = make(Model(body, status=status, headers=headers), version_field="root")
    assert await versions.before("a", request()) is None


async def test_an_application_that_fails_tells_nothing() -> None:
    model = Model()
    model.fails = OSError()
    assert await make(model, version_field="root").before("a", request()) is None
