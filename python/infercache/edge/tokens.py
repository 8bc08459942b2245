"""How many tokens an item has, by the tokenizer that an operator names for its model: `usage` of any mixture is exact.

A model server counts a batch's tokens together. With its tokenizer each item's are counted here, and each answer checks
them: only where their sum is what the server counted are they kept. Where it is not, the tokenizer is another one than
the server's (special tokens, a prefix, where it cuts), so the batch's count is apportioned; it is logged once, and
counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infercache.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infercache.edge.metrics import Metrics

__all__ = ["TokenCounter", "Tokenizers"]

logger = logging.getLogger("infercache.edge")

#: Bytes of texts from which on they are counted in a thread: about a millisecond's worth.
_LONG = 2_048


class TokenCounter:
    """Counts with one tokenizer.

    Args:
        name: the model's in the settings, or '*'.
        tokenizer: of the package `tokenizers`.
        metrics: where it is counted that a model server counts otherwise.
    """

    def __init__(self, name: str, tokenizer: Any, metrics: Metrics) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._metrics = metrics

    async def count(self, items: Sequence[bytes]) -> list[int] | None:
        """The tokens of each item, given as its JSON: a text is cut into tokens, a list of tokens has its length.

        None: the tokenizer fails on one of them.
        """
        given = [json.loads(item) for item in items]
        texts = [each for each in given if isinstance(each, str)]
        if sum(map(len, items)) < _LONG:
            lengths = self._lengths(texts)
        else:
            lengths = await asyncio.to_thread(self._lengths, texts)
        if lengths is None:
            return None
        of_texts = iter(lengths)
        return [next(of_texts) if isinstance(each, str) else len(each) for each in given]

    def _lengths(self, texts: list[str]) -> list[int] | None:
        try:
            return [len(each) for each in self._tokenizer.encode_batch_fast(texts)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - what the package panics with is no Exception
            return None

    def disagrees(self) -> None:
        """The model server counted otherwise, or nothing could be counted."""
        if self._metrics.disagreement(self.name) == 1:
            logger.warning(
                "a model server counts tokens otherwise than the tokenizer that embeddings_tokenizers names, so usage "
                "is apportioned: compare special tokens, prefixes, and where texts are cut",
                extra={"edge": {"tokenizer": self.name}},
            )


class Tokenizers:
    """The tokenizers that the settings name.

    Args:
        named: files (tokenizer.json) by the models' names; '*' is every other model's.
        metrics: of the edge.

    Raises:
        MissingExtra: the package is not installed.
        InvalidArgument: a file cannot be read, or holds no tokenizer.
    """

    def __init__(self, named: Mapping[str, str], metrics: Metrics) -> None:
        loaded: dict[str, Any] = {}
        for path in named.values():
            if path not in loaded:
                loaded[path] = _load(path)
        self.counters = {name: TokenCounter(name, loaded[path], metrics) for name, path in named.items()}

    def of(self, model: str) -> TokenCounter | None:
        """The model's, if there is one."""
        return self.counters.get(model) or self.counters.get("*")


def _load(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra(
            f"embeddings_tokenizers needs the extra 'tokenizers': pip install 'infercache[tokenizers]' ({error})"
        ) from None
    try:
        tokenizer = Tokenizer.from_buffer(Path(path).read_bytes())
    except OSError as error:
        raise InvalidArgument(f"embeddings_tokenizers {path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - the package raises nothing narrower
        raise InvalidArgument(f"embeddings_tokenizers {path}: no tokenizer.json: {error}") from None
    tokenizer.no_padding()  # a text has its own tokens, whatever it is put beside
    return tokenizer
