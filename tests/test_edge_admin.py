"""The operators' side: who may ask, what a purge reaches, what health and metrics tell."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest

from asgi import Call, Model
from gateways import TOKEN, Gateway
from infercache import Token, key
from infercache.edge import CacheMiddleware
from infercache.edge.admin import Admin, targets
from infercache.edge.exchange import Outcome
from infercache.errors import InvalidArgument
from model_server import ModelServer
from servers import Server, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.network

GUARDED = ["/-/", "/-/metrics", "/-/samples", "/-/nothing"]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(model: ModelServer) -> Iterator[Gateway]:
    with Gateway(model.url) as gateway:
        yield gateway


@pytest.fixture
def edge(tmp_path: Path) -> CacheMiddleware:
    (tmp_path / "token").write_text(TOKEN)
    return CacheMiddleware(Model(), table={}, capacity="1MB", admin_token_file=str(tmp_path / "token"))


def bearer(token: str = TOKEN) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {token}".encode())]


async def purge(edge: CacheMiddleware, body: Any) -> Call:
    return await Call("/-/invalidate", json.dumps(body).encode(), headers=bearer())(Admin(edge))


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("given", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper()])
def test_nothing_is_told_without_the_token(gateway: Gateway, path: str, given: str | None) -> None:
    answer = gateway.operate(path, token=given)
    assert answer.status == 401
    assert "Basic" in answer.headers["www-authenticate"] or "Bearer" in answer.headers["www-authenticate"]
    assert answer.json()["error"]["code"] == "unauthorized"


def test_what_is_read_takes_the_token_as_a_password_too_and_a_purge_does_not(gateway: Gateway) -> None:
    basic = {"authorization": "Basic " + base64.b64encode(f"anybody:{TOKEN}".encode()).decode()}
    assert gateway.ask("/-/samples", headers=basic, admin=True).status == 200
    assert gateway.ask("/-/", headers=basic, admin=True).status == 200
    assert gateway.ask("/-/invalidate", b'{"all": true}', headers=basic, admin=True).status == 401
    for broken in ("Basic", "Basic !", "Basic " + base64.b64encode(TOKEN.encode()).decode(), f"Token {TOKEN}", TOKEN):
        assert gateway.ask("/-/samples", headers={"authorization": broken}, admin=True).status == 401


def test_the_token_is_compared_in_constant_time(edge: CacheMiddleware, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio
    import hmac

    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *both: compared.append(both) or both[0] == both[1])
    call = asyncio.run(Call("/-/samples", b"", "GET", headers=bearer())(Admin(edge)))
    assert (call.status, compared) == (200, [(TOKEN.encode(), TOKEN.encode())])


def test_without_a_token_only_health_is_answered(model: ModelServer, tmp_path: Path) -> None:
    from infercache.edge import Settings

    open_to_none = CacheMiddleware(Model(), table={}, settings=Settings(capacity="1MB"))

    async def ask(path: str) -> int:
        return (await Call(path, b"", "GET", headers=bearer())(Admin(open_to_none))).status

    import asyncio

    assert [asyncio.run(ask(path)) for path in ("/-/healthz", "/-/readyz")] == [200, 200]
    assert [asyncio.run(ask(path)) for path in GUARDED] == [403] * 4


def test_the_models_listener_answers_nothing_of_it_unless_that_is_configured(
    model: ModelServer, gateway: Gateway, tmp_path: Path
) -> None:
    answer = gateway.ask("/-/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.json()["head"][0].startswith("GET /-/metrics"), "it is a path of the model server's like any other"
    with Gateway(model.url, admin_on_listener=True, admin_listen="") as beside:
        assert beside.ask("/-/healthz").status == 200
        assert beside.ask("/-/metrics").status == 401
        assert beside.ask("/-/metrics", headers={"authorization": f"Bearer {TOKEN}"}).status == 200


def test_methods_and_pages_that_are_not_there(gateway: Gateway) -> None:
    assert gateway.operate("/-/nothing").status == 404
    assert gateway.operate("/").status == 404
    wrong = gateway.operate("/-/invalidate")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert gateway.operate("/-/healthz", {}, token=None).status == 405
    head = gateway.operate("/-/healthz", method="HEAD", token=None)
    assert (head.status, head.headers["content-length"], head.body) == (200, "3", b"")


# ------------------------------------------------------------------------------------------------------------- purges


async def test_a_purge_reaches_what_it_names_of_every_tenant(edge: CacheMiddleware) -> None:
    cache = edge.cache

    def fill() -> dict[str, Any]:
        made = {}
        for tenant in ("t1", "t2"):
            for name in ("m", "n"):
                for version in ("1", "2"):
                    made[tenant + name + version] = key(
                        "q", model=name, version=version, namespace=f"{cache.namespace}:{tenant}", operation="edge"
                    )
        for label, each in made.items():
            tenant, name, version = label[:2], label[2], label[3]
            tags = [f"edge:model:{name}", f"edge:version:{name}={version}", f"edge:tenant:{tenant}", f"own:{version}"]
            assert cache.set(each, label, tags=tags)
        return made

    async def left(body: Any) -> set[str]:
        made = fill()
        call = await purge(edge, body)
        assert (call.status, call.answered[b"content-type"]) == (200, b"text/plain; charset=utf-8")
        assert Token.parse(call.content.decode().strip()) == cache.token()
        return {label for label, each in made.items() if each in cache}

    everything = set(fill())
    assert await left({"model": "m"}) == {label for label in everything if label[2] != "m"}
    assert await left({"model": "m", "version": "1"}) == {label for label in everything if label[2:] != "m1"}
    assert await left({"tags": ["own:2", "edge:tenant:t1"]}) == {"t2m1", "t2n1"}
    assert await left({"key": str(fill()["t1m1"])}) == everything - {"t1m1"}
    assert await left({"all": True}) == set()
    made = fill()
    assert (await purge(edge, {"model": "m", "soft": True})).status == 200
    assert cache.lookup(made["t1m1"]).source == "stale"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "give an object"),
        ({}, "what is to be purged"),
        ({"soft": True}, "what is to be purged"),
        ({"all": False}, "what is to be purged"),
        ({"tags": "t"}, "tags: give a list"),
        ({"tags": [1]}, "tags: give a list"),
        ({"tags": ["t"] * 1_001}, "at most 1000"),
        ({"model": 5}, "model: give text"),
        ({"version": "1"}, "of which model"),
        ({"all": "yes"}, "all: give true or false"),
        ({"key": "ic1:00"}, "ic1:00"),
        ({"everything": True}, "'everything' is nothing that a purge has"),
        ({"tags": ["\ud800"]}, "lone surrogate"),
    ],
)
async def test_a_purge_that_is_wrong_is_told_400_and_purges_nothing(
    edge: CacheMiddleware, body: Any, said: str
) -> None:
    made = edge.cache.key("q", model="m", version="1")
    edge.cache.set(made, 1)
    call = await purge(edge, body)
    assert call.status == 400
    assert said in json.loads(call.content)["error"]["message"]
    assert made in edge.cache


async def test_a_body_that_is_no_json_or_too_large_is_told_so(edge: CacheMiddleware) -> None:
    for body, status in ((b"{", 400), (b"[" * 100_000, 400), (b"\xff", 400), (b" " * 2_000_000, 413)):
        assert (await Call("/-/invalidate", body, headers=bearer())(Admin(edge))).status == status


def test_targets_that_purge_nothing_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        targets({"tags": []})


def test_a_purge_at_one_gateway_reaches_the_other(model: ModelServer, server: Server) -> None:
    with Gateway(model.url, l2=server.url) as one, Gateway(model.url, l2=server.url) as other:
        first = Token.parse(one.operate("/-/invalidate", {"tags": ["t"]}).body.decode().strip())
        second = Token.parse(other.operate("/-/invalidate", {"model": "m"}).body.decode().strip())
        assert (second.epoch, second.lsn) == (first.epoch, first.lsn + 1)
        assert one.operate("/-/readyz", token=None).json()["tier"] == "in"


def test_a_purge_that_the_tier_was_not_told_says_so_and_health_tells_it(model: ModelServer, server: Server) -> None:
    with Gateway(model.url, l2=server.url) as gateway:
        assert gateway.operate("/-/invalidate", {"all": True}).status == 200
        server.kill()
        answer = gateway.operate("/-/invalidate", {"all": True})
        assert answer.status in (502, 503)
        assert answer.json()["error"]["code"] == "purge_failed"
        until(lambda: gateway.operate("/-/readyz", token=None).json()["tier"] == "out", "the tier is known to be out")
        assert gateway.operate("/-/readyz", token=None).status == 200, "inference goes on without it"
        assert gateway.ask("/echo").status == 200


# ------------------------------------------------------------------------------------------------------------- health


def test_readiness_is_the_upstreams() -> None:
    with ModelServer() as model, Gateway(model.url) as gateway:
        ready = gateway.operate("/-/readyz", token=None)
        assert (ready.status, ready.json()) == (
            200,
            {"ready": True, "draining": False, "upstream": "reachable", "tier": "none"},
        )
        model.process.kill()
        until(lambda: gateway.operate("/-/readyz", token=None).status == 503, "it is known that the upstream is gone")
        assert gateway.operate("/-/healthz", token=None).status == 200
        assert gateway.operate("/-/readyz", token=None).json()["upstream"] == "unreachable"


def test_readiness_may_be_a_path_of_the_upstreams(model: ModelServer) -> None:
    for path, status in (("/echo", 200), ("/accept", 503)):
        with Gateway(model.url, upstream_health=path) as gateway:
            assert gateway.operate("/-/readyz", token=None).status == status


# ------------------------------------------------------------------------------------------------------------ metrics


def families(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics_are_what_prometheus_reads_and_count_what_passes(model: ModelServer) -> None:
    with Gateway(model.url) as gateway:
        for _ in range(3):
            gateway.ask("/echo")
        gateway.ask("/accept")
        answer = gateway.operate("/-/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        found = families(answer.body.decode())
        labels = (("kind", "uncached"), ("model", ""), ("route", "other"))
        assert found["infercache_edge_requests_total"] == {
            (*labels, ("status", "200")): 3,
            (*labels, ("status", "401")): 1,
        }
        assert found["infercache_edge_request_seconds_count"] == {labels: 4}
        assert (
            found["infercache_edge_request_seconds_bucket"][(("kind", "uncached"), ("le", "120.0"), *labels[1:])] == 4
        )
        assert 0 < found["infercache_edge_request_seconds_sum"][labels] < 10
        assert found["infercache_edge_in_flight"] == {(): 0}
        assert found["infercache_edge_upstream_busy"] == {(): 0}
        assert found["infercache_misses_total"] == {(): 0}
        assert found["infercache_bytes"].keys() == {()}
        # The other format that Prometheus asks for.
        made = gateway.ask(
            "/-/metrics",
            headers={"authorization": f"Bearer {TOKEN}", "accept": "application/openmetrics-text; version=1.0.0"},
            admin=True,
        )
        assert made.headers["content-type"].startswith("application/openmetrics-text")
        assert made.body.endswith(b"# EOF\n")


async def test_metrics_of_a_middleware_can_be_registered_with_others(edge: CacheMiddleware) -> None:
    from infercache.edge.metrics import collector

    registry = prometheus_client.CollectorRegistry()
    registry.register(collector(edge.metrics, edge.cache))
    edge.metrics.count(Outcome("hit", items=4, hits=4, model="m", route="/r", saved_seconds=0.5), 200, 1.0, 1.01)
    edge.metrics.count(Outcome("partial", items=4, hits=1, model="m", route="/r", stored=True), 200, 1.0, 1.01)
    found = families(prometheus_client.generate_latest(registry).decode())
    assert found["infercache_edge_items_total"] == {
        (("kind", "hit"), ("model", "m"), ("route", "/r")): 4,
        (("kind", "partial"), ("model", "m"), ("route", "/r")): 4,
    }
    assert sum(found["infercache_edge_hits_total"].values()) == 5
    assert sum(found["infercache_edge_stored_total"].values()) == 1
    assert sum(found["infercache_edge_saved_seconds_total"].values()) == 0.5


def test_samples_are_what_the_page_draws(model: ModelServer) -> None:
    with Gateway(model.url) as gateway:
        gateway.ask("/echo")
        until(lambda: gateway.operate("/-/samples").json()["samples"], "a sample is there")
        state = gateway.operate("/-/samples").json()
        assert sum(each["kinds"]["uncached"] for each in state["samples"]) == 1
        assert state["samples"][0]["p50"] > 0
        assert state["stats"]["misses"] == 0 and state["unknown"] == [] and state["capacity"] == 16_000_000
