"""Gateways that share a tier: a purge on one is seen on the other; neither a dead tier nor a dead model ends them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn (the extra 'edge') is not installed")
pytest.importorskip("aiohttp", reason="aiohttp (the extra 'edge') is not installed")

from gateways import Answer, Gateway
from leash import Leashed
from proxy import Delay, Proxy
from servers import Server, free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.network


class Model:
    """`infer_server` in a process of its own, on a port that stays."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: Leashed | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = Leashed(
            [sys.executable, "-m", "uvicorn", "infer_server:app", "--port", str(self.port), "--log-level", "warning"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stdout=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    made.start()
    yield made
    made.kill()


@contextmanager
def gateways(model: Model, server: Server, tmp_path: Path, count: int = 2, **options: Any) -> Iterator[list[Gateway]]:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    given = {
        "l2": server.url,
        "secret_file": str(secret),
        "model_versions": {"*": "1"},
        "max_staleness": "500ms",
        **options,
    }
    made = [Gateway(model.url, **given) for _ in range(count)]
    try:
        for each in made:
            each.__enter__()
            until(lambda each=each: each.ask("/v2/health/ready").status == 200, "the model server answers")
        yield made
    finally:
        for each in made:
            each.close()


def infer(gateway: Gateway, number: int, **headers: str) -> Answer:
    body = {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [number]}]}
    got = gateway.ask("/v2/models/m/infer", json.dumps(body).encode(), headers=headers)
    if got.status == 200:
        assert got.json()["outputs"][0]["data"] == [2 * number]
    return got


def came(answer: Answer) -> str:
    return answer.headers["cache-status"]


def asked(model: Model, gateway: Gateway) -> int:
    count: int = gateway.ask("/v2").json()["asked"]
    return count


def test_what_one_gateway_asked_for_the_other_answers(model: Model, server: Server, tmp_path: Path) -> None:
    with gateways(model, server, tmp_path) as (one, other):
        infer(other, 1)  # the other has to have let the credential in
        infer(one, 2)
        before = asked(model, one)
        assert came(infer(other, 2)).startswith("infercache; hit; ttl=")
        assert asked(model, one) == before


def test_a_purge_on_one_gateway_is_seen_on_the_other(model: Model, server: Server, tmp_path: Path) -> None:
    with gateways(model, server, tmp_path) as (one, other):
        for each in (one, other):
            for _ in range(2):
                infer(each, 3)
            assert "hit" in came(infer(each, 3))
        done = one.operate("/-/invalidate", {"model": "m"})
        assert done.status == 200, done.body
        acknowledged = time.monotonic()
        time.sleep(max(0.0, acknowledged + 0.5 - time.monotonic()))
        before = asked(model, one)
        infer(other, 3)
        assert asked(model, one) == before + 1


def test_with_the_model_killed_stale_answers_stand_in_until_it_is_back(
    model: Model, server: Server, tmp_path: Path
) -> None:
    with gateways(
        model, server, tmp_path, 1, ttl="100ms", stale_if_error="1h", auth_ttl="1h", auth_ttl_if_error="1h"
    ) as (gateway,):
        infer(gateway, 4)
        time.sleep(0.2)
        model.kill()
        got = infer(gateway, 4)
        assert got.status == 200 and came(got).startswith("infercache; hit")
        assert infer(gateway, 5).status == 502
        model.start()
        until(lambda: infer(gateway, 5).status == 200, "the model is back")
        assert "fwd=miss" in came(infer(gateway, 4)) or "hit" in came(infer(gateway, 4))


def test_with_the_tier_killed_requests_go_on(model: Model, server: Server, tmp_path: Path) -> None:
    with gateways(model, server, tmp_path, 1, l2_timeout="100ms") as (gateway,):
        for _ in range(2):
            infer(gateway, 6)
        server.kill()
        slowest = 0.0
        for number in range(20):
            began = time.monotonic()
            assert infer(gateway, number).status == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5
        refused = gateway.operate("/-/invalidate", {"model": "m"})
        assert refused.status >= 500, "a purge that others are not told of is an error"


def test_a_gateway_before_a_caching_gateway_carries_its_age(model: Model, server: Server, tmp_path: Path) -> None:
    with (
        Gateway(model.url, model_versions={"*": "1"}) as inner,
        Gateway(f"http://{inner.host}:{inner.port}", model_versions={"*": "1"}) as outer,
    ):
        until(lambda: outer.ask("/v2/health/ready").status == 200, "the model server answers")
        for _ in range(2):
            infer(inner, 7)
        time.sleep(1.1)
        before = asked(model, inner)
        infer(outer, 7)
        assert asked(model, inner) == before, "the inner gateway answers"
        assert int(infer(outer, 7).headers["age"]) >= 1


def test_a_gateway_stores_nothing_older_than_a_purge_that_the_server_behind_it_has_yet_to_hear_of(
    model: Model, server: Server, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(32)))
    shared = {
        "secret_file": str(secret),
        "model_versions": {"*": "1"},
        "max_staleness": "60s",  # the inner one trusts its memory until it hears of a purge
        "l2_timeout": "3s",
    }
    with (
        Proxy(server.address) as late,
        # Of one deployment, but with entries of their own: what the tier has hides nothing.
        Gateway(model.url, l2=late.url, namespace="inner", **shared) as inner,
        Gateway(f"http://{inner.host}:{inner.port}", l2=server.url, namespace="outer", **shared) as outer,
    ):
        until(lambda: outer.ask("/v2/health/ready").status == 200, "the model server answers")
        for _ in range(3):
            infer(inner, 8)
        assert "hit" in came(infer(inner, 8))
        late.set(replies=Delay(0.4))
        before = asked(model, inner)
        assert outer.operate("/-/invalidate", {"all": True}).status == 200
        infer(outer, 8)
        assert asked(model, inner) == before + 1, "the inner gateway answered from before the purge"
        assert "hit" in came(infer(outer, 8))
