"""A real Varnish before a real gateway: it holds GET answers, drops them by tag, serves them while all else fails."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from chat_server import ChatServer
from gateways import Answer, Gateway
from leash import Leashed
from servers import free_port
from together import PATIENCE

if TYPE_CHECKING:
    from _pytest.tmpdir import TempPathFactory

VARNISH = shutil.which("varnishd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(VARNISH is None, reason="varnishd is not installed (Debian: apt-get install varnish)"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="varnishd compiles its configuration, and there is no cc"),
]
pytest.importorskip("uvicorn")

VCL = Path(__file__).resolve().parent.parent / "examples" / "varnish.vcl"


class Varnish:
    """varnishd with examples/varnish.vcl, its backend being this gateway."""

    def __init__(self, gateway: Gateway, folder: Path) -> None:
        text = VCL.read_text()
        assert '.port = "8080";' in text
        (folder / "edge.vcl").write_text(text.replace('.port = "8080";', f'.port = "{gateway.port}";'))
        self.port = free_port()
        assert VARNISH is not None
        command = [VARNISH, "-F", "-j", "none", "-n", str(folder / "varnish"), "-f", str(folder / "edge.vcl")]
        command += ["-a", f"127.0.0.1:{self.port}", "-T", "none", "-s", "malloc,64m", "-t", "0"]
        self.log = (folder / "log").open("w+b")
        self.process = Leashed(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def start(self) -> None:
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process.is_alive, Path(self.log.name).read_text()
                assert time.monotonic() < ends, Path(self.log.name).read_text()
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        self.process.kill()
        self.log.close()

    def ask(self, target: str, *, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, target, headers={name.replace("_", "-"): of for name, of in headers.items()})
            got = connection.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()

    def purge(self, tag: str) -> int:
        return self.ask("/", method="PURGE", cache_tag=tag).status


@pytest.fixture(scope="module")
def model() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


def options() -> dict[str, Any]:
    return {"model_versions": {"*": "1"}, "json_routes": ["/rank"], "stale_if_error": "1h"}


@pytest.fixture(scope="module")
def gateway(model: ChatServer) -> Iterator[Gateway]:
    with Gateway(model.url, **options()) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def varnish(gateway: Gateway, tmp_path_factory: TempPathFactory) -> Iterator[Varnish]:
    made = Varnish(gateway, tmp_path_factory.mktemp("varnish"))
    try:
        made.start()
        yield made
    finally:
        made.close()


numbers = iter(range(1 << 30))


def target(*headers: str, **body: Any) -> str:
    """A question that nobody has asked before; the headers of its answer."""
    asked = {"query": f"q{next(numbers)}", "test": {"headers": headers}, **body}
    return "/rank?message=" + quote(json.dumps(asked))


def is_hit(answer: Answer) -> bool:
    """Varnish names both requests, this one and the one that it got the answer by."""
    return len(answer.headers["x-varnish"].split()) == 2


def test_it_holds_what_the_gateway_lets_it(varnish: Varnish, model: ChatServer, gateway: Gateway) -> None:
    asked = target()
    first = varnish.ask(asked)
    counted = requests(gateway)
    again = varnish.ask(asked)
    assert (first.status, is_hit(first), is_hit(again)) == (200, False, True)
    assert again.body == first.body
    assert again.headers["etag"] == first.headers["etag"]
    assert requests(gateway) == counted, "the gateway is not asked"
    for name in ("cache-tag", "surrogate-key", "cdn-cache-control"):
        assert name not in first.headers
    head = varnish.ask(asked, method="HEAD")
    assert is_hit(head)
    assert head.headers["content-length"] == str(len(first.body))
    assert varnish.ask(asked, if_none_match=first.headers["etag"]).status == 304
    assert requests(gateway) == counted


def requests(gateway: Gateway) -> int:
    told = gateway.operate("/-/metrics").body.decode()
    found = re.findall(r'^infercache_edge_requests_total\{[^}]*route="/rank"[^}]*\} ([0-9.e+]+)$', told, re.MULTILINE)
    assert found, told
    return int(sum(map(float, found)))


@pytest.mark.parametrize("tag", ["product:42", "edge:model:/rank", "a.b", "edge:version:/rank=1"])
def test_it_drops_what_is_purged_by_tag(varnish: Varnish, gateway: Gateway, tag: str) -> None:
    asked, other = target("surrogate-key: product:42 a.b"), target("surrogate-key: product:421 axb")
    first, unrelated = varnish.ask(asked), varnish.ask(other)
    assert is_hit(varnish.ask(asked))
    assert varnish.purge("product:4") == 200
    assert is_hit(varnish.ask(asked)), "a part of a tag is no tag"
    gateway.operate("/-/invalidate", {"tags": [tag]})
    assert varnish.purge(tag) == 200
    again = varnish.ask(asked)
    assert not is_hit(again)
    assert again.json()["number"] > first.json()["number"]
    if not tag.startswith("edge:"):
        assert is_hit(varnish.ask(other))
        assert varnish.ask(other).body == unrelated.body


def test_it_holds_nothing_that_credentials_were_shown_for(varnish: Varnish) -> None:
    asked = target()
    for _ in range(2):
        assert not is_hit(varnish.ask(asked, api_key="secret"))
        assert not is_hit(varnish.ask(asked, authorization="Bearer secret"))
    assert not is_hit(varnish.ask(asked))
    assert is_hit(varnish.ask(asked))
    assert not is_hit(varnish.ask(asked, api_key="secret")), "what is everybody's is not a caller's own"
    assert not is_hit(varnish.ask(asked, api_key="other"))


def test_it_holds_nothing_that_may_not_be_kept(varnish: Varnish) -> None:
    for headers in (["cache-control: no-store"], ["set-cookie: a=b"], ["cache-control: private"]):
        asked = target(*headers)
        assert varnish.ask(asked).json()["number"] != varnish.ask(asked).json()["number"]


def test_it_holds_it_no_longer_than_the_gateway(varnish: Varnish) -> None:
    asked = target("cache-control: max-age=1, stale-if-error=0")
    first = varnish.ask(asked)
    ends = time.monotonic() + PATIENCE
    while varnish.ask(asked).body == first.body:
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_it_serves_on_while_the_gateway_is_away(model: ChatServer, tmp_path: Path) -> None:
    with Gateway(model.url, **options()) as gateway:
        varnish = Varnish(gateway, tmp_path)
        try:
            varnish.start()
            asked, short = target("cache-control: max-age=1, stale-if-error=600"), target()
            first, held = varnish.ask(asked), varnish.ask(short)
            gateway.process.kill()
            time.sleep(1.1)  # its life is over: from here on it is grace
            for _ in range(3):
                got = varnish.ask(asked)
                assert (got.status, got.body) == (200, first.body)
            assert varnish.ask(short).body == held.body
            assert varnish.ask(target()).status == 503
        finally:
            varnish.close()
