"""Every way to read a cache, as a caller sees it, with what it took: threads and event loops alike."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infercache import Cache

SCOPE = {"model": "m", "version": "1"}
WAYS = ("memoized", "batch", "get", "get_many", "lookup", "get_or_compute")


class Asked:
    """One cache's functions, of both kinds. The model's answer is the word that is set.

    Args:
        cache: which.
        kind: "thread" or "task".
    """

    def __init__(self, cache: Cache, kind: str) -> None:
        self.cache = cache
        self.word = "new"
        self.runs = 0
        self.runner = asyncio.Runner() if kind == "task" else None

        def model() -> str:
            self.runs += 1
            return self.word

        @cache.memoize(operation="one", tags=["question:{question}"], **SCOPE)
        def one(question: str) -> str:
            return model()

        @cache.memoize_batch(over="question", operation="batch", max_batch=2, tags=["question:{question}"], **SCOPE)
        def batch(question: list[str]) -> list[str]:
            word = model()
            return [word for _ in question]

        @cache.memoize(operation="one", tags=["question:{question}"], **SCOPE)
        async def aone(question: str) -> str:
            return model()

        @cache.memoize_batch(over="question", operation="batch", max_batch=2, tags=["question:{question}"], **SCOPE)
        async def abatch(question: list[str]) -> list[str]:
            word = model()
            return [word for _ in question]

        async def amodel() -> str:
            return model()

        self.model, self.amodel = model, amodel
        self.one, self.batch, self.aone, self.abatch = one, batch, aone, abatch

    def close(self) -> None:
        if self.runner is not None:
            self.runner.run(self.cache.aclose())
            self.runner.close()
        else:
            self.cache.close()

    def by(self, way: str, question: str = "q") -> Any:
        """The answer; None where that way runs no model and nothing is known."""
        key, cache = self.one.key(question), self.cache
        if self.runner is None:
            calls: dict[str, Any] = {
                "memoized": lambda: self.one(question),
                "batch": lambda: self.batch([f"{question} {number}" for number in range(8)])[0],
                "get": lambda: cache.get(key),
                "get_many": lambda: cache.get_many([key])[0],
                "lookup": lambda: cache.lookup(key).value,
                "get_or_compute": lambda: cache.get_or_compute(key, self.model, tags=[f"question:{question}"]),
                "set": lambda: cache.set(key, self.word, tags=[f"question:{question}"]),
            }
            return calls[way]()

        async def ask() -> Any:
            match way:
                case "memoized":
                    return await self.aone(question)
                case "batch":
                    return (await self.abatch([f"{question} {number}" for number in range(8)]))[0]
                case "get":
                    return await cache.aget(key)
                case "get_many":
                    return (await cache.aget_many([key]))[0]
                case "lookup":
                    return (await cache.alookup(key)).value
                case "set":
                    return await cache.aset(key, self.word, tags=[f"question:{question}"])
                case _:
                    return await cache.aget_or_compute(key, self.amodel, tags=[f"question:{question}"])

        return self.runner.run(ask())

    def timed(self, way: str, question: str = "q") -> tuple[Any, float]:
        """The answer, and how many seconds it took."""
        began = time.monotonic()
        answer = self.by(way, question)
        return answer, time.monotonic() - began

    def purge(self, question: str = "q") -> Any:
        """Purges what was computed of a question."""
        tags = [f"question:{question}"]
        if self.runner is None:
            return self.cache.invalidate(tags=tags)
        return self.runner.run(self.cache.ainvalidate(tags=tags))
