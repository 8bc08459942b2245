"""A process with a cache, whose fills stop at each of their steps (a scenario for `processes.Worker`).

Steps of `fill`: "before the stamp", "stamped", "model running", "model returned", "stored". Of `memoized`: the model's
two alone, since the rest is one call of the product. Between its store in memory and that on a server the proxy holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infercache import Cache, Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Line

SCOPE = {"model": "m", "version": "1"}
STEPS = ("before the stamp", "stamped", "model running", "model returned", "stored")


def cache_process(line: Line, **options: Any) -> dict[str, Callable[..., Any]]:
    """Commands around one cache, made with `options`. The model's answer is the word that lets it go on."""
    cache = Cache("16MB", **options)
    tokens: dict[int, Token] = {}

    def model(question: str) -> Any:
        answer = line.hold("model running", question)
        line.hold("model returned")
        return answer

    def key(question: str) -> Any:
        return cache.key({"question": question}, operation="fill", **SCOPE)

    def fill(question: str) -> Any:
        line.hold("before the stamp")
        found = cache.lookup(key(question))
        if found.source != "miss":
            return found.value
        line.hold("stamped")
        answer = model(question)
        cache.set(key(question), answer, tags=[f"question:{question}"], since=found.stamp)
        line.hold("stored")
        return answer

    @cache.memoize(operation="memoized", tags=["question:{question}"], **SCOPE)
    def memoized(question: str) -> Any:
        return model(question)

    def get(question: str, token: int | None = None) -> Any:
        return cache.get(key(question), min_token=tokens.get(token) if token is not None else None)

    def peek(question: str) -> Any:
        return memoized.peek(question)

    def purge(question: str) -> int:
        tokens[len(tokens)] = cache.invalidate(tags=[f"question:{question}"])
        return len(tokens) - 1

    return {"fill": fill, "memoized": memoized, "get": get, "peek": peek, "purge": purge}


def local_cache() -> Cache:
    """A cache whose purges reach its own process alone."""
    return Cache("16MB")
