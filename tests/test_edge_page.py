"""The operators' page in a real browser: drawn from what was counted, light and dark, with nothing from outside."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from asgi import Call, Model
from gateways import TOKEN, Gateway
from infercache.edge import CacheMiddleware
from infercache.edge.admin import Admin
from infercache.edge.exchange import Outcome
from model_server import ModelServer
from servers import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.network

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is here (Debian's chromium-headless-shell)")


def browse(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Loads a page, lets its scripts run for two of its seconds; its text and what the browser complained of."""
    assert BROWSER is not None
    return subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"),
            *("--window-size=1200,1200", "--virtual-time-budget=2000", *options, url),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def words(dom: str) -> str:
    """The text that a reader sees."""
    return re.sub(r"\s+", " ", re.sub(r"<(script|style)[\s\S]*?</\1>|<[^>]+>", " ", dom))


@pytest.fixture
def edge(tmp_path: Path) -> CacheMiddleware:
    """One that has seen something."""
    (tmp_path / "token").write_text(TOKEN)
    made = CacheMiddleware(Model(), table={}, capacity="1MB", admin_token_file=str(tmp_path / "token"))
    metrics = made.metrics
    for kind, hits, seconds in (("hit", 4, 0.0004), ("hit", 4, 0.0006), ("partial", 1, 0.03), ("miss", 0, 0.04)):
        metrics.count(
            Outcome(kind, items=4, hits=hits, model="<b>e5</b>", route="/v1/embeddings", saved_seconds=hits * 0.5),
            *(200, 0.0, seconds),
        )
    metrics.tick(1e12)
    made.versions.unknown.add("</script><script>alert(1)</script>")
    metrics.fault(ZeroDivisionError())
    return made


def page(edge: CacheMiddleware, path: Path) -> str:
    """The page as a file, whose URL is returned, with its policy as a `meta`."""
    call = asyncio.run(Call("/-/", b"", "GET", headers=[(b"authorization", f"Bearer {TOKEN}".encode())])(Admin(edge)))
    assert call.status == 200
    policy = call.answered[b"content-security-policy"].decode().replace("; frame-ancestors 'none'", "")
    text = call.content.decode().replace(
        "<meta charset", f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta charset', 1
    )
    path.write_text(text)
    return path.as_uri()


@needs_browser
def test_the_page_draws_what_was_counted(edge: CacheMiddleware, tmp_path: Path) -> None:
    done = browse(page(edge, tmp_path / "page.html"), "--dump-dom")
    assert complaints(done) == []
    seen = words(done.stdout)
    assert "Hit ratio 56.3 % 9 of 16 questions" in seen
    assert "Requests 4" in seen
    assert "Model time saved 4.5 s" in seen
    assert "&lt;b&gt;e5&lt;/b&gt; 4 56.3 % 4.5 s" in re.sub(r"\s+", " ", seen), "a model's name is text, whatever it is"
    assert "The cache failed and let requests through: ZeroDivisionError (1)" in seen
    assert "--model-version" in seen and "&lt;/script&gt;" in seen
    assert done.stdout.count("<rect") >= 3 and done.stdout.count('role="img"') == 4


@needs_browser
@pytest.mark.parametrize(("scheme", "is_dark"), [("0", True), ("1", False)])
def test_the_page_is_light_or_dark_as_its_reader_prefers(
    edge: CacheMiddleware, tmp_path: Path, scheme: str, *, is_dark: bool
) -> None:
    from PIL import Image

    shot = tmp_path / "page.png"
    url = page(edge, tmp_path / "page.html")
    browse(url, f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}")
    with Image.open(shot) as image:
        grey = image.convert("L")
        assert grey.size == (1200, 1200)
        ground = grey.getpixel((5, 5))
        low, high = grey.getextrema()
    assert isinstance(ground, int)
    assert (ground < 60) if is_dark else (ground > 200)
    assert high - low > 150, "text stands out"


@needs_browser
def test_a_page_of_a_gateway_that_nobody_asked_says_so_and_fits_a_narrow_screen(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    edge = CacheMiddleware(Model(), table={}, capacity="1MB", admin_token_file=str(tmp_path / "token"))
    url = page(edge, tmp_path / "page.html")
    assert words(browse(url, "--dump-dom").stdout).count("Nothing was asked in this time.") == 4
    probe = tmp_path / "probe.html"
    script = "<script>onload = () => { document.title = [innerWidth, document.documentElement.scrollWidth] }</script>"
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (tmp_path / "page.html").read_text())
    probe.write_text(bare.replace("</body>", script + "</body>"))
    dom = browse(probe.as_uri(), "--window-size=500,900", "--dump-dom").stdout
    width, needed = map(int, re.findall(r"<title>(\d+),(\d+)</title>", dom)[0])
    assert needed <= width


@needs_browser
def test_a_browser_loads_it_from_the_gateway_with_the_token_as_password_and_keeps_it_up_to_date() -> None:
    with ModelServer() as model, Gateway(model.url) as gateway:
        for _ in range(7):
            gateway.ask("/echo")
        until(lambda: gateway.operate("/-/samples").json()["samples"], "a sample is there")
        url = f"http://operator:{TOKEN}@127.0.0.1:{gateway.admin_port}/-/"
        done = browse(url, "--dump-dom", "--virtual-time-budget=11000")
        assert complaints(done) == []
        assert "Requests 7" in words(done.stdout)
        assert "the gateway does not answer" not in words(done.stdout), "it asked for samples meanwhile"
        bare = browse(f"http://127.0.0.1:{gateway.admin_port}/-/", "--dump-dom")
        assert "Requests" not in bare.stdout


class Elements(HTMLParser):
    """Elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_asks_for_nothing_from_outside_and_its_policy_forbids_it(edge: CacheMiddleware) -> None:
    async def load() -> Call:
        return await Call("/-/", b"", "GET", headers=[(b"authorization", f"Bearer {TOKEN}".encode())])(Admin(edge))

    one, other = asyncio.run(load()), asyncio.run(load())
    policy = one.answered[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    assert policy != other.answered[b"content-security-policy"].decode(), "a nonce is used once"
    assert one.answered[b"cache-control"] == b"no-store" and one.answered[b"x-content-type-options"] == b"nosniff"
    found = Elements(one.content.decode()).found
    for tag, attributes in found:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img")
        assert attributes.get("src") is None and not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes
        href = attributes.get("href")
        assert href is None or href.startswith(("data:,", "/-/"))
        if tag in ("script", "style"):
            assert f"'nonce-{attributes['nonce']}'" in policy
    text = one.content.decode()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    (initial,) = re.findall(r'id="initial">(.*?)</script>', text, re.DOTALL)
    assert json.loads(initial)["unknown"] == ["</script><script>alert(1)</script>"]


def test_the_page_can_be_read_without_seeing_it() -> None:
    from importlib.resources import files

    text = files("infercache.edge").joinpath("page.html").read_text("utf-8")
    found = Elements(text).found
    assert ("html", {"lang": "en"}) in found
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in found)
    assert sum(tag == "h1" for tag, _ in found) == 1 and sum(tag == "main" for tag, _ in found) == 1
    # Colours of text stand out from what they stand on: 4.5 to 1 (WCAG 1.4.3).
    for block in re.findall(r":root \{([^}]*)\}", text):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
        for ink in ("ink", "soft"):
            for ground in ("ground", "card"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["note-ink"], colours["note"]) >= 4.5
        for line in ("hit", "miss", "stale", "bad"):
            assert contrast(colours[line], colours["card"]) >= 3, line


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
