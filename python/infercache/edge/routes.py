"""Which handler answers which route: what the middleware is given, and what it makes of the settings otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infercache.edge.exchange import EdgeRequest, Handler, Headers, Reply

if TYPE_CHECKING:
    from infercache import Cache
    from infercache.edge.metrics import Metrics
    from infercache.edge.settings import Settings
    from infercache.edge.versions import Versions

__all__ = ["Routes", "Table", "routes"]

#: (method, path) → who answers. A `*` stands for one segment of the path.
Table = Mapping[tuple[str, str], Handler]


def _as_it_is(request: EdgeRequest, reply: Reply) -> Reply:
    return reply


def _none(headers: Headers) -> Any:
    return None


@dataclass(frozen=True, slots=True)
class Routes:
    """Handlers, and what is done to each request that one of them is asked and to each answer.

    Attributes:
        table: the handlers.
        directives: reads a request's `Cache-Control`.
        finish: has the last word on an answer: `Cache-Status`, `Age`, 304.
    """

    table: Table = field(default_factory=dict)
    directives: Callable[[Headers], Any] = _none
    finish: Callable[[EdgeRequest, Reply], Reply] = _as_it_is


class Finder:
    """Finds a handler by method and path."""

    __slots__ = ("_exact", "_patterns")

    def __init__(self, table: Table) -> None:
        self._exact: dict[tuple[str, str], tuple[str, Handler]] = {}
        self._patterns: dict[tuple[str, int], list[tuple[list[str], str, Handler]]] = {}
        for (method, path), handler in table.items():
            segments = path.split("/")
            if "*" in segments:
                self._patterns.setdefault((method, len(segments)), []).append((segments, path, handler))
            else:
                self._exact[method, path] = path, handler

    def find(self, method: str, path: str) -> tuple[str, Handler] | None:
        """The route's name and who answers it."""
        found = self._exact.get((method, path))
        if found is not None or not self._patterns:
            return found
        segments = path.split("/")
        for pattern, name, handler in self._patterns.get((method, len(segments)), ()):
            if all(known in ("*", given) for known, given in zip(pattern, segments, strict=True)):
                return name, handler
        return None


def routes(settings: Settings, cache: Cache, versions: Versions, metrics: Metrics) -> Routes:
    """The handlers that the settings ask for.

    Raises:
        InvalidArgument: a tokenizer cannot be loaded.
        MissingExtra: tokenizers are asked for, and their package is not installed.
    """
    from infercache.edge.directives import RequestDirectives
    from infercache.edge.embeddings import Embeddings
    from infercache.edge.get_form import GetForm
    from infercache.edge.open_inference import handlers as open_inference
    from infercache.edge.status import finish
    from infercache.edge.tokens import Tokenizers
    from infercache.edge.whole import handlers

    tokenizers = Tokenizers(settings.embeddings_tokenizers, metrics)
    whole = handlers(settings, cache, versions)
    table: dict[tuple[str, str], Handler] = {
        ("POST", "/v1/embeddings"): Embeddings(settings, cache, versions, tokenizers),
        **whole,
        **open_inference(settings, cache, versions),
    }
    for path in settings.json_routes:
        table["GET", path] = table["HEAD", path] = GetForm(settings, whole["POST", path])
    return Routes(table, RequestDirectives.of, finish)
